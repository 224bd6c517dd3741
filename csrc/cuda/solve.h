// Loss and gradient in one pass over the candidates, and the enqueue, on a GPU: pointers, sizes and a stream.
#pragma once

#include "../problem.h"
#include "plan.h"

namespace sce_fast {

// Pointers of the problem are on the device, aligned to 16 bytes; candidates are all bf16 or all fp16.
struct CudaProblem : Problem {
  int64_t batch_key_views;  // 1 where all key views share the batch keys, else U; 0 without
  const float* scalars;     // (3,) temperatures and coefficient on the device, or null: those of Problem
};

struct CudaSolution {
  float* rows;                  // (N,) loss
  void* gradient;               // (V, N, D) in the query's type, or null where it is not wanted
  float* target_entropy;        // (U, N); NaN without needs_target
  float* positive_probability;  // (N,)
};

// One launch of the forward pass.
struct PassPlan {
  int32_t config = 0;  // of kConfigs, or of kHopperConfigs
  int32_t splits = 0;  // 0: no launch
  int64_t rows = 0;    // of a split
  int64_t views = 0;   // grid z
};

struct Plan {
  Kernel kernel = Kernel::kSm80;
  PassPlan shared, per_view;  // candidates that all views share; batch keys of their own for each key view
  bool fixed_shift = false;   // the largest possible logit stands for the running maximum
  int64_t workspace_bytes = 0;
};

// How the problem is cut. Looks at sizes, types and temperatures, never at the device. With `splits` > 0 that many
// parts instead of the chosen number. Throws std::invalid_argument for what the kernels do not serve.
Plan make_plan(const CudaProblem& problem, const Limits& limits, Kernel kernel = Kernel::kBest, int32_t splits = 0);

// Starts the kernels; `workspace` has plan.workspace_bytes, aligned to 16 bytes. An error in a launch is thrown as
// std::runtime_error with the kernel's name.
void sce_solve(const CudaProblem& problem, const CudaSolution& solution, const Plan& plan, void* workspace,
               void* stream);

// The ring of past keys: `keys` (K, D), `cursor` () the row that is overwritten next.
struct Ring {
  void* keys;
  Type type;
  int64_t size, dim;
  int64_t* cursor;
};

// Overwrites the oldest keys with `rows` (R, D), normalised where asked for, and advances the cursor; of more than K
// rows the newest K stay.
void enqueue(const Ring& ring, const Matrix& rows, bool normalize, void* stream);

// The products of one step of the Hopper kernel, each alone: products (64, tile) = rows (64, D) · candidatesᵀ, and outputs
// (64, D) = weights (64, tile) · candidates, at most sm90_tile(D) of them, zeros beyond. Weights are of the candidates'
// type, results float.
int32_t sm90_tile(int32_t dim);
void multiply_one_tile(const Matrix& rows, const Matrix& candidates, int32_t dim, const void* weights, float* products,
                       float* outputs, void* stream);

// ---- the kernels' own entries, called by sce_solve

struct Pass;

void sm80_sce_forward_pass(const Pass& pass, Type product, bool fixed_shift, int32_t config, void* stream);
void sm90_sce_forward_pass(const Pass& pass, Type product, bool fixed_shift, int32_t config, void* stream);
// `early`: its blocks may begin before those of the pass before it have ended.
void sce_combine(const Pass& shared, const Pass& per_view, const CudaProblem& problem, const CudaSolution& solution,
                 bool early, void* stream);

}  // namespace sce_fast
