// Encodes tensor maps. The function of the driver is looked up at its first use, so that nothing links to the driver.
#pragma once

#include "core/tensor.h"
#include "cuda/params.h"
#include "cuda/sm90/plan.h"

namespace sparsed::cuda {

TensorMap encode_map(const CopyMap& map, DType dtype);

}  // namespace sparsed::cuda
