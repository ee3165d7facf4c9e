// Rows of x as int8, by the rule of core/int8.h, on vectors.
#pragma once

#include <cstdint>

#include "core/int8.h"
#include "core/tensor.h"
#include "cpu/half.h"
#include "cpu/ops_kernels.h"

namespace sparsed::cpu {
namespace {

template <class Vec>
class RowQuantizer {
 public:
  static constexpr int kStep = 64;  // integers that are made at a time

  // take(integers) is called for kStep of a row after the other; from k to k_padded they are zeros. Returns the row's
  // scale: NaN where the row has a number that is not finite, so that all of its outputs are NaN.
  template <class Take>
  static float run(const LinearRows& x, int64_t row, const Take& take) {
    const int64_t at = row * x.stride;
    if (x.dtype == DType::kFloat32) return run(static_cast<const float*>(x.data) + at, x, take);
    return run(static_cast<const Bf16*>(x.data) + at, x, take);
  }

 private:
  template <class X, class Take>
  static float run(const X* row, const LinearRows& x, const Take& take) {
    const float scale = scale_of(row, x.k);
    alignas(64) int8_t integers[kStep];
    for (int64_t first = 0; first < x.k_padded; first += kStep) {
      for (int i = 0; i < kStep; i += Vec::kLanes) {
        const Vec value = load(row, first + i, x.k);
        (value / Vec::set(scale) + Vec::set(kRoundToInteger)).store_low_bytes(integers + i);
      }
      take(integers);
    }
    return scale;
  }

  template <class X>
  static float scale_of(const X* row, int64_t k) {
    Vec largest = Vec::zero(), strange = Vec::zero();  // x - x is NaN where x is not finite
    for (int64_t i = 0; i < k; i += Vec::kLanes) {
      const Vec value = load(row, i, k);
      largest = max(largest, max(value, Vec::zero() - value));
      strange = strange + (value - value);
    }
    const float nan = reduce_add(strange);
    return nan == 0.f ? int8_scale(reduce_max(largest)) : nan;
  }

  template <class X>
  static Vec load(const X* row, int64_t i, int64_t k) {
    if (i + Vec::kLanes <= k) return Vec::load(row + i);
    return i < k ? Vec::load_n(row + i, static_cast<int>(k - i)) : Vec::zero();
  }
};

}  // namespace
}  // namespace sparsed::cpu
