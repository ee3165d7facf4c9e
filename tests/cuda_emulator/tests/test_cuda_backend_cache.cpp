// The pattern cache and its patterns over arrays in device memory, by the CUDA backend on a host runtime.
#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "core/pattern_cache.h"
#include "cuda/cuda.h"
#include "device_arrays.h"
#include "fake_runtime/runtime.h"

namespace sparsed {
namespace {

SparseConfig config_of(double rho) {
  SparseConfig config;
  config.schedule.skip = 0.5;
  config.rho = rho;
  config.block_size = 32;
  config.min_length = 0;
  return config;
}

class CudaCache : public testing::Test {
 protected:
  void TearDown() override { EXPECT_EQ(fake_runtime::live_allocations(), 0u); }

  // Steps of two layers on device arrays; how often the host waited for the device.
  int64_t run(PatternCache& cache, DeviceArrays& arrays, int64_t first, int64_t end) {
    const int64_t before = fake_runtime::waits();
    for (int64_t step = first; step < end; ++step) {
      cache.begin_step(step, std::nullopt);
      for (int64_t layer = 0; layer < 2; ++layer) cache.attend(backend_, layer, arrays.params);
    }
    return fake_runtime::waits() - before;
  }

  const Backend backend_ = cuda::backend();
};

TEST_F(CudaCache, NothingComesBackBetweenSteps) {
  for (const bool masked : {false, true}) {
    DeviceArrays arrays({1, 1, 2, 200, 200, 64, masked, false, 7}, DType::kBFloat16);
    SparseConfig config = config_of(0.3);
    config.dense_generation = masked;
    PatternCache cache(config, 6, 140);
    EXPECT_EQ(run(cache, arrays, 0, 3), 0);
    EXPECT_EQ(cache.phase(), Phase::kSelect);
    EXPECT_EQ(cache.density(1), 1.0);
    arrays.expect_right(nullptr, "select");
    EXPECT_EQ(run(cache, arrays, 3, 6), 0);
    EXPECT_EQ(cache.phase(), Phase::kSparse);
    EXPECT_EQ(cache.pattern_layers(), (std::vector<int64_t>{0, 1}));

    const int64_t waits = fake_runtime::waits();
    const BlockPattern& pattern = cache.pattern(0);
    EXPECT_DOUBLE_EQ(cache.density(0), pattern.density());
    EXPECT_EQ(fake_runtime::waits(), waits + 1);
    EXPECT_EQ(cache.nbytes(), 2 * pattern.nbytes());
    EXPECT_EQ(fake_runtime::waits(), waits + 1);  // read once
    arrays.expect_right(&pattern, "sparse");
    const SelectParams select{140, 32, 0.3, SelectionRule::kPaper, true, arrays.params.scale, masked};
    expect_selects(arrays.host.params, select, pattern, "pattern");
  }
}

// A full row needs the most room for its list, and does not make the whole pattern dense.
TEST_F(CudaCache, DenseGenerationRowsNeedNoWait) {
  DeviceArrays arrays({1, 1, 1, 700, 700, 32, false, false, 14}, DType::kFloat16);
  SparseConfig config = config_of(0.9);
  config.dense_generation = true;
  PatternCache cache(config, 4, 650);
  EXPECT_EQ(run(cache, arrays, 0, 4), 0);
  const BlockPattern& pattern = cache.pattern(0);
  EXPECT_GT(pattern.density(), 0.9);
  EXPECT_LT(cache.density(0), 1.);
  arrays.expect_right(&pattern, "sparse");
}

TEST_F(CudaCache, SelectingAtEveryStepStaysThereToo) {
  DeviceArrays arrays({1, 1, 1, 130, 130, 32, false, false, 8}, DType::kFloat32);
  SparseConfig config = config_of(0.3);
  config.schedule.refresh_every = true;
  PatternCache cache(config, 4, 64);
  EXPECT_EQ(run(cache, arrays, 0, 4), 0);
  arrays.expect_right(&cache.pattern(0), "sparse");
}

// Where the rule may keep every block, the pattern's density is read, once. With rho 1 nothing is selected.
TEST_F(CudaCache, DenseWherePatternsKeepEverything) {
  for (const auto& [rho, waits] : {std::pair{0.99, 2}, {1.0, 0}}) {
    DeviceArrays arrays({1, 1, 1, 96, 96, 32, true, false, 9}, DType::kFloat16);
    PatternCache cache(config_of(rho), 5, 64);
    EXPECT_EQ(run(cache, arrays, 0, 2), 0);
    EXPECT_EQ(run(cache, arrays, 2, 5), waits);
    EXPECT_EQ(cache.density(0), 1.0);
    arrays.expect_right(nullptr, "dense");
  }
}

TEST_F(CudaCache, WindowsAreMovedOnce) {
  DeviceArrays arrays({1, 1, 2, 200, 200, 64, false, false, 10}, DType::kBFloat16);
  PatternCache cache(WindowConfig{64, 16, 32}, 3, 100);
  EXPECT_EQ(run(cache, arrays, 0, 1), 1);  // for the move: both layers have one window
  const size_t allocations = fake_runtime::live_allocations();
  EXPECT_EQ(run(cache, arrays, 1, 3), 0);
  EXPECT_EQ(fake_runtime::live_allocations(), allocations);
  arrays.expect_right(&cache.pattern(1), "window");
}

TEST_F(CudaCache, LayersMayMoveBetweenHostAndDevice) {
  DeviceArrays arrays({1, 1, 2, 100, 100, 64, false, false, 11}, DType::kBFloat16);
  PatternCache cache(config_of(0.3), 4, 50);
  run(cache, arrays, 0, 2);
  Backend host{};
  host.attention = [](const AttentionParams& params, const BlockPattern* pattern) {
    std::vector<double> out(static_cast<size_t>(2 * 100 * 64));
    reference::attention(params, pattern, out.data(), nullptr);
    for (size_t i = 0; i < out.size(); ++i) {
      store_float(params.out.data, params.out.dtype, static_cast<int64_t>(i), static_cast<float>(out[i]));
    }
  };
  cache.begin_step(2, std::nullopt);
  AttentionParams params = arrays.host.params;
  params.lse = nullptr;
  cache.attend(host, 0, params);
  EXPECT_EQ(cache.phase(), Phase::kSparse);
  const std::vector<float> on_host = arrays.host.out.storage;
  backend_.attention(arrays.params, &cache.pattern(0));
  arrays.expect_right(&cache.pattern(0), "on the device");
  for (int64_t i = 0; i < 2 * 100 * 64; ++i) {
    EXPECT_NEAR(load_float(on_host.data(), DType::kBFloat16, i),
                load_float(arrays.host.out.view.data, DType::kBFloat16, i), 1.6e-2);
  }
}

TEST_F(CudaCache, APatternIsMovedOnce) {
  const Case c{1, 1, 2, 70, 150, 64, true, false, 12};
  DeviceArrays arrays(c, DType::kBFloat16);
  const BlockPattern pattern = random_pattern(c, 32, 40);
  backend_.attention(arrays.params, &pattern);
  const size_t allocations = fake_runtime::live_allocations();
  backend_.attention(arrays.params, &pattern);
  EXPECT_EQ(fake_runtime::live_allocations(), allocations);
  arrays.expect_right(&pattern, "moved");
  EXPECT_EQ(pattern.on(0, nullptr)->read(), pattern.bits());
}

TEST_F(CudaCache, NoKeysAtAll) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat32}) {
    DeviceArrays arrays({2, 1, 1, 40, 0, 64, false, false, 13}, dtype);
    backend_.attention(arrays.params, nullptr);
    for (int64_t row = 0; row < 2 * 40; ++row) EXPECT_TRUE(std::isinf(arrays.params.lse[row])) << row;
    const auto* out = static_cast<const uint8_t*>(arrays.params.out.data);
    for (int64_t i = 0; i < 2 * 40 * 64 * static_cast<int64_t>(dtype_size(dtype)); ++i) ASSERT_EQ(out[i], 0) << i;
  }
}

}  // namespace
}  // namespace sparsed
