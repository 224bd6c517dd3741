// Tiles in shared memory and the two products with a tile, shared by the Hopper kernels.
#pragma once

#include "plan.h"
#include "ptx_sm90.cuh"
#include "rows.h"

namespace sce_fast {

using ptx::Shared;

constexpr int kGroupRows = 64;  // of a warpgroup
constexpr int kGroupThreads = ptx::kWarpgroupSize;

// Shared memory of a block: the ring of tiles, the rows of two warpgroups, the mbarriers.
template <int kDim, int kTile, int kStages>
struct Layout {
  static constexpr int kBoxes = kDim / ptx::kBoxColumns;
  static constexpr uint32_t kRowBoxBytes = kGroupRows * ptx::kBoxRowBytes, kTileBoxBytes = kTile * ptx::kBoxRowBytes;
  static constexpr uint32_t kRowBytes = kBoxes * kRowBoxBytes, kTileBytes = kBoxes * kTileBoxBytes;
  static_assert(kTileBoxBytes % ptx::kSwizzleAlignment == 0 && kTile % 16 == 0);
  static_assert(kHopperSlack >= ptx::kSwizzleAlignment + 16 * kStages + 16);

  SCE_FAST_DEVICE Layout()
      : start((ptx::shared_memory() + ptx::kSwizzleAlignment - 1) & ~(ptx::kSwizzleAlignment - 1u)) {}
  SCE_FAST_DEVICE Shared tile(int stage) const { return start + stage * kTileBytes; }
  SCE_FAST_DEVICE Shared rows(int group) const { return tile(kStages) + group * kRowBytes; }
  SCE_FAST_DEVICE Shared filled(int stage) const { return rows(2) + 8 * stage; }
  SCE_FAST_DEVICE Shared emptied(int stage) const { return filled(kStages + stage); }
  SCE_FAST_DEVICE Shared rows_filled(int group) const { return filled(2 * kStages + group); }

  // Starts the copy of the tile that begins at candidate `first`; called by one thread.
  SCE_FAST_DEVICE void start_tile(int stage, const ptx::TensorMap& candidates, int first, int z) const {
    ptx::mbarrier_arrive_expect(filled(stage), kTileBytes);
#pragma unroll
    for (int box = 0; box < kBoxes; ++box)
      ptx::copy_box(tile(stage) + box * kTileBoxBytes, candidates, filled(stage), box * ptx::kBoxColumns, first, z);
  }

  // Starts the copy of a group's rows, which begin at row `first` of a matrix; called by one thread.
  SCE_FAST_DEVICE void start_rows(int group, const ptx::TensorMap& matrix, int first) const {
    ptx::mbarrier_arrive_expect(rows_filled(group), kRowBytes);
#pragma unroll
    for (int box = 0; box < kBoxes; ++box)
      ptx::copy_box(rows(group) + box * kRowBoxBytes, matrix, rows_filled(group), box * ptx::kBoxColumns, first, 0);
  }

  Shared start;
};

// Whether the rows of a group from place `first` on stand one after another in a matrix of T, as a bulk copy needs them.
// It may bring rows beyond the list with them: their results are not stored.
template <class T>
SCE_FAST_DEVICE bool rows_are_one_box(const Pass& pass, const RowList& list, int first) {
  const int rows = list.students + list.teachers;
  const int last = first + kGroupRows < rows ? first + kGroupRows - 1 : rows - 1;
  return (first < list.students) == (last < list.students) && matrix_at(pass, list, first).type == kTypeOf<T> &&
         row_at(pass, list, last) - row_at(pass, list, first) == last - first;
}

// Copies those rows of a group that come from one matrix, in batches whose loads are all under way at the same time.
template <class T, class Stored, int kDim>
SCE_FAST_DEVICE void copy_rows_of(const Pass& pass, const RowList& list, int first, bool students, Shared to) {
  constexpr int kChunks = kDim / 8, kSteps = kGroupRows * kChunks / kGroupThreads;
  constexpr int kBatch = sizeof(Stored) == 4 || kSteps % 8 != 0 ? 4 : 8;
  const void* data = students ? pass.problem.query.data : pass.problem.key.data;
  const int rows = list.students + list.teachers;
  for (int step = 0; step < kSteps; step += kBatch) {
    Eight<Stored> batch[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int c = (step + i) * kGroupThreads + ptx::thread_index() % kGroupThreads;
      const int place = first + c / kChunks, column = c % kChunks * 8;
      if ((place < list.students) == students && place < rows && column < pass.dim())
        batch[i] = Eight<Stored>(data, static_cast<int64_t>(row_at(pass, list, place)) * pass.dim() + column);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int c = (step + i) * kGroupThreads + ptx::thread_index() % kGroupThreads;
      const int row = c / kChunks, chunk = c % kChunks;
      if ((first + row < list.students) == students)
        ptx::store_shared(to + (chunk / 8 * kGroupRows + row) * ptx::kBoxRowBytes + ((chunk ^ row) % 8 << 4),
                          batch[i].template rounded<T>());
    }
  }
}

// Copies the rows of a group to shared memory, in boxes with the swizzle of the tiles: students, then teachers, with
// zeros beyond the last row and beyond D. All threads of the group call this and then need a barrier.
template <class T, int kDim>
SCE_FAST_DEVICE void copy_rows(const Pass& pass, const RowList& list, int first, Shared to) {
  const auto copy = [&](const Matrix& matrix, bool students) {
    with_stored(matrix.type, [&]<class Stored>() { copy_rows_of<T, Stored, kDim>(pass, list, first, students, to); });
  };
  if (first < list.students) copy(pass.problem.query, true);
  if (first + kGroupRows > list.students) copy(pass.problem.key, false);
  ptx::fence_stores_for_products();
}

// Starts products = rows · candidatesᵀ.
template <class T, int kDim, int kTile>
SCE_FAST_DEVICE void multiply_rows(float (&products)[kTile / 2], Shared rows_at, Shared tile_at) {
  using Place = Layout<kDim, kTile, 1>;
  const uint64_t rows = ptx::descriptor_of_rows(rows_at), tile = ptx::descriptor_of_rows(tile_at);
#pragma unroll
  for (int box = 0; box < Place::kBoxes; ++box)
#pragma unroll
    for (int k = 0; k < ptx::kBoxColumns / 16; ++k)
      ptx::multiply_shared<T, kTile>(products, rows + (box * Place::kRowBoxBytes + k * 32) / 16,
                                     tile + (box * Place::kTileBoxBytes + k * 32) / 16, box + k > 0);
  ptx::product_commit();
}

// Starts outputs += weights · candidates.
template <class T, int kDim, int kTile>
SCE_FAST_DEVICE void multiply_weights(float (&outputs)[kDim / 2], const uint32_t (&weights)[kTile / 16][4],
                                      Shared tile_at) {
  const uint64_t tile = ptx::descriptor_of_columns(tile_at, Layout<kDim, kTile, 1>::kTileBoxBytes);
#pragma unroll
  for (int n = 0; n < kTile / 16; ++n)
    ptx::multiply_registers<T, kDim>(outputs, weights[n], tile + n * 16 * ptx::kBoxRowBytes / 16);
  ptx::product_commit();
}

}  // namespace sce_fast
