// A cluster of blocks, whose threads run at the same time. Without clusters it is of one block.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "emulator.h"
#include "fiber.h"
#include "shared_memory.h"

namespace sce_fast::emulator {

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

constexpr const char* kClusterBarrier = "the barrier of the cluster";

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
  std::vector<std::unique_ptr<Thread>> fibers;  // reused from block to block
  Clock cluster_clock;                          // what all threads know since the last barrier of the cluster
  Clock arriving_clock;                         // what the threads know that have come to the next one
  uint32_t waiting_for_cluster = 0;             // threads
  uint32_t read_in_epoch = 0;                   // the last one in which another block has read the shared memory
};

struct Cluster {
  std::array<Block, kMostClusterBlocks> blocks;
  uint32_t size = 1;
  uint32_t rank = 0;   // of the running block
  uint32_t epoch = 1;  // one more than the barriers that the cluster has passed
};

extern Cluster g_cluster;

inline Block& own_block() { return g_cluster.blocks[g_cluster.rank]; }
inline Thread& current() { return *own_block().fibers[thread()]; }

// Goes on to the first block in which a thread can run, or returns false.
bool find_runnable_block();
bool all_have_ended();
// Lets the cluster go on once all threads that have not ended wait for its barrier.
void pass_cluster_barrier();
// Counts a thread of the running block that ends.
void end_thread();

// Lets a thread of any block of the cluster run, which waits for nothing from now on.
void let_run(Block& block, uint32_t thread);

// Continues a random thread of this block that can run; if none can, of the first block of the cluster that has one; or
// the caller of `run` if all have ended.
void switch_away();

}  // namespace sce_fast::emulator
