#include "cpu/parallel.h"

#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>

#include "cpu/team.h"
#include "support/buffer.h"
#include "support/interrupt.h"

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

std::byte* thread_scratch(size_t bytes) {
  thread_local KeptMemory memory;
  memory.reserve(bytes);
  return memory.data.get();
}

void run_items(int64_t items, void (*run)(const void* body, int64_t item), const void* body) {
  const int threads = static_cast<int>(std::min<int64_t>(items, startable_threads()));
  Loop loop{.items = items, .run = run, .body = body};
  InterruptTimer timer;
  if (threads > 1) Team::get().open(loop, threads);
  loop.work(&timer);
  if (threads > 1) Team::get().close(loop);
  if (loop.failure) std::rethrow_exception(loop.failure);
}

}  // namespace sparsed::cpu
