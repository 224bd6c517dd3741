// The forward pass on tensor cores since Ampere: FlashAttention's forward pass with keys = values = candidates, over
// student and teacher rows together. cp.async fills a ring of candidate tiles. Each tile is read once as the right
// operand of rows · candidatesᵀ and once, transposed by ldmatrix, as the right operand of weights · candidates.
#include "rows.h"
#include "solve.h"

namespace sce_fast {
namespace {

using ptx::Shared;

// A matrix of 16-bit numbers in shared memory in rows of kDim. The 16-byte chunks of a row are permuted by the row's
// number, so that ldmatrix finds eight rows of a column of chunks in different banks.
template <int kDim>
struct Swizzled {
  static constexpr int kChunks = kDim / 8, kRowBytes = kDim * 2;
  static_assert(kChunks % 8 == 0);

  // Address of chunk `chunk` + `odd` of a row; `odd` is 0 or 1 and goes with an even chunk. Written so that a chunk
  // known at compile time is one of four lane-dependent addresses plus a constant, since no register is free.
  static SCE_FAST_DEVICE Shared chunk(Shared start, int row, int chunk, int odd = 0) {
    return start + row * kRowBytes + ((chunk % 8 ^ odd ^ (row & 7)) << 4) + chunk / 8 * 128;
  }
};

// Copies the block's rows to shared memory, with zeros beyond the last row and beyond D.
template <class T, int kDim, int kRows, int kThreads>
SCE_FAST_DEVICE void load_rows(const Pass& pass, const RowList& list, int first, Shared to) {
  using Layout = Swizzled<kDim>;
  for (int c = ptx::thread_index(); c < kRows * Layout::kChunks; c += kThreads) {
    const int row = c / Layout::kChunks, chunk = c % Layout::kChunks;
    ptx::store_shared(Layout::chunk(to, row, chunk), load_row_chunk<T>(pass, list, first + row, chunk * 8));
  }
}

// Starts the copy of a tile, with zeros beyond its last candidate and beyond D.
template <int kDim, int kTile, int kThreads>
SCE_FAST_DEVICE void start_tile(const Pass& pass, int z, const Tile& tile, Shared to) {
  using Layout = Swizzled<kDim>;
  static_assert(kTile * Layout::kChunks % kThreads == 0);
  const Segment& segment = pass.segments[tile.segment];
  const int64_t part = pass.per_key_view ? static_cast<int64_t>(z) * segment.rows : 0;
  const char* data = static_cast<const char*>(segment.data) + (part + tile.first) * pass.dim() * 2;
#pragma unroll
  for (int step = 0; step < kTile * Layout::kChunks / kThreads; ++step) {
    const int c = step * kThreads + ptx::thread_index();
    const int row = c / Layout::kChunks, chunk = c % Layout::kChunks;
    const bool wanted = row < tile.count && chunk * 8 < pass.dim();
    const uint32_t offset = wanted ? (row * pass.dim() + chunk * 8) * 2 : 0;
    ptx::copy_async(Layout::chunk(to, row, chunk), data + offset, wanted);
  }
}

// The sums of a warp: kRowTiles × 16 rows. Lane l holds rows l / 4 and l / 4 + 8 of each row tile.
template <class T, int kDim, int kRowTiles, int kTile, bool kFixed>
class WarpSums {
 public:
  SCE_FAST_DEVICE WarpSums(const Pass& pass, const RowList& list, int first) : first_(first) {
#pragma unroll
    for (int r = 0; r < 2 * kRowTiles; ++r) rows_[r] = new_row<kFixed>(pass, list, place(r));
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int d = 0; d < kDim / 8; ++d)
#pragma unroll
        for (int e = 0; e < 4; ++e) outputs_[m][d][e] = 0.f;
  }

  SCE_FAST_DEVICE void add_tile(const Pass& pass, Shared rows, Shared candidates, const Tile& tile, bool needs_output) {
    float products[kRowTiles][kTile / 8][4] = {};
    multiply_rows(rows, candidates, products);
    uint32_t weights[kRowTiles][kTile / 16][4];
    if (tile.has_own || tile.count < kTile)
      weigh<true>(pass, products, tile, weights);
    else
      weigh<false>(pass, products, tile, weights);
    if (needs_output) multiply_weights(weights, candidates);
  }

