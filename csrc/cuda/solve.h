// Loss and gradient in one pass over the candidates, and the enqueue, on a GPU: pointers, sizes and a stream.
#pragma once

#include "../problem.h"
#include "plan.h"

namespace sce_fast {

// One launch of the forward pass.
struct PassPlan {
  int32_t config = 0;   // index into kConfigs or kHopperConfigs
  int32_t splits = 0;   // that are stored; 0: no launch; with an uneven cut the most that a block of rows has
  int32_t cluster = 1;  // so many splits are added before one is stored
  int32_t blocks = 0;   // of an uneven cut; 0: even
  int64_t tiles = 0;
  int64_t rows = 0;   // of a split
  int64_t views = 0;  // grid z
};

// How a problem is cut into launches.
struct Plan {
  Kernel kernel = Kernel::kSm80;
  PassPlan shared;           // candidates that all key views share
  PassPlan per_view;         // batch keys that each key view has for itself
  bool fixed_shift = false;  // the largest possible logit replaces the running maximum
  bool turns = false;        // Hopper: the two warpgroups take turns on the tensor cores
  int64_t workspace_bytes = 0;
};

// Returns how the problem is cut. Depends on sizes, types, temperatures and alignment, never on values on the device.
// With `splits` > 0 the candidates are cut evenly into so many parts instead of the chosen number. Throws
// std::invalid_argument for what the kernels do not serve.
Plan plan(const Problem& problem, const Limits& limits, Kernel kernel = Kernel::kBest, int32_t splits = 0,
          const Tuning& tuning = {});

// Launches the kernels. Pointers are on the device and aligned to 16 bytes, also that of `workspace`, which has
// plan.workspace_bytes. A launch that fails throws std::runtime_error with the kernel's name.
void solve(const Problem& problem, const Solution& solution, const Plan& plan, void* workspace, void* stream);

// The ring of past keys.
struct Ring {
  void* keys;  // (K, D)
  Type type;
  int64_t size, dim;
  int64_t* cursor;  // (): the row that is overwritten next
};

// Overwrites the oldest keys with `rows` (R, D), normalised on request, and advances the cursor. Of more than K rows
// the newest K stay.
void enqueue(const Ring& ring, const Matrix& rows, bool normalize, void* stream);

// The two products of one step of the Hopper kernel, each alone: products (64, tile) = rows (64, D) · candidatesᵀ and
// outputs (64, D) = weights (64, tile) · candidates. There are at most sm90_tile(D) candidates; missing ones count as
// zeros. Weights have the candidates' type, results are float.
int32_t sm90_tile(int32_t dim);
void multiply_one_tile(const Matrix& rows, const Matrix& candidates, int32_t dim, const void* weights, float* products,
                       float* outputs, void* stream);

// ---- launches of single kernels, called by solve

struct Pass;

namespace sm80 {
void forward_pass(const Pass& pass, Type product, bool fixed_shift, int32_t config, void* stream);
}
namespace sm90 {
void forward_pass(const Pass& pass, Type product, bool fixed_shift, int32_t config, void* stream);
// With clusters, or without them and with the other value of HopperConfig::turns; see kHasVariants.
void forward_variant(const Pass& pass, int32_t config, void* stream);
}  // namespace sm90
// `early`: its blocks may begin before the blocks of the launch before it have ended.
void combine(const Pass& shared, const Pass& per_view, const Solution& solution, bool early, void* stream);

}  // namespace sce_fast
