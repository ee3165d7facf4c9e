// libFuzzer on the readers of pattern files and of the files of caches: bytes either make a pattern whose hash they
// carry, or the layers of a cache, or a named error.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "core/pattern.h"
#include "core/pattern_cache.h"
#include "support/error.h"

namespace {

// FNV-1a of all bytes from `begin` on but the last 8 of the header, as the formats have it.
uint64_t checksum(const std::vector<uint8_t>& bytes, size_t begin, size_t header) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = begin; i < bytes.size(); ++i) {
    if (i < begin + header - 8 || i >= begin + header) hash = (hash ^ bytes[i]) * 0x100000001b3u;
  }
  return hash;
}

// A mutated file gets past the check of its sum.
void mend(std::vector<uint8_t>& bytes, size_t begin, size_t header) {
  if (bytes.size() < begin + header) return;
  const uint64_t sum = checksum(bytes, begin, header);
  std::memcpy(bytes.data() + begin + header - 8, &sum, sizeof sum);
}

constexpr size_t kHeaderBytes = 64, kLayersHeaderBytes = 32, kNumberBytes = 8;

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

void load_pattern(const MemoryFile& file, std::vector<uint8_t>& bytes, bool mended) {
  if (mended) mend(bytes, 0, kHeaderBytes);
  file.write(bytes);
  const sparsed::BlockPattern pattern = sparsed::BlockPattern::load(file.path);
  if (pattern.hash() != checksum(bytes, 0, kHeaderBytes)) fail("the pattern is not what the file holds");
}

// The sum of the first layer's pattern is mended where it is the only layer.
void load_layers(const MemoryFile& file, std::vector<uint8_t>& bytes, bool mended) {
  if (mended) {
    mend(bytes, kLayersHeaderBytes + kNumberBytes, kHeaderBytes);
    mend(bytes, 0, kLayersHeaderBytes);
  }
  file.write(bytes);
  const sparsed::PatternCache cache = sparsed::PatternCache::load(file.path);
  size_t size = kLayersHeaderBytes;
  for (const int64_t layer : cache.pattern_layers()) {
    size += kNumberBytes + kHeaderBytes + cache.pattern(layer).nbytes();
  }
  if (size != bytes.size()) fail("the layers are not what the file holds");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const MemoryFile file;
  if (size == 0) return 0;
  std::vector<uint8_t> bytes(data + 1, data + size);
  const bool layers = data[0] & 2;
  try {
    (layers ? load_layers : load_pattern)(file, bytes, data[0] % 2 == 0);
  } catch (const sparsed::Error& error) {
    const char* prefix = layers ? "PatternCache.load: " : "BlockPattern.load: ";
    if (std::string(error.what()).rfind(prefix, 0) != 0) fail(error.what());
  }
  return 0;
}
