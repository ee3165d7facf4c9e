// The kernels of any machine, compiled for the baseline.
#include "cpu/dot_scalar.h"
#include "cpu/isa_kernels.h"
#include "cpu/linear_int8.h"
#include "cpu/linear_vector.h"
#include "cpu/micro_kernel_vector.h"
#include "cpu/mul_float.h"
#include "cpu/vec_scalar.h"

namespace sparsed::cpu {
namespace {

struct Scalar {
  using Vec = VecScalar;
  using Mul = MulFloat<Vec>;
  using MicroKernel = VectorMicroKernel<Mul>;
  using Linear = VectorLinear<Scalar>;
};

}  // namespace

const IsaKernels& kernels_scalar() {
  static constexpr IsaKernels table = isa_kernels<Scalar>();
  return table;
}

const LinearKernels& int8_scalar() {
  static constexpr LinearKernels table = Int8Linear<Scalar::Vec, DotScalar>::table();
  return table;
}

}  // namespace sparsed::cpu