  SCE_FAST_DEVICE void store(const Pass& pass, const RowList& list, int z, int split) {
#pragma unroll
    for (int r = 0; r < 2 * kRowTiles; ++r) {
      const Partial<float> partial = partial_of<kFixed>(rows_[r]);
      const int p = place(r);
      if (p >= list.students + list.teachers) continue;
      const int64_t index = partial_index(pass, z, split, p);
      if (lane() % 4 == 0) pass.partials[index] = partial;
      if (p < list.students && !pass.problem.needs_gradient) continue;
#pragma unroll
      for (int d = 0; d < kDim / 8; ++d)
        if (d * 8 < pass.dim())
          *reinterpret_cast<ptx::FloatPair*>(pass.outputs + index * pass.dim() + d * 8 + lane() % 4 * 2) = {
              outputs_[r / 2][d][r % 2 * 2], outputs_[r / 2][d][r % 2 * 2 + 1]};
    }
  }

 private:
  static SCE_FAST_DEVICE int lane() { return ptx::thread_index() % kWarpSize; }
  SCE_FAST_DEVICE int place(int r) const { return first_ + r * 8 + lane() / 4; }

  // products = rows · candidatesᵀ
  SCE_FAST_DEVICE void multiply_rows(Shared rows, Shared candidates, float (&products)[kRowTiles][kTile / 8][4]) {
    using Layout = Swizzled<kDim>;
    // ldmatrix: lanes 0–15 point to 16 rows at depths 0–7, lanes 16–31 to the same at 8–15; of the candidates, lanes
    // 0–7 and 8–15 to 8 candidates at both depths, lanes 16–31 to the next 8.
    const int row = lane() % 16, row_depth = lane() / 16;
    const int candidate = lane() / 16 * 8 + lane() % 8, candidate_depth = lane() / 8 % 2;
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) ptx::load_matrices(a[m], Layout::chunk(rows, m * 16 + row, 2 * k, row_depth));
#pragma unroll
      for (int n = 0; n < kTile / 16; ++n) {
        uint32_t b[4];
        ptx::load_matrices(b, Layout::chunk(candidates, n * 16 + candidate, 2 * k, candidate_depth));
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          ptx::multiply_add<T>(products[m][2 * n], a[m], b[0], b[1]);
          ptx::multiply_add<T>(products[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  // Computes the weights of the tile's candidates, in the layout of a left operand, and adds them up.
  template <bool kMasked>
  SCE_FAST_DEVICE void weigh(const Pass& pass, const float (&products)[kRowTiles][kTile / 8][4], const Tile& tile,
                             uint32_t (&weights)[kRowTiles][kTile / 16][4]) {
#pragma unroll
    for (int r = 0; r < 2 * kRowTiles; ++r) {
      const int m = r / 2, e = r % 2 * 2;
      Row& row = rows_[r];
      const int own = kMasked && tile.has_own ? tile.own + place(r) % pass.batch() : -1;
      const auto visible = [&](int n, int j) {
        const int candidate = n * 8 + lane() % 4 * 2 + j;
        return !kMasked || (candidate < tile.count && candidate != own);
      };
      float highest = -kInfinity;
#pragma unroll
      for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          if (!kFixed) highest = fmaxf(highest, visible(n, j) ? products[m][n][e + j] : -kInfinity);
          row.lowest = fminf(row.lowest, visible(n, j) ? products[m][n][e + j] : kInfinity);
        }
      if (!kFixed) raise(r, quad_max(highest) * row.scale);
      const float shift = row.shift == -kInfinity ? 0.f : row.shift;  // −∞: nothing seen yet
#pragma unroll
      for (int n = 0; n < kTile / 8; ++n) {
        float weight[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          weight[j] = ptx::exp2(fmaf(products[m][n][e + j], row.scale, -shift));
          if (!visible(n, j)) weight[j] = 0.f;
          row.sum += weight[j];
        }
        const uint32_t word = ptx::pack<T>(weight[0], weight[1]);
        row.rounded_sum +=
            ptx::to_float(T{static_cast<uint16_t>(word)}) + ptx::to_float(T{static_cast<uint16_t>(word >> 16)});
        weights[m][n / 2][n % 2 * 2 + r % 2] = word;
      }
    }
  }

  SCE_FAST_DEVICE void raise(int r, float highest) {
    const float factor = raise_shift<T>(rows_[r], highest);
    if (factor == 1.f) return;
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d)
#pragma unroll
      for (int j = 0; j < 2; ++j) outputs_[r / 2][d][r % 2 * 2 + j] *= factor;
  }

  // outputs += weights · candidates
  SCE_FAST_DEVICE void multiply_weights(const uint32_t (&weights)[kRowTiles][kTile / 16][4], Shared candidates) {
    using Layout = Swizzled<kDim>;
    // ldmatrix: lanes 0–15 point to 16 candidates at depths 0–7, lanes 16–31 to the same at 8–15.
    const int candidate = lane() % 16, depth = lane() / 16;
#pragma unroll
    for (int n = 0; n < kTile / 16; ++n)
#pragma unroll
      for (int d = 0; d < kDim / 16; ++d) {
        uint32_t b[4];
        ptx::load_matrices_transposed(b, Layout::chunk(candidates, n * 16 + candidate, 2 * d, depth));
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          ptx::multiply_add<T>(outputs_[m][2 * d], weights[m][n], b[0], b[1]);
          ptx::multiply_add<T>(outputs_[m][2 * d + 1], weights[m][n], b[2], b[3]);
        }
      }
  }

