// The kernels of AMX, compiled with AVX-512 (F, BW, VL, DQ, BF16, VBMI) and AMX (tile, bf16).
#include "cpu/isa_kernels.h"
#include "cpu/linear_amx.h"
#include "cpu/micro_kernel_amx.h"
#include "cpu/vec_avx512.h"

namespace sparsed::cpu {
namespace {

struct Amx {
  using Vec = VecAvx512;
  using MicroKernel = AmxMicroKernel;
  using Linear = AmxLinear<AmxBf16<Vec>>;
};

}  // namespace

const IsaKernels& kernels_amx() {
  static constexpr IsaKernels table = isa_kernels<Amx>();
  return table;
}

}  // namespace sparsed::cpu
