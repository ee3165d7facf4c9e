// Compiled with AVX2, FMA and F16C.
#include "cpu/kernels.h"
#include "cpu/vec_avx2.h"
// Vec first: the following are written over it.
#include "cpu/mul_float.h"
#include "cpu/tile_vector.h"
#include "cpu/attention.inl"
#include "cpu/linear_vector.inl"
#include "cpu/ops.inl"

namespace sparsed::cpu {

const IsaKernels& kernels_avx2() {
  static const IsaKernels table{attention_kernels(), &ops_kernels()};
  return table;
}

}  // namespace sparsed::cpu
