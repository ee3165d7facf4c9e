// Multiply-add of the vector kernels in bfloat16 pairs (vdpbf16ps), sums in float32. AVX-512 with BF16.
#pragma once

#include <immintrin.h>

#include "cpu/bf16_pairs.h"
#include "cpu/half.h"
#include "cpu/vec_avx512.h"

namespace sparsed::cpu {
namespace {

struct MulBf16 {
  using Vec = VecAvx512;
  struct Elem {  // what one lane multiplies in one step: two inputs
    Bf16 pair[2];
  };
  using Prob = Bf16;  // element of packed Q, K, V and of the probabilities
  using Pairs = Bf16Pairs;
  using Operand = __m512bh;
  static constexpr int kDepth = 2;

  static Operand load(const Elem* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static Operand broadcast(const Elem* p) {
    int pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  static Vec multiply_add(Operand a, Operand b, Vec c) { return {_mm512_dpbf16_ps(c.v, a, b)}; }
  static Vec exp2_probability(Vec x) { return exp2_for_bf16(x); }
  // n <= kLanes pairs of a row, as they are.
  static Vec load_elems(const Bf16* row, int n) { return Vec::load_n(reinterpret_cast<const float*>(row), n); }
  // kRows columns of two keys side by side, as a panel of packed V holds them. nullptr: that key stays as it is.
  template <int kRows>
  static void pack_column(const Bf16* const (&keys)[kDepth], Prob* out) {
    static_assert(kRows == 8);
    if (!keys[0] || !keys[1]) {
      const int given = keys[0] ? 0 : 1;
      for (int r = 0; r < kRows; ++r) out[r * kDepth + given] = keys[given][r];
      return;
    }
    __m128i row[kDepth];
    for (int i = 0; i < kDepth; ++i) row[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(keys[i]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_unpacklo_epi16(row[0], row[1]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 8), _mm_unpackhi_epi16(row[0], row[1]));
  }
  static void store_pair(Prob* p, int, Vec first, Vec second) { Pairs::round(first, second).store(p); }
};

}  // namespace
}  // namespace sparsed::cpu
