#include "cuda/cuda.h"
#include "support/error.h"

namespace sparsed::cuda {
namespace {

constexpr const char* kReason = "built without CUDA";

[[noreturn]] void refuse() { fail(ErrorKind::kValue, "cuda: ", kReason); }

}  // namespace

Backend backend() {
  Backend backend{};
  backend.name = "cuda";
  backend.not_supported_reasons = [] { return std::vector<std::string>{kReason}; };
  backend.attention = [](const AttentionParams&, const BlockPattern*) { refuse(); };
  backend.attention_and_select = [](const AttentionParams&, const SelectParams&) -> BlockPattern { refuse(); };
  return backend;
}

}  // namespace sparsed::cuda
