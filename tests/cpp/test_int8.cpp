// Linear layers with int8 weights: every instruction set gives the bits of the plain definition below.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/int8.h"
#include "expect_error.h"
#include "ops_fixture.h"

namespace sparsed::cpu {
namespace {

class Int8 : public testing::TestWithParam<Int8Target> {
 protected:
  ~Int8() override { set_num_threads(threads_); }

  const LinearKernels& kernels() const { return *GetParam().kernels; }

 private:
  int threads_ = num_threads();
};

INSTANTIATE_TEST_SUITE_P(Targets, Int8, testing::ValuesIn(int8_targets()),
                         [](const auto& info) { return info.param.name; });

// --- the definition ------------------------------------------------------------------------------------------------

// Rows of integers and their scales.
struct Quantized {
  std::vector<int> integers;
  std::vector<float> scales;
  int64_t k;

  explicit Quantized(const Matrix& matrix) : k(matrix.view.cols) {
    for (int64_t row = 0; row < matrix.view.rows; ++row) {
      float largest = 0.f;
      for (int64_t i = 0; i < k; ++i) largest = std::max(largest, std::abs(matrix.at(row, i)));
      scales.push_back(std::max(largest / 127.f, 0x1p-126f));
      for (int64_t i = 0; i < k; ++i) {
        integers.push_back(static_cast<int>(std::nearbyint(matrix.at(row, i) / scales.back())));
      }
    }
  }

  int at(int64_t row, int64_t i) const { return integers[static_cast<size_t>(row * k + i)]; }
};

struct Int8Case {
  Matrix x, weight, residual;
  std::vector<float> bias;
  PackedWeight w;
  Quantized of_x, of_w;

  Int8Case(int64_t m, int64_t n, int64_t k, DType dtype, unsigned seed)
      : x(m, k, dtype, seed),
        weight(n, k, dtype, seed + 1),
        residual(m, n, dtype, seed + 2),
        bias(static_cast<size_t>(n), 0.75f),
        w(pack_weight({{weight.view.data, dtype, n, weight.view.stride, bias.data(), DType::kFloat32}}, k,
                      DType::kInt8)),
        of_x(x),
        of_w(weight) {}

