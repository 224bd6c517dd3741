// What the forward pass and its combination share: the list of rows, the candidates, the partial results.
#pragma once

#include <limits>

#include "../problem.h"
#include "plan.h"
#include "ptx.cuh"

namespace sce_fast {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Candidates (rows, D) of 16 bits. Candidate own_offset + i is hidden from sample i.
struct Segment {
  const void* data = nullptr;
  int32_t rows = 0;
  int32_t own_offset = -1;  // negative: no candidate is hidden
};

// Tiles, or blocks of rows, from `begin` to before `end`.
struct Range {
  int begin, end;
};

// An uneven cut: the tiles of all blocks of rows, one block of rows after another, are cut into as many parts of equal
// cost as there are multiprocessors. A block of threads has one part, which may end a block of rows and begin the next.
// `plan` checks that the products below fit 32 bits.
struct Cut {
  // What loading a block of rows and storing its results costs, in tiles. The block of threads that begins with the
  // block of rows pays it on this axis; what the others pay is the same for all.
  static constexpr int32_t kRowsCost = 2;

  int32_t blocks = 0;  // of threads; 0: the cut is even
  int32_t row_blocks = 0, tiles = 0;

  SCE_FAST_ANYWHERE int32_t length() const { return tiles + kRowsCost; }
  SCE_FAST_ANYWHERE int32_t total() const { return row_blocks * length(); }
  // Where a block's part begins.
  SCE_FAST_ANYWHERE int32_t start(int32_t block) const { return total() * block / blocks; }
  // The blocks of rows that a block's part touches; of the last one it may have no tile.
  SCE_FAST_ANYWHERE Range row_blocks_of(int32_t block) const {
    return {start(block) / length(), (start(block + 1) - 1) / length() + 1};
  }
  // The block whose part has this place.
  SCE_FAST_ANYWHERE int32_t block_at(int32_t place) const { return ((place + 1) * blocks - 1) / total(); }
  SCE_FAST_ANYWHERE int32_t first_block(int32_t row_block) const { return block_at(row_block * length() + kRowsCost); }
  // The number of blocks that have tiles of a block of rows.
  SCE_FAST_ANYWHERE int32_t splits(int32_t row_block) const {
    return block_at((row_block + 1) * length() - 1) - first_block(row_block) + 1;
  }
  SCE_FAST_ANYWHERE Range range(int32_t block, int32_t row_block) const {
    const int32_t first = row_block * length() + kRowsCost;
    return {within(start(block) - first), within(start(block + 1) - first)};
  }

 private:
  SCE_FAST_ANYWHERE int32_t within(int32_t tile) const { return tile < 0 ? 0 : tile > tiles ? tiles : tile; }
};

// One launch: student and teacher rows against at most two segments of candidates, whose tiles are numbered one after
// another. With `per_key_view`, grid z is a key view u with candidates of its own (part u of segment 0). They are seen
// by the teacher rows of view u and by the student rows of the views that have a term with it.
struct Pass {
  Problem problem;
  bool per_key_view = false;
  Segment segments[2];
  int32_t rows = 0;                    // of the longest row list: the stride of a split
  int32_t splits = 0;                  // 0: no launch; with an uneven cut the most that a block of rows has
  Cut cut;                             // Hopper only
  int32_t cluster = 1;                 // so many blocks add their splits to one before they store it; even cut only
  Partial<float>* partials = nullptr;  // (z, splits, rows)
  float* outputs = nullptr;            // (z, splits, rows, D), not divided by a sum

  // `plan` checks that these fit 32 bits. Wider arithmetic would cost registers that the kernels do not have.
  SCE_FAST_DEVICE int32_t batch() const { return static_cast<int32_t>(problem.batch); }
  SCE_FAST_DEVICE int32_t dim() const { return static_cast<int32_t>(problem.dim); }
  SCE_FAST_DEVICE int32_t query_views() const { return static_cast<int32_t>(problem.query_views); }
  SCE_FAST_DEVICE int32_t key_views() const { return static_cast<int32_t>(problem.key_views); }
};

// The rows that see the candidates of grid z: students view by view, then teachers.
struct RowList {
  int32_t students, teachers;
  int32_t skipped_view;    // the query view without a term here; negative: none
  int32_t first_key_view;  // of the teachers
};

SCE_FAST_DEVICE RowList row_list(const Pass& pass, int32_t z) {
  const bool skips = pass.per_key_view && pass.problem.same_views && z < pass.query_views();
  const int32_t key_views = !pass.problem.needs_target ? 0 : pass.per_key_view ? 1 : pass.key_views();
  return {(pass.query_views() - (skips ? 1 : 0)) * pass.batch(), key_views * pass.batch(), skips ? z : -1,
          pass.per_key_view ? z : 0};
}

// The place in the list of row i of query view v, or of key view u.
SCE_FAST_DEVICE int32_t student_place(const Pass& pass, const RowList& list, int32_t v, int32_t i) {
  const bool behind_skipped = list.skipped_view >= 0 && v > list.skipped_view;
  return (v - (behind_skipped ? 1 : 0)) * pass.batch() + i;
}

SCE_FAST_DEVICE int32_t teacher_place(const Pass& pass, const RowList& list, int32_t u, int32_t i) {
  return list.students + (u - list.first_key_view) * pass.batch() + i;
}

SCE_FAST_DEVICE int64_t partial_index(const Pass& pass, int32_t z, int32_t split, int32_t place) {
  return (static_cast<int64_t>(z) * pass.splits + split) * pass.rows + place;
}

// The factor that brings what a split has summed to a larger shift; 0 if the split has seen nothing. The power does not
// wait for the comparison, so that no load does.
SCE_FAST_DEVICE float rescaling(float shift, float sum, float larger_shift) {
  const float power = ptx::exp2(shift - larger_shift);
  return sum == 0.f ? 0.f : power;
}

// The splits that the row at a place has.
SCE_FAST_DEVICE int32_t splits_of(const Pass& pass, int32_t place) {
  return pass.cut.blocks > 0 ? pass.cut.splits(place / kHopperRows) : pass.splits;
}

// The sum and the maximum over a warp, the same bits in every lane.
SCE_FAST_DEVICE float warp_sum(float x) {
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) x += ptx::shuffle_xor(x, lanes);
  return x;
}
SCE_FAST_DEVICE float warp_max(float x) {
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) x = fmaxf(x, ptx::shuffle_xor(x, lanes));
  return x;
}

// Returns element `index` of an array.
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
