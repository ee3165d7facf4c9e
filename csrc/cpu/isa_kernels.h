// The table of an instruction set's kernels, from its parts: isa_kernels<Arch>(). Arch has
//
//   Vec          a vector of floats: vec_*.h
//   Mul          a multiply-add step over it: mul_*.h (AMX has none)
//   MicroKernel  the small products of attention: VectorMicroKernel<Mul>, AmxMicroKernel
//   Linear       the kernel of linear layers: VectorLinear<Arch>, AmxLinear<Arch>
//
// An Arch lives in an anonymous namespace, as everything does that is compiled with flags of an instruction set: a
// shared symbol could be linked into code for every machine.
#pragma once

#include "core/tensor.h"
#include "cpu/attention_kernel.h"
#include "cpu/half.h"
#include "cpu/kernels.h"
#include "cpu/ops_kernels.h"
#include "cpu/row_kernels.h"

namespace sparsed::cpu {
namespace {

// The model operations: row operations by their element types.
template <class Arch>
class Ops {
 public:
  static constexpr OpsKernels table() {
    return {Arch::Linear::table(), rms_norm, rotary, silu_gate, Rows::find_max, Rows::exp_sum, Rows::entropy_sum};
  }

 private:
  using Rows = RowKernels<typename Arch::Vec>;

  static void rms_norm(const void* x, DType dtype, const float* weight, float eps, int64_t cols, void* out,
                       DType out_dtype) {
    const bool wide_out = out_dtype == DType::kFloat32;
    if (dtype == DType::kFloat32) {
      const float* row = static_cast<const float*>(x);
      if (wide_out) return Rows::rms_norm(row, weight, eps, cols, static_cast<float*>(out));
      return Rows::rms_norm(row, weight, eps, cols, static_cast<Bf16*>(out));
    }
    const Bf16* row = static_cast<const Bf16*>(x);
    if (wide_out) return Rows::rms_norm(row, weight, eps, cols, static_cast<float*>(out));
    return Rows::rms_norm(row, weight, eps, cols, static_cast<Bf16*>(out));
  }

  static void rotary(void* x, DType dtype, int64_t heads, int64_t head_dim, const float* cos, const float* sin) {
    if (dtype == DType::kFloat32) return Rows::rotary(static_cast<float*>(x), heads, head_dim, cos, sin);
    return Rows::rotary(static_cast<Bf16*>(x), heads, head_dim, cos, sin);
  }

  static void silu_gate(void* gate, const void* up, DType dtype, int64_t cols) {
    if (dtype == DType::kFloat32) {
      return Rows::silu_gate(static_cast<float*>(gate), static_cast<const float*>(up), cols);
    }
    return Rows::silu_gate(static_cast<Bf16*>(gate), static_cast<const Bf16*>(up), cols);
  }
};

template <class Arch>
constexpr OpsKernels kOpsKernels = Ops<Arch>::table();

template <class Arch>
constexpr IsaKernels isa_kernels() {
  return {Attention<Arch>::table(), &kOpsKernels<Arch>};
}

}  // namespace
}  // namespace sparsed::cpu
