// Products of int8 in groups of four inputs by vpdpbusd, which takes x as unsigned bytes. AVX-512 with VNNI.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/dot_inputs.h"

namespace sparsed::cpu {
namespace {

struct DotAvx512Vnni : ShiftedInputs {
  static constexpr int kLanes = 16;
  static constexpr int kTileRows = 12, kTilePanels = 2;
  using Sum = __m512i;
  using Weights = __m512i;
  using Inputs = __m512i;

  static Weights load(const std::byte* w) { return _mm512_loadu_si512(w); }
  static Inputs broadcast(const std::byte* x) {
    int32_t group;
    __builtin_memcpy(&group, x, sizeof group);
    return _mm512_set1_epi32(group);
  }
  static Sum multiply_add(Inputs x, Weights w, Sum sum) { return _mm512_dpbusd_epi32(sum, x, w); }
  static Sum load_sum(const int32_t* p) { return _mm512_loadu_si512(p); }
  static void store_sum(int32_t* p, Sum sum) { _mm512_storeu_si512(p, sum); }
};

}  // namespace
}  // namespace sparsed::cpu
