#include "solve.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "exponentials.h"
#include "forward_pass.h"

namespace sce_fast {
namespace {

constexpr double kLog2e = 1.4426950408889634, kLn2 = 0.6931471805599453;

// A pass and which rows were in it: those of all query views but one, then those of some key views.
struct Stream {
  PassResult result;
  int64_t batch, left_out_view, query_views, first_key_view;
  bool student_output;

  int64_t student_row(int64_t v, int64_t i) const {
    return (v - (left_out_view >= 0 && v > left_out_view)) * batch + i;
  }
  int64_t teacher_row(int64_t u, int64_t i) const { return (query_views + u - first_key_view) * batch + i; }
  const float* output(int64_t row, int64_t dim) const {
    return result.outputs.get() + (student_output ? row : row - query_views * batch) * dim;
  }
};

struct KeyViews {
  int64_t first, count;
};

class Forward {
 public:
  Forward(const Problem& problem, const Solution& solution, Products products, int threads)
      : p_(problem), solution_(solution), products_(products), threads_(threads),
        query_(problem.query, problem.dim, products.bfloat16), key_(problem.key, problem.dim, products.bfloat16),
        widened_query_(problem.query, problem.dim, false), widened_key_(problem.key, problem.dim, false) {}

  void run() {
    run_streams();
    const int64_t n = p_.batch, d = p_.dim;
    const int threads = worthwhile(n * p_.query_views * p_.key_views * d * 8, threads_);
    std::vector<Buffer<float>> means;  // (2, dim) a thread: made here, as an exception must not leave a parallel region
    for (int t = 0; t < threads; ++t) means.push_back(allocate<float>(2 * d));
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < n; ++i) solve_row(i, means[static_cast<size_t>(omp_get_thread_num())].get());
  }

 private:
  // Candidates that all key views share take one pass of all rows; batch keys of a view take one of their own.
  void run_streams() {
    const bool own_batch_keys = p_.batch_keys_views > 1;
    std::vector<Segment> shared;
    if (p_.batch_keys.rows > 0 && !own_batch_keys) shared.push_back({p_.batch_keys, p_.row_offset});
    if (p_.queue.rows > 0) shared.push_back({p_.queue, -1});
    // with a single key view, the same view of the query has no term
    if (!shared.empty()) shared_ = stream(shared, p_.same_views && p_.key_views == 1 ? 0 : -1, {0, p_.key_views});
    for (int64_t u = 0; own_batch_keys && u < p_.key_views; ++u) {
      const int64_t m = p_.batch_keys.rows / p_.batch_keys_views, width = p_.batch_keys.type == Type::kFloat32 ? 4 : 2;
      const Matrix own{static_cast<const char*>(p_.batch_keys.data) + u * m * p_.dim * width, p_.batch_keys.type, m};
      of_view_.push_back(stream({{own, p_.row_offset}}, p_.same_views ? u : -1, {u, 1}));
    }
  }

  Stream stream(const std::vector<Segment>& segments, int64_t left_out_view, KeyViews keys) const {
    const bool gradient = solution_.gradient != nullptr;
    const float scale = static_cast<float>(kLog2e / p_.temperature);
    const float target_scale = static_cast<float>(kLog2e / p_.target_temperature);
    if (left_out_view >= p_.query_views) left_out_view = -1;
    std::vector<Group> groups;
    const auto add_views = [&](int64_t first, int64_t end) {
      if (end > first) groups.push_back({query_.at(first * p_.batch), (end - first) * p_.batch, scale, gradient});
    };
    add_views(0, left_out_view < 0 ? p_.query_views : left_out_view);
    if (left_out_view >= 0) add_views(left_out_view + 1, p_.query_views);
    if (p_.needs_target) groups.push_back({key_.at(keys.first * p_.batch), keys.count * p_.batch, target_scale, true});
    return {run_pass(segments, groups, p_.dim, p_.batch, products_, threads_),
            p_.batch,
            left_out_view,
            p_.query_views - (left_out_view >= 0),
            keys.first,
            gradient};
  }

  // log Σ exp(logit) of what a row has seen in its streams, and into `mean` the softmax-weighted mean of it.
  double merged(const Stream* a, int64_t row_a, const Stream* b, int64_t row_b, float* mean) const {
    float shift = -std::numeric_limits<float>::infinity();
    if (a) shift = std::max(shift, a->result.partials[row_a].shift);
    if (b) shift = std::max(shift, b->result.partials[row_b].shift);
    double exact = 0, rounded = 0;
    if (mean) std::fill_n(mean, p_.dim, 0.f);
    const auto take = [&](const Stream* stream, int64_t row) {
      if (!stream) return;
      const Partial& part = stream->result.partials[row];
      const float factor = rescaling(part, shift);
      exact += factor * part.exact;
      rounded += factor * part.rounded;
      if (mean) add_scaled(mean, stream->output(row, p_.dim), factor);
    };
    take(a, row_a);
    take(b, row_b);
    for (int64_t j = 0; mean && j < p_.dim; ++j) mean[j] *= static_cast<float>(1 / rounded);
    return shift * kLn2 + std::log(exact);
  }

