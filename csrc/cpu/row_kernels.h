// Operations on one row: RMSNorm, rotary, SiLU gate, and the pieces of a softmax over the vocabulary.
// All arithmetic is float32; sums have one order per instruction set, whatever the threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/half.h"

namespace sparsed::cpu {
namespace {

template <class Vec>
struct RowKernels {
  static constexpr int kLanes = Vec::kLanes;
  static constexpr float kInfinity = __builtin_inff();

  // --- functions -----------------------------------------------------------------------------------------------------

  // e^x for x <= 88. The product x log2(e) is carried in two parts: its rounding would cost |x| 6e-8.
  static Vec exp(Vec x) {
    const Vec clamped = max(Vec::set(-110.f), x);  // 0 from there on; this operand order keeps NaN
    const Vec log2e = Vec::set(0x1.715476p+0f), log2e_low = Vec::set(0x1.4ae0c0p-26f), ln2 = Vec::set(0x1.62e430p-1f);
    const Vec high = clamped * log2e;
    const Vec low = fma(clamped, log2e_low, fma(clamped, log2e, Vec::zero() - high));
    return exp2(high) * fma(low, ln2, Vec::set(1.f));
  }

  // ln(x) for normal x > 0: x = 2^n m, ln(m) = 2 atanh(s) with s = (m - 1) / (m + 1), |s| < 0.172.
  static Vec log(Vec x) {
    Vec n, m;
    split(x, n, m);
    const Vec one = Vec::set(1.f);
    const Vec s = (m - one) / (m + one), z = s * s;
    Vec p = Vec::set(1.f / 9);
    p = fma(p, z, Vec::set(1.f / 7));
    p = fma(p, z, Vec::set(1.f / 5));
    p = fma(p, z, Vec::set(1.f / 3));
    p = fma(p, z, one);
    return fma(n, Vec::set(0x1.62e430p-1f), (s + s) * p);
  }

  // Calls f(i, n) for the vectors of a row: n is kLanes, less in the last one.
  template <class F>
  static void for_vectors(int64_t cols, const F& f) {
    int64_t i = 0;
    for (; i + kLanes <= cols; i += kLanes) f(i, kLanes);
    if (i < cols) f(i, static_cast<int>(cols - i));
  }

  template <class T>
  static Vec load(const T* p, int n) {
    return n == kLanes ? Vec::load(p) : Vec::load_n(p, n);
  }

  // --- row operations ------------------------------------------------------------------------------------------------

  // Sum of term(i, n) over the vectors of a row. Four sums side by side: additions do not wait for each other, and
  // rounding errors grow four times slower.
  template <class Term>
  static float sum_vectors(int64_t cols, const Term& term) {
    Vec a = Vec::zero(), b = Vec::zero(), c = Vec::zero(), d = Vec::zero();
    int64_t i = 0;
    for (; i + 4 * kLanes <= cols; i += 4 * kLanes) {
      a = a + term(i, kLanes);
      b = b + term(i + kLanes, kLanes);
      c = c + term(i + 2 * kLanes, kLanes);
      d = d + term(i + 3 * kLanes, kLanes);
    }
    for_vectors(cols - i, [&](int64_t j, int n) { a = a + term(i + j, n); });
    return reduce_add((a + b) + (c + d));
  }

  template <class X, class Out>
  static void rms_norm(const X* x, const float* weight, float eps, int64_t cols, Out* out) {
    const float squares = sum_vectors(cols, [&](int64_t i, int n) {
      const Vec value = load(x + i, n);
      return value * value;
    });
    const Vec scale = Vec::set(1.f / __builtin_sqrtf(squares / static_cast<float>(cols) + eps));
    for_vectors(cols, [&](int64_t i, int n) { (load(x + i, n) * scale * load(weight + i, n)).store_n(out + i, n); });
  }

  template <class T>
  static void rotary(T* x, int64_t heads, int64_t head_dim, const float* cos, const float* sin) {
    const int64_t half = head_dim / 2;
    for (int64_t h = 0; h < heads; ++h, x += head_dim) {
      for_vectors(half, [&](int64_t i, int n) {
        const Vec a = load(x + i, n), b = load(x + half + i, n);
        const Vec c = load(cos + i, n), s = load(sin + i, n);
        (a * c - b * s).store_n(x + i, n);
        (b * c + a * s).store_n(x + half + i, n);
      });
    }
  }

  // x / (1 + e^-x) with e = e^-|x|, which cannot overflow: x / (1 + e) above 0, x e / (1 + e) below.
  template <class T>
  static void silu_gate(T* gate, const T* up, int64_t cols) {
    const Vec one = Vec::set(1.f);
    for_vectors(cols, [&](int64_t i, int n) {
      const Vec x = load(gate + i, n);
      const Vec e = exp(Vec::zero() - max(x, Vec::zero() - x));
      (x * select_positive(x, one, e) / (one + e) * load(up + i, n)).store_n(gate + i, n);
    });
  }

  // --- softmax over the vocabulary -----------------------------------------------------------------------------------

  // NaN and what lies beyond the end count as -inf: max keeps its second argument where the first is NaN.
  static Vec load_logits(const float* logits, int n) {
    const Vec lowest = Vec::set(-kInfinity);
    if (n == kLanes) return max(Vec::load(logits), lowest);
    float lanes[kLanes];
    lowest.store(lanes);
    for (int i = 0; i < n; ++i) lanes[i] = logits[i];
    return max(Vec::load(lanes), lowest);
  }

  // The maximum by stretches; the first stretch that reaches it is then searched.
  static void find_max(const float* logits, int64_t count, float* highest, int64_t* index) {
    constexpr int64_t kStretch = 16 * kLanes;
    float best = -kInfinity;
    int64_t first = 0;
    for (int64_t i = 0; i < count; i += kStretch) {
      Vec top = Vec::set(-kInfinity);
      for_vectors(count - i < kStretch ? count - i : kStretch,
                  [&](int64_t j, int n) { top = max(load_logits(logits + i + j, n), top); });
      const float value = reduce_max(top);
      if (value > best) {
        best = value;
        first = i;
      }
    }
    if (best > -kInfinity) {
      while (logits[first] != best) ++first;
    }
    *highest = best;
    *index = first;
  }

  static float exp_sum(const float* logits, int64_t count, float highest) {
    const Vec base = Vec::set(highest);
    return sum_vectors(count, [&](int64_t i, int n) { return exp(load_logits(logits + i, n) - base); });
  }

  static float entropy_sum(const float* logits, int64_t count, float highest, float inverse) {
    const Vec base = Vec::set(highest), scale = Vec::set(inverse), epsilon = Vec::set(1e-10f);
    return sum_vectors(count, [&](int64_t i, int n) {
      const Vec p = exp(load_logits(logits + i, n) - base) * scale;
      return p * log(p + epsilon);
    });
  }
};

}  // namespace
}  // namespace sparsed::cpu
