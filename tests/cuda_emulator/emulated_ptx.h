// The functions of csrc/cuda/ptx.cuh on a CPU. The layouts of fragments were written a second time from the PTX ISA
// (chapters in ptx.cuh), element by element.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define SCE_FAST_DEVICE inline
#define SCE_FAST_ANYWHERE inline

namespace sce_fast::ptx {

inline uint32_t thread_index() { return emulator::thread(); }
inline Index block_index() {
  const emulator::Size at = emulator::block();
  return {at.x, at.y, at.z};
}
inline Shared shared_memory() { return emulator::kSharedStart; }

inline void barrier() { emulator::barrier(); }
inline void wait_for_launches() { emulator::wait_for_launches(); }

inline void store_shared(Shared to, const Chunk& chunk) { emulator::write_shared(to, &chunk, 16); }
inline void store_shared(Shared to, const FloatQuad& quad) { emulator::write_shared(to, &quad, 16); }
inline void store_shared(Shared to, float value) { emulator::write_shared(to, &value, 4); }
inline void store_shared(Shared to, const FloatPair& pair) { emulator::write_shared(to, &pair, 8); }
inline float load_shared(Shared from) {
  float value;
  emulator::read_shared(from, &value, 4, emulator::thread());
  return value;
}

inline void copy_async(Shared to, const void* from, bool wanted) { emulator::start_copy(to, from, 16, wanted); }
inline void copy_async_commit() { emulator::close_copy_group(); }
template <int kPending>
void copy_async_wait() {
  emulator::wait_copies(kPending);
}

namespace detail {

struct ShuffleOperand {
  float value, result;
  int other;  // a lane, or the bits in which its number differs
};

template <bool kXor>
void shuffle(void* const* operands) {
  for (int lane = 0; lane < 32; ++lane) {
    auto& mine = *static_cast<ShuffleOperand*>(operands[lane]);
    if (mine.other < 0 || mine.other > 31) emulator::fail("shuffles with lane or mask %d", mine.other);
    mine.result = static_cast<ShuffleOperand*>(operands[kXor ? lane ^ mine.other : mine.other])->value;
  }
}

}  // namespace detail

inline float shuffle_xor(float value, int mask) {
  detail::ShuffleOperand operand{value, 0.f, mask};
  emulator::together("shuffle", &operand, &detail::shuffle<true>);
  return operand.result;
}

inline float shuffle(float value, int lane) {
  detail::ShuffleOperand operand{value, 0.f, lane};
  emulator::together("shuffle of lanes", &operand, &detail::shuffle<false>);
  return operand.result;
}

// ---------------------------------------------------------------------------------------------- numbers

inline float to_float(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

inline float to_float(Float16 x) {
  _Float16 half;
  memcpy(&half, &x.bits, 2);
  return static_cast<float>(half);
}

// Rounds to nearest, ties to even; NaN stays NaN.
template <class T>
uint16_t round_to(float x) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (std::isnan(x)) return 0x7FFF;
    return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
  } else {
    const _Float16 half = static_cast<_Float16>(x);
    uint16_t bits;
    memcpy(&bits, &half, 2);
    return bits;
  }
}

template <class T>
uint32_t pack(float low, float high) {
  return round_to<T>(low) | static_cast<uint32_t>(round_to<T>(high)) << 16;
}

// ex2.approx.ftz: subnormal results are 0.
inline float exp2(float x) {
  const float result = std::exp2(x);
  return result < std::numeric_limits<float>::min() ? 0.f : result;
}

// ---------------------------------------------------------------------------------------------- tensor cores

namespace detail {

struct MatricesOperand {
  Shared row;
  uint32_t* words;
};

// ldmatrix.x4: lane l has the address of row l mod 8 of matrix l / 8.
template <bool kTransposed>
void load_matrices(void* const* operands) {
  const uint32_t warp = emulator::thread() / 32 * 32;
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t rows[8][8];
    for (int r = 0; r < 8; ++r) {
      const int lane = matrix * 8 + r;
      emulator::read_shared(static_cast<MatricesOperand*>(operands[lane])->row, rows[r], 16, warp + lane);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int row = lane / 4, column = lane % 4 * 2;
      const uint16_t low = kTransposed ? rows[column][row] : rows[row][column];
      const uint16_t high = kTransposed ? rows[column + 1][row] : rows[row][column + 1];
      static_cast<MatricesOperand*>(operands[lane])->words[matrix] = low | static_cast<uint32_t>(high) << 16;
    }
  }
}

struct ProductOperand {
  float* c;
  const uint32_t* a;
  uint32_t b[2];
};

template <class T>
float half_of(uint32_t word, int half) {
  return to_float(T{static_cast<uint16_t>(word >> (16 * half))});
}

// mma.m16n8k16. Not instrumented: it works on local arrays and takes most of the time.
template <class T>
__attribute__((no_sanitize("address", "undefined"), optimize("O3"))) void multiply_add(void* const* operands) {
  float a[16][16], b[8][16], c[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& o = *static_cast<const ProductOperand*>(operands[lane]);
    const int group = lane / 4, in_group = lane % 4;
    for (int i = 0; i < 8; ++i) {  // a_i
      const int row = (i < 2 || (i >= 4 && i < 6)) ? group : group + 8;
      const int column = in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
      a[row][column] = half_of<T>(o.a[i / 2], i % 2);
    }
    for (int i = 0; i < 4; ++i) {  // b_i
      const int row = in_group * 2 + (i & 1) + (i < 2 ? 0 : 8);
      b[group][row] = half_of<T>(o.b[i / 2], i % 2);
    }
    for (int i = 0; i < 4; ++i) c[i < 2 ? group : group + 8][in_group * 2 + (i & 1)] = o.c[i];
  }
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column)
      for (int k = 0; k < 16; ++k) c[row][column] += a[row][k] * b[column][k];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i)
      static_cast<ProductOperand*>(operands[lane])->c[i] = c[lane / 4 + (i < 2 ? 0 : 8)][lane % 4 * 2 + (i & 1)];
}

}  // namespace detail

inline void load_matrices(uint32_t (&words)[4], Shared row) {
  detail::MatricesOperand operand{row, words};
  emulator::together("ldmatrix", &operand, &detail::load_matrices<false>);
}

inline void load_matrices_transposed(uint32_t (&words)[4], Shared row) {
  detail::MatricesOperand operand{row, words};
  emulator::together("ldmatrix.trans", &operand, &detail::load_matrices<true>);
}

template <class T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  detail::ProductOperand operand{c, a, {b0, b1}};
  emulator::together("mma", &operand, &detail::multiply_add<T>);
}

// ---------------------------------------------------------------------------------------------- host

template <class... P>
void launch(const Launch& to, void (*kernel)(P...), typename Same<P>::type... parameters) {
  emulator::run({to.kernel, {to.grid.x, to.grid.y, to.grid.z}, to.threads, to.shared_bytes, to.depends, to.cluster},
                [&] { kernel(parameters...); });
}

}  // namespace sce_fast::ptx
