// Transposition of a tile of candidates.
#pragma once

#include <cstdint>

namespace sce_fast {

// to[j · stride + i] = from[i · columns + j] for all i < rows and j < columns. Only bits are moved, so pairs of 16-bit
// values may pass as floats.
void transpose(const float* from, int64_t rows, int64_t columns, float* to, int64_t stride);

}  // namespace sce_fast
