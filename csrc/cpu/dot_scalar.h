// Products of int8 in groups of four inputs, on any machine.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/dot_inputs.h"

namespace sparsed::cpu {
namespace {

struct DotScalar : SignedInputs {
  static constexpr int kLanes = 4;
  static constexpr int kTileRows = 2, kTilePanels = 1;
  using Sum = int32_t __attribute__((vector_size(16)));
  struct Weights {  // one input of four outputs each
    Sum input[4];
  };
  struct Inputs {
    int32_t input[4];
  };

  static Weights load(const std::byte* w) {
    Sum bytes;
    __builtin_memcpy(&bytes, w, sizeof bytes);
    Weights weights;
    weights.input[0] = bytes << 24 >> 24;
    weights.input[1] = bytes << 16 >> 24;
    weights.input[2] = bytes << 8 >> 24;
    weights.input[3] = bytes >> 24;
    return weights;
  }
  static Inputs broadcast(const std::byte* x) {
    int8_t group[4];
    __builtin_memcpy(group, x, sizeof group);
    return {group[0], group[1], group[2], group[3]};
  }
  static Sum multiply_add(const Inputs& x, const Weights& w, Sum sum) {
    for (int i = 0; i < 4; ++i) sum += w.input[i] * x.input[i];
    return sum;
  }
  static Sum load_sum(const int32_t* p) {
    Sum sum;
    __builtin_memcpy(&sum, p, sizeof sum);
    return sum;
  }
  static void store_sum(int32_t* p, Sum sum) { __builtin_memcpy(p, &sum, sizeof sum); }
};

}  // namespace
}  // namespace sparsed::cpu
