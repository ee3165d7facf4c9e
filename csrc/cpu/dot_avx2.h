// Products of int8 in groups of four inputs, exact in 16-bit multiplications (vpmaddwd). AVX2.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/dot_inputs.h"

namespace sparsed::cpu {
namespace {

// vpmaddubsw would multiply bytes, but it adds two products in 16 bits and saturates.
struct DotAvx2 : InputPairs {
  static constexpr int kLanes = 8;
  static constexpr int kTileRows = 4, kTilePanels = 1;
  using Sum = __m256i;
  struct Weights {
    __m256i even, odd;  // inputs 0 and 2, 1 and 3 of eight outputs
  };
  using Inputs = Weights;

  static Weights load(const std::byte* w) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
    return {_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)};
  }
  static Inputs broadcast(const std::byte* x) {
    int32_t pairs[2];
    __builtin_memcpy(pairs, x, sizeof pairs);
    return {_mm256_set1_epi32(pairs[0]), _mm256_set1_epi32(pairs[1])};
  }
  static Sum multiply_add(const Inputs& x, const Weights& w, Sum sum) {
    const __m256i products = _mm256_add_epi32(_mm256_madd_epi16(x.even, w.even), _mm256_madd_epi16(x.odd, w.odd));
    return _mm256_add_epi32(sum, products);
  }
  static Sum load_sum(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store_sum(int32_t* p, Sum sum) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), sum); }
};

}  // namespace
}  // namespace sparsed::cpu
