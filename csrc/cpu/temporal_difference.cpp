#include "temporal_difference.h"

#include "clones.h"

namespace sce_fast {

// In integers, thousandths of a grey level, so that nothing but the result is rounded.
SCE_FAST_CLONES void temporal_difference(const uint8_t* frame, const uint8_t* neighbour, uint8_t* output,
                                         int64_t pixels) {
  for (int64_t i = 0; i < 3 * pixels; i += 3) {
    const int32_t difference = 299 * (frame[i] - neighbour[i]) + 587 * (frame[i + 1] - neighbour[i + 1]) +
                               114 * (frame[i + 2] - neighbour[i + 2]);
    const auto value = static_cast<uint8_t>((difference + 256000) / 2000);
    output[i] = output[i + 1] = output[i + 2] = value;
  }
}

}  // namespace sce_fast
