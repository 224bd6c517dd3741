// A call of the loss as plain pointers and sizes, shared by the C++ and the CUDA backend. No torch header here.
// docs/loss.md explains the quantities.
#pragma once

#include <cstdint>

namespace sce_fast {

// The codes are those of TYPES in sce_fast/loss/pack.py.
enum class Type : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

constexpr int64_t bytes_of(Type type) { return type == Type::kFloat32 ? 4 : 2; }

// Rows of `dim` values, stored one after another.
struct Matrix {
  const void* data = nullptr;
  Type type = Type::kFloat32;
  int64_t rows = 0;
};

// sce_fast/loss/pack.py fills the fields by name.
struct Problem {
  Matrix query;                 // (V · N, D)
  Matrix key;                   // (U · N, D)
  Matrix queue;                 // (K, D); rows = 0 without a queue
  Matrix batch_keys;            // (batch_key_views · M, D); rows = 0 without batch keys
  int64_t query_views = 0;      // V
  int64_t key_views = 0;        // U
  int64_t batch_key_views = 0;  // 1 if all key views share the batch keys, else U; 0 without batch keys
  int64_t batch = 0;            // N
  int64_t dim = 0;              // D
  int64_t row_offset = 0;       // the own key of row i is row row_offset + i of its view's batch keys
  bool same_views = false;      // index v of query and key is the same view, so (v, v) is not a term
  bool zero_logit = false;      // positive_target
  bool needs_gradient = false;  // without it the student's output product is skipped
  bool needs_target = false;    // false if λ = 1 and nobody asks for the target's entropy: half the work
  float temperature = 0.f, target_temperature = 0.f, coefficient = 0.f;
  const float* scalars = nullptr;  // (3,) on the device, replaces the three numbers above; null on the CPU
};

// Per-row results are means over the terms.
struct Solution {
  float* rows = nullptr;                  // (N,) loss
  void* gradient = nullptr;               // (V, N, D); null without needs_gradient
  Type gradient_type = Type::kFloat32;    // the CPU backend writes float32 only
  float* target_entropy = nullptr;        // (U, N); NaN without needs_target
  float* positive_probability = nullptr;  // (N,)
  float* mean = nullptr;                  // the mean of rows, whose gradient is then meant; CPU backend only, or null
};

// What a row has seen in one part of the candidates, besides its output Σ weight · candidate. A weight is
// 2^(logit − shift) with logits in bits; `sum` adds the weights, `rounded_sum` the weights as the output product rounds
// them.
template <class Sum>
struct Partial {
  float shift;
  Sum sum, rounded_sum;
};

// With unit rows |logit| ≤ 1/τ. While the whole range of 2/τ · log₂e is at most this many bits, the largest possible
// logit can stand for a row's maximum: no weight that matters underflows. sce_fast/loss/problem.py has the same number.
constexpr float kFixedShiftBits = 115.f;

}  // namespace sce_fast
