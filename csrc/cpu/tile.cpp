#include "tile.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <exception>

#include "brgemm.h"
#include "clones.h"
#include "exponentials.h"
#include "transpose.h"

namespace sce_fast {
namespace {

SCE_FAST_CLONES void widen_bfloat16(const uint16_t* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = widened(from[i]);
}

// The exponents of float16 and float32 differ by 112. Below 2^-14, the value is the mantissa's 10 bits times 2^-24, which
// are the last bits of a number from 0.5 on.
SCE_FAST_CLONES void widen_float16(const uint16_t* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t sign = (uint32_t{from[i]} & 0x8000) << 16, rest = from[i] & 0x7fff;
    // The largest exponent, of infinity and NaN, becomes the largest again: 2^112 is multiplied on by 2^-112.
    const float normal = std::bit_cast<float>((rest << 13) + (0xe0u << 23)) * 0x1p-112f;
    const float small = std::bit_cast<float>(rest | (126u << 23)) - 0.5f;
    to[i] = std::bit_cast<float>(sign | std::bit_cast<uint32_t>(rest < 0x400 ? small : normal));
  }
}

// A block of columns is summed in registers before it is added to the output: long sums lose less.
constexpr int64_t kColumns = 32;

void store(const float* sums, float* to, int64_t count, bool accumulate) {
  for (int64_t j = 0; j < count; ++j) to[j] = accumulate ? to[j] + sums[j] : sums[j];
}

// out[i] (+)= Σ_k a[i][k] · b[k]
SCE_FAST_CLONES void plain_product(const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* out,
                                   int64_t out_stride, int64_t rows, int64_t columns, int64_t inner, bool accumulate) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t first = 0; first < columns; first += kColumns) {
      const int64_t count = std::min(kColumns, columns - first);
      float sums[kColumns] = {};
      for (int64_t k = 0; k < inner; ++k) {
        const float factor = a[i * a_stride + k];
        const float* from = b + k * b_stride + first;
        if (count == kColumns)
          for (int64_t j = 0; j < kColumns; ++j) sums[j] += factor * from[j];
        else
          for (int64_t j = 0; j < count; ++j) sums[j] += factor * from[j];
      }
      store(sums, out + i * out_stride + first, count, accumulate);
    }
  }
}

// The same in bfloat16, with rows k and k + 1 of b side by side.
SCE_FAST_CLONES void plain_product(const uint16_t* a, int64_t a_stride, const uint16_t* b, int64_t b_stride, float* out,
                                   int64_t out_stride, int64_t rows, int64_t columns, int64_t inner, bool accumulate) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t first = 0; first < columns; first += kColumns) {
      const int64_t count = std::min(kColumns, columns - first);
      float sums[kColumns] = {};
      for (int64_t k = 0; k < inner; k += 2) {
        const float left = widened(a[i * a_stride + k]), right = widened(a[i * a_stride + k + 1]);
        const uint16_t* from = b + k * b_stride + 2 * first;
        for (int64_t j = 0; j < count; ++j) sums[j] += left * widened(from[2 * j]) + right * widened(from[2 * j + 1]);
      }
      store(sums, out + i * out_stride + first, count, accumulate);
    }
  }
}

void brgemm(const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* out, int64_t out_stride,
            int64_t rows, int64_t columns, int64_t inner, bool accumulate) {
  find_brgemm()->float32(rows, columns, inner, a_stride, b_stride, out_stride, accumulate, a, b, out, false);
}

void brgemm(const uint16_t* a, int64_t a_stride, const uint16_t* b, int64_t b_stride, float* out, int64_t out_stride,
            int64_t rows, int64_t columns, int64_t inner, bool accumulate) {
  find_brgemm()->bfloat16(rows, columns, inner, a_stride, b_stride, out_stride, accumulate, a, b, out, true);
}

template <typename T>
void product(bool with_brgemm, const T* a, int64_t a_stride, const T* b, int64_t b_stride, float* out,
             int64_t out_stride, int64_t rows, int64_t columns, int64_t inner, bool accumulate) {
  if (with_brgemm)
    brgemm(a, a_stride, b, b_stride, out, out_stride, rows, columns, inner, accumulate);
  else
    plain_product(a, a_stride, b, b_stride, out, out_stride, rows, columns, inner, accumulate);
}

// Returns whether brgemm agrees with the plain loops on a small product in the layouts of a tile.
template <typename T>
bool brgemm_agrees(const T* values) {
  if (find_brgemm() == nullptr) return false;
  constexpr int64_t kRows = 3, kColumns = 5, kInner = 4;
  float expected[kRows * kColumns], found[kRows * kColumns] = {};
  plain_product(values, kInner, values, kColumns, expected, kColumns, kRows, kColumns, kInner, false);
  try {
    brgemm(values, kInner, values, kColumns, found, kColumns, kRows, kColumns, kInner, false);
    find_brgemm()->release(sizeof(T) == 2);
  } catch (const std::exception&) {  // how ATen reports that the processor lacks it
    return false;
  }
  return std::equal(expected, expected + kRows * kColumns, found,
                    [](float x, float y) { return std::abs(x - y) < 1e-3f; });
}

}  // namespace

