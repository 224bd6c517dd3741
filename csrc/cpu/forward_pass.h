// One pass over candidates for many rows: Σ 2^(logit − shift), and Σ 2^(logit − shift) · candidate.
#pragma once

#include <cstdint>
#include <vector>

#include "../problem.h"
#include "buffer.h"
#include "tile.h"

namespace sce_fast {

// Candidates, and where a row meets its own key among them: row i must not see candidate own_offset + i mod batch.
struct Segment {
  Matrix candidates;
  int64_t own_offset = -1;  // −1: nowhere
};

// Rows that share a temperature, in the products' type.
struct Group {
  const void* rows;
  int64_t count;
  float scale;  // log₂e / temperature
  bool needs_output;
};

// Weights of a row are 2^(logit − shift). Sums of the weights as they are, and as the product rounded them.
struct Partial {
  float shift;
  double exact, rounded;
};

// Of all rows of the groups, in their order.
struct PassResult {
  std::vector<Partial> partials;
  Buffer<float> outputs;  // (rows that need one, dim), not divided by a sum
};

// What brings a partial result with this shift to a larger one; nothing seen needs no factor.
float rescaling(const Partial& partial, float larger_shift);

// Same bits for any number of threads.
PassResult run_pass(const std::vector<Segment>& segments, const std::vector<Group>& groups, int64_t dim, int64_t batch,
                    Products products, int threads);

// Waking threads for less than this many multiplications takes longer than doing them.
inline int worthwhile(int64_t multiplications, int threads) { return multiplications < 1'000'000 ? 1 : threads; }

}  // namespace sce_fast
