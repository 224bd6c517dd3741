#include "sce_forward.h"

#include <ATen/native/CPUBlas.h>
#include <ATen/native/cpu/utils.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "clones.h"

namespace sce_fast {
namespace {

using at::BFloat16;
using at::Half;

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
// With unit rows |logit| ≤ 1/τ. As long as the whole range of 2/τ · log₂e bits is this short, the largest possible
// logit may stand for the row's maximum: no term that matters underflows.
constexpr float kFixedShiftBits = 115.f;
// Tile of candidates × block of rows: candidates (twice), logits and outputs stay in the second-level cache.
constexpr int64_t kTile = 64;
constexpr int64_t kRowBlock = 256;
// Enough pieces for many cores; their number depends on the sizes alone, and so do the bits of the sums.
constexpr int64_t kPieces = 96;

// ---------------------------------------------------------------------------------------------- exponentials

// The logit of a candidate that a row must not see: finite, so that it is told from the −∞ of a bad candidate.
constexpr float kUnseen = -1e30f;
constexpr float kUnseenBelow = -1e29f;

// 2^x for x in [-126, 127.5], relative error below 1.3e-7; infinity above, NaN for NaN and −∞, 0 for an unseen
// candidate, and `underflow` for other small x.
inline float exp2_approximate(float x, float underflow) {
  const float clamped = std::min(std::max(-126.f, x), 128.f);
  const float shifted = clamped + 12582912.f;  // 1.5 · 2²³: rounds to the nearest whole number
  const int32_t whole = std::bit_cast<int32_t>(shifted) - 0x4B400000;
  const float f = clamped - (shifted - 12582912.f);  // in [-0.5, 0.5]
  const float polynomial =
      1.f + f * (0.693147182f +
                 f * (0.240226462f + f * (0.0555032887f + f * (0.00961848f + f * (0.00133952f + f * 0.00015345f)))));
  const float result = polynomial * std::bit_cast<float>((whole + 127) << 23);
  const bool unseen = (x < kUnseenBelow) & (x > -std::numeric_limits<float>::max());
  const float rest = unseen ? 0.f : std::numeric_limits<float>::quiet_NaN();
  return x >= -126.f ? result : (x > kUnseenBelow ? underflow : rest);
}

// values ← 2^(scale · values − shift); returns their sum.
SCE_FAST_CLONES float exponentials(float* __restrict values, int64_t count, float scale, float shift, float underflow) {
  float sum = 0.f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) {
    const float y = exp2_approximate(values[i] * scale - shift, underflow);
    values[i] = y;
    sum += y;
  }
  return sum;
}

// What brings a partial sum with this shift to a larger one; nothing seen needs no factor.
float rescaling(float sum, float shift, float larger_shift) {
  if (sum == 0.f) return 0.f;
  return shift == larger_shift ? 1.f : exp2_approximate(shift - larger_shift, 0.f);
}

SCE_FAST_CLONES float largest(const float* values, int64_t count) {
  float result = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : result)
  for (int64_t i = 0; i < count; ++i) result = values[i] > result ? values[i] : result;
  return result;
}

SCE_FAST_CLONES void multiply(float* values, int64_t count, float factor) {
  for (int64_t i = 0; i < count; ++i) values[i] *= factor;
}

SCE_FAST_CLONES void add(float* __restrict to, const float* from, int64_t count, float factor) {
  for (int64_t i = 0; i < count; ++i) to[i] += factor * from[i];
}

// ---------------------------------------------------------------------------------------------- inputs

template <typename From>
void convert(const From* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
}

void convert_rows(const Matrix& matrix, int64_t first, int64_t count, int64_t dim, float* to) {
  const int64_t start = first * dim, values = count * dim;
  switch (matrix.type) {
    case Type::kFloat32: return convert(static_cast<const float*>(matrix.data) + start, to, values);
    case Type::kBFloat16: return convert(static_cast<const BFloat16*>(matrix.data) + start, to, values);
    case Type::kFloat16: return convert(static_cast<const Half*>(matrix.data) + start, to, values);
  }
}

