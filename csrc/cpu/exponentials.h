// Powers of two of a row of logits, with their sums: what stands between the two products of the pass.
#pragma once

#include <bit>
#include <cstdint>

namespace sce_fast {

// The logit of a candidate that a row must not see: finite, so that it is told from the −∞ of a bad candidate.
constexpr float kUnseen = -1e30f;
constexpr float kUnseenBelow = -1e29f;

// Which vector instructions were found on this processor for what follows.
const char* vector_instructions();

// 2^x with a relative error below 1.3e-7 for x in [-126, 127.5]; infinity above, NaN for NaN and −∞, 0 for an unseen
// candidate, and `underflow` for other small x.
float exp2_approximate(float x, float underflow);

// Sums of a row's weights: as they are, and as they are when rounded to what the product multiplies.
struct WeightSums {
  float exact, rounded;
};

// weights ← 2^(scale · logits − shift). In place where the products are in float32; as bfloat16 (NaN stays NaN) where
// they are in bfloat16.
WeightSums exponentials(float* logits, int64_t count, float scale, float shift, float underflow);
WeightSums exponentials(float* logits, uint16_t* weights, int64_t count, float scale, float shift, float underflow);

float largest(const float* values, int64_t count);

// The value of a bfloat16.
inline float widened(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

// float32 → bfloat16, to the nearest, ties to even.
void round_to_bfloat16(const float* values, uint16_t* rounded, int64_t count);

}  // namespace sce_fast
