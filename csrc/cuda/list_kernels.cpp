// list_kernels GPU SHARED_KIB
// Prints the kernels that serve a GPU of this compute capability (90 for 9.0) whose blocks may request so many KiB of
// shared memory: one JSON line each, with the dynamic shared memory, which ptxas does not report. Needs no CUDA:
// g++ -std=c++20 list_kernels.cpp
#include <cstdio>
#include <cstdlib>

#include "plan.h"

int main(int count, char** arguments) {
  using namespace sce_fast;
  if (count != 3) {
    fprintf(stderr, "usage: list_kernels GPU SHARED_KIB\n");
    return 2;
  }
  const Limits limits{1, atoi(arguments[2]) << 10, atoi(arguments[1])};
  const bool hopper = choose_kernel(Kernel::kBest, limits) == Kernel::kSm90;
  try {
    for (int32_t dim = 64; dim <= kLargestDim; dim += 64) {
      const Config& c = kConfigs[config_index(kConfigs, dim, limits)];
      // The numbers are the template arguments at the end of the demangled name.
      printf(
          "{\"kernel\": \"sm80_forward_pass\", \"dim\": %d, \"rows\": %d, \"row_tiles\": %d, \"tile\": %d, "
          "\"stages\": %d, \"threads\": %d, \"shared_bytes\": %d}\n",
          c.dim, c.rows, c.row_tiles, c.tile, c.stages, c.threads(), c.shared_bytes());
    }
    for (const HopperConfig& c : kHopperConfigs) {
      if (!hopper) break;
      printf("{\"kernel\": \"sm90_products\", \"dim\": %d, \"tile\": %d, \"threads\": 128, \"shared_bytes\": %d}\n",
             c.dim, c.tile, HopperConfig{c.dim, c.tile, 1, false}.shared_bytes());
      printf(
          "{\"kernel\": \"sm90_forward_pass\", \"dim\": %d, \"tile\": %d, \"stages\": %d, \"threads\": %d, "
          "\"shared_bytes\": %d}\n",
          c.dim, c.tile, c.stages, kHopperThreads, c.shared_bytes());
    }
    printf("{\"kernel\": \"combine_kernel\", \"dim\": %d, \"threads\": %d, \"shared_bytes\": %d}\n", kLargestDim,
           combine_threads(kLargestDim), combine_shared_bytes(combine_threads(kLargestDim)));
    for (const char* kernel : {"enqueue_rows", "advance_cursor"})
      printf("{\"kernel\": \"%s\", \"shared_bytes\": 0}\n", kernel);
  } catch (const std::exception& error) {
    fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
