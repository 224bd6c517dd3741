#include "emulator.h"

#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cluster.h"

namespace sce_fast::emulator {
namespace {

Fiber g_main;
uint32_t g_current = 0;
uint64_t g_random = 1;

std::string state(const Thread& thread) {
  return thread.ended ? "have ended" : "wait for " + (thread.waits_for.empty() ? "nothing" : thread.waits_for);
}

// Reports what each thread waits for when none can run and not all have ended.
[[noreturn]] void fail_in_deadlock() {
  while (own_block().ended == own_block().threads) g_cluster.rank = (g_cluster.rank + 1) % g_cluster.size;
  const Block& b = own_block();
  std::string report;
  for (uint32_t first = 0, last; first < b.threads; first = last + 1) {
    last = first;
    while (last + 1 < b.threads && state(*b.fibers[last + 1]) == state(*b.fibers[first])) ++last;
    report += "\n  threads " + std::to_string(first) + " to " + std::to_string(last) + " " + state(*b.fibers[first]);
  }
  fail("deadlock, no thread can go on:%s", report.c_str());
}

void thread_main() {
  Fiber::entered();
  for (;;) {
    (*own_block().body)();
    Thread& thread = current();
    if (!thread.groups.empty() || !thread.open_group.empty()) fail("ends while its copies are under way");
    if (own_block().depends && !thread.waited_for_launches) fail("ends without having waited for the previous launch");
    check_no_product_under_way();
    end_thread();
    switch_away();
  }
}

// Returns the registers of a thread at launch: its share of 65536, in steps of 8.
uint32_t registers_at_launch(uint32_t threads) { return std::min(65536 / threads / 8 * 8, 255u); }

void check_nothing_is_left() {
  for (size_t id = 0; id < own_block().barriers.size(); ++id)
    if (own_block().barriers[id].arrived > 0)
      fail("the block ends with %u arrivals at barrier %zu that nobody has waited for",
           own_block().barriers[id].arrived, id);
  check_no_bulk_copy_under_way();
}

void begin_block() {
  Block& b = own_block();
  b.ended = b.free_registers = b.read_in_epoch = b.waiting_for_cluster = 0;
  b.cluster_clock.clear();
  b.arriving_clock.clear();
  b.barriers = {};
  b.warps.assign(b.threads / kWarpSize, Team{nullptr, 0, std::vector<void*>(kWarpSize)});
  b.warpgroups.assign(b.threads / kWarpgroupSize, Team{nullptr, 0, std::vector<void*>(kWarpgroupSize)});
  b.memory.reset(b.shared_bytes, b.threads, b.threads + kMostMbarriers + 1);
  reset_mbarriers(b.threads);
  reset_products(b.threads);
  b.runnable.clear();
  while (b.fibers.size() < b.threads) {
    b.fibers.push_back(std::make_unique<Thread>());
    b.fibers.back()->fiber = Fiber(&thread_main);
  }
  for (uint32_t t = 0; t < b.threads; ++t) {
    b.fibers[t]->ended = b.fibers[t]->waited_for_launches = false;
    b.fibers[t]->registers = registers_at_launch(b.threads);
    let_run(t);
  }
}

// Draws the thread that goes on from those of this block that can run.
void choose_thread() {
  std::vector<uint32_t>& runnable = own_block().runnable;
  const size_t chosen = draw(runnable.size());
  g_current = runnable[chosen];
  runnable[chosen] = runnable.back();
  runnable.pop_back();
}

// Runs the blocks of a cluster from this one on, along the grid's y.
void run_cluster(const Size& first) {
  g_cluster.epoch = 1;
  for (g_cluster.rank = g_cluster.size; g_cluster.rank-- > 0;) {
    own_block().index = {first.x, first.y + g_cluster.rank, first.z};
    begin_block();
  }
  g_cluster.rank = static_cast<uint32_t>(draw(g_cluster.size));
  choose_thread();
  g_main.switch_to(current().fiber);
  for (g_cluster.rank = 0; g_cluster.rank < g_cluster.size; ++g_cluster.rank) check_nothing_is_left();
  g_cluster.rank = 0;
}

}  // namespace

// Continues a random thread of this block that can run; if none can, of the first block of the cluster that has one; or
// the caller of `run` if all have ended.
void switch_away() {
  Thread& before = current();
  if (own_block().runnable.empty() && !find_runnable_block()) {
    if (!all_have_ended()) fail_in_deadlock();
    return before.fiber.switch_to(g_main);
  }
  choose_thread();
  if (&current() != &before) before.fiber.switch_to(current().fiber);
}

void set_seed(uint64_t seed) { g_random = seed; }

// splitmix64
uint64_t draw(uint64_t below) {
  uint64_t x = g_random += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return (x ^ (x >> 31)) % below;
}

void fail(const char* format, ...) {
  const Size at = own_block().index;
  fprintf(stderr, "emulated %s, block (%u, %u, %u), thread %u: ", own_block().kernel, at.x, at.y, at.z, g_current);
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fprintf(stderr, "\n");
  fflush(nullptr);
  _exit(3);
}

void run(const LaunchedKernel& launched, const std::function<void()>& body) {
  const auto& [kernel, grid, threads, shared_bytes, depends, cluster] = launched;
  g_cluster.rank = g_current = 0;
  g_cluster.size = std::clamp(cluster, 1u, kMostClusterBlocks);
  for (uint32_t rank = 0; rank < g_cluster.size; ++rank) {
    Block& b = g_cluster.blocks[rank];
    b.kernel = kernel, b.body = &body, b.threads = threads, b.shared_bytes = shared_bytes, b.depends = depends;
    b.index = {0, 0, 0};
  }
  if (threads == 0 || threads % kWarpSize != 0 || threads > 1024) fail("launched with %u threads", threads);
  if (shared_bytes > kMostSharedBytes) fail("launched with %u bytes of shared memory", shared_bytes);
  if (grid.x == 0 || grid.x > 0x7FFFFFFF || grid.y == 0 || grid.y > 65535 || grid.z == 0 || grid.z > 65535)
    fail("launched with grid (%u, %u, %u)", grid.x, grid.y, grid.z);
  if (cluster != g_cluster.size || grid.y % cluster != 0)
    fail("launched with clusters of %u of %u blocks", cluster, grid.y);
  std::vector<Size> clusters;
  for (uint32_t z = 0; z < grid.z; ++z)
    for (uint32_t y = 0; y < grid.y; y += cluster)
      for (uint32_t x = 0; x < grid.x; ++x) clusters.push_back({x, y, z});
  for (size_t left = clusters.size(); left > 0; --left) {
    std::swap(clusters[draw(left)], clusters[left - 1]);
    run_cluster(clusters[left - 1]);
  }
}

uint32_t thread() { return g_current; }
Size block() { return own_block().index; }
SharedMemory& shared_memory() { return own_block().memory; }

void wait_for(std::string what) {
  current().waits_for = std::move(what);
  switch_away();
}

void let_run(Block& block, uint32_t thread) {
  block.fibers[thread]->waits_for.clear();
  block.runnable.push_back(thread);
}

void let_run(uint32_t thread) { let_run(own_block(), thread); }

void let_others_run() {
  let_run(g_current);
  switch_away();
}

// ---------------------------------------------------------------------------------------------- together

void barrier() { named_barrier(0, own_block().threads, true); }

void named_barrier(uint32_t id, uint32_t threads, bool waits) {
  if (id >= own_block().barriers.size()) fail("comes to barrier %u, expected 0 to 15", id);
  if (threads == 0 || threads % kWarpSize != 0 || threads > own_block().threads)
    fail("comes to barrier %u for %u of %u threads", id, threads, own_block().threads);
  NamedBarrier& b = own_block().barriers[id];
  if (b.arrived > 0 && b.wanted != threads)
    fail("comes to barrier %u for %u threads, others came for %u", id, threads, b.wanted);
  b.wanted = threads;
  own_block().memory.publish(g_current, b.clock);
  if (++b.arrived < threads) {
    if (!waits) return;
    b.waiting.push_back(g_current);
    return wait_for(id == 0 ? "the barrier" : "barrier " + std::to_string(id));
  }
  if (waits) join(own_block().memory.known(g_current), b.clock);
  for (const uint32_t t : b.waiting) {
    join(own_block().memory.known(t), b.clock);
    let_run(t);
  }
  b = {};
}

namespace {

// Waits until the whole team has come here; the last thread acts.
void meet(Team& team, uint32_t first, const char* name, void* operand, void (*act)(void* const* operands)) {
  const auto size = static_cast<uint32_t>(team.operands.size());
  if (team.present > 0 && strcmp(team.operation, name) != 0)
    fail("comes to %s while other lanes of its %s are at %s", name, size == kWarpSize ? "warp" : "warpgroup",
         team.operation);
  team.operation = name;
  team.operands[g_current - first] = operand;
  if (++team.present < size) return wait_for(name);
  team.present = 0;
  act(team.operands.data());
  for (uint32_t t = first; t < first + size; ++t)
    if (t != g_current) let_run(t);
}

}  // namespace

void together(const char* name, void* operand, void (*act)(void* const* operands)) {
  meet(own_block().warps[g_current / kWarpSize], g_current / kWarpSize * kWarpSize, name, operand, act);
}

void together_as_warpgroup(const char* name, void* operand, void (*act)(void* const* operands)) {
  const uint32_t group = g_current / kWarpgroupSize;
  if (group >= own_block().warpgroups.size()) fail("comes to %s, and its warpgroup is not whole", name);
  meet(own_block().warpgroups[group], group * kWarpgroupSize, name, operand, act);
}

void change_registers(uint32_t count, bool grows) {
  uint32_t& own = current().registers;
  if (count % 8 != 0 || count < 24 || count > 256) fail("asks for %u registers", count);
  if (grows ? count < own : count > own) fail("%s from %u to %u registers", grows ? "grows" : "shrinks", own, count);
  if (!grows) {
    own_block().free_registers += own - count;
    own = count;
    for (uint32_t t = 0; t < own_block().threads; ++t)
      if (own_block().fibers[t]->waits_for == "registers") let_run(t);
    return;
  }
  while (own_block().free_registers < count - own) wait_for("registers");
  own_block().free_registers -= count - own;
  own = count;
}

void wait_for_launches() { current().waited_for_launches = true; }

// ---------------------------------------------------------------------------------------------- shared memory

void read_shared(uint32_t from, void* to, uint32_t bytes, uint32_t reader) {
  own_block().memory.mark_read(from, bytes, reader);
  memcpy(to, own_block().memory.at(from), bytes);
}

void write_shared(uint32_t to, const void* from, uint32_t bytes) {
  own_block().memory.mark_written(to, bytes, g_current);
  memcpy(own_block().memory.at(to), from, bytes);
}

void start_copy(uint32_t to, const void* from, uint32_t bytes, bool wanted) {
  if (reinterpret_cast<uintptr_t>(from) % bytes != 0) fail("copies %u bytes from an unaligned address", bytes);
  own_block().memory.start_copy(to, bytes, g_current);
  current().open_group.push_back({to, bytes, from, wanted});
}

void close_copy_group() {
  current().groups.push_back(std::move(current().open_group));
  current().open_group.clear();
}

void fence_stores_for_products() { own_block().memory.fence_stores(g_current); }

void wait_copies(uint32_t groups_under_way) {
  auto& groups = current().groups;
  for (; groups.size() > groups_under_way; groups.pop_front())
    for (const Copy& copy : groups.front()) {
      own_block().memory.deliver_copy(copy.to, copy.bytes, g_current);
      if (copy.wanted)
        memcpy(own_block().memory.at(copy.to), copy.from, copy.bytes);
      else
        memset(own_block().memory.at(copy.to), 0, copy.bytes);
    }
}

}  // namespace sce_fast::emulator
