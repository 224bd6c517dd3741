// The forward pass on Hopper. One warpgroup starts bulk copies of candidate tiles into a ring. Two others have 64 rows
// each and multiply: a tile is read once for rows · candidatesᵀ and once, transposed, for weights · candidates. While
// the weights of a tile are computed, the product of the previous tile's weights runs. In some configurations the two
// also take turns: while one computes weights, the other has the tensor cores (HopperConfig).
#pragma once

#include "sm90_cluster.h"
#include "sm90_tiles.h"
#include "solve.h"
#include "tensor_maps.h"

namespace sce_fast {
namespace {

// The producer needs few registers, and the consumers take what it gives back: 128 · (24 + 2 · 240) are the 64512
// registers that 384 threads have at launch.
constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
static_assert(kGroupThreads * (kProducerRegisters + 2 * kConsumerRegisters) <=
              kHopperThreads * (65536 / kHopperThreads / 8 * 8));

enum Barrier {
  kTurnOfFirst = 1,
  kTurnOfSecond,
  kRowsOfFirst,
  kRowsOfSecond,
  kTilesRead
};  // barrier 0 is for the whole block

struct Maps {
  ptx::TensorMap segments[2];  // set for segments with candidates
  ptx::TensorMap query, key;   // set for matrices of the candidates' type
};

// A place in the ring, and the parity of its current use.
template <int kStages>
struct Turn {
  int stage = 0;
  uint32_t parity = 0;
  SCE_FAST_DEVICE void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// Copies the tiles of the block's parts into the ring, each as soon as its place is free; called by one thread.
template <int kDim, int kTile, int kStages>
SCE_FAST_DEVICE void produce(const Pass& pass, const Maps& maps, const Layout<kDim, kTile, kStages>& at,
                             const Parts& parts, int z) {
  Turn<kStages> turn;
  for (int rows = parts.begin; rows < parts.end; ++rows) {
    const Range range = parts.range(pass, rows);
    for (int t = range.begin; t < range.end; ++t, turn.advance()) {
      const Tile tile = find_tile<kTile>(pass, t);
      ptx::mbarrier_wait(at.emptied(turn.stage), turn.parity ^ 1);
      at.start_tile(turn.stage, maps.segments[tile.segment], tile.first, pass.per_key_view ? z : 0);
    }
  }
}

// Tells the producer that this warp no longer reads the tile.
template <int kDim, int kTile, int kStages>
SCE_FAST_DEVICE void release(const Layout<kDim, kTile, kStages>& at, int stage) {
  if (ptx::thread_index() % kWarpSize == 0) ptx::mbarrier_arrive(at.emptied(stage));
}

// Lets the tiles of a part pass, for a group without rows there.
template <int kDim, int kTile, int kStages>
SCE_FAST_DEVICE void skip_tiles(const Layout<kDim, kTile, kStages>& at, const Range& range, Turn<kStages>& turn) {
  for (int t = range.begin; t < range.end; ++t, turn.advance()) {
    ptx::mbarrier_wait(at.filled(turn.stage), turn.parity);
    release(at, turn.stage);
  }
}

// Brings the rows of a group from place `first` on into shared memory, for the part `number` of the block; all threads
// of the group call this.
template <class T, int kDim, int kTile, int kStages>
SCE_FAST_DEVICE void load_rows(const Pass& pass, const RowList& list, const Maps& maps,
                               const Layout<kDim, kTile, kStages>& at, int group, int first, int number) {
  const bool leads = ptx::thread_index() % kGroupThreads == 0;
  if (number > 0) ptx::named_barrier(kRowsOfFirst + group, kGroupThreads);  // nobody still reads the last part's rows
  if (rows_are_one_box<T>(pass, list, first)) {
    if (leads) at.start_rows(group, first < list.students ? maps.query : maps.key, row_at(pass, list, first));
    ptx::mbarrier_wait(at.rows_filled(group), number & 1);
  } else {
    copy_rows<T, kDim>(pass, list, first, at.rows(group));
    ptx::named_barrier(kRowsOfFirst + group, kGroupThreads);
    if (leads) ptx::mbarrier_arrive(at.rows_filled(group));  // the phase is that of the part
  }
}

// The 64 rows of a consumer. Warp w of it has rows 16 w to 16 w + 15; lane l of the warp, rows l / 4 and l / 4 + 8.
template <class T, bool kFixed, bool kOutput, int kDim, int kTile, int kStages>
class GroupSums {
 public:
  using Place = Layout<kDim, kTile, kStages>;

