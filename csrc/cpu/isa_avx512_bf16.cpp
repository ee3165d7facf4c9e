// The kernels of AVX-512 with BF16, compiled with F, BW, VL, DQ, BF16 and VBMI.
#include "cpu/isa_kernels.h"
#include "cpu/linear_vector.h"
#include "cpu/micro_kernel_vector.h"
#include "cpu/mul_bf16.h"
#include "cpu/vec_avx512.h"

namespace sparsed::cpu {
namespace {

struct Avx512Bf16 {
  using Vec = VecAvx512;
  using Mul = MulBf16;
  using MicroKernel = VectorMicroKernel<Mul>;
  using Linear = VectorLinear<Avx512Bf16>;
};

}  // namespace

const IsaKernels& kernels_avx512_bf16() {
  static constexpr IsaKernels table = isa_kernels<Avx512Bf16>();
  return table;
}

}  // namespace sparsed::cpu
