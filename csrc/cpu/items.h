// What the drivers of attention and of the selection share: work items and their surroundings.
#pragma once

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "core/params.h"
#include "cpu/kernels.h"
#include "cpu/packed_kv.h"
#include "cpu/parallel.h"
#include "support/available_memory.h"
#include "support/softmax_constants.h"

namespace sparsed::cpu {

// Probabilities far below 1 would be denormal, and those are slow on some processors.
class FlushDenormals {
 public:
#if defined(__SSE__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040u); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#endif
};

// One (batch, head)'s part of an item; the caller adds groups, selection and scratch.
inline AttentionItem make_item(const AttentionParams& params, const PackedKv& packed, int64_t b, int64_t h,
                               int64_t first, int64_t queries) {
  const int64_t kv_head = b * params.kv_heads() + h / (params.heads() / params.kv_heads());
  AttentionItem item{};
  item.q = params.q.row(b, h, first);
  item.q_stride = params.q.stride[2];
  if (params.out.data) item.out = params.out.row(b, h, first);
  item.out_stride = params.out.stride[2];
  if (params.lse) item.lse = params.lse + (b * params.heads() + h) * params.q_len() + first;
  item.dtype = params.q.dtype;
  item.queries = static_cast<int>(queries);
  item.head_dim = static_cast<int>(params.head_dim());
  item.scale = std::max(params.scale * kLog2e, kMinScale);
  item.k = packed.k_head(kv_head);
  item.v = packed.v_head(kv_head);
  return item;
}

inline void require_scratch(size_t bytes_per_thread) {
  require_memory(bytes_per_thread * static_cast<size_t>(startable_threads()), "scratch");
}

// Of rows without a key.
inline void fill_empty(const AttentionParams& params) {
  const size_t row_bytes = static_cast<size_t>(params.head_dim()) * dtype_size(params.out.dtype);
  for (int64_t b = 0; b < params.batch(); ++b) {
    for (int64_t h = 0; params.out.data && h < params.heads(); ++h) {
      for (int64_t i = 0; i < params.q_len(); ++i) std::memset(params.out.row(b, h, i), 0, row_bytes);
    }
  }
  const int64_t rows = params.batch() * params.heads() * params.q_len();
  if (params.lse) std::fill_n(params.lse, rows, -std::numeric_limits<float>::infinity());
}

}  // namespace sparsed::cpu