  SCE_FAST_DEVICE GroupSums(const Pass& pass, const RowList& list, const Place& at, int first_row, int consumer)
      : at_(at), first_row_(first_row), consumer_(consumer) {
#pragma unroll
    for (int r = 0; r < 2; ++r) rows_[r] = new_row<kFixed>(pass, list, place(r));
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) outputs_[i] = 0.f;
  }

  // With `takes_turns` two consumers take turns with the tensor cores; a single consumer does not need to.
  SCE_FAST_DEVICE void add_tiles(const Pass& pass, const Range& range, Turn<kStages>& turn, bool takes_turns) {
    float products[kTile / 2];
    if (range.begin == range.end) return;
    // No product of weights comes before the first tile.
    ptx::mbarrier_wait(at_.filled(turn.stage), turn.parity);
    start_products(products, turn.stage);
    ptx::product_wait<0>();
    ptx::pin(products);
    weigh(pass, products, find_tile<kTile>(pass, range.begin));
    if (takes_turns && consumer_ == 1) ptx::named_barrier_arrive(kTurnOfFirst, 2 * kGroupThreads);
    round_weights(products);

    for (int t = range.begin + 1; t < range.end; ++t) {
      const int before = turn.stage;
      turn.advance();
      ptx::mbarrier_wait(at_.filled(turn.stage), turn.parity);
      if (takes_turns) ptx::named_barrier(kTurnOfFirst + consumer_, 2 * kGroupThreads);
      ptx::pin(weights_);
      ptx::pin(outputs_);
      start_products(products, turn.stage);
      if (kOutput) start_outputs(before);
      // Nobody waits for a turn after the last one.
      if (takes_turns && (consumer_ == 0 || t + 1 < range.end))
        ptx::named_barrier_arrive(kTurnOfSecond - consumer_, 2 * kGroupThreads);
      ptx::product_wait<kOutput ? 1 : 0>();
      ptx::pin(products);
      const Factors factors = weigh(pass, products, find_tile<kTile>(pass, t));
      // The phase has ended, so this returns at once. But its loop ends a basic block, and ptxas would otherwise move
      // the wait for the outputs above the exponentials, which are to run meanwhile.
      if (kOutput) ptx::mbarrier_wait(at_.filled(turn.stage), turn.parity);
      if (kOutput) finish_outputs();
      release(at_, before);
      if (!kFixed) rescale(factors);
      round_weights(products);
    }
    if (kOutput) {
      ptx::pin(weights_);
      ptx::pin(outputs_);
      ptx::product_fence();
      start_outputs(turn.stage);
      finish_outputs();
    }
    release(at_, turn.stage);
    turn.advance();
  }

  SCE_FAST_DEVICE void store(const Pass& pass, int z, int split) const {
    const RowList list = row_list(pass, z);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Partial<float> partial = partial_of<kFixed>(rows_[r]);
      const int p = place(r);
      if (p >= list.students + list.teachers) continue;
      const int64_t index = partial_index(pass, z, split, p);
      if (lane() % 4 == 0) pass.partials[index] = partial;
      if constexpr (kOutput) {
        if (p < list.students && !pass.problem.needs_gradient) continue;
#pragma unroll
        for (int d = 0; d < kDim / 8; ++d)
          if (d * 8 < pass.dim())
            *reinterpret_cast<ptx::FloatPair*>(pass.outputs + index * pass.dim() + d * 8 + lane() % 4 * 2) = {
                outputs_[4 * d + 2 * r], outputs_[4 * d + 2 * r + 1]};
      }
    }
  }

  // Leaves the results in shared memory, for the cluster.
  SCE_FAST_DEVICE void leave(const Pass& pass, int z, const ClusterResults<kDim>& at) const {
    const RowList list = row_list(pass, z);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Partial<float> partial = partial_of<kFixed>(rows_[r]);
      const int row = place(r) - first_row_;
      if (place(r) >= list.students + list.teachers) continue;
      if (lane() % 4 == 0)
        ptx::store_shared(at.partial(row), ptx::FloatQuad{{partial.shift, partial.sum, partial.rounded_sum, 0.f}});
      if constexpr (kOutput)
#pragma unroll
        for (int d = 0; d < kDim / 8; ++d)
          ptx::store_shared(at.output(row, d * 8 + lane() % 4 * 2),
                            ptx::FloatPair{outputs_[4 * d + 2 * r], outputs_[4 * d + 2 * r + 1]});
    }
  }

 private:
  struct Factors {
    float of_row[2];
  };

  static SCE_FAST_DEVICE int lane() { return ptx::thread_index() % kWarpSize; }
  SCE_FAST_DEVICE int place(int r) const {
    return first_row_ + ptx::thread_index() / kWarpSize * 16 + r * 8 + lane() / 4;
  }

