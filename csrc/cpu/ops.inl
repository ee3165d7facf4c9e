// The table of an instruction set's model operations. Needs rows.inl's and one linear_*.inl's functions.

#include "cpu/rows.inl"

namespace sparsed {
namespace {
namespace ops {

inline void rms_norm(const void* x, DType dtype, const float* weight, float eps, int64_t cols, void* out,
                     DType out_dtype) {
  const bool wide_out = out_dtype == DType::kFloat32;
  if (dtype == DType::kFloat32) {
    const float* row = static_cast<const float*>(x);
    if (wide_out) return rows::rms_norm(row, weight, eps, cols, static_cast<float*>(out));
    return rows::rms_norm(row, weight, eps, cols, static_cast<Bf16*>(out));
  }
  const Bf16* row = static_cast<const Bf16*>(x);
  if (wide_out) return rows::rms_norm(row, weight, eps, cols, static_cast<float*>(out));
  return rows::rms_norm(row, weight, eps, cols, static_cast<Bf16*>(out));
}

inline void rotary(void* x, DType dtype, int64_t heads, int64_t head_dim, const float* cos, const float* sin) {
  if (dtype == DType::kFloat32) return rows::rotary(static_cast<float*>(x), heads, head_dim, cos, sin);
  return rows::rotary(static_cast<Bf16*>(x), heads, head_dim, cos, sin);
}

inline void silu_gate(void* gate, const void* up, DType dtype, int64_t cols) {
  if (dtype == DType::kFloat32) {
    return rows::silu_gate(static_cast<float*>(gate), static_cast<const float*>(up), cols);
  }
  return rows::silu_gate(static_cast<Bf16*>(gate), static_cast<const Bf16*>(up), cols);
}

constexpr cpu::OpsKernels kTable = {linear::plan, linear::scratch_bytes, linear::run_block, rms_norm,         rotary,
                                    silu_gate,    rows::find_max,        rows::exp_sum,     rows::entropy_sum};

}  // namespace ops

inline const cpu::OpsKernels& ops_kernels() { return ops::kTable; }

}  // namespace
}  // namespace sparsed
