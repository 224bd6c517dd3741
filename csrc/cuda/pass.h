// What the kernels of the one pass share: the list of rows, the candidates, the partial results.
#pragma once

#include "../problem.h"
#include "ptx.cuh"

namespace sce_fast {

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// What a row has seen in one split beside Σ weight · candidate: its weights are 2^(logit − shift), and these are their
// sum and the sum of what the tensor cores multiplied, the weights rounded to 16 bits.
struct Partial {
  float shift, sum, rounded_sum;
};

// Candidates (rows, D) of 16 bits; sample i does not see candidate own_offset + i.
struct Segment {
  const void* data;
  int32_t rows;
  int32_t own_offset;  // negative: it sees all
};

// One launch: student and teacher rows against at most two segments of candidates, the tiles of the second numbered
// after those of the first. With `per_key_view`, grid z is a key view u with its own candidates (u-th part of
// segment 0), seen by the teacher rows of view u and the student rows of the views that have a term with it.
struct Pass {
  const void *query, *key;  // (V · N, D), (U · N, D)
  Type query_type, key_type;
  int32_t batch, dim, query_views, key_views;
  bool same_views, per_key_view, needs_target, needs_gradient;
  Segment segments[2];
  const float* scalars;  // (3,) temperature, target_temperature, coefficient; null: the numbers here
  float temperature, target_temperature;
  int32_t rows;  // of the longest row list: the stride of a split
  int32_t splits;
  Partial* partials;  // (z, splits, rows)
  float* outputs;     // (z, splits, rows, D), not divided by a sum
};

// The rows that see the candidates of grid z: students view by view, then teachers.
struct RowList {
  int32_t students, teachers;
  int32_t skipped_view;    // the query view without a term here; negative: none
  int32_t first_key_view;  // of the teachers
};

SCE_FAST_DEVICE RowList row_list(const Pass& pass, int32_t z) {
  const bool skips = pass.per_key_view && pass.same_views && z < pass.query_views;
  const int32_t key_views = !pass.needs_target ? 0 : pass.per_key_view ? 1 : pass.key_views;
  return {(pass.query_views - (skips ? 1 : 0)) * pass.batch, key_views * pass.batch, skips ? z : -1,
          pass.per_key_view ? z : 0};
}

// Where in the list row i of query view v, or of key view u, stands.
SCE_FAST_DEVICE int32_t student_place(const Pass& pass, const RowList& list, int32_t v, int32_t i) {
  const bool behind_skipped = list.skipped_view >= 0 && v > list.skipped_view;
  return (v - (behind_skipped ? 1 : 0)) * pass.batch + i;
}

SCE_FAST_DEVICE int32_t teacher_place(const Pass& pass, const RowList& list, int32_t u, int32_t i) {
  return list.students + (u - list.first_key_view) * pass.batch + i;
}

SCE_FAST_DEVICE int64_t partial_index(const Pass& pass, int32_t z, int32_t split, int32_t place) {
  return (static_cast<int64_t>(z) * pass.splits + split) * pass.rows + place;
}

// Number `index` of an array of that type.
SCE_FAST_DEVICE float load_number(const void* data, Type type, int64_t index) {
  if (type == Type::kFloat32) return static_cast<const float*>(data)[index];
  if (type == Type::kBFloat16) return ptx::to_float(static_cast<const BFloat16*>(data)[index]);
  return ptx::to_float(static_cast<const Float16*>(data)[index]);
}

SCE_FAST_DEVICE void store_number(void* data, Type type, int64_t index, float value) {
  if (type == Type::kFloat32)
    static_cast<float*>(data)[index] = value;
  else if (type == Type::kBFloat16)
    static_cast<BFloat16*>(data)[index].bits = static_cast<uint16_t>(ptx::pack<BFloat16>(value, 0.f));
  else
    static_cast<Float16*>(data)[index].bits = static_cast<uint16_t>(ptx::pack<Float16>(value, 0.f));
}

}  // namespace sce_fast