  SCE_FAST_DEVICE void start_products(float (&products)[kTile / 2], int stage) const {
    ptx::product_fence();
    multiply_rows<T, kDim, kTile>(products, at_.rows(consumer_), at_.tile(stage));
  }

  SCE_FAST_DEVICE void start_outputs(int stage) {
    multiply_weights<T, kDim, kTile>(outputs_, weights_, at_.tile(stage));
  }

  SCE_FAST_DEVICE void finish_outputs() {
    ptx::product_wait<0>();
    ptx::pin(outputs_);
    ptx::pin(weights_);
  }

  // Replaces the products of a tile by weights. Returns the factors for what was summed before.
  SCE_FAST_DEVICE Factors weigh(const Pass& pass, float (&products)[kTile / 2], const Tile& tile) {
    if (tile.has_own || tile.count < kTile)
      look<true>(pass, products, tile);
    else
      look<false>(pass, products, tile);
    Factors factors{{1.f, 1.f}};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      Row& row = rows_[r];
      if (!kFixed) {
        float highest = -kInfinity;
#pragma unroll
        for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
          for (int j = 0; j < 2; ++j) highest = fmaxf(highest, products[4 * n + 2 * r + j]);
        factors.of_row[r] = raise_shift<T>(row, quad_max(highest) * row.scale);
      }
      const float shift = row.shift == -kInfinity ? 0.f : row.shift;  // −∞: nothing seen yet
#pragma unroll
      for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& number = products[4 * n + 2 * r + j];
          number = ptx::exp2(fmaf(number, row.scale, -shift));
          row.sum += number;
        }
    }
    return factors;
  }

  // Finds the smallest products of visible candidates. The products of hidden ones become −∞, whose weight is 0.
  template <bool kMasked>
  SCE_FAST_DEVICE void look(const Pass& pass, float (&products)[kTile / 2], const Tile& tile) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float& lowest = rows_[r].lowest;
      const int own = kMasked && tile.has_own ? tile.own + place(r) % pass.batch() : -1;
#pragma unroll
      for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& product = products[4 * n + 2 * r + j];
          const int candidate = n * 8 + lane() % 4 * 2 + j;
          const bool visible = !kMasked || (candidate < tile.count && candidate != own);
          lowest = fminf(lowest, visible ? product : kInfinity);
          if (!visible) product = -kInfinity;
        }
    }
  }

  // Rounds the weights, in the layout of a left operand.
  SCE_FAST_DEVICE void round_weights(const float (&products)[kTile / 2]) {
#pragma unroll
    for (int i = 0; i < kTile / 4; ++i) {
      const uint32_t word = ptx::pack<T>(products[2 * i], products[2 * i + 1]);
      rows_[i % 2].rounded_sum +=
          ptx::to_float(T{static_cast<uint16_t>(word)}) + ptx::to_float(T{static_cast<uint16_t>(word >> 16)});
      weights_[i / 4][i % 4] = word;
    }
  }

  SCE_FAST_DEVICE void rescale(const Factors& factors) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (factors.of_row[r] == 1.f) continue;
#pragma unroll
      for (int d = 0; d < kDim / 8; ++d)
#pragma unroll
        for (int j = 0; j < 2; ++j) outputs_[4 * d + 2 * r + j] *= factors.of_row[r];
    }
  }

  const Place& at_;
  int first_row_, consumer_;
  Row rows_[2];
  uint32_t weights_[kTile / 16][4];
  float outputs_[kDim / 2];
};

template <class T, bool kFixed, bool kOutput, bool kCluster, int kDim, int kTile, int kStages>
SCE_FAST_DEVICE void consume(const Pass& pass, const RowList& list, const Layout<kDim, kTile, kStages>& at,
                             int row_block, const Range& range, Turn<kStages>& turn, int consumer, bool takes_turns) {
  GroupSums<T, kFixed, kOutput, kDim, kTile, kStages> sums(pass, list, at, row_block * kHopperRows, consumer);
  sums.add_tiles(pass, range, turn, takes_turns);
  ptx::let_dependents_start();
  // The block index is read again, so that the row list is computed again: no register can hold it through the loop.
  const int z = ptx::warp_uniform(ptx::block_index().z);
  if constexpr (kCluster) {
    ptx::named_barrier(kTilesRead, 2 * kGroupThreads);
    sums.leave(pass, z, ClusterResults<kDim>{at.start});
  } else {
    sums.store(pass, z, split_of(pass, row_block));
  }
}

