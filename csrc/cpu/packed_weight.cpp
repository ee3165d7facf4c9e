#include "cpu/packed_weight.h"

#include "support/available_memory.h"
#include "support/error.h"

namespace sparsed::cpu {

PackedWeight::PackedWeight(int64_t n, int64_t k, DType dtype) : dtype_(dtype), n_(n), k_(k) {
  check(dtype != DType::kFloat16, "pack_weight: dtype is float16, expected float32 or bfloat16");
  check(n > 0 && k > 0, "pack_weight: weight has shape [", n, ", ", k, "], expected at least one element");
  const size_t bytes = saturating_product({panels(), k_padded(), kPanel, static_cast<int64_t>(dtype_size(dtype))});
  require_memory(bytes, "pack_weight: the packed weight");
  data_ = allocate_aligned(bytes);
}

}  // namespace sparsed::cpu
