// How numbers become int8, symmetrically: value = scale * integer, one scale for the numbers of a row. A row is the
// inputs of one output (weights) or of one token (activations).
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/float16.h"

namespace sparsed {

constexpr float kInt8Largest = 127.f;
// Rows of zeros, and of the smallest numbers, have this scale: a division by it gives neither infinity nor NaN.
constexpr float kInt8SmallestScale = 0x1p-126f;
// A sum of so many products of two int8 (-128 too) does not overflow an int32.
constexpr int64_t kInt8MostInputs = 131072;

// Adding it to a number below 2^22 rounds half to even and leaves the integer's two's complement in the lower bits.
constexpr float kRoundToInteger = 0x1.8p23f;

// Of a row whose largest magnitude this is, a finite number.
inline float int8_scale(float largest) { return std::max(largest / kInt8Largest, kInt8SmallestScale); }

inline int8_t to_int8(float value, float scale) {
  return static_cast<int8_t>(float_to_bits(value / scale + kRoundToInteger) & 0xffu);
}

}  // namespace sparsed
