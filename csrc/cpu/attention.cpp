#include "cpu/attention.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "cpu/items.h"
#include "cpu/key_groups.h"
#include "cpu/packed_kv.h"
#include "cpu/parallel.h"
#include "support/available_memory.h"
#include "support/buffer.h"

namespace sparsed::cpu {
namespace {

constexpr int64_t kMinItemQueries = 32;

// Work items are runs of at most item_queries queries of one (batch, head); a sparse item stays within a query block.
struct ItemPlan {
  int64_t per_block, blocks, block_queries, item_queries;

  ItemPlan(const AttentionKernels& kernels, const AttentionParams& params, const BlockPattern* pattern) {
    block_queries = pattern ? pattern->geometry().block.q : std::max<int64_t>(params.q_len(), 1);
    item_queries = std::min<int64_t>(kernels.item_queries, block_queries);
    // Short sequences: smaller items, so that every thread gets several.
    const int64_t rows = params.batch() * params.heads() * params.q_len();
    while (item_queries > kMinItemQueries && rows / item_queries < 4 * num_threads()) {
      item_queries = ceil_div(item_queries / 2, kMinItemQueries) * kMinItemQueries;
    }
    per_block = ceil_div(block_queries, item_queries);
    blocks = ceil_div(params.q_len(), block_queries);
  }
  int64_t per_head() const { return per_block * blocks; }
  int64_t block(int64_t item) const { return item / per_block; }
  int64_t first(int64_t item) const { return block(item) * block_queries + item % per_block * item_queries; }
};

// groups_of(b, row of the pattern): what an item visits; it holds until the thread's next item.
template <class GroupsOf>
void run_plan(const AttentionKernels& kernels, const AttentionParams& params, const PackedKv& packed,
              const ItemPlan& plan, const GroupsOf& groups_of) {
  const size_t scratch_bytes = kernels.scratch_bytes(static_cast<int>(params.head_dim()), 0);
  require_scratch(scratch_bytes);
  parallel_for(params.batch() * params.heads() * plan.per_head(), [&](int64_t task) {
    const int64_t row = task / plan.per_head(), b = row / params.heads(), h = row % params.heads();
    const int64_t first = plan.first(task % plan.per_head());
    const int64_t end = std::min(
        {first + plan.item_queries, params.q_len(), (plan.block(task % plan.per_head()) + 1) * plan.block_queries});
    if (first >= end) return;
    AttentionItem item = make_item(params, packed, b, h, first, end - first);
    item.groups = groups_of(b, row * plan.blocks + plan.block(task % plan.per_head()));
    item.scratch = thread_scratch(scratch_bytes);
    [[maybe_unused]] const FlushDenormals flush;
    kernels.run_item(item);
  });
}

// Which groups some query block visits, of any query head of a key/value head: [B * H_kv, groups].
std::vector<uint8_t> visited_groups(const AttentionKernels& kernels, const AttentionParams& params,
                                    const BlockPattern& pattern, const LiveKeys& live) {
  const int64_t kv_heads = params.batch() * params.kv_heads(), words = pattern.geometry().row_words();
  const int64_t rows = pattern.rows() / kv_heads;
  const uint64_t* bits = pattern.bits().data();
  std::vector<uint8_t> visited(static_cast<size_t>(kv_heads * live.groups()));
  parallel_for(kv_heads, [&](int64_t head) {
    std::vector<uint64_t> any(static_cast<size_t>(words));
    for (const uint64_t* row = bits + head * rows * words; row < bits + (head + 1) * rows * words; row += words) {
      for (int64_t w = 0; w < words; ++w) any[static_cast<size_t>(w)] |= row[w];
    }
    GroupList groups;
    groups.assign_blocks(any.data(), words, pattern.geometry().block.kv, kernels.group_keys,
                         live.row(head / params.kv_heads()), live.groups());
    for (int64_t i = 0; i < groups.view().count; ++i) {
      visited[static_cast<size_t>(head * live.groups() + groups.view().index[i])] = 1;
    }
  });
  return visited;
}

// Copies rows of q [B, H, L, D] to their place in [B, H_kv, H / H_kv * L, D], or those of the output back.
enum class Copy { kIn, kOut };
void copy_rows(const TensorView& by_head, const TensorView& by_kv_head, Copy direction) {
  const auto [batch, heads, length, head_dim] = by_head.shape;
  const int64_t group = heads / by_kv_head.shape[1];
  const size_t bytes = static_cast<size_t>(head_dim) * dtype_size(by_head.dtype);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < length; ++i) {
        char* outer = by_head.row(b, h, i);
        char* inner = by_kv_head.row(b, h / group, h % group * length + i);
        std::memcpy(direction == Copy::kIn ? inner : outer, direction == Copy::kIn ? outer : inner, bytes);
      }
    }
  }
}

}  // namespace

