// mbarriers and the bulk copies that complete on them.
#include <array>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "emulator.h"
#include "shared_memory.h"

namespace sce_fast::emulator {
namespace {

constexpr uint32_t kBoxColumns = 64, kRowBytes = 128, kChunkBytes = 16;

struct BulkCopy {
  uint32_t to;
  Tensor from;
  int column, row, matrix;
  uint32_t bytes() const { return from.box_rows * kRowBytes; }
};

struct Mbarrier {
  uint32_t agent;  // writes on behalf of the barrier's copies
  uint32_t arrivals, pending;
  uint64_t phase = 0;
  int64_t bytes = 0;  // expected, not yet delivered
  std::vector<BulkCopy> copies;
  std::vector<uint32_t> waiting;
  Clock arrived, ended;  // the clocks of this phase's arrivals; of all ended phases
  bool fenced = false;
};

// By block of the cluster.
std::array<std::map<uint32_t, Mbarrier>, kMostClusterBlocks> g_mbarriers;
uint32_t g_first_agent = 0;

std::map<uint32_t, Mbarrier>& own() { return g_mbarriers[cluster_rank()]; }

Mbarrier& find(uint32_t barrier, const char* what) {
  const auto found = own().find(barrier);
  if (found == own().end()) fail("%s at %u, where no mbarrier is", what, barrier - kSharedStart);
  return found->second;
}

void wake(Mbarrier& m) {
  for (const uint32_t thread : m.waiting) let_run(thread);
  m.waiting.clear();
}

// Begins the next phase if this one misses nothing.
void end_phase(Mbarrier& m) {
  if (m.pending > 0 || m.bytes != 0) return;
  if (m.arrived.size() <= m.agent) m.arrived.resize(m.agent + 1);
  m.arrived[m.agent] = static_cast<uint32_t>(++m.phase);
  join(m.ended, m.arrived);
  m.arrived.clear();
  m.pending = m.arrivals;
  wake(m);
}

// Delivers a box; columns and rows beyond the tensor are zeros.
void deliver(const BulkCopy& copy) {
  SharedMemory& memory = shared_memory();
  memory.deliver_bulk_copy(copy.to, copy.bytes());
  const Tensor& t = copy.from;
  for (int r = 0; r < t.box_rows; ++r)
    for (uint32_t c = 0; c < kRowBytes / kChunkBytes; ++c) {
      uint16_t numbers[8] = {};
      for (int i = 0; i < 8; ++i) {
        const int64_t column = copy.column + c * 8 + i, row = copy.row + r;
        if (column >= 0 && column < t.columns && row >= 0 && row < t.rows && copy.matrix >= 0 &&
            copy.matrix < t.matrices)
          numbers[i] = static_cast<const uint16_t*>(t.data)[(copy.matrix * t.rows + row) * t.columns + column];
      }
      const uint32_t line = copy.to + r * kRowBytes;
      memcpy(memory.at(line + ((c ^ line / kRowBytes % 8) * kChunkBytes)), numbers, kChunkBytes);
    }
}

void deliver_all(Mbarrier& m) {
  for (const BulkCopy& copy : m.copies) {
    deliver(copy);
    m.bytes -= copy.bytes();
  }
  m.copies.clear();
  end_phase(m);
}

}  // namespace

void reset_mbarriers(uint32_t threads) {
  own().clear();
  g_first_agent = threads;
}

void check_no_bulk_copy_under_way() {
  for (const auto& [at, m] : own())
    if (!m.copies.empty())
      fail("the block ends while a bulk copy to the mbarrier at %u is under way", at - kSharedStart);
}

void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  if (barrier % 8 != 0) fail("initialises an mbarrier at the unaligned address %u", barrier - kSharedStart);
  if (arrivals == 0) fail("initialises an mbarrier for no arrival");
  if (own().count(barrier)) fail("initialises the mbarrier at %u again", barrier - kSharedStart);
  if (own().size() == kMostMbarriers) fail("initialises more than %u mbarriers", kMostMbarriers);
  const uint64_t zero = 0;  // the object occupies the place, so another use of it is a race
  write_shared(barrier, &zero, 8);
  Mbarrier m{};
  m.agent = g_first_agent + static_cast<uint32_t>(own().size());
  m.arrivals = m.pending = arrivals;
  own().emplace(barrier, std::move(m));
}

void mbarrier_init_fence() {
  for (auto& entry : own()) entry.second.fenced = true;
}

void mbarrier_arrive(uint32_t barrier, uint32_t bytes) {
  Mbarrier& m = find(barrier, "arrives");
  shared_memory().mark_read(barrier, 8, thread());  // a race unless it comes after the init
  if (m.pending == 0) fail("arrives at the mbarrier at %u, whose phase has all arrivals", barrier - kSharedStart);
  m.bytes += bytes;
  --m.pending;
  shared_memory().publish(thread(), m.arrived);
  end_phase(m);
}

void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  Mbarrier& m = find(barrier, "waits");
  shared_memory().mark_read(barrier, 8, thread());
  while (m.phase % 2 == parity) {
    if (!m.copies.empty()) {
      if (draw(2) == 0) let_others_run();
      deliver_all(m);
      continue;
    }
    m.waiting.push_back(thread());
    wait_for("phase " + std::to_string(m.phase) + " of the mbarrier at " + std::to_string(barrier - kSharedStart));
  }
  join(shared_memory().known(thread()), m.ended);
}

void copy_box(uint32_t to, const Tensor& from, uint32_t barrier, int column, int row, int matrix) {
  Mbarrier& m = find(barrier, "a bulk copy completes");
  if (!m.fenced) fail("starts a bulk copy to an mbarrier without mbarrier_init_fence");
  if (to % kRowBytes != 0) fail("starts a bulk copy to the unaligned address %u", to - kSharedStart);
  const BulkCopy copy{to, from, column, row, matrix};
  shared_memory().start_bulk_copy(to, copy.bytes(), thread(), {m.agent, static_cast<uint32_t>(m.phase + 1)});
  m.copies.push_back(copy);
  wake(m);  // a waiting thread delivers
}

}  // namespace sce_fast::emulator
