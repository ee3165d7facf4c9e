// Memory for the kernels, and refusals of what cannot fit before it is tried: Linux would grant it and kill the process
// later.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>

namespace sparsed {

// Bytes that this process can still take: the machine's available memory, or less where a control group (v2 or v1)
// limits it. nullopt where the system does not say.
std::optional<uint64_t> available_memory();

// The same, read from files under `root` instead of "/": for tests.
std::optional<uint64_t> available_memory(const std::string& root);

// MemoryError unless `bytes` fit. The message reads "<what> needs 12.0 GiB, available are 3.2 GiB".
// Small requests (< 16 MiB) pass unseen.
void require_memory(size_t bytes, const char* what);

// The product of counts >= 0, or the largest size_t where that is more.
size_t saturating_product(std::span<const int64_t> factors);
inline size_t saturating_product(std::initializer_list<int64_t> factors) {
  return saturating_product(std::span(factors.begin(), factors.size()));
}

struct AlignedDelete {
  void operator()(std::byte* p) const { std::free(p); }
};
using AlignedBytes = std::unique_ptr<std::byte[], AlignedDelete>;

// At least one byte, 64-byte aligned, not written; in huge pages where it is large and the system has them.
AlignedBytes allocate_aligned(size_t bytes);

// A buffer that stays from use to use: fresh memory would be cleared again, page by page.
struct KeptMemory {
  AlignedBytes data;
  size_t capacity = 0;

  void clear() { *this = KeptMemory{}; }
  // At least so many bytes, whose contents are undefined.
  void reserve(size_t bytes);
};

// At least `bytes` of what was kept, or allocated where that is too small or lent already (a signal handler may call in
// between); `what` as in require_memory. Contents are undefined. The end of the loan keeps the larger of the two, whose
// pages the system may take until the next.
class LentMemory {
 public:
  LentMemory(KeptMemory& kept, size_t bytes, const char* what);
  ~LentMemory();
  LentMemory(const LentMemory&) = delete;
  LentMemory& operator=(const LentMemory&) = delete;
  std::byte* get() const { return own_.data.get(); }

 private:
  KeptMemory& kept_;
  KeptMemory own_;
};

}  // namespace sparsed
