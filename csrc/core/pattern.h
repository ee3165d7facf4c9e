// Head-specific block patterns: which key blocks each (batch, query head, query block) attends to.
// Bit rows are the only form in which a pattern is stored, and kernels read them as they are
// (l = 65,536, block 128, 32 layers x 32 heads: 33.5 MB).
#pragma once

#include <bit>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "support/checker.h"

namespace sparsed {

constexpr int64_t kMaxLength = int64_t{1} << 35;         // tokens: block indices fit int32 at every block size
bool is_block_size(int64_t block_size);                  // 16, 32, 64, 128 or 256
int64_t num_blocks(int64_t length, int64_t block_size);  // ceil(length / block_size)

// Throws unless is_block_size(block_size); errors name `name`.
void check_block_size(int64_t block_size, const Checker& check, const char* name = "block_size");

// Tokens of a block of queries and of a block of keys.
struct BlockSize {
  int q = 128, kv = 128;

  BlockSize() = default;
  constexpr BlockSize(int size) : q(size), kv(size) {}  // square blocks may be written as one number
  constexpr BlockSize(int q_size, int kv_size) : q(q_size), kv(kv_size) {}
  bool operator==(const BlockSize&) const = default;
};

struct PatternGeometry {
  int64_t batch = 0, heads = 0;
  BlockSize block;
  int64_t q_len = 0, kv_len = 0;
  int64_t prompt_length = 0;

  int64_t q_blocks() const { return num_blocks(q_len, block.q); }
  int64_t kv_blocks() const { return num_blocks(kv_len, block.kv); }
  int64_t rows() const { return batch * heads * q_blocks(); }        // row = (b * heads + h) * q_blocks + i
  int64_t row_words() const { return num_blocks(kv_blocks(), 64); }  // 64-bit words of a bit row
  // The first query block with a generation token, which may hold prompt tokens too; q_blocks() where there is none.
  int64_t first_generation_q_block() const;
  bool operator==(const PatternGeometry&) const = default;
};

// Throws unless every field is in its range; errors name the field.
void check_geometry(const PatternGeometry& geometry, const Checker& check);
void check_window(int64_t window, int64_t sinks, const Checker& check);
// Bytes of a pattern's bit rows; the largest uint64_t where they are more.
uint64_t bit_bytes(const PatternGeometry& geometry);

// A bit row: bit j % 64 of word j / 64 is key block j. Nothing is checked.
inline void set_block(uint64_t* row, int64_t block) { row[block >> 6] |= uint64_t{1} << (block & 63); }
inline bool has_block(const uint64_t* row, int64_t block) { return (row[block >> 6] >> (block & 63)) & 1; }

// body(block) for the selected blocks of a row, ascending.
template <class Body>
void for_each_block(const uint64_t* row, int64_t words, const Body& body) {
  for (int64_t w = 0; w < words; ++w) {
    for (uint64_t bits = row[w]; bits != 0; bits &= bits - 1) body(w * 64 + std::countr_zero(bits));
  }
}

// The bit rows of a pattern in the memory of a device, as the backend of that device keeps them. Any thread may use
// them, on any stream of the device.
class PatternCopy {
 public:
  virtual ~PatternCopy() = default;
  virtual std::vector<uint64_t> read() const = 0;  // waits for the device
};

class BlockPattern;

enum class SetOperation : uint8_t { kUnion, kIntersection, kDifference };

// Writable bit rows, from which a pattern is made.
class PatternBuilder {
 public:
  // All rows are empty. Errors name the argument; kMemory before an allocation that cannot fit.
  PatternBuilder(const PatternGeometry& geometry, const Checker& check);

  const PatternGeometry& geometry() const { return geometry_; }
  int64_t rows() const { return geometry_.rows(); }
  // Rows share no words: threads may write to different rows at once. Bits from kv_blocks on must stay 0.
  uint64_t* row(int64_t row) { return bits_.data() + row * words_; }
  void set(int64_t row, int64_t block) { set_block(this->row(row), block); }
  // Sets every key block of the query blocks with generation tokens.
  void fill_generation();
  std::vector<uint64_t>& bits() { return bits_; }
  BlockPattern build() &&;

