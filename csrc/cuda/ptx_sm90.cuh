// The functions of Hopper (sm_90a): tiles by TMA, mbarriers, products of a whole warpgroup (wgmma), registers moved
// between warpgroups. As in ptx.cuh, tests/cuda_emulator implements them on a CPU, and chapters of the PTX ISA stand in
// brackets.
#pragma once

#include "ptx.cuh"

namespace sce_fast::ptx {

constexpr int kWarpgroupSize = 128;
// A tile in shared memory is a row of boxes, each 64 numbers of 16 bits wide. The 16-byte chunks of a box's rows (128
// bytes) are permuted by the row's number mod 8 ("128-byte swizzle"): chunk c of row r stands at c ^ (r mod 8). The
// pattern is a function of the address, so a tile starts at a multiple of 1024.
constexpr int kBoxColumns = 64, kBoxRowBytes = 128, kSwizzleAlignment = 1024;

// Describes an operand of wgmma in shared memory [9.7.15.5.1.2.2]: start, leading and stride byte offset in units of
// 16, and a 1 in bits 62 and 63 for the 128-byte swizzle.
SCE_FAST_DEVICE uint64_t descriptor(Shared start, uint32_t leading_bytes, uint32_t stride_bytes) {
  return static_cast<uint64_t>((start & 0x3FFFF) >> 4) | static_cast<uint64_t>(leading_bytes >> 4) << 16 |
         static_cast<uint64_t>(stride_bytes >> 4) << 32 | uint64_t{1} << 62;
}

// Uses the rows of a box: 16 columns are one step of the product's depth, and eight rows repeat after 1024 bytes. The
// leading offset has no meaning here; 1 is customary.
SCE_FAST_DEVICE uint64_t descriptor_of_rows(Shared start) { return descriptor(start, 16, 8 * kBoxRowBytes); }

// Uses the columns, transposed: 16 rows of the boxes are one step of the depth. The next 64 columns stand one box
// further, the next eight rows of depth after 1024 bytes.
SCE_FAST_DEVICE uint64_t descriptor_of_columns(Shared start, uint32_t box_bytes) {
  return descriptor(start, box_bytes, 8 * kBoxRowBytes);
}

}  // namespace sce_fast::ptx

#if defined(SCE_FAST_EMULATED)
#include "emulated_ptx_sm90.h"
#else
#include <cuda.h>