// Grid: blocks of rows, splits of the tiles, key views; or with an uneven cut, its blocks.
template <class T, bool kFixed, bool kTurns, bool kCluster, int kDim, int kTile, int kStages>
__global__ void __launch_bounds__(kHopperThreads, 1)
    sm90_forward_pass(const __grid_constant__ Pass pass, const __grid_constant__ Maps maps) {
  static_assert(kStages >= 2, "a tile is released after the next one has been multiplied");
  static_assert(ClusterResults<kDim>::kBytes <=
                kStages * Layout<kDim, kTile, kStages>::kTileBytes + 2 * Layout<kDim, kTile, kStages>::kRowBytes);
  const int z = ptx::block_index().z;
  const RowList list = row_list(pass, z);
  const Parts parts(pass, tiles_of<kTile>(pass));
  const int rows = list.students + list.teachers;
  if (parts.begin * kHopperRows >= rows) return;  // the row lists of key views differ in length

  const Layout<kDim, kTile, kStages> at;
  if (ptx::thread_index() == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::mbarrier_init(at.filled(stage), 1);
      ptx::mbarrier_init(at.emptied(stage), 2 * kGroupThreads / kWarpSize);
    }
    for (int group = 0; group < 2; ++group) ptx::mbarrier_init(at.rows_filled(group), 1);
    ptx::mbarrier_init_fence();
  }
  ptx::barrier();

  const int group = ptx::warp_uniform(ptx::thread_index() / kGroupThreads);
  if (group == 2) {
    ptx::shrink_registers<kProducerRegisters>();
    if (ptx::thread_index() == 2 * kGroupThreads) produce<kDim, kTile, kStages>(pass, maps, at, parts, z);
    return;
  }
  ptx::grow_registers<kConsumerRegisters>();
  Turn<kStages> turn;
  for (int row_block = parts.begin; row_block < parts.end; ++row_block) {
    const Range range = parts.range(pass, row_block);
    if (pass.cut.blocks > 0 && range.begin == range.end) break;
    const int first = row_block * kHopperRows + group * kGroupRows;
    if (first >= rows) {
      skip_tiles(at, range, turn);
      if (kCluster) ptx::named_barrier(kTilesRead, 2 * kGroupThreads);
      continue;
    }
    load_rows<T>(pass, list, maps, at, group, first, row_block - parts.begin);
    const bool two_consumers = row_block * kHopperRows + kGroupRows < rows;
    const bool takes_turns = kTurns && two_consumers && range.end - range.begin > 1;
    if (pass.problem.needs_gradient || first + kGroupRows > list.students)
      consume<T, kFixed, true, kCluster>(pass, list, at, row_block, range, turn, group, takes_turns);
    else
      consume<T, kFixed, false, kCluster>(pass, list, at, row_block, range, turn, group, takes_turns);
  }
  if constexpr (kCluster) {
    ptx::cluster_barrier();
    add_cluster<kDim>(pass, {at.start}, parts.begin * kHopperRows, z, split_of(pass, parts.begin));
    ptx::cluster_barrier();
  }
}

template <class T, bool kFixed, bool kTurns, bool kCluster, int kConfig>
void launch_config(const Pass& pass, void* stream) {
  constexpr HopperConfig c = kHopperConfigs[kConfig];
  const uint32_t depth = static_cast<uint32_t>(pass.per_key_view ? pass.problem.key_views : 1);
  const int64_t dim = pass.problem.dim;
  Maps maps{};
  for (int s = 0; s < 2; ++s)
    if (const Segment& segment = pass.segments[s]; segment.rows > 0)
      maps.segments[s] = kept_tensor_map<T>({segment.data, dim, segment.rows, depth, c.tile});
  for (const auto& [matrix, map] : {std::pair{pass.problem.query, &maps.query}, std::pair{pass.problem.key, &maps.key}})
    if (matrix.type == kTypeOf<T>) *map = kept_tensor_map<T>({matrix.data, dim, matrix.rows, 1, kGroupRows});
  const auto row_blocks = static_cast<uint32_t>(ceil_div(pass.rows, kHopperRows));
  const ptx::Index even{row_blocks, static_cast<uint32_t>(pass.splits * pass.cluster), depth};
  ptx::launch(
      {"sm90_forward_pass", pass.cut.blocks > 0 ? ptx::Index{static_cast<uint32_t>(pass.cut.blocks), 1, 1} : even,
       kHopperThreads, static_cast<uint32_t>(c.shared_bytes()), stream, false, static_cast<uint32_t>(pass.cluster)},
      sm90_forward_pass<T, kFixed, kTurns, kCluster, c.dim, c.tile, c.stages>, pass, maps);
}

}  // namespace
}  // namespace sce_fast
