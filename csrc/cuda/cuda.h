// The CUDA backend, for the registry. no_cuda.cpp stands in for it where there is no toolkit.
#pragma once

#include "core/backend.h"

namespace sparsed::cuda {

// Takes arrays in the memory of CUDA devices.
Backend backend();

}  // namespace sparsed::cuda