namespace sce_fast::ptx {

// ---------------------------------------------------------------------------------------------- synchronisation

// Returns a value that is the same in all lanes of a warp, so that the compiler knows it is.
SCE_FAST_DEVICE int warp_uniform(int value) { return __shfl_sync(0xFFFFFFFFu, value, 0); }

// bar [9.7.13.1]: waits until `threads` threads have come to barrier `id` (1 to 15), by this or by the next function.
SCE_FAST_DEVICE void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
SCE_FAST_DEVICE void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// mbarrier [9.7.13.15], 8 bytes of shared memory: a phase ends after so many arrivals and after all expected bytes have
// come; phases count from 0.
SCE_FAST_DEVICE void mbarrier_init(Shared barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes the mbarriers that this thread has initialised known to TMA; other threads see them after a barrier.
SCE_FAST_DEVICE void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
SCE_FAST_DEVICE void mbarrier_arrive(Shared barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and makes the phase expect so many bytes.
SCE_FAST_DEVICE void mbarrier_arrive_expect(Shared barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Waits until the newest phase of this parity has ended; returns at once for parity 1 if no phase has ended yet.
SCE_FAST_DEVICE void mbarrier_wait(Shared barrier, uint32_t parity) {
  uint32_t ended;
  do {
    asm volatile(
        "{\n.reg .pred ended;\nmbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\nselp.u32 %0, 1, 0, ended;\n}"
        : "=r"(ended)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (!ended);
}

// fence.proxy.async: makes this thread's stores to shared memory visible to later products and bulk copies, to those of
// other threads after a barrier.
SCE_FAST_DEVICE void fence_stores_for_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// setmaxnreg [9.7.19.5]: all threads of a warpgroup give registers back, or wait until they get some.
template <int kRegisters>
SCE_FAST_DEVICE void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
SCE_FAST_DEVICE void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// griddepcontrol [9.7.13.13]: lets a dependent launch begin once all blocks have come here or ended.
SCE_FAST_DEVICE void let_dependents_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// ---------------------------------------------------------------------------------------------- clusters

// %cluster_ctarank [10.26]: the number of this block in its cluster.
SCE_FAST_DEVICE uint32_t cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// barrier.cluster [9.7.13.4]: waits until all threads of the cluster that have not ended have come here; then they see
// what was stored to shared memory before.
SCE_FAST_DEVICE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// mapa [9.7.9.22], ld.shared::cluster: loads from the same address in the shared memory of another block of the cluster.
// That block must not end before.
SCE_FAST_DEVICE FloatQuad load_shared_of(uint32_t rank, Shared from) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(from), "r"(rank));
  FloatQuad q;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(q.values[0]), "=f"(q.values[1]), "=f"(q.values[2]), "=f"(q.values[3])
               : "r"(there)
               : "memory");
  return q;
}

// ---------------------------------------------------------------------------------------------- bulk copies

// (matrices, rows, columns) of 16-bit numbers, cut into boxes.
struct TensorMap {
  CUtensorMap map;
};

// cp.async.bulk.tensor [9.7.9.27]: copies the box at (matrix, row, column) to `to`, with zeros beyond the tensor, and
// then reports its bytes to the barrier. Called by one thread.
SCE_FAST_DEVICE void copy_box(Shared to, const TensorMap& from, Shared barrier, int column, int row, int matrix) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(to),
      "l"(reinterpret_cast<uint64_t>(&from.map)), "r"(barrier), "r"(column), "r"(row), "r"(matrix)
      : "memory");
}

// ---------------------------------------------------------------------------------------------- tensor cores

// Separates the last access to registers from a product that uses them.
SCE_FAST_DEVICE void product_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Closes the group of the products issued since the last group.
SCE_FAST_DEVICE void product_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most kPending of the warp's newest groups are under way.
template <int kPending>
SCE_FAST_DEVICE void product_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler, which does not know of products under way, from moving accesses to these registers across.
template <int kCount>
SCE_FAST_DEVICE void pin(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int kCount>
SCE_FAST_DEVICE void pin(uint32_t (&registers)[kCount][4]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) asm volatile("" : "+r"(registers[i][j])::"memory");
}

// The names of operands %0, %1, … and their values, ten at a time.
#define SCE_FAST_NAMES_2(tens) "%" tens "0, %" tens "1"
#define SCE_FAST_NAMES_4(tens) SCE_FAST_NAMES_2(tens) ", %" tens "2, %" tens "3"
#define SCE_FAST_NAMES_6(tens) SCE_FAST_NAMES_4(tens) ", %" tens "4, %" tens "5"
#define SCE_FAST_NAMES_8(tens) SCE_FAST_NAMES_6(tens) ", %" tens "6, %" tens "7"
#define SCE_FAST_NAMES_10(tens) SCE_FAST_NAMES_8(tens) ", %" tens "8, %" tens "9, "
#define SCE_FAST_VALUES_2(i) "+f"(d[i]), "+f"(d[i + 1])
#define SCE_FAST_VALUES_4(i) SCE_FAST_VALUES_2(i), SCE_FAST_VALUES_2(i + 2)
#define SCE_FAST_VALUES_6(i) SCE_FAST_VALUES_4(i), SCE_FAST_VALUES_2(i + 4)
#define SCE_FAST_VALUES_8(i) SCE_FAST_VALUES_4(i), SCE_FAST_VALUES_4(i + 4)
#define SCE_FAST_VALUES_10(i) SCE_FAST_VALUES_8(i), SCE_FAST_VALUES_2(i + 8)
#define SCE_FAST_NAMES_30 SCE_FAST_NAMES_10("") SCE_FAST_NAMES_10("1") SCE_FAST_NAMES_10("2")
#define SCE_FAST_NAMES_60 SCE_FAST_NAMES_30 SCE_FAST_NAMES_10("3") SCE_FAST_NAMES_10("4") SCE_FAST_NAMES_10("5")
#define SCE_FAST_NAMES_90 SCE_FAST_NAMES_60 SCE_FAST_NAMES_10("6") SCE_FAST_NAMES_10("7") SCE_FAST_NAMES_10("8")
#define SCE_FAST_VALUES_30 SCE_FAST_VALUES_10(0), SCE_FAST_VALUES_10(10), SCE_FAST_VALUES_10(20)
#define SCE_FAST_VALUES_60 SCE_FAST_VALUES_30, SCE_FAST_VALUES_10(30), SCE_FAST_VALUES_10(40), SCE_FAST_VALUES_10(50)
#define SCE_FAST_VALUES_90 SCE_FAST_VALUES_60, SCE_FAST_VALUES_10(60), SCE_FAST_VALUES_10(70), SCE_FAST_VALUES_10(80)
// The accumulators by number of columns, and their names.
#define SCE_FAST_NAMES_OF_64 SCE_FAST_NAMES_30 SCE_FAST_NAMES_2("3")
#define SCE_FAST_NAMES_OF_80 SCE_FAST_NAMES_30 "%30, %31, %32, %33, %34, %35, %36, %37, %38, %39"
#define SCE_FAST_NAMES_OF_112 SCE_FAST_NAMES_30 SCE_FAST_NAMES_10("3") SCE_FAST_NAMES_10("4") SCE_FAST_NAMES_6("5")
#define SCE_FAST_NAMES_OF_128 SCE_FAST_NAMES_60 SCE_FAST_NAMES_4("6")
#define SCE_FAST_NAMES_OF_192 SCE_FAST_NAMES_90 SCE_FAST_NAMES_6("9")
#define SCE_FAST_NAMES_OF_256 \
  SCE_FAST_NAMES_90 SCE_FAST_NAMES_10("9") SCE_FAST_NAMES_10("10") SCE_FAST_NAMES_10("11") SCE_FAST_NAMES_8("12")
#define SCE_FAST_VALUES_OF_64 SCE_FAST_VALUES_30, SCE_FAST_VALUES_2(30)
#define SCE_FAST_VALUES_OF_80 SCE_FAST_VALUES_30, SCE_FAST_VALUES_10(30)
#define SCE_FAST_VALUES_OF_112 SCE_FAST_VALUES_30, SCE_FAST_VALUES_10(30), SCE_FAST_VALUES_10(40), SCE_FAST_VALUES_6(50)
#define SCE_FAST_VALUES_OF_128 SCE_FAST_VALUES_60, SCE_FAST_VALUES_4(60)
#define SCE_FAST_VALUES_OF_192 SCE_FAST_VALUES_90, SCE_FAST_VALUES_6(90)
#define SCE_FAST_VALUES_OF_256 \
  SCE_FAST_VALUES_90, SCE_FAST_VALUES_10(90), SCE_FAST_VALUES_10(100), SCE_FAST_VALUES_10(110), SCE_FAST_VALUES_8(120)

#define SCE_FAST_PRODUCT(columns, type, a, b, accumulate, transposed, ...)                                            \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " accumulate                                                     \
               ", 0;\n"                                                                                               \
               "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type " {" SCE_FAST_NAMES_OF_##columns \
               "}, " a ", " b ", add, 1, 1, " transposed ";\n}"                                                       \
               : SCE_FAST_VALUES_OF_##columns                                                                         \
               : __VA_ARGS__)

