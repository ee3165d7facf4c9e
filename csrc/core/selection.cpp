#include "core/selection.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <vector>

#include "core/error.h"
#include "core/float16.h"

namespace sparsed {
namespace {

// One block as an integer that orders as (score, lower index first): all keys of a row differ, so the k largest are
// one set. NaN is below -infinity, and -0 equals 0.
uint64_t sort_key(float score, int64_t block) {
  const uint32_t bits = float_to_bits(score + 0.f);
  const uint32_t ordered = std::isnan(score) ? 0u : bits ^ ((bits >> 31) ? 0xffffffffu : 0x80000000u);
  return static_cast<uint64_t>(ordered) << 32 | static_cast<uint32_t>(~static_cast<uint32_t>(block));
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

// Marks the k largest of the live blocks in [begin, end), but only those below `marked_end`.
void mark_top(const float* scores, const uint8_t* live, int64_t begin, int64_t end, double rho, int64_t marked_end,
              int64_t row, BlockPattern& pattern) {
  static thread_local std::vector<uint64_t> keys;
  keys.resize(static_cast<size_t>(end - begin));
  size_t candidates = 0;
  for (int64_t block = begin; block < end; ++block) {
    keys[candidates] = sort_key(scores[block], block);
    candidates += live[block] != 0;
  }
  keys.resize(candidates);
  const size_t count = static_cast<size_t>(keep_count(static_cast<int64_t>(candidates), rho));
  take_largest(keys, count);
  for (size_t i = 0; i < count; ++i) {
    if (block_of(keys[i]) < marked_end) pattern.set(row, block_of(keys[i]));
  }
}

}  // namespace

void check_select(const SelectParams& select, int64_t kv_len, const std::string& function) {
  check(is_block_size(select.block_size), function, ": block_size is ", select.block_size,
        ", expected 16, 32, 64, 128 or 256");
  check(select.prompt_length >= 0 && select.prompt_length <= kv_len, function, ": prompt_length is ",
        select.prompt_length, ", expected 0 ... ", kv_len, " (kv_len)");
  check(select.rho >= 0 && select.rho <= 1, function, ": rho is ", select.rho, ", expected 0 ... 1");
  check(select.scale > 0 && std::isfinite(select.scale), function, ": selection_scale is ", select.scale,
        ", expected a finite number > 0");
}

int64_t first_generation_block(int64_t kv_len, int64_t prompt_length, int64_t block_size) {
  const int64_t blocks = num_blocks(kv_len, block_size);
  return blocks == 0 ? 0 : std::min(num_blocks(prompt_length, block_size), blocks - 1);
}

int64_t keep_count(int64_t candidates, double rho) {
  const int64_t share = static_cast<int64_t>(static_cast<double>(candidates) * rho);
  return std::min(candidates, share + 1);
}

void select_row(const SelectParams& select, int64_t kv_len, const float* scores, const float* generation,
                const uint8_t* live, int64_t row, BlockPattern& pattern) {
  const int64_t blocks = num_blocks(kv_len, select.block_size);
  const int64_t last = first_generation_block(kv_len, select.prompt_length, select.block_size);
  if (!select.isolate) {
    mark_top(scores, live, 0, blocks, select.rho, blocks, row, pattern);
  } else if (select.rule == SelectionRule::kPaper) {
    mark_top(scores, live, 0, last, select.rho, last, row, pattern);
    mark_top(scores, live, last, blocks, select.rho, blocks, row, pattern);
  } else {
    mark_top(scores, live, 0, blocks, select.rho, last, row, pattern);
    mark_top(generation, live, last, blocks, select.rho, blocks, row, pattern);
  }
}

}  // namespace sparsed
