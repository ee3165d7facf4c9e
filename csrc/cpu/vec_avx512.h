// 16 floats in an AVX-512 register (F, BW, VL, DQ). bfloat16 is rounded by one instruction where BF16 is there.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/exp2.h"
#include "cpu/half.h"

namespace sparsed::cpu {
namespace {

struct VecAvx512 {
  static constexpr int kLanes = 16;
  __m512 v;

  static VecAvx512 zero() { return {_mm512_setzero_ps()}; }
  static VecAvx512 set(float x) { return {_mm512_set1_ps(x)}; }

  static VecAvx512 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static VecAvx512 load(const Bf16* p) { return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static VecAvx512 load(const F16* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static VecAvx512 load(const int32_t* p) { return {_mm512_cvtepi32_ps(_mm512_loadu_si512(p))}; }
  // The first n lanes; the others are 0.
  static VecAvx512 load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(mask(n), p)}; }
  static VecAvx512 load_n(const Bf16* p, int n) { return widen_bf16(_mm256_maskz_loadu_epi16(mask(n), p)); }
  static VecAvx512 load_n(const F16* p, int n) { return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask(n), p))}; }

  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(Bf16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bf16(v)); }
  void store(F16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_f16(v)); }
  template <class T>
  void store_n(T* p, int n) const {
    if (n == kLanes) return store(p);  // masked stores are slow on AMD
    store_masked(p, n);
  }

  // The lowest byte of each lane.
  void store_low_bytes(int8_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_castps_si512(v)));
  }

  // 16 pairs of bfloat16 (64 bytes): the first and the second of each pair.
  static void load_pairs(const Bf16* p, VecAvx512& even, VecAvx512& odd) {
    const __m512i pairs = _mm512_loadu_si512(p);
    even.v = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    odd.v = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }

 private:
  void store_masked(float* p, int n) const { _mm512_mask_storeu_ps(p, mask(n), v); }
  void store_masked(Bf16* p, int n) const { _mm256_mask_storeu_epi16(p, mask(n), narrow_bf16(v)); }
  void store_masked(F16* p, int n) const { _mm256_mask_storeu_epi16(p, mask(n), narrow_f16(v)); }

  static __mmask16 mask(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static VecAvx512 widen_bf16(__m256i x) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
  }
  static __m256i narrow_f16(__m512 x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
#if defined(__AVX512BF16__)
  static __m256i narrow_bf16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
#else
  static __m256i narrow_bf16(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i lsb = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(lsb, _mm512_set1_epi32(0x7fff))), 16);
    const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, quiet));
  }
#endif
};

inline VecAvx512 operator+(VecAvx512 a, VecAvx512 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline VecAvx512 operator-(VecAvx512 a, VecAvx512 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline VecAvx512 operator*(VecAvx512 a, VecAvx512 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline VecAvx512 operator/(VecAvx512 a, VecAvx512 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline VecAvx512 fma(VecAvx512 a, VecAvx512 b, VecAvx512 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline VecAvx512 max(VecAvx512 a, VecAvx512 b) { return {_mm512_max_ps(a.v, b.v)}; }
// Any lane with a > b; NaN compares false.
inline bool any_greater(VecAvx512 a, VecAvx512 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ) != 0; }
// a where cond > 0, else b.
inline VecAvx512 select_positive(VecAvx512 cond, VecAvx512 a, VecAvx512 b) {
  return {_mm512_mask_mov_ps(b.v, _mm512_cmp_ps_mask(cond.v, _mm512_setzero_ps(), _CMP_GT_OQ), a.v)};
}
inline float reduce_add(VecAvx512 a) { return _mm512_reduce_add_ps(a.v); }
inline float reduce_max(VecAvx512 a) { return _mm512_reduce_max_ps(a.v); }

// x = mantissa * 2^exponent with the mantissa in [sqrt(1/2), sqrt(2)), for normal x > 0.
inline void split(VecAvx512 x, VecAvx512& exponent, VecAvx512& mantissa) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i n = _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(0x3f3504f3)), 23);  // sqrt(1/2)
  exponent.v = _mm512_cvtepi32_ps(n);
  mantissa.v = _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(n, 23)));
}

// Rows to columns, 16 x 16.
inline void transpose(VecAvx512 (&m)[16]) {
  __m512 t[16], u[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(m[i].v, m[i + 1].v);
    t[i + 1] = _mm512_unpackhi_ps(m[i].v, m[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + j + 2]);
      u[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      u[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  }
  // u[4 i + j]: column j of each 4 x 4 block of the rows 4 i ... 4 i + 3.
  for (int j = 0; j < 4; ++j) {
    const __m512 even_low = _mm512_shuffle_f32x4(u[j], u[4 + j], 0x88);
    const __m512 even_high = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0x88);
    const __m512 odd_low = _mm512_shuffle_f32x4(u[j], u[4 + j], 0xdd);
    const __m512 odd_high = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0xdd);
    m[j].v = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    m[4 + j].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    m[8 + j].v = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    m[12 + j].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}

// 2^x; -inf gives 0 because scalef(NaN, -inf) does, NaN gives NaN.
inline VecAvx512 exp2(VecAvx512 x) {
  const VecAvx512 n = {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  return {_mm512_scalef_ps(exp2_fraction(x - n).v, n.v)};
}

// 2^x for results that are rounded to bfloat16.
inline VecAvx512 exp2_for_bf16(VecAvx512 x) {
  const VecAvx512 n = {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  return {_mm512_scalef_ps(exp2_fraction_for_bf16(x - n).v, n.v)};
}

}  // namespace
}  // namespace sparsed::cpu