std::vector<float> converted(const Matrix& matrix, int64_t dim) {
  std::vector<float> rows(static_cast<size_t>(matrix.rows * dim));
  convert_rows(matrix, 0, matrix.rows, dim, rows.data());
  return rows;
}

// ---------------------------------------------------------------------------------------------- one tile

// out[i] (+)= Σ_k a[i][k] · b[k]: for processors on which ATen has no brgemm.
SCE_FAST_CLONES void plain_product(const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* out,
                                   int64_t out_stride, int64_t rows, int64_t columns, int64_t inner, bool accumulate) {
  for (int64_t i = 0; i < rows; ++i) {
    float* __restrict to = out + i * out_stride;
    if (!accumulate) std::fill_n(to, columns, 0.f);
    for (int64_t k = 0; k < inner; ++k) {
      const float factor = a[i * a_stride + k];
      const float* from = b + k * b_stride;
      for (int64_t j = 0; j < columns; ++j) to[j] += factor * from[j];
    }
  }
}

void product(bool brgemm, const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* out, int64_t out_stride,
             int64_t rows, int64_t columns, int64_t inner, bool accumulate) {
  if (brgemm)
    at::native::cpublas::brgemm(rows, columns, inner, a_stride, b_stride, out_stride, accumulate, a, b, out);
  else
    plain_product(a, a_stride, b, b_stride, out, out_stride, rows, columns, inner, accumulate);
}

// A tile of candidates in the layouts of both products: transposed for the logits, as it is for the outputs. 16-bit
// candidates are widened as they are loaded.
class Tile {
 public:
  Tile(int64_t dim, bool brgemm)
      : dim_(dim), brgemm_(brgemm), transposed_(dim * kTile), rows_(dim * kTile) {}

  void load(const Matrix& candidates, int64_t first, int64_t count) {
    count_ = count;
    if (candidates.type == Type::kFloat32) {
      current_ = static_cast<const float*>(candidates.data) + first * dim_;
    } else {
      convert_rows(candidates, first, count, dim_, rows_.data());
      current_ = rows_.data();
    }
    at::native::utils::transpose<float>(count, dim_, current_, dim_, transposed_.data(), kTile);
  }

  void logits(const float* rows, int64_t count, float* out) const {
    product(brgemm_, rows, dim_, transposed_.data(), kTile, out, kTile, count, count_, dim_, false);
  }

  void accumulate(const float* weights, int64_t count, float* out) const {
    product(brgemm_, weights, kTile, current_, dim_, out, dim_, count, dim_, count_, true);
  }

 private:
  int64_t dim_, count_ = 0;
  bool brgemm_;
  std::vector<float> transposed_, rows_;
  const float* current_ = nullptr;
};

// ---------------------------------------------------------------------------------------------- one pass

// Waking threads for less than this many multiplications takes longer than doing them.
int worthwhile(int64_t multiplications, int threads) { return multiplications < 1'000'000 ? 1 : threads; }

// What a pass gives for a row beside Σ weight · candidate: its weights are 2^(logit − shift), and this is their sum.
struct Partial {
  float shift, sum;
};

// Rows that share a temperature.
struct Group {
  const float* rows;
  int64_t count;
  float scale;  // log₂e / temperature
  int64_t own_offset;  // row i must not see candidate own_offset + i mod batch; −1 for none
  bool needs_output;
};

struct PassResult {
  std::vector<Partial> partials;
  std::vector<float> outputs;  // (rows, dim), not yet divided by the sum
};

