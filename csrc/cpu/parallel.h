// Threads of the CPU kernels. Work items never share outputs, so results do not depend on the number of threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>

#include "support/interrupt.h"

namespace sparsed::cpu {

int num_threads();
void set_num_threads(int threads);

// num_threads(), but no more than a small machine starts: OpenMP ends the process where the system refuses a thread.
int startable_threads();

// This thread's buffer of at least `bytes`, 64-byte aligned, kept from call to call; its contents are not.
std::byte* thread_scratch(size_t bytes);

int current_thread();  // 0 ... in a parallel region

// Runs body(item) for every item of [0, items), handed out one by one in order. The first exception, also that of an
// interrupt, ends the loop and is thrown again in the caller.
template <class Body>
void parallel_for(int64_t items, const Body& body) {
  const int limit = startable_threads();  // read once: another thread may change it
  const int threads = items < limit ? static_cast<int>(items) : limit;
  InterruptTimer timer;
  if (threads <= 1) {
    for (int64_t item = 0; item < items; ++item) {
      timer.check();
      body(item);
    }
    return;
  }
  std::atomic<bool> stopped{false};
  std::exception_ptr failure;
#pragma omp parallel num_threads(threads)
  {
    const bool caller = current_thread() == 0;
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < items; ++item) {
      if (stopped.load(std::memory_order_relaxed)) continue;
      try {
        if (caller) timer.check();
        body(item);
      } catch (...) {
        stopped.store(true, std::memory_order_relaxed);
#pragma omp critical(sparsed_parallel_for)
        if (!failure) failure = std::current_exception();
      }
    }
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace sparsed::cpu
