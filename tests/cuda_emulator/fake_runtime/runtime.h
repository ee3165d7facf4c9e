// A CUDA runtime on the host: memory is the host's, launches run on the emulator. What the backend's own sources call
// is defined in runtime.cpp, the kernels in kernels.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sparsed::fake_runtime {

// Behind DeviceKernel::function: runs one thread of the kernel on its arguments.
struct HostKernel {
  void (*run)(const void* args);
};

// What the runtime finds; a test may change it, and puts it back: machine() = {}.
struct Machine {
  std::vector<int> capabilities{86};  // of each device: 10 major + minor
  bool sm90a_compiled = true;
  bool memory_pools = true;
  bool capturing = false;         // every stream
  size_t free_memory = SIZE_MAX;  // one allocation may take
};
Machine& machine();

size_t live_allocations();
int64_t launches();
int last_threads();    // of a block of the last launch
int64_t waits();       // for a stream: copies from or to the host
size_t pools();        // made so far
uint64_t last_kept();  // release threshold of the pool of the last allocation; the default pool's is 0

}  // namespace sparsed::fake_runtime