class Pass {
 public:
  Pass(const Matrix& candidates, int64_t dim, int64_t batch, std::vector<Group> groups)
      : candidates_(candidates), dim_(dim), batch_(batch), groups_(std::move(groups)) {
    for (size_t g = 0; g < groups_.size(); ++g) {
      for (int64_t first = 0; first < groups_[g].count; first += kRowBlock)
        blocks_.push_back({g, first, std::min(kRowBlock, groups_[g].count - first), rows_ + first});
      rows_ += groups_[g].count;
    }
    tiles_ = (candidates.rows + kTile - 1) / kTile;
    slices_ = std::clamp<int64_t>(kPieces / static_cast<int64_t>(blocks_.size()), 1, tiles_);
  }

  PassResult run(bool brgemm, int threads) {
    partials_.assign(static_cast<size_t>(slices_ * rows_), {});
    outputs_.reset(new float[static_cast<size_t>(slices_ * rows_ * dim_)]);
    const int64_t tasks = slices_ * static_cast<int64_t>(blocks_.size());
    threads = worthwhile(rows_ * candidates_.rows * dim_, static_cast<int>(std::min<int64_t>(threads, tasks)));
#pragma omp parallel num_threads(threads)
    {
      Tile tile(dim_, brgemm);
      std::vector<float> logits(static_cast<size_t>(kRowBlock * kTile));
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < tasks; ++task)
        run_slice(blocks_[static_cast<size_t>(task) % blocks_.size()], task / static_cast<int64_t>(blocks_.size()), tile,
                  logits.data());
      if (brgemm) at::native::cpublas::brgemm_release(false);
    }
    return combined(threads);
  }

 private:
  struct Block {
    size_t group;
    int64_t first, count;  // rows in the group
    int64_t row;           // of the first among all rows of the pass
  };

  void run_slice(const Block& block, int64_t slice, Tile& tile, float* logits) {
    const Group& group = groups_[block.group];
    const float* rows = group.rows + block.first * dim_;
    Partial* partials = partials_.data() + slice * rows_ + block.row;
    float* outputs = outputs_.get() + (slice * rows_ + block.row) * dim_;
    std::fill_n(outputs, block.count * dim_, 0.f);
    const bool fixed = 2.f * group.scale <= kFixedShiftBits;
    // Under a fixed shift nothing that unit rows give underflows: what does is of rows that break the contract, and
    // must not pass for a result.
    const float underflow = fixed ? std::numeric_limits<float>::quiet_NaN() : 0.f;
    for (int64_t i = 0; i < block.count; ++i)
      partials[i] = {fixed ? group.scale : -std::numeric_limits<float>::infinity(), 0.f};
    for (int64_t t = tiles_ * slice / slices_; t < tiles_ * (slice + 1) / slices_; ++t) {
      const int64_t first = t * kTile, count = std::min(kTile, candidates_.rows - first);
      tile.load(candidates_, first, count);
      tile.logits(rows, block.count, logits);
      for (int64_t i = 0; i < block.count; ++i) {
        float* row = logits + i * kTile;
        if (group.own_offset >= 0) {
          const int64_t own = group.own_offset + (block.first + i) % batch_ - first;
          if (own >= 0 && own < count) row[own] = kUnseen;
        }
        if (!fixed) raise_shift(partials[i], largest(row, count) * group.scale, outputs + i * dim_);
        const float shift = std::isinf(partials[i].shift) ? 0.f : partials[i].shift;  // −∞: nothing seen so far
        partials[i].sum += exponentials(row, count, group.scale, shift, underflow);
      }
      if (group.needs_output) tile.accumulate(logits, block.count, outputs);
    }
  }

  void raise_shift(Partial& partial, float maximum, float* output) {
    if (!(maximum > partial.shift) || maximum < kUnseenBelow) return;
    const float factor = rescaling(partial.sum, partial.shift, maximum);
    partial = {maximum, partial.sum * factor};
    multiply(output, dim_, factor);
  }

  // Sums the slices in their order.
  PassResult combined(int threads) {
    PassResult result{std::vector<Partial>(static_cast<size_t>(rows_)),
                      std::vector<float>(static_cast<size_t>(rows_ * dim_), 0.f)};
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows_; ++row) {
      float shift = -std::numeric_limits<float>::infinity();
      for (int64_t s = 0; s < slices_; ++s) shift = std::max(shift, partials_[s * rows_ + row].shift);
      Partial& total = result.partials[row] = {shift, 0.f};
      for (int64_t s = 0; s < slices_; ++s) {
        const Partial& part = partials_[s * rows_ + row];
        const float factor = rescaling(part.sum, part.shift, shift);
        total.sum += factor * part.sum;
        add(result.outputs.data() + row * dim_, outputs_.get() + (s * rows_ + row) * dim_, dim_, factor);
      }
    }
    return result;
  }

  Matrix candidates_;
  int64_t dim_, batch_, rows_ = 0, tiles_ = 0, slices_ = 0;
  std::vector<Group> groups_;
  std::vector<Block> blocks_;
  std::vector<Partial> partials_;
  std::unique_ptr<float[]> outputs_;
};

