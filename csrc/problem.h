// The one pass over the candidates, as plain pointers: what every native backend is given. No torch header here.
#pragma once

#include <cstdint>

namespace sce_fast {

// As in sce_fast/native.py.
enum class Type : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// Rows of `dim` values that lie one behind the other.
struct Matrix {
  const void* data = nullptr;
  Type type = Type::kFloat32;
  int64_t rows = 0;
};

struct Problem {
  Matrix query;                                                  // (V · N, D)
  Matrix key;                                                    // (U · N, D)
  Matrix queue;                                                  // (K, D), rows 0 for none
  Matrix batch_keys;                                             // (B · M, D), rows 0 for none
  int64_t query_views, key_views, batch_keys_views, batch, dim;  // B is 1 where all key views share them, else U
  int64_t row_offset;  // own key of row i stands at row_offset + i of its view's batch keys
  bool same_views;     // index v of query and key is the same view, and v = u is no term
  bool zero_logit;     // positive_target
  bool needs_target;   // false where λ = 1 and nobody asks for the target's entropy: half the work
  float temperature, target_temperature, coefficient;
};

// Per-row results are means over the terms.
struct Solution {
  float* rows;                  // (N,) loss
  float* gradient;              // (V, N, D), or null where it is not wanted: the student's output product is left out
  float* target_entropy;        // (U, N); NaN without needs_target
  float* positive_probability;  // (N,)
};

}  // namespace sce_fast
