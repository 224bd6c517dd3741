// The difference of two RGB frames as a grey image. No torch header here.
#pragma once

#include <cstdint>

namespace sce_fast {

// output = (grey(frame) − grey(neighbour) + 255) / 2 in three equal channels, for `pixels` interleaved uint8 pixels.
// Greys have the weights of color_jitter. The exact value is rounded once, halves upwards, so equal frames give 128.
void temporal_difference(const uint8_t* frame, const uint8_t* neighbour, uint8_t* output, int64_t pixels);

}  // namespace sce_fast
