// The CUDA backend's own sources over a runtime on the host: memory, launches, copies, the order of the kernels.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "attention_cases.h"
#include "cuda/cuda.h"
#include "fake_runtime/runtime.h"

namespace sparsed {
namespace {

constexpr DType kDTypes[] = {DType::kBFloat16, DType::kFloat16, DType::kFloat32};

std::vector<Case> small_cases() {
  return {{1, 1, 2, 70, 150, 64, true, false, 1},
          {2, 1, 1, 40, 90, 128, false, true, 2},
          {1, 2, 1, 33, 130, 32, false, false, 3},
          {1, 1, 1, 50, 60, 96, true, true, 4},
          {1, 1, 1, 20, 100, 256, true, false, 5}};
}

// By compute capability.
class CudaBackend : public testing::TestWithParam<int> {
 protected:
  void SetUp() override { fake_runtime::machine().capabilities = {GetParam()}; }
  void TearDown() override {
    fake_runtime::machine() = {};
    EXPECT_EQ(fake_runtime::live_allocations(), 0u);
  }
  const Backend backend_ = cuda::backend();
};

TEST_P(CudaBackend, HostArraysGoThereAndBack) {
  for (DType dtype : kDTypes) {
    for (const Case& c : small_cases()) {
      Call dense(c, dtype), sparse(c, dtype);
      backend_.attention(dense.params);
      expect_matches_reference(dense, message(dtype_name(dtype), " dense, seed ", c.seed));
      const BlockLists lists = random_pattern(c, 16 << c.seed % 5, 40).expand();
      sparse.params.lists = &lists;
      backend_.attention(sparse.params);
      expect_matches_reference(sparse, message(dtype_name(dtype), " sparse, seed ", c.seed));
    }
  }
}

TEST_P(CudaBackend, SelectionMatchesReference) {
  int number = 0;
  for (DType dtype : kDTypes) {
    for (Case c : small_cases()) {
      for (SelectionRule rule : {SelectionRule::kPaper, SelectionRule::kReference}) {
        c.q_len = c.kv_len;
        Call call(c, dtype);
        SelectParams select{c.kv_len * 2 / 3, 16 << ++number % 5, 0.3, rule, number % 3 != 0, call.params.scale};
        if (number % 4 == 1) select.scale = 0.5f;
        const std::string what = message(dtype_name(dtype), " seed ", c.seed, " block ", select.block_size);
        const BlockPattern pattern = backend_.attention_and_select(call.params, select);
        expect_matches_reference(call, what);
        expect_selects(call.params, select, pattern, what);

        AttentionParams alone = call.params;
        alone.v.data = alone.out.data = nullptr;
        alone.lse = nullptr;
        EXPECT_EQ(backend_.attention_and_select(alone, select), pattern) << what;
      }
    }
  }
}

// Arrays that lie on the device: nothing is waited for, and a pattern serves the next call without the host.
TEST_P(CudaBackend, DeviceArraysStayThere) {
  const Case c{1, 1, 2, 200, 200, 64, true, false, 6};
  Call host(c, DType::kBFloat16);
  AttentionParams params = host.params;
  std::vector<void*> memory;
  const auto to_device = [&](const void* data, size_t bytes) {
    void* device = nullptr;
    EXPECT_EQ(cudaMallocAsync(&device, bytes, nullptr), cudaSuccess);
    std::memcpy(device, data, bytes);
    memory.push_back(device);
    return device;
  };
  for (auto [view, array] :
       {std::pair{&params.q, &host.q}, {&params.k, &host.k}, {&params.v, &host.v}, {&params.out, &host.out}}) {
    view->data = to_device(array->storage.data(), array->storage.size() * sizeof(float));
  }
  params.lse = static_cast<float*>(to_device(host.lse.data(), host.lse.size() * sizeof(float)));
  params.key_mask = static_cast<const uint8_t*>(to_device(host.mask.data(), host.mask.size()));

  const SelectParams select{140, 32, 0.3, SelectionRule::kPaper, true, params.scale};
  const int64_t waits = fake_runtime::waits();
  auto pattern = backend_.device->attention_and_select(params, select);
  const size_t bytes = host.out.storage.size() * sizeof(float);
  std::memcpy(host.out.storage.data(), params.out.data, bytes);
  std::memcpy(host.lse.data(), params.lse, host.lse.size() * sizeof(float));
  expect_matches_reference(host, "select");

  backend_.device->attention(params, pattern.get());
  EXPECT_EQ(fake_runtime::waits(), waits);
  std::memcpy(host.out.storage.data(), params.out.data, bytes);
  std::memcpy(host.lse.data(), params.lse, host.lse.size() * sizeof(float));
  const BlockPattern found = pattern->to_host();
  const BlockLists lists = found.expand();
  host.params.lists = &lists;
  expect_matches_reference(host, "sparse");

  auto again = backend_.device->to_device(found, 0, nullptr);
  EXPECT_EQ(again->to_host(), found);
  pattern.reset();
  again.reset();
  for (void* device : memory) EXPECT_EQ(cudaFreeAsync(device, nullptr), cudaSuccess);
}

INSTANTIATE_TEST_SUITE_P(Capabilities, CudaBackend, testing::Values(86, 90));

}  // namespace
}  // namespace sparsed
