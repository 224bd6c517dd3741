// What the two forward passes share: tiles of candidates, what is hidden from a row, the numbers that a row keeps.
#pragma once

#include <cmath>
#include <numbers>

#include "pass.h"

namespace sce_fast {

// Weights are 2^(logit − shift). Under a running maximum the shift follows lazily: it stays until a weight would exceed
// 2^kMost, then the largest weight becomes 2^kSet. The smallest number of fp16 is 2^-24, so its weights lie as high as
// its largest number, 65504, allows.
template <class T>
struct Headroom {
  static constexpr float kSet = 0.f, kMost = 8.f;
};
template <>
struct Headroom<Float16> {
  static constexpr float kSet = 8.f, kMost = 15.f;
};

template <class T>
constexpr Type kTypeOf = std::is_same_v<T, BFloat16> ? Type::kBFloat16 : Type::kFloat16;

// Eight numbers of a row as they are stored, in one or two 16-byte loads, and the same numbers rounded to T.
template <class Stored>
struct Eight {
  ptx::Chunk chunk;
  SCE_FAST_DEVICE Eight() : chunk{} {}
  SCE_FAST_DEVICE Eight(const void* rows, int64_t index)
      : chunk(*reinterpret_cast<const ptx::Chunk*>(static_cast<const Stored*>(rows) + index)) {}

  template <class T>
  SCE_FAST_DEVICE ptx::Chunk rounded() const {
    ptx::Chunk result = chunk;
    if constexpr (!std::is_same_v<T, Stored>)
#pragma unroll
      for (int w = 0; w < 4; ++w)
        result.words[w] = ptx::pack<T>(ptx::to_float(Stored{static_cast<uint16_t>(chunk.words[w])}),
                                       ptx::to_float(Stored{static_cast<uint16_t>(chunk.words[w] >> 16)}));
    return result;
  }
};
template <>
struct Eight<float> {
  ptx::FloatQuad low, high;
  SCE_FAST_DEVICE Eight() : low{}, high{} {}
  SCE_FAST_DEVICE Eight(const void* rows, int64_t index) {
    const auto* quads = reinterpret_cast<const ptx::FloatQuad*>(static_cast<const float*>(rows) + index);
    low = quads[0], high = quads[1];
  }

  template <class T>
  SCE_FAST_DEVICE ptx::Chunk rounded() const {
    return {{ptx::pack<T>(low.values[0], low.values[1]), ptx::pack<T>(low.values[2], low.values[3]),
             ptx::pack<T>(high.values[0], high.values[1]), ptx::pack<T>(high.values[2], high.values[3])}};
  }
};

// Calls act<Stored>() for the type of a matrix.
template <class Act>
SCE_FAST_DEVICE void with_stored(Type type, const Act& act) {
  if (type == Type::kFloat32)
    act.template operator()<float>();
  else if (type == Type::kBFloat16)
    act.template operator()<BFloat16>();
  else
    act.template operator()<Float16>();
}

// The matrix of the rows at a place of the list.
SCE_FAST_DEVICE const Matrix& matrix_at(const Pass& pass, const RowList& list, int place) {
  return place < list.students ? pass.problem.query : pass.problem.key;
}

// The row of that matrix.
SCE_FAST_DEVICE int row_at(const Pass& pass, const RowList& list, int place) {
  if (place >= list.students) return place - list.students + list.first_key_view * pass.batch();
  const bool behind_skipped = list.skipped_view >= 0 && place >= list.skipped_view * pass.batch();
  return place + (behind_skipped ? pass.batch() : 0);
}

// Returns eight numbers of the row at a place of the list, from `column` on, rounded to T; zeros beyond the last row
// and beyond D.
template <class T>
SCE_FAST_DEVICE ptx::Chunk load_row_chunk(const Pass& pass, const RowList& list, int place, int column) {
  if (column >= pass.dim() || place >= list.students + list.teachers) return {};
  const Matrix& matrix = matrix_at(pass, list, place);
  ptx::Chunk result;
  with_stored(matrix.type, [&]<class Stored>() {
    const int64_t index = static_cast<int64_t>(row_at(pass, list, place)) * pass.dim() + column;
    result = Eight<Stored>(matrix.data, index).template rounded<T>();
  });
  return result;
}

// A tile of candidates, and which of them is hidden from a sample.
struct Tile {
  int32_t segment, first;  // its first candidate there
  int32_t count;
  int32_t own;  // hidden from sample 0; candidate own + i is hidden from sample i
  bool has_own;
};

template <int kTile>
SCE_FAST_DEVICE int tiles_of(const Pass& pass) {
  return (pass.segments[0].rows + kTile - 1) / kTile + (pass.segments[1].rows + kTile - 1) / kTile;
}

template <int kTile>
SCE_FAST_DEVICE Tile find_tile(const Pass& pass, int t) {
  const int in_first = (pass.segments[0].rows + kTile - 1) / kTile;
  const Segment& segment = pass.segments[t < in_first ? 0 : 1];
  const int first = (t < in_first ? t : t - in_first) * kTile;
  return {t < in_first ? 0 : 1, first, segment.rows - first < kTile ? segment.rows - first : kTile,
          segment.own_offset - first,
          segment.own_offset >= 0 && segment.own_offset < first + kTile && segment.own_offset + pass.batch() > first};
}

// The tiles of a split of an even cut.
SCE_FAST_DEVICE Range range_of_split(int tiles, int split, int splits) {
  return {static_cast<int>(static_cast<int64_t>(tiles) * split / splits),
          static_cast<int>(static_cast<int64_t>(tiles) * (split + 1) / splits)};
}

// The parts of a block of threads: blocks of rows from `begin` to before `end`, and a range of tiles for each.
struct Parts {
  int tiles, begin, end;

