// The forward pass: many rows stream over the candidates and collect Σ 2^(logit − shift) and
// Σ 2^(logit − shift) · candidate.
#pragma once

#include <cstdint>
#include <vector>

#include "../problem.h"
#include "buffer.h"
#include "tile.h"

namespace sce_fast {

// Candidates, and where a row meets its own key among them: candidate own_offset + i mod batch is hidden from row i.
struct Segment {
  Matrix candidates;
  int64_t own_offset = -1;  // negative: nowhere
};

// Rows that share a temperature, in the type of the products.
struct Group {
  const void* rows;
  int64_t count;
  float scale;  // log₂e / temperature
  bool needs_output;
  bool fixed_shift;  // to `scale`, the largest logit of unit rows; otherwise the shift is a running maximum
};

// The results of all rows of all groups, in order.
struct PassResult {
  std::vector<Partial<double>> partials;
  Buffer<float> outputs;  // (rows that need an output, dim), not divided by a sum
};

// Returns the factor that brings a partial result to a larger shift; 0 if the row has seen nothing.
float rescaling(const Partial<double>& partial, float larger_shift);

// Returns the same bits for any number of threads.
PassResult forward_pass(const std::vector<Segment>& segments, const std::vector<Group>& groups, int64_t dim,
                        int64_t batch, Products products, int threads);

// One thread below a million multiplications: waking others would take longer than the work.
inline int worthwhile(int64_t multiplications, int threads) { return multiplications < 1'000'000 ? 1 : threads; }

}  // namespace sce_fast
