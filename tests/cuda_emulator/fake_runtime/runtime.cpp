#include "fake_runtime/runtime.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <list>
#include <map>
#include <memory>

#include "sm90.h"

namespace sparsed::fake_runtime {
namespace {

struct Allocation {
  std::unique_ptr<std::byte[]> bytes;
  size_t size;
  int device;
};

struct Pool {
  int device = 0;
  uint64_t kept = 0;
};

struct State {
  Machine machine;
  std::map<uintptr_t, Allocation> memory;
  std::list<Pool> pools;
  int64_t launches = 0, waits = 0;
  uint64_t last_kept = 0;
  int device = 0, last_threads = 0;
};

State& state() {
  static State state;
  return state;
}

// What the driver encodes, as the emulator reads it: in the first bytes of the map.
CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank, void* data, const cuuint64_t* size,
                      const cuuint64_t* stride, const cuuint32_t* box, const cuuint32_t* step, CUtensorMapInterleave,
                      CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  if (rank != 4 || box[2] != 1 || box[3] != 1 || swizzle != CU_TENSOR_MAP_SWIZZLE_128B) return CUDA_ERROR_INVALID_VALUE;
  if (!std::all_of(step, step + 4, [](cuuint32_t s) { return s == 1; })) return CUDA_ERROR_INVALID_VALUE;
  emulator::TensorMap encoded;
  encoded.data = static_cast<const std::byte*>(data);
  std::copy_n(size, 4, encoded.size.begin());
  std::copy_n(stride, 3, encoded.stride.begin());
  std::copy_n(box, 2, encoded.box.begin());
  static_assert(sizeof(encoded) <= sizeof(*map));
  std::memcpy(map, &encoded, sizeof(encoded));
  return CUDA_SUCCESS;
}

cudaError_t allocate(void** data, size_t size, int device, uint64_t kept) {
  if (size > state().machine.free_memory) return cudaErrorMemoryAllocation;
  auto bytes = std::make_unique<std::byte[]>(size);
  std::memset(bytes.get(), 0xff, size);
  *data = bytes.get();
  state().memory[reinterpret_cast<uintptr_t>(*data)] = {std::move(bytes), size, device};
  state().last_kept = kept;
  return cudaSuccess;
}

}  // namespace

Machine& machine() { return state().machine; }
size_t live_allocations() { return state().memory.size(); }
int64_t launches() { return state().launches; }
int last_threads() { return state().last_threads; }
int64_t waits() { return state().waits; }
size_t pools() { return state().pools.size(); }
uint64_t last_kept() { return state().last_kept; }

}  // namespace sparsed::fake_runtime

using sparsed::fake_runtime::machine;
using sparsed::fake_runtime::state;

cudaError_t cudaGetDeviceCount(int* count) {
  *count = static_cast<int>(machine().capabilities.size());
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = state().device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  state().device = device;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error"; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  const int capability = machine().capabilities.at(static_cast<size_t>(device));
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = capability / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = capability % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = 2; break;
    case cudaDevAttrMemoryPoolsSupported: *value = machine().memory_pools; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (capability == 90 ? 227 : 99) << 10; break;
    default: return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

#if CUDART_VERSION >= 12050
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
#else
cudaError_t cudaGetDriverEntryPoint(const char* name, void** function, unsigned long long,
                                    cudaDriverEntryPointQueryResult* found) {
#endif
  const bool known = std::strcmp(name, "cuTensorMapEncodeTiled") == 0;
  *function = known ? reinterpret_cast<void*>(&sparsed::fake_runtime::encode_tiled) : nullptr;
  *found = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

cudaError_t cudaMallocAsync(void** data, size_t size, cudaStream_t) {
  return sparsed::fake_runtime::allocate(data, size, state().device, 0);
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* properties) {
  if (properties->allocType != cudaMemAllocationTypePinned || properties->location.type != cudaMemLocationTypeDevice) {
    return cudaErrorInvalidValue;
  }
  state().pools.push_back({properties->location.id, 0});
  *pool = reinterpret_cast<cudaMemPool_t>(&state().pools.back());
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value) {
  if (attribute != cudaMemPoolAttrReleaseThreshold) return cudaErrorInvalidValue;
  reinterpret_cast<sparsed::fake_runtime::Pool*>(pool)->kept = *static_cast<const uint64_t*>(value);
  return cudaSuccess;
}
cudaError_t cudaMallocFromPoolAsync(void** data, size_t size, cudaMemPool_t pool, cudaStream_t) {
  const auto* fake_pool = reinterpret_cast<const sparsed::fake_runtime::Pool*>(pool);
  return sparsed::fake_runtime::allocate(data, size, fake_pool->device, fake_pool->kept);
}
cudaError_t cudaFreeAsync(void* data, cudaStream_t) {
  return state().memory.erase(reinterpret_cast<uintptr_t>(data)) ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* data) {
  *attributes = {};
  const auto at = reinterpret_cast<uintptr_t>(data);
  auto above = state().memory.upper_bound(at);
  const bool found = above != state().memory.begin() && at < std::prev(above)->first + std::prev(above)->second.size;
  if (found) attributes->device = std::prev(above)->second.device;
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

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = machine().capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
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
  state().last_threads = static_cast<int>(block.x);
  sparsed::emulator::Launch launch;
  launch.blocks = static_cast<int>(grid.x);
  launch.threads = static_cast<int>(block.x);
  launch.shared_bytes = shared;
  launch.seed = static_cast<unsigned>(state().launches);
  for (const auto& [at, allocation] : state().memory) {
    launch.memory.push_back({allocation.bytes.get(), allocation.size, true});
  }
  const auto* kernel = static_cast<const sparsed::fake_runtime::HostKernel*>(function);
  sparsed::emulator::run(launch, [&] { kernel->run(args[0]); });
  return cudaSuccess;
}
