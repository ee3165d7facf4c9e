// Files whose content nobody trusts, and files that are replaced in one step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "support/checker.h"

namespace sparsed {

using Bytes = std::vector<unsigned char>;

// FNV-1a of bytes that come one after the other.
class ByteSum {
 public:
  void add(const unsigned char* bytes, size_t count) {
    for (size_t i = 0; i < count; ++i) sum_ = (sum_ ^ bytes[i]) * 0x100000001b3u;
  }
  uint64_t value() const { return sum_; }

 private:
  uint64_t sum_ = 0xcbf29ce484222325u;
};

// Numbers are little endian.
void put(Bytes& bytes, uint64_t value, size_t count);
uint64_t get(const Bytes& bytes, size_t at, size_t count);

// Reads a regular file from its begin on. Errors begin with "<function>: <path>": kFileNotFound, or kOs where the
// system cannot read it.
class FileReader {
 public:
  FileReader(const std::string& path, const std::string& function);

  const std::string& name() const { return name_; }  // "<function>: <path>"
  uint64_t size() const { return size_; }
  uint64_t left() const { return left_; }
  // The next `count` bytes, of which the caller knows that they are left. kMemory before an allocation that cannot fit.
  Bytes read(size_t count);
  // Throws unless the file begins with `magic` and then `version`, as a u32.
  void check_kind(const Bytes& header, std::string_view magic, uint64_t version, const char* kind) const;

 private:
  std::string name_;
  std::ifstream file_;
  uint64_t size_ = 0, left_ = 0;
};

// Readers see the old content or the new one. A link stays: what it names is replaced.
void replace_file(const std::string& path, const std::string& function, const Bytes& bytes);

}  // namespace sparsed
