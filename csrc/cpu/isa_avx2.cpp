// The kernels of AVX2, compiled with AVX2, FMA and F16C.
#include "cpu/dot_avx2.h"
#include "cpu/isa_kernels.h"
#include "cpu/linear_int8.h"
#include "cpu/linear_vector.h"
#include "cpu/micro_kernel_vector.h"
#include "cpu/mul_float.h"
#include "cpu/vec_avx2.h"

namespace sparsed::cpu {
namespace {

struct Avx2 {
  using Vec = VecAvx2;
  using Mul = MulFloat<Vec>;
  using MicroKernel = VectorMicroKernel<Mul>;
  using Linear = VectorLinear<Avx2>;
};

}  // namespace

const IsaKernels& kernels_avx2() {
  static constexpr IsaKernels table = isa_kernels<Avx2>();
  return table;
}

const LinearKernels& int8_avx2() {
  static constexpr LinearKernels table = Int8Linear<Avx2::Vec, DotAvx2>::table();
  return table;
}

}  // namespace sparsed::cpu
