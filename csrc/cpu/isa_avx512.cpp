// Compiled with AVX-512 F, BW, VL and DQ.
// Each is written over those before it.
// clang-format off
#include "cpu/kernels.h"
#include "cpu/vec_avx512.h"
#include "cpu/mul_float.h"
#include "cpu/tile_vector.h"
#include "cpu/softmax.inl"
#include "cpu/softmax_bf16.inl"
#include "cpu/attention.inl"
#include "cpu/linear_vector.inl"
#include "cpu/ops.inl"
// clang-format on

namespace sparsed::cpu {

const IsaKernels& kernels_avx512() {
  static const IsaKernels table{attention_kernels(), &ops_kernels()};
  return table;
}

}  // namespace sparsed::cpu
