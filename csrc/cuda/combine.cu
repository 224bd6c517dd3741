// Adds the partial results of the splits, in a fixed order, and finishes loss, gradient and statistics. One block for
// each sample, one thread for each column of its rows; no atomics. Its time is the latency of its loads, so the threads
// share a row's splits, and no load waits for a comparison.
#include <numbers>

#include "pass.h"
#include "solve.h"

namespace sce_fast {
namespace {

using ptx::Shared;

// So many blocks share a multiprocessor, which leaves each thread 40 registers: at N 1024 they run in 1.3 waves.
constexpr int kCombineBlocks = 6;

struct Combination {
  Pass shared, per_view;  // splits 0: no such launch
  Solution solution;
  int32_t threads;  // of a block
};

// A row's partial results of one launch; split s stands at s · stride.
struct Source {
  const Partial<float>* partials;
  const float* outputs;
  int32_t splits;
  int64_t stride;
};

SCE_FAST_DEVICE Source source(const Pass& pass, int z, int place) {
  if (pass.splits == 0) return {nullptr, nullptr, 0, 0};
  const int64_t first = partial_index(pass, z, 0, place);
  return {pass.partials + first, pass.outputs + first * pass.dim(), splits_of(pass, place), pass.rows};
}

// What a row has seen over all splits: log Σ exp(logit), and this thread's column of the softmax-weighted mean of the
// candidates. Both are NaN if weights have left the range of floats.
struct Seen {
  float log_sum, mean;
};

// Adds up a row over its splits. All threads of the block call this, each time with the same row.
class Merge {
 public:
  SCE_FAST_DEVICE Merge(Shared scratch, int dim)
      : scratch_(scratch), dim_(dim), group_(ptx::thread_index() / (dim / 4)),
        column_(ptx::thread_index() % (dim / 4) * 4) {}

  SCE_FAST_DEVICE Seen operator()(const Source& first, const Source& second, bool with_mean) const {
    float sum = 0.f, rounded_sum = 0.f;
    ptx::FloatQuad output{};
    const float shift = warp_max(fmaxf(largest_shift(first), largest_shift(second)));
    add(first, shift, with_mean, sum, rounded_sum, output);
    add(second, shift, with_mean, sum, rounded_sum, output);
    sum = warp_sum(sum);
    rounded_sum = warp_sum(rounded_sum);
    const float log_sum = shift * std::numbers::ln2_v<float> + logf(sum);
    // NaN if a sum has overflowed or lost its weights: a mean of finite / ∞ = 0 or a bounded sigmoid would hide that.
    const float bad = 0.f * (log_sum + rounded_sum);
    return {log_sum + bad, (with_mean ? own_column(output) : 0.f) / rounded_sum + bad};
  }

 private:
  static constexpr int kRounds = kWarpSize / kSplitGroups;  // of a warp's splits, one for each group

  static SCE_FAST_DEVICE int lane() { return ptx::thread_index() % kWarpSize; }

  static SCE_FAST_DEVICE float largest_shift(const Source& from) {
    float shift = -kInfinity;
#pragma unroll 1
    for (int s = lane(); s < from.splits; s += kWarpSize) shift = fmaxf(shift, from.partials[s * from.stride].shift);
    return shift;
  }

  // Each lane adds the sums of one split in kWarpSize. A group of threads adds the outputs of one split in kSplitGroups,
  // four columns in each thread; the loads of half a warp's splits are under way at the same time.
  SCE_FAST_DEVICE void add(const Source& from, float shift, bool with_mean, float& sum, float& rounded_sum,
                           ptx::FloatQuad& output) const {
#pragma unroll 1
    for (int base = 0; base < from.splits; base += kWarpSize) {
      Partial<float> partial{-kInfinity, 0.f, 0.f};
      if (base + lane() < from.splits) partial = from.partials[(base + lane()) * from.stride];
      const float factor = rescaling(partial.shift, partial.sum, shift);
      sum += factor * partial.sum;
      rounded_sum += factor * partial.rounded_sum;
      if (!with_mean) continue;
#pragma unroll 1
      for (int round = 0; round < kRounds && base + round * kSplitGroups < from.splits; round += kRounds / 2) {
        ptx::FloatQuad loaded[kRounds / 2]{};
#pragma unroll
        for (int r = 0; r < kRounds / 2; ++r)
          if (const int s = base + (round + r) * kSplitGroups + group_; group_ < kSplitGroups && s < from.splits)
            loaded[r] = *reinterpret_cast<const ptx::FloatQuad*>(from.outputs + s * from.stride * dim_ + column_);
#pragma unroll
        for (int r = 0; r < kRounds / 2; ++r) {
          const float scale = ptx::shuffle(factor, (round + r) * kSplitGroups + group_ % kSplitGroups);
#pragma unroll
          for (int c = 0; c < 4; ++c) output.values[c] += scale == 0.f ? 0.f : scale * loaded[r].values[c];
        }
      }
    }
  }

