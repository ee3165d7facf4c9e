// Products of int8 in groups of four inputs by vpdpbusd, which takes x as unsigned bytes. AVX-VNNI.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/dot_inputs.h"

namespace sparsed::cpu {
namespace {

struct DotAvxVnni : ShiftedInputs {
  static constexpr int kLanes = 8;
  static constexpr int kTileRows = 6, kTilePanels = 1;
  using Sum = __m256i;
  using Weights = __m256i;
  using Inputs = __m256i;

  static Weights load(const std::byte* w) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)); }
  static Inputs broadcast(const std::byte* x) {
    int32_t group;
    __builtin_memcpy(&group, x, sizeof group);
    return _mm256_set1_epi32(group);
  }
  static Sum multiply_add(Inputs x, Weights w, Sum sum) { return _mm256_dpbusd_avx_epi32(sum, x, w); }
  static Sum load_sum(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store_sum(int32_t* p, Sum sum) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), sum); }
};

}  // namespace
}  // namespace sparsed::cpu
