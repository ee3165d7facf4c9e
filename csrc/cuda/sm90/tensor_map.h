// Tensor maps by the driver, whose function is looked up when it is first needed: nothing links to the driver.
#pragma once

#include "core/tensor.h"
#include "cuda/params.h"
#include "cuda/sm90/plan.h"

namespace sparsed::cuda {

TensorMap encode_map(const CopyMap& map, DType dtype);

}  // namespace sparsed::cuda
