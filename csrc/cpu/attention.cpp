#include "cpu/attention.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "core/error.h"
#include "core/memory.h"
#include "core/selection.h"
#include "cpu/parallel.h"

namespace sparsed::cpu {
namespace {

constexpr float kLog2e = 1.44269504088896341f;
constexpr float kMinScale = 1e-37f;  // keeps scale * log2(e) a normal number

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

// Rows of a group with zeros in place of the masked ones, whose probability 0 would not hide a NaN. In the scratch.
PackRows without_masked(const PackRows& rows, const uint8_t* key_mask) {
  const size_t size = dtype_size(rows.dtype), row_bytes = static_cast<size_t>(rows.head_dim) * size;
  std::byte* copy = thread_scratch(static_cast<size_t>(rows.count) * row_bytes);
  for (int64_t key = 0; key < rows.count; ++key) {
    std::byte* to = copy + static_cast<size_t>(key) * row_bytes;
    if (key_mask[rows.first + key]) {
      const int64_t at = (rows.first + key) * rows.stride * static_cast<int64_t>(size);
      std::memcpy(to, static_cast<const std::byte*>(rows.rows) + at, row_bytes);
    } else {
      std::memset(to, 0, row_bytes);
    }
  }
  return {copy, rows.head_dim, rows.dtype, 0, rows.count, rows.head_dim};
}

constexpr int64_t kGroupsPerPackTask = 16;
constexpr int64_t kMinItemQueries = 32;

// K and V of every (batch, key/value head), in groups.
class PackedKv {
 public:
  const int64_t groups;  // per head

  PackedKv(const AttentionKernels& kernels, const AttentionParams& params)
      : groups(ceil_div(params.kv_len(), kernels.group_keys)),
        heads_(static_cast<size_t>(params.batch() * params.kv_heads())),
        k_group_bytes_(kernels.k_group_bytes(static_cast<int>(params.head_dim()))),
        v_group_bytes_(params.v.data ? kernels.v_group_bytes(static_cast<int>(params.head_dim())) : 0),
        memory_(kept(),
                saturating_product(
                    {params.batch(), params.kv_heads(), groups, static_cast<int64_t>(k_group_bytes_ + v_group_bytes_)}),
                message(params.function, ": packed keys and values").c_str()) {
    const int64_t tasks = ceil_div(groups, kGroupsPerPackTask);
    parallel_for(static_cast<int64_t>(heads_) * tasks, [&](int64_t task) {
      const int64_t first = task % tasks * kGroupsPerPackTask;
      for (int64_t g = first; g < std::min(first + kGroupsPerPackTask, groups); ++g) {
        pack_group(kernels, params, task / tasks, g);
      }
    });
  }

  std::byte* k_head(int64_t head) const { return memory_.get() + groups_before(head) * k_group_bytes_; }
  std::byte* v_head(int64_t head) const {
    if (!v_group_bytes_) return nullptr;
    return memory_.get() + heads_ * static_cast<size_t>(groups) * k_group_bytes_ + groups_before(head) * v_group_bytes_;
  }

 private:
  static KeptMemory& kept() {
    thread_local KeptMemory memory;
    return memory;
  }

  size_t groups_before(int64_t head) const { return static_cast<size_t>(head * groups); }

  void pack_group(const AttentionKernels& kernels, const AttentionParams& params, int64_t head, int64_t group) const {
    const int64_t b = head / params.kv_heads(), h = head % params.kv_heads(), group_keys = kernels.group_keys;
    const int64_t count = std::min<int64_t>(group_keys, params.kv_len() - group * group_keys);
    const int head_dim = static_cast<int>(params.head_dim());
    PackRows rows{params.k.row(b, h, 0), params.k.stride[2], params.k.dtype, group * group_keys, count, head_dim};
    kernels.pack_k(rows, k_head(head) + static_cast<size_t>(group) * k_group_bytes_);
    if (!v_group_bytes_) return;
    rows.rows = params.v.row(b, h, 0);
    rows.stride = params.v.stride[2];
    const uint8_t* key_mask = params.key_mask ? params.key_mask + b * params.kv_len() : nullptr;
    const bool masked = key_mask && !std::all_of(key_mask + rows.first, key_mask + rows.first + count,
                                                 [](uint8_t real) { return real != 0; });
    kernels.pack_v(masked ? without_masked(rows, key_mask) : rows,
                   v_head(head) + static_cast<size_t>(group) * v_group_bytes_);
  }

