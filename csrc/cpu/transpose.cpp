#include "transpose.h"

#include "clones.h"

// Elements of two vectors by their place in both. Clang has only the first builtin, GCC before 12 only the second.
#ifdef __clang__
#define SCE_FAST_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SCE_FAST_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Places{__VA_ARGS__})
#endif

namespace sce_fast {
namespace {

constexpr int64_t kEdge = 4;          // of the blocks that are transposed in registers
constexpr int64_t kRows = 4 * kEdge;  // blocks below one another fill whole cache lines of the result

typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t Places __attribute__((vector_size(16)));

SCE_FAST_INLINE void transpose_block(const float* from, int64_t columns, float* to, int64_t stride) {
  Four rows[kEdge], pairs[kEdge];
  for (int64_t r = 0; r < kEdge; ++r) rows[r] = *reinterpret_cast<const Four*>(from + r * columns);
  for (int64_t r = 0; r < kEdge; r += 2) {
    pairs[r] = SCE_FAST_SHUFFLE(rows[r], rows[r + 1], 0, 4, 1, 5);
    pairs[r + 1] = SCE_FAST_SHUFFLE(rows[r], rows[r + 1], 2, 6, 3, 7);
  }
  for (int64_t c = 0; c < kEdge; c += 2) {
    *reinterpret_cast<Four*>(to + c * stride) = SCE_FAST_SHUFFLE(pairs[c / 2], pairs[c / 2 + 2], 0, 1, 4, 5);
    *reinterpret_cast<Four*>(to + (c + 1) * stride) = SCE_FAST_SHUFFLE(pairs[c / 2], pairs[c / 2 + 2], 2, 3, 6, 7);
  }
}

}  // namespace

SCE_FAST_CLONES void transpose(const float* from, int64_t rows, int64_t columns, float* to, int64_t stride) {
  const int64_t block_rows = rows / kRows * kRows, block_columns = columns / kEdge * kEdge;
  for (int64_t i = 0; i < block_rows; i += kRows) {
    for (int64_t j = 0; j < block_columns; j += kEdge)
      for (int64_t k = i; k < i + kRows; k += kEdge)
        transpose_block(from + k * columns + j, columns, to + j * stride + k, stride);
    for (int64_t j = block_columns; j < columns; ++j)
      for (int64_t k = i; k < i + kRows; ++k) to[j * stride + k] = from[k * columns + j];
  }
  for (int64_t i = block_rows; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) to[j * stride + i] = from[i * columns + j];
}

}  // namespace sce_fast
