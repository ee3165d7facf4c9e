// The CPU attention driver: packs K and V unless they are packed already, plans work items, runs them on threads.
#pragma once

#include "core/params.h"
#include "core/pattern.h"
#include "cpu/kernels.h"
#include "cpu/key_groups.h"
#include "cpu/packed_kv.h"

namespace sparsed::cpu {

// pattern == nullptr: dense.
void attention(const AttentionKernels& kernels, const AttentionParams& params, const BlockPattern* pattern);
// Dense attention over packed keys and values. No size of params is 0; params.k gives only their shape. The groups
// leave masked keys out.
void attention(const AttentionKernels& kernels, const AttentionParams& params, const PackedKv& packed,
               const DenseGroups& groups);

BlockPattern attention_and_select(const AttentionKernels& kernels, const AttentionParams& params,
                                  const SelectParams& select);

// Whether a value that the pattern leaves out could reach the output: where a key block is shorter than a group, its
// neighbour's values are multiplied by probability 0, which a NaN or an infinity survives.
bool needs_finite_values(const AttentionKernels& kernels, const AttentionParams& params, const BlockPattern* pattern);
// Reads all of params.v, bfloat16.
bool values_are_finite(const AttentionParams& params);

// Whether the kernels' key groups line up with the place where the generation's own softmax begins.
bool can_select(const AttentionKernels& kernels, const AttentionParams& params, const SelectParams& select);

}  // namespace sparsed::cpu