// d += a b, with both from shared memory as rows of their boxes.
#define SCE_FAST_PRODUCT_OF_SHARED(columns, i0, i1, i2)                                               \
  if constexpr (kColumns == columns) {                                                                \
    if constexpr (std::is_same_v<T, BFloat16>)                                                        \
      SCE_FAST_PRODUCT(columns, "bf16", i0, i1, i2, "0, 0", "l"(a), "l"(b), "r"(accumulate ? 1 : 0)); \
    else                                                                                              \
      SCE_FAST_PRODUCT(columns, "f16", i0, i1, i2, "0, 0", "l"(a), "l"(b), "r"(accumulate ? 1 : 0));  \
  }

// d += a b, with a from registers and b from shared memory as columns of its boxes.
#define SCE_FAST_PRODUCT_OF_REGISTERS(columns, i0, i1, i2, i3, i4, i5)                                         \
  if constexpr (kColumns == columns) {                                                                         \
    if constexpr (std::is_same_v<T, BFloat16>)                                                                 \
      SCE_FAST_PRODUCT(columns, "bf16", "{" i0 ", " i1 ", " i2 ", " i3 "}", i4, i5, "1", "r"(a[0]), "r"(a[1]), \
                       "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));                                                  \
    else                                                                                                       \
      SCE_FAST_PRODUCT(columns, "f16", "{" i0 ", " i1 ", " i2 ", " i3 "}", i4, i5, "1", "r"(a[0]), "r"(a[1]),  \
                       "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));                                                  \
  }

