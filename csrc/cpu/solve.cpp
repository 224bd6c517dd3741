#include "solve.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <vector>

#include "exponentials.h"
#include "forward_pass.h"

namespace sce_fast {
namespace {

// A forward pass and the rows that were in it: all query views but one, then some key views.
struct Stream {
  PassResult result;
  int64_t batch, skipped_view, query_views, first_key_view;
  bool student_output;

  int64_t student_row(int64_t v, int64_t i) const { return (v - (skipped_view >= 0 && v > skipped_view)) * batch + i; }
  int64_t teacher_row(int64_t u, int64_t i) const { return (query_views + u - first_key_view) * batch + i; }
  const float* output(int64_t row, int64_t dim) const {
    return result.outputs.get() + (student_output ? row : row - query_views * batch) * dim;
  }
};

struct KeyViews {
  int64_t first, count;
};

// Unit rows reach a smaller sum under a fixed shift only if all candidates are nearly opposite to the row. Below it,
// products of weights and candidates may underflow.
constexpr double kSmallestFixedSum = 0x1p-100;
constexpr double kInfinity = std::numeric_limits<double>::infinity(), kNaN = std::numeric_limits<double>::quiet_NaN();

bool is_finite(const float* values, int64_t count) {
  float zero = 0.f;
#pragma omp simd reduction(+ : zero)
  for (int64_t j = 0; j < count; ++j) zero += 0.f * values[j];
  return zero == 0.f;
}

class Solver {
 public:
  Solver(const Problem& problem, const Solution& solution, Products products, int threads)
      : p_(problem), solution_(solution), gradient_(static_cast<float*>(solution.gradient)), products_(products),
        threads_(threads), query_(problem.query, problem.dim, products.bfloat16),
        key_(problem.key, problem.dim, products.bfloat16), widened_query_(problem.query, problem.dim, false),
        widened_key_(problem.key, problem.dim, false) {}

  // Samples with a result that is not finite are solved again with a running maximum: under a fixed shift, rows longer
  // than 1 can make weights overflow or underflow.
  void solve() {
    std::vector<char> unsolved(static_cast<size_t>(p_.batch), 1);
    const bool fixed = fixes_shift(p_.temperature) || (p_.needs_target && fixes_shift(p_.target_temperature));
    run_streams();
    combine(unsolved);
    if (fixed && std::find(unsolved.begin(), unsolved.end(), 1) != unsolved.end()) {
      may_fix_shift_ = false;
      run_streams();
      combine(unsolved);
    }
    if (solution_.mean)
      *solution_.mean =
          static_cast<float>(std::accumulate(solution_.rows, solution_.rows + p_.batch, 0.) / double(p_.batch));
  }

 private:
  // Combines the streams for the unsolved samples. A sample whose results are finite is solved.
  void combine(std::vector<char>& unsolved) {
    const int64_t n = p_.batch, d = p_.dim;
    const int threads = worthwhile(n * p_.query_views * p_.key_views * d * 8, threads_);
    std::vector<Buffer<float>> means;  // (2, dim) per thread; allocated here, as a parallel region must not throw
    for (int t = 0; t < threads; ++t) means.push_back(allocate<float>(2 * d));
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < n; ++i) {
      char& open = unsolved[static_cast<size_t>(i)];
      if (open) open = !combine(i, means[static_cast<size_t>(omp_get_thread_num())].get());
    }
  }

  // All rows pass over the candidates that the key views share. Batch keys of a single key view take a pass of their
  // own.
  void run_streams() {
    const bool own_batch_keys = p_.batch_key_views > 1;
    std::vector<Segment> shared;
    shared_.reset();
    per_view_.clear();
    if (p_.batch_keys.rows > 0 && !own_batch_keys) shared.push_back({p_.batch_keys, p_.row_offset});
    if (p_.queue.rows > 0) shared.push_back({p_.queue, -1});
    // With a single key view, the same query view has no term.
    if (!shared.empty()) shared_ = stream(shared, p_.same_views && p_.key_views == 1 ? 0 : -1, {0, p_.key_views});
    for (int64_t u = 0; own_batch_keys && u < p_.key_views; ++u) {
      const int64_t m = p_.batch_keys.rows / p_.batch_key_views;
      const int64_t bytes = m * p_.dim * bytes_of(p_.batch_keys.type);
      const Matrix own{static_cast<const char*>(p_.batch_keys.data) + u * bytes, p_.batch_keys.type, m};
      per_view_.push_back(stream({{own, p_.row_offset}}, p_.same_views ? u : -1, {u, 1}));
    }
  }

