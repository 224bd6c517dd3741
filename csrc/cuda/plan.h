// How the forward pass is cut into blocks: pure functions of sizes and of the GPU's limits, free of CUDA.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace sce_fast {

constexpr int32_t kWarpSize = 32;

// A compiled shape of sm80_forward_pass.
struct Config {
  int32_t dim;        // D; smaller ones are padded with zeros
  int32_t rows;       // of a block
  int32_t row_tiles;  // of 16 rows, of a warp
  int32_t tile;       // candidates in a tile
  int32_t stages;     // tiles in the ring

  constexpr int32_t threads() const { return rows / (16 * row_tiles) * kWarpSize; }
  // For the rows and the ring of tiles.
  constexpr int32_t shared_bytes() const { return 2 * dim * (rows + stages * tile); }
};

// For each D, the fastest first. All but the larger shape for D = 256 fit the 99 KiB of sm_86, sm_89 and sm_120. A warp
// with 32 rows reads each tile half as often from shared memory; its sums fit the registers up to D = 128.
constexpr Config kConfigs[] = {
    {64, 128, 2, 64, 4}, {128, 128, 2, 32, 4}, {192, 128, 1, 64, 2}, {256, 128, 1, 48, 4}, {256, 128, 1, 32, 2},
};

// A compiled shape of sm90_forward_pass: two warpgroups of 64 rows, and one that fills the ring.
struct HopperConfig {
  int32_t dim;     // D; smaller ones are padded with zeros
  int32_t tile;    // candidates in a tile
  int32_t stages;  // tiles in the ring
  bool turns;      // the two warpgroups take turns on the tensor cores

  constexpr int32_t shared_bytes() const;
};
constexpr int32_t kHopperRows = 128, kHopperThreads = 384;
// Shared memory for the alignment of the first tile and for the mbarriers.
constexpr int32_t kHopperSlack = 1024 + 128;
constexpr int32_t HopperConfig::shared_bytes() const { return 2 * dim * (kHopperRows + stages * tile) + kHopperSlack; }

// One for each D. With D = 256 the sums of 64 rows take half of a thread's registers, and the other half holds a tile
// of 80. A tile is in use for two steps, so of four tiles two are in use and two are on their way. FlashAttention 3 takes
// turns up to D = 128. The acceptance run measures both at D = 64, 128 and 256.
constexpr HopperConfig kHopperConfigs[] = {
    {64, 128, 6, true}, {128, 128, 5, true}, {192, 112, 4, false}, {256, 80, 4, false}};

// Which forward pass: the one for the GPU's own architecture, or a particular one.
enum class Kernel : int32_t { kBest = 0, kSm80 = 1, kSm90 = 2 };

// Choices of the Hopper kernel that only a GPU can settle; the acceptance run measures both values of each.
enum class Choice : int32_t { kDefault = -1, kNo = 0, kYes = 1 };
struct Tuning {
  Choice turns = Choice::kDefault;     // see HopperConfig
  Choice uneven = Choice::kDefault;    // see Cut; not together with clusters
  Choice clusters = Choice::kDefault;  // see sm90_cluster.h
};
constexpr bool kUnevenByDefault = true, kClustersByDefault = false;
constexpr bool chosen(Choice choice, bool by_default) {
  return choice == Choice::kDefault ? by_default : choice == Choice::kYes;
}
// The shapes of kHopperConfigs (D = 64, 128 and 256) that are compiled with the other choice of turns, and with
// clusters, for bf16 and a fixed shift.
constexpr bool kHasVariants[] = {true, true, false, true};

constexpr int32_t kLargestDim = 256;
constexpr int32_t kDimStep = 16;  // values of a row that one tensor core instruction multiplies

// The properties of a GPU that the choices depend on.
struct Limits {
  int32_t multiprocessors;
  int32_t shared_bytes;  // that a block may request
  int32_t capability;    // 90 for 9.0
};

// The machine code for sm_90a runs only on GPUs of compute capability 9.0.
inline Kernel choose_kernel(Kernel wanted, const Limits& limits) {
  if (wanted == Kernel::kBest) return limits.capability == 90 ? Kernel::kSm90 : Kernel::kSm80;
  if (wanted == Kernel::kSm90 && limits.capability != 90)
    throw std::invalid_argument("kernel is sm90, and the GPU has compute capability " +
                                std::to_string(limits.capability / 10) + "." + std::to_string(limits.capability % 10) +
                                ", expected 9.0");
  return wanted;
}

// Returns the first shape that takes rows of `dim` values and fits the shared memory.
template <class Shape, size_t kCount>
int32_t config_index(const Shape (&configs)[kCount], int32_t dim, const Limits& limits) {
  if (dim < 1 || dim > kLargestDim || dim % kDimStep != 0)
    throw std::invalid_argument("dim is " + std::to_string(dim) + ", expected a multiple of " +
                                std::to_string(kDimStep) + " up to " + std::to_string(kLargestDim));
  for (int32_t index = 0; index < static_cast<int32_t>(kCount); ++index)
    if (configs[index].dim >= dim && configs[index].shared_bytes() <= limits.shared_bytes) return index;
  throw std::invalid_argument("a block of this GPU has " + std::to_string(limits.shared_bytes) +
                              " bytes of shared memory, too few for dim " + std::to_string(dim));
}

// Returns how many blocks of a shape share a multiprocessor. The kernels take nearly 256 of 65536 registers for each
// thread. A multiprocessor has 1 KiB more shared memory than a block may request, and takes 1 KiB for each block.
inline int32_t resident_blocks(const Config& config, const Limits& limits) {
  const int32_t by_registers = 65536 / (256 * config.threads());
  return std::max(1, std::min(by_registers, (limits.shared_bytes + 1024) / (config.shared_bytes() + 1024)));
}

// Returns of how many blocks a cluster is if there are so many splits: at most 8, the most that every GPU has.
constexpr int32_t cluster_size(int32_t splits) { return splits >= 8 ? 8 : splits >= 4 ? 4 : splits >= 2 ? 2 : 1; }

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// combine_kernel has a thread for each column of the rows. It keeps the sums of so many teachers in shared memory while
// the student views take their turns; the sums of further key views are computed again.
constexpr int32_t kKeptTeachers = 8;
constexpr int32_t combine_threads(int32_t dim) { return (dim + kWarpSize - 1) / kWarpSize * kWarpSize; }
// Groups of its threads that share the splits of a row.
constexpr int32_t kSplitGroups = 4;
// A sum for each column and group, two numbers for each thread and teacher, and two for each warp.
constexpr int32_t combine_shared_bytes(int32_t threads) {
  return kSplitGroups * threads * 4 + kKeptTeachers * 2 * threads * 4 + threads / kWarpSize * 8;
}

// Returns into how many parts the tiles are cut, each for a block of its own, so that the whole ends soonest when
// `resident` blocks run at a time. The unit of time is a tile: a block spends about two on its rows and results, and
// combining costs about an eighth for each part.
inline int32_t choose_splits(int64_t blocks, int64_t tiles, int64_t resident) {
  constexpr int64_t kMostSplits = 256;
  const auto cost = [&](int64_t splits) {
    return 8 * ceil_div(blocks * splits, resident) * (ceil_div(tiles, splits) + 2) + splits;
  };
  int64_t best = 1;
  for (int64_t splits = 2; splits <= std::min(tiles, kMostSplits); ++splits)
    if (cost(splits) < cost(best)) best = splits;
  return static_cast<int32_t>(best);
}

}  // namespace sce_fast
