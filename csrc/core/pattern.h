// Head-specific block patterns: which key blocks each (batch, query head, query block) attends to.
// Stored as bit rows (l = 65,536, block 128, 32 layers x 32 heads: 33.5 MB); expanded to lists one layer at a time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sparsed {

// One layer's pattern as compressed rows. Row r = (b * heads + h) * q_blocks + i holds
// indices[offsets[r] ... offsets[r + 1]), sorted.
struct BlockLists {
  int block_size = 0;
  int64_t q_blocks = 0;
  std::vector<int64_t> offsets;  // [batch * heads * q_blocks + 1]
  std::vector<int32_t> indices;
};

constexpr int64_t kMaxLength = int64_t{1} << 35;         // tokens: block indices fit int32 at every block size
bool is_block_size(int64_t block_size);                  // 16, 32, 64, 128 or 256
int64_t num_blocks(int64_t length, int64_t block_size);  // ceil(length / block_size)

struct PatternGeometry {
  int64_t batch = 0, heads = 0;
  int block_size = 128;
  int64_t q_len = 0, kv_len = 0;
  int64_t prompt_length = 0;

  int64_t q_blocks() const { return num_blocks(q_len, block_size); }
  int64_t kv_blocks() const { return num_blocks(kv_len, block_size); }
  bool operator==(const PatternGeometry&) const = default;
};

// Throws unless every field is in its range; errors name `function` and the field.
void check_geometry(const PatternGeometry& geometry, const std::string& function);
void check_window(int64_t window, int64_t sinks, const std::string& function);
// Bytes of a pattern's bit rows; the largest uint64_t where they are more.
uint64_t bit_bytes(const PatternGeometry& geometry);

class BlockPattern {
 public:
  BlockPattern() = default;
  // All rows empty. Errors name `function` and the argument; kMemory before an allocation that cannot fit.
  BlockPattern(const PatternGeometry& geometry, const std::string& function);

  static BlockPattern full(const PatternGeometry& geometry);
  // `window` tokens in all, centred on each query (query i sees keys i - window/2 ... i - window/2 + window - 1), and
  // the first `sinks` tokens; every block that they touch. sinks = 0: a sliding window.
  static BlockPattern streaming(const PatternGeometry& geometry, int64_t window, int64_t sinks,
                                const std::string& function = "BlockPattern.streaming");
  // mask: [batch, heads, q_blocks, kv_blocks], nonzero = selected.
  static BlockPattern from_mask(const PatternGeometry& geometry, const uint8_t* mask);
  // Words of all rows, as bits() gives them.
  static BlockPattern from_bits(const PatternGeometry& geometry, std::vector<uint64_t> bits);
  // A file that is not what save() wrote is a kValue error that names the path; a missing one kFileNotFound.
  static BlockPattern load(const std::string& path);
  // Replaces the file in one step: readers see the old content or the new one.
  void save(const std::string& path) const;

  const PatternGeometry& geometry() const { return geometry_; }
  int64_t rows() const { return geometry_.batch * geometry_.heads * geometry_.q_blocks(); }
  // Unchecked. Rows share no words: threads may set bits of different rows at once.
  void set(int64_t row, int64_t block) { bits_[word(row, block)] |= uint64_t{1} << (block & 63); }
  bool test(int64_t row, int64_t block) const { return (bits_[word(row, block)] >> (block & 63)) & 1; }

  // [rows, words per row]: bit j % 64 of word j / 64 is key block j.
  const std::vector<uint64_t>& bits() const { return bits_; }

  BlockLists expand() const;
  void to_mask(uint8_t* mask) const;
  // Share of (query block, key block) pairs that are selected, over everything / per (batch, head). 0 of no pairs.
  double density() const;
  std::vector<double> head_density() const;
  // |A and B| / |A or B| per (batch, head); 1 where both are empty. Other blocks, lengths or heads: an error.
  std::vector<double> jaccard(const BlockPattern& other) const;
  size_t nbytes() const { return bits_.size() * sizeof(uint64_t); }
  uint64_t hash() const;  // of geometry and bits, the same on every machine
  bool operator==(const BlockPattern&) const = default;

 private:
  size_t word(int64_t row, int64_t block) const { return static_cast<size_t>(row * words_ + (block >> 6)); }
  size_t head_words() const { return static_cast<size_t>(geometry_.q_blocks() * words_); }

  PatternGeometry geometry_;
  int64_t words_ = 0;           // 64-bit words per row
  std::vector<uint64_t> bits_;  // [rows, words_]; bits from kv_blocks on are 0
};

}  // namespace sparsed
