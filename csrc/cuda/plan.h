// From what attention is asked to do to kernel arguments and launch shapes. Plain C++: the tests launch by it too.
#pragma once

#include <cstdint>

#include "core/params.h"
#include "cuda/params.h"

namespace sparsed {
struct PatternGeometry;
}

namespace sparsed::cuda {

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

// Arguments for device memory behind params' pointers. pattern: nullptr is dense; with one, args.counts, args.indices
// and args.list_stride are still to be filled in. Throws where lengths exceed what the kernels count in, or where query
// blocks and key blocks differ.
Plan plan_attention(const AttentionParams& params, const PatternGeometry* pattern);

// The same with the selection, whose arrays are still to be filled in: args.select.scores and so on, and
// args.select.partial for as many blocks as are launched (they take work items in turn).
Plan plan_selection(const AttentionParams& params, const SelectParams& select);

// Bytes of args.select.partial per launched block, of args.select.scores, and of args.select.generation.
size_t partial_bytes(const Plan& plan);
size_t score_bytes(const Plan& plan);

}  // namespace sparsed::cuda
