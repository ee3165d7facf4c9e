#include "cpu/backend.h"

#include <string>

#include "cpu/attention.h"
#include "cpu/isa.h"
#include "cpu/ops.h"

namespace sparsed::cpu {
namespace {

template <Isa kIsa>
std::vector<std::string> reasons() {
  static const std::vector<std::string> missing = missing_features(kIsa);  // CPUID is slow in virtual machines
  return missing;
}

// The entries of a backend made of an instruction set's kernels. `kBf16` serves bfloat16 inputs, `kOther` the rest:
// units that multiply bfloat16 only leave other inputs to AVX-512. `kInt8` serves int8 weights.
template <const IsaKernels& (*kBf16)(), const IsaKernels& (*kOther)(), const LinearKernels& (*kInt8)()>
struct Entries {
  static const IsaKernels& kernels(DType dtype) { return dtype == DType::kBFloat16 ? kBf16() : kOther(); }

  static const AttentionKernels& attention_kernels(DType dtype) { return kernels(dtype).attention; }
  static void attention(const AttentionParams& params, const BlockPattern* pattern) {
    const IsaKernels& preferred = kernels(params.q.dtype);
    const bool fits = !needs_finite_values(preferred.attention, params, pattern) || values_are_finite(params);
    cpu::attention((fits ? preferred : kOther()).attention, params, pattern);
  }
  static BlockPattern attention_and_select(const AttentionParams& params, const SelectParams& select) {
    const IsaKernels& preferred = kernels(params.q.dtype);
    const bool fits = can_select(preferred.attention, params, select);
    return cpu::attention_and_select((fits ? preferred : kOther()).attention, params, select);
  }

  static void linear(const RowsView& x, const std::vector<LinearPart>& parts) {
    const DType dtype = parts.empty() ? x.dtype : parts[0].w->dtype();
    const bool bf16 = x.dtype == DType::kBFloat16 && dtype == DType::kBFloat16;
    cpu::linear(dtype == DType::kInt8 ? kInt8() : (bf16 ? kBf16() : kOther()).ops->linear, x, parts);
  }
  static void rms_norm(const RowsView& x, const float* weight, float eps, const RowsView& out) {
    cpu::rms_norm(*kOther().ops, x, weight, eps, out);
  }
  static void rotary(const RowsView& x, int64_t head_dim, const float* cos, const float* sin) {
    cpu::rotary(*kOther().ops, x, head_dim, cos, sin);
  }
  static void silu_gate(const RowsView& gate, const RowsView& up) { cpu::silu_gate(*kOther().ops, gate, up); }
  static void token_confidence(const RowsView& logits, Confidence kind, int64_t* ids, float* confidence) {
    cpu::token_confidence(*kOther().ops, logits, kind, ids, confidence);
  }

  static CpuBackend backend(const char* name, std::vector<std::string> (*not_supported)()) {
    return {{name, not_supported, attention, attention_and_select},
            {pack_weight, quantize_rows, linear, rms_norm, rotary, silu_gate, token_confidence},
            attention_kernels};
  }
};

#ifndef SPARSED_SCALAR_ONLY
// Not all processors with AVX2 or AVX-512 have VNNI.
const LinearKernels& int8_best_avx2() { return reasons<Isa::kAvxVnni>().empty() ? int8_avx_vnni() : int8_avx2(); }
const LinearKernels& int8_best_avx512() {
  return reasons<Isa::kAvx512Vnni>().empty() ? int8_avx512_vnni() : int8_avx512();
}
const LinearKernels& int8_best_amx() { return reasons<Isa::kAmxInt8>().empty() ? int8_amx() : int8_best_avx512(); }
#endif

std::vector<CpuBackend> make_table() {
  std::vector<CpuBackend> table;
#ifndef SPARSED_SCALAR_ONLY
  table.push_back(Entries<kernels_amx, kernels_avx512, int8_best_amx>::backend("amx", reasons<Isa::kAmx>));
  table.push_back(Entries<kernels_avx512_bf16, kernels_avx512, int8_best_avx512>::backend("avx512_bf16",
                                                                                          reasons<Isa::kAvx512Bf16>));
  table.push_back(Entries<kernels_avx512, kernels_avx512, int8_best_avx512>::backend("avx512", reasons<Isa::kAvx512>));
  table.push_back(Entries<kernels_avx2, kernels_avx2, int8_best_avx2>::backend("avx2", reasons<Isa::kAvx2>));
#endif
  table.push_back(Entries<kernels_scalar, kernels_scalar, int8_scalar>::backend("scalar", reasons<Isa::kScalar>));
  return table;
}

}  // namespace

const std::vector<CpuBackend>& backends() {
  static const std::vector<CpuBackend> table = make_table();
  return table;
}

}  // namespace sparsed::cpu
