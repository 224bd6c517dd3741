#include "forward_pass.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "clones.h"
#include "exponentials.h"

namespace sce_fast {
namespace {

// So many rows at a time: their logits with a tile stay in the second-level cache until the weights have been used.
constexpr int64_t kRowBlock = 128;
// Candidates are cut into slices and rows into bands. A task is a slice for a band, whose tiles are loaded once.
// Slices depend on sizes alone, so the bits of the sums do too. There are few enough of them for their outputs to fit
// kWorkspaceBytes for any K, and they have enough tiles to be worth adding up.
constexpr int64_t kWorkspaceBytes = 32 << 20;
constexpr int64_t kMostSlices = 16, kSliceTiles = 4;
// Bands change no bits, because rows never meet. Each loads the tiles again, so there are only as many as threads need.
constexpr int64_t kTasksOfThread = 8, kMostBandBlocks = 8;
// The sum of so many tiles is added to the slice's total, so that small terms do not drown in a long sum.
constexpr int64_t kChunkTiles = 64;
static_assert(kTile <= kMostExponentials);

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Beyond this shift, rounding it moves weights by whole powers of two, and the largest weight might overflow. Logits
// are then rounded in the same way before the shift is subtracted.
constexpr float kWholeBits = 1 << 24;

SCE_FAST_CLONES void multiply(float* values, int64_t count, float factor) {
  for (int64_t i = 0; i < count; ++i) values[i] *= factor;
}

SCE_FAST_CLONES void add(float* __restrict to, const float* __restrict from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

SCE_FAST_CLONES void add_scaled(float* __restrict to, const float* __restrict from, int64_t count, float factor) {
  for (int64_t i = 0; i < count; ++i) to[i] += factor * from[i];
}

int64_t divided_up(int64_t count, int64_t size) { return (count + size - 1) / size; }

struct Block {
  const Group* group;
  int64_t first, count;  // rows in the group
  int64_t row;           // the first row's number among all rows of the pass
  int64_t output_row;    // and among the rows that need an output
};

// The memory of one thread.
struct Scratch {
  Tile tile;
  Buffer<float> outputs;  // (rows of a band, dim) of the current chunk
};

class Pass {
 public:
  Pass(const std::vector<Segment>& segments, const std::vector<Group>& groups, int64_t dim, int64_t batch,
       Products products, int threads)
      : segments_(segments), dim_(dim), batch_(batch), products_(products), threads_(threads) {
    for (const Group& group : groups) {
      for (int64_t first = 0; first < group.count; first += kRowBlock)
        blocks_.push_back(
            {&group, first, std::min(kRowBlock, group.count - first), rows_ + first, output_rows_ + first});
      rows_ += group.count;
      output_rows_ += group.needs_output ? group.count : 0;
    }
    for (const Segment& segment : segments) {
      tiles_ += divided_up(segment.candidates.rows, kTile);
      tile_candidates_ = std::max(tile_candidates_, std::min(kTile, segment.candidates.rows));
    }
    const int64_t slice_bytes = rows_ * dim * static_cast<int64_t>(sizeof(float));
    slices_ =
        std::clamp<int64_t>(kWorkspaceBytes / slice_bytes, 1, std::min(kMostSlices, divided_up(tiles_, kSliceTiles)));
    const int64_t blocks = static_cast<int64_t>(blocks_.size());
    band_blocks_ =
        std::clamp<int64_t>(blocks * slices_ / (kTasksOfThread * threads), 1, std::min(blocks, kMostBandBlocks));
    bands_ = divided_up(blocks, band_blocks_);
  }

  PassResult run() {
    partials_.resize(static_cast<size_t>(slices_ * rows_));
    outputs_ = allocate<float>(slices_ * output_rows_ * dim_);
    const int64_t tasks = slices_ * bands_;
    const int threads = worthwhile(rows_ * tiles_ * kTile * dim_, static_cast<int>(std::min<int64_t>(threads_, tasks)));
    const int64_t band_rows = std::min(rows_, band_blocks_ * kRowBlock);
    std::vector<Scratch> scratch;  // allocated here, as a parallel region must not throw
    for (int t = 0; t < threads; ++t)
      scratch.push_back(
          {Tile(dim_, std::min(rows_, kRowBlock), tile_candidates_, products_), allocate<float>(band_rows * dim_)});
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      Scratch& own = scratch[static_cast<size_t>(omp_get_thread_num())];
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < tasks; ++task) run_slice(task % bands_, task / bands_, own);
      own.tile.release();
    }
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t block = 0; block < static_cast<int64_t>(blocks_.size()); ++block)
      sum_slices(blocks_[static_cast<size_t>(block)]);
    partials_.resize(static_cast<size_t>(rows_));
    return {std::move(partials_), std::move(outputs_)};
  }