  float expected(int64_t m, int64_t n) const {
    int64_t sum = 0;
    for (int64_t i = 0; i < of_x.k; ++i) sum += of_x.at(m, i) * of_w.at(n, i);
    const float scale = of_x.scales[static_cast<size_t>(m)] * of_w.scales[static_cast<size_t>(n)];
    const float product = static_cast<float>(sum) * scale;
    const float with_bias = product + bias[static_cast<size_t>(n)];
    return with_bias + residual.at(m, n);
  }
};

TEST_P(Int8, LinearHasTheBitsOfTheDefinition) {
  struct Shape {
    int64_t m, n, k;
  };
  for (const Shape& shape : {Shape{1, 1, 1},
                             {2, 15, 31},
                             {13, 17, 63},
                             {33, 700, 65},
                             {400, 17, 1000},
                             {13, 700, 1000},
                             {1, 700, 1000},
                             {33, 1, 31},
                             {25, 33, 1100},
                             {400, 15, 64}}) {
    for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      const Int8Case test(shape.m, shape.n, shape.k, dtype, 7);
      for (DType out_dtype : {DType::kFloat32, DType::kBFloat16}) {
        Matrix out(shape.m, shape.n, out_dtype, 0), expected = out;
        expected.view.data = expected.storage.data();
        linear(kernels(), test.x.view, {{&test.w, test.residual.view, out.view}});
        for (int64_t m = 0; m < shape.m; ++m) {
          for (int64_t n = 0; n < shape.n; ++n) {
            store_float(expected.view.row(m), out_dtype, n, test.expected(m, n));
          }
          ASSERT_TRUE(same_bits(out, m, expected, m))
              << "row " << m << " of m " << shape.m << " n " << shape.n << " k " << shape.k << " " << dtype_name(dtype)
              << " out " << dtype_name(out_dtype);
        }
      }
    }
  }
}

TEST_P(Int8, ThreadsAndOtherRowsDoNotChangeBits) {
  const Int8Case test(150, 200, 640, DType::kBFloat16, 8);
  Matrix first(150, 200, DType::kFloat32, 0);
  linear(kernels(), test.x.view, {{&test.w, {}, first.view}});
  for (int threads : {1, 2, 3}) {
    set_num_threads(threads);
    Matrix out(150, 200, DType::kFloat32, 0);
    linear(kernels(), test.x.view, {{&test.w, {}, out.view}});
    for (int64_t row = 0; row < 150; ++row) ASSERT_TRUE(same_bits(out, row, first, row)) << threads << " threads";
  }
  for (int64_t row : {0, 1, 11, 12, 31, 32, 149}) {
    Matrix one(1, 200, DType::kFloat32, 0);
    linear(kernels(), test.x.one_row(row), {{&test.w, {}, one.view}});
    EXPECT_TRUE(same_bits(one, 0, first, row)) << "row " << row;
  }
}

TEST_P(Int8, RowsThatAreNotFiniteGiveNaNAlone) {
  Int8Case test(5, 40, 100, DType::kFloat32, 9);
  const Int8Case before(5, 40, 100, DType::kFloat32, 9);
  const auto row = [&](int64_t m) { return reinterpret_cast<float*>(test.x.view.row(m)); };
  row(1)[99] = std::nanf("");
  row(3)[0] = -kInfinity;
  std::fill_n(row(4), 100, 0.f);
  Matrix out(5, 40, DType::kFloat32, 0), expected(5, 40, DType::kFloat32, 0);
  linear(kernels(), test.x.view, {{&test.w, test.residual.view, out.view}});
  linear(int8_scalar(), before.x.view, {{&before.w, before.residual.view, expected.view}});
  for (int64_t n = 0; n < 40; ++n) {
    EXPECT_TRUE(std::isnan(out.at(1, n)) && std::isnan(out.at(3, n)));
    EXPECT_EQ(out.at(0, n), expected.at(0, n));
    EXPECT_EQ(out.at(2, n), expected.at(2, n));
    EXPECT_EQ(out.at(4, n), 0.75f + test.residual.at(4, n));
  }
}

TEST_P(Int8, TheLargestSumsAreExact) {
  constexpr int64_t kInputs = kInt8MostInputs;
  Matrix x(2, kInputs, DType::kFloat32, 0);
  for (int64_t i = 0; i < kInputs; ++i) {
    reinterpret_cast<float*>(x.view.row(0))[i] = 1.f;
    reinterpret_cast<float*>(x.view.row(1))[i] = -1.f;
  }
  std::vector<int8_t> integers(3 * kInputs, -128);
  std::fill_n(integers.begin() + kInputs, kInputs, int8_t{127});
  std::fill_n(integers.begin() + 2 * kInputs, kInputs, int8_t{-127});
  const float scales[] = {1.f, 0.5f, 0.f};
  WeightRows rows{integers.data(), DType::kInt8, 3, kInputs};
  rows.scales = scales;
  const PackedWeight w = pack_weight({rows}, kInputs, DType::kInt8);
  Matrix out(2, 3, DType::kFloat32, 0);
  linear(kernels(), x.view, {{&w, {}, out.view}});
  for (int64_t m = 0; m < 2; ++m) {
    const float sign = m == 0 ? 1.f : -1.f;
    EXPECT_EQ(out.at(m, 0), sign * -127.f * 128.f * kInputs * (1.f / 127.f));
    EXPECT_EQ(out.at(m, 1), sign * 127.f * 127.f * kInputs * (1.f / 127.f * 0.5f));
    EXPECT_EQ(out.at(m, 2), 0.f);
  }
}

TEST_P(Int8, TheSmallestNumbersHaveTheSameBits) {
  for (float scale : {1e-45f, 1e-43f, 1e-38f, 1e-20f}) {
    const Matrix x(9, 70, DType::kFloat32, 10, scale), weight(20, 70, DType::kFloat32, 11, 1e-18f);
    const PackedWeight w = pack_weight({rows_of(weight)}, 70, DType::kInt8);
    for (DType out_dtype : {DType::kFloat32, DType::kBFloat16}) {
      Matrix out(9, 20, out_dtype, 0), expected(9, 20, out_dtype, 0);
      linear(kernels(), x.view, {{&w, {}, out.view}});
      linear(int8_scalar(), x.view, {{&w, {}, expected.view}});
      for (int64_t m = 0; m < 9; ++m) ASSERT_TRUE(same_bits(out, m, expected, m)) << "scale " << scale;
      for (int64_t n = 0; n < 20; ++n) ASSERT_TRUE(std::isfinite(out.at(0, n)));
    }
  }
}

TEST_P(Int8, SeveralWeightsShareX) {
  const Int8Case a(70, 33, 130, DType::kBFloat16, 12), b(70, 200, 130, DType::kBFloat16, 13);
  Matrix alone(70, 200, DType::kFloat32, 0), first(70, 33, DType::kFloat32, 0), second(70, 200, DType::kFloat32, 0);
  linear(kernels(), a.x.view, {{&b.w, {}, alone.view}});
  linear(kernels(), a.x.view, {{&a.w, a.residual.view, first.view}, {&b.w, {}, second.view}});
  for (int64_t m = 0; m < 70; ++m) {
    EXPECT_TRUE(same_bits(alone, m, second, m));
    for (int64_t n = 0; n < 33; ++n) ASSERT_EQ(first.at(m, n), a.expected(m, n));
  }
}

// --- packing -------------------------------------------------------------------------------------------------------

TEST(PackedInt8, JoinsPartsAndKeepsIntegers) {
  const Matrix a(5, 101, DType::kBFloat16, 1), c(3, 101, DType::kFloat16, 2);
  const Quantized of_a(a), of_c(c);
  std::vector<int8_t> integers(17 * 103);
  for (size_t i = 0; i < integers.size(); ++i) integers[i] = static_cast<int8_t>(i * 37 - 128);
  const std::vector<float> scales(17, 0.25f);
  WeightRows b{integers.data(), DType::kInt8, 17, 103};
  b.scales = scales.data();
  const PackedWeight w = pack_weight({rows_of(a), b, rows_of(c)}, 101, DType::kInt8);
  ASSERT_EQ(w.n(), 25);
  ASSERT_EQ(w.k_padded(), 128);
  EXPECT_EQ(w.nbytes(), 2u * 16 * 128 + 2 * 32 * 4);
  for (int64_t n = 0; n < 32; ++n) {
    int64_t sum = 0;
    for (int64_t k = 0; k < 128; ++k) {
      int expected = 0;
      if (n < 25 && k < 101) {
        expected = n < 5    ? of_a.at(n, k)
                   : n < 22 ? integers[static_cast<size_t>((n - 5) * 103 + k)]
                            : of_c.at(n - 22, k);
      }
      sum += expected;
      const std::byte found = w.panel(n / 16)[k / 4 * 64 + n % 16 * 4 + k % 4];
      ASSERT_EQ(static_cast<int8_t>(found), expected) << "n " << n << " k " << k;
    }
    EXPECT_EQ(w.starts()[n], -128 * sum);
    const float scale = n < 5    ? of_a.scales[static_cast<size_t>(n)]
                        : n < 22 ? 0.25f
                        : n < 25 ? of_c.scales[static_cast<size_t>(n - 22)]
                                 : 0.f;
    EXPECT_EQ(w.scales()[n], scale);
  }
}

TEST(PackedInt8, QuantizeRowsGivesWhatIsPacked) {
  const Matrix matrix(21, 75, DType::kFloat32, 3);
  const Quantized expected(matrix);
  std::vector<int8_t> integers(21 * 75);
  std::vector<float> scales(21);
  quantize_rows(rows_of(matrix), 75, integers.data(), scales.data());
  EXPECT_EQ(scales, expected.scales);
  for (size_t i = 0; i < integers.size(); ++i) ASSERT_EQ(integers[i], expected.integers[i]);
}

TEST(PackedInt8, NamesWhatIsWrong) {
  Matrix matrix(3, 7, DType::kFloat32, 5);
  reinterpret_cast<float*>(matrix.view.row(2))[6] = kInfinity;
  WeightRows rows = rows_of(matrix);
  rows.name = "weights[4]";
  EXPECT_ERROR(pack_weight({rows}, 7, DType::kInt8), kValue, "weights[4] has a value that is not finite in row 2");
  std::vector<int8_t> integers(21);
  std::vector<float> scales(3);
  EXPECT_ERROR(quantize_rows(rows, 7, integers.data(), scales.data()), kValue, "not finite in row 2");
  EXPECT_ERROR(PackedWeight(1, kInt8MostInputs + 1, DType::kInt8), kValue, "expected at most 131072 columns");
  const Int8Case test(2, 5, 6, DType::kFloat32, 14);
  const PackedWeight wide = pack_weight({rows_of(test.weight)}, 6, DType::kFloat32);
  Matrix out(2, 5, DType::kFloat32, 0);
  EXPECT_ERROR(linear(int8_scalar(), test.x.view, {{&test.w, {}, out.view}, {&wide, {}, out.view}}), kType,
               "ws[1] has dtype float32, expected int8 (from ws[0])");
}

}  // namespace
}  // namespace sparsed::cpu
