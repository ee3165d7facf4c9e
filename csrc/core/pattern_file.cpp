#include "core/pattern_file.h"

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "support/available_memory.h"
#include "support/checked_file.h"
#include "support/error.h"

namespace sparsed {
namespace {

constexpr uint64_t kVersion = 1;  // of both formats
constexpr std::string_view kMagic = "SPRSDPAT", kLayersMagic = "SPRSDLAY";
constexpr size_t kSumBytes = 8;
constexpr size_t kHeaderBytes = 64, kSumAt = kHeaderBytes - kSumBytes;
constexpr size_t kLayersHeaderBytes = 32, kLayersSumAt = kLayersHeaderBytes - kSumBytes;
constexpr size_t kNumberBytes = 8;  // of a layer's number

// The checksum of what follows a header that ends with its place.
ByteSum begin_sum(const unsigned char* header, size_t header_bytes) {
  ByteSum sum;
  sum.add(header, header_bytes - kSumBytes);
  return sum;
}

// The header's checksum field, in place.
void put_sum(Bytes& bytes, size_t at, uint64_t value) {
  Bytes sum;
  put(sum, value, kSumBytes);
  std::copy(sum.begin(), sum.end(), bytes.begin() + static_cast<std::ptrdiff_t>(at));
}

// Appends a pattern's file; returns its checksum.
uint64_t encode(Bytes& bytes, const BlockPattern& pattern) {
  const PatternGeometry& geometry = pattern.geometry();
  const size_t begin = bytes.size();
  bytes.insert(bytes.end(), kMagic.begin(), kMagic.end());
  put(bytes, kVersion, 4);
  const auto [q, kv] = geometry.block;
  put(bytes, static_cast<uint64_t>(kv), 2);
  put(bytes, static_cast<uint64_t>(q == kv ? 0 : q), 2);
  for (const int64_t field :
       {geometry.batch, geometry.heads, geometry.q_len, geometry.kv_len, geometry.prompt_length, int64_t{0}}) {
    put(bytes, static_cast<uint64_t>(field), 8);
  }
  for (const uint64_t word : pattern.bits()) put(bytes, word, 8);
  ByteSum sum = begin_sum(bytes.data() + begin, kHeaderBytes);
  sum.add(bytes.data() + begin + kHeaderBytes, bytes.size() - begin - kHeaderBytes);
  put_sum(bytes, begin + kSumAt, sum.value());
  return sum.value();
}

Bytes reserved(uint64_t size) {
  require_memory(size, "BlockPattern: the file's content");
  Bytes bytes;
  bytes.reserve(size);
  return bytes;
}

PatternGeometry decode_geometry(const Bytes& header) {
  const auto field = [&](size_t at) { return static_cast<int64_t>(get(header, at, 8)); };
  PatternGeometry geometry;
  const int kv = static_cast<int>(get(header, 12, 2)), q = static_cast<int>(get(header, 14, 2));
  geometry.block = {q == 0 ? kv : q, kv};
  geometry.batch = field(16);
  geometry.heads = field(24);
  geometry.q_len = field(32);
  geometry.kv_len = field(40);
  geometry.prompt_length = field(48);
  return geometry;
}

// The pattern file that follows, and adds its bytes to `sum`. last: nothing else follows.
BlockPattern read_pattern(FileReader& file, bool last, ByteSum& sum) {
  const std::string& what = file.name();
  check(file.left() >= kHeaderBytes, what, " is ", file.size(), " bytes long, expected at least ",
        file.size() - file.left() + kHeaderBytes, " (the header of a pattern file)");
  const Bytes header = file.read(kHeaderBytes);
  file.check_kind(header, kMagic, kVersion, "pattern file");
  // One pattern has one file, so that the checksum is its hash.
  const uint64_t kv_size = get(header, 12, 2), q_size = get(header, 14, 2);
  check(q_size != kv_size || q_size == 0, what, " has query blocks of ", q_size,
        " tokens, expected 0 where they are as long as key blocks");
  const PatternGeometry geometry = decode_geometry(header);
  check_geometry(geometry, what);
  // Compared before anything is allocated for the rows that the header promises.
  const uint64_t expected = bit_bytes(geometry);
  check(last ? file.left() == expected : file.left() >= expected, what, " has ", file.left(),
        " bytes of bit rows, expected ", expected);
  const Bytes rows = file.read(expected);
  ByteSum found = begin_sum(header.data(), kHeaderBytes);
  found.add(rows.data(), rows.size());
  const uint64_t stored = get(header, kSumAt, kSumBytes);
  check(found.value() == stored, what, " is damaged: its checksum differs, expected ", stored);
  sum.add(header.data(), header.size());
  sum.add(rows.data(), rows.size());

  PatternBuilder builder(geometry, what);
  const int64_t tail_bits = geometry.kv_blocks() % 64, words = geometry.row_words();
  std::vector<uint64_t>& bits = builder.bits();
  for (size_t i = 0; i < bits.size(); ++i) {
    bits[i] = get(rows, i * 8, 8);
    const bool last_word = static_cast<int64_t>(i) % words == words - 1;
    check(!last_word || tail_bits == 0 || bits[i] >> tail_bits == 0, what, " selects key blocks from ",
          geometry.kv_blocks(), " on, expected none (kv_len ", geometry.kv_len, ")");
  }
  return std::move(builder).build();
}

}  // namespace

uint64_t BlockPattern::hash() const {
  Bytes bytes = reserved(kHeaderBytes + nbytes());
  return encode(bytes, *this);
}

void BlockPattern::save(const std::string& path) const {
  Bytes bytes = reserved(kHeaderBytes + nbytes());
  encode(bytes, *this);
  replace_file(path, "BlockPattern.save", bytes);
}

BlockPattern BlockPattern::load(const std::string& path) {
  FileReader file(path, "BlockPattern.load");
  ByteSum ignored;
  return read_pattern(file, true, ignored);
}

void save_layers(const LayerPatterns& patterns, const std::string& path, const std::string& function) {
  uint64_t size = kLayersHeaderBytes;
  for (const auto& [layer, pattern] : patterns.layers) size += kNumberBytes + kHeaderBytes + pattern.nbytes();
  Bytes bytes = reserved(size);
  bytes.assign(kLayersMagic.begin(), kLayersMagic.end());
  put(bytes, kVersion, 4);
  put(bytes, patterns.layers.size(), 4);
  put(bytes, static_cast<uint64_t>(patterns.prompt_length), 8);
  put(bytes, 0, kSumBytes);
  for (const auto& [layer, pattern] : patterns.layers) {
    put(bytes, static_cast<uint64_t>(layer), kNumberBytes);
    encode(bytes, pattern);
  }
  ByteSum sum = begin_sum(bytes.data(), kLayersHeaderBytes);
  sum.add(bytes.data() + kLayersHeaderBytes, bytes.size() - kLayersHeaderBytes);
  put_sum(bytes, kLayersSumAt, sum.value());
  replace_file(path, function, bytes);
}

LayerPatterns load_layers(const std::string& path, const std::string& function) {
  FileReader file(path, function);
  const std::string& what = file.name();
  check(file.size() >= kLayersHeaderBytes, what, " is ", file.size(), " bytes long, expected at least ",
        kLayersHeaderBytes, " (the header of the file of a cache)");
  const Bytes header = file.read(kLayersHeaderBytes);
  file.check_kind(header, kLayersMagic, kVersion, "file of a PatternCache");
  const uint64_t layers = get(header, 12, 4);
  check(layers >= 1, what, " holds no layer, expected at least one");
  LayerPatterns patterns;
  patterns.prompt_length = static_cast<int64_t>(get(header, 16, 8));
  ByteSum sum = begin_sum(header.data(), kLayersHeaderBytes);
  for (uint64_t i = 0; i < layers; ++i) {
    check(file.left() >= kNumberBytes, what, " ends after ", i, " layers, expected ", layers);
    const Bytes number = file.read(kNumberBytes);
    sum.add(number.data(), number.size());
    const auto layer = static_cast<int64_t>(get(number, 0, kNumberBytes));
    const int64_t before = patterns.layers.empty() ? -1 : patterns.layers.rbegin()->first;
    check(layer > before, what, " has layer ", layer, ", expected more than ", before, " (they are ascending)");
    patterns.layers.emplace(layer, read_pattern(file, i + 1 == layers, sum));
  }
  const uint64_t stored = get(header, kLayersSumAt, kSumBytes);
  check(sum.value() == stored, what, " is damaged: its checksum differs, expected ", stored);
  return patterns;
}

}  // namespace sparsed
