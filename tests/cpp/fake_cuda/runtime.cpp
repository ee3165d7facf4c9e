#include "fake_cuda/runtime.h"

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>

#include "machine.h"

namespace sparsed::fake_cuda {
namespace {

struct State {
  std::map<uintptr_t, std::pair<std::unique_ptr<std::byte[]>, size_t>> memory;
  int64_t launches = 0, waits = 0;
};

State& state() {
  static State state;
  return state;
}

}  // namespace

size_t live_allocations() { return state().memory.size(); }
int64_t launches() { return state().launches; }
int64_t waits() { return state().waits; }

}  // namespace sparsed::fake_cuda

using sparsed::fake_cuda::state;

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error"; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = 8; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 6; break;
    case cudaDevAttrMultiProcessorCount: *value = 2; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 99 << 10; break;
    default: return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

cudaError_t cudaMallocAsync(void** data, size_t size, cudaStream_t) {
  auto bytes = std::make_unique<std::byte[]>(size);
  std::memset(bytes.get(), 0xff, size);
  *data = bytes.get();
  state().memory[reinterpret_cast<uintptr_t>(*data)] = {std::move(bytes), size};
  return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* data, cudaStream_t) {
  return state().memory.erase(reinterpret_cast<uintptr_t>(data)) ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* data) {
  *attributes = {};
  const auto at = reinterpret_cast<uintptr_t>(data);
  auto above = state().memory.upper_bound(at);
  const bool found = above != state().memory.begin() && at < std::prev(above)->first + std::prev(above)->second.second;
  attributes->type = found ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, size);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  ++state().waits;
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = nullptr;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  *blocks = 2;
  return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** args, size_t shared, cudaStream_t) {
  ++state().launches;
  sparsed::emulator::Launch launch;
  launch.blocks = static_cast<int>(grid.x);
  launch.threads = static_cast<int>(block.x);
  launch.shared_bytes = shared;
  launch.seed = static_cast<unsigned>(state().launches);
  for (const auto& [at, allocation] : state().memory) {
    launch.memory.push_back({allocation.first.get(), allocation.second, true});
  }
  const auto* kernel = static_cast<const sparsed::fake_cuda::HostKernel*>(function);
  sparsed::emulator::run(launch, [&] { kernel->run(args[0]); });
  return cudaSuccess;
}
