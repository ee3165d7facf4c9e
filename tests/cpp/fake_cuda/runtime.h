// A CUDA runtime on the host: memory is the host's, launches run on the emulator. What the backend's own sources call
// is defined in runtime.cpp, the kernels in kernels.cpp.
#pragma once

#include <cstddef>
#include <functional>

namespace sparsed::fake_cuda {

// Behind DeviceKernel::function: runs one thread of the kernel on its arguments.
struct HostKernel {
  void (*run)(const void* args);
};

void set_compute_capability(int capability);  // 10 major + minor
size_t live_allocations();
int64_t launches();
int64_t waits();  // for a stream: copies to the host

}  // namespace sparsed::fake_cuda
