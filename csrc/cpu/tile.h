// A tile of candidates in the layouts of the forward pass's two products, and these products.
#pragma once

#include <cstdint>

#include "../problem.h"
#include "buffer.h"

namespace sce_fast {

// So many candidates: a tile, its transposed copy and the logits of a block of rows (forward_pass.cpp) fit a second-level
// cache of 512 KiB up to D 256. Twice as many are 3% slower there and 2% faster with 2 MiB (Zen 3, Emerald Rapids).
constexpr int64_t kTile = 128;

// How tiles are multiplied: by ATen's brgemm or, where it is missing, by plain loops; in float32 or, for bfloat16
// candidates, in bfloat16 with float32 sums (AMX, AVX-512).
struct Products {
  bool brgemm, bfloat16;
};

// Returns whether ATen's brgemm multiplies tiles of this type correctly on this processor; it multiplies some to find
// out.
bool has_brgemm(bool bfloat16);

// The rows of a matrix in the type of the products; without a copy if the matrix has this type.
class ProductRows {
 public:
  ProductRows(const Matrix& matrix, int64_t dim, bool bfloat16);
  const void* at(int64_t row) const { return static_cast<const char*>(data_) + row * row_bytes_; }

 private:
  const void* data_;
  int64_t row_bytes_;
  Buffer<float> widened_;
  Buffer<uint16_t> narrow_;
};

// Writes `count` rows in float32.
void widen_rows(const Matrix& matrix, int64_t first, int64_t count, int64_t dim, float* to);

// A tile of up to `candidates` candidates, and memory for the weights of `rows` rows. Belongs to one thread.
class Tile {
 public:
  Tile(int64_t dim, int64_t rows, int64_t candidates, Products products);

  void load(const Matrix& candidates, int64_t first, int64_t count);
  // logits = rows · candidatesᵀ of `count` rows; a row of logits has `stride_` places.
  void multiply(const void* rows, int64_t count);
  float* logits(int64_t row) { return logits_.get() + row * stride_; }
  uint16_t* narrow_weights(int64_t row) { return narrow_weights_.get() + row * stride_; }
  // out (count, dim) += weights · candidates, with weights from logits() or, in bfloat16, from narrow_weights().
  void accumulate(int64_t count, float* out);
  // Releases the state that brgemm keeps for the calling thread.
  void release() const;

 private:
  void load_pairs(const uint16_t* rows, int64_t count);

  int64_t dim_, stride_, count_ = 0;
  Products products_;
  Buffer<float> logits_, widened_, transposed_;
  const float* rows_ = nullptr;  // (count, dim)
  // bfloat16: pairs of dimensions side by side for the logits, (dim / 2, stride, 2); pairs of candidates side by side
  // for the outputs, (stride / 2, dim, 2)
  Buffer<uint16_t> narrow_weights_, dimension_pairs_, candidate_pairs_;
};

}  // namespace sce_fast
