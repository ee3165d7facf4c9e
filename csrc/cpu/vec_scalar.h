// 4 floats on any machine, no flags. They are the vector type of GCC and Clang, which is the baseline's register where
// there is one: an array of floats in its place is five times slower.
#pragma once

#include <cstdint>

#include "core/float16.h"
#include "cpu/exp2.h"
#include "cpu/half.h"

namespace sparsed::cpu {
namespace {

struct VecScalar {
  static constexpr int kLanes = 4;
  using Floats = float __attribute__((vector_size(16)));
  using Ints = int32_t __attribute__((vector_size(16)));
  Floats v;

  static VecScalar zero() { return set(0.f); }
  static VecScalar set(float x) { return {Floats{x, x, x, x}}; }

  template <class T>
  static VecScalar load(const T* p) {
    return {Floats{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])}};
  }
  static VecScalar load(const int32_t* p) { return {__builtin_convertvector(Ints{p[0], p[1], p[2], p[3]}, Floats)}; }
  // The first n lanes; the others are 0.
  template <class T>
  static VecScalar load_n(const T* p, int n) {
    VecScalar r = zero();
    for (int i = 0; i < n; ++i) r.v[i] = to_float(p[i]);
    return r;
  }
  template <class T>
  void store(T* p) const {
    store_n(p, kLanes);
  }
  template <class T>
  void store_n(T* p, int n) const {
    for (int i = 0; i < n; ++i) from_float(v[i], p[i]);
  }

  // The lowest byte of each lane.
  void store_low_bytes(int8_t* p) const {
    const Ints bits = (Ints)v;
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(bits[i]);
  }

  // 4 pairs of bfloat16: the first and the second of each pair.
  static void load_pairs(const Bf16* p, VecScalar& even, VecScalar& odd) {
    for (int i = 0; i < kLanes; ++i) {
      even.v[i] = to_float(p[2 * i]);
      odd.v[i] = to_float(p[2 * i + 1]);
    }
  }

 private:
  static float to_float(float x) { return x; }
  static float to_float(Bf16 x) { return bf16_to_float(x.bits); }
  static float to_float(F16 x) { return f16_to_float(x.bits); }
  static void from_float(float x, float& out) { out = x; }
  static void from_float(float x, Bf16& out) { out.bits = float_to_bf16(x); }
  static void from_float(float x, F16& out) { out.bits = float_to_f16(x); }
};

inline VecScalar operator+(VecScalar a, VecScalar b) { return {a.v + b.v}; }
inline VecScalar operator-(VecScalar a, VecScalar b) { return {a.v - b.v}; }
inline VecScalar operator*(VecScalar a, VecScalar b) { return {a.v * b.v}; }
inline VecScalar operator/(VecScalar a, VecScalar b) { return {a.v / b.v}; }
inline VecScalar fma(VecScalar a, VecScalar b, VecScalar c) { return {a.v * b.v + c.v}; }
inline VecScalar max(VecScalar a, VecScalar b) { return {a.v > b.v ? a.v : b.v}; }
// Any lane with a > b; NaN compares false.
inline bool any_greater(VecScalar a, VecScalar b) {
  return a.v[0] > b.v[0] || a.v[1] > b.v[1] || a.v[2] > b.v[2] || a.v[3] > b.v[3];
}
// a where cond > 0, else b.
inline VecScalar select_positive(VecScalar cond, VecScalar a, VecScalar b) {
  return {cond.v > VecScalar::zero().v ? a.v : b.v};
}
inline float reduce_add(VecScalar a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
inline float reduce_max(VecScalar a) {
  const float x = a.v[0] > a.v[2] ? a.v[0] : a.v[2];
  const float y = a.v[1] > a.v[3] ? a.v[1] : a.v[3];
  return x > y ? x : y;
}

// x = mantissa * 2^exponent with the mantissa in [sqrt(1/2), sqrt(2)), for normal x > 0.
inline void split(VecScalar x, VecScalar& exponent, VecScalar& mantissa) {
  const VecScalar::Ints bits = (VecScalar::Ints)x.v;
  const VecScalar::Ints n = (bits - 0x3f3504f3) >> 23;  // sqrt(1/2)
  exponent.v = __builtin_convertvector(n, VecScalar::Floats);
  mantissa.v = (VecScalar::Floats)(bits - (n << 23));
}

// Rows to columns, 4 x 4.
inline void transpose(VecScalar (&m)[4]) {
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < i; ++j) {
      const float x = m[i].v[j];
      m[i].v[j] = m[j].v[i];
      m[j].v[i] = x;
    }
  }
}

// 2^x for x <= 127; below 2^-126 it is 0, NaN gives NaN.
inline VecScalar exp2(VecScalar x) {
  const VecScalar clamped = {x.v < -127.f ? VecScalar::set(-127.f).v : x.v};
  const VecScalar n = {(clamped.v + 0x1.8p23f) - 0x1.8p23f};  // round to nearest without a library call
  const VecScalar::Ints exponent = __builtin_convertvector(n.v == n.v ? n.v : VecScalar::zero().v, VecScalar::Ints);
  return exp2_fraction(clamped - n) * VecScalar{(VecScalar::Floats)((exponent + 127) << 23)};
}

}  // namespace
}  // namespace sparsed::cpu
