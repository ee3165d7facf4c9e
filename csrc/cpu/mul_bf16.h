// Multiply-add of the vector tiles in bfloat16 pairs (vdpbf16ps), sums in float32. Needs Vec of AVX-512, and BF16.
#pragma once

#include "cpu/bf16_pairs.h"
#include "cpu/half.h"

namespace sparsed {
namespace {

struct Mul {
  struct Elem {  // what one lane multiplies in one step: two inputs
    Bf16 pair[2];
  };
  using Prob = Bf16;  // element of packed Q, K, V and of the probabilities
  using Operand = __m512bh;
  static constexpr int kDepth = 2;

  static Operand load(const Elem* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static Operand broadcast(const Elem* p) {
    int pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  static Vec multiply_add(Operand a, Operand b, Vec c) { return {_mm512_dpbf16_ps(c.v, a, b)}; }
  static void store_pair(Prob* p, int, Vec first, Vec second) { store_bf16_pairs(p, first, second); }
};

}  // namespace
}  // namespace sparsed
