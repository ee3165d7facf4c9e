// Threads of the CPU kernels. Work items never share outputs, so results do not depend on the number of threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>

#include "core/interrupt.h"

namespace sparsed::cpu {

int num_threads();
void set_num_threads(int threads);

// This thread's buffer of at least `bytes`, 64-byte aligned, kept from call to call; its contents are not.
std::byte* thread_scratch(size_t bytes);

int current_thread();  // 0 ... in a parallel region

// Runs body(item, thread) for every item of [0, items), handed out one by one in order. The first exception, also that
// of an interrupt, ends the loop and is thrown again in the caller.
template <class Body>
void parallel_for(int64_t items, const Body& body) {
  const int threads = static_cast<int>(items < num_threads() ? items : num_threads());
  InterruptTimer timer;
  if (threads <= 1) {
    for (int64_t item = 0; item < items; ++item) {
      timer.check();
      body(item, 0);
    }
    return;
  }
  std::atomic<bool> stopped{false};
  std::exception_ptr failure;
#pragma omp parallel num_threads(threads)
  {
    const int thread = current_thread();
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < items; ++item) {
      if (stopped.load(std::memory_order_relaxed)) continue;
      try {
        if (thread == 0) timer.check();  // the caller's own thread
        body(item, thread);
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
