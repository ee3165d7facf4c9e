// From what attention is asked to do to kernel arguments and launch shapes. Plain C++: the tests launch by it too.
#pragma once

#include <cstdint>

#include "core/params.h"
#include "cuda/params.h"

namespace sparsed::cuda {

// Selected key blocks in device memory: row r = (b H + h) q_blocks + i lists counts[r] sorted blocks from
// indices[r * stride] on.
struct BlockRows {
  int block_size = 0;
  const int32_t* counts = nullptr;   // [B H q_blocks]
  const int32_t* indices = nullptr;  // [B H q_blocks, stride]
  int64_t stride = 0;
};

enum class Kernel {
  kPlain,  // any dtype, any alignment
  kSm80,   // 16-bit elements, rows aligned to 16 bytes
  kSm90,   // see sm90/plan.h
};

struct Plan {
  Kernel kernel = Kernel::kPlain;
  Sums sums = Sums::kNone;
  bool split = false;  // kSm90: warpgroups share query rows
  int head_dim = 0;    // that the kernel is compiled for: the array's, or the next one above
  int threads = 0;     // of a block
  int64_t blocks = 0;  // one per work item
  AttentionArgs args;

  bool output() const { return args.out.data != nullptr; }  // false: a selection alone
};

// Arguments for device memory behind params' pointers. lists: nullptr is dense. Throws where lengths exceed what the
// kernels count in.
Plan plan_attention(const AttentionParams& params, const BlockRows* lists);

// The same with the selection, whose arrays are still to be filled in: args.select.scores and so on, and
// args.select.partial for as many blocks as are launched (they take work items in turn).
Plan plan_selection(const AttentionParams& params, const SelectParams& select);

// Bytes of args.select.partial per launched block, of args.select.scores, and of args.select.generation.
size_t partial_bytes(const Plan& plan);
size_t score_bytes(const Plan& plan);

}  // namespace sparsed::cuda
