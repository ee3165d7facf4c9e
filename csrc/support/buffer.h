// Memory for the kernels: aligned, in huge pages where it is large, kept from call to call.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace sparsed {

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
  std::byte* get() const { return lent_.data.get(); }

 private:
  KeptMemory& kept_;
  KeptMemory lent_;
  size_t bytes_;
};

}  // namespace sparsed
