#include "gaussian_blur.h"

#include <cmath>
#include <vector>

#include "clones.h"

namespace sce_fast {
namespace {

std::vector<float> window(float sigma) {
  const int radius = static_cast<int>(std::ceil(3.f * sigma));
  std::vector<float> weights(static_cast<size_t>(2 * radius + 1));
  double total = 0;
  for (int i = -radius; i <= radius; ++i) total += std::exp(-0.5 * i * i / (double(sigma) * sigma));
  for (int i = -radius; i <= radius; ++i)
    weights[static_cast<size_t>(i + radius)] =
        static_cast<float>(std::exp(-0.5 * i * i / (double(sigma) * sigma)) / total);
  return weights;
}

// -1 → 1, size → size − 2, and so on for windows wider than the image.
int64_t mirrored(int64_t i, int64_t size) {
  if (size == 1) return 0;
  const int64_t period = 2 * (size - 1);
  i = ((i % period) + period) % period;
  return i < size ? i : period - i;
}

// out[i] = Σ_k weights[k] · rows[k][i]: blurs along a row (rows shifted by one pixel each) and across rows.
SCE_FAST_CLONES void weighted_sum(float* __restrict out, const float* const* rows, const float* weights, int taps,
                                  int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = weights[0] * rows[0][i];
  for (int k = 1; k < taps; ++k) {
    const float* row = rows[k];
    const float weight = weights[k];
    for (int64_t i = 0; i < count; ++i) out[i] += weight * row[i];
  }
}

SCE_FAST_CLONES void to_float(const uint8_t* from, float* __restrict to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

SCE_FAST_CLONES void to_byte(const float* from, uint8_t* __restrict to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<uint8_t>(from[i] + 0.5f);
}

}  // namespace

void gaussian_blur(uint8_t* image, int64_t height, int64_t width, float sigma) {
  const std::vector<float> weights = window(sigma);
  const int taps = static_cast<int>(weights.size());
  const int64_t radius = taps / 2, row_length = 3 * width;
  thread_local std::vector<float> padded, blurred, result;
  padded.resize(static_cast<size_t>(3 * (width + 2 * radius)));
  blurred.resize(static_cast<size_t>(height * row_length));
  result.resize(static_cast<size_t>(row_length));
  std::vector<const float*> rows(weights.size());

  for (int64_t y = 0; y < height; ++y) {
    to_float(image + y * row_length, padded.data() + 3 * radius, row_length);
    for (int64_t x = -radius; x < 0; ++x)
      for (int c = 0; c < 3; ++c) {
        padded[3 * (radius + x) + c] = padded[3 * (radius + mirrored(x, width)) + c];
        const int64_t right = width - 1 - x;
        padded[3 * (radius + right) + c] = padded[3 * (radius + mirrored(right, width)) + c];
      }
    for (int k = 0; k < taps; ++k) rows[k] = padded.data() + 3 * k;
    weighted_sum(blurred.data() + y * row_length, rows.data(), weights.data(), taps, row_length);
  }
  for (int64_t y = 0; y < height; ++y) {
    for (int k = 0; k < taps; ++k) rows[k] = blurred.data() + mirrored(y + k - radius, height) * row_length;
    weighted_sum(result.data(), rows.data(), weights.data(), taps, row_length);
    to_byte(result.data(), image + y * row_length, row_length);
  }
}

}  // namespace sce_fast