  bool fixes_shift(float temperature) const {
    return may_fix_shift_ && 2.f * static_cast<float>(std::numbers::log2e / temperature) <= kFixedShiftBits;
  }

  Stream stream(const std::vector<Segment>& segments, int64_t skipped_view, KeyViews keys) const {
    const auto group = [&](const void* rows, int64_t views, float temperature, bool needs_output) {
      const float scale = static_cast<float>(std::numbers::log2e / temperature);
      return Group{rows, views * p_.batch, scale, needs_output, fixes_shift(temperature)};
    };
    if (skipped_view >= p_.query_views) skipped_view = -1;
    std::vector<Group> groups;
    const auto add_views = [&](int64_t first, int64_t end) {
      const void* rows = query_.at(first * p_.batch);
      if (end > first) groups.push_back(group(rows, end - first, p_.temperature, p_.needs_gradient));
    };
    add_views(0, skipped_view < 0 ? p_.query_views : skipped_view);
    if (skipped_view >= 0) add_views(skipped_view + 1, p_.query_views);
    if (p_.needs_target)
      groups.push_back(group(key_.at(keys.first * p_.batch), keys.count, p_.target_temperature, true));
    const int64_t query_views = p_.query_views - (skipped_view >= 0);
    return {forward_pass(segments, groups, p_.dim, p_.batch, products_, threads_),
            p_.batch,
            skipped_view,
            query_views,
            keys.first,
            p_.needs_gradient};
  }

  // Returns log Σ exp(logit) over what a row has seen in its streams, and writes the softmax-weighted mean of the
  // candidates to `mean`. Both are NaN if weights have left the range in which their sums are right.
  double merged(const Stream* a, int64_t row_a, const Stream* b, int64_t row_b, float temperature, float* mean) const {
    const double smallest_sum = fixes_shift(temperature) ? kSmallestFixedSum : std::numeric_limits<double>::min();
    float shift = -std::numeric_limits<float>::infinity();
    if (a) shift = std::max(shift, a->result.partials[row_a].shift);
    if (b) shift = std::max(shift, b->result.partials[row_b].shift);
    double sum = 0, rounded_sum = 0;
    if (mean) std::fill_n(mean, p_.dim, 0.f);
    const auto take = [&](const Stream* stream, int64_t row) {
      if (!stream) return;
      const Partial<double>& partial = stream->result.partials[row];
      const float factor = rescaling(partial, shift);
      sum += factor * partial.sum;
      rounded_sum += factor * partial.rounded_sum;
      if (mean) add_scaled(mean, stream->output(row, p_.dim), factor);
    };
    take(a, row_a);
    take(b, row_b);
    const bool in_range = sum >= smallest_sum && sum < kInfinity && rounded_sum < kInfinity;
    const float factor = static_cast<float>(in_range ? 1 / rounded_sum : kNaN);
    for (int64_t j = 0; mean && j < p_.dim; ++j) mean[j] *= factor;
    return in_range ? shift * std::numbers::ln2 + std::log(sum) : kNaN;
  }

  double merged_student(int64_t u, int64_t v, int64_t i, float* mean) const {
    const Stream *shared = shared_stream(), *own = own_stream(u);
    return merged(shared, shared ? shared->student_row(v, i) : 0, own, own ? own->student_row(v, i) : 0, p_.temperature,
                  mean);
  }

  double merged_teacher(int64_t u, int64_t i, float* mean) const {
    const Stream *shared = shared_stream(), *own = own_stream(u);
    return merged(shared, shared ? shared->teacher_row(u, i) : 0, own, own ? own->teacher_row(u, i) : 0,
                  p_.target_temperature, mean);
  }

  const Stream* shared_stream() const { return shared_ ? &*shared_ : nullptr; }
  const Stream* own_stream(int64_t u) const { return per_view_.empty() ? nullptr : &per_view_[static_cast<size_t>(u)]; }

  void add_scaled(float* to, const float* from, float factor) const {
    for (int64_t j = 0; j < p_.dim; ++j) to[j] += factor * from[j];
  }

