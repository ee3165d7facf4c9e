#include "cpu/packed_weight.h"

#include "core/int8.h"
#include "support/available_memory.h"
#include "support/error.h"

namespace sparsed::cpu {

PackedWeight::PackedWeight(int64_t n, int64_t k, DType dtype) : dtype_(dtype), n_(n), k_(k) {
  check(dtype != DType::kFloat16, "dtype is float16, expected float32, bfloat16 or int8");
  check(n > 0 && k > 0, "weight has shape [", n, ", ", k, "], expected at least one element");
  check(dtype != DType::kInt8 || k <= kInt8MostInputs, "weight has shape [", n, ", ", k, "], expected at most ",
        kInt8MostInputs, " columns (of int8: a sum of more products could overflow)");
  const size_t bytes = saturating_product({panels(), k_padded(), kPanel, static_cast<int64_t>(dtype_size(dtype))});
  require_memory(bytes, "the packed weight");
  data_ = allocate_aligned(bytes);
  if (dtype == DType::kInt8) {
    scales_.resize(static_cast<size_t>(panels() * kPanel));
    starts_.resize(scales_.size());
  }
}

}  // namespace sparsed::cpu
