// The oracle: float64 attention and selection, written to be read. Slow on purpose; the tests hold kernels against it.
#pragma once

#include <vector>

#include "core/params.h"
#include "core/pattern.h"

namespace sparsed::reference {

// out [B, H, L, D] and lse [B, H, L] (may be nullptr) in float64, contiguous. Rows without a live key: 0 and -inf.
// pattern == nullptr: dense.
void attention(const AttentionParams& params, const BlockPattern* pattern, double* out, double* lse);

// Block scores in float64: probability mass of each key block summed over the query block's rows,
// [B, H, q_blocks, kv_blocks]; keys from `first_key` on take part in the softmax.
std::vector<double> block_scores(const AttentionParams& params, int block_size, float scale, int64_t first_key);

// One row of the selection rule, by sorting: [kv_blocks], 1 = kept. Arguments as in sparsed::select_row.
std::vector<uint8_t> select_row(const SelectParams& select, int64_t kv_len, const double* scores,
                                const double* generation, const uint8_t* live);

// The pattern by sorting float64 scores.
BlockPattern select(const AttentionParams& params, const SelectParams& select);

}  // namespace sparsed::reference
