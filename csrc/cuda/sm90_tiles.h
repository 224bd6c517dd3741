// Tiles in shared memory and the two products with a tile, shared by the Hopper kernels.
#pragma once

#include "plan.h"
#include "ptx_sm90.cuh"
#include "rows.h"

namespace sce_fast {

using ptx::Shared;

constexpr int kGroupRows = 64;  // of a warpgroup
constexpr int kGroupThreads = ptx::kWarpgroupSize;

// Shared memory of a block: the rows of two warpgroups, the ring of tiles, the mbarriers.
template <int kDim, int kTile, int kStages>
struct Layout {
  static constexpr int kBoxes = kDim / ptx::kBoxColumns;
  static constexpr uint32_t kRowBoxBytes = kGroupRows * ptx::kBoxRowBytes, kTileBoxBytes = kTile * ptx::kBoxRowBytes;
  static constexpr uint32_t kRowBytes = kBoxes * kRowBoxBytes, kTileBytes = kBoxes * kTileBoxBytes;
  static_assert(kTileBoxBytes % ptx::kSwizzleAlignment == 0 && kTile % 16 == 0);
  static_assert(kHopperSlack >= ptx::kSwizzleAlignment + 16 * kStages);

  SCE_FAST_DEVICE Layout()
      : start((ptx::shared_memory() + ptx::kSwizzleAlignment - 1) & ~(ptx::kSwizzleAlignment - 1u)) {}
  SCE_FAST_DEVICE Shared rows(int group) const { return start + group * kRowBytes; }
  SCE_FAST_DEVICE Shared tile(int stage) const { return start + 2 * kRowBytes + stage * kTileBytes; }
  SCE_FAST_DEVICE Shared filled(int stage) const { return tile(kStages) + 8 * stage; }
  SCE_FAST_DEVICE Shared emptied(int stage) const { return filled(kStages + stage); }

  // Starts the copy of the tile that begins at candidate `first`; called by one thread.
  SCE_FAST_DEVICE void start_tile(int stage, const ptx::TensorMap& candidates, int first, int z) const {
    ptx::mbarrier_arrive_expect(filled(stage), kTileBytes);
#pragma unroll
    for (int box = 0; box < kBoxes; ++box)
      ptx::copy_box(tile(stage) + box * kTileBoxBytes, candidates, filled(stage), box * ptx::kBoxColumns, first, z);
  }

  Shared start;
};

// Copies the rows of a warpgroup to shared memory, in boxes with the swizzle of the tiles.
template <class T, int kDim>
SCE_FAST_DEVICE void load_rows(const Pass& pass, const RowList& list, int first, Shared to) {
  constexpr int kChunks = kDim / 8;
  for (int c = ptx::thread_index() % kGroupThreads; c < kGroupRows * kChunks; c += kGroupThreads) {
    const int row = c / kChunks, chunk = c % kChunks;
    ptx::store_shared(to + (chunk / 8 * kGroupRows + row) * ptx::kBoxRowBytes + ((chunk ^ row) % 8 << 4),
                      load_row_chunk<T>(pass, list, first + row, chunk * 8));
  }
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
