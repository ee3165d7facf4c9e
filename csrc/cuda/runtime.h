// What the backend needs of the CUDA runtime: errors, memory in stream order, launches.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "cuda/kernels.h"

namespace sparsed::cuda {

// An Error that names `what` and CUDA's own text, kMemory where memory ran out.
void check_cuda(cudaError_t status, const char* what);

// Why kernels cannot run here; empty: there is a device on which they can.
std::vector<std::string> missing_device();

int current_device();
int compute_capability(int device);  // 10 major + minor

// An Error where kernels cannot run on the current device, or may not be given to `stream`.
void check_can_run(cudaStream_t stream);

// The device on which `data` lies, or -1 for host memory.
int device_of(const void* data);

// Makes a device current, and the one before again at the end.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_;
};

// Device memory that is there from one point of a stream to another: neither end waits.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(size_t bytes, cudaStream_t stream);
  DeviceMemory(DeviceMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), stream_(other.stream_), device_(other.device_) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;
  ~DeviceMemory();

  // Where in which stream's order the memory ends.
  void free_on(cudaStream_t stream) { stream_ = stream; }
  void* data() const { return data_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  cudaStream_t stream_ = nullptr;
  int device_ = 0;
};

// The end of what a stream was given so far, on the device that is current here; of another stream to wait for.
class StreamMark {
 public:
  StreamMark();
  ~StreamMark();
  StreamMark(const StreamMark&) = delete;
  StreamMark& operator=(const StreamMark&) = delete;

  void set(cudaStream_t stream) const;
  void wait(cudaStream_t stream) const;  // nothing where it was never set

 private:
  cudaEvent_t event_ = nullptr;
};

// These two wait for the stream.
void copy_to_device(void* device, const void* host, size_t bytes, cudaStream_t stream);
void to_host(void* host, const void* device, size_t bytes, cudaStream_t stream);

// How many blocks of a kernel the current device holds at once.
int64_t resident_blocks(const DeviceKernel& kernel, int threads);
void launch(const DeviceKernel& kernel, int64_t blocks, int threads, const void* args, cudaStream_t stream);

}  // namespace sparsed::cuda
