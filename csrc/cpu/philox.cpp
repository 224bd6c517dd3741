#include "philox.h"

#include "clones.h"

namespace sce_fast {

SCE_FAST_CLONES void random_words(const RandomBlock& block, const int64_t* samples, const int64_t* views,
                                  int64_t view_step, int64_t count, uint64_t* first, uint64_t* second) {
  const RandomBlock shared = block;
  for (int64_t i = 0; i < count; ++i) {
    const auto sample = static_cast<uint64_t>(samples[i]);
    uint32_t counter0 = static_cast<uint32_t>(sample), counter1 = static_cast<uint32_t>(sample >> 32);
    uint32_t counter2 = static_cast<uint32_t>(views[i * view_step]) << 16 | shared.purpose, counter3 = shared.number;
    uint32_t key0 = shared.seed, key1 = shared.epoch;
    for (int round = 0; round < 10; ++round) {
      const uint64_t product0 = uint64_t{0xD2511F53} * counter0, product1 = uint64_t{0xCD9E8D57} * counter2;
      counter0 = static_cast<uint32_t>(product1 >> 32) ^ counter1 ^ key0;
      counter2 = static_cast<uint32_t>(product0 >> 32) ^ counter3 ^ key1;
      counter1 = static_cast<uint32_t>(product1);
      counter3 = static_cast<uint32_t>(product0);
      key0 += 0x9E3779B9;
      key1 += 0xBB67AE85;
    }
    first[i] = uint64_t{counter0} << 32 | counter1;
    second[i] = uint64_t{counter2} << 32 | counter3;
  }
}

}  // namespace sce_fast
