// The CPU's backends, one for each instruction set, and its threads.
#pragma once

#include <cstdint>
#include <vector>

#include "core/backend.h"
#include "cpu/kernels.h"
#include "cpu/model_ops.h"
#include "cpu/packed_key_values.h"

namespace sparsed::cpu {

struct CpuBackend {
  Backend backend;
  ModelOps ops;
  // Of dense attention, for PackedKeyValues.
  const AttentionKernels& (*attention_kernels)(DType dtype);
};

// Best first. The last one, "scalar", runs everywhere.
const std::vector<CpuBackend>& backends();

int num_threads();
void set_num_threads(int threads);  // >= 1

}  // namespace sparsed::cpu
