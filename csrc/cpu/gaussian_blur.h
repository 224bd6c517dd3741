// Gaussian blur of one RGB image in place. No torch header here.
#pragma once

#include <cstdint>

namespace sce_fast {

// Takes sigma > 0 in pixels. The window reaches ceil(3 sigma) to each side, and the border is mirrored without
// repeating the edge (numpy's "reflect"). Computed in float and rounded once.
void gaussian_blur(uint8_t* image, int64_t height, int64_t width, float sigma);

}  // namespace sce_fast
