#include "color_jitter.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "clones.h"

namespace sce_fast {
namespace {

constexpr int kLanes = 16;
// A block of three float planes stays in the first-level cache through all operations.
constexpr int kBlock = 2048;

struct Block {
  alignas(64) float r[kBlock], g[kBlock], b[kBlock];
};

inline float grey(float r, float g, float b) { return 0.299f * r + 0.587f * g + 0.114f * b; }
inline float clamp255(float x) { return std::min(std::max(x, 0.f), 255.f); }

SCE_FAST_CLONES void load(Block& x, const uint8_t* pixel, int count) {
  for (int i = 0; i < count; ++i) {
    x.r[i] = pixel[3 * i];
    x.g[i] = pixel[3 * i + 1];
    x.b[i] = pixel[3 * i + 2];
  }
}

SCE_FAST_CLONES void store(const Block& x, uint8_t* pixel, int count) {
  for (int i = 0; i < count; ++i) {
    pixel[3 * i] = static_cast<uint8_t>(x.r[i] + 0.5f);
    pixel[3 * i + 1] = static_cast<uint8_t>(x.g[i] + 0.5f);
    pixel[3 * i + 2] = static_cast<uint8_t>(x.b[i] + 0.5f);
  }
}

// x ← factor · x + to_grey · grey(x) + constant: the form of brightness, contrast, saturation and grayscale.
SCE_FAST_CLONES void blend(Block& x, int count, float factor, float to_grey, float constant) {
  for (int i = 0; i < count; ++i) {
    const float add = to_grey * grey(x.r[i], x.g[i], x.b[i]) + constant;
    x.r[i] = clamp255(factor * x.r[i] + add);
    x.g[i] = clamp255(factor * x.g[i] + add);
    x.b[i] = clamp255(factor * x.b[i] + add);
  }
}

// RGB → HSV, h ← h + turn, → RGB in closed form: channel n of (5, 3, 1) is v − c · clamp(min(k, 4 − k), 0, 1) with
// k = (n + 6h) mod 6, v the maximum and c the range of the three channels.
SCE_FAST_CLONES void turn_hue(Block& x, int count, float turn) {
  const float shift = 6.f * (turn - static_cast<float>(turn < 0.f ? -1 : 0));  // in [0, 6]
  for (int i = 0; i < count; ++i) {
    const float r = x.r[i], g = x.g[i], b = x.b[i];
    const float v = std::max(std::max(r, g), b);
    const float c = v - std::min(std::min(r, g), b);
    const float inverse = 1.f / std::max(c, 1e-3f);  // a grey pixel has c = 0 and keeps its value whatever h is
    const float sector = v == r ? (g - b) * inverse : (v == g ? (b - r) * inverse + 2.f : (r - g) * inverse + 4.f);
    const float h = sector + shift;  // in [-1, 11]
    const auto channel = [&](float n) {
      float k = h + n;  // in [0, 16]
      k -= k >= 12.f ? 12.f : (k >= 6.f ? 6.f : 0.f);
      return v - c * std::min(std::max(std::min(k, 4.f - k), 0.f), 1.f);
    };
    x.r[i] = channel(5.f);
    x.g[i] = channel(3.f);
    x.b[i] = channel(1.f);
  }
}

// Adds the greys of a block to sixteen running sums, so that every instruction set adds in the same order.
SCE_FAST_CLONES void add_grey(const Block& x, int count, float* lane) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lane[j] += grey(x.r[i + j], x.g[i + j], x.b[i + j]);
  for (; i < count; ++i) lane[i % kLanes] += grey(x.r[i], x.g[i], x.b[i]);
}

void apply(Block& x, int count, int32_t operation, float factor, float grey_mean) {
  switch (operation) {
    case kBrightness: return blend(x, count, factor, 0.f, 0.f);
    case kContrast: return blend(x, count, factor, 0.f, (1.f - factor) * grey_mean);
    case kSaturation: return blend(x, count, factor, 1.f - factor, 0.f);
    case kHue: return turn_hue(x, count, factor);
    case kGrayscale: return blend(x, count, 0.f, 1.f, 0.f);
    default: return;
  }
}

}  // namespace

void color_jitter(const uint8_t* input, uint8_t* output, int64_t pixels, const int32_t* operations,
                  const float* factors, int count) {
  if (std::all_of(operations, operations + count, [](int32_t o) { return o == kNone; })) {
    std::memcpy(output, input, static_cast<size_t>(3 * pixels));
    return;
  }
  // Contrast needs the mean over the whole image after the operations before it: one pass over the blocks computes the
  // mean, another starts again. Two passes in cache are cheaper than one with float planes of the whole image.
  std::vector<float> grey_means(static_cast<size_t>(count), 0.f);
  thread_local Block x;
  const auto run = [&](int64_t first, int size, int until) {
    load(x, input + 3 * first, size);
    for (int k = 0; k < until; ++k) apply(x, size, operations[k], factors[k], grey_means[static_cast<size_t>(k)]);
  };
  const auto for_each_block = [&](auto&& body) {
    for (int64_t first = 0; first < pixels; first += kBlock)
      body(first, static_cast<int>(std::min<int64_t>(kBlock, pixels - first)));
  };
  for (int k = 0; k < count; ++k) {
    if (operations[k] != kContrast) continue;
    double total = 0;
    for_each_block([&](int64_t first, int size) {
      float lane[kLanes] = {};
      run(first, size, k);
      add_grey(x, size, lane);
      for (float sum : lane) total += sum;
    });
    grey_means[static_cast<size_t>(k)] = static_cast<float>(total / static_cast<double>(pixels));
  }
  for_each_block([&](int64_t first, int size) {
    run(first, size, count);
    store(x, output + 3 * first, size);
  });
}

}  // namespace sce_fast
