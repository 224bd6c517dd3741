// Adds the partial results of the splits, in order, and finishes loss, gradient and statistics. One block for each
// sample, one thread for each column of its rows; no atomics.
#include <numbers>

#include "pass.h"
#include "solve.h"

namespace sce_fast {
namespace {

using ptx::Shared;

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
  return {pass.partials + first, pass.outputs + first * pass.dim(), pass.splits, pass.rows};
}

// What a row has seen over all splits: log Σ exp(logit), and this thread's column of the softmax-weighted mean of the
// candidates. Both are NaN if weights have left the range of floats.
struct Seen {
  float log_sum, mean;
};

// Returns the factor that brings a partial result to a larger shift; 0 if the row has seen nothing.
SCE_FAST_DEVICE float rescaling(const Partial<float>& partial, float larger_shift) {
  return partial.sum == 0.f ? 0.f : ptx::exp2(partial.shift - larger_shift);
}

SCE_FAST_DEVICE Seen merge(const Source& first, const Source& second, int dim, int column, bool with_mean) {
  float shift = -kInfinity;
  for (int s = 0; s < first.splits; ++s) shift = fmaxf(shift, first.partials[s * first.stride].shift);
  for (int s = 0; s < second.splits; ++s) shift = fmaxf(shift, second.partials[s * second.stride].shift);
  float sum = 0.f, rounded_sum = 0.f, output = 0.f;
  const auto take = [&](const Source& from) {
#pragma unroll 4
    for (int s = 0; s < from.splits; ++s) {
      const Partial<float> partial = from.partials[s * from.stride];
      const float factor = rescaling(partial, shift);
      sum += factor * partial.sum;
      rounded_sum += factor * partial.rounded_sum;
      if (with_mean && column < dim && partial.sum != 0.f)
        output += factor * from.outputs[s * from.stride * dim + column];
    }
  };
  take(first);
  take(second);
  const float log_sum = shift * std::numbers::ln2_v<float> + logf(sum);
  // NaN if a sum has overflowed or lost its weights: a mean of finite / ∞ = 0 or a bounded sigmoid would hide that.
  const float bad = 0.f * (log_sum + rounded_sum);
  return {log_sum + bad, output / rounded_sum + bad};
}

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
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      a += ptx::shuffle_xor(a, lanes);
      b += ptx::shuffle_xor(b, lanes);
    }
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

SCE_FAST_DEVICE Seen merge_teacher(const Combination& c, int u, int i, int column) {
  const Pass &shared = c.shared, &own = c.per_view;
  return merge(source(shared, 0, teacher_place(shared, row_list(shared, 0), u, i)),
               source(own, u, teacher_place(own, row_list(own, u), u, i)), shared.dim(), column, true);
}

SCE_FAST_DEVICE Seen merge_student(const Combination& c, int v, int u, int i, int column) {
  const Pass &shared = c.shared, &own = c.per_view;
  return merge(source(shared, 0, student_place(shared, row_list(shared, 0), v, i)),
               source(own, u, student_place(own, row_list(own, u), v, i)), shared.dim(), column,
               shared.problem.needs_gradient);
}

__global__ void __launch_bounds__(kLargestDim, 1) combine_kernel(const __grid_constant__ Combination c) {
  ptx::wait_for_launches();
  const Problem& p = c.shared.problem;
  const int32_t dim = c.shared.dim(), batch = c.shared.batch();
  const int32_t query_views = c.shared.query_views(), key_views = c.shared.key_views();
  const int i = ptx::block_index().x, column = ptx::thread_index(), threads = c.threads;
  const float temperature = p.scalars ? p.scalars[0] : p.temperature;
  const float target_temperature = p.scalars ? p.scalars[1] : p.target_temperature;
  const float coefficient = p.scalars ? p.scalars[2] : p.coefficient;
  const BlockSum block_sum(ptx::shared_memory(), threads);
  const KeptTeachers kept(ptx::shared_memory() + threads / kWarpSize * 8, threads);
  const auto number = [&](const Matrix& matrix, int64_t row) {
    return column < dim ? load_number(matrix.data, matrix.type, row * dim + column) : 0.f;
  };

  int terms = 0;
  for (int u = 0; u < key_views; ++u) {
    terms += query_views - (p.same_views && u < query_views ? 1 : 0);
    const int64_t row = static_cast<int64_t>(u) * batch + i;
    float entropy = kNaN;
    if (p.needs_target) {
      const Seen teacher = merge_teacher(c, u, i, column);
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
    if (c.per_view.splits == 0) student = merge_student(c, v, 0, i, column);
    float gradient = 0.f;
    for (int u = 0; u < key_views; ++u) {
      if (p.same_views && u == v) continue;
      if (c.per_view.splits > 0) student = merge_student(c, v, u, i, column);
      const float key = number(p.key, static_cast<int64_t>(u) * batch + i);
      float away = 0.f, others_weight = 0.f;  // away: from the target's mean to the own key
      if (p.needs_target) {
        const Seen teacher = u < kKeptTeachers ? kept.load(u) : merge_teacher(c, u, i, column);
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
