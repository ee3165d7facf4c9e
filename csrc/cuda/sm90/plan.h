// Turns a plan for the sm_80 kernels into one for those of sm_90a. It is plain C++, so that the tests can use it, too.
#pragma once

#include <array>
#include <cstdint>

#include "cuda/plan.h"

namespace sparsed::cuda {

// Changes `plan` to the kernels for compute capability 9.0a and returns true if they support it. Blocks take work items
// in turn, so launch only as many as run at the same time, and at most plan.blocks.
bool move_to_sm90(Plan& plan);

// An array as the tensor memory accelerator (TMA) reads it, in elements: columns, tokens, heads, batch.
struct CopyMap {
  const void* data;
  std::array<int64_t, 4> size;
  std::array<int64_t, 3> stride;  // of tokens, heads, batch
  int box_tokens;                 // of one copy
};
struct CopyMaps {
  CopyMap q, k, v;
};
CopyMaps copy_maps(const Plan& plan);

}  // namespace sparsed::cuda