 private:
  Partial<double>* partials(int64_t slice, const Block& block) { return partials_.data() + slice * rows_ + block.row; }
  float* outputs(int64_t slice, const Block& block) {
    return outputs_.get() + (slice * output_rows_ + block.output_row) * dim_;
  }

  // Loads tile t; tiles are numbered over all segments.
  void load(int64_t t, Tile& tile, int64_t& first, int64_t& count, int64_t& own_offset) const {
    const Segment* segment = segments_.data();
    for (; t >= divided_up(segment->candidates.rows, kTile); ++segment)
      t -= divided_up(segment->candidates.rows, kTile);
    first = t * kTile;
    count = std::min(kTile, segment->candidates.rows - first);
    own_offset = segment->own_offset;
    tile.load(segment->candidates, first, count);
  }

  void run_slice(int64_t band, int64_t slice, Scratch& scratch) {
    const size_t from = static_cast<size_t>(band * band_blocks_);
    const size_t to = std::min(blocks_.size(), from + static_cast<size_t>(band_blocks_));
    for (size_t b = from; b < to; ++b) {
      const Group& group = *blocks_[b].group;
      const float shift = group.fixed_shift ? group.scale : -kInfinity;
      std::fill_n(partials(slice, blocks_[b]), blocks_[b].count, Partial<double>{shift, 0., 0.});
    }
    const int64_t begin = tiles_ * slice / slices_, end = tiles_ * (slice + 1) / slices_;
    for (int64_t t = begin; t < end; ++t) {
      int64_t first, count, own_offset;
      load(t, scratch.tile, first, count, own_offset);
      float* chunk = scratch.outputs.get();
      for (size_t b = from; b < to; ++b) {
        const Block& block = blocks_[b];
        const bool starts = (t - begin) % kChunkTiles == 0, ends = t + 1 == end || (t + 1 - begin) % kChunkTiles == 0;
        const int64_t values = block.group->needs_output ? block.count * dim_ : 0;
        float* total = t - begin >= kChunkTiles ? outputs(slice, block) : nullptr;
        if (starts) std::fill_n(chunk, values, 0.f);
        scratch.tile.multiply(static_cast<const char*>(block.group->rows) + block.first * row_bytes(), block.count);
        if (own_offset >= 0) mask_own_keys(block, own_offset - first, count, scratch.tile);
        weigh(block, count, scratch.tile, partials(slice, block), chunk, total);
        if (values == 0) continue;
        scratch.tile.accumulate(block.count, chunk);
        if (ends && total) add(total, chunk, values);
        if (ends && !total) std::copy_n(chunk, values, outputs(slice, block));
        chunk += values;
      }
    }
  }

  int64_t row_bytes() const { return dim_ * (products_.bfloat16 ? 2 : 4); }

