#include "core/pattern.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "support/available_memory.h"
#include "support/error.h"

namespace sparsed {
namespace {

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

// Throws unless both have the same rows of the same blocks.
void check_same_blocks(const PatternGeometry& ours, const PatternGeometry& theirs, const Checker& check) {
  check.same("other has batch", theirs.batch, ours.batch);
  check.same("other has heads", theirs.heads, ours.heads);
  const bool square = ours.block.q == ours.block.kv && theirs.block.q == theirs.block.kv;
  check.same(square ? "other has block_size" : "other has q_block_size", theirs.block.q, ours.block.q);
  check.same("other has kv_block_size", theirs.block.kv, ours.block.kv);
  check.same("other has q_len", theirs.q_len, ours.q_len);
  check.same("other has kv_len", theirs.kv_len, ours.kv_len);
}

size_t head_words(const PatternGeometry& geometry) {
  return static_cast<size_t>(geometry.q_blocks() * geometry.row_words());
}

}  // namespace

bool is_block_size(int64_t block_size) {
  return block_size >= 16 && block_size <= 256 && std::has_single_bit(static_cast<uint64_t>(block_size));
}

int64_t num_blocks(int64_t length, int64_t block_size) { return (length + block_size - 1) / block_size; }

void check_block_size(int64_t block_size, const Checker& check, const char* name) {
  check(is_block_size(block_size), name, " is ", block_size, ", expected 16, 32, 64, 128 or 256");
}

void check_geometry(const PatternGeometry& geometry, const Checker& check) {
  constexpr int64_t kMaxCount = std::numeric_limits<int32_t>::max();
  const auto [q, kv] = geometry.block;
  check_block_size(q, check, q == kv ? "block_size" : "q_block_size");
  check_block_size(kv, check, "kv_block_size");
  check.range("batch", geometry.batch, 0, kMaxCount);
  check.range("heads", geometry.heads, 0, kMaxCount);
  check.range("q_len", geometry.q_len, 0, kMaxLength);
  check.range("kv_len", geometry.kv_len, 0, kMaxLength);
  check(geometry.prompt_length >= 0 && geometry.prompt_length <= geometry.kv_len, "prompt_length is ",
        geometry.prompt_length, ", expected 0 ... ", geometry.kv_len, " (kv_len)");
}

void check_window(int64_t window, int64_t sinks, const Checker& check) {
  check(window >= 1, "window is ", window, ", expected >= 1");
  check(sinks >= 0, "sinks is ", sinks, ", expected >= 0");
}

uint64_t bit_bytes(const PatternGeometry& geometry) {
  return saturating_product(
      {geometry.batch, geometry.heads, geometry.q_blocks(), geometry.row_words(), sizeof(uint64_t)});
}

int64_t PatternGeometry::first_generation_q_block() const {
  return prompt_length < std::min(q_len, kv_len) ? prompt_length / block.q : q_blocks();
}

PatternBuilder::PatternBuilder(const PatternGeometry& geometry, const Checker& check) : geometry_(geometry) {
  check_geometry(geometry, check);
  PatternGeometry bound = geometry;  // without zeros, so that rows and heads are bounded in an empty pattern too
  for (int64_t* size : {&bound.batch, &bound.heads, &bound.q_len, &bound.kv_len}) *size = std::max<int64_t>(*size, 1);
  check.memory(bit_bytes(bound), "the pattern");
  words_ = geometry.row_words();
  bits_.resize(static_cast<size_t>(rows() * words_));
}

void PatternBuilder::fill_generation() {
  const int64_t q_blocks = geometry_.q_blocks(), last_block = geometry_.kv_blocks() - 1;
  for (int64_t head = 0; head < geometry_.batch * geometry_.heads; ++head) {
    for (int64_t i = geometry_.first_generation_q_block(); i < q_blocks; ++i) {
      set_range(row(head * q_blocks + i), 0, last_block);
    }
  }
}

BlockPattern PatternBuilder::build() && { return {geometry_, std::move(bits_)}; }

struct BlockPattern::Shared {
  PatternGeometry geometry;
  double max_density = 1.0;
  std::mutex mutex;  // of what follows; bits that are there stay as they are
  std::optional<std::vector<uint64_t>> bits;
  std::map<int, std::shared_ptr<const PatternCopy>> copies;  // by device
  std::optional<double> density;