  int first_;
  Row rows_[2 * kRowTiles];
  float outputs_[kRowTiles][kDim / 8][4];
};

// Grid: blocks of rows, splits of the tiles, key views.
template <class T, bool kFixed, int kDim, int kRows, int kRowTiles, int kTile, int kStages>
__global__ void __launch_bounds__(kRows / (16 * kRowTiles) * kWarpSize, 1)
    sm80_forward_pass(const __grid_constant__ Pass pass) {
  constexpr int kThreads = kRows / (16 * kRowTiles) * kWarpSize;
  constexpr int kTileBytes = kTile * kDim * 2;
  const int z = ptx::block_index().z, split = ptx::block_index().y;
  const RowList list = row_list(pass, z);
  const int first_row = ptx::block_index().x * kRows;
  if (first_row >= list.students + list.teachers) return;  // the row lists of key views differ in length

  const Shared rows = ptx::shared_memory(), ring = rows + kRows * kDim * 2;
  const auto [begin, end] = range_of_split(tiles_of<kTile>(pass), split, pass.splits);
  const auto start = [&, end = end](int t, int stage) {
    if (t < end) start_tile<kDim, kTile, kThreads>(pass, z, find_tile<kTile>(pass, t), ring + stage * kTileBytes);
    ptx::copy_async_commit();  // even an empty group, because the wait below counts groups
  };
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) start(begin + stage, stage);
  load_rows<T, kDim, kRows, kThreads>(pass, list, first_row, rows);

  const int warp_row = ptx::thread_index() / kWarpSize * 16 * kRowTiles, first = first_row + warp_row;
  const bool active = first < list.students + list.teachers;
  const bool needs_output = pass.problem.needs_gradient || first + 16 * kRowTiles > list.students;
  WarpSums<T, kDim, kRowTiles, kTile, kFixed> sums(pass, list, first);
  for (int t = begin, stage = 0; t < end; ++t, stage = stage + 1 < kStages ? stage + 1 : 0) {
    ptx::copy_async_wait<kStages - 2>();
    ptx::barrier();  // the tile is complete, and no thread still reads the one that the next copy overwrites
    start(t + kStages - 1, stage > 0 ? stage - 1 : kStages - 1);
    if (active)
      sums.add_tile(pass, rows + warp_row * kDim * 2, ring + stage * kTileBytes, find_tile<kTile>(pass, t),
                    needs_output);
  }
  ptx::copy_async_wait<0>();
  if (active) sums.store(pass, list, z, split);
}

template <class T, bool kFixed, int kConfig>
void launch_config(const Pass& pass, void* stream) {
  constexpr Config c = kConfigs[kConfig];
  const uint32_t blocks = static_cast<uint32_t>(ceil_div(pass.rows, c.rows));
  const uint32_t depth = static_cast<uint32_t>(pass.per_key_view ? pass.problem.key_views : 1);
  ptx::launch({"sm80_forward_pass",
               {blocks, static_cast<uint32_t>(pass.splits), depth},
               static_cast<uint32_t>(c.threads()),
               static_cast<uint32_t>(c.shared_bytes()),
               stream},
              sm80_forward_pass<T, kFixed, c.dim, c.rows, c.row_tiles, c.tile, c.stages>, pass);
}

template <class T, bool kFixed>
void launch_type(const Pass& pass, int config, void* stream) {
  switch (config) {
    case 0: return launch_config<T, kFixed, 0>(pass, stream);
    case 1: return launch_config<T, kFixed, 1>(pass, stream);
    case 2: return launch_config<T, kFixed, 2>(pass, stream);
    case 3: return launch_config<T, kFixed, 3>(pass, stream);
    case 4: return launch_config<T, kFixed, 4>(pass, stream);
  }
}

}  // namespace

void sm80::forward_pass(const Pass& pass, Type product, bool fixed_shift, int32_t config, void* stream) {
  with_arithmetic(product, fixed_shift, [&]<class T, bool kFixed>() { launch_type<T, kFixed>(pass, config, stream); });
}

}  // namespace sce_fast
