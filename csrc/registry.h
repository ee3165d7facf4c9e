// The one ordered table of backends, best first for host memory, and the choice among them.
#pragma once

#include <string>
#include <vector>

#include "core/backend.h"

namespace sparsed {

const std::vector<Backend>& backends();
// For host memory: the best backend that can run here, or the one that SPARSED_ISA names (read at each call); an
// unknown name or one that cannot run here is a ValueError that lists the names and reasons.
const Backend& active_backend();
// The backend of arrays in the memory of CUDA devices. It may be unable to run here.
const Backend& cuda_backend();

int num_threads();
void set_num_threads(int64_t threads);  // >= 1

}  // namespace sparsed
