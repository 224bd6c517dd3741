// The only functions through which a kernel touches the hardware. tests/cuda_emulator implements the same names on a
// CPU, so kernel files hold no inline assembly, no <<<>>>, no built-in variable and no __CUDA_ARCH__. Everything here
// exists since sm_80. Names and layouts follow the PTX ISA, whose chapters stand in brackets.
#pragma once

#include <cstdint>

namespace sce_fast {

// The bits of a 16-bit number; arithmetic is in float.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

namespace ptx {

// A 16-byte access.
struct alignas(16) Chunk {
  uint32_t words[4];
};
struct alignas(8) FloatPair {
  float first, second;
};
struct alignas(16) FloatQuad {
  float values[4];
};
struct Index {
  uint32_t x, y, z;
};
// An address in the block's shared memory, in bytes.
using Shared = uint32_t;

struct Launch {
  const char* kernel;  // for error messages
  Index grid;
  uint32_t threads, shared_bytes;
  void* stream;
  bool depends = false;  // may begin before the previous launch has ended and waits for it; from sm_90 on
  uint32_t cluster = 1;  // blocks along y that run at the same time; at most 8, from sm_90 on
};

template <class T>
struct Same {
  using type = T;
};

}  // namespace ptx
}  // namespace sce_fast

#if defined(SCE_FAST_EMULATED)
#include "emulated_ptx.h"
#else
#include <cuda_runtime_api.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define SCE_FAST_DEVICE __device__ __forceinline__
#define SCE_FAST_ANYWHERE __host__ __device__ __forceinline__

namespace sce_fast::ptx {

// ---------------------------------------------------------------------------------------------- who and where

SCE_FAST_DEVICE uint32_t thread_index() { return threadIdx.x; }
SCE_FAST_DEVICE Index block_index() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }

// The start of the block's dynamic shared memory.
SCE_FAST_DEVICE Shared shared_memory() {
  extern __shared__ __align__(128) unsigned char sce_fast_shared_memory[];
  return static_cast<Shared>(__cvta_generic_to_shared(sce_fast_shared_memory));
}

// ---------------------------------------------------------------------------------------------- synchronisation

SCE_FAST_DEVICE void barrier() { __syncthreads(); }

// griddepcontrol.wait [9.7.13.13]: waits until the launches that this one depends on have ended and their writes are
// visible.
SCE_FAST_DEVICE void wait_for_launches() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

SCE_FAST_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, value, mask); }
// The value of another lane.
SCE_FAST_DEVICE float shuffle(float value, int lane) { return __shfl_sync(0xFFFFFFFFu, value, lane); }

// ---------------------------------------------------------------------------------------------- shared memory

SCE_FAST_DEVICE void store_shared(Shared to, const Chunk& c) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(c.words[0]), "r"(c.words[1]), "r"(c.words[2]),
               "r"(c.words[3])
               : "memory");
}

SCE_FAST_DEVICE void store_shared(Shared to, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(value) : "memory");
}

SCE_FAST_DEVICE void store_shared(Shared to, const FloatQuad& q) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(q.values[0]), "f"(q.values[1]),
               "f"(q.values[2]), "f"(q.values[3])
               : "memory");
}

SCE_FAST_DEVICE void store_shared(Shared to, const FloatPair& p) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(p.first), "f"(p.second) : "memory");
}

SCE_FAST_DEVICE float load_shared(Shared from) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(from) : "memory");
  return value;
}

// cp.async [9.7.9.25.3.1]: copies 16 bytes to shared memory, or writes zeros if they are not wanted (`from` is then not
// read). Complete when this thread has waited for the copy's group; visible to other threads after a barrier.
SCE_FAST_DEVICE void copy_async(Shared to, const void* from, bool wanted) {
  const size_t source = __cvta_generic_to_global(from);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(source), "r"(wanted ? 16 : 0) : "memory");
}

// Closes the group of the copies issued since the last group.
SCE_FAST_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's newest groups are under way.
template <int kPending>
SCE_FAST_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---------------------------------------------------------------------------------------------- tensor cores

// ldmatrix.x4 [9.7.14.5.15]: loads four 8 × 8 matrices of 16-bit numbers. Lane l points to row l mod 8 of matrix l / 8
// and gets in word j the numbers 2 (l mod 4) and + 1 of row l / 4 of matrix j, or of its transpose with `_transposed`.
SCE_FAST_DEVICE void load_matrices(uint32_t (&words)[4], Shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(row)
               : "memory");
}

SCE_FAST_DEVICE void load_matrices_transposed(uint32_t (&words)[4], Shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(row)
               : "memory");
}

// mma.m16n8k16 [9.7.14.5.8]: c (16 × 8) += a (16 × 16) b (16 × 8), products of T summed in float. With g = lane / 4 and
// t = lane mod 4: a[0], a[2] hold columns 2t, 2t + 8 and next of row g, a[1], a[3] of row g + 8; b0, b1 hold rows 2t,
// 2t + 8 and next of column g; c[0], c[1] hold columns 2t and next of row g, c[2], c[3] of row g + 8.
template <class T>
SCE_FAST_DEVICE void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, BFloat16>)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---------------------------------------------------------------------------------------------- numbers

// 2^x, relative error below 2^-22; subnormal results are 0.
SCE_FAST_DEVICE float exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Two numbers rounded to nearest even, `low` in the lower half.
template <class T>
SCE_FAST_DEVICE uint32_t pack(float low, float high) {
  uint32_t word;
  if constexpr (std::is_same_v<T, BFloat16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

SCE_FAST_DEVICE float to_float(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
SCE_FAST_DEVICE float to_float(Float16 x) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
}

// ---------------------------------------------------------------------------------------------- host

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(status) + ", " + cudaGetErrorString(status));
}

// Lets a kernel take more shared memory than a block may without asking. The runtime is asked once for each device and
// thread: a kernel always takes the same amount.
inline void allow_shared_memory(const Launch& to, const void* kernel) {
  constexpr uint32_t kWithoutAsking = 48 << 10;
  if (to.shared_bytes <= kWithoutAsking) return;
  thread_local std::vector<std::pair<const void*, int> > allowed;
  std::pair<const void*, int> here{kernel, 0};
  check(cudaGetDevice(&here.second), "cudaGetDevice");
  if (std::find(allowed.begin(), allowed.end(), here) != allowed.end()) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, to.shared_bytes), to.kernel);
  allowed.push_back(here);
}

// Starts a kernel; an error names it.
template <class... P>
void launch(const Launch& to, void (*kernel)(P...), typename Same<P>::type... parameters) {
  const void* function = reinterpret_cast<const void*>(kernel);
  allow_shared_memory(to, function);
  void* arguments[] = {&parameters...};
  cudaLaunchAttribute attributes[2]{};
  unsigned count = 0;
  if (to.depends) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (to.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {1, to.cluster, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(to.grid.x, to.grid.y, to.grid.z);
  config.blockDim = dim3(to.threads);
  config.dynamicSmemBytes = to.shared_bytes;
  config.stream = static_cast<cudaStream_t>(to.stream);
  config.attrs = attributes;
  config.numAttrs = count;
  check(cudaLaunchKernelExC(&config, function, arguments), to.kernel);
}

}  // namespace sce_fast::ptx
#endif
