// Shared memory that knows who touched it when: two accesses to a word, one of them writing, with nothing that orders
// them, are a race in whatever order they ran. Order is known by vector clocks: each thread knows, of every other and of
// the bulk copies of every mbarrier, the last moment that is sure to be over.
#pragma once

#include <cstdint>
#include <vector>

namespace sce_fast::emulator {

// By agent: a thread of the block, or behind the threads an mbarrier, on whose behalf bulk copies write.
using Clock = std::vector<uint32_t>;

struct Moment {
  uint32_t agent = 0, time = 0;  // time 0: never
};

// Takes over what the other knows.
void join(Clock& known, const Clock& other);

// Who touched a 4-byte word last, and what is under way there.
struct Word {
  Moment written;
  std::vector<Moment> read;           // those that the last write does not come after
  uint16_t copies = 0, products = 0;  // that will arrive; warps that have not waited for a product that reads it
};

class SharedMemory {
 public:
  // NaN patterns in every type, touched by nobody.
  void reset(uint32_t bytes, uint32_t threads, uint32_t agents);

  unsigned char* at(uint32_t address);
  Clock& known(uint32_t thread) { return clocks_[thread]; }

  // What the thread has done so far is told to whoever takes over its clock from now on.
  void publish(uint32_t thread, Clock& to);
  // What the thread has stored so far may be read by products.
  void fence_stores(uint32_t thread);

  void mark_read(uint32_t address, uint32_t bytes, uint32_t thread);
  void mark_written(uint32_t address, uint32_t bytes, uint32_t thread);

  // A copy of a thread's own: its destination is written now and once more when it is delivered.
  void start_copy(uint32_t address, uint32_t bytes, uint32_t thread);
  void deliver_copy(uint32_t address, uint32_t bytes, uint32_t thread);
  // A bulk copy, started by a thread; when it is delivered those who know `moment` may read.
  void start_bulk_copy(uint32_t address, uint32_t bytes, uint32_t thread, Moment moment);
  void deliver_bulk_copy(uint32_t address, uint32_t bytes);

  // A product of a warpgroup reads 16 bytes from now on, until each of its four warps has waited for it.
  void start_product(uint32_t address, uint32_t first_thread);
  void end_product(uint32_t address, uint32_t thread);

 private:
  void check_range(const char* what, uint32_t address, uint32_t bytes);
  void check_readable(const Word& word, uint32_t address, uint32_t thread);
  void remember_read(Word& word, uint32_t thread);
  bool knows(uint32_t thread, Moment moment) const { return clocks_[thread][moment.agent] >= moment.time; }
  template <class Act>
  void for_words(uint32_t address, uint32_t bytes, Act act);

  std::vector<unsigned char> memory_;
  std::vector<Word> words_;
  std::vector<Clock> clocks_;
  std::vector<uint32_t> fenced_;  // by thread: its stores up to this moment
  uint32_t threads_ = 0;
};

}  // namespace sce_fast::emulator