  void add_scaled(float* to, const float* from, float factor) const {
    for (int64_t j = 0; j < p_.dim; ++j) to[j] += factor * from[j];
  }

  void solve_row(int64_t i, float* means) {
    const int64_t n = p_.batch, d = p_.dim;
    const Stream* shared = shared_ ? &*shared_ : nullptr;
    float *target_mean = means, *student_mean = solution_.gradient ? means + d : nullptr;
    int64_t terms = p_.query_views * p_.key_views - (p_.same_views ? std::min(p_.query_views, p_.key_views) : 0);
    double loss = 0, probability = 0;
    if (solution_.gradient)
      for (int64_t v = 0; v < p_.query_views; ++v) std::fill_n(solution_.gradient + (v * n + i) * d, d, 0.f);
    for (int64_t u = 0; u < p_.key_views; ++u) {
      const Stream* own = of_view_.empty() ? nullptr : &of_view_[static_cast<size_t>(u)];
      const float* key = static_cast<const float*>(widened_key_.at(u * n + i));
      double log_target = std::numeric_limits<double>::quiet_NaN(), own_share = 0;
      if (p_.needs_target) {
        log_target =
            merged(shared, shared ? shared->teacher_row(u, i) : 0, own, own ? own->teacher_row(u, i) : 0, target_mean);
        // s₀ = 1 / (1 + B): the share of the logit 0 that stands for the own key
        if (p_.zero_logit) own_share = 1 / (1 + std::exp(log_target));
      } else {
        std::copy_n(key, d, target_mean);
      }
      const double similarity = dot(key, target_mean) - lost_dot(key, key_.at(u * n + i), target_mean);
      solution_.target_entropy[u * n + i] = static_cast<float>(log_target - similarity / p_.target_temperature);
      const double others = (1. - p_.coefficient) * (1 - own_share);
      for (int64_t v = 0; v < p_.query_views; ++v) {
        if (p_.same_views && u == v) continue;
        const float* query = static_cast<const float*>(widened_query_.at(v * n + i));
        const double log_sum =
            merged(shared, shared ? shared->student_row(v, i) : 0, own, own ? own->student_row(v, i) : 0, student_mean);
        // Written with d = log A − p, so that nothing cancels where query ≈ key: L − p = softplus(d), 1 − p₀ = σ(d).
        const double odds = log_sum - dot(query, key) / p_.temperature;
        const double against = 1 / (1 + std::exp(-odds));
        const double gap =
            dot_of_difference(query, key, target_mean) + lost_dot(query, query_.at(v * n + i), target_mean);
        loss += softplus(odds) + others * gap / p_.temperature;
        probability += 1 / (1 + std::exp(odds));
        if (!solution_.gradient) continue;
        const float of_student = static_cast<float>(against / (p_.temperature * double(terms)));
        const float of_target = static_cast<float>(others / (p_.temperature * double(terms)));
        float* to = solution_.gradient + (v * n + i) * d;
        for (int64_t j = 0; j < d; ++j)
          to[j] += of_student * (student_mean[j] - key[j]) + of_target * (key[j] - target_mean[j]);
      }
    }
    solution_.rows[i] = static_cast<float>(loss / double(terms));
    solution_.positive_probability[i] = static_cast<float>(probability / double(terms));
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

  // (row − row as the products have rounded it) · mean: the sums of exponentials are of rounded rows, and what is
  // subtracted from them has to be too, lest a rounding that would cancel stays.
  double lost_dot(const float* row, const void* product_row, const float* mean) const {
    if (!products_.bfloat16) return 0;
    double sum = 0;
    for (int64_t j = 0; j < p_.dim; ++j)
      sum += (double(row[j]) - widened(static_cast<const uint16_t*>(product_row)[j])) * mean[j];
    return sum;
  }

  // log(1 + exp(x))
  static double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }

  const Problem& p_;
  const Solution& solution_;
  Products products_;
  int threads_;
  ProductRows query_, key_, widened_query_, widened_key_;
  std::optional<Stream> shared_;
  std::vector<Stream> of_view_;  // one a key view, where each has batch keys of its own
};

}  // namespace

void sce_forward(const Problem& problem, const Solution& solution, Products products, int threads) {
  Forward(problem, solution, products, threads).run();
}

}  // namespace sce_fast
