// Runs a kernel on a CPU: blocks, or clusters of blocks, run one after another; threads are fibers. A seed draws their
// order, and in a cluster the block that begins. It runs as long as it can; then the first block that can run goes on.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace sce_fast::emulator {

constexpr uint32_t kWarpSize = 32, kWarpgroupSize = 128;
// The largest shared memory of a block on any architecture (sm_90, sm_100).
constexpr uint32_t kMostSharedBytes = 227 << 10;

constexpr uint32_t kMostClusterBlocks = 8;  // on every GPU with clusters

struct Size {
  uint32_t x, y, z;
};

struct LaunchedKernel {
  const char* name;
  Size grid;
  uint32_t threads, shared_bytes;
  bool depends;          // it may begin before the previous launch has ended, so each of its threads must wait
  uint32_t cluster = 1;  // blocks along y that run at the same time and read each other's shared memory
};

// Sets the seed of what is drawn from now on.
void set_seed(uint64_t seed);

// Runs `body` for every thread of every block. A mistake is printed to stderr and ends the process with status 3.
void run(const LaunchedKernel& kernel, const std::function<void()>& body);

// Ends the process with a message that names the kernel, the block and the thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- what a running thread calls

uint32_t thread();
Size block();

// Waits until all threads of the block have come here.
void barrier();
// Comes to barrier `id`, which ends when `threads` threads have come; returns then if it `waits`, otherwise at once.
void named_barrier(uint32_t id, uint32_t threads, bool waits);

// The number of this block in its cluster.
uint32_t cluster_rank();
// Waits until all threads of the cluster that have not ended have come here.
void cluster_barrier();
// Reads shared memory of another block of the cluster, written before the last barrier of the cluster.
void read_shared_of(uint32_t rank, uint32_t from, void* to, uint32_t bytes);

// Waits until all lanes of the warp, or all threads of the warpgroup, have come here with operation `name`. The last
// one calls `act` with the operands of all.
void together(const char* name, void* operand, void (*act)(void* const* operands));
void together_as_warpgroup(const char* name, void* operand, void (*act)(void* const* operands));

// Changes the registers of this thread; other threads can take the ones that it gives back.
void change_registers(uint32_t count, bool grows);

void wait_for_launches();

// Shared memory by address. The start is less aligned than swizzled tiles require: a kernel must align them itself.
constexpr uint32_t kSharedStart = 0x480;
void read_shared(uint32_t from, void* to, uint32_t bytes, uint32_t reader);
void write_shared(uint32_t to, const void* from, uint32_t bytes);

// Starts an asynchronous copy: the destination holds NaN patterns and must not be read until `wait_copies` of this
// thread delivers it. A copy that is not wanted delivers zeros.
void start_copy(uint32_t to, const void* from, uint32_t bytes, bool wanted);
void close_copy_group();
void wait_copies(uint32_t groups_under_way);

// Lets products read what this thread has stored, once other threads know of it.
void fence_stores_for_products();

// ---- mbarriers and bulk copies (mbarriers.cpp)

constexpr uint32_t kMostMbarriers = 32;
void mbarrier_init(uint32_t barrier, uint32_t arrivals);
void mbarrier_init_fence();
// Arrives, after making the phase expect so many bytes of bulk copies.
void mbarrier_arrive(uint32_t barrier, uint32_t bytes);
void mbarrier_wait(uint32_t barrier, uint32_t parity);

// A dense tensor (matrices, rows, columns) of 16-bit numbers, and the rows of a box of 64 columns.
struct Tensor {
  const void* data;
  int64_t columns, rows, matrices;
  int32_t box_rows;
};
// Starts the copy of a box, with zeros beyond the tensor, to a place with 128-byte swizzle. Its bytes are delivered
// when a thread waits for the barrier; a thread that has not waited must not read them.
void copy_box(uint32_t to, const Tensor& from, uint32_t barrier, int column, int row, int matrix);

// ---- products of a warpgroup (products.cpp)

void product_fence();
void product_commit();
// Delivers to this thread's registers the results of all but its newest `groups_under_way` groups.
void product_wait(uint32_t groups_under_way);

struct ProductOperand {
  float* accumulators;
  uint32_t count;             // N / 2
  const uint32_t* registers;  // 4 words of the left operand, or null
};
// Returns the 64 × N sums, row by row, of the product that the warpgroup now issues. They are hidden from the threads,
// whose accumulators hold NaN patterns until they wait.
float* begin_product(void* const* operands, bool accumulate);
// Returns 16 bytes of shared memory that the product reads.
const void* product_reads(uint32_t address);

// ---- between the files of the emulator

class SharedMemory;
SharedMemory& shared_memory();
uint64_t draw(uint64_t below);
void wait_for(std::string what);  // a deadlock's report shows `what`
void let_run(uint32_t thread);
void let_others_run();
void reset_mbarriers(uint32_t threads);
void check_no_bulk_copy_under_way();
void reset_products(uint32_t threads);
void check_no_product_under_way();  // of this thread

}  // namespace sce_fast::emulator
