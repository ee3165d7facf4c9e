// What the CUDA backend makes of the machine: which devices and builds have which kernels, memory, streams.
#include <gtest/gtest.h>

#include <cmath>

#include "cuda/cuda.h"
#include "cuda/runtime.h"
#include "cuda/sm90/plan.h"
#include "device_arrays.h"
#include "expect_error.h"
#include "fake_runtime/runtime.h"
#include "support/error.h"

namespace sparsed {
namespace {

constexpr Case kSmall{1, 1, 2, 130, 130, 64, true, false, 21};

class CudaMachine : public testing::Test {
 protected:
  void TearDown() override {
    fake_runtime::machine() = {};
    cudaSetDevice(0);
    EXPECT_EQ(fake_runtime::live_allocations(), 0u);
  }

  BlockPattern select(const DeviceArrays& arrays) const {
    return backend_.attention_and_select(arrays.params,
                                         {100, 32, 0.3, SelectionRule::kPaper, true, arrays.params.scale});
  }

  const Backend backend_ = cuda::backend();
};

TEST_F(CudaMachine, KernelsOfBuildAndDevice) {
  for (const int capability : {80, 86, 90, 100, 120}) {
    for (const bool compiled : {false, true}) {
      fake_runtime::machine().capabilities = {capability};
      fake_runtime::machine().sm90a_compiled = compiled;
      DeviceArrays arrays(kSmall, DType::kBFloat16);
      backend_.attention(arrays.params, nullptr);
      EXPECT_EQ(fake_runtime::last_threads(), compiled && capability == 90 ? 384 : 128) << capability;
      arrays.expect_right(nullptr, "dense");
    }
  }
}

TEST_F(CudaMachine, HeadsThatShareMemoryKeepTheFastKernel) {
  fake_runtime::machine().capabilities = {90};
  DeviceArrays arrays({1, 2, 2, 130, 130, 64, true, false, 23}, DType::kBFloat16);
  for (AttentionParams* params : {&arrays.params, &arrays.host.params}) params->k.stride[1] = params->v.stride[1] = 0;
  backend_.attention(arrays.params, nullptr);
  EXPECT_EQ(fake_runtime::last_threads(), 384);
  arrays.expect_right(nullptr, "shared");
}

TEST_F(CudaMachine, OneGoodDeviceIsEnough) {
  fake_runtime::machine().capabilities = {75, 61};
  EXPECT_EQ(cuda::missing_device(), std::vector<std::string>{"compute capability 7.5, needs 8.0"});
  fake_runtime::machine().capabilities = {};
  EXPECT_EQ(cuda::missing_device(), std::vector<std::string>{"no CUDA device"});
  fake_runtime::machine().capabilities = {75, 90};
  EXPECT_TRUE(cuda::missing_device().empty());
}

TEST_F(CudaMachine, ArraysOnAnOldDeviceAreRefused) {
  constexpr const char* kText = "cuda: device 0 has compute capability 7.5, expected at least 8.0";
  fake_runtime::machine().capabilities = {75, 86};
  {
    DeviceArrays arrays(kSmall, DType::kBFloat16);
    EXPECT_ERROR(backend_.attention(arrays.params, nullptr), kValue, kText);
    EXPECT_ERROR(select(arrays), kValue, kText);
    const BlockPattern pattern = random_pattern(kSmall, 32, 40);
    EXPECT_ERROR(backend_.attention(arrays.params, &pattern), kValue, kText);
  }
  cudaSetDevice(1);
  DeviceArrays arrays(kSmall, DType::kBFloat16);
  cudaSetDevice(0);
  backend_.attention(arrays.params, nullptr);
  arrays.expect_right(nullptr, "on the other device");
  EXPECT_EQ(cuda::current_device(), 0);
}

TEST_F(CudaMachine, StreamsUnderCaptureAreRefused) {
  constexpr const char* kText = "cuda: the stream is being captured into a graph, expected it is not";
  DeviceArrays arrays(kSmall, DType::kBFloat16);
  const BlockPattern pattern = select(arrays);
  fake_runtime::machine().capturing = true;
  const int64_t launches = fake_runtime::launches();
  EXPECT_ERROR(backend_.attention(arrays.params, nullptr), kValue, kText);
  EXPECT_ERROR(backend_.attention(arrays.params, &pattern), kValue, kText);
  EXPECT_ERROR(select(arrays), kValue, kText);
  EXPECT_EQ(fake_runtime::launches(), launches);
}

TEST_F(CudaMachine, MemoryComesFromOnePoolThatKeepsSome) {
  const auto allocate = [] {
    cuda::DeviceMemory memory(100, nullptr);
    EXPECT_EQ(fake_runtime::last_kept(), uint64_t{256} << 20);
  };
  allocate();
  const size_t pools = fake_runtime::pools();
  allocate();
  EXPECT_EQ(fake_runtime::pools(), pools);
  fake_runtime::machine().capabilities = {86, 86, 86};
  cudaSetDevice(1);
  allocate();
  EXPECT_EQ(fake_runtime::pools(), pools + 1);

  cudaSetDevice(2);
  fake_runtime::machine().memory_pools = false;
  EXPECT_ERROR(allocate(), kValue, "cuda: device 2 has no memory pools");
}

// The selection's partial sums are the one large allocation: fewer blocks do the same work.
TEST_F(CudaMachine, SelectionDoesWithLessMemory) {
  for (const int capability : {86, 90}) {
    fake_runtime::machine() = {};
    fake_runtime::machine().capabilities = {capability};
    DeviceArrays arrays({1, 1, 2, 300, 300, 64, true, false, 22}, DType::kBFloat16);
    const BlockPattern expected = select(arrays);
    const SelectParams params{100, 32, 0.3, SelectionRule::kPaper, true, arrays.params.scale};
    cuda::Plan plan = cuda::plan_selection(arrays.params, params);
    ASSERT_EQ(capability == 90 && cuda::move_to_sm90(plan), capability == 90);
    ASSERT_GT(plan.blocks, 2);
    fake_runtime::machine().free_memory = 2 * cuda::partial_bytes(plan) - 1;
    EXPECT_EQ(select(arrays), expected);
    arrays.expect_right(nullptr, "one block");
    fake_runtime::machine().free_memory = cuda::partial_bytes(plan) - 1;
    EXPECT_ERROR(select(arrays), kMemory, "torch.cuda.empty_cache()");
  }
}

}  // namespace
}  // namespace sparsed
