// Random words of the counter-based generator Philox4x32-10 (Salmon et al., SC 2011). No torch header here.
#pragma once

#include <cstdint>

namespace sce_fast {

// What the counters of a block of words share: the key, and the purpose and number of the block.
struct RandomBlock {
  uint32_t seed, epoch;
  uint32_t purpose, number;
};

// first, second ← two words of 64 bits for each of `count` samples, as random_words of sce_fast/util/philox.py.
// A sample's view is views[i * view_step].
void random_words(const RandomBlock& block, const int64_t* samples, const int64_t* views, int64_t view_step,
                  int64_t count, uint64_t* first, uint64_t* second);

}  // namespace sce_fast