  size_t heads_, k_group_bytes_, v_group_bytes_;
  LentMemory memory_;
};

// Which keys of each group take part: inside the sequence and not masked.
class LiveKeys {
 public:
  LiveKeys(const AttentionParams& params, int group_keys)
      : groups_(ceil_div(params.kv_len(), group_keys)), masked_(params.key_mask != nullptr) {
    const int64_t rows = masked_ ? params.batch() : 1;
    bits_.assign(static_cast<size_t>(rows * groups_), 0);
    for (int64_t b = 0; b < rows; ++b) {
      for (int64_t key = 0; key < params.kv_len(); ++key) {
        if (masked_ && !params.key_mask[b * params.kv_len() + key]) continue;
        bits_[static_cast<size_t>(b * groups_ + key / group_keys)] |= 1u << (key % group_keys);
      }
    }
  }
  const uint32_t* row(int64_t b) const { return bits_.data() + (masked_ ? b * groups_ : 0); }

 private:
  int64_t groups_;
  bool masked_;
  std::vector<uint32_t> bits_;
};

// The groups that a list of key blocks covers; two blocks may share a group, a block may span several.
class GroupList {
 public:
  void assign_all(const uint32_t* live, int64_t groups, bool keep_dead) {
    clear();
    for (int64_t g = 0; g < groups; ++g) push(g, ~0u, live, keep_dead);
  }

  void assign_blocks(const int32_t* blocks, int64_t count, int block_size, int group_keys, const uint32_t* live,
                     int64_t groups) {
    clear();
    for (int64_t i = 0; i < count; ++i) {
      const int64_t first = static_cast<int64_t>(blocks[i]) * block_size;
      if (block_size < group_keys) {
        push(first / group_keys, ((1u << block_size) - 1u) << (first % group_keys), live, false);
        continue;
      }
      const int64_t end = std::min(groups, (first + block_size) / group_keys);
      for (int64_t g = first / group_keys; g < end; ++g) push(g, ~0u, live, false);
    }
  }

  KeyGroups view() const { return {index_.data(), live_.data(), static_cast<int64_t>(index_.size())}; }

 private:
  void clear() {
    index_.clear();
    live_.clear();
  }
  void push(int64_t group, uint32_t bits, const uint32_t* live, bool keep_dead) {
    bits &= live[group];
    if (!bits && !keep_dead) return;
    if (!index_.empty() && index_.back() == group) {
      live_.back() |= bits;
      return;
    }
    index_.push_back(static_cast<int32_t>(group));
    live_.push_back(bits);
  }

  std::vector<int32_t> index_;
  std::vector<uint32_t> live_;
};

// Work items are runs of at most item_queries queries of one (batch, head); a sparse item stays within a query block.
struct ItemPlan {
  int64_t per_block, blocks, block_queries, item_queries;

