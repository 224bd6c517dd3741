// Runs a kernel on a CPU: blocks one after another, each thread of a block a fiber, in an order drawn from a seed.
#pragma once

#include <cstdint>
#include <functional>

namespace sce_fast::emulator {

constexpr uint32_t kWarpSize = 32;
// The largest shared memory of a block on any architecture: sm_90, sm_100.
constexpr uint32_t kMostSharedBytes = 227 << 10;

struct Size {
  uint32_t x, y, z;
};

// The order of blocks and threads from here on.
void set_seed(uint64_t seed);

// Runs `body` for every thread of every block. Prints what is wrong to stderr and ends the process with status 3.
void run(const char* kernel, Size grid, uint32_t threads, uint32_t shared_bytes, const std::function<void()>& body);

// Ends the process with a message that names the kernel, the block and the thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- what a running thread calls

uint32_t thread();
Size block();

// Returns when all threads of the block have come here.
void barrier();

// Returns when all lanes of the warp have come here with operation `name`; `act` has then been called once with what
// each lane brought.
void together(const char* name, void* operand, void (*act)(void* const* operands));

// Shared memory by address. Two threads that touch a word between the same two barriers, one of them writing, race:
// that ends the run whatever the order was.
constexpr uint32_t kSharedStart = 0x400;
void read_shared(uint32_t from, void* to, uint32_t bytes, uint32_t reader);
void write_shared(uint32_t to, const void* from, uint32_t bytes);

// An asynchronous copy: the destination holds NaN patterns and may not be read until `wait_copies` of this thread
// delivers it. Zeros are delivered instead of what is not wanted.
void start_copy(uint32_t to, const void* from, uint32_t bytes, bool wanted);
void close_copy_group();
void wait_copies(uint32_t groups_under_way);

}  // namespace sce_fast::emulator