  SCE_FAST_DEVICE Parts(const Pass& pass, int tiles_of_pass) : tiles(tiles_of_pass) {
    const int block = ptx::block_index().x;
    const Range row_blocks = pass.cut.blocks > 0 ? pass.cut.row_blocks_of(block) : Range{block, block + 1};
    begin = row_blocks.begin;
    end = row_blocks.end;
  }
  // The last one may be empty.
  SCE_FAST_DEVICE Range range(const Pass& pass, int row_block) const {
    if (pass.cut.blocks > 0) return pass.cut.range(ptx::block_index().x, row_block);
    return range_of_split(tiles, ptx::block_index().y, pass.splits * pass.cluster);
  }
};

// The number of this block's split of a block of rows.
SCE_FAST_DEVICE int split_of(const Pass& pass, int row_block) {
  const int block = ptx::block_index().x;
  return pass.cut.blocks > 0 ? block - pass.cut.first_block(row_block)
                             : static_cast<int>(ptx::block_index().y) / pass.cluster;
}

SCE_FAST_DEVICE float quad_sum(float x) {
  x += ptx::shuffle_xor(x, 1);
  return x + ptx::shuffle_xor(x, 2);
}
SCE_FAST_DEVICE float quad_max(float x) {
  x = fmaxf(x, ptx::shuffle_xor(x, 1));
  return fmaxf(x, ptx::shuffle_xor(x, 2));
}

// What one of the four lanes that share a row knows of it.
struct Row {
  float scale;  // log₂e / temperature
  float shift, sum, rounded_sum;
  float lowest;  // the smallest product with a candidate
};

template <bool kFixed>
SCE_FAST_DEVICE Row new_row(const Pass& pass, const RowList& list, int place) {
  const float* scalars = pass.problem.scalars;
  const bool student = place < list.students;
  const float temperature = scalars   ? scalars[student ? 0 : 1]
                            : student ? pass.problem.temperature
                                      : pass.problem.target_temperature;
  const float scale = std::numbers::log2e_v<float> / temperature;
  return {scale, kFixed ? scale : -kInfinity, 0.f, 0.f, kInfinity};
}

// Moves the shift if the largest logit of a tile requires it. Returns the factor for what was summed so far; the row's
// own sums are already multiplied.
template <class T>
SCE_FAST_DEVICE float raise_shift(Row& row, float highest) {
  using Room = Headroom<T>;
  if (!(highest > row.shift + Room::kMost)) return 1.f;
  const float shift = highest - Room::kSet;
  const float factor = ptx::exp2(row.shift - shift);
  row.shift = shift;
  row.sum *= factor;
  row.rounded_sum *= factor;
  return factor;
}

// Returns what the four lanes of a row have seen together. All lanes of the warp call this.
template <bool kFixed>
SCE_FAST_DEVICE Partial<float> partial_of(const Row& row) {
  const float sum = quad_sum(row.sum), rounded_sum = quad_sum(row.rounded_sum), lowest = -quad_max(-row.lowest);
  // No product of unit rows lies below: a row or a candidate breaks the contract (or is −∞), and the lost weights must
  // not go unnoticed.
  const bool lost = kFixed ? lowest * row.scale - row.shift < -126.f : lowest == -kInfinity;
  return {row.shift, lost ? kNaN : sum, rounded_sum};
}

// Calls launch<T, kFixed>() for the arithmetic of a pass. With fp16 weights the shift is never fixed.
template <class Launch>
void with_arithmetic(Type product, bool fixed_shift, const Launch& launch) {
  if (product == Type::kFloat16)
    launch.template operator()<Float16, false>();
  else if (fixed_shift)
    launch.template operator()<BFloat16, true>();
  else
    launch.template operator()<BFloat16, false>();
}

}  // namespace sce_fast
