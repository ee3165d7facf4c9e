// The one table of backends, and which of them computes on arrays in host memory.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/backend.h"
#include "cpu/backend.h"

namespace sparsed {

// Those of the CPU, best first, then CUDA.
std::vector<const Backend*> backends();
// For arrays in host memory: the best one that can run here, or the one that SPARSED_ISA names. The choice is made at
// the first call and stays; where SPARSED_ISA names none that can run here, each call is a ValueError that lists names
// and reasons.
const Backend& active_backend();
// The model operations of the active backend.
const cpu::ModelOps& active_ops();
// The kernels by which it computes dense attention.
const cpu::AttentionKernels& active_attention_kernels(DType dtype);
// Another choice, by name; nullopt: by SPARSED_ISA as it is now. An unknown name or one that cannot run is a
// ValueError.
void set_backend(const std::optional<std::string>& name);
// For arrays in the memory of CUDA devices. It may be unable to run here.
const Backend& cuda_backend();

}  // namespace sparsed
