#include "registry.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "cuda/cuda.h"
#include "support/error.h"

namespace sparsed {
namespace {

using cpu::CpuBackend;

std::atomic<const CpuBackend*> g_active{nullptr};  // nullptr: not chosen yet

std::string describe(const std::vector<CpuBackend>& table) {
  std::string text;
  for (const CpuBackend& entry : table) {
    text += text.empty() ? "" : ", ";
    text += entry.backend.name;
    std::string why;
    for (const std::string& reason : entry.backend.not_supported_reasons()) why += (why.empty() ? "" : ", ") + reason;
    if (!why.empty()) text += " (" + why + ")";
  }
  return text;
}

bool can_run(const CpuBackend& entry) { return entry.backend.not_supported_reasons().empty(); }

// source: what gave the name.
const CpuBackend& find(const std::string& name, const char* source) {
  const std::vector<CpuBackend>& table = cpu::backends();
  for (const CpuBackend& entry : table) {
    if (name == entry.backend.name && can_run(entry)) return entry;
  }
  fail(ErrorKind::kValue, source, " is \"", name, "\", expected one that can run here of: ", describe(table));
}

const CpuBackend& choose() {
  const char* name = std::getenv("SPARSED_ISA");
  if (name && *name) return find(name, "SPARSED_ISA");
  return *std::find_if(cpu::backends().begin(), cpu::backends().end(), can_run);
}

const CpuBackend& active() {
  const CpuBackend* chosen = g_active.load();
  if (!chosen) g_active = chosen = &choose();
  return *chosen;
}

}  // namespace

std::vector<const Backend*> backends() {
  std::vector<const Backend*> all;
  for (const CpuBackend& entry : cpu::backends()) all.push_back(&entry.backend);
  all.push_back(&cuda_backend());
  return all;
}

const Backend& active_backend() { return active().backend; }

const cpu::ModelOps& active_ops() { return active().ops; }

const cpu::AttentionKernels& active_attention_kernels(DType dtype) { return active().attention_kernels(dtype); }

void set_backend(const std::optional<std::string>& name) {
  g_active = name ? &find(*name, "set_backend: name") : nullptr;
}

const Backend& cuda_backend() {
  static const Backend backend = cuda::backend();
  return backend;
}

}  // namespace sparsed
