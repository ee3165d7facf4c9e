#include "cuda/runtime.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "support/error.h"

namespace sparsed::cuda {
namespace {

constexpr int kLeastCapability = 80;

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, name, device), "a device attribute");
  return value;
}

std::string dotted(int capability) { return message(capability / 10, ".", capability % 10); }

// The default pool gives its memory back whenever the host waits; one of our own keeps some for the next call.
cudaMemPool_t pool_of(int device) {
  static std::mutex mutex;
  static std::map<int, cudaMemPool_t> pools;
  const std::lock_guard lock(mutex);
  if (const auto known = pools.find(device); known != pools.end()) return known->second;
  check(attribute(cudaDevAttrMemoryPoolsSupported, device) != 0, "cuda: device ", device,
        " has no memory pools, expected one that has");
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = device;
  cudaMemPool_t pool = nullptr;
  check_cuda(cudaMemPoolCreate(&pool, &properties), "a memory pool");
  uint64_t kept = uint64_t{256} << 20;
  check_cuda(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept), "a memory pool");
  return pools[device] = pool;
}

// More than 48 KB of shared memory are given only where they are asked for.
void allow_shared(const DeviceKernel& kernel) {
  if (kernel.shared_bytes <= 48 << 10) return;
  const int most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, current_device());
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
  int best = 0;
  for (int device = 0; device < count; ++device) best = std::max(best, compute_capability(device));
  if (best < kLeastCapability) return {message("compute capability ", dotted(best), ", needs 8.0")};
  return {};
}

int current_device() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "the current device");
  return device;
}

int compute_capability(int device) {
  return attribute(cudaDevAttrComputeCapabilityMajor, device) * 10 +
         attribute(cudaDevAttrComputeCapabilityMinor, device);
}

void check_can_run(cudaStream_t stream) {
  const int device = current_device(), found = compute_capability(device);
  check(found >= kLeastCapability, "cuda: device ", device, " has compute capability ", dotted(found),
        ", expected at least ", dotted(kLeastCapability));
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream, &status), "the stream");
  check(status == cudaStreamCaptureStatusNone,
        "cuda: the stream is being captured into a graph, expected it is not (a replay would repeat old patterns)");
}

int device_of(const void* data) {
  cudaPointerAttributes attributes{};
  check_cuda(cudaPointerGetAttributes(&attributes, data), "an array's memory");
  const bool device = attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
  return device ? attributes.device : -1;
}

CurrentDevice::CurrentDevice(int device) : before_(current_device()) {
  check_cuda(cudaSetDevice(device), "the arrays' device");
}

CurrentDevice::~CurrentDevice() { cudaSetDevice(before_); }

DeviceMemory::DeviceMemory(size_t bytes, cudaStream_t stream) : stream_(stream), device_(current_device()) {
  const cudaError_t status = cudaMallocFromPoolAsync(&data_, std::max<size_t>(bytes, 1), pool_of(device_), stream);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail(ErrorKind::kMemory, "cuda: device ", device_, " has not got ", bytes,
         " bytes of memory (torch.cuda.empty_cache() gives back what torch keeps unused)");
  }
  check_cuda(status, "device memory");
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

// Where the device reads pageable memory by itself, the copy's call returns before it has: so this waits.
void copy_to_device(void* device, const void* host, size_t bytes, cudaStream_t stream) {
  check_cuda(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream), "a copy to the device");
  check_cuda(cudaStreamSynchronize(stream), "a copy to the device");
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
  return int64_t{std::max(blocks, 1)} * attribute(cudaDevAttrMultiProcessorCount, current_device());
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
