#include "emulator.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "fiber.h"
#include "shared_memory.h"

namespace sce_fast::emulator {
namespace {

// An asynchronous copy of one thread, under way.
struct Copy {
  uint32_t to, bytes;
  const void* from;
  bool wanted;
};

struct Thread {
  Fiber fiber;
  std::string waits_for;  // empty: it can run
  bool ended = false;
  bool waited_for_launches = false;
  uint32_t registers = 0;
  std::deque<std::vector<Copy>> groups;  // closed ones, oldest first
  std::vector<Copy> open_group;
};

// Threads that execute an instruction together: a warp or a warpgroup.
struct Team {
  const char* operation = nullptr;
  uint32_t present = 0;
  std::vector<void*> operands;
};

// bar.sync and bar.arrive; barrier 0 is for the whole block.
struct NamedBarrier {
  uint32_t arrived = 0, wanted = 0;
  std::vector<uint32_t> waiting;
  Clock clock;
};

struct Block {
  const char* kernel = "";
  Size index{};
  const std::function<void()>* body = nullptr;
  uint32_t threads = 0, shared_bytes = 0, ended = 0;
  uint32_t free_registers = 0;
  bool depends = false;  // on the previous launch, which may not have ended
  std::array<NamedBarrier, 16> barriers;
  std::vector<Team> warps, warpgroups;
  std::vector<uint32_t> runnable;
  SharedMemory memory;
};

Block g_block;
std::vector<std::unique_ptr<Thread>> g_threads;  // reused from block to block
Fiber g_main;
uint32_t g_current = 0;
uint64_t g_random = 1;

Thread& current() { return *g_threads[g_current]; }

std::string state(const Thread& thread) {
  return thread.ended ? "have ended" : "wait for " + (thread.waits_for.empty() ? "nothing" : thread.waits_for);
}

// Reports what each thread waits for when none can run and not all have ended.
[[noreturn]] void fail_in_deadlock() {
  std::string report;
  for (uint32_t first = 0, last; first < g_block.threads; first = last + 1) {
    last = first;
    while (last + 1 < g_block.threads && state(*g_threads[last + 1]) == state(*g_threads[first])) ++last;
    report += "\n  threads " + std::to_string(first) + " to " + std::to_string(last) + " " + state(*g_threads[first]);
  }
  fail("deadlock, no thread can go on:%s", report.c_str());
}

// Continues a random thread that can run, or the caller of `run` if all have ended.
void switch_away() {
  Fiber& from = current().fiber;
  if (g_block.runnable.empty()) {
    if (g_block.ended < g_block.threads) fail_in_deadlock();
    return from.switch_to(g_main);
  }
  const size_t chosen = draw(g_block.runnable.size());
  const uint32_t next = g_block.runnable[chosen];
  g_block.runnable[chosen] = g_block.runnable.back();
  g_block.runnable.pop_back();
  if (next == g_current) return;
  g_current = next;
  from.switch_to(g_threads[next]->fiber);
}

void thread_main() {
  Fiber::entered();
  for (;;) {
    (*g_block.body)();
    Thread& thread = current();
    if (!thread.groups.empty() || !thread.open_group.empty()) fail("ends while its copies are under way");
    if (g_block.depends && !thread.waited_for_launches) fail("ends without having waited for the previous launch");
    check_no_product_under_way();
    thread.ended = true;
    ++g_block.ended;
    switch_away();
  }
}

// Returns the registers of a thread at launch: its share of 65536, in steps of 8.
uint32_t registers_at_launch(uint32_t threads) { return std::min(65536 / threads / 8 * 8, 255u); }

void check_nothing_is_left() {
  for (size_t id = 0; id < g_block.barriers.size(); ++id)
    if (g_block.barriers[id].arrived > 0)
      fail("the block ends with %u arrivals at barrier %zu that nobody has waited for", g_block.barriers[id].arrived,
           id);
  check_no_bulk_copy_under_way();
}

void run_block() {
  Block& b = g_block;
  b.ended = b.free_registers = 0;
  b.barriers = {};
  b.warps.assign(b.threads / kWarpSize, Team{nullptr, 0, std::vector<void*>(kWarpSize)});
  b.warpgroups.assign(b.threads / kWarpgroupSize, Team{nullptr, 0, std::vector<void*>(kWarpgroupSize)});
  b.memory.reset(b.shared_bytes, b.threads, b.threads + kMostMbarriers);
  reset_mbarriers(b.threads);
  reset_products(b.threads);
  b.runnable.clear();
  while (g_threads.size() < b.threads) {
    g_threads.push_back(std::make_unique<Thread>());
    g_threads.back()->fiber = Fiber(&thread_main);
  }
  for (uint32_t t = 0; t < b.threads; ++t) {
    g_threads[t]->ended = g_threads[t]->waited_for_launches = false;
    g_threads[t]->registers = registers_at_launch(b.threads);
    let_run(t);
  }
  const size_t first = draw(b.runnable.size());
  g_current = b.runnable[first];
  b.runnable[first] = b.runnable.back();
  b.runnable.pop_back();
  g_main.switch_to(current().fiber);
  check_nothing_is_left();
}

}  // namespace

void set_seed(uint64_t seed) { g_random = seed; }

// splitmix64
uint64_t draw(uint64_t below) {
  uint64_t x = g_random += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return (x ^ (x >> 31)) % below;
}

void fail(const char* format, ...) {
  const Size at = g_block.index;
  fprintf(stderr, "emulated %s, block (%u, %u, %u), thread %u: ", g_block.kernel, at.x, at.y, at.z, g_current);
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fprintf(stderr, "\n");
  fflush(nullptr);
  _exit(3);
}

void run(const LaunchedKernel& launched, const std::function<void()>& body) {
  const auto& [kernel, grid, threads, shared_bytes, depends] = launched;
  g_block.kernel = kernel;
  g_block.body = &body;
  g_block.threads = threads;
  g_block.shared_bytes = shared_bytes;
  g_block.depends = depends;
  g_block.index = {0, 0, 0};
  g_current = 0;
  if (threads == 0 || threads % kWarpSize != 0 || threads > 1024) fail("launched with %u threads", threads);
  if (shared_bytes > kMostSharedBytes) fail("launched with %u bytes of shared memory", shared_bytes);
  if (grid.x == 0 || grid.x > 0x7FFFFFFF || grid.y == 0 || grid.y > 65535 || grid.z == 0 || grid.z > 65535)
    fail("launched with grid (%u, %u, %u)", grid.x, grid.y, grid.z);
  std::vector<Size> blocks;
  for (uint32_t z = 0; z < grid.z; ++z)
    for (uint32_t y = 0; y < grid.y; ++y)
      for (uint32_t x = 0; x < grid.x; ++x) blocks.push_back({x, y, z});
  for (size_t left = blocks.size(); left > 0; --left) {
    std::swap(blocks[draw(left)], blocks[left - 1]);
    g_block.index = blocks[left - 1];
    run_block();
  }
}

uint32_t thread() { return g_current; }
Size block() { return g_block.index; }
SharedMemory& shared_memory() { return g_block.memory; }

void wait_for(std::string what) {
  current().waits_for = std::move(what);
  switch_away();
}

void let_run(uint32_t thread) {
  g_threads[thread]->waits_for.clear();
  g_block.runnable.push_back(thread);
}

void let_others_run() {
  let_run(g_current);
  switch_away();
}

// ---------------------------------------------------------------------------------------------- together

void barrier() { named_barrier(0, g_block.threads, true); }

void named_barrier(uint32_t id, uint32_t threads, bool waits) {
  if (id >= g_block.barriers.size()) fail("comes to barrier %u, expected 0 to 15", id);
  if (threads == 0 || threads % kWarpSize != 0 || threads > g_block.threads)
    fail("comes to barrier %u for %u of %u threads", id, threads, g_block.threads);
  NamedBarrier& b = g_block.barriers[id];
  if (b.arrived > 0 && b.wanted != threads)
    fail("comes to barrier %u for %u threads, others came for %u", id, threads, b.wanted);
  b.wanted = threads;
  g_block.memory.publish(g_current, b.clock);
  if (++b.arrived < threads) {
    if (!waits) return;
    b.waiting.push_back(g_current);
    return wait_for(id == 0 ? "the barrier" : "barrier " + std::to_string(id));
  }
  if (waits) join(g_block.memory.known(g_current), b.clock);
  for (const uint32_t t : b.waiting) {
    join(g_block.memory.known(t), b.clock);
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
  meet(g_block.warps[g_current / kWarpSize], g_current / kWarpSize * kWarpSize, name, operand, act);
}

void together_as_warpgroup(const char* name, void* operand, void (*act)(void* const* operands)) {
  const uint32_t group = g_current / kWarpgroupSize;
  if (group >= g_block.warpgroups.size()) fail("comes to %s, and its warpgroup is not whole", name);
  meet(g_block.warpgroups[group], group * kWarpgroupSize, name, operand, act);
}

void change_registers(uint32_t count, bool grows) {
  uint32_t& own = current().registers;
  if (count % 8 != 0 || count < 24 || count > 256) fail("asks for %u registers", count);
  if (grows ? count < own : count > own) fail("%s from %u to %u registers", grows ? "grows" : "shrinks", own, count);
  if (!grows) {
    g_block.free_registers += own - count;
    own = count;
    for (uint32_t t = 0; t < g_block.threads; ++t)
      if (g_threads[t]->waits_for == "registers") let_run(t);
    return;
  }
  while (g_block.free_registers < count - own) wait_for("registers");
  g_block.free_registers -= count - own;
  own = count;
}

void wait_for_launches() { current().waited_for_launches = true; }

// ---------------------------------------------------------------------------------------------- shared memory

void read_shared(uint32_t from, void* to, uint32_t bytes, uint32_t reader) {
  g_block.memory.mark_read(from, bytes, reader);
  memcpy(to, g_block.memory.at(from), bytes);
}

void write_shared(uint32_t to, const void* from, uint32_t bytes) {
  g_block.memory.mark_written(to, bytes, g_current);
  memcpy(g_block.memory.at(to), from, bytes);
}

void start_copy(uint32_t to, const void* from, uint32_t bytes, bool wanted) {
  if (reinterpret_cast<uintptr_t>(from) % bytes != 0) fail("copies %u bytes from an unaligned address", bytes);
  g_block.memory.start_copy(to, bytes, g_current);
  current().open_group.push_back({to, bytes, from, wanted});
}

void close_copy_group() {
  current().groups.push_back(std::move(current().open_group));
  current().open_group.clear();
}

void fence_stores_for_products() { g_block.memory.fence_stores(g_current); }

void wait_copies(uint32_t groups_under_way) {
  auto& groups = current().groups;
  for (; groups.size() > groups_under_way; groups.pop_front())
    for (const Copy& copy : groups.front()) {
      g_block.memory.deliver_copy(copy.to, copy.bytes, g_current);
      if (copy.wanted)
        memcpy(g_block.memory.at(copy.to), copy.from, copy.bytes);
      else
        memset(g_block.memory.at(copy.to), 0, copy.bytes);
    }
}

}  // namespace sce_fast::emulator
