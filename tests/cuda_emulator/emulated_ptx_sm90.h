// The functions of csrc/cuda/ptx_sm90.cuh on a CPU. Layouts follow the PTX ISA (chapters in ptx_sm90.cuh): a product
// reads its operands, element by element, at the addresses that the bits of their descriptors give.
#pragma once

namespace sce_fast::ptx {

inline int warp_uniform(int value) {
  emulator::together("warp_uniform", &value, [](void* const* operands) {
    for (int lane = 1; lane < 32; ++lane)
      if (*static_cast<int*>(operands[lane]) != *static_cast<int*>(operands[0]))
        emulator::fail("lanes of a warp bring different values, expected the same");
  });
  return value;
}

inline void named_barrier(int id, int threads) { emulator::named_barrier(id, threads, true); }
inline void named_barrier_arrive(int id, int threads) { emulator::named_barrier(id, threads, false); }

inline void mbarrier_init(Shared barrier, uint32_t arrivals) { emulator::mbarrier_init(barrier, arrivals); }
inline void mbarrier_init_fence() { emulator::mbarrier_init_fence(); }
inline void mbarrier_arrive(Shared barrier) { emulator::mbarrier_arrive(barrier, 0); }
inline void mbarrier_arrive_expect(Shared barrier, uint32_t bytes) { emulator::mbarrier_arrive(barrier, bytes); }
inline void mbarrier_wait(Shared barrier, uint32_t parity) { emulator::mbarrier_wait(barrier, parity); }

inline void fence_stores_for_products() { emulator::fence_stores_for_products(); }

template <int kRegisters>
void shrink_registers() {
  emulator::change_registers(kRegisters, false);
}
template <int kRegisters>
void grow_registers() {
  emulator::change_registers(kRegisters, true);
}

inline void let_dependents_start() {}

inline uint32_t cluster_rank() { return emulator::cluster_rank(); }
inline void cluster_barrier() { emulator::cluster_barrier(); }
inline FloatQuad load_shared_of(uint32_t rank, Shared from) {
  FloatQuad quad;
  emulator::read_shared_of(rank, from, &quad, 16);
  return quad;
}

// ---------------------------------------------------------------------------------------------- bulk copies

struct TensorMap {
  emulator::Tensor tensor;
};

inline void copy_box(Shared to, const TensorMap& from, Shared barrier, int column, int row, int matrix) {
  emulator::copy_box(to, from.tensor, barrier, column, row, matrix);
}

// ---------------------------------------------------------------------------------------------- tensor cores

inline void product_fence() { emulator::product_fence(); }
inline void product_commit() { emulator::product_commit(); }
template <int kPending>
void product_wait() {
  emulator::product_wait(kPending);
}

template <class T>
void pin(T&) {}

namespace detail {

// The fields of a descriptor.
struct Operand {
  explicit Operand(uint64_t bits)
      : start((bits & 0x3FFF) << 4), leading((bits >> 16 & 0x3FFF) << 4), stride((bits >> 32 & 0x3FFF) << 4) {
    if (bits >> 62 != 1) emulator::fail("multiplies with swizzle mode %d, only 1 is emulated", int(bits >> 62));
    if ((bits >> 49 & 7) != 0) emulator::fail("multiplies with a base offset");
  }

  // Swizzle<3, 4, 3>: bits 4 to 6 of an address are XORed with bits 7 to 9.
  static uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

  // Canonical layouts in bytes, T = 8: K-major ((8,m),(T,2k)) : ((8T,SBO),(1,T)), where a step of the depth starts
  // within an atom; MN-major ((T,8,m),(8,k)) : ((1,T,LBO),(8T,SBO)). Returns the address of eight elements from (mn, k)
  // on, along k or mn.
  uint32_t along_k(uint32_t mn, uint32_t k) const { return swizzled(start + mn % 8 * 128 + mn / 8 * stride + k * 2); }
  uint32_t along_mn(uint32_t mn, uint32_t k) const {
    return swizzled(start + mn % 64 * 2 + mn / 64 * leading + k % 8 * 128 + k / 8 * stride);
  }