  // `offset` is the place of the first row's own key, counted from the tile's first candidate.
  void mask_own_keys(const Block& block, int64_t offset, int64_t count, Tile& tile) const {
    const float unseen = std::max(kUnseen / block.group->scale, std::numeric_limits<float>::lowest());
    for (int64_t i = 0; i < block.count; ++i) {
      const int64_t own = offset + (block.first + i) % batch_;
      if (own >= 0 && own < count) tile.logits(i)[own] = unseen;
    }
  }

  // Turns the logits of a block into weights and adds these up. A new maximum rescales the outputs in `chunk` and
  // `total`.
  void weigh(const Block& block, int64_t count, Tile& tile, Partial<double>* partials, float* chunk,
             float* total) const {
    const Group& group = *block.group;
    // Under a fixed shift no weight of unit rows underflows. A NaN tells solve.cpp that one has, so that the row takes
    // a running maximum instead.
    const float underflow = group.fixed_shift ? std::numeric_limits<float>::quiet_NaN() : 0.f;
    for (int64_t i = 0; i < block.count; ++i) {
      float* logits = tile.logits(i);
      Partial<double>& partial = partials[i];
      if (!group.fixed_shift) {
        const float maximum = largest(logits, count) * group.scale;
        if (maximum > partial.shift && maximum > kUnseenBelow) {
          const float factor = rescaling(partial, maximum);
          partial = {maximum, partial.sum * factor, partial.rounded_sum * factor};
          if (group.needs_output) multiply(chunk + i * dim_, dim_, factor);
          if (group.needs_output && total) multiply(total + i * dim_, dim_, factor);
        }
      }
      const float shift = std::isinf(partial.shift) ? 0.f : partial.shift;  // −∞: nothing seen yet
      float scale = group.scale;
      if (std::abs(shift) > kWholeBits) {
        multiply(logits, count, scale);
        scale = 1.f;
      }
      const WeightSums sums = products_.bfloat16
                                  ? exponentials(logits, tile.narrow_weights(i), count, scale, shift, underflow)
                                  : exponentials(logits, count, scale, shift, underflow);
      partial.sum += sums.sum;
      partial.rounded_sum += sums.rounded_sum;
    }
  }

  // Adds the slices, in order, in the place of the first.
  void sum_slices(const Block& block) {
    for (int64_t i = 0; i < block.count; ++i) {
      float shift = -kInfinity;
      for (int64_t s = 0; s < slices_; ++s) shift = std::max(shift, partials(s, block)[i].shift);
      Partial<double> total{shift, 0., 0.};
      for (int64_t s = 0; s < slices_; ++s) {
        const Partial<double>& partial = partials(s, block)[i];
        const float factor = rescaling(partial, shift);
        total.sum += factor * partial.sum;
        total.rounded_sum += factor * partial.rounded_sum;
        if (!block.group->needs_output) continue;
        float* to = outputs(0, block) + i * dim_;
        if (s > 0)
          add_scaled(to, outputs(s, block) + i * dim_, dim_, factor);
        else if (factor != 1.f)
          multiply(to, dim_, factor);
      }
      partials(0, block)[i] = total;
    }
  }

  const std::vector<Segment>& segments_;
  int64_t dim_, batch_, rows_ = 0, output_rows_ = 0, tiles_ = 0, tile_candidates_ = 0, slices_ = 1, band_blocks_ = 1,
                        bands_ = 1;
  Products products_;
  int threads_;
  std::vector<Block> blocks_;
  std::vector<Partial<double>> partials_;  // (slices, rows)
  Buffer<float> outputs_;                  // (slices, output rows, dim)
};

}  // namespace

float rescaling(const Partial<double>& partial, float larger_shift) {
  if (partial.sum == 0.) return 0.f;
  return partial.shift == larger_shift ? 1.f : exp2_approximate(partial.shift - larger_shift, 0.f);
}

PassResult forward_pass(const std::vector<Segment>& segments, const std::vector<Group>& groups, int64_t dim,
                        int64_t batch, Products products, int threads) {
  return Pass(segments, groups, dim, batch, products, threads).run();
}

}  // namespace sce_fast
