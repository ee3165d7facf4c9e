// Threads of the CPU kernels. Work items never share outputs, so results do not depend on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sparsed::cpu {

int num_threads();
void set_num_threads(int threads);

// num_threads(), but no more than a small machine starts: OpenMP ends the process where the system refuses a thread.
int startable_threads();

// This thread's buffer of at least `bytes`, 64-byte aligned, kept from call to call; its contents are not.
std::byte* thread_scratch(size_t bytes);

// parallel_for without the type of its body.
void run_items(int64_t items, void (*run)(const void* body, int64_t item), const void* body);

// Runs body(item) for every item of [0, items), handed out one by one in order. The calling thread takes part. The
// first exception, also that of an interrupt, ends the loop and is thrown again in the caller.
template <class Body>
void parallel_for(int64_t items, const Body& body) {
  run_items(
      items, [](const void* b, int64_t item) { (*static_cast<const Body*>(b))(item); }, &body);
}

}  // namespace sparsed::cpu
