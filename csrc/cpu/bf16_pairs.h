// bfloat16 pairs side by side: the layout that vdpbf16ps and AMX multiply. AVX-512 with BF16 and VBMI.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/half.h"
#include "cpu/vec_avx512.h"

namespace sparsed::cpu {
namespace {

// What exp2 takes off the line 1 + f for a fraction f of (i + 0.5) / 64: 512 (1 + f - 2^f), at most 44.
struct Exp2Corrections {
  alignas(64) uint8_t at[64];

  constexpr Exp2Corrections() : at() {
    double power = 0x1.0163da9fb3335p+0;  // 2^(1/128), then a factor of 2^(1/64) each
    for (int i = 0; i < 64; ++i, power *= 0x1.02c9a3e778061p+0) {
      at[i] = static_cast<uint8_t>(512. * (1. + (i + 0.5) / 64. - power) + 0.5);
    }
  }
};
constexpr Exp2Corrections kExp2Corrections;

// 16 pairs: bfloat16 number 2i belongs to first[i], 2i + 1 to second[i].
struct Bf16Pairs {
  using Vec = VecAvx512;
  __m512i v;

  static Bf16Pairs load(const Bf16* p) { return {_mm512_loadu_si512(p)}; }
  void store(Bf16* p) const { _mm512_storeu_si512(p, v); }

  static Bf16Pairs round(Vec first, Vec second) {
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(second.v, first.v);  // first in the lower 16 lanes
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return {_mm512_permutexvar_epi16(order, halves)};
  }

  Vec add_to(Vec sum) const {
    const __m512i ones = _mm512_set1_epi32(0x3f803f80);
    return {_mm512_dpbf16_ps(sum.v, (__m512bh)v, (__m512bh)ones)};
  }

  static Bf16Pairs zero() { return {_mm512_setzero_si512()}; }
  // Of numbers that are not negative, whose bits are in the same order.
  static Bf16Pairs max(Bf16Pairs a, Bf16Pairs b) { return {_mm512_max_epu16(a.v, b.v)}; }

  // 2^x for x < 1 in fixed point, 32 at a time: x * kUnit + 127 * kUnit is four times the bfloat16 whose exponent and
  // mantissa are x and its fraction f; 1 + f - 2^f comes out of a table of 64 bytes and is subtracted. Relative error
  // 1.9e-3 rms (of rounding 1.66e-3), no bias. Zero below 2^-126; x >= 1 and NaN give about 2.
  static constexpr float kUnit = 512.f;
  // 2^(score * scale - from) of two vectors of scores; unit_scale is scale * kUnit.
  static Bf16Pairs exp2(Vec first, Vec second, Vec unit_scale, Vec origin) {
    const __m512i x = _mm512_packus_epi32(fixed(first, unit_scale, origin), fixed(second, unit_scale, origin));
    const __m512i table = _mm512_load_si512(kExp2Corrections.at);
    // Of each 16-bit lane the low byte looks up, by six bits of the fraction; the high byte is zero.
    const __m512i correction = _mm512_maskz_permutexvar_epi8(0x5555555555555555u, _mm512_srli_epi16(x, 3), table);
    const __m512i bits = _mm512_srli_epi16(_mm512_subs_epu16(x, correction), 2);
    // packus works within 128 bits: four of `first`, then four of `second`.
    const __m128i order = _mm_set_epi8(15, 14, 7, 6, 13, 12, 5, 4, 11, 10, 3, 2, 9, 8, 1, 0);
    return {_mm512_shuffle_epi8(bits, _mm512_broadcast_i32x4(order))};
  }
  // 1.63: what the truncations take on average.
  static Vec origin(Vec from) { return fma(from, Vec::set(-kUnit), Vec::set(127 * kUnit + 1.63f)); }
  // Whether a result of exp2, of which this is the largest, is above 1.5: x may have been 1 or more, or NaN.
  bool near_top() const { return _mm512_cmpgt_epu16_mask(v, _mm512_set1_epi16(0x3fc0)) != 0; }

  // Each divided by 2^down, a whole number >= 0.
  Bf16Pairs scaled_down(Vec down) const {
    const __m512i exponent = _mm512_min_epi32(_mm512_cvtps_epi32(down.v), _mm512_set1_epi32(511));
    const __m512i bits = _mm512_slli_epi32(exponent, 7);
    return {_mm512_subs_epu16(v, _mm512_or_si512(bits, _mm512_slli_epi32(bits, 16)))};
  }

  static Vec ceil(Vec x) { return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC)}; }
  static bool any_nan(Vec x) { return _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q) != 0; }

 private:
  static __m512i fixed(Vec score, Vec scale, Vec origin) {
    const __m512 x = _mm512_fmadd_ps(score.v, scale.v, origin.v);
    return _mm512_cvtps_epi32(_mm512_min_ps(x, _mm512_set1_ps(65535.f)));  // min(NaN, limit) is the limit
  }
};

// 32 bfloat16 each: pairs (first[i], second[i]); low holds the lower four of each eight i, high the others.
inline void interleave_bf16(VecAvx512 first, VecAvx512 second, VecAvx512& low, VecAvx512& high) {
  const __m512i a = _mm512_castps_si512(first.v), b = _mm512_castps_si512(second.v);
  low.v = _mm512_castsi512_ps(_mm512_unpacklo_epi16(a, b));
  high.v = _mm512_castsi512_ps(_mm512_unpackhi_epi16(a, b));
}

// Those of 32 bfloat16 whose bit is set.
inline void store_bf16(VecAvx512 values, Bf16* p, uint32_t which) {
  _mm512_mask_storeu_epi16(p, which, _mm512_castps_si512(values.v));
}

}  // namespace
}  // namespace sparsed::cpu
