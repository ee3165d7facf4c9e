// The selection rule on block scores: geometry of prompt and generation blocks, k, top-k. One place for all backends.
#pragma once

#include <cstdint>
#include <string>

#include "core/params.h"
#include "core/pattern.h"
#include "core/selection_rule.h"
#include "support/checker.h"

namespace sparsed {

// Throws unless the selection is defined for a sequence of kv_len tokens; errors name the argument.
void check_select(const SelectParams& select, int64_t kv_len, const Checker& check);

// First block that counts as generation: the first i with kv_len - i * block_size <= kv_len - prompt_length, else the
// last block. A block that holds both kinds is prompt, unless it is the sequence's last.
int64_t first_generation_block(int64_t kv_len, int64_t prompt_length, int64_t block_size);

// What the rule takes from each row, in order.
SelectRanges select_ranges(const SelectParams& select, int64_t kv_len);

// No row keeps more blocks than these.
int64_t most_kept(const SelectParams& select, const PatternGeometry& geometry);

// No pattern of this geometry is denser.
double max_density(const SelectParams& select, const PatternGeometry& geometry);

// Sets the bits of the blocks that the rule keeps in a bit row of a pattern. Dense generation rows are the caller's.
//   scores      [kv_blocks] probability mass under the softmax over all keys
//   generation  [kv_blocks] mass under the softmax over generation keys alone (kReference with isolate; else unused)
//   live        [kv_blocks] nonzero where the block has a live key
// Ties go to the lower block index; a NaN score counts as the lowest.
void select_row(const SelectParams& select, int64_t kv_len, const float* scores, const float* generation,
                const uint8_t* live, uint64_t* row);

}  // namespace sparsed
