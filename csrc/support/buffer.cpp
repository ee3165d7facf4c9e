#include "support/buffer.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <new>
#include <utility>

#include "support/available_memory.h"

namespace sparsed {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLarge = 2 * kHugePage;  // from here on memory lies in huge pages

}  // namespace

// In small pages, faults are much of the time of filling fresh memory, and kernels that stream it wait for page tables.
AlignedBytes allocate_aligned(size_t bytes) {
  const bool large = bytes >= kLarge;
  const size_t alignment = large ? kHugePage : 64;
  const size_t size = (std::max(bytes, size_t{1}) + alignment - 1) / alignment * alignment;
  AlignedBytes data(static_cast<std::byte*>(std::aligned_alloc(alignment, size)));
  if (!data) throw std::bad_alloc();
#if defined(__linux__)
  if (large) madvise(data.get(), size, MADV_HUGEPAGE);
#endif
  return data;
}

void KeptMemory::reserve(size_t bytes) {
  if (bytes <= capacity) return;
  clear();  // both at a time might not fit
  data = allocate_aligned(bytes);
  capacity = bytes;
}

LentMemory::LentMemory(KeptMemory& kept, size_t bytes, const char* what)
    : kept_(kept), lent_(std::exchange(kept, KeptMemory{})), bytes_(bytes) {
  if (bytes <= lent_.capacity) return;
  lent_.clear();
  require_memory(bytes, what);
  lent_.reserve(bytes);
}

LentMemory::~LentMemory() {
  if (lent_.capacity < kept_.capacity) return;
#if defined(__linux__)
  // After a small loan nothing: it would take longer than a small call.
  if (bytes_ >= kLarge) madvise(lent_.data.get(), lent_.capacity / kHugePage * kHugePage, MADV_FREE);
#endif
  kept_ = std::move(lent_);
}

}  // namespace sparsed
