// Attention on arrays in device memory: everything is queued on a stream.
#pragma once

#include <memory>

#include "core/backend.h"

namespace sparsed::cuda {

void attention_on_device(const AttentionParams& params, const DevicePattern* pattern);
std::shared_ptr<const DevicePattern> select_on_device(const AttentionParams& params, const SelectParams& select);
std::shared_ptr<const DevicePattern> pattern_to_device(const BlockPattern& pattern, int device, void* stream);

}  // namespace sparsed::cuda
