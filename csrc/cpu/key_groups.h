// Which packed groups of keys a work item visits, and which keys of them take part.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/pattern.h"
#include "core/tensor.h"
#include "cpu/kernels.h"

namespace sparsed::cpu {

// Which keys of each group take part: inside the sequence and not masked.
class LiveKeys {
 public:
  // key_mask: [batch, kv_len] or nullptr.
  LiveKeys(const uint8_t* key_mask, int64_t batch, int64_t kv_len, int group_keys)
      : groups_(ceil_div(kv_len, group_keys)), rows_(key_mask ? batch : 1) {
    bits_.assign(static_cast<size_t>(rows_ * groups_), 0);
    for (int64_t b = 0; b < rows_; ++b) {
      for (int64_t key = 0; key < kv_len; ++key) {
        if (key_mask && !key_mask[b * kv_len + key]) continue;
        bits_[static_cast<size_t>(b * groups_ + key / group_keys)] |= 1u << (key % group_keys);
      }
    }
  }
  int64_t rows() const { return rows_; }  // 1: all batch rows are alike
  int64_t groups() const { return groups_; }
  const uint32_t* row(int64_t b) const { return bits_.data() + (rows_ > 1 ? b * groups_ : 0); }

 private:
  int64_t groups_, rows_;
  std::vector<uint32_t> bits_;
};

// The groups that the selected key blocks cover; two blocks may share a group, a block may span several.
class GroupList {
 public:
  void assign_all(const uint32_t* live, int64_t groups, bool keep_dead) {
    clear();
    for (int64_t g = 0; g < groups; ++g) push(g, ~0u, live, keep_dead);
  }

  // row: of a pattern, [words].
  void assign_blocks(const uint64_t* row, int64_t words, int block_size, int group_keys, const uint32_t* live,
                     int64_t groups) {
    clear();
    for_each_block(row, words, [&](int64_t block) {
      const int64_t first = block * block_size;
      if (block_size < group_keys) {
        return push(first / group_keys, ((1u << block_size) - 1u) << (first % group_keys), live, false);
      }
      const int64_t end = std::min(groups, (first + block_size) / group_keys);
      for (int64_t g = first / group_keys; g < end; ++g) push(g, ~0u, live, false);
    });
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

// The groups that dense items visit, of each batch row.
class DenseGroups {
 public:
  DenseGroups(const LiveKeys& live, bool keep_dead) : rows_(static_cast<size_t>(live.rows())) {
    for (size_t b = 0; b < rows_.size(); ++b) {
      rows_[b].assign_all(live.row(static_cast<int64_t>(b)), live.groups(), keep_dead);
    }
  }
  KeyGroups row(int64_t b) const { return rows_[rows_.size() > 1 ? static_cast<size_t>(b) : 0].view(); }

 private:
  std::vector<GroupList> rows_;
};

}  // namespace sparsed::cpu
