#include "cuda/runtime.h"

#include <algorithm>

#include "core/error.h"

namespace sparsed::cuda {
namespace {

int attribute(cudaDeviceAttr name) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device), "the current device");
  check_cuda(cudaDeviceGetAttribute(&value, name, device), "a device attribute");
  return value;
}

// More than 48 KB of shared memory are given only where they are asked for.
void allow_shared(const DeviceKernel& kernel) {
  if (kernel.shared_bytes <= 48 << 10) return;
  const int most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  check(kernel.shared_bytes <= most, "cuda: a kernel needs ", kernel.shared_bytes,
        " bytes of shared memory, this device gives ", most);
  check_cuda(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared_bytes),
             "shared memory of a kernel");
}

}  // namespace

void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // else the next call reports it again
  fail(status == cudaErrorMemoryAllocation ? ErrorKind::kMemory : ErrorKind::kOs, "cuda: ", what, ": ",
       cudaGetErrorString(status));
}

std::vector<std::string> missing_device() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();
    return {message("no CUDA device: ", cudaGetErrorString(status))};
  }
  if (count == 0) return {"no CUDA device"};
  const int found = compute_capability();
  if (found < 80) return {message("compute capability ", found / 10, ".", found % 10, ", needs 8.0")};
  return {};
}

int compute_capability() {
  return attribute(cudaDevAttrComputeCapabilityMajor) * 10 + attribute(cudaDevAttrComputeCapabilityMinor);
}

int device_of(const void* data) {
  cudaPointerAttributes attributes{};
  check_cuda(cudaPointerGetAttributes(&attributes, data), "an array's memory");
  const bool device = attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
  return device ? attributes.device : -1;
}

CurrentDevice::CurrentDevice(int device) {
  check_cuda(cudaGetDevice(&before_), "the current device");
  check_cuda(cudaSetDevice(device), "the arrays' device");
}

CurrentDevice::~CurrentDevice() { cudaSetDevice(before_); }

DeviceMemory::DeviceMemory(size_t bytes, cudaStream_t stream) : stream_(stream) {
  check_cuda(cudaGetDevice(&device_), "the current device");
  check_cuda(cudaMallocAsync(&data_, std::max<size_t>(bytes, 1), stream), "device memory");
}

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(stream_, other.stream_);
  std::swap(device_, other.device_);
  return *this;
}

// Errors are not reported: at the end of a process the driver may be gone.
DeviceMemory::~DeviceMemory() {
  int before = device_;
  if (!data_ || cudaGetDevice(&before) != cudaSuccess) return;
  cudaSetDevice(device_);
  cudaFreeAsync(data_, stream_);
  cudaSetDevice(before);
}

StreamMark::StreamMark() { check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "an event"); }

StreamMark::~StreamMark() { cudaEventDestroy(event_); }

void StreamMark::set(cudaStream_t stream) const { check_cuda(cudaEventRecord(event_, stream), "an event"); }

void StreamMark::wait(cudaStream_t stream) const { check_cuda(cudaStreamWaitEvent(stream, event_, 0), "an event"); }

DeviceMemory to_device(const void* host, size_t bytes, cudaStream_t stream) {
  DeviceMemory memory(bytes, stream);
  // Pageable memory: the call returns when it has been read.
  check_cuda(cudaMemcpyAsync(memory.data(), host, bytes, cudaMemcpyHostToDevice, stream), "a copy to the device");
  return memory;
}

void to_host(void* host, const void* device, size_t bytes, cudaStream_t stream) {
  check_cuda(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream), "a copy from the device");
  check_cuda(cudaStreamSynchronize(stream), "the kernels");
}

int64_t resident_blocks(const DeviceKernel& kernel, int threads) {
  allow_shared(kernel);
  int blocks = 0;
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel.function, threads,
                                                           static_cast<size_t>(kernel.shared_bytes)),
             "a kernel's occupancy");
  return int64_t{std::max(blocks, 1)} * attribute(cudaDevAttrMultiProcessorCount);
}

void launch(const DeviceKernel& kernel, int64_t blocks, int threads, const void* args, cudaStream_t stream) {
  if (blocks == 0) return;
  allow_shared(kernel);
  void* arguments[] = {const_cast<void*>(args)};
  check_cuda(
      cudaLaunchKernel(kernel.function, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)),
                       arguments, static_cast<size_t>(kernel.shared_bytes), stream),
      "a kernel's launch");
}

}  // namespace sparsed::cuda
