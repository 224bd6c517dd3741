// The splits of a block of rows, added in a cluster of thread blocks: each leaves its partial results in its shared
// memory, and each then adds some of the rows over all blocks of the cluster. What goes through global memory, and what
// is left for combine_kernel, shrinks by the size of the cluster.
#pragma once

#include "sm90_tiles.h"

namespace sce_fast {

// The partial results of 128 rows in shared memory, over the ring of tiles. The padding lets the rows of a warp's
// accumulators stand in different banks.
template <int kDim>
struct ClusterResults {
  static constexpr int kRowBytes = kDim * 4 + 32;
  static constexpr int kBytes = kHopperRows * (kRowBytes + 16);

  SCE_FAST_DEVICE Shared output(int row, int column) const { return start + row * kRowBytes + column * 4; }
  // Shift, sum, rounded sum.
  SCE_FAST_DEVICE Shared partial(int row) const { return start + kHopperRows * kRowBytes + row * 16; }

  Shared start;
};

// Adds this block's share of the rows over the cluster and stores them as one split. Called by the threads of both
// consumers once all blocks of the cluster have left their results; they must not end before all have been here.
template <int kDim>
SCE_FAST_DEVICE void add_cluster(const Pass& pass, const ClusterResults<kDim>& at, int first_row, int z, int split) {
  constexpr int kQuads = kDim / 4;
  const RowList list = row_list(pass, z);
  const int count = kHopperRows / pass.cluster, first = static_cast<int>(ptx::cluster_rank()) * count;
  for (int task = ptx::thread_index(); task < count * kQuads; task += 2 * kGroupThreads) {
    const int row = first + task / kQuads, column = task % kQuads * 4, place = first_row + row;
    if (place >= list.students + list.teachers || column >= pass.dim()) continue;
    const bool has_output = place >= list.students || pass.problem.needs_gradient;
    Partial<float> all{-kInfinity, 0.f, 0.f};
    for (int block = 0; block < pass.cluster; ++block)
      all.shift = fmaxf(all.shift, ptx::load_shared_of(block, at.partial(row)).values[0]);
    ptx::FloatQuad output{};
    for (int block = 0; block < pass.cluster; ++block) {
      const ptx::FloatQuad partial = ptx::load_shared_of(block, at.partial(row));
      const float factor = rescaling(partial.values[0], partial.values[1], all.shift);
      all.sum += factor * partial.values[1];
      all.rounded_sum += factor * partial.values[2];
      if (!has_output) continue;
      const ptx::FloatQuad own = ptx::load_shared_of(block, at.output(row, column));
#pragma unroll
      for (int c = 0; c < 4; ++c) output.values[c] += factor == 0.f ? 0.f : factor * own.values[c];
    }
    const int64_t index = partial_index(pass, z, split, place);
    if (column == 0) pass.partials[index] = all;
    if (has_output) *reinterpret_cast<ptx::FloatQuad*>(pass.outputs + index * pass.dim() + column) = output;
  }
}

}  // namespace sce_fast
