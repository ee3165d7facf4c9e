// The kernels of AVX-512, compiled with F, BW, VL and DQ.
#include "cpu/dot_avx512.h"
#include "cpu/isa_kernels.h"
#include "cpu/linear_int8.h"
#include "cpu/linear_vector.h"
#include "cpu/micro_kernel_vector.h"
#include "cpu/mul_float.h"
#include "cpu/vec_avx512.h"

namespace sparsed::cpu {
namespace {

struct Avx512 {
  using Vec = VecAvx512;
  using Mul = MulFloat<Vec>;
  using MicroKernel = VectorMicroKernel<Mul>;
  using Linear = VectorLinear<Avx512>;
};

}  // namespace

const IsaKernels& kernels_avx512() {
  static constexpr IsaKernels table = isa_kernels<Avx512>();
  return table;
}

const LinearKernels& int8_avx512() {
  static constexpr LinearKernels table = Int8Linear<Avx512::Vec, DotAvx512>::table();
  return table;
}

}  // namespace sparsed::cpu
