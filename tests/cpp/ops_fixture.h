// Random matrices, and the fixture that runs a test on every target's kernels.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "core/float16.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu_targets.h"

namespace sparsed::cpu {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A matrix of random rows, `gap` elements between one row's end and the next one's start.
struct Matrix {
  std::vector<uint32_t> storage;
  RowsView view;

  Matrix(int64_t rows, int64_t cols, DType dtype, unsigned seed, float scale = 1.f, int64_t gap = 3)
      : storage(static_cast<size_t>(rows * (cols + gap)) + 1) {
    view = {storage.data(), dtype, rows, cols, cols + gap};
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal(0.f, scale);
    for (int64_t i = 0; i < rows * (cols + gap); ++i) store_float(view.data, dtype, i, normal(generator));
  }

  float at(int64_t row, int64_t col) const { return load_float(view.row(row), view.dtype, col); }
  RowsView one_row(int64_t row) const { return {view.row(row), view.dtype, 1, view.cols, view.stride}; }
};

inline WeightRows rows_of(const Matrix& matrix) {
  return {matrix.view.data, matrix.view.dtype, matrix.view.rows, matrix.view.stride, nullptr, DType::kFloat32};
}

inline bool same_bits(const Matrix& a, int64_t row_a, const Matrix& b, int64_t row_b) {
  return std::memcmp(a.view.row(row_a), b.view.row(row_b), a.view.cols * dtype_size(a.view.dtype)) == 0;
}

// Half a unit in the last place of a bfloat16, and some more for the sums before it.
inline double tolerance(DType out, double sum_of_magnitudes, double value) {
  return 4e-7 * sum_of_magnitudes + (out == DType::kBFloat16 ? std::abs(value) / 250 : 0);
}

class Ops : public testing::TestWithParam<Target> {
 protected:
  ~Ops() override { set_num_threads(threads_); }

  const OpsKernels& kernels() const { return *GetParam().kernels->ops; }
  const LinearKernels& linear_kernels() const { return kernels().linear; }
  // The dtypes of x and w that the target's linear kernels take.
  std::vector<DType> dtypes() const {
    if (GetParam().bf16_only) return {DType::kBFloat16};
    return {DType::kFloat32, DType::kBFloat16};
  }

 private:
  int threads_ = num_threads();
};

}  // namespace sparsed::cpu
