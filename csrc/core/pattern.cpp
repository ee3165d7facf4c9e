#include "core/pattern.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

#include "core/error.h"
#include "core/memory.h"

namespace sparsed {
namespace {

void check_range(int64_t value, const char* name, int64_t maximum, const std::string& function) {
  check(value >= 0 && value <= maximum, function, ": ", name, " is ", value, ", expected 0 ... ", maximum);
}

int64_t count_bits(const uint64_t* words, size_t count) {
  int64_t bits = 0;
  for (size_t i = 0; i < count; ++i) bits += std::popcount(words[i]);
  return bits;
}

// Sets bits [first, last] of a row.
void set_range(uint64_t* row, int64_t first, int64_t last) {
  for (int64_t w = first >> 6; w <= last >> 6; ++w) {
    const int64_t low = std::max(first - w * 64, int64_t{0});
    const int64_t high = std::min(last - w * 64, int64_t{63});
    row[w] |= (~uint64_t{0} >> (63 - high)) & (~uint64_t{0} << low);
  }
}

double share(int64_t part, int64_t whole) {
  return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
}

}  // namespace

bool is_block_size(int64_t block_size) {
  return block_size >= 16 && block_size <= 256 && std::has_single_bit(static_cast<uint64_t>(block_size));
}

int64_t num_blocks(int64_t length, int64_t block_size) { return (length + block_size - 1) / block_size; }

void check_geometry(const PatternGeometry& geometry, const std::string& function) {
  constexpr int64_t kMaxCount = std::numeric_limits<int32_t>::max();
  check(is_block_size(geometry.block_size), function, ": block_size is ", geometry.block_size,
        ", expected 16, 32, 64, 128 or 256");
  check_range(geometry.batch, "batch", kMaxCount, function);
  check_range(geometry.heads, "heads", kMaxCount, function);
  check_range(geometry.q_len, "q_len", kMaxLength, function);
  check_range(geometry.kv_len, "kv_len", kMaxLength, function);
  check(geometry.prompt_length >= 0 && geometry.prompt_length <= geometry.kv_len, function, ": prompt_length is ",
        geometry.prompt_length, ", expected 0 ... ", geometry.kv_len, " (kv_len)");
}

void check_window(int64_t window, int64_t sinks, const std::string& function) {
  check(window >= 1, function, ": window is ", window, ", expected >= 1");
  check(sinks >= 0, function, ": sinks is ", sinks, ", expected >= 0");
}

uint64_t bit_bytes(const PatternGeometry& geometry) {
  const int64_t words = num_blocks(geometry.kv_blocks(), 64);
  return saturating_product({geometry.batch, geometry.heads, geometry.q_blocks(), words, sizeof(uint64_t)});
}

BlockPattern::BlockPattern(const PatternGeometry& geometry, const std::string& function) : geometry_(geometry) {
  check_geometry(geometry, function);
  PatternGeometry bound = geometry;  // without zeros, so that rows and heads are bounded in an empty pattern too
  for (int64_t* size : {&bound.batch, &bound.heads, &bound.q_len, &bound.kv_len}) *size = std::max<int64_t>(*size, 1);
  require_memory(bit_bytes(bound), (function + ": the pattern").c_str());
  words_ = num_blocks(geometry.kv_blocks(), 64);
  bits_.resize(static_cast<size_t>(rows() * words_));
}

BlockPattern BlockPattern::full(const PatternGeometry& geometry) {
  BlockPattern pattern(geometry, "BlockPattern.full");
  const int64_t kv_blocks = geometry.kv_blocks();
  if (kv_blocks == 0) return pattern;
  for (int64_t row = 0; row < pattern.rows(); ++row) set_range(&pattern.bits_[pattern.word(row, 0)], 0, kv_blocks - 1);
  return pattern;
}

BlockPattern BlockPattern::streaming(const PatternGeometry& geometry, int64_t window, int64_t sinks,
                                     const std::string& function) {
  check_window(window, sinks, function);
  BlockPattern pattern(geometry, function);
  if (pattern.bits_.empty()) return pattern;
  const int64_t b = geometry.block_size;
  // A window this wide sees every key from every query: no sum below can overflow.
  window = std::min(window, 2 * (geometry.q_len + geometry.kv_len));
  sinks = std::min(sinks, geometry.kv_len);
  for (int64_t i = 0; i < geometry.q_blocks(); ++i) {
    uint64_t* row = &pattern.bits_[pattern.word(i, 0)];
    const int64_t last_query = std::min((i + 1) * b, geometry.q_len) - 1;
    const int64_t first_key = std::max(i * b - window / 2, int64_t{0});
    const int64_t last_key = std::min(last_query - window / 2 + window, geometry.kv_len) - 1;
    if (first_key <= last_key) set_range(row, first_key / b, last_key / b);
    if (sinks > 0) set_range(row, 0, (sinks - 1) / b);
  }
  const size_t head_words = pattern.head_words();
  for (size_t at = head_words; at < pattern.bits_.size(); at += head_words) {
    std::copy_n(pattern.bits_.begin(), head_words, pattern.bits_.begin() + static_cast<std::ptrdiff_t>(at));
  }
  return pattern;
}

BlockPattern BlockPattern::from_mask(const PatternGeometry& geometry, const uint8_t* mask) {
  BlockPattern pattern(geometry, "BlockPattern.from_mask");
  const int64_t kv_blocks = geometry.kv_blocks();
  for (int64_t row = 0; row < pattern.rows(); ++row) {
    for (int64_t block = 0; block < kv_blocks; ++block) {
      if (mask[row * kv_blocks + block]) pattern.set(row, block);
    }
  }
  return pattern;
}

BlockPattern BlockPattern::from_bits(const PatternGeometry& geometry, std::vector<uint64_t> bits) {
  BlockPattern pattern(geometry, "BlockPattern.from_bits");
  check(bits.size() == pattern.bits_.size(), "BlockPattern.from_bits: bits has ", bits.size(), " words, expected ",
        pattern.bits_.size());
  pattern.bits_ = std::move(bits);
  return pattern;
}

BlockLists BlockPattern::expand() const {
  const int64_t total = count_bits(bits_.data(), bits_.size());
  require_memory(static_cast<size_t>(total) * sizeof(int32_t) + static_cast<size_t>(rows() + 1) * sizeof(int64_t),
                 "BlockPattern.expand: the list of blocks");
  BlockLists lists;
  lists.block_size = geometry_.block_size;
  lists.q_blocks = geometry_.q_blocks();
  lists.offsets.reserve(static_cast<size_t>(rows() + 1));
  lists.indices.resize(static_cast<size_t>(total));
  int32_t* next = lists.indices.data();
  lists.offsets.push_back(0);
  for (int64_t row = 0; row < rows(); ++row) {
    for (int64_t w = 0; w < words_; ++w) {
      for (uint64_t bits = bits_[static_cast<size_t>(row * words_ + w)]; bits != 0; bits &= bits - 1) {
        *next++ = static_cast<int32_t>(w * 64 + std::countr_zero(bits));
      }
    }
    lists.offsets.push_back(next - lists.indices.data());
  }
  return lists;
}

void BlockPattern::to_mask(uint8_t* mask) const {
  const int64_t kv_blocks = geometry_.kv_blocks();
  for (int64_t row = 0; row < rows(); ++row) {
    for (int64_t block = 0; block < kv_blocks; ++block) *mask++ = test(row, block);
  }
}

double BlockPattern::density() const {
  return share(count_bits(bits_.data(), bits_.size()), rows() * geometry_.kv_blocks());
}

std::vector<double> BlockPattern::head_density() const {
  std::vector<double> result(static_cast<size_t>(geometry_.batch * geometry_.heads));
  for (size_t head = 0; head < result.size(); ++head) {
    const int64_t selected = count_bits(bits_.data() + head * head_words(), head_words());
    result[head] = share(selected, geometry_.q_blocks() * geometry_.kv_blocks());
  }
  return result;
}

std::vector<double> BlockPattern::jaccard(const BlockPattern& other) const {
  const PatternGeometry& theirs = other.geometry_;
  const auto same = [](const char* name, int64_t found, int64_t expected) {
    check(found == expected, "BlockPattern.jaccard: other has ", name, " ", found, ", expected ", expected);
  };
  same("batch", theirs.batch, geometry_.batch);
  same("heads", theirs.heads, geometry_.heads);
  same("block_size", theirs.block_size, geometry_.block_size);
  same("q_len", theirs.q_len, geometry_.q_len);
  same("kv_len", theirs.kv_len, geometry_.kv_len);
  std::vector<double> result(static_cast<size_t>(geometry_.batch * geometry_.heads));
  for (size_t head = 0; head < result.size(); ++head) {
    const uint64_t* a = bits_.data() + head * head_words();
    const uint64_t* b = other.bits_.data() + head * head_words();
    int64_t both = 0, either = 0;
    for (size_t i = 0; i < head_words(); ++i) {
      both += std::popcount(a[i] & b[i]);
      either += std::popcount(a[i] | b[i]);
    }
    result[head] = either == 0 ? 1.0 : share(both, either);
  }
  return result;
}

}  // namespace sparsed
