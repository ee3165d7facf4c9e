// The CUDA backend on a GPU; skipped where there is none. Label: gpu.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "attention_cases.h"
#include "cuda/cuda.h"

namespace sparsed {
namespace {

class Gpu : public testing::Test {
 protected:
  void SetUp() override {
    const std::vector<std::string> reasons = backend_.not_supported_reasons();
    if (!reasons.empty()) GTEST_SKIP() << reasons.front();
  }

  const Backend backend_ = cuda::backend();
};

constexpr double kFloat32Tolerance = 4e-6;  // 2^x is an approximation
constexpr DType kDTypes[] = {DType::kBFloat16, DType::kFloat16, DType::kFloat32};

std::vector<Case> gpu_cases() {
  std::vector<Case> cases = random_cases(16);
  for (const int64_t head_dim : {32, 64, 96, 128, 256}) {
    cases.push_back({1, 1, 2, 300, 700, head_dim, head_dim % 64 == 0, head_dim > 100, static_cast<unsigned>(head_dim)});
  }
  return cases;
}

// The arrays of a call in device memory.
class OnGpu {
 public:
  explicit OnGpu(Call& call) : params(call.params), call_(call) {
    for (auto [view, array] :
         {std::pair{&params.q, &call.q}, {&params.k, &call.k}, {&params.v, &call.v}, {&params.out, &call.out}}) {
      view->data = copy(array->storage.data(), array->storage.size() * sizeof(float));
    }
    params.lse = static_cast<float*>(copy(call.lse.data(), call.lse.size() * sizeof(float)));
    if (params.key_mask) params.key_mask = static_cast<const uint8_t*>(copy(call.mask.data(), call.mask.size()));
  }
  ~OnGpu() {
    for (void* data : memory_) EXPECT_EQ(cudaFree(data), cudaSuccess);
  }
  OnGpu(const OnGpu&) = delete;
  OnGpu& operator=(const OnGpu&) = delete;

  // Brings out and lse back to the call.
  void fetch() {
    Call& call = call_;
    const size_t bytes = call.out.storage.size() * sizeof(float), lse_bytes = call.lse.size() * sizeof(float);
    EXPECT_EQ(cudaMemcpy(call.out.storage.data(), params.out.data, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(call.lse.data(), params.lse, lse_bytes, cudaMemcpyDeviceToHost), cudaSuccess);
  }

  AttentionParams params;

 private:
  void* copy(const void* data, size_t bytes) {
    void* device = nullptr;
    EXPECT_EQ(cudaMalloc(&device, bytes + 1), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(device, data, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    memory_.push_back(device);
    return device;
  }

  Call& call_;
  std::vector<void*> memory_;
};

TEST_F(Gpu, DenseMatchesReference) {
  for (DType dtype : kDTypes) {
    for (const Case& c : gpu_cases()) {
      Call call(c, dtype);
      OnGpu arrays(call);
      backend_.attention(arrays.params, nullptr);
      arrays.fetch();
      expect_matches_reference(call, nullptr, message(dtype_name(dtype), " seed ", c.seed), kFloat32Tolerance);
    }
  }
}

TEST_F(Gpu, SparseMatchesReference) {
  for (DType dtype : kDTypes) {
    for (int block_size : {16, 32, 64, 128, 256}) {
      for (const Case& c : gpu_cases()) {
        Call call(c, dtype);
        OnGpu arrays(call);
        const BlockPattern pattern = random_pattern(c, block_size, 35);
        backend_.attention(arrays.params, &pattern);
        arrays.fetch();
        expect_matches_reference(call, &pattern, message(dtype_name(dtype), " seed ", c.seed, " block ", block_size),
                                 kFloat32Tolerance);
      }
    }
  }
}

TEST_F(Gpu, SelectionMatchesReference) {
  for_each_selection(kDTypes, [&](Call& call, const SelectParams& select, const std::string& what) {
    OnGpu arrays(call);
    const BlockPattern pattern = backend_.attention_and_select(arrays.params, select);
    arrays.fetch();
    expect_matches_reference(call, nullptr, what, kFloat32Tolerance);
    expect_selects(call.params, select, pattern, what);
    EXPECT_EQ(backend_.attention_and_select(selection_alone(arrays.params), select), pattern) << what;
  });
}

TEST_F(Gpu, SameBitsEveryTime) {
  const Case c{2, 1, 3, 1500, 1500, 128, true, false, 16};
  const SelectParams select{1000, 32, 0.3, SelectionRule::kPaper, true, 0.125f};
  Call first(c, DType::kBFloat16);
  OnGpu first_arrays(first);
  const BlockPattern pattern = backend_.attention_and_select(first_arrays.params, select);
  first_arrays.fetch();
  for (int i = 0; i < 5; ++i) {
    Call again(c, DType::kBFloat16);
    OnGpu arrays(again);
    EXPECT_EQ(backend_.attention_and_select(arrays.params, select), pattern);
    arrays.fetch();
    EXPECT_EQ(again.out.storage, first.out.storage);
  }
}

}  // namespace
}  // namespace sparsed
