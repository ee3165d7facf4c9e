// Compiled with AVX-512 (F, BW, VL, DQ, BF16) and AMX (tile, bf16).
#include "cpu/kernels.h"
#include "cpu/vec_avx512.h"
// Vec first: the following are written over it.
#include "cpu/tile_amx.h"
#include "cpu/attention.inl"
#include "cpu/linear_amx.inl"
#include "cpu/ops.inl"

namespace sparsed::cpu {

const IsaKernels& kernels_amx() {
  static const IsaKernels table{attention_kernels(), &ops_kernels()};
  return table;
}

}  // namespace sparsed::cpu