  ItemPlan(const AttentionKernels& kernels, const AttentionParams& params) {
    block_queries = params.lists ? params.lists->block_size : std::max<int64_t>(params.q_len(), 1);
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

// One (batch, head)'s part of an item; the caller adds groups, selection and scratch.
AttentionItem make_item(const AttentionParams& params, const PackedKv& packed, int64_t b, int64_t h, int64_t first,
                        int64_t queries) {
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

void require_scratch(const char* function, size_t bytes_per_thread) {
  require_memory(bytes_per_thread * static_cast<size_t>(startable_threads()), message(function, ": scratch").c_str());
}

}  // namespace

void attention(const AttentionKernels& kernels, const AttentionParams& params) {
  const PackedKv packed(kernels, params);
  const LiveKeys live(params, kernels.group_keys);
  const ItemPlan plan(kernels, params);
  const size_t scratch_bytes = kernels.scratch_bytes(static_cast<int>(params.head_dim()), 0);
  require_scratch(params.function, scratch_bytes);

  std::vector<GroupList> dense(params.lists ? 0 : static_cast<size_t>(params.batch()));
  for (size_t b = 0; b < dense.size(); ++b) {
    dense[b].assign_all(live.row(static_cast<int64_t>(b)), packed.groups, false);
  }

  parallel_for(params.batch() * params.heads() * plan.per_head(), [&](int64_t task) {
    const int64_t row = task / plan.per_head(), b = row / params.heads(), h = row % params.heads();
    const int64_t first = plan.first(task % plan.per_head());
    const int64_t end = std::min(
        {first + plan.item_queries, params.q_len(), (plan.block(task % plan.per_head()) + 1) * plan.block_queries});
    if (first >= end) return;
    AttentionItem item = make_item(params, packed, b, h, first, end - first);
    if (params.lists) {
      const BlockLists& lists = *params.lists;
      const size_t list = static_cast<size_t>(row * lists.q_blocks + plan.block(task % plan.per_head()));
      thread_local GroupList groups;  // keeps its memory from item to item
      groups.assign_blocks(lists.indices.data() + lists.offsets[list], lists.offsets[list + 1] - lists.offsets[list],
                           lists.block_size, kernels.group_keys, live.row(b), packed.groups);
      item.groups = groups.view();
    } else {
      item.groups = dense[static_cast<size_t>(b)].view();
    }
    item.scratch = thread_scratch(scratch_bytes);
    [[maybe_unused]] const FlushDenormals flush;
    kernels.run_item(item);
  });
}

bool can_attend(const AttentionKernels& kernels, const AttentionParams& params) {
  if (!params.lists || params.lists->block_size >= kernels.group_keys || params.v.dtype != DType::kBFloat16)
    return true;
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

bool can_select(const AttentionKernels& kernels, const AttentionParams& params, const SelectParams& select) {
  if (select.rule != SelectionRule::kReference || !select.isolate) return true;
  return first_generation_block(params.kv_len(), select.prompt_length, select.block_size) * select.block_size %
             kernels.group_keys ==
         0;
}

BlockPattern attention_and_select(const AttentionKernels& kernels, const AttentionParams& params,
                                  const SelectParams& select) {
  BlockPattern pattern(
      {params.batch(), params.heads(), select.block_size, params.q_len(), params.kv_len(), select.prompt_length},
      params.function);
  const PackedKv packed(kernels, params);
  const LiveKeys live(params, kernels.group_keys);
  const int64_t q_blocks = pattern.geometry().q_blocks(), kv_blocks = pattern.geometry().kv_blocks();

  std::vector<GroupList> groups(static_cast<size_t>(params.batch()));
  std::vector<uint8_t> live_blocks(static_cast<size_t>(params.batch() * kv_blocks));
  for (int64_t b = 0; b < params.batch(); ++b) {
    groups[static_cast<size_t>(b)].assign_all(live.row(b), packed.groups, true);
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
  require_scratch(params.function, kernel_bytes + 2 * score_bytes);

  parallel_for(params.batch() * params.heads() * per_head, [&](int64_t task) {
    const int64_t row = task / per_head, b = row / params.heads(), h = row % params.heads();
    const int64_t first_block = task % per_head * item_blocks;
    const int64_t first = first_block * select.block_size;
    const int64_t queries = std::min(item_queries, params.q_len() - first);
    AttentionItem item = make_item(params, packed, b, h, first, queries);
    item.groups = groups[static_cast<size_t>(b)].view();
    item.scratch = thread_scratch(kernel_bytes + 2 * score_bytes);
    SelectItem own = plan;
    own.scores = reinterpret_cast<float*>(item.scratch + kernel_bytes);
    if (plan.generation_apart) own.generation = own.scores + item_blocks * kv_blocks;
    item.select = &own;
    {
      [[maybe_unused]] const FlushDenormals flush;
      kernels.run_item(item);
    }
    for (int64_t i = 0; i < std::min(item_blocks, q_blocks - first_block); ++i) {
      select_row(select, params.kv_len(), own.scores + i * kv_blocks,
                 own.generation ? own.generation + i * kv_blocks : nullptr, live_blocks.data() + b * kv_blocks,
                 row * q_blocks + first_block + i, pattern);
    }
  });
  return pattern;
}

}  // namespace sparsed::cpu
