// The CUDA backend, for the registry. no_cuda.cpp stands in for it where there is no toolkit.
#pragma once

#include "core/backend.h"

namespace sparsed::cuda {

// Without model operations. Its `device` entries take device memory; the others take host memory too, and copy it.
Backend backend();

}  // namespace sparsed::cuda
