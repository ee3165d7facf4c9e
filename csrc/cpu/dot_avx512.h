// Products of int8 in groups of four inputs, exact in 16-bit multiplications (vpmaddwd). AVX-512 (F, BW).
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/dot_inputs.h"

namespace sparsed::cpu {
namespace {

struct DotAvx512 : InputPairs {
  static constexpr int kLanes = 16;
  static constexpr int kTileRows = 10, kTilePanels = 2;
  using Sum = __m512i;
  struct Weights {
    __m512i even, odd;  // inputs 0 and 2, 1 and 3 of 16 outputs
  };
  using Inputs = Weights;

  static Weights load(const std::byte* w) {
    const __m512i bytes = _mm512_loadu_si512(w);
    return {_mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8), _mm512_srai_epi16(bytes, 8)};
  }
  static Inputs broadcast(const std::byte* x) {
    int32_t pairs[2];
    __builtin_memcpy(pairs, x, sizeof pairs);
    return {_mm512_set1_epi32(pairs[0]), _mm512_set1_epi32(pairs[1])};
  }
  static Sum multiply_add(const Inputs& x, const Weights& w, Sum sum) {
    const __m512i products = _mm512_add_epi32(_mm512_madd_epi16(x.even, w.even), _mm512_madd_epi16(x.odd, w.odd));
    return _mm512_add_epi32(sum, products);
  }
  static Sum load_sum(const int32_t* p) { return _mm512_loadu_si512(p); }
  static void store_sum(int32_t* p, Sum sum) { _mm512_storeu_si512(p, sum); }
};

}  // namespace
}  // namespace sparsed::cpu
