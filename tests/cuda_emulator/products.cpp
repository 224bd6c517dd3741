// wgmma: products that a warpgroup issues together and that each of its threads waits for.
#include <array>
#include <bit>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "emulator.h"
#include "shared_memory.h"

namespace sce_fast::emulator {
namespace {

constexpr uint32_t kRows = 64, kPoison = 0xFFFFFFFF;  // a NaN

// The sums of one or several chained products, and the registers that will hold them.
struct Sums {
  uint32_t columns;
  std::vector<float> values;  // (64, columns)
  std::array<float*, kWarpgroupSize> accumulators;
  uint64_t last_product;
  uint32_t delivered = 0;  // threads
};

struct Product {
  std::shared_ptr<Sums> sums;
  std::vector<uint32_t> reads;  // addresses of 16 bytes
  std::array<const uint32_t*, kWarpgroupSize> registers{};
  std::array<std::array<uint32_t, 4>, kWarpgroupSize> words{};
};

struct Warpgroup {
  std::vector<Product> issued;
  std::shared_ptr<Sums> newest(float* of_first_thread) const {
    for (auto product = issued.rbegin(); product != issued.rend(); ++product)
      if (product->sums->accumulators[0] == of_first_thread) return product->sums;
    return nullptr;
  }
};

struct Waiter {
  std::deque<uint64_t> groups;  // closed groups, oldest first: the number of products up to the end of each
  uint64_t committed = 0, done = 0;
  bool fenced = false;
};

struct Issuers {
  std::vector<Warpgroup> warpgroups;
  std::vector<Waiter> waiters;
};
std::array<Issuers, kMostClusterBlocks> g_issuers;  // by block of the cluster

Issuers& own() { return g_issuers[cluster_rank()]; }

Warpgroup& own_group() {
  const uint32_t group = thread() / kWarpgroupSize;
  if (group >= own().warpgroups.size()) fail("uses products, and its warpgroup is not whole");
  return own().warpgroups[group];
}

// Returns the sum in accumulator i of a thread: rows 16 w + lane / 4 (+ 8), columns 8 j + 2 (lane mod 4) (+ 1).
float& place(Sums& sums, uint32_t thread, uint32_t i) {
  const uint32_t lane = thread % kWarpSize, row = thread / kWarpSize * 16 + lane / 4 + i % 4 / 2 * 8;
  return sums.values[row * sums.columns + i / 4 * 8 + lane % 4 * 2 + i % 2];
}

void deliver(Sums& sums, uint32_t in_group) {
  float* to = sums.accumulators[in_group];
  for (uint32_t i = 0; i < sums.columns / 2; ++i) {
    if (std::bit_cast<uint32_t>(to[i]) != kPoison) fail("has touched accumulator %u of a product under way", i);
    to[i] = place(sums, in_group, i);
  }
  ++sums.delivered;
}

void finish(const Product& product, uint64_t number) {
  const uint32_t in_group = thread() % kWarpgroupSize;
  if (const uint32_t* words = product.registers[in_group])
    if (memcmp(words, product.words[in_group].data(), 16) != 0)
      fail("has changed registers that a product under way reads");
  if (thread() % kWarpSize == 0)
    for (const uint32_t address : product.reads) shared_memory().end_product(address, thread());
  if (product.sums->last_product == number) deliver(*product.sums, in_group);
}

}  // namespace

void reset_products(uint32_t threads) {
  own().warpgroups.assign(threads / kWarpgroupSize, {});
  own().waiters.assign(threads, {});
}

void check_no_product_under_way() {
  const uint32_t group = thread() / kWarpgroupSize;
  if (group < own().warpgroups.size() && own().waiters[thread()].done < own().warpgroups[group].issued.size())
    fail("ends while its products are under way");
}

void product_fence() { own().waiters[thread()].fenced = true; }

void product_commit() {
  Waiter& waiter = own().waiters[thread()];
  waiter.committed = own_group().issued.size();
  waiter.groups.push_back(waiter.committed);
}

void product_wait(uint32_t groups_under_way) {
  Waiter& waiter = own().waiters[thread()];
  Warpgroup& group = own_group();
  for (; waiter.groups.size() > groups_under_way; waiter.groups.pop_front())
    for (; waiter.done < waiter.groups.front(); ++waiter.done) finish(group.issued[waiter.done], waiter.done);
  waiter.fenced = false;
}

float* begin_product(void* const* operands, bool accumulate) {
  const uint32_t first = thread() / kWarpgroupSize * kWarpgroupSize;
  Warpgroup& group = own_group();
  const auto operand = [&](uint32_t t) -> const ProductOperand& {
    return *static_cast<const ProductOperand*>(operands[t]);
  };
  const uint32_t columns = operand(0).count * 2;
  std::shared_ptr<Sums> sums = group.newest(operand(0).accumulators);
  if (sums && sums->delivered > 0 && sums->delivered < kWarpgroupSize)
    fail("issues a product while some threads of its warpgroup have waited for the previous one");
  const bool chained = sums && sums->delivered == 0;
  if (chained && sums->columns != columns)
    fail("adds to the accumulators of a product under way that has another shape");
  for (uint32_t t = 0; t < kWarpgroupSize; ++t)
    if ((!chained || operand(t).registers) && !own().waiters[first + t].fenced)
      fail("thread %u issues a product without product_fence since it could touch the registers", first + t);
  if (!chained) {
    sums = std::make_shared<Sums>();
    sums->columns = columns;
    sums->values.resize(kRows * columns);
    for (uint32_t t = 0; t < kWarpgroupSize; ++t) {
      sums->accumulators[t] = operand(t).accumulators;
      for (uint32_t i = 0; i < columns / 2; ++i) {
        place(*sums, t, i) = operand(t).accumulators[i];
        operand(t).accumulators[i] = std::bit_cast<float>(kPoison);
      }
    }
  }
  if (!accumulate) std::fill(sums->values.begin(), sums->values.end(), 0.f);
  sums->last_product = group.issued.size();
  Product product{sums, {}, {}, {}};
  for (uint32_t t = 0; t < kWarpgroupSize; ++t)
    if (const uint32_t* words = operand(t).registers) {
      product.registers[t] = words;
      memcpy(product.words[t].data(), words, 16);
    }
  group.issued.push_back(std::move(product));
  return sums->values.data();
}

const void* product_reads(uint32_t address) {
  shared_memory().start_product(address, thread() / kWarpgroupSize * kWarpgroupSize);
  own_group().issued.back().reads.push_back(address);
  return shared_memory().at(address);
}

}  // namespace sce_fast::emulator