// ---------------------------------------------------------------------------------------------- all passes

struct Rows {
  std::vector<float> query, key;  // in float32, whatever they came in
};

// The rows of a pass: those of all query views, and those of key views [first_key_view, first_key_view + key_views).
struct Span {
  int64_t first_key_view, key_views;
};

PassResult run_pass(const Problem& p, const Rows& rows, const Matrix& candidates, Span span, bool needs_gradient,
                    int64_t own_offset, bool brgemm, int threads) {
  const int64_t key_rows = p.needs_target ? span.key_views * p.batch : 0;
  const float* key = rows.key.data() + span.first_key_view * p.batch * p.dim;
  std::vector<Group> groups{
      {rows.query.data(), p.query_views * p.batch, kLog2e / p.temperature, own_offset, needs_gradient}};
  if (key_rows > 0) groups.push_back({key, key_rows, kLog2e / p.target_temperature, own_offset, true});
  return Pass(candidates, p.dim, p.batch, std::move(groups)).run(brgemm, threads);
}

// What a row has seen: of the queue, of the batch keys of one view, or of both.
struct Seen {
  float log_sum = -std::numeric_limits<float>::infinity();  // log Σ exp(logit)
  std::vector<float> mean;                                   // softmax-weighted mean of the candidates, (dim,)
};

Seen merge(const PassResult* first, int64_t first_row, const PassResult* second, int64_t second_row, int64_t dim,
           bool with_mean) {
  Seen seen;
  seen.mean.assign(static_cast<size_t>(dim), 0.f);
  float shift = -std::numeric_limits<float>::infinity();
  if (first) shift = std::max(shift, first->partials[first_row].shift);
  if (second) shift = std::max(shift, second->partials[second_row].shift);
  float sum = 0.f;
  const auto take = [&](const PassResult* pass, int64_t row) {
    if (!pass) return;
    const Partial& part = pass->partials[row];
    const float factor = rescaling(part.sum, part.shift, shift);
    sum += factor * part.sum;
    if (with_mean) add(seen.mean.data(), pass->outputs.data() + row * dim, dim, factor);
  };
  take(first, first_row);
  take(second, second_row);
  if (with_mean) multiply(seen.mean.data(), dim, 1.f / sum);
  seen.log_sum = shift * kLn2 + std::log(sum);
  return seen;
}

float dot(const float* a, const float* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += double(a[i]) * b[i];
  return static_cast<float>(sum);
}

// log(exp(a) + exp(b))
float log_add(float a, float b) {
  const float high = std::max(a, b), low = a == a ? std::min(a, b) : a;
  return high + std::log1p(std::exp(low - high));
}

}  // namespace

bool has_brgemm() {
  static const bool answer = [] {
    const float one = 1.f;
    float out = 0.f;
    try {
      at::native::cpublas::brgemm(1, 1, 1, 1, 1, 1, false, &one, &one, &out);
      at::native::cpublas::brgemm_release(false);
    } catch (const std::exception&) {  // ATen asks the processor and has no other way to tell
    }
    return out == 1.f;
  }();
  return answer;
}

