// Sums the partial results over the splits in their order, and makes loss, gradient and statistics of them: the
// epilogue of the pass. One block for each sample, one thread for each column of its rows; no atomics.
#include <limits>

#include "pass.h"
#include "solve.h"

namespace sce_fast {
namespace {

using ptx::Shared;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Epilogue {
  Pass shared, per_view;  // splits 0: no such launch
  float temperature, target_temperature, coefficient;
  const float* scalars;  // null: the numbers before it
  bool zero_logit;
  int32_t threads;  // of a block
  float* rows;
  void* gradient;
  float* target_entropy;
  float* positive_probability;
};

// A row's partial results of one launch: those of split s at s · stride.
struct Source {
  const Partial* partials;
  const float* outputs;
  int32_t splits;
  int64_t stride;
};

SCE_FAST_DEVICE Source source(const Pass& pass, int z, int place) {
  if (pass.splits == 0) return {nullptr, nullptr, 0, 0};
  const int64_t first = partial_index(pass, z, 0, place);
  return {pass.partials + first, pass.outputs + first * pass.dim, pass.splits, pass.rows};
}

// What a row has seen in all: log Σ exp(logit), and this thread's column of the softmax-weighted mean of candidates.
struct Seen {
  float log_sum, mean;
};

// What brings a partial sum with this shift to the larger one; nothing seen needs no factor.
SCE_FAST_DEVICE float rescaling(const Partial& part, float shift) {
  return part.sum == 0.f ? 0.f : ptx::exp2(part.shift - shift);
}

SCE_FAST_DEVICE Seen merge(const Source& first, const Source& second, int dim, int column, bool with_mean) {
  float shift = -kInfinity;
  for (int s = 0; s < first.splits; ++s) shift = fmaxf(shift, first.partials[s * first.stride].shift);
  for (int s = 0; s < second.splits; ++s) shift = fmaxf(shift, second.partials[s * second.stride].shift);
  float sum = 0.f, rounded_sum = 0.f, output = 0.f;
  const auto take = [&](const Source& from) {
#pragma unroll 4
    for (int s = 0; s < from.splits; ++s) {
      const Partial part = from.partials[s * from.stride];
      const float factor = rescaling(part, shift);
      sum += factor * part.sum;
      rounded_sum += factor * part.rounded_sum;
      if (with_mean && column < dim && part.sum != 0.f) output += factor * from.outputs[s * from.stride * dim + column];
    }
  };
  take(first);
  take(second);
  return {shift * kLn2 + logf(sum), output / rounded_sum};
}

// log(1 + exp(x)) and 1 / (1 + exp(−x)); a NaN stays one.
SCE_FAST_DEVICE float softplus(float x) { return fmaxf(x, 0.f) + log1pf(expf(-fabsf(x))); }
SCE_FAST_DEVICE float sigmoid(float x) {
  const float small = expf(-fabsf(x));
  return (x < 0.f ? small : 1.f) / (1.f + small);
}

// Sums over the block, the same bits in every thread.
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
    ptx::barrier();  // the next sum takes the same place
  }

 private:
  Shared scratch_;
  int warps_;
};

// Each thread's own two numbers for each of the first teachers.
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

SCE_FAST_DEVICE Seen merge_teacher(const Epilogue& e, int u, int i, int column) {
  const Pass &shared = e.shared, &own = e.per_view;
  return merge(source(shared, 0, teacher_place(shared, row_list(shared, 0), u, i)),
               source(own, u, teacher_place(own, row_list(own, u), u, i)), shared.dim, column, true);
}

SCE_FAST_DEVICE Seen merge_student(const Epilogue& e, int v, int u, int i, int column) {
  const Pass &shared = e.shared, &own = e.per_view;
  return merge(source(shared, 0, student_place(shared, row_list(shared, 0), v, i)),
               source(own, u, student_place(own, row_list(own, u), v, i)), shared.dim, column, e.gradient != nullptr);
}

