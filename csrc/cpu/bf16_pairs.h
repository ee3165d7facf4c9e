// bfloat16 pairs side by side: the layout that vdpbf16ps and AMX multiply. AVX-512 with BF16.
#pragma once

#include "cpu/half.h"

namespace sparsed {
namespace {

// p[2i] = first[i], p[2i + 1] = second[i], rounded from float32.
inline void store_bf16_pairs(Bf16* p, Vec first, Vec second) {
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(second.v, first.v);  // first in the lower 16 lanes
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi16(order, halves));
}

// 32 bfloat16 each: pairs (first[i], second[i]); low holds the lower four of each eight i, high the others.
inline void interleave_bf16(Vec first, Vec second, Vec& low, Vec& high) {
  const __m512i a = _mm512_castps_si512(first.v), b = _mm512_castps_si512(second.v);
  low.v = _mm512_castsi512_ps(_mm512_unpacklo_epi16(a, b));
  high.v = _mm512_castsi512_ps(_mm512_unpackhi_epi16(a, b));
}

}  // namespace
}  // namespace sparsed
