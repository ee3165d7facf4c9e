// libFuzzer on the reader of pattern files: bytes either make a pattern whose hash they carry, or a named error.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "core/pattern.h"
#include "support/error.h"

namespace {

constexpr size_t kChecksumAt = 56;
constexpr size_t kHeaderBytes = 64;

// FNV-1a of all bytes but its own, as the format has it: a mutated file gets past the check of its sum.
uint64_t checksum(const std::vector<uint8_t>& bytes) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i < kChecksumAt || i >= kHeaderBytes) hash = (hash ^ bytes[i]) * 0x100000001b3u;
  }
  return hash;
}

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "pattern_file: %s\n", what);
  std::abort();
}

// One file in memory, written anew for each input.
struct MemoryFile {
  int descriptor = memfd_create("pattern", 0);
  std::string path = "/proc/self/fd/" + std::to_string(descriptor);

  void write(const std::vector<uint8_t>& bytes) const {
    if (ftruncate(descriptor, 0) != 0 || pwrite(descriptor, bytes.data(), bytes.size(), 0) != ssize_t(bytes.size())) {
      fail("cannot write the input");
    }
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const MemoryFile file;
  if (size == 0) return 0;
  std::vector<uint8_t> bytes(data + 1, data + size);
  const bool mend = data[0] % 2 == 0 && bytes.size() >= kHeaderBytes;
  const uint64_t sum = checksum(bytes);
  if (mend) std::memcpy(bytes.data() + kChecksumAt, &sum, sizeof sum);
  file.write(bytes);
  try {
    const sparsed::BlockPattern pattern = sparsed::BlockPattern::load(file.path);
    if (pattern.hash() != sum) fail("the pattern is not what the file holds");
  } catch (const sparsed::Error& error) {
    if (std::string(error.what()).rfind("BlockPattern.load: ", 0) != 0) fail(error.what());
  }
  return 0;
}
