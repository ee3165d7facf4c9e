// Pattern files. Numbers are little endian:
//    0  8 bytes  magic
//    8  u32      version
//   12  u16      tokens of a key block
//   14  u16      tokens of a query block; 0: as many
//   16  5 x i64  batch, heads, q_len, kv_len, prompt_length
//   56  u64      FNV-1a of all other bytes
//   64  u64 ...  bit rows
#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <random>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "core/pattern.h"
#include "support/available_memory.h"
#include "support/error.h"

namespace sparsed {
namespace {

namespace fs = std::filesystem;

using Bytes = std::vector<unsigned char>;
constexpr std::string_view kMagic = "SPRSDPAT";
constexpr uint32_t kVersion = 1;
constexpr size_t kChecksumAt = 56;
constexpr size_t kHeaderBytes = 64;

void put(Bytes& bytes, uint64_t value, size_t count) {
  for (size_t i = 0; i < count; ++i) bytes.push_back(static_cast<unsigned char>(value >> (8 * i)));
}

uint64_t get(const Bytes& bytes, size_t at, size_t count) {
  uint64_t value = 0;
  for (size_t i = 0; i < count; ++i) value |= static_cast<uint64_t>(bytes[at + i]) << (8 * i);
  return value;
}

uint64_t checksum(const Bytes& bytes) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i < kChecksumAt || i >= kHeaderBytes) hash = (hash ^ bytes[i]) * 0x100000001b3u;
  }
  return hash;
}

// The file's content, its checksum still 0.
Bytes encode(const PatternGeometry& geometry, const std::vector<uint64_t>& bits) {
  const size_t size = kHeaderBytes + bits.size() * sizeof(uint64_t);
  require_memory(size, "BlockPattern: the file's content");
  Bytes bytes;
  bytes.reserve(size);
  bytes.assign(kMagic.begin(), kMagic.end());
  put(bytes, kVersion, 4);
  const auto [q, kv] = geometry.block;
  put(bytes, static_cast<uint64_t>(kv), 2);
  put(bytes, static_cast<uint64_t>(q == kv ? 0 : q), 2);
  for (const int64_t field :
       {geometry.batch, geometry.heads, geometry.q_len, geometry.kv_len, geometry.prompt_length, int64_t{0}}) {
    put(bytes, static_cast<uint64_t>(field), 8);
  }
  for (const uint64_t word : bits) put(bytes, word, 8);
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

[[noreturn]] void fail_system(const std::string& what, const std::error_code& code) {
  const bool missing = code == std::errc::no_such_file_or_directory;
  fail(missing ? ErrorKind::kFileNotFound : ErrorKind::kOs, what, ": ", code.message());
}

std::error_code last_error() { return {errno != 0 ? errno : EIO, std::generic_category()}; }

// The file at `path`, if there is one: it must be a regular file. Others could block, or be replaced by a rename.
bool find_file(const std::string& path, const std::string& function) {
  check(path.find('\0') == std::string::npos, function, ": path has a zero byte, expected none");
  std::error_code code;
  const fs::file_status status = fs::status(path, code);
  if (status.type() == fs::file_type::not_found) return false;
  if (!fs::status_known(status)) fail_system(function + ": " + path, code);
  if (!fs::is_regular_file(status)) {
    fail(ErrorKind::kOs, function, ": ", path, " is a folder or device, expected a regular file");
  }
  return true;
}

// Removes the file that `path` names at its end, if it is still there.
struct RemoveAtEnd {
  const fs::path& path;
  ~RemoveAtEnd() {
    std::error_code ignored;
    fs::remove(path, ignored);
  }
};

// Appends the file's next `count` bytes.
void read(std::ifstream& file, Bytes& bytes, size_t count, const std::string& what) {
  const size_t begin = bytes.size();
  bytes.resize(begin + count);
  errno = 0;
  if (!file.read(reinterpret_cast<char*>(bytes.data() + begin), static_cast<std::streamsize>(count))) {
    fail_system(what, last_error());
  }
}

}  // namespace

uint64_t BlockPattern::hash() const { return checksum(encode(geometry(), bits())); }

void BlockPattern::save(const std::string& path) const {
  const std::string function = "BlockPattern.save";
  const std::string what = function + ": cannot write " + path;
  std::error_code code;
  fs::path target = path;
  if (find_file(path, function)) target = fs::canonical(target, code);  // a link stays, what it names is replaced
  if (code) fail_system(what, code);
  // In the same folder, so that the rename stays in one file system.
  const fs::path temporary = target.parent_path() / (".sparsed-" + std::to_string(std::random_device{}()) + ".tmp");

  Bytes bytes = encode(geometry(), bits());
  Bytes sum;
  put(sum, checksum(bytes), 8);
  std::copy(sum.begin(), sum.end(), bytes.begin() + kChecksumAt);
  const RemoveAtEnd cleanup{temporary};
  errno = 0;
  std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file) fail_system(what, last_error());
  fs::rename(temporary, target, code);
  if (code) fail_system(what, code);
}

BlockPattern BlockPattern::load(const std::string& path) {
  const std::string function = "BlockPattern.load";
  const std::string what = function + ": " + path;
  if (!find_file(path, function)) fail(ErrorKind::kFileNotFound, what, " does not exist");
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) fail_system(what, last_error());
  std::error_code code;
  const uint64_t size = fs::file_size(path, code);
  if (code) fail_system(what, code);

  check(size >= kHeaderBytes, what, " is ", size, " bytes long, expected at least ", kHeaderBytes,
        " (the header of a pattern file)");
  Bytes bytes;
  read(file, bytes, kHeaderBytes, what);
  check(std::equal(kMagic.begin(), kMagic.end(), bytes.begin()), what,
        " is not a pattern file: it does not begin with ", kMagic);
  const uint64_t version = get(bytes, 8, 4);
  check(version == kVersion, what, " has format version ", version, ", expected ", kVersion);
  // One pattern has one file, so that the checksum is its hash.
  const uint64_t kv_size = get(bytes, 12, 2), q_size = get(bytes, 14, 2);
  check(q_size != kv_size || q_size == 0, what, " has query blocks of ", q_size,
        " tokens, expected 0 where they are as long as key blocks");
  const PatternGeometry geometry = decode_geometry(bytes);
  check_geometry(geometry, what);
  // Compared before anything is allocated for the rows that the header promises.
  const uint64_t expected = bit_bytes(geometry);
  check(size - kHeaderBytes == expected, what, " has ", size - kHeaderBytes, " bytes of bit rows, expected ", expected);
  require_memory(size, (what + ": the file's content").c_str());
  read(file, bytes, expected, what);
  const uint64_t stored = get(bytes, kChecksumAt, 8);
  check(checksum(bytes) == stored, what, " is damaged: its checksum differs, expected ", stored);

  PatternBuilder builder(geometry, what);
  const int64_t tail_bits = geometry.kv_blocks() % 64, words = geometry.row_words();
  std::vector<uint64_t>& bits = builder.bits();
  for (size_t i = 0; i < bits.size(); ++i) {
    bits[i] = get(bytes, kHeaderBytes + i * 8, 8);
    const bool last_word = static_cast<int64_t>(i) % words == words - 1;
    check(!last_word || tail_bits == 0 || bits[i] >> tail_bits == 0, what, " selects key blocks from ",
          geometry.kv_blocks(), " on, expected none (kv_len ", geometry.kv_len, ")");
  }
  return std::move(builder).build();
}

}  // namespace sparsed
