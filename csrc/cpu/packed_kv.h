// Keys and values as the kernels read them: packed in groups of keys.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "core/params.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "support/available_memory.h"
#include "support/buffer.h"

namespace sparsed::cpu {

struct KvShape {
  int64_t batch, kv_heads, length;
  int head_dim;
  bool values = true;  // false: there are only keys
};

inline KvShape kv_shape(const AttentionParams& params) {
  return {params.batch(), params.kv_heads(), params.kv_len(), static_cast<int>(params.head_dim()),
          params.v.data != nullptr};
}

// Rows with zeros in place of the masked ones, whose probability 0 would not hide a NaN. In the scratch.
inline PackRows without_masked(const PackRows& rows, const uint8_t* real) {
  const size_t size = dtype_size(rows.dtype), row_bytes = static_cast<size_t>(rows.head_dim) * size;
  std::byte* copy = thread_scratch(static_cast<size_t>(rows.count) * row_bytes);
  for (int i = 0; i < rows.count; ++i) {
    std::byte* to = copy + static_cast<size_t>(i) * row_bytes;
    if (real[i]) {
      const int64_t at = i * rows.stride * static_cast<int64_t>(size);
      std::memcpy(to, static_cast<const std::byte*>(rows.rows) + at, row_bytes);
    } else {
      std::memset(to, 0, row_bytes);
    }
  }
  return {copy, rows.head_dim, rows.dtype, rows.first, rows.count, rows.head_dim};
}

// K and V of every (batch, key/value head), in groups, in memory that is lent for as long as the object lives: kept by
// a thread from call to call, or the memory of one cache.
class PackedKv {
 public:
  const int64_t groups;  // per head

  // MemoryError, "packed keys and values needs ...", before an allocation that cannot fit. Keys beyond the length are
  // zeros; the others are undefined until they are put.
  PackedKv(const AttentionKernels& kernels, const KvShape& shape, KeptMemory& memory)
      : groups(ceil_div(shape.length, kernels.group_keys)),
        kernels_(kernels),
        shape_(shape),
        k_group_bytes_(kernels.k_group_bytes(shape.head_dim)),
        v_group_bytes_(shape.values ? kernels.v_group_bytes(shape.head_dim) : 0),
        memory_(memory, nbytes(kernels, shape), "packed keys and values") {
    if (shape.length % kernels.group_keys == 0) return;
    for (int64_t head = 0; head < shape.batch * shape.kv_heads; ++head) {
      std::memset(k_group(head, groups - 1), 0, k_group_bytes_);
      if (shape.values) std::memset(v_group(head, groups - 1), 0, v_group_bytes_);
    }
  }

  // The largest size_t where it is more.
  static size_t nbytes(const AttentionKernels& kernels, const KvShape& shape) {
    const size_t group = kernels.k_group_bytes(shape.head_dim) +  //
                         (shape.values ? kernels.v_group_bytes(shape.head_dim) : 0);
    return saturating_product(
        {shape.batch, shape.kv_heads, ceil_div(shape.length, kernels.group_keys), static_cast<int64_t>(group)});
  }

  // Row i of k and v [B, H_kv, R, D] becomes key positions[i], ascending; nullptr: key i. key_mask [B, S] or nullptr.
  // wanted [B * H_kv, groups]: groups where it is 0 stay as they are; nullptr: all are wanted.
  void put(const int64_t* positions, const TensorView& k, const TensorView& v, const uint8_t* key_mask,
           const uint8_t* wanted = nullptr) {
    const std::vector<Run> runs = runs_of(positions, k.shape[2]);
    constexpr int64_t kRunsPerTask = 16;
    const int64_t count = static_cast<int64_t>(runs.size()), tasks = ceil_div(count, kRunsPerTask);
    parallel_for(shape_.batch * shape_.kv_heads * tasks, [&](int64_t task) {
      const int64_t head = task / tasks, first = task % tasks * kRunsPerTask;
      const uint8_t* real = key_mask ? key_mask + head / shape_.kv_heads * shape_.length : nullptr;
      for (int64_t i = first; i < std::min(first + kRunsPerTask, count); ++i) {
        const Run& run = runs[static_cast<size_t>(i)];
        if (!wanted || wanted[index(head, run.group)]) pack_run(run, head, k, v, real);
      }
    });
  }

  std::byte* k_head(int64_t head) const { return k_group(head, 0); }
  std::byte* v_head(int64_t head) const { return shape_.values ? v_group(head, 0) : nullptr; }

 private:
  // Rows [row, row + count) that are neighbours in one group, from key `first` of it on.
  struct Run {
    int64_t row, group;
    int first, count;
  };

  std::vector<Run> runs_of(const int64_t* positions, int64_t rows) const {
    std::vector<Run> runs;
    runs.reserve(static_cast<size_t>(positions ? std::min(rows, groups) : groups));
    for (int64_t row = 0; row < rows;) {
      const int64_t key = positions ? positions[row] : row, group = key / kernels_.group_keys;
      const int64_t end = std::min(rows, row + (group + 1) * kernels_.group_keys - key);
      int64_t next = positions ? row + 1 : end;
      while (next < end && positions[next] == key + next - row) ++next;
      runs.push_back({row, group, static_cast<int>(key % kernels_.group_keys), static_cast<int>(next - row)});
      row = next;
    }
    return runs;
  }

  void pack_run(const Run& run, int64_t head, const TensorView& k, const TensorView& v, const uint8_t* real) const {
    const int64_t b = head / shape_.kv_heads, h = head % shape_.kv_heads;
    PackRows rows{k.row(b, h, run.row), k.stride[2], k.dtype, run.first, run.count, shape_.head_dim};
    kernels_.pack_k(rows, k_group(head, run.group));
    if (!shape_.values) return;
    rows.rows = v.row(b, h, run.row);
    rows.stride = v.stride[2];
    if (real) real += run.group * kernels_.group_keys + run.first;
    const bool masked = real && !std::all_of(real, real + run.count, [](uint8_t key) { return key != 0; });
    kernels_.pack_v(masked ? without_masked(rows, real) : rows, v_group(head, run.group));
  }

  size_t index(int64_t head, int64_t group) const { return static_cast<size_t>(head * groups + group); }
  std::byte* k_group(int64_t head, int64_t group) const { return memory_.get() + index(head, group) * k_group_bytes_; }
  std::byte* v_group(int64_t head, int64_t group) const {
    return memory_.get() + index(shape_.batch * shape_.kv_heads, 0) * k_group_bytes_ +
           index(head, group) * v_group_bytes_;
  }

  const AttentionKernels& kernels_;
  KvShape shape_;
  size_t k_group_bytes_, v_group_bytes_;
  LentMemory memory_;
};

// The calling thread's memory for what one call packs.
inline KeptMemory& packed_memory() {
  thread_local KeptMemory memory;
  return memory;
}

}  // namespace sparsed::cpu
