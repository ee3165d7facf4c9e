#include "core/selection.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <vector>

#include "core/float16.h"
#include "support/error.h"

namespace sparsed {
namespace {

// One block as an integer that orders as (score, lower index first): all keys of a row differ, so the k largest are
// one set.
uint64_t sort_key(float score, int64_t block) {
  return static_cast<uint64_t>(ordered_score(float_to_bits(score))) << 32 |
         static_cast<uint32_t>(~static_cast<uint32_t>(block));
}

int64_t block_of(uint64_t key) { return static_cast<uint32_t>(~static_cast<uint32_t>(key)); }

// Reorders keys so that the `count` largest come first. One histogram over the range of the scores leaves only the
// keys of one bin to be ordered: several times faster than ordering them all.
void take_largest(std::vector<uint64_t>& keys, size_t count) {
  constexpr int kBinBits = 10;
  static thread_local std::vector<uint64_t> undecided;
  if (count == keys.size()) return;
  uint64_t base = keys[0], largest = keys[0];
  for (const uint64_t key : keys) {
    base = std::min(base, key);
    largest = std::max(largest, key);
  }
  const int shift = std::max(static_cast<int>(std::bit_width(largest - base)) - kBinBits, 0);
  std::array<uint32_t, 1 << kBinBits> bins{};
  for (const uint64_t key : keys) ++bins[(key - base) >> shift];
  size_t cut = bins.size() - 1, above = 0;
  for (; above + bins[cut] < count; --cut) above += bins[cut];

  undecided.resize(keys.size());
  size_t taken = 0, left = 0;
  for (const uint64_t key : keys) {
    const uint64_t bin = (key - base) >> shift;
    undecided[left] = key;
    left += bin == cut;
    keys[taken] = key;  // never ahead of the key that is read
    taken += bin > cut;
  }
  const auto begin = undecided.begin();
  std::nth_element(begin, begin + static_cast<std::ptrdiff_t>(count - taken), begin + static_cast<std::ptrdiff_t>(left),
                   std::greater<>());
  std::copy_n(begin, count - taken, keys.begin() + static_cast<std::ptrdiff_t>(taken));
}

// Marks what a range takes from its row.
void mark_top(const float* scores, const uint8_t* live, const SelectRange& range, double rho, uint64_t* row) {
  static thread_local std::vector<uint64_t> keys;
  keys.resize(static_cast<size_t>(range.end - range.begin));
  size_t candidates = 0;
  for (int64_t block = range.begin; block < range.end; ++block) {
    keys[candidates] = sort_key(scores[block], block);
    candidates += live[block] != 0;
  }
  keys.resize(candidates);
  const size_t count = static_cast<size_t>(keep_count(static_cast<int64_t>(candidates), rho));
  take_largest(keys, count);
  for (size_t i = 0; i < count; ++i) {
    if (block_of(keys[i]) < range.marked_end) set_block(row, block_of(keys[i]));
  }
}

// No row keeps more blocks than these by the rule.
int64_t most_selected(const SelectParams& select, const PatternGeometry& geometry) {
  const SelectRanges ranges = select_ranges(select, geometry.kv_len);
  int64_t most = 0;
  for (int i = 0; i < ranges.count; ++i) {
    const SelectRange& range = ranges.range[i];
    most += std::min(keep_count(range.end - range.begin, select.rho), range.marked_end - range.begin);
  }
  return std::min(most, geometry.kv_blocks());
}

}  // namespace

void check_select(const SelectParams& select, int64_t kv_len, const Checker& check) {
  check_block_size(select.block_size, check);
  check(select.prompt_length >= 0 && select.prompt_length <= kv_len, "prompt_length is ", select.prompt_length,
        ", expected 0 ... ", kv_len, " (kv_len)");
  check(select.rho >= 0 && select.rho <= 1, "rho is ", select.rho, ", expected 0 ... 1");
  check(select.scale > 0 && std::isfinite(select.scale), "selection_scale is ", select.scale,
        ", expected a finite number > 0");
}

int64_t first_generation_block(int64_t kv_len, int64_t prompt_length, int64_t block_size) {
  const int64_t blocks = num_blocks(kv_len, block_size);
  return blocks == 0 ? 0 : std::min(num_blocks(prompt_length, block_size), blocks - 1);
}

SelectRanges select_ranges(const SelectParams& select, int64_t kv_len) {
  if (select.rule == SelectionRule::kCaller) return {};
  const int64_t blocks = num_blocks(kv_len, select.block_size);
  const int64_t last = first_generation_block(kv_len, select.prompt_length, select.block_size);
  // Without generated tokens the paper's rule has no second part; the authors' code then takes the last block for it.
  const bool only_prompt = select.rule == SelectionRule::kPaper && select.prompt_length == kv_len;
  if (!select.isolate || only_prompt) return {{{0, blocks, blocks, false}, {}}, 1};
  if (select.rule == SelectionRule::kPaper) return {{{0, last, last, false}, {last, blocks, blocks, false}}, 2};
  return {{{0, blocks, last, false}, {last, blocks, blocks, true}}, 2};
}

int64_t most_kept(const SelectParams& select, const PatternGeometry& geometry) {
  const bool any_dense = select.dense_generation && geometry.first_generation_q_block() < geometry.q_blocks();
  return any_dense ? geometry.kv_blocks() : most_selected(select, geometry);
}

double max_density(const SelectParams& select, const PatternGeometry& geometry) {
  const int64_t q_blocks = geometry.q_blocks(), kv_blocks = geometry.kv_blocks();
  if (q_blocks * kv_blocks == 0) return 0;
  const int64_t selected = select.dense_generation ? geometry.first_generation_q_block() : q_blocks;
  const int64_t kept = selected * most_selected(select, geometry) + (q_blocks - selected) * kv_blocks;
  return static_cast<double>(kept) / static_cast<double>(q_blocks * kv_blocks);
}

void select_row(const SelectParams& select, int64_t kv_len, const float* scores, const float* generation,
                const uint8_t* live, uint64_t* row) {
  const SelectRanges ranges = select_ranges(select, kv_len);
  for (int i = 0; i < ranges.count; ++i) {
    const SelectRange& range = ranges.range[i];
    mark_top(range.generation ? generation : scores, live, range, select.rho, row);
  }
}

}  // namespace sparsed
