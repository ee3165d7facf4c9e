#include "core/selection.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/attention.h"
#include "cpu/items.h"
#include "cpu/key_groups.h"
#include "cpu/packed_kv.h"
#include "cpu/parallel.h"

namespace sparsed::cpu {

bool can_select(const AttentionKernels& kernels, const AttentionParams& params, const SelectParams& select) {
  if (select.rule != SelectionRule::kReference || !select.isolate) return true;
  return first_generation_block(params.kv_len(), select.prompt_length, select.block_size) * select.block_size %
             kernels.group_keys ==
         0;
}

BlockPattern attention_and_select(const AttentionKernels& kernels, const AttentionParams& params,
                                  const SelectParams& select) {
  PatternBuilder pattern(
      {params.batch(), params.heads(), select.block_size, params.q_len(), params.kv_len(), select.prompt_length},
      Checker());
  if (params.empty()) {
    fill_empty(params);
    return std::move(pattern).build();
  }
  PackedKv packed(kernels, kv_shape(params), packed_memory());
  packed.put(nullptr, params.k, params.v, params.key_mask);
  const LiveKeys live(params.key_mask, params.batch(), params.kv_len(), kernels.group_keys);
  const DenseGroups groups(live, true);
  const int64_t q_blocks = pattern.geometry().q_blocks(), kv_blocks = pattern.geometry().kv_blocks();

  std::vector<uint8_t> live_blocks(static_cast<size_t>(params.batch() * kv_blocks));
  for (int64_t b = 0; b < params.batch(); ++b) {
    for (int64_t key = 0; key < params.kv_len(); ++key) {
      if (!params.key_mask || params.key_mask[b * params.kv_len() + key]) {
        live_blocks[static_cast<size_t>(b * kv_blocks + key / select.block_size)] = 1;
      }
    }
  }

  SelectItem plan{};
  plan.scale = std::max(select.scale * kLog2e, kMinScale);
  plan.second_scale = select.scale != params.scale;
  plan.cell_keys = std::min(select.block_size, kernels.chunk_keys);
  plan.cells = ceil_div(packed.groups * kernels.group_keys, plan.cell_keys);
  plan.block_size = select.block_size;
  plan.block_cells = select.block_size / plan.cell_keys;
  plan.kv_blocks = kv_blocks;
  plan.generation_apart = select.rule == SelectionRule::kReference && select.isolate;
  if (plan.generation_apart) {
    const int64_t first =
        first_generation_block(params.kv_len(), select.prompt_length, select.block_size) * select.block_size;
    plan.generation_cell = first / plan.cell_keys;
    plan.generation_group = first / kernels.group_keys;
  }

  // Items hold whole query blocks.
  const int64_t item_queries = std::max<int64_t>(kernels.item_queries, select.block_size);
  const int64_t item_blocks = item_queries / select.block_size;
  const int64_t per_head = ceil_div(q_blocks, item_blocks);
  const size_t kernel_bytes = kernels.scratch_bytes(static_cast<int>(params.head_dim()), plan.cells);
  const size_t score_bytes = sizeof(float) * static_cast<size_t>(item_blocks * kv_blocks);
  require_scratch(kernel_bytes + 2 * score_bytes);

  parallel_for(params.batch() * params.heads() * per_head, [&](int64_t task) {
    const int64_t row = task / per_head, b = row / params.heads(), h = row % params.heads();
    const int64_t first_block = task % per_head * item_blocks;
    const int64_t first = first_block * select.block_size;
    const int64_t queries = std::min(item_queries, params.q_len() - first);
    AttentionItem item = make_item(params, packed, b, h, first, queries);
    item.groups = groups.row(b);
    item.scratch = thread_scratch(kernel_bytes + 2 * score_bytes);
    SelectItem scores = plan;
    scores.scores = reinterpret_cast<float*>(item.scratch + kernel_bytes);
    if (plan.generation_apart) scores.generation = scores.scores + item_blocks * kv_blocks;
    item.select = &scores;
    {
      [[maybe_unused]] const FlushDenormals flush;
      kernels.run_item(item);
    }
    const int64_t blocks = std::min(item_blocks, q_blocks - first_block);
    if (select.scores) {
      std::copy_n(scores.scores, blocks * kv_blocks, select.scores + (row * q_blocks + first_block) * kv_blocks);
    }
    for (int64_t i = 0; i < blocks; ++i) {
      select_row(select, params.kv_len(), scores.scores + i * kv_blocks,
                 scores.generation ? scores.generation + i * kv_blocks : nullptr, live_blocks.data() + b * kv_blocks,
                 pattern.row(row * q_blocks + first_block + i));
    }
  });
  if (select.dense_generation) pattern.fill_generation();
  return std::move(pattern).build();
}

}  // namespace sparsed::cpu