  // Computes loss, gradient and statistics of sample i; returns whether they are finite.
  bool combine(int64_t i, float* means) {
    const int64_t n = p_.batch, d = p_.dim;
    float *target_mean = means, *student_mean = p_.needs_gradient ? means + d : nullptr;
    const int64_t terms = p_.query_views * p_.key_views - (p_.same_views ? std::min(p_.query_views, p_.key_views) : 0);
    const double divisor = p_.temperature * double(solution_.mean ? terms * n : terms);  // of the gradient
    double loss = 0, probability = 0;
    for (int64_t v = 0; p_.needs_gradient && v < p_.query_views; ++v) std::fill_n(gradient_ + (v * n + i) * d, d, 0.f);
    for (int64_t u = 0; u < p_.key_views; ++u) {
      const float* key = static_cast<const float*>(widened_key_.at(u * n + i));
      double log_target = kNaN, zero_logit_share = 0;
      if (p_.needs_target) {
        log_target = merged_teacher(u, i, target_mean);
        // s₀ = 1 / (1 + B): the share of the logit 0 that stands for the own key
        if (p_.zero_logit) zero_logit_share = 1 / (1 + std::exp(log_target));
      } else {
        std::copy_n(key, d, target_mean);
      }
      const double similarity = dot(key, target_mean) - lost_dot(key, key_.at(u * n + i), target_mean);
      solution_.target_entropy[u * n + i] = static_cast<float>(log_target - similarity / p_.target_temperature);
      const double others_weight = (1. - p_.coefficient) * (1 - zero_logit_share);
      for (int64_t v = 0; v < p_.query_views; ++v) {
        if (p_.same_views && u == v) continue;
        const float* query = static_cast<const float*>(widened_query_.at(v * n + i));
        const double log_sum = merged_student(u, v, i, student_mean);
        // With log_odds = log A − p nothing cancels where query ≈ key: L − p = softplus(log_odds) and
        // 1 − p₀ = σ(log_odds).
        const double log_odds = log_sum - dot(query, key) / p_.temperature;
        const double others_probability = 1 / (1 + std::exp(-log_odds));
        const double gap =
            dot_of_difference(query, key, target_mean) + lost_dot(query, query_.at(v * n + i), target_mean);
        loss += softplus(log_odds) + others_weight * gap / p_.temperature;
        probability += 1 / (1 + std::exp(log_odds));
        if (!p_.needs_gradient) continue;
        const float of_student = static_cast<float>(others_probability / divisor);
        const float of_target = static_cast<float>(others_weight / divisor);
        float* to = gradient_ + (v * n + i) * d;
        for (int64_t j = 0; j < d; ++j)
          to[j] += of_student * (student_mean[j] - key[j]) + of_target * (key[j] - target_mean[j]);
      }
    }
    solution_.rows[i] = static_cast<float>(loss / double(terms));
    solution_.positive_probability[i] = static_cast<float>(probability / double(terms));
    bool finite = std::isfinite(loss);
    for (int64_t v = 0; p_.needs_gradient && v < p_.query_views; ++v)
      finite = finite && is_finite(gradient_ + (v * n + i) * d, d);
    return finite;
  }

  double dot(const float* a, const float* b) const {
    double sum = 0;
    for (int64_t j = 0; j < p_.dim; ++j) sum += double(a[j]) * b[j];
    return sum;
  }

  // a · (b − c)
  double dot_of_difference(const float* a, const float* b, const float* c) const {
    double sum = 0;
    for (int64_t j = 0; j < p_.dim; ++j) sum += double(a[j]) * (double(b[j]) - c[j]);
    return sum;
  }

  // (row − row as the products have rounded it) · mean. The sums of exponentials use rounded rows, so the terms that
  // are subtracted from them must too; otherwise a rounding error that would cancel remains.
  double lost_dot(const float* row, const void* product_row, const float* mean) const {
    if (!products_.bfloat16) return 0;
    const auto* rounded = static_cast<const uint16_t*>(product_row);
    double sum = 0;
    for (int64_t j = 0; j < p_.dim; ++j) sum += (double(row[j]) - widened(rounded[j])) * mean[j];
    return sum;
  }

  // log(1 + exp(x))
  static double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }

  const Problem& p_;
  const Solution& solution_;
  float* gradient_;
  Products products_;
  int threads_;
  bool may_fix_shift_ = true;
  ProductRows query_, key_, widened_query_, widened_key_;
  std::optional<Stream> shared_;
  std::vector<Stream> per_view_;  // one per key view, if each has batch keys of its own
};

}  // namespace

void solve(const Problem& problem, const Solution& solution, Products products, int threads) {
  if (problem.needs_gradient && solution.gradient_type != Type::kFloat32)
    throw std::invalid_argument("the CPU kernel writes a float32 gradient; expected gradient_type 0");
  if (problem.scalars != nullptr)
    throw std::invalid_argument("the CPU kernel reads temperatures and coefficient as numbers; expected scalars 0");
  Solver(problem, solution, products, threads).solve();
}

}  // namespace sce_fast
