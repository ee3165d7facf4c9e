// The kernels of int8 weights on AMX, compiled with AVX-512 (F, BW, VL, DQ) and AMX (tile, int8). Without BF16, whose
// conversion takes the smallest numbers for zero: results would differ from those of other instruction sets.
#include "cpu/kernels.h"
#include "cpu/linear_amx.h"
#include "cpu/vec_avx512.h"

namespace sparsed::cpu {

const LinearKernels& int8_amx() {
  static constexpr LinearKernels table = AmxLinear<AmxInt8<VecAvx512>>::table();
  return table;
}

}  // namespace sparsed::cpu
