// Tensor maps by the driver, whose function is looked up when it is first needed: nothing links to the driver.
#pragma once

#include <cuda.h>

#include "core/tensor.h"
#include "cuda/plan_sm90.h"

namespace sparsed::cuda {

CUtensorMap encode_map(const CopyMap& map, DType dtype);

}  // namespace sparsed::cuda
