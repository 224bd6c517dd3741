// The colour operations of contrastive augmentation on one image, in any order. No torch header here.
#pragma once

#include <cstdint>

namespace sce_fast {

// The codes of ColorOperation in sce_fast/data/image/plan.py.
enum ColorOperation : int32_t {
  kNone = -1,
  kBrightness = 0,  // factor: x f
  kContrast = 1,    // factor: blend with the mean of the image's grey
  kSaturation = 2,  // factor: blend with the pixel's grey
  kHue = 3,         // factor: turn of the HSV hue, in revolutions
  kGrayscale = 4,   // no factor
};

// Applies operations[0..count) with factors[0..count) to an RGB image of `pixels` interleaved uint8 pixels.
// Each operation means the same as in torchvision. All are computed in float, and the result is rounded once.
void color_jitter(const uint8_t* input, uint8_t* output, int64_t pixels, const int32_t* operations,
                  const float* factors, int count);

}  // namespace sce_fast
