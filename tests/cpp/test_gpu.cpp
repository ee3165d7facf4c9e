// The CUDA backend on a GPU; skipped where there is none. Label: gpu.
#include <gtest/gtest.h>

#include <cmath>

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

TEST_F(Gpu, DenseMatchesReference) {
  for (DType dtype : kDTypes) {
    for (const Case& c : gpu_cases()) {
      Call call(c, dtype);
      backend_.attention(call.params);
      expect_matches_reference(call, message(dtype_name(dtype), " seed ", c.seed), kFloat32Tolerance);
    }
  }
}

TEST_F(Gpu, SparseMatchesReference) {
  for (DType dtype : kDTypes) {
    for (int block_size : {16, 32, 64, 128, 256}) {
      for (const Case& c : gpu_cases()) {
        Call call(c, dtype);
        const BlockLists lists = random_pattern(c, block_size, 35).expand();
        call.params.lists = &lists;
        backend_.attention(call.params);
        expect_matches_reference(call, message(dtype_name(dtype), " seed ", c.seed, " block ", block_size),
                                 kFloat32Tolerance);
      }
    }
  }
}

TEST_F(Gpu, SelectionMatchesReference) {
  for_each_selection(kDTypes, [&](Call& call, const SelectParams& select, const std::string& what) {
    const BlockPattern pattern = backend_.attention_and_select(call.params, select);
    expect_matches_reference(call, what, kFloat32Tolerance);
    expect_selects(call.params, select, pattern, what);
    EXPECT_EQ(backend_.attention_and_select(selection_alone(call.params), select), pattern) << what;
  });
}

TEST_F(Gpu, SameBitsEveryTime) {
  const Case c{2, 1, 3, 1500, 1500, 128, true, false, 16};
  const SelectParams select{1000, 32, 0.3, SelectionRule::kPaper, true, 0.125f};
  Call first(c, DType::kBFloat16);
  const BlockPattern pattern = backend_.attention_and_select(first.params, select);
  for (int i = 0; i < 5; ++i) {
    Call again(c, DType::kBFloat16);
    EXPECT_EQ(backend_.attention_and_select(again.params, select), pattern);
    EXPECT_EQ(again.out.storage, first.out.storage);
  }
}

}  // namespace
}  // namespace sparsed
