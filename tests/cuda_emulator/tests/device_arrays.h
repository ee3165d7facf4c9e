// A call of attention whose arrays lie in the memory of the current device of fake_runtime.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "attention_cases.h"

namespace sparsed {

// A call and its arrays in device memory.
class DeviceArrays {
 public:
  DeviceArrays(const Case& c, DType dtype) : host(c, dtype), params(host.params) {
    for (auto [view, array] :
         {std::pair{&params.q, &host.q}, {&params.k, &host.k}, {&params.v, &host.v}, {&params.out, &host.out}}) {
      view->data = copy(array->storage.data(), array->storage.size() * sizeof(float));
    }
    params.lse = static_cast<float*>(copy(host.lse.data(), host.lse.size() * sizeof(float)));
    if (params.key_mask) params.key_mask = static_cast<const uint8_t*>(copy(host.mask.data(), host.mask.size()));
  }
  ~DeviceArrays() {
    for (void* data : memory_) EXPECT_EQ(cudaFreeAsync(data, nullptr), cudaSuccess);
  }
  DeviceArrays(const DeviceArrays&) = delete;
  DeviceArrays& operator=(const DeviceArrays&) = delete;

  // What the device has written, against float64 over `pattern`'s blocks.
  void expect_right(const BlockPattern* pattern, const std::string& what) {
    std::memcpy(host.out.storage.data(), params.out.data, host.out.storage.size() * sizeof(float));
    std::memcpy(host.lse.data(), params.lse, host.lse.size() * sizeof(float));
    expect_matches_reference(host, pattern, what);
  }

  Call host;
  AttentionParams params;

 private:
  void* copy(const void* data, size_t bytes) {
    void* device = nullptr;
    EXPECT_EQ(cudaMallocAsync(&device, bytes, nullptr), cudaSuccess);
    std::memcpy(device, data, bytes);
    memory_.push_back(device);
    return device;
  }

  std::vector<void*> memory_;
};

}  // namespace sparsed
