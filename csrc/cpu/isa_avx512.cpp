// Compiled with AVX-512 F, BW, VL and DQ.
#include "cpu/kernels.h"
#include "cpu/vec_avx512.h"
// Vec first: the following are written over it.
#include "cpu/mul_float.h"
#include "cpu/tile_vector.h"
#include "cpu/attention.inl"
#include "cpu/linear_vector.inl"
#include "cpu/ops.inl"

namespace sparsed::cpu {

const IsaKernels& kernels_avx512() {
  static const IsaKernels table{attention_kernels(), &ops_kernels()};
  return table;
}

}  // namespace sparsed::cpu
