// checks_sm90 NAME SEED: runs one step of a Hopper kernel, right or with one mistake, for the tests of the emulator
// itself. Prints "right" or "wrong"; a mistake that the emulator finds ends the process before.
// checks_sm90 descriptors: prints the bits of the descriptors, without a start, for boxes of 64, 80 and 128 rows.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "ptx_sm90.cuh"
#include "tensor_maps.h"

using namespace sce_fast;
using namespace sce_fast::ptx;

namespace {

enum Mistake {
  kNone,
  kNoInitFence,
  kTooManyBytes,
  kTooFewBytes,
  kNoBarrier,
  kNoStoreFence,
  kNoWait,
  kOneWaits,
  kNoProductFence,
  kNoProductWait,
  kTouchesSums,
  kTouchesWeights,
  kStoresOverRows,
  kCopiesEarly,
  kNoRelease,
  kOneReleases,
  kNoWaitForRelease,
  kArrivesTwice,
  kUnalignedBox,
  kWrongOffset,
  kLeavesBarrier,
  kNoRegistersLeft,
  kNeverWaitsForLaunches
};

constexpr int kRows = 64, kTile = 80, kColumns = 64, kThreads = 128;
constexpr uint32_t kTileBytes = kTile * kBoxRowBytes;

float number(int row, int column) { return static_cast<float>((row * 7 + column * 3) % 17 - 8); }

// Computes products (64 × 80) = rows · tileᵀ and outputs (64 × 64) = rounded products · tile, then fills the tile's
// place again.
void step(Mistake made, TensorMap tensor, float* products_to, float* outputs_to) {
  const auto has = [&](Mistake mistake) { return made == mistake; };
  const int mine = static_cast<int>(thread_index()), warp = mine / 32, lane = mine % 32;
  const Shared rows = (shared_memory() + 1023) & ~1023u,
               tile = rows + kRows * kBoxRowBytes + (has(kUnalignedBox) ? 64 : 0), filled = tile + kTileBytes,
               emptied = filled + 8;
  const auto fill = [&] {
    const uint32_t error = has(kTooManyBytes) ? 16 : has(kTooFewBytes) ? -16 : 0;
    mbarrier_arrive_expect(filled, kTileBytes + error);
    copy_box(tile, tensor, filled, 0, 0, 0);
  };
  if (mine == 0) {
    mbarrier_init(filled, 1);
    mbarrier_init(emptied, has(kOneReleases) ? 1 : 4);
    if (!has(kNoInitFence)) mbarrier_init_fence();
    fill();
  }
  if (mine < kRows)
    for (int c = 0; c < 8; ++c) {
      Chunk chunk;
      for (int w = 0; w < 4; ++w)
        chunk.words[w] = pack<BFloat16>(number(mine, c * 8 + w * 2), number(mine, c * 8 + w * 2 + 1));
      store_shared(rows + mine * kBoxRowBytes + ((c ^ mine % 8) << 4), chunk);
    }
  if (!has(kNoStoreFence)) fence_stores_for_products();
  if (!has(kNoBarrier)) barrier();
  if (!has(kNoWait) && !(has(kOneWaits) && warp > 0)) mbarrier_wait(filled, 0);

  float products[kTile / 2];
  if (!has(kNoProductFence)) product_fence();
  for (int k = 0; k < 4; ++k)
    multiply_shared<BFloat16, kTile>(products, descriptor_of_rows(rows) + k * 2, descriptor_of_rows(tile) + k * 2,
                                     k > 0);
  product_commit();
  if (has(kStoresOverRows) && mine == 0) store_shared(rows, 0.f);
  if (has(kTouchesSums)) products[3] = 0.f;
  if (!has(kNoProductWait)) product_wait<0>();
  for (int i = 0; i < kTile / 2; ++i)
    products_to[(warp * 16 + lane / 4 + i % 4 / 2 * 8) * kTile + i / 4 * 8 + lane % 4 * 2 + i % 2] = products[i];

  uint32_t weights[kTile / 16][4];
  for (int i = 0; i < kTile / 4; ++i)
    weights[i / 4][i % 4] = pack<BFloat16>(products[2 * i] / 64, products[2 * i + 1] / 64);
  float outputs[kColumns / 2] = {};
  product_fence();
  for (int n = 0; n < kTile / 16; ++n)
    multiply_registers<BFloat16, kColumns>(
        outputs, weights[n], descriptor_of_columns(tile, kTileBytes) + n * (has(kWrongOffset) ? 64 : 128));
  product_commit();
  if (has(kTouchesWeights)) weights[1][2] = 0;
  if (has(kCopiesEarly) && mine == 0) fill();
  product_wait<0>();
  for (int i = 0; i < kColumns / 2; ++i)
    outputs_to[(warp * 16 + lane / 4 + i % 4 / 2 * 8) * kColumns + i / 4 * 8 + lane % 4 * 2 + i % 2] = outputs[i];

  if (lane == 0 && !has(kNoRelease) && !(has(kOneReleases) && warp > 0)) mbarrier_arrive(emptied);
  if (has(kArrivesTwice) && mine == 0)
    for (int i = 0; i < 4; ++i) mbarrier_arrive(emptied);
  if (mine == 0) {
    if (!has(kNoWaitForRelease)) mbarrier_wait(emptied, 0);
    fill();
  }
  mbarrier_wait(filled, 1);
  if (has(kLeavesBarrier) && warp == 1) named_barrier_arrive(3, 64);
  if (has(kNoRegistersLeft)) grow_registers<256>();
}

bool run_step(Mistake made) {
  std::vector<uint16_t> tile(kTile * kColumns);
  for (int r = 0; r < kTile; ++r)
    for (int c = 0; c < kColumns; ++c) tile[r * kColumns + c] = round_to<BFloat16>(number(c, r));
  const TensorMap map = make_tensor_map<BFloat16>(tile.data(), kColumns, kTile - 3, 1, kTile);  // three rows of zeros
  std::vector<float> products(kRows * kTile), outputs(kRows * kColumns);
  launch({"check", {1, 1, 1}, kThreads, 30000, nullptr, made == kNeverWaitsForLaunches}, &step, made, map,
         products.data(), outputs.data());
  const auto candidate = [](int r, int c) { return r < kTile - 3 ? number(c, r) : 0.f; };
  for (int r = 0; r < kRows; ++r) {
    std::vector<float> expected(kTile), output(kColumns);
    for (int n = 0; n < kTile; ++n)
      for (int c = 0; c < kColumns; ++c) expected[n] += number(r, c) * candidate(n, c);
    for (int n = 0; n < kTile; ++n)
      for (int c = 0; c < kColumns; ++c)
        output[c] += to_float(BFloat16{round_to<BFloat16>(expected[n] / 64)}) * candidate(n, c);
    for (int n = 0; n < kTile; ++n)
      if (products[r * kTile + n] != expected[n]) return false;
    for (int c = 0; c < kColumns; ++c)
      if (std::abs(outputs[r * kColumns + c] - output[c]) > 1e-3f) return false;
  }
  return true;
}

// Each block of a cluster of two leaves numbers in its shared memory and reads the other's.
enum ClusterMistake { kNoMistake, kReadsEarly, kEndsEarly, kWritesAgain, kReadsBeyond };
void exchange_in_cluster(ClusterMistake made, float* to) {
  const uint32_t mine = thread_index(), rank = cluster_rank();
  const float own = static_cast<float>(rank * 100 + mine);
  store_shared(shared_memory() + mine * 16, FloatQuad{{own, own, own, own}});
  if (made != kReadsEarly) cluster_barrier();
  if (made == kWritesAgain && rank == 1) store_shared(shared_memory() + mine * 16, own);
  const FloatQuad other = load_shared_of(made == kReadsBeyond ? 2 : 1 - rank, shared_memory() + (31 - mine) * 16);
  to[rank * 32 + mine] = other.values[3];
  if (made != kEndsEarly) cluster_barrier();
}

bool run_cluster(ClusterMistake made) {
  std::vector<float> to(64);
  launch({"check", {1, 2, 1}, 32, 512, nullptr, false, 2}, &exchange_in_cluster, made, to.data());
  for (int i = 0; i < 64; ++i)
    if (to[i] != static_cast<float>((1 - i / 32) * 100 + 31 - i % 32)) return false;
  return true;
}

const std::map<std::string, ClusterMistake> kClusterChecks{{"cluster", kNoMistake},
                                                           {"reads early", kReadsEarly},
                                                           {"ends early", kEndsEarly},
                                                           {"writes again", kWritesAgain},
                                                           {"reads beyond the cluster", kReadsBeyond}};

// Maps are made once for each of a few tensors, and are the right ones after more tensors than are kept.
bool keeps_maps() {
  std::vector<Chunk> memory(100);
  const auto right = [&](int i) {
    const TensorMap map = kept_tensor_map<BFloat16>({&memory[i], 8, 1 + i, 1, 64});
    return map.tensor.data == &memory[i] && map.tensor.rows == 1 + i && map.tensor.box_rows == 64;
  };
  bool all = true;
  for (int call = 0; call < 30; ++call) all &= right(call % 3);
  all &= tensor_maps_made == 3;
  for (int call = 0; call < 300; ++call) all &= right(call * 7 % 100);
  return all && tensor_maps_made > 100;
}

const std::map<std::string, Mistake> kChecks{
    {"right", kNone},
    {"no fence after the init", kNoInitFence},
    {"too many bytes expected", kTooManyBytes},
    {"too few bytes expected", kTooFewBytes},
    {"no barrier after the stores", kNoBarrier},
    {"no fence after the stores", kNoStoreFence},
    {"no wait for the tile", kNoWait},
    {"one warp waits for the tile", kOneWaits},
    {"no fence before the product", kNoProductFence},
    {"no wait for the product", kNoProductWait},
    {"touches the sums", kTouchesSums},
    {"touches the weights", kTouchesWeights},
    {"stores over the rows", kStoresOverRows},
    {"fills the tile too early", kCopiesEarly},
    {"no release", kNoRelease},
    {"one warp releases", kOneReleases},
    {"no wait for the release", kNoWaitForRelease},
    {"arrives too often", kArrivesTwice},
    {"tile not aligned", kUnalignedBox},
    {"wrong step in the tile", kWrongOffset},
    {"leaves a barrier", kLeavesBarrier},
    {"no registers left", kNoRegistersLeft},
    {"never waits for the launch before", kNeverWaitsForLaunches},
};

}  // namespace

int main(int count, char** arguments) {
  if (count == 2 && std::string(arguments[1]) == "descriptors") {
    for (const uint32_t rows : {64, 80, 128})
      printf("%llu %llu\n", static_cast<unsigned long long>(descriptor_of_rows(0)),
             static_cast<unsigned long long>(descriptor_of_columns(0, rows * kBoxRowBytes)));
    return 0;
  }
  if (count != 3) return 2;
  emulator::set_seed(std::strtoull(arguments[2], nullptr, 10));
  if (std::string(arguments[1]) == "kept maps") {
    puts(keeps_maps() ? "right" : "wrong");
    return 0;
  }
  if (const auto found = kClusterChecks.find(arguments[1]); found != kClusterChecks.end()) {
    puts(run_cluster(found->second) ? "right" : "wrong");
    return 0;
  }
  const auto found = kChecks.find(arguments[1]);
  if (found == kChecks.end()) return 2;
  puts(run_step(found->second) ? "right" : "wrong");
}