void attention(const AttentionKernels& kernels, const AttentionParams& params, const BlockPattern* pattern) {
  if (params.empty()) return fill_empty(params);
  PackedKv packed(kernels, kv_shape(params), packed_memory());
  const LiveKeys live(params.key_mask, params.batch(), params.kv_len(), kernels.group_keys);
  if (!pattern) {
    packed.put(nullptr, params.k, params.v, params.key_mask);
    return attention(kernels, params, packed, DenseGroups(live, false));
  }

  packed.put(nullptr, params.k, params.v, params.key_mask, visited_groups(kernels, params, *pattern, live).data());
  const PatternGeometry& geometry = pattern->geometry();
  const uint64_t* bits = pattern->bits().data();
  run_plan(kernels, params, packed, ItemPlan(kernels, params, pattern), [&](int64_t b, int64_t row) {
    thread_local GroupList groups;  // keeps its memory from item to item
    groups.assign_blocks(bits + row * geometry.row_words(), geometry.row_words(), geometry.block.kv, kernels.group_keys,
                         live.row(b), packed.groups);
    return groups.view();
  });
}

void attention(const AttentionKernels& kernels, const AttentionParams& params, const PackedKv& packed,
               const DenseGroups& groups) {
  const auto run = [&](const AttentionParams& given) {
    run_plan(kernels, given, packed, ItemPlan(kernels, given, nullptr),
             [&](int64_t b, int64_t) { return groups.row(b); });
  };
  if (params.heads() == params.kv_heads() || params.q_len() >= kMinItemQueries) return run(params);

  // A tile costs the same with one query as with 16: the heads that share keys share tiles. An item reads its queries
  // before it writes its output, so that one array is both. lse is in this order already.
  const Shape4 shape{params.batch(), params.kv_heads(), params.heads() / params.kv_heads() * params.q_len(),
                     params.head_dim()};
  const size_t bytes = static_cast<size_t>(shape[0] * shape[1] * shape[2] * shape[3]) * dtype_size(params.q.dtype);
  require_memory(bytes, "a copy of q");
  const AlignedBytes memory = allocate_aligned(bytes);
  AttentionParams shared = params;
  shared.q = shared.out = {memory.get(), params.q.dtype, shape, contiguous_strides(shape)};
  copy_rows(params.q, shared.q, Copy::kIn);
  run(shared);
  copy_rows(params.out, shared.out, Copy::kOut);
}

bool needs_finite_values(const AttentionKernels& kernels, const AttentionParams& params, const BlockPattern* pattern) {
  return pattern && pattern->geometry().block.kv < kernels.group_keys && params.v.dtype == DType::kBFloat16;
}

bool values_are_finite(const AttentionParams& params) {
  std::atomic<bool> finite{true};
  parallel_for(params.batch() * params.kv_heads(), [&](int64_t head) {
    const int64_t b = head / params.kv_heads(), h = head % params.kv_heads();
    for (int64_t key = 0; key < params.kv_len(); ++key) {
      const auto* values = reinterpret_cast<const uint16_t*>(params.v.row(b, h, key));
      bool row_finite = true;
      for (int64_t d = 0; d < params.head_dim(); ++d) row_finite = row_finite && (values[d] & 0x7f80) != 0x7f80;
      if (!row_finite) finite = false;
    }
  });
  return finite;
}

}  // namespace sparsed::cpu
