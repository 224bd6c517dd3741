#include "shared_memory.h"

#include <algorithm>

#include "emulator.h"

// Not instrumented, because it takes most of the time; check_range has checked the bounds of its arrays.
#define SCE_FAST_FAST __attribute__((no_sanitize("address", "undefined"), optimize("O2")))

namespace sce_fast::emulator {

SCE_FAST_FAST void join(Clock& known, const Clock& other) {
  if (known.size() < other.size()) known.resize(other.size());
  uint32_t* to = known.data();
  const uint32_t* from = other.data();
  for (size_t i = 0, count = other.size(); i < count; ++i) to[i] = to[i] < from[i] ? from[i] : to[i];
}

void SharedMemory::reset(uint32_t bytes, uint32_t threads, uint32_t agents) {
  threads_ = threads;
  memory_.assign(bytes, 0xFF);
  words_.resize(bytes / 4);
  for (Word& word : words_) word.written = {}, word.read.clear(), word.copies = word.products = 0;
  clocks_.assign(threads, Clock(agents, 0));
  for (uint32_t t = 0; t < threads; ++t) clocks_[t][t] = 1;
  fenced_.assign(threads, 0);
}

unsigned char* SharedMemory::at(uint32_t address) { return memory_.data() + (address - kSharedStart); }

void SharedMemory::publish(uint32_t thread, Clock& to) {
  join(to, clocks_[thread]);
  ++clocks_[thread][thread];
}

void SharedMemory::fence_stores(uint32_t thread) { fenced_[thread] = clocks_[thread][thread]++; }

void SharedMemory::check_range(const char* what, uint32_t address, uint32_t bytes) {
  if (address < kSharedStart || address - kSharedStart + bytes > memory_.size())
    fail("%s %u bytes at %d of %zu bytes of shared memory", what, bytes, int(address) - int(kSharedStart),
         memory_.size());
  if (address % std::min(bytes, 16u) != 0)
    fail("%s %u bytes at the unaligned address %u", what, bytes, address - kSharedStart);
}

template <class Act>
SCE_FAST_FAST void SharedMemory::for_words(uint32_t address, uint32_t bytes, Act act) {
  Word* word = words_.data() + (address - kSharedStart) / 4;
  for (uint32_t i = 0; i < bytes / 4; ++i) act(word[i], address - kSharedStart + 4 * i);
}

SCE_FAST_FAST void SharedMemory::check_readable(const Word& word, uint32_t at, uint32_t thread) {
  if (word.copies > 0) fail("reads shared memory at %u, where a copy nobody has waited for will arrive", at);
  if (knows(thread, word.written)) return;
  if (word.written.agent >= threads_)
    fail("race: reads shared memory at %u, where a bulk copy has come that thread %u has not waited for", at, thread);
  fail("race: reads shared memory at %u in thread %u, which thread %u wrote with nothing in between that orders them",
       at, thread, word.written.agent);
}

SCE_FAST_FAST void SharedMemory::remember_read(Word& word, uint32_t thread) {
  const Moment now{thread, clocks_[thread][thread]};
  for (Moment& read : word.read)
    if (knows(thread, read)) {  // whatever comes after this read also comes after that one
      read = now;
      return;
    }
  word.read.push_back(now);
}

SCE_FAST_FAST void SharedMemory::mark_read(uint32_t address, uint32_t bytes, uint32_t thread) {
  check_range("reads", address, bytes);
  for_words(address, bytes, [&](Word& word, uint32_t at) {
    check_readable(word, at, thread);
    remember_read(word, thread);
  });
}

void SharedMemory::mark_read_by_others(uint32_t address, uint32_t bytes, const Clock& known, Moment moment) {
  check_range("reads in another block of the cluster", address, bytes);
  for_words(address, bytes, [&](Word& word, uint32_t at) {
    if (word.copies > 0) fail("reads another block's shared memory at %u, where a copy will arrive", at);
    const Moment written = word.written;
    if (written.time > 0 && (written.agent >= known.size() || known[written.agent] < written.time))
      fail("race: reads another block's shared memory at %u, written since the last barrier of the cluster", at);
    word.read.push_back(moment);
  });
}

SCE_FAST_FAST void SharedMemory::mark_written(uint32_t address, uint32_t bytes, uint32_t thread) {
  check_range("writes", address, bytes);
  for_words(address, bytes, [&](Word& word, uint32_t at) {
    if (word.copies > 0) fail("writes shared memory at %u, where a copy will arrive", at);
    if (word.products > 0) fail("writes shared memory at %u, which a product nobody has waited for reads", at);
    if (!knows(thread, word.written))
      fail("race: writes shared memory at %u, which thread %u wrote with nothing in between that orders them", at,
           word.written.agent);
    for (const Moment& read : word.read)
      if (!knows(thread, read)) {
        if (read.agent >= threads_)
          fail("race: writes shared memory at %u, which another block of the cluster reads", at);
        fail("race: writes shared memory at %u, which thread %u reads with nothing in between that orders them", at,
             read.agent);
      }
    word.written = {thread, clocks_[thread][thread]};
    word.read.clear();
  });
}

void SharedMemory::start_copy(uint32_t address, uint32_t bytes, uint32_t thread) {
  mark_written(address, bytes, thread);
  for_words(address, bytes, [](Word& word, uint32_t) { ++word.copies; });
  std::fill_n(at(address), bytes, 0xFF);
}

void SharedMemory::deliver_copy(uint32_t address, uint32_t bytes, uint32_t thread) {
  for_words(address, bytes, [](Word& word, uint32_t) { --word.copies; });
  mark_written(address, bytes, thread);
}

void SharedMemory::start_bulk_copy(uint32_t address, uint32_t bytes, uint32_t thread, Moment moment) {
  start_copy(address, bytes, thread);
  for_words(address, bytes, [&](Word& word, uint32_t) { word.written = moment; });
}

void SharedMemory::deliver_bulk_copy(uint32_t address, uint32_t bytes) {
  for_words(address, bytes, [](Word& word, uint32_t) { --word.copies; });
}

SCE_FAST_FAST void SharedMemory::start_product(uint32_t address, uint32_t first_thread) {
  check_range("multiplies", address, 16);
  for_words(address, 16, [&](Word& word, uint32_t at) {
    for (uint32_t thread = first_thread; thread < first_thread + 128; thread += kWarpSize)
      check_readable(word, at, thread);
    const Moment written = word.written;
    if (written.agent < threads_ && written.time > fenced_[written.agent])
      fail("multiplies shared memory at %u, which thread %u has stored without fence_stores_for_products", at,
           written.agent);
    word.products += 4;
  });
}

SCE_FAST_FAST void SharedMemory::end_product(uint32_t address, uint32_t thread) {
  for_words(address, 16, [&](Word& word, uint32_t) {
    --word.products;
    remember_read(word, thread);
  });
}

}  // namespace sce_fast::emulator