void sce_forward(const Problem& p, const Solution& solution, bool brgemm, int threads) {
  const int64_t n = p.batch, d = p.dim;
  const Rows rows{converted(p.query, d), converted(p.key, d)};
  const bool has_queue = p.queue.rows > 0, has_batch = p.batch_keys.rows > 0, gradient = solution.gradient != nullptr;
  PassResult of_queue;
  if (has_queue) of_queue = run_pass(p, rows, p.queue, {0, p.key_views}, gradient, -1, brgemm, threads);
  const int64_t key_base = p.query_views * n;  // in a pass the keys' rows follow the queries'

  int64_t terms = 0;
  for (int64_t u = 0; u < p.key_views; ++u)
    for (int64_t v = 0; v < p.query_views; ++v) terms += !(p.same_views && u == v);
  std::fill_n(solution.rows, n, 0.f);
  std::fill_n(solution.positive_probability, n, 0.f);
  if (gradient) std::fill_n(solution.gradient, p.query_views * n * d, 0.f);

  for (int64_t u = 0; u < p.key_views; ++u) {
    PassResult of_batch;
    if (has_batch) {
      const int64_t m = p.batch_keys.rows / p.key_views;
      const int64_t width = p.batch_keys.type == Type::kFloat32 ? 4 : 2;
      const Matrix candidates{static_cast<const char*>(p.batch_keys.data) + u * m * d * width, p.batch_keys.type, m};
      of_batch = run_pass(p, rows, candidates, {u, 1}, gradient, p.row_offset, brgemm, threads);
    }
    const PassResult *queue = has_queue ? &of_queue : nullptr, *batch = has_batch ? &of_batch : nullptr;
#pragma omp parallel for num_threads(worthwhile(n * p.query_views * d * 8, threads))
    for (int64_t i = 0; i < n; ++i) {
      const float* key = rows.key.data() + (u * n + i) * d;
      Seen teacher{std::numeric_limits<float>::quiet_NaN(), std::vector<float>(static_cast<size_t>(d), 0.f)};
      if (p.needs_target) teacher = merge(queue, key_base + u * n + i, batch, key_base + i, d, true);
      solution.target_entropy[u * n + i] = teacher.log_sum - dot(key, teacher.mean.data(), d) / p.target_temperature;
      // s₀ = 1 / (1 + B): the share of the logit 0 that stands for the own key
      const float own_share = p.zero_logit && p.needs_target ? 1.f / (1.f + std::exp(teacher.log_sum)) : 0.f;
      const float own_weight = p.coefficient + (1.f - p.coefficient) * own_share;
      const float others_weight = (1.f - p.coefficient) * (1.f - own_share);
      for (int64_t v = 0; v < p.query_views; ++v) {
        if (p.same_views && u == v) continue;
        const int64_t row = v * n + i;
        const float* query = rows.query.data() + row * d;
        const Seen student = merge(queue, row, batch, row, d, gradient);
        const float own = dot(query, key, d) / p.temperature;
        const float log_partition = log_add(student.log_sum, own);
        const float own_probability = std::exp(own - log_partition);
        const float expected = dot(query, teacher.mean.data(), d) / p.temperature;
        solution.rows[i] += (log_partition - own_weight * own - others_weight * expected) / float(terms);
        solution.positive_probability[i] += own_probability / float(terms);
        if (!gradient) continue;
        const float factor = 1.f / (p.temperature * float(terms));
        float* to = solution.gradient + row * d;
        add(to, student.mean.data(), d, factor * (1.f - own_probability));
        add(to, teacher.mean.data(), d, -factor * others_weight);
        add(to, key, d, factor * (own_probability - own_weight));
      }
    }
  }
}

}  // namespace sce_fast