__global__ void __launch_bounds__(kLargestDim, 1) sce_combine_kernel(const __grid_constant__ Epilogue e) {
  ptx::wait_for_launches();
  const Pass& p = e.shared;  // its rows and sizes hold with or without a launch
  const int i = ptx::block_index().x, column = ptx::thread_index(), threads = e.threads;
  const float temperature = e.scalars ? e.scalars[0] : e.temperature;
  const float target_temperature = e.scalars ? e.scalars[1] : e.target_temperature;
  const float coefficient = e.scalars ? e.scalars[2] : e.coefficient;
  const BlockSum block_sum(ptx::shared_memory(), threads);
  const KeptTeachers kept(ptx::shared_memory() + threads / kWarpSize * 8, threads);
  const auto number = [&](const void* rows, Type type, int64_t row) {
    return column < p.dim ? load_number(rows, type, row * p.dim + column) : 0.f;
  };

  int terms = 0;
  for (int u = 0; u < p.key_views; ++u) {
    terms += p.query_views - (p.same_views && u < p.query_views ? 1 : 0);
    const int64_t row = static_cast<int64_t>(u) * p.batch + i;
    float entropy = kNaN;
    if (p.needs_target) {
      const Seen teacher = merge_teacher(e, u, i, column);
      if (u < kKeptTeachers) kept.store(u, teacher);
      float own = number(p.key, p.key_type, row) * teacher.mean, unused = 0.f;
      block_sum(own, unused);
      entropy = teacher.log_sum - own / target_temperature;
    }
    if (column == 0) e.target_entropy[row] = entropy;
  }

  float loss = 0.f, probability = 0.f;
  for (int v = 0; v < p.query_views; ++v) {
    const int64_t row = static_cast<int64_t>(v) * p.batch + i;
    const float query = number(p.query, p.query_type, row);
    Seen student{};
    if (e.per_view.splits == 0) student = merge_student(e, v, 0, i, column);
    float gradient = 0.f;
    for (int u = 0; u < p.key_views; ++u) {
      if (p.same_views && u == v) continue;
      if (e.per_view.splits > 0) student = merge_student(e, v, u, i, column);
      const float key = number(p.key, p.key_type, static_cast<int64_t>(u) * p.batch + i);
      float away = 0.f, weight = 0.f;  // from the target's mean to the own key, and what the candidates have of it
      if (p.needs_target) {
        const Seen teacher = u < kKeptTeachers ? kept.load(u) : merge_teacher(e, u, i, column);
        // s₀ = 1 / (1 + B): the share of the logit 0 that stands for the own key
        const float own_share = e.zero_logit ? sigmoid(-teacher.log_sum) : 0.f;
        away = key - teacher.mean;
        weight = (1.f - coefficient) * (1.f - own_share);
      }
      float own = query * key, expected = query * away;
      block_sum(own, expected);
      const float distance = student.log_sum - own / temperature;
      loss += softplus(distance) + (p.needs_target ? weight * expected / temperature : 0.f);
      probability += sigmoid(-distance);
      gradient += sigmoid(distance) * (student.mean - key) + (p.needs_target ? weight * away : 0.f);
    }
    if (e.gradient && column < p.dim)
      store_number(e.gradient, p.query_type, row * p.dim + column,
                   gradient / (temperature * static_cast<float>(terms)));
  }
  if (column == 0) {
    e.rows[i] = loss / static_cast<float>(terms);
    e.positive_probability[i] = probability / static_cast<float>(terms);
  }
}

}  // namespace

void sce_combine(const Pass& shared, const Pass& per_view, const CudaProblem& problem, const CudaSolution& solution,
                 bool early, void* stream) {
  const int32_t threads = combine_threads(shared.dim);
  const Epilogue epilogue{shared,
                          per_view,
                          problem.temperature,
                          problem.target_temperature,
                          problem.coefficient,
                          problem.scalars,
                          problem.zero_logit,
                          threads,
                          solution.rows,
                          solution.gradient,
                          solution.target_entropy,
                          solution.positive_probability};
  ptx::launch({"sce_combine",
               {static_cast<uint32_t>(shared.batch), 1, 1},
               static_cast<uint32_t>(threads),
               static_cast<uint32_t>(combine_shared_bytes(threads)),
               stream,
               early},
              sce_combine_kernel, epilogue);
}

}  // namespace sce_fast
