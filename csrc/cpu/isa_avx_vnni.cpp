// The kernels of int8 weights on AVX-VNNI, compiled with AVX2, FMA, F16C and AVX-VNNI.
#include "cpu/dot_avx_vnni.h"
#include "cpu/kernels.h"
#include "cpu/linear_int8.h"
#include "cpu/vec_avx2.h"

namespace sparsed::cpu {

const LinearKernels& int8_avx_vnni() {
  static constexpr LinearKernels table = Int8Linear<VecAvx2, DotAvxVnni>::table();
  return table;
}

}  // namespace sparsed::cpu