bool has_brgemm(bool bfloat16) {
  static const bool answers[2] = {
      [] {
        float values[20];
        for (int i = 0; i < 20; ++i) values[i] = 0.25f * static_cast<float>(i - 7);
        return brgemm_agrees(values);
      }(),
      [] {
        uint16_t values[20];
        for (int i = 0; i < 20; ++i) {
          const float value = 0.25f * static_cast<float>(i - 7);
          round_to_bfloat16(&value, values + i, 1);
        }
        return brgemm_agrees(values);
      }(),
  };
  return answers[bfloat16];
}

void widen_rows(const Matrix& matrix, int64_t first, int64_t count, int64_t dim, float* to) {
  const int64_t start = first * dim, values = count * dim;
  switch (matrix.type) {
    case Type::kFloat32: std::copy_n(static_cast<const float*>(matrix.data) + start, values, to); return;
    case Type::kBFloat16: return widen_bfloat16(static_cast<const uint16_t*>(matrix.data) + start, to, values);
    case Type::kFloat16: return widen_float16(static_cast<const uint16_t*>(matrix.data) + start, to, values);
  }
}

ProductRows::ProductRows(const Matrix& matrix, int64_t dim, bool bfloat16)
    : data_(matrix.data), row_bytes_(dim * (bfloat16 ? 2 : 4)) {
  if (matrix.type == (bfloat16 ? Type::kBFloat16 : Type::kFloat32)) return;
  Buffer<float> widened = allocate<float>(matrix.rows * dim);
  widen_rows(matrix, 0, matrix.rows, dim, widened.get());
  if (bfloat16) {
    narrow_ = allocate<uint16_t>(matrix.rows * dim);
    round_to_bfloat16(widened.get(), narrow_.get(), matrix.rows * dim);
    data_ = narrow_.get();
  } else {
    widened_ = std::move(widened);
    data_ = widened_.get();
  }
}

namespace {

// Rows of a transposed tile start at cache lines.
constexpr int64_t kLine = 16;

SCE_FAST_CLONES void interleave(const uint16_t* first, const uint16_t* second, uint16_t* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    to[2 * i] = first[i];
    to[2 * i + 1] = second[i];
  }
}

}  // namespace

Tile::Tile(int64_t dim, int64_t rows, int64_t candidates, Products products)
    : dim_(dim), stride_((candidates + kLine - 1) / kLine * kLine), products_(products),
      logits_(allocate<float>(rows * stride_)) {
  if (products.bfloat16) {
    narrow_weights_ = allocate<uint16_t>(rows * stride_);
    dimension_pairs_ = allocate<uint16_t>(dim * stride_);
    candidate_pairs_ = allocate<uint16_t>(dim * stride_);
  } else {
    widened_ = allocate<float>(dim * stride_);
    transposed_ = allocate<float>(dim * stride_);
  }
}

void Tile::load(const Matrix& candidates, int64_t first, int64_t count) {
  count_ = count;
  const char* data = static_cast<const char*>(candidates.data) + first * dim_ * bytes_of(candidates.type);
  if (products_.bfloat16) return load_pairs(reinterpret_cast<const uint16_t*>(data), count);
  rows_ = reinterpret_cast<const float*>(data);
  if (candidates.type != Type::kFloat32) {
    widen_rows(candidates, first, count, dim_, widened_.get());
    rows_ = widened_.get();
  }
  transpose(rows_, count, dim_, transposed_.get(), stride_);
}

void Tile::load_pairs(const uint16_t* rows, int64_t count) {
  // A pair of dimensions is four bytes that move together, like the bits of a float.
  transpose(reinterpret_cast<const float*>(rows), count, dim_ / 2, reinterpret_cast<float*>(dimension_pairs_.get()),
            stride_);
  for (int64_t i = 0; i + 1 < count; i += 2)
    interleave(rows + i * dim_, rows + (i + 1) * dim_, candidate_pairs_.get() + i * dim_, dim_);
  if (count % 2)
    for (int64_t j = 0; j < dim_; ++j) {
      candidate_pairs_[(count - 1) * dim_ + 2 * j] = rows[(count - 1) * dim_ + j];
      candidate_pairs_[(count - 1) * dim_ + 2 * j + 1] = 0;
    }
}

void Tile::multiply(const void* rows, int64_t count) {
  if (products_.bfloat16)
    product(products_.brgemm, static_cast<const uint16_t*>(rows), dim_, dimension_pairs_.get(), stride_, logits_.get(),
            stride_, count, count_, dim_, false);
  else
    product(products_.brgemm, static_cast<const float*>(rows), dim_, transposed_.get(), stride_, logits_.get(), stride_,
            count, count_, dim_, false);
}

void Tile::accumulate(int64_t count, float* out) {
  if (!products_.bfloat16)
    return product(products_.brgemm, logits_.get(), stride_, rows_, dim_, out, dim_, count, dim_, count_, true);
  const int64_t pairs = (count_ + 1) / 2 * 2;  // an odd last candidate is paired with a zero of weight zero
  if (pairs > count_)
    for (int64_t i = 0; i < count; ++i) narrow_weights(i)[count_] = 0;
  product(products_.brgemm, narrow_weights_.get(), stride_, candidate_pairs_.get(), dim_, out, dim_, count, dim_, pairs,
          true);
}

void Tile::release() const {
  if (products_.brgemm) find_brgemm()->release(products_.bfloat16);
}

}  // namespace sce_fast