  // Returns the sum over the groups of this thread's column.
  SCE_FAST_DEVICE float own_column(const ptx::FloatQuad& output) const {
    ptx::barrier();  // the place may still be read for an earlier row
    if (group_ < kSplitGroups) ptx::store_shared(scratch_ + (group_ * dim_ + column_) * 4, output);
    ptx::barrier();
    float result = 0.f;
    const int own = ptx::thread_index();
    if (own >= dim_) return result;
#pragma unroll
    for (int group = 0; group < kSplitGroups; ++group) result += ptx::load_shared(scratch_ + (group * dim_ + own) * 4);
    return result;
  }

  Shared scratch_;
  int dim_, group_, column_;
};

// log(1 + exp(x)) and 1 / (1 + exp(−x)); NaN stays NaN.
SCE_FAST_DEVICE float softplus(float x) { return fmaxf(x, 0.f) + log1pf(expf(-fabsf(x))); }
SCE_FAST_DEVICE float sigmoid(float x) {
  const float small = expf(-fabsf(x));
  return (x < 0.f ? small : 1.f) / (1.f + small);
}

// Sums over the block, with the same bits in every thread.
class BlockSum {
 public:
  SCE_FAST_DEVICE BlockSum(Shared scratch, int threads) : scratch_(scratch), warps_(threads / kWarpSize) {}

  SCE_FAST_DEVICE void operator()(float& a, float& b) const {
    a = warp_sum(a);
    b = warp_sum(b);
    const int warp = ptx::thread_index() / kWarpSize;
    if (ptx::thread_index() % kWarpSize == 0) {
      ptx::store_shared(scratch_ + warp * 8, a);
      ptx::store_shared(scratch_ + warp * 8 + 4, b);
    }
    ptx::barrier();
    a = b = 0.f;
    for (int w = 0; w < warps_; ++w) {
      a += ptx::load_shared(scratch_ + w * 8);
      b += ptx::load_shared(scratch_ + w * 8 + 4);
    }
    ptx::barrier();  // the next sum reuses the place
  }

 private:
  Shared scratch_;
  int warps_;
};

// Two numbers of each thread for each of the first teachers.
class KeptTeachers {
 public:
  SCE_FAST_DEVICE KeptTeachers(Shared start, int threads)
      : own_(start + ptx::thread_index() * 4), stride_(threads * 4) {}
  SCE_FAST_DEVICE void store(int u, const Seen& seen) const {
    ptx::store_shared(own_ + 2 * u * stride_, seen.log_sum);
    ptx::store_shared(own_ + (2 * u + 1) * stride_, seen.mean);
  }
  SCE_FAST_DEVICE Seen load(int u) const {
    return {ptx::load_shared(own_ + 2 * u * stride_), ptx::load_shared(own_ + (2 * u + 1) * stride_)};
  }

