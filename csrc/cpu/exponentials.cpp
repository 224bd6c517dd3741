#include "exponentials.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "clones.h"

namespace sce_fast {
namespace {

constexpr float kRoundToWhole = 12582912.f;  // 1.5 · 2²³: adding it removes the fraction
constexpr float kLowest = -126.f, kHighest = 127.5f;

// Fused where the processor can. The build forbids the compiler to fuse, for the sake of other kernels.
template <bool kFused>
SCE_FAST_INLINE float multiply_add(float a, float b, float c) {
  if constexpr (kFused)
    return __builtin_fmaf(a, b, c);
  else
    return a * b + c;
}

// 2^x for x in [kLowest, kHighest]: a polynomial fitted on [-0.5, 0.5] for the fraction, the exponent bits for the
// rest.
template <bool kFused>
SCE_FAST_INLINE float exp2_in_range(float x) {
  const float shifted = x + kRoundToWhole;
  const float f = x - (shifted - kRoundToWhole);
  float y = multiply_add<kFused>(f, 0.00015345f, 0.00133952f);
  y = multiply_add<kFused>(f, y, 0.00961848f);
  y = multiply_add<kFused>(f, y, 0.0555032887f);
  y = multiply_add<kFused>(f, y, 0.240226462f);
  y = multiply_add<kFused>(f, y, 0.693147182f);
  y = multiply_add<kFused>(f, y, 1.f);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(y) + (std::bit_cast<uint32_t>(shifted) << 23));
}

// NaN stays NaN.
SCE_FAST_INLINE uint32_t bfloat16_bits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return value == value ? (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 : 0x7FC0;
}

// With kNarrow the weights are also written to `narrow` in bfloat16; that loop stands alone, as a mix of 16 and 32 bits
// makes compilers spill the exponentials. The vector loop only finds the farthest exponent. If that is out of range, a
// slow path recomputes the row from its logits, which the vector loop keeps.
template <bool kFused, bool kNarrow>
SCE_FAST_INLINE WeightSums exponentials_of(float* __restrict logits, uint16_t* __restrict narrow, int64_t count,
                                           float scale, float shift, float underflow) {
  float kept[kMostExponentials];
  float sum = 0.f, rounded_sum = 0.f;
  int32_t farthest = 0;  // largest |x| as bits, which are ordered like the values, with infinity and NaN last
#pragma omp simd reduction(+ : sum) reduction(max : farthest)
  for (int64_t i = 0; i < count; ++i) {
    kept[i] = logits[i];
    const float x = multiply_add<kFused>(logits[i], scale, -shift);
    const int32_t distance = std::bit_cast<int32_t>(x) & 0x7FFFFFFF;
    farthest = distance > farthest ? distance : farthest;
    const float y = exp2_in_range<kFused>(x);
    sum += y;
    logits[i] = y;
  }
  if (farthest > std::bit_cast<int32_t>(-kLowest)) {
    sum = 0.f;
    for (int64_t i = 0; i < count; ++i) {
      logits[i] = exp2_approximate(multiply_add<kFused>(kept[i], scale, -shift), underflow);
      sum += logits[i];
    }
  }
  if constexpr (!kNarrow) return {sum, sum};
#pragma omp simd reduction(+ : rounded_sum)
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = bfloat16_bits(logits[i]);
    narrow[i] = static_cast<uint16_t>(bits);
    rounded_sum += std::bit_cast<float>(bits << 16);
  }
  return {sum, rounded_sum};
}

struct Functions {
  const char* instructions;
  WeightSums (*in_place)(float*, int64_t, float, float, float);
  WeightSums (*narrowed)(float*, uint16_t*, int64_t, float, float, float);
};

#define SCE_FAST_EXPONENTIALS(NAME, TARGET, FUSED)                                                             \
  TARGET WeightSums in_place_##NAME(float* logits, int64_t count, float scale, float shift, float underflow) { \
    return exponentials_of<FUSED, false>(logits, nullptr, count, scale, shift, underflow);                     \
  }                                                                                                            \
  TARGET WeightSums narrowed_##NAME(float* logits, uint16_t* weights, int64_t count, float scale, float shift, \
                                    float underflow) {                                                         \
    return exponentials_of<FUSED, true>(logits, weights, count, scale, shift, underflow);                      \
  }
SCE_FAST_EXPONENTIALS(portable, , false)
#if SCE_FAST_X86
SCE_FAST_EXPONENTIALS(avx2, SCE_FAST_AVX2, true)
SCE_FAST_EXPONENTIALS(avx512, SCE_FAST_AVX512, true)
#endif
#undef SCE_FAST_EXPONENTIALS

const Functions functions = [] {
#if SCE_FAST_X86
  if (__builtin_cpu_supports("x86-64-v4")) return Functions{"AVX-512", in_place_avx512, narrowed_avx512};
  if (__builtin_cpu_supports("x86-64-v3")) return Functions{"AVX2", in_place_avx2, narrowed_avx2};
#endif
  return Functions{"no vector instructions of its own", in_place_portable, narrowed_portable};
}();

}  // namespace

const char* vector_instructions() { return functions.instructions; }

float exp2_approximate(float x, float underflow) {
  if (x >= kLowest) return x <= kHighest ? exp2_in_range<false>(x) : std::numeric_limits<float>::infinity();
  if (x > kUnseenBelow) return underflow;
  const bool unseen = x > -std::numeric_limits<float>::max();
  return unseen ? 0.f : std::numeric_limits<float>::quiet_NaN();
}

WeightSums exponentials(float* logits, int64_t count, float scale, float shift, float underflow) {
  return functions.in_place(logits, count, scale, shift, underflow);
}

WeightSums exponentials(float* logits, uint16_t* weights, int64_t count, float scale, float shift, float underflow) {
  return functions.narrowed(logits, weights, count, scale, shift, underflow);
}

SCE_FAST_CLONES float largest(const float* values, int64_t count) {
  float result = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : result)
  for (int64_t i = 0; i < count; ++i) result = values[i] > result ? values[i] : result;
  return result;
}

SCE_FAST_CLONES void round_to_bfloat16(const float* values, uint16_t* rounded, int64_t count) {
  for (int64_t i = 0; i < count; ++i) rounded[i] = static_cast<uint16_t>(bfloat16_bits(values[i]));
}

}  // namespace sce_fast
