#include "cpu/packed_key_values.h"

#include <algorithm>

#include "cpu/attention.h"
#include "cpu/items.h"
#include "support/error.h"

namespace sparsed::cpu {

PackedKeyValues::PackedKeyValues(const AttentionKernels& kernels, DType dtype, const KvShape& shape,
                                 const uint8_t* key_mask)
    : kernels_(kernels),
      dtype_(dtype),
      shape_(shape),
      packed_(kernels, shape, memory_),
      key_mask_(key_mask, key_mask ? key_mask + shape.batch * shape.length : key_mask),
      groups_(LiveKeys(key_mask, shape.batch, shape.length, kernels.group_keys), false),
      present_(static_cast<size_t>(shape.length)) {}

void PackedKeyValues::put(const int64_t* positions, const TensorView& k, const TensorView& v) {
  const int64_t rows = k.shape[2];
  mark(positions, rows, false);
  packed_.put(positions, k, v, key_mask_.empty() ? nullptr : key_mask_.data());
  mark(positions, rows, true);
}

void PackedKeyValues::attention(AttentionParams params) const {
  const auto missing = std::find(present_.begin(), present_.end(), uint8_t{0});
  check(missing == present_.end(), "position ", missing - present_.begin(), " was never put, expected all ",
        shape_.length, " positions");
  params.k.shape = params.v.shape = shape();
  if (params.empty()) return fill_empty(params);
  cpu::attention(kernels_, params, packed_, groups_);
}

void PackedKeyValues::mark(const int64_t* positions, int64_t rows, bool present) {
  for (int64_t i = 0; i < rows; ++i) present_[static_cast<size_t>(positions ? positions[i] : i)] = present;
}

}  // namespace sparsed::cpu
