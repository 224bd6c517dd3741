#include "emulator.h"

#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "fiber.h"

namespace sce_fast::emulator {
namespace {

// An asynchronous copy under way.
struct Copy {
  uint32_t to, bytes;
  const void* from;
  bool wanted;
};

struct Thread {
  Fiber fiber;
  const char* waits_for = nullptr;  // null: it can run
  bool ended = false;
  std::deque<std::vector<Copy>> groups;  // closed ones, oldest first
  std::vector<Copy> open_group;
};

struct Warp {
  const char* operation = nullptr;
  uint32_t present = 0;
  void* operands[kWarpSize];
};

// Who touched a 4-byte word of shared memory last, and between which barriers.
struct Word {
  static constexpr int32_t kSeveral = -1;
  uint64_t written = 0, read = 0;  // number of the barrier before it
  int32_t writer = 0, reader = 0;
  int32_t copies = 0;  // that will be delivered here
};

struct Block {
  const char* kernel = "";
  Size index{};
  const std::function<void()>* body = nullptr;
  uint32_t threads = 0, ended = 0, at_barrier = 0;
  uint64_t barriers = 1;
  std::vector<Warp> warps;
  std::vector<uint32_t> runnable;
  std::vector<unsigned char> memory;
  std::vector<Word> words;
};

Block g_block;
std::vector<std::unique_ptr<Thread>> g_threads;  // reused from block to block
Fiber g_main;
uint32_t g_current = 0;
uint64_t g_random = 1;

// splitmix64
uint64_t draw(uint64_t below) {
  uint64_t x = g_random += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return (x ^ (x >> 31)) % below;
}

Thread& current() { return *g_threads[g_current]; }

std::string state(const Thread& thread) {
  return thread.ended ? "have ended" : std::string("wait for ") + (thread.waits_for ? thread.waits_for : "nothing");
}

// No thread can run although not all have ended: says what each waits for.
[[noreturn]] void fail_in_deadlock() {
  std::string report;
  for (uint32_t first = 0, last; first < g_block.threads; first = last + 1) {
    last = first;
    while (last + 1 < g_block.threads && state(*g_threads[last + 1]) == state(*g_threads[first])) ++last;
    report += "\n  threads " + std::to_string(first) + " to " + std::to_string(last) + " " + state(*g_threads[first]);
  }
  fail("deadlock, no thread can go on:%s", report.c_str());
}

// Continues a random thread that can run, or the caller of `run` when all have ended.
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

void wait_for(const char* what) {
  current().waits_for = what;
  switch_away();
}

void let_run(uint32_t thread) {
  g_threads[thread]->waits_for = nullptr;
  g_block.runnable.push_back(thread);
}

void thread_main() {
  Fiber::entered();
  for (;;) {
    (*g_block.body)();
    Thread& thread = current();
    if (!thread.groups.empty() || !thread.open_group.empty()) fail("ends while its copies are under way");
    thread.ended = true;
    ++g_block.ended;
    switch_away();
  }
}

void run_block() {
  Block& b = g_block;
  b.ended = b.at_barrier = 0;
  b.barriers = 1;
  b.warps.assign(b.threads / kWarpSize, Warp{});
  std::fill(b.memory.begin(), b.memory.end(), 0xFF);  // NaN in every type
  std::fill(b.words.begin(), b.words.end(), Word{});
  b.runnable.clear();
  while (g_threads.size() < b.threads) {
    g_threads.push_back(std::make_unique<Thread>());
    g_threads.back()->fiber = Fiber(&thread_main);
  }
  for (uint32_t t = 0; t < b.threads; ++t) {
    g_threads[t]->ended = false;
    let_run(t);
  }
  const size_t first = draw(b.runnable.size());
  g_current = b.runnable[first];
  b.runnable[first] = b.runnable.back();
  b.runnable.pop_back();
  g_main.switch_to(current().fiber);
}

void check_range(const char* what, uint32_t at, uint32_t bytes) {
  if (at < kSharedStart || at - kSharedStart + bytes > g_block.memory.size())
    fail("%s %u bytes at %d of %zu bytes of shared memory", what, bytes, int(at) - int(kSharedStart),
         g_block.memory.size());
  if (at % bytes != 0) fail("%s %u bytes at the unaligned address %u", what, bytes, at - kSharedStart);
}

void mark_read(uint32_t at, uint32_t bytes, uint32_t reader) {
  check_range("reads", at, bytes);
  for (uint32_t w = (at - kSharedStart) / 4; w < (at - kSharedStart + bytes) / 4; ++w) {
    Word& word = g_block.words[w];
    if (word.copies > 0) fail("reads shared memory at %u, where a copy nobody has waited for will arrive", w * 4);
    if (word.written == g_block.barriers && word.writer != int32_t(reader))
      fail("race: reads shared memory at %u, which thread %d wrote since the last barrier", w * 4, word.writer);
    const bool others = word.read == g_block.barriers && word.reader != int32_t(reader);
    word.read = g_block.barriers;
    word.reader = others ? Word::kSeveral : int32_t(reader);
  }
}

void mark_written(uint32_t at, uint32_t bytes, int32_t copies) {
  check_range("writes", at, bytes);
  for (uint32_t w = (at - kSharedStart) / 4; w < (at - kSharedStart + bytes) / 4; ++w) {
    Word& word = g_block.words[w];
    if (word.written == g_block.barriers && word.writer != int32_t(g_current))
      fail("race: writes shared memory at %u, which thread %d wrote since the last barrier", w * 4, word.writer);
    if (word.read == g_block.barriers && word.reader != int32_t(g_current))
      fail("race: writes shared memory at %u, which another thread read since the last barrier", w * 4);
    word.written = g_block.barriers;
    word.writer = int32_t(g_current);
    word.copies += copies;
    if (copies == 0 && word.copies > 0) fail("writes shared memory at %u, where a copy will arrive", w * 4);
  }
}

}  // namespace

void set_seed(uint64_t seed) { g_random = seed; }

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

void run(const char* kernel, Size grid, uint32_t threads, uint32_t shared_bytes, const std::function<void()>& body) {
  g_block.kernel = kernel;
  g_block.body = &body;
  g_block.threads = threads;
  g_block.index = {0, 0, 0};
  g_current = 0;
  if (threads == 0 || threads % kWarpSize != 0 || threads > 1024) fail("launched with %u threads", threads);
  if (shared_bytes > kMostSharedBytes) fail("launched with %u bytes of shared memory", shared_bytes);
  if (grid.x == 0 || grid.x > 0x7FFFFFFF || grid.y == 0 || grid.y > 65535 || grid.z == 0 || grid.z > 65535)
    fail("launched with grid (%u, %u, %u)", grid.x, grid.y, grid.z);
  g_block.memory.resize(shared_bytes);
  g_block.words.resize(shared_bytes / 4);
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

void barrier() {
  if (++g_block.at_barrier < g_block.threads) return wait_for("the barrier");
  g_block.at_barrier = 0;
  ++g_block.barriers;
  for (uint32_t t = 0; t < g_block.threads; ++t)
    if (t != g_current) let_run(t);
}

void together(const char* name, void* operand, void (*act)(void* const* operands)) {
  const uint32_t first = g_current / kWarpSize * kWarpSize;
  Warp& warp = g_block.warps[g_current / kWarpSize];
  if (warp.present > 0 && strcmp(warp.operation, name) != 0)
    fail("comes to %s while other lanes of its warp are at %s", name, warp.operation);
  warp.operation = name;
  warp.operands[g_current - first] = operand;
  if (++warp.present < kWarpSize) return wait_for(name);
  warp.present = 0;
  act(warp.operands);
  for (uint32_t t = first; t < first + kWarpSize; ++t)
    if (t != g_current) let_run(t);
}

void read_shared(uint32_t from, void* to, uint32_t bytes, uint32_t reader) {
  mark_read(from, bytes, reader);
  memcpy(to, g_block.memory.data() + (from - kSharedStart), bytes);
}

void write_shared(uint32_t to, const void* from, uint32_t bytes) {
  mark_written(to, bytes, 0);
  memcpy(g_block.memory.data() + (to - kSharedStart), from, bytes);
}

void start_copy(uint32_t to, const void* from, uint32_t bytes, bool wanted) {
  if (reinterpret_cast<uintptr_t>(from) % bytes != 0) fail("copies %u bytes from an unaligned address", bytes);
  mark_written(to, bytes, 1);
  memset(g_block.memory.data() + (to - kSharedStart), 0xFF, bytes);
  current().open_group.push_back({to, bytes, from, wanted});
}

void close_copy_group() {
  current().groups.push_back(std::move(current().open_group));
  current().open_group.clear();
}

void wait_copies(uint32_t groups_under_way) {
  auto& groups = current().groups;
  for (; groups.size() > groups_under_way; groups.pop_front())
    for (const Copy& copy : groups.front()) {
      unsigned char* to = g_block.memory.data() + (copy.to - kSharedStart);
      mark_written(copy.to, copy.bytes, -1);
      if (copy.wanted)
        memcpy(to, copy.from, copy.bytes);
      else
        memset(to, 0, copy.bytes);
    }
}

}  // namespace sce_fast::emulator
