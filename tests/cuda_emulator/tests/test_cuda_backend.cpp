// The CUDA backend's own sources over a runtime on the host: memory, launches, copies, the order of the kernels.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/cuda.h"
#include "device_arrays.h"
#include "expect_error.h"
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

TEST_P(CudaBackend, AttentionMatchesReference) {
  for (DType dtype : kDTypes) {
    for (const Case& c : small_cases()) {
      DeviceArrays arrays(c, dtype);
      backend_.attention(arrays.params, nullptr);
      arrays.expect_right(nullptr, message(dtype_name(dtype), " dense, seed ", c.seed));
      const BlockPattern pattern = random_pattern(c, 16 << c.seed % 5, 40);
      backend_.attention(arrays.params, &pattern);
      arrays.expect_right(&pattern, message(dtype_name(dtype), " sparse, seed ", c.seed));
    }
  }
}

TEST_P(CudaBackend, SelectionMatchesReference) {
  int number = 0;
  for (DType dtype : kDTypes) {
    for (Case c : small_cases()) {
      for (SelectionRule rule : {SelectionRule::kPaper, SelectionRule::kReference}) {
        c.q_len = c.kv_len;
        DeviceArrays arrays(c, dtype);
        SelectParams select{c.kv_len * 2 / 3, 16 << ++number % 5, 0.3, rule, number % 3 != 0, arrays.params.scale};
        if (number % 4 == 1) select.scale = 0.5f;
        select.dense_generation = number / 2 % 2 == 1;
        const std::string what = message(dtype_name(dtype), " seed ", c.seed, " block ", select.block_size);
        const BlockPattern pattern = backend_.attention_and_select(arrays.params, select);
        arrays.expect_right(nullptr, what);
        expect_selects(arrays.host.params, select, pattern, what);
        EXPECT_EQ(backend_.attention_and_select(selection_alone(arrays.params), select), pattern) << what;
      }
    }
  }
}

// The scores that a caller asks for lie on the device; where the caller selects, the rule selects nothing.
TEST_P(CudaBackend, ScoresAreTheCallers) {
  for (Case c : small_cases()) {
    for (SelectionRule rule : {SelectionRule::kCaller, SelectionRule::kReference}) {
      c.q_len = c.kv_len;
      DeviceArrays arrays(c, DType::kFloat32);
      const int64_t blocks = num_blocks(c.kv_len, 16);
      std::vector<float> scores(static_cast<size_t>(c.batch * c.kv_heads * c.group * blocks * blocks), NAN);
      void* device = nullptr;
      ASSERT_EQ(cudaMallocAsync(&device, scores.size() * sizeof(float), nullptr), cudaSuccess);
      SelectParams select{c.kv_len / 2, 16, 0.3, rule, true, 0.2f};
      select.scores = static_cast<float*>(device);
      const BlockPattern pattern = backend_.attention_and_select(arrays.params, select);
      std::memcpy(scores.data(), device, scores.size() * sizeof(float));
      ASSERT_EQ(cudaFreeAsync(device, nullptr), cudaSuccess);
      const std::vector<double> expected = reference::block_scores(arrays.host.params, 16, select.scale, 0);
      ASSERT_EQ(scores.size(), expected.size());
      for (size_t i = 0; i < scores.size(); ++i) ASSERT_NEAR(scores[i], expected[i], 1e-4) << i << " seed " << c.seed;
      arrays.expect_right(nullptr, message("seed ", c.seed));
      if (rule == SelectionRule::kCaller) {
        EXPECT_EQ(pattern.num_selected(), 0);
      } else {
        expect_selects(arrays.host.params, select, pattern, message("seed ", c.seed));
      }
    }
  }
}

// Nothing is waited for, and a pattern serves the next call without the host.
TEST_P(CudaBackend, PatternsStayOnTheDevice) {
  const Case c{1, 1, 2, 200, 200, 64, true, false, 6};
  DeviceArrays arrays(c, DType::kBFloat16);
  const SelectParams select{140, 32, 0.3, SelectionRule::kPaper, true, arrays.params.scale};
  const int64_t waits = fake_runtime::waits();
  const BlockPattern pattern = backend_.attention_and_select(arrays.params, select);
  arrays.expect_right(nullptr, "select");
  backend_.attention(arrays.params, &pattern);
  EXPECT_EQ(fake_runtime::waits(), waits);
  arrays.expect_right(&pattern, "sparse");
}

TEST_P(CudaBackend, HostArraysAreRefused) {
  Call call(small_cases().front(), DType::kBFloat16);
  EXPECT_ERROR(backend_.attention(call.params, nullptr), kValue, "cuda: q is not in the memory of a device");
}

TEST_P(CudaBackend, RectangularBlocksAreRefused) {
  const Case c = small_cases().front();
  DeviceArrays arrays(c, DType::kBFloat16);
  const BlockPattern pattern = random_pattern(c, BlockSize{64, 32}, 40);
  EXPECT_ERROR(backend_.attention(arrays.params, &pattern), kValue,
               "pattern has query blocks of 64 and key blocks of 32 tokens, expected blocks of one size");
}

INSTANTIATE_TEST_SUITE_P(Capabilities, CudaBackend, testing::Values(86, 90));

}  // namespace
}  // namespace sparsed
