// Keys and values as the kernels read them: packed once per call, in groups of keys.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/params.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "support/available_memory.h"
#include "support/buffer.h"

namespace sparsed::cpu {

// Rows of a group with zeros in place of the masked ones, whose probability 0 would not hide a NaN. In the scratch.
inline PackRows without_masked(const PackRows& rows, const uint8_t* key_mask) {
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
                "packed keys and values") {
    constexpr int64_t kGroupsPerPackTask = 16;
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

}  // namespace sparsed::cpu
