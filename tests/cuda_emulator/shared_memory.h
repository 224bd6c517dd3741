// Shared memory that records who accessed it when. Two accesses to a word, one of them a write, are a race if nothing
// orders them, whatever order they ran in. Vector clocks give the order: each thread knows the last moment of every
// other thread, and of the bulk copies of every mbarrier, that is certainly over.
#pragma once

#include <cstdint>
#include <vector>

namespace sce_fast::emulator {

// A time for each agent: the threads of the block, then the mbarriers, on whose behalf bulk copies write, then the other
// blocks of the cluster together.
using Clock = std::vector<uint32_t>;

struct Moment {
  uint32_t agent = 0, time = 0;  // time 0: never
};

// Adds what the other clock knows.
void join(Clock& known, const Clock& other);

// The last accesses to a 4-byte word, and what is under way there.
struct Word {
  Moment written;
  std::vector<Moment> read;           // the reads since the last write
  uint16_t copies = 0, products = 0;  // copies that will arrive; warps that have not waited for a product that reads it
};

class SharedMemory {
 public:
  // Fills the memory with NaN patterns (in every type) and forgets all accesses.
  void reset(uint32_t bytes, uint32_t threads, uint32_t agents);

  unsigned char* at(uint32_t address);
  Clock& known(uint32_t thread) { return clocks_[thread]; }

  // Adds to a clock what the thread has done so far.
  void publish(uint32_t thread, Clock& to);
  // Lets products read what the thread has stored so far.
  void fence_stores(uint32_t thread);

  void mark_read(uint32_t address, uint32_t bytes, uint32_t thread);
  // A read by another block of the cluster, which knows what `known` knows.
  void mark_read_by_others(uint32_t address, uint32_t bytes, const Clock& known, Moment moment);
  void mark_written(uint32_t address, uint32_t bytes, uint32_t thread);

  // A copy of one thread: its destination is written now and again when it is delivered.
  void start_copy(uint32_t address, uint32_t bytes, uint32_t thread);
  void deliver_copy(uint32_t address, uint32_t bytes, uint32_t thread);
  // A bulk copy that a thread starts; after its delivery, threads that know `moment` may read.
  void start_bulk_copy(uint32_t address, uint32_t bytes, uint32_t thread, Moment moment);
  void deliver_bulk_copy(uint32_t address, uint32_t bytes);

  // A product of a warpgroup reads 16 bytes from now until each of its four warps has waited for it.
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
  std::vector<uint32_t> fenced_;  // by thread: products may read its stores up to this moment
  uint32_t threads_ = 0;
};

}  // namespace sce_fast::emulator
