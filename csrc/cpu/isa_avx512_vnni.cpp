// The kernels of int8 weights on AVX-512 with VNNI, compiled with F, BW, VL, DQ and VNNI.
#include "cpu/dot_avx512_vnni.h"
#include "cpu/kernels.h"
#include "cpu/linear_int8.h"
#include "cpu/vec_avx512.h"

namespace sparsed::cpu {

const LinearKernels& int8_avx512_vnni() {
  static constexpr LinearKernels table = Int8Linear<VecAvx512, DotAvx512Vnni>::table();
  return table;
}

}  // namespace sparsed::cpu
