// Two vectors of float32 -> bfloat16 pairs side by side: the layout that vdpbf16ps and AMX multiply. AVX-512 with BF16.
#pragma once

#include "cpu/half.h"

namespace sparsed {
namespace {

// p[2i] = first[i], p[2i + 1] = second[i].
inline void store_bf16_pairs(Bf16* p, Vec first, Vec second) {
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(second.v, first.v);  // first in the lower 16 lanes
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi16(order, halves));
}

}  // namespace
}  // namespace sparsed