  const std::vector<uint64_t>& locked_bits() {
    if (!bits) bits = copies.begin()->second->read();
    return *bits;
  }
};

BlockPattern::BlockPattern(const PatternGeometry& geometry, std::vector<uint64_t> bits)
    : shared_(std::make_shared<Shared>()) {
  shared_->geometry = geometry;
  shared_->bits = std::move(bits);
}

BlockPattern::BlockPattern(const PatternGeometry& geometry, const Checker& check)
    : BlockPattern(PatternBuilder(geometry, check).build()) {}

BlockPattern::BlockPattern(const PatternGeometry& geometry, int device, std::shared_ptr<const PatternCopy> copy,
                           double max_density)
    : shared_(std::make_shared<Shared>()) {
  shared_->geometry = geometry;
  shared_->max_density = max_density;
  shared_->copies[device] = std::move(copy);
}

const PatternGeometry& BlockPattern::geometry() const { return shared_->geometry; }

const std::vector<uint64_t>& BlockPattern::bits() const {
  const std::lock_guard lock(shared_->mutex);
  return shared_->locked_bits();
}

std::shared_ptr<const PatternCopy> BlockPattern::on(int device, const Upload& upload) const {
  const std::lock_guard lock(shared_->mutex);
  const auto found = shared_->copies.find(device);
  if (found != shared_->copies.end()) return found->second;
  return shared_->copies.emplace(device, upload(shared_->locked_bits())).first->second;
}

BlockPattern BlockPattern::full(const PatternGeometry& geometry) {
  PatternBuilder builder(geometry, "BlockPattern.full");
  const int64_t kv_blocks = geometry.kv_blocks();
  if (kv_blocks == 0) return std::move(builder).build();
  for (int64_t row = 0; row < builder.rows(); ++row) set_range(builder.row(row), 0, kv_blocks - 1);
  return std::move(builder).build();
}

BlockPattern BlockPattern::streaming(const PatternGeometry& geometry, int64_t window, int64_t sinks,
                                     const Checker& check, bool dense_generation) {
  check_window(window, sinks, check);
  PatternBuilder builder(geometry, check);
  std::vector<uint64_t>& bits = builder.bits();
  if (bits.empty()) return std::move(builder).build();
  const auto [q_size, kv_size] = geometry.block;
  // A window this wide sees every key from every query: no sum below can overflow.
  window = std::min(window, 2 * (geometry.q_len + geometry.kv_len));
  sinks = std::min(sinks, geometry.kv_len);
  for (int64_t i = 0; i < geometry.q_blocks(); ++i) {
    uint64_t* row = builder.row(i);
    const int64_t last_query = std::min((i + 1) * q_size, geometry.q_len) - 1;
    const int64_t first_key = std::max(i * q_size - window / 2, int64_t{0});
    const int64_t last_key = std::min(last_query - window / 2 + window, geometry.kv_len) - 1;
    if (first_key <= last_key) set_range(row, first_key / kv_size, last_key / kv_size);
    if (sinks > 0) set_range(row, 0, (sinks - 1) / kv_size);
  }
  const size_t head = head_words(geometry);
  for (size_t at = head; at < bits.size(); at += head) {
    std::copy_n(bits.begin(), head, bits.begin() + static_cast<std::ptrdiff_t>(at));
  }
  if (dense_generation) builder.fill_generation();
  return std::move(builder).build();
}

BlockPattern BlockPattern::from_mask(const PatternGeometry& geometry, const uint8_t* mask) {
  PatternBuilder builder(geometry, "BlockPattern.from_mask");
  const int64_t kv_blocks = geometry.kv_blocks();
  for (int64_t row = 0; row < builder.rows(); ++row) {
    for (int64_t block = 0; block < kv_blocks; ++block) {
      if (mask[row * kv_blocks + block]) builder.set(row, block);
    }
  }
  return std::move(builder).build();
}

void BlockPattern::to_mask(uint8_t* mask) const {
  const int64_t kv_blocks = geometry().kv_blocks(), words = geometry().row_words();
  const uint64_t* row = bits().data();
  for (int64_t r = 0; r < rows(); ++r, row += words) {
    for (int64_t block = 0; block < kv_blocks; ++block) *mask++ = has_block(row, block);
  }
}

int64_t BlockPattern::num_selected() const { return count_bits(bits().data(), bits().size()); }

double BlockPattern::density() const {
  const std::lock_guard lock(shared_->mutex);
  if (!shared_->density) {
    const std::vector<uint64_t>& bits = shared_->locked_bits();
    shared_->density = share(count_bits(bits.data(), bits.size()), rows() * geometry().kv_blocks());
  }
  return *shared_->density;
}

bool BlockPattern::denser_than(double share) const { return shared_->max_density > share && density() > share; }

std::vector<double> BlockPattern::head_density() const {
  const PatternGeometry& g = geometry();
  std::vector<double> result(static_cast<size_t>(g.batch * g.heads));
  const uint64_t* head = bits().data();
  for (double& density : result) {
    density = share(count_bits(head, head_words(g)), g.q_blocks() * g.kv_blocks());
    head += head_words(g);
  }
  return result;
}

std::vector<double> BlockPattern::jaccard(const BlockPattern& other) const {
  const PatternGeometry& ours = geometry();
  check_same_blocks(ours, other.geometry(), "BlockPattern.jaccard");
  std::vector<double> result(static_cast<size_t>(ours.batch * ours.heads));
  const size_t words = head_words(ours);
  const uint64_t *a = bits().data(), *b = other.bits().data();
  for (double& value : result) {
    int64_t both = 0, either = 0;
    for (size_t i = 0; i < words; ++i, ++a, ++b) {
      both += std::popcount(*a & *b);
      either += std::popcount(*a | *b);
    }
    value = either == 0 ? 1.0 : share(both, either);
  }
  return result;
}

BlockPattern BlockPattern::combined(const BlockPattern& other, SetOperation operation, const Checker& check) const {
  check_same_blocks(geometry(), other.geometry(), check);
  check.same("other has prompt_length", other.geometry().prompt_length, geometry().prompt_length);
  PatternBuilder builder(geometry(), check);
  const std::vector<uint64_t>&a = bits(), &b = other.bits();
  std::vector<uint64_t>& result = builder.bits();
  for (size_t i = 0; i < result.size(); ++i) {
    switch (operation) {
      case SetOperation::kUnion: result[i] = a[i] | b[i]; break;
      case SetOperation::kIntersection: result[i] = a[i] & b[i]; break;
      case SetOperation::kDifference: result[i] = a[i] & ~b[i]; break;
    }
  }
  return std::move(builder).build();
}

BlockPattern BlockPattern::taken(const std::vector<int64_t>& batch, const std::vector<int64_t>& heads) const {
  const Checker check("BlockPattern");
  for (const int64_t b : batch) check.range("batch", b, 0, geometry().batch - 1);
  for (const int64_t h : heads) check.range("head", h, 0, geometry().heads - 1);
  PatternGeometry part = geometry();
  part.batch = static_cast<int64_t>(batch.size());
  part.heads = static_cast<int64_t>(heads.size());
  PatternBuilder builder(part, check);
  const std::vector<uint64_t>& ours = bits();
  const auto words = static_cast<std::ptrdiff_t>(head_words(part));
  auto next = builder.bits().begin();
  for (const int64_t b : batch) {
    for (const int64_t h : heads) next = std::copy_n(ours.begin() + (b * geometry().heads + h) * words, words, next);
  }
  return std::move(builder).build();
}

bool BlockPattern::operator==(const BlockPattern& other) const {
  return is(other) || (geometry() == other.geometry() && bits() == other.bits());
}

}  // namespace sparsed
