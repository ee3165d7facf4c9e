// From a plan for the sm_80 kernels to one for those of sm_90a. Plain C++: the tests launch by it too.
#pragma once

#include <array>
#include <cstdint>

#include "cuda/plan.h"

namespace sparsed::cuda {

// Makes `plan` one for compute capability 9.0a where those kernels do what it asks for; else it stays as it is. Blocks
// take work items in turn: launch as many as run at once, and no more than plan.blocks.
bool move_to_sm90(Plan& plan);

// An array as the tensor memory accelerator reads it, in elements: columns, tokens, heads, batch.
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
