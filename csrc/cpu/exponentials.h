// Powers of two of a row of logits, and their sums: the step between the two products of the forward pass.
#pragma once

#include <bit>
#include <cstdint>

namespace sce_fast {

// The logit, in bits, of a candidate that is hidden from a row: finite, to differ from the −∞ of a bad candidate.
constexpr float kUnseen = -1e30f;
constexpr float kUnseenBelow = -1e29f;

// Returns the name of the vector instructions that the functions below use on this processor.
const char* vector_instructions();

// Returns 2^x with a relative error below 1.3e-7 for x in [-126, 127.5], infinity above, NaN for NaN and −∞, 0 for a
// hidden candidate, and `underflow` for any other smaller x.
float exp2_approximate(float x, float underflow);

// Sums of a row's weights: exact, and rounded as the output product rounds them.
struct WeightSums {
  float sum, rounded_sum;
};

// The largest `count` that exponentials takes.
constexpr int64_t kMostExponentials = 128;

// logits ← 2^(scale · logits − shift), the weights. Products in bfloat16 take them from `weights`, rounded; NaN stays
// NaN.
WeightSums exponentials(float* logits, int64_t count, float scale, float shift, float underflow);
WeightSums exponentials(float* logits, uint16_t* weights, int64_t count, float scale, float shift, float underflow);

float largest(const float* values, int64_t count);

// Returns the value of a bfloat16.
inline float widened(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

// Rounds float32 to bfloat16: to nearest, ties to even.
void round_to_bfloat16(const float* values, uint16_t* rounded, int64_t count);

}  // namespace sce_fast
