// Compiled with AVX2, FMA and F16C.
// Each is written over those before it.
// clang-format off
#include "cpu/kernels.h"
#include "cpu/vec_avx2.h"
#include "cpu/mul_float.h"
#include "cpu/tile_vector.h"
#include "cpu/softmax.inl"
#include "cpu/softmax_bf16.inl"
#include "cpu/attention.inl"
#include "cpu/linear_vector.inl"
#include "cpu/ops.inl"
// clang-format on

namespace sparsed::cpu {

const IsaKernels& kernels_avx2() {
  static const IsaKernels table{attention_kernels(), &ops_kernels()};
  return table;
}

}  // namespace sparsed::cpu
