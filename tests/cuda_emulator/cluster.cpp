#include "cluster.h"

#include <algorithm>
#include <cstring>

namespace sce_fast::emulator {

Cluster g_cluster;

namespace {

// The present moment of all other blocks of the cluster, which a block's memory takes for one agent.
Moment now_elsewhere(const Block& block) { return {block.threads + kMostMbarriers, g_cluster.epoch}; }

}  // namespace

// Goes on to the first block of the cluster in which a thread can run, or returns false.
bool find_runnable_block() {
  for (uint32_t rank = 0; rank < g_cluster.size; ++rank)
    if (!g_cluster.blocks[rank].runnable.empty()) {
      g_cluster.rank = rank;
      return true;
    }
  return false;
}

bool all_have_ended() {
  return std::all_of(g_cluster.blocks.begin(), g_cluster.blocks.begin() + g_cluster.size,
                     [](const Block& b) { return b.ended == b.threads; });
}

// Lets the cluster go on once all threads that have not ended wait for it.
void pass_cluster_barrier() {
  uint32_t waiting = 0, alive = 0;
  for (uint32_t rank = 0; rank < g_cluster.size; ++rank) {
    waiting += g_cluster.blocks[rank].waiting_for_cluster;
    alive += g_cluster.blocks[rank].threads - g_cluster.blocks[rank].ended;
  }
  if (waiting == 0 || waiting < alive) return;
  for (uint32_t rank = 0; rank < g_cluster.size; ++rank) {
    Block& b = g_cluster.blocks[rank];
    const Moment others = now_elsewhere(b);
    join(b.cluster_clock, b.arriving_clock);
    if (b.cluster_clock.size() <= others.agent) b.cluster_clock.resize(others.agent + 1);
    b.cluster_clock[others.agent] = others.time;
    for (uint32_t t = 0; t < b.threads; ++t) {
      if (b.fibers[t]->waits_for != kClusterBarrier) continue;
      join(b.memory.known(t), b.cluster_clock);
      let_run(b, t);
    }
    b.waiting_for_cluster = 0;
  }
  ++g_cluster.epoch;
}

void end_thread() {
  current().ended = true;
  Block& block = own_block();
  if (++block.ended == block.threads && block.read_in_epoch == g_cluster.epoch)
    fail("the block ends while other blocks of its cluster may read its shared memory");
  pass_cluster_barrier();
}

uint32_t cluster_rank() { return g_cluster.rank; }

void cluster_barrier() {
  Block& b = own_block();
  b.memory.publish(thread(), b.arriving_clock);
  ++b.waiting_for_cluster;
  current().waits_for = kClusterBarrier;
  pass_cluster_barrier();
  switch_away();
}

void read_shared_of(uint32_t rank, uint32_t from, void* to, uint32_t bytes) {
  if (rank >= g_cluster.size) fail("reads shared memory of block %u of a cluster of %u", rank, g_cluster.size);
  Block& other = g_cluster.blocks[rank];
  if (other.ended == other.threads) fail("reads shared memory of block %u of the cluster, which has ended", rank);
  other.memory.mark_read_by_others(from, bytes, other.cluster_clock, now_elsewhere(other));
  other.read_in_epoch = g_cluster.epoch;
  memcpy(to, other.memory.at(from), bytes);
}

}  // namespace sce_fast::emulator