 private:
  PatternGeometry geometry_;
  int64_t words_ = 0;
  std::vector<uint64_t> bits_;  // [rows, words_]
};

// An immutable pattern; copies share it. Its bit rows lie on the host, in the memory of devices, or both: they are
// brought to a place at their first use there and kept, so that a pattern which a device selects and uses never leaves
// it. Any thread may ask. What reads bits waits for the device where they lie only there.
class BlockPattern {
 public:
  BlockPattern() : BlockPattern(PatternGeometry{}, std::vector<uint64_t>{}) {}
  // All rows are empty.
  BlockPattern(const PatternGeometry& geometry, const Checker& check);
  // What a device has selected. max_density: density() is at most this.
  BlockPattern(const PatternGeometry& geometry, int device, std::shared_ptr<const PatternCopy> copy,
               double max_density);

  static BlockPattern full(const PatternGeometry& geometry);
  // `window` tokens in all, centred on each query (query i sees keys i - window/2 ... i - window/2 + window - 1), and
  // the first `sinks` tokens; every block that they touch. sinks = 0: a sliding window. With dense_generation, query
  // blocks with generation tokens see every key.
  static BlockPattern streaming(const PatternGeometry& geometry, int64_t window, int64_t sinks,
                                const Checker& check = Checker("BlockPattern.streaming"),
                                bool dense_generation = false);
  // mask: [batch, heads, q_blocks, kv_blocks], nonzero = selected.
  static BlockPattern from_mask(const PatternGeometry& geometry, const uint8_t* mask);
  // A file that is not what save() wrote is a kValue error that names the path; a missing one kFileNotFound.
  static BlockPattern load(const std::string& path);
  // Replaces the file in one step: readers see the old content or the new one.
  void save(const std::string& path) const;

  const PatternGeometry& geometry() const;
  int64_t rows() const { return geometry().rows(); }
  const std::vector<uint64_t>& bits() const;  // [rows, row_words]
  const uint64_t* row(int64_t row) const { return bits().data() + row * geometry().row_words(); }
  bool test(int64_t row, int64_t block) const { return has_block(this->row(row), block); }
  // The copy on a device. `upload` makes one from the host's bits where there is none yet.
  using Upload = std::function<std::shared_ptr<const PatternCopy>(const std::vector<uint64_t>& bits)>;
  std::shared_ptr<const PatternCopy> on(int device, const Upload& upload) const;

  void to_mask(uint8_t* mask) const;
  // Share of (query block, key block) pairs that are selected, over everything / per (batch, head). 0 of no pairs.
  double density() const;
  std::vector<double> head_density() const;
  // density() > share; waits for a device only where max_density does not tell.
  bool denser_than(double share) const;
  int64_t num_selected() const;  // pairs
  // |A and B| / |A or B| per (batch, head); 1 where both are empty. Other blocks, lengths or heads: an error.
  std::vector<double> jaccard(const BlockPattern& other) const;
  // The blocks that both select, that either selects, or that only this one selects. An error if the geometries differ.
  BlockPattern combined(const BlockPattern& other, SetOperation operation, const Checker& check) const;
  // The rows of the batch and the heads at these places, in this order; a place may come more than once.
  BlockPattern taken(const std::vector<int64_t>& batch, const std::vector<int64_t>& heads) const;
  size_t nbytes() const { return bit_bytes(geometry()); }  // in one place
  uint64_t hash() const;                                   // of geometry and bits, the same on every machine
  bool operator==(const BlockPattern& other) const;
  // Whether both are handles of one pattern.
  bool is(const BlockPattern& other) const { return shared_ == other.shared_; }

 private:
  friend class PatternBuilder;
  struct Shared;

  BlockPattern(const PatternGeometry& geometry, std::vector<uint64_t> bits);

  std::shared_ptr<Shared> shared_;
};

}  // namespace sparsed
