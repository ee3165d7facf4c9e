#include "registry.h"

#include <cstdlib>
#include <cstring>

#include "core/error.h"
#include "cpu/attention.h"
#include "cpu/isa.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cuda/cuda.h"

namespace sparsed {
namespace {

using cpu::Isa;
using cpu::IsaKernels;

template <Isa kIsa>
std::vector<std::string> reasons() {
  static const std::vector<std::string> missing = cpu::missing_features(kIsa);  // CPUID is slow in virtual machines
  return missing;
}

// A CPU backend made of an instruction set's kernels. `kBf16` serves bfloat16 inputs, `kOther` the rest: units that
// multiply bfloat16 only leave other inputs to AVX-512.
template <const IsaKernels& (*kBf16)(), const IsaKernels& (*kOther)()>
struct CpuBackend {
  static const IsaKernels& kernels(DType dtype) { return dtype == DType::kBFloat16 ? kBf16() : kOther(); }

  static void attention(const AttentionParams& params, const BlockPattern* pattern) {
    const IsaKernels& preferred = kernels(params.q.dtype);
    const bool fits = cpu::can_attend(preferred.attention, params, pattern);
    cpu::attention((fits ? preferred : kOther()).attention, params, pattern);
  }
  static BlockPattern attention_and_select(const AttentionParams& params, const SelectParams& select) {
    const IsaKernels& preferred = kernels(params.q.dtype);
    const bool fits = cpu::can_select(preferred.attention, params, select);
    return cpu::attention_and_select((fits ? preferred : kOther()).attention, params, select);
  }

  static void linear(const RowsView& x, const PackedWeight& w, const RowsView& residual, const RowsView& out) {
    const bool bf16 = x.dtype == DType::kBFloat16 && w.dtype() == DType::kBFloat16;
    cpu::linear(*(bf16 ? kBf16() : kOther()).ops, x, w, residual, out);
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

  static Backend entry(const char* name, std::vector<std::string> (*not_supported)()) {
    return {name,
            not_supported,
            attention,
            attention_and_select,
            {cpu::pack_weight, linear, rms_norm, rotary, silu_gate, token_confidence}};
  }
};

std::vector<Backend> make_table() {
  using namespace cpu;
  std::vector<Backend> table;
#ifndef SPARSED_SCALAR_ONLY
  table.push_back(CpuBackend<kernels_amx, kernels_avx512>::entry("amx", reasons<Isa::kAmx>));
  table.push_back(CpuBackend<kernels_avx512_bf16, kernels_avx512>::entry("avx512_bf16", reasons<Isa::kAvx512Bf16>));
  table.push_back(CpuBackend<kernels_avx512, kernels_avx512>::entry("avx512", reasons<Isa::kAvx512>));
  table.push_back(CpuBackend<kernels_avx2, kernels_avx2>::entry("avx2", reasons<Isa::kAvx2>));
#endif
  table.push_back(CpuBackend<kernels_scalar, kernels_scalar>::entry("scalar", reasons<Isa::kScalar>));
  // For arrays on its devices. Model operations stay on the host.
  Backend cuda = cuda::backend();
  for (const Backend& backend : table) {
    if (!cuda.ops.linear && backend.not_supported_reasons().empty()) cuda.ops = backend.ops;
  }
  table.push_back(cuda);
  return table;
}

const Backend& best_backend() {
  static const Backend& best = [&]() -> const Backend& {
    size_t first = 0;  // the scalar one runs everywhere
    while (!backends()[first].not_supported_reasons().empty()) ++first;
    return backends()[first];
  }();
  return best;
}

std::string describe_backends() {
  std::string text;
  for (const Backend& backend : backends()) {
    if (&backend == &cuda_backend()) continue;
    text += text.empty() ? "" : ", ";
    text += backend.name;
    std::string why;
    for (const std::string& reason : backend.not_supported_reasons()) why += (why.empty() ? "" : ", ") + reason;
    if (!why.empty()) text += " (" + why + ")";
  }
  return text;
}

}  // namespace

const std::vector<Backend>& backends() {
  static const std::vector<Backend> table = make_table();
  return table;
}

const Backend& active_backend() {
  const char* forced = std::getenv("SPARSED_ISA");
  if (!forced || !*forced) return best_backend();
  for (const Backend& backend : backends()) {
    const bool found = std::strcmp(backend.name, forced) == 0 && &backend != &cuda_backend();
    if (found && backend.not_supported_reasons().empty()) return backend;
  }
  fail(ErrorKind::kValue, "SPARSED_ISA is \"", forced, "\", expected one that can run here of: ", describe_backends());
}

const Backend& cuda_backend() { return backends().back(); }

int num_threads() { return cpu::num_threads(); }

void set_num_threads(int64_t threads) {
  constexpr int64_t kMost = 1 << 14;
  check(threads >= 1 && threads <= kMost, "set_num_threads: n is ", threads, ", expected 1 ... ", kMost);
  cpu::set_num_threads(static_cast<int>(threads));
}

}  // namespace sparsed