// wgmma.m64nNk16 [9.7.15.5.1]: d (64 × kColumns) = a (64 × 16) bᵀ, plus d where it accumulates; products of T summed in
// float. Warp w of the warpgroup holds rows 16 w to 16 w + 15; with g = lane / 4 and t = lane mod 4, d[4 j], d[4 j + 1]
// are columns 8 j + 2 t and next of its row g, d[4 j + 2], d[4 j + 3] of row g + 8. Runs until product_wait.
template <class T, int kColumns>
SCE_FAST_DEVICE void multiply_shared(float (&d)[kColumns / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(kColumns == 80 || kColumns == 112 || kColumns == 128);
  SCE_FAST_PRODUCT_OF_SHARED(80, "%40", "%41", "%42")
  SCE_FAST_PRODUCT_OF_SHARED(112, "%56", "%57", "%58")
  SCE_FAST_PRODUCT_OF_SHARED(128, "%64", "%65", "%66")
}

// d (64 × kColumns) += a (64 × 16) b, with a in each warp as the left operand of mma.m16n8k16 and b (16 × kColumns)
// from shared memory, transposed.
template <class T, int kColumns>
SCE_FAST_DEVICE void multiply_registers(float (&d)[kColumns / 2], const uint32_t (&a)[4], uint64_t b) {
  static_assert(kColumns == 64 || kColumns == 128 || kColumns == 192 || kColumns == 256);
  SCE_FAST_PRODUCT_OF_REGISTERS(64, "%32", "%33", "%34", "%35", "%36", "%37")
  SCE_FAST_PRODUCT_OF_REGISTERS(128, "%64", "%65", "%66", "%67", "%68", "%69")
  SCE_FAST_PRODUCT_OF_REGISTERS(192, "%96", "%97", "%98", "%99", "%100", "%101")
  SCE_FAST_PRODUCT_OF_REGISTERS(256, "%128", "%129", "%130", "%131", "%132", "%133")
}

// ---------------------------------------------------------------------------------------------- host

// Returns the map of a dense tensor (matrices, rows, columns) of T, in boxes of box_rows × 64.
template <class T>
TensorMap make_tensor_map(const void* data, int64_t columns, int64_t rows, int64_t matrices, int32_t box_rows) {
  // The runtime looks up the driver's function, so that nothing is linked with libcuda.
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
          "cudaGetDriverEntryPointByVersion");
    if (found != cudaDriverEntryPointSuccess || function == nullptr)
      throw std::runtime_error("the CUDA driver has no cuTensorMapEncodeTiled; it is older than CUDA 12.0");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  constexpr auto kType =
      std::is_same_v<T, BFloat16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const auto u64 = [](int64_t x) { return static_cast<cuuint64_t>(x); };
  const cuuint64_t sizes[3] = {u64(columns), u64(rows), u64(matrices)};
  const cuuint64_t pitches[2] = {u64(columns * 2), u64(rows * columns * 2)};
  const cuuint32_t box[3] = {kBoxColumns, static_cast<cuuint32_t>(box_rows), 1}, steps[3] = {1, 1, 1};
  TensorMap result;
  const CUresult status =
      encode(&result.map, kType, 3, const_cast<void*>(data), sizes, pitches, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw std::runtime_error("cuTensorMapEncodeTiled: error " + std::to_string(static_cast<int>(status)) + " for " +
                             std::to_string(matrices) + " x " + std::to_string(rows) + " x " + std::to_string(columns));
  return result;
}

}  // namespace sce_fast::ptx
#endif
