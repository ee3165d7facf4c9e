// Any machine: built for the baseline.
// Each is written over those before it.
// clang-format off
#include "cpu/kernels.h"
#include "cpu/vec_scalar.h"
#include "cpu/mul_float.h"
#include "cpu/tile_vector.h"
#include "cpu/softmax.inl"
#include "cpu/softmax_bf16.inl"
#include "cpu/attention.inl"
#include "cpu/linear_vector.inl"
#include "cpu/ops.inl"
// clang-format on

namespace sparsed::cpu {

const IsaKernels& kernels_scalar() {
  static const IsaKernels table{attention_kernels(), &ops_kernels()};
  return table;
}

}  // namespace sparsed::cpu