  uint32_t start, leading, stride;
};

template <class T>
void read_eight(uint32_t address, float* to, int step) {
  uint16_t numbers[8];
  memcpy(numbers, emulator::product_reads(address), 16);
  for (int i = 0; i < 8; ++i) to[i * step] = to_float(T{numbers[i]});
}

// Reads (64 × 16) from the registers of all threads: word i holds row g (i even) or g + 8, columns 2 t and next; from
// word 2 on, the columns are 8 further.
template <class T>
void read_fragments(void* const* operands, float* a) {
  for (int thread = 0; thread < 128; ++thread) {
    const uint32_t* words = static_cast<const emulator::ProductOperand*>(operands[thread])->registers;
    const int row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
    for (int i = 0; i < 4; ++i)
      for (int half = 0; half < 2; ++half)
        a[(row + i % 2 * 8) * 16 + column + i / 2 * 8 + half] = half_of<T>(words[i], half);
  }
}

// d (64 × n) += a (64 × 16) b (16 × n)
__attribute__((no_sanitize("address", "undefined"), optimize("O3"))) inline void add_product(float* d, const float* a,
                                                                                             const float* b, int n) {
  for (int row = 0; row < 64; ++row)
    for (int k = 0; k < 16; ++k) {
      const float left = a[row * 16 + k];
      for (int column = 0; column < n; ++column) d[row * n + column] += left * b[k * n + column];
    }
}

struct WarpgroupOperand : emulator::ProductOperand {
  uint64_t a, b;
  bool accumulate;
};

template <class T, int kColumns, bool kRegisters>
void multiply(void* const* operands) {
  const auto& first = *static_cast<const WarpgroupOperand*>(operands[0]);
  for (int thread = 1; thread < 128; ++thread) {
    const auto& other = *static_cast<const WarpgroupOperand*>(operands[thread]);
    if (other.a != first.a || other.b != first.b || other.accumulate != first.accumulate)
      emulator::fail("threads of a warpgroup bring different operands to a product");
  }
  float* d = emulator::begin_product(operands, first.accumulate);
  float a[64 * 16], b[16 * kColumns];
  const Operand right(first.b);
  if constexpr (kRegisters) {
    read_fragments<T>(operands, a);
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < kColumns; n += 8) read_eight<T>(right.along_mn(n, k), b + k * kColumns + n, 1);
  } else {
    const Operand left(first.a);
    for (int k = 0; k < 16; k += 8) {
      for (int m = 0; m < 64; ++m) read_eight<T>(left.along_k(m, k), a + m * 16 + k, 1);
      for (int n = 0; n < kColumns; ++n) read_eight<T>(right.along_k(n, k), b + k * kColumns + n, kColumns);
    }
  }
  add_product(d, a, b, kColumns);
}

}  // namespace detail

template <class T, int kColumns>
void multiply_shared(float (&d)[kColumns / 2], uint64_t a, uint64_t b, bool accumulate) {
  detail::WarpgroupOperand operand{{d, kColumns / 2, nullptr}, a, b, accumulate};
  emulator::together_as_warpgroup("wgmma", &operand, &detail::multiply<T, kColumns, false>);
}

template <class T, int kColumns>
void multiply_registers(float (&d)[kColumns / 2], const uint32_t (&a)[4], uint64_t b) {
  detail::WarpgroupOperand operand{{d, kColumns / 2, a}, 0, b, true};
  emulator::together_as_warpgroup("wgmma with registers", &operand, &detail::multiply<T, kColumns, true>);
}

// ---------------------------------------------------------------------------------------------- host

inline int tensor_maps_made = 0;

// Throws for tensors that cuTensorMapEncodeTiled refuses.
template <class T>
TensorMap make_tensor_map(const void* data, int64_t columns, int64_t rows, int64_t matrices, int32_t box_rows) {
  const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && columns * 2 % 16 == 0;
  if (!aligned || columns < 1 || rows < 1 || matrices < 1 || rows > int64_t{1} << 32 || box_rows < 1 || box_rows > 256)
    throw std::runtime_error("cuTensorMapEncodeTiled would refuse this tensor");
  ++tensor_maps_made;
  return {{data, columns, rows, matrices, box_rows}};
}

}  // namespace sce_fast::ptx
