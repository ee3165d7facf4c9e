// 8 floats in an AVX2 register (with FMA and F16C).
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/exp2.h"
#include "cpu/half.h"

namespace sparsed::cpu {
namespace {

struct VecAvx2 {
  static constexpr int kLanes = 8;
  __m256 v;

  static VecAvx2 zero() { return {_mm256_setzero_ps()}; }
  static VecAvx2 set(float x) { return {_mm256_set1_ps(x)}; }

  static VecAvx2 load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static VecAvx2 load(const Bf16* p) { return widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static VecAvx2 load(const F16* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
  static VecAvx2 load(const int32_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  // The first n lanes; the others are 0.
  static VecAvx2 load_n(const float* p, int n) { return {_mm256_maskload_ps(p, mask(n))}; }
  static VecAvx2 load_n(const Bf16* p, int n) { return widen_bf16(load_halves(p, n)); }
  static VecAvx2 load_n(const F16* p, int n) { return {_mm256_cvtph_ps(load_halves(p, n))}; }

  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(Bf16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_bf16(v)); }
  void store(F16* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  void store_n(float* p, int n) const {
    if (n == kLanes) return store(p);  // masked stores are slow on AMD
    if (n == kLanes / 2) return _mm_storeu_ps(p, _mm256_castps256_ps128(v));
    _mm256_maskstore_ps(p, mask(n), v);
  }
  template <class Half>
  void store_n(Half* p, int n) const {
    if (n == kLanes) return store(p);
    Half full[kLanes];
    store(full);
    for (int i = 0; i < n; ++i) p[i] = full[i];
  }

  // The lowest byte of each lane.
  void store_low_bytes(int8_t* p) const {
    const __m256i order = _mm256_broadcastsi128_si256(_mm_set_epi32(-1, -1, -1, 0x0c080400));
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_castps_si256(v), order);  // four at the start of each half
    const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), both);
  }

  // 8 pairs of bfloat16 (32 bytes): the first and the second of each pair.
  static void load_pairs(const Bf16* p, VecAvx2& even, VecAvx2& odd) {
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    even.v = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    odd.v = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }

 private:
  static __m256i mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  // n halves without a masked instruction, which AVX2 does not have for them.
  static __m128i load_halves(const void* p, int n) {
    if (n == kLanes) return _mm_loadu_si128(static_cast<const __m128i*>(p));
    if (n == kLanes / 2) return _mm_loadl_epi64(static_cast<const __m128i*>(p));
    uint16_t full[kLanes] = {};
    for (int i = 0; i < n; ++i) full[i] = static_cast<const uint16_t*>(p)[i];
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(full));
  }
  static VecAvx2 widen_bf16(__m128i x) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16))};
  }
  static __m128i narrow_bf16(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i high = _mm256_srli_epi32(bits, 16);
    const __m256i lsb = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i words = _mm256_blendv_epi8(rounded, quiet, nan);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
    return _mm256_castsi256_si128(packed);
  }
};

inline VecAvx2 operator+(VecAvx2 a, VecAvx2 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline VecAvx2 operator-(VecAvx2 a, VecAvx2 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline VecAvx2 operator*(VecAvx2 a, VecAvx2 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline VecAvx2 operator/(VecAvx2 a, VecAvx2 b) { return {_mm256_div_ps(a.v, b.v)}; }
inline VecAvx2 fma(VecAvx2 a, VecAvx2 b, VecAvx2 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline VecAvx2 max(VecAvx2 a, VecAvx2 b) { return {_mm256_max_ps(a.v, b.v)}; }
// Any lane with a > b; NaN compares false.
inline bool any_greater(VecAvx2 a, VecAvx2 b) { return _mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)) != 0; }
// a where cond > 0, else b.
inline VecAvx2 select_positive(VecAvx2 cond, VecAvx2 a, VecAvx2 b) {
  return {_mm256_blendv_ps(b.v, a.v, _mm256_cmp_ps(cond.v, _mm256_setzero_ps(), _CMP_GT_OQ))};
}
inline float reduce_add(VecAvx2 a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
inline float reduce_max(VecAvx2 a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}

// x = mantissa * 2^exponent with the mantissa in [sqrt(1/2), sqrt(2)), for normal x > 0.
inline void split(VecAvx2 x, VecAvx2& exponent, VecAvx2& mantissa) {
  const __m256i bits = _mm256_castps_si256(x.v);
  const __m256i n = _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(0x3f3504f3)), 23);  // sqrt(1/2)
  exponent.v = _mm256_cvtepi32_ps(n);
  mantissa.v = _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(n, 23)));
}

// Rows to columns, 8 x 8.
inline void transpose(VecAvx2 (&m)[8]) {
  __m256 t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(m[i].v, m[i + 1].v);
    t[i + 1] = _mm256_unpackhi_ps(m[i].v, m[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      u[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
      u[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
    }
  }
  for (int j = 0; j < 4; ++j) {
    m[j].v = _mm256_permute2f128_ps(u[j], u[4 + j], 0x20);
    m[4 + j].v = _mm256_permute2f128_ps(u[j], u[4 + j], 0x31);
  }
}

// 2^x for x <= 127; below 2^-126 it is 0, NaN gives NaN.
inline VecAvx2 exp2(VecAvx2 x) {
  const VecAvx2 clamped = {_mm256_max_ps(_mm256_set1_ps(-127.f), x.v)};  // this operand order keeps NaN
  const VecAvx2 n = {_mm256_round_ps(clamped.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23);
  return exp2_fraction(clamped - n) * VecAvx2{_mm256_castsi256_ps(power)};
}

}  // namespace
}  // namespace sparsed::cpu