 private:
  Shared own_;
  uint32_t stride_;
};

SCE_FAST_DEVICE Seen see_teacher(const Combination& c, int u, int i, const Merge& merge) {
  const Pass &shared = c.shared, &own = c.per_view;
  return merge(source(shared, 0, teacher_place(shared, row_list(shared, 0), u, i)),
               source(own, u, teacher_place(own, row_list(own, u), u, i)), true);
}

SCE_FAST_DEVICE Seen see_student(const Combination& c, int v, int u, int i, const Merge& merge) {
  const Pass &shared = c.shared, &own = c.per_view;
  return merge(source(shared, 0, student_place(shared, row_list(shared, 0), v, i)),
               source(own, u, student_place(own, row_list(own, u), v, i)), shared.problem.needs_gradient);
}

__global__ void __launch_bounds__(kLargestDim, kCombineBlocks) combine_kernel(const __grid_constant__ Combination c) {
  ptx::wait_for_launches();
  const Problem& p = c.shared.problem;
  const int32_t dim = c.shared.dim(), batch = c.shared.batch();
  const int32_t query_views = c.shared.query_views(), key_views = c.shared.key_views();
  const int i = ptx::block_index().x, column = ptx::thread_index(), threads = c.threads;
  const float temperature = p.scalars ? p.scalars[0] : p.temperature;
  const float target_temperature = p.scalars ? p.scalars[1] : p.target_temperature;
  const float coefficient = p.scalars ? p.scalars[2] : p.coefficient;
  const Merge merge(ptx::shared_memory(), dim);
  const KeptTeachers kept(ptx::shared_memory() + kSplitGroups * dim * 4, threads);
  const BlockSum block_sum(ptx::shared_memory() + kSplitGroups * dim * 4 + kKeptTeachers * 2 * threads * 4, threads);
  const auto number = [&](const Matrix& matrix, int64_t row) {
    return column < dim ? load_number(matrix.data, matrix.type, row * dim + column) : 0.f;
  };

  int terms = 0;
  for (int u = 0; u < key_views; ++u) {
    terms += query_views - (p.same_views && u < query_views ? 1 : 0);
    const int64_t row = static_cast<int64_t>(u) * batch + i;
    float entropy = kNaN;
    if (p.needs_target) {
      const Seen teacher = see_teacher(c, u, i, merge);
      if (u < kKeptTeachers) kept.store(u, teacher);
      float own = number(p.key, row) * teacher.mean, unused = 0.f;
      block_sum(own, unused);
      entropy = teacher.log_sum - own / target_temperature;
    }
    if (column == 0) c.solution.target_entropy[row] = entropy;
  }

  float loss = 0.f, probability = 0.f;
  for (int v = 0; v < query_views; ++v) {
    const int64_t row = static_cast<int64_t>(v) * batch + i;
    const float query = number(p.query, row);
    Seen student{};
    bool merged = false;
    float gradient = 0.f;
    for (int u = 0; u < key_views; ++u) {
      if (p.same_views && u == v) continue;
      // Without candidates of its own, a key view changes nothing of what the student has seen.
      if (!merged || c.per_view.splits > 0) student = see_student(c, v, u, i, merge);
      merged = true;
      const float key = number(p.key, static_cast<int64_t>(u) * batch + i);
      float away = 0.f, others_weight = 0.f;  // away: from the target's mean to the own key
      if (p.needs_target) {
        const Seen teacher = u < kKeptTeachers ? kept.load(u) : see_teacher(c, u, i, merge);
        // s₀ = 1 / (1 + B): the share of the logit 0 that stands for the own key
        const float zero_logit_share = p.zero_logit ? sigmoid(-teacher.log_sum) : 0.f;
        away = key - teacher.mean;
        others_weight = (1.f - coefficient) * (1.f - zero_logit_share);
      }
      float own = query * key, gap = query * away;
      block_sum(own, gap);
      // log A − p
      const float log_odds = student.log_sum - own / temperature;
      loss += softplus(log_odds) + (p.needs_target ? others_weight * gap / temperature : 0.f);
      probability += sigmoid(-log_odds);
      gradient += sigmoid(log_odds) * (student.mean - key) + (p.needs_target ? others_weight * away : 0.f);
    }
    if (p.needs_gradient && column < dim)
      store_number(c.solution.gradient, c.solution.gradient_type, row * dim + column,
                   gradient / (temperature * static_cast<float>(terms)));
  }
  if (column == 0) {
    c.solution.rows[i] = loss / static_cast<float>(terms);
    c.solution.positive_probability[i] = probability / static_cast<float>(terms);
  }
}

}  // namespace

void combine(const Pass& shared, const Pass& per_view, const Solution& solution, bool early, void* stream) {
  const Problem& p = shared.problem;
  const int32_t threads = combine_threads(static_cast<int32_t>(p.dim));
  ptx::launch({"combine_kernel",
               {static_cast<uint32_t>(p.batch), 1, 1},
               static_cast<uint32_t>(threads),
               static_cast<uint32_t>(combine_shared_bytes(threads)),
               stream,
               early},
              combine_kernel, Combination{shared, per_view, solution, threads});
}

}  // namespace sce_fast
