// A tile of candidates in the layouts of both products of the pass, and the products.
#pragma once

#include <cstdint>

#include "../problem.h"
#include "buffer.h"

namespace sce_fast {

constexpr int64_t kTile = 128;

// How tiles are multiplied: by ATen's brgemm, or by plain loops where it does not serve this processor; in float32, or
// in bfloat16 with float32 sums (AMX, AVX-512), where the candidates are.
struct Products {
  bool brgemm, bfloat16;
};

// Whether ATen's brgemm multiplies tiles of that type correctly on this processor: asked by multiplying some.
bool has_brgemm(bool bfloat16);

// Rows of one matrix in the products' type: the very memory of the matrix where it is of that type already.
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

// (count, dim) of any type in float32.
void widen_rows(const Matrix& matrix, int64_t first, int64_t count, int64_t dim, float* to);

// A tile of up to kTile candidates and room for the weights of `rows` rows. Belongs to one thread.
class Tile {
 public:
  Tile(int64_t dim, int64_t rows, Products products);

  void load(const Matrix& candidates, int64_t first, int64_t count);
  // rows · candidatesᵀ of `count` rows; a row of logits has kTile places.
  void multiply(const void* rows, int64_t count);
  float* logits(int64_t row) { return logits_.get() + row * kTile; }
  uint16_t* narrow_weights(int64_t row) { return narrow_weights_.get() + row * kTile; }
  // out (count, dim) += weights · candidates, the weights standing in logits() or, for bfloat16, in narrow_weights().
  void accumulate(int64_t count, float* out);
  // brgemm keeps a state of the thread, which has to be let go in that thread.
  void release() const;

 private:
  void load_pairs(const uint16_t* rows, int64_t count);

  int64_t dim_, count_ = 0;
  Products products_;
  Buffer<float> logits_, widened_, transposed_;
  const float* rows_ = nullptr;  // (count, dim)
  // bfloat16: pairs of dimensions side by side for the logits, (dim / 2, kTile, 2); pairs of candidates side by side
  // for the outputs, (kTile / 2, dim, 2)
  Buffer<uint16_t> narrow_weights_, dimension_pairs_, candidate_pairs_;
};

}  // namespace sce_fast
