#include "cpu/parallel.h"

#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>

#include "support/buffer.h"

namespace sparsed::cpu {
namespace {

std::atomic<int> g_threads{0};  // 0: not set, OpenMP's default
std::atomic<bool> g_forked{false};

// A forked child has none of its parent's OpenMP threads and would wait for them for ever: it runs on one thread.
const int g_fork_handler = pthread_atfork(nullptr, nullptr, [] { g_forked = true; });

}  // namespace

int num_threads() {
  if (g_forked.load(std::memory_order_relaxed)) return 1;
  const int threads = g_threads.load(std::memory_order_relaxed);
  return threads > 0 ? threads : omp_get_max_threads();
}

void set_num_threads(int threads) { g_threads.store(threads, std::memory_order_relaxed); }

int startable_threads() { return std::min(num_threads(), std::max(64, 4 * omp_get_num_procs())); }

int current_thread() { return omp_get_thread_num(); }

std::byte* thread_scratch(size_t bytes) {
  thread_local KeptMemory memory;
  memory.reserve(bytes);
  return memory.data.get();
}

}  // namespace sparsed::cpu
