#include "cpu/parallel.h"

#include <omp.h>
#include <pthread.h>

#include <atomic>
#include <memory>
#include <new>

namespace sparsed::cpu {
namespace {

std::atomic<int> g_threads{0};  // 0: not set, OpenMP's default
std::atomic<bool> g_forked{false};

// A forked child has none of its parent's OpenMP threads and would wait for them for ever: it runs on one thread.
const int g_fork_handler = pthread_atfork(nullptr, nullptr, [] { g_forked = true; });

struct AlignedDelete {
  void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t{64}); }
};

}  // namespace

int num_threads() {
  if (g_forked.load(std::memory_order_relaxed)) return 1;
  const int threads = g_threads.load(std::memory_order_relaxed);
  return threads > 0 ? threads : omp_get_max_threads();
}

void set_num_threads(int threads) { g_threads.store(threads, std::memory_order_relaxed); }

int current_thread() { return omp_get_thread_num(); }

std::byte* thread_scratch(size_t bytes) {
  thread_local std::unique_ptr<std::byte[], AlignedDelete> buffer;
  thread_local size_t capacity = 0;
  if (bytes > capacity) {
    buffer.reset();
    capacity = 0;
    buffer.reset(static_cast<std::byte*>(::operator new[](bytes, std::align_val_t{64})));
    capacity = bytes;
  }
  return buffer.get();
}

}  // namespace sparsed::cpu
