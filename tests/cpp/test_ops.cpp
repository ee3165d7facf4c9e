#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "expect_error.h"
#include "ops_fixture.h"

namespace sparsed::cpu {
namespace {

INSTANTIATE_TEST_SUITE_P(Targets, Ops, testing::ValuesIn(targets()),
                         [](const auto& info) { return target_name(info.param); });

// --- packing -------------------------------------------------------------------------------------------------------

// Output n's input k in the documented layout.
float packed_at(const PackedWeight& w, int64_t n, int64_t k) {
  const std::byte* panel = w.panel(n / 16);
  if (w.dtype() == DType::kFloat32) return load_float(panel, w.dtype(), k * 16 + n % 16);
  return load_float(panel, w.dtype(), k / 2 * 32 + n % 16 * 2 + k % 2);
}

TEST(PackedWeight, JoinsPartsAtAnyRow) {
  for (DType source : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (DType packed : {DType::kFloat32, DType::kBFloat16}) {
      const Matrix a(5, 301, source, 1), b(17, 301, source, 2), c(3, 301, source, 3);
      const std::vector<float> bias(17, 2.5f);
      std::vector<WeightRows> parts{rows_of(a), rows_of(b), rows_of(c)};
      parts[1].bias = bias.data();
      const PackedWeight w = pack_weight(parts, 301, packed);
      ASSERT_EQ(w.n(), 25);
      ASSERT_EQ(w.panels(), 2);
      ASSERT_EQ(w.k_padded(), 320);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(w.panel(0)) % 64, 0u);
      EXPECT_EQ(w.nbytes(), 2u * 16 * 320 * dtype_size(packed) + 25 * 4);
      for (int64_t n = 0; n < 32; ++n) {
        for (int64_t k = 0; k < 320; ++k) {
          float expected = 0.f;
          if (n < 25 && k < 301) expected = n < 5 ? a.at(n, k) : n < 22 ? b.at(n - 5, k) : c.at(n - 22, k);
          if (packed == DType::kBFloat16) expected = bf16_to_float(float_to_bf16(expected));
          ASSERT_EQ(packed_at(w, n, k), expected) << "n " << n << " k " << k;
        }
      }
      for (int64_t n = 0; n < 25; ++n) EXPECT_EQ(w.bias()[n], n >= 5 && n < 22 ? 2.5f : 0.f);
    }
  }
}

TEST(PackedWeight, ReadsUnalignedData) {
  const Matrix matrix(3, 7, DType::kFloat32, 4, 1.f, 0);
  std::vector<char> bytes(3 * 7 * 4 + 1);
  std::memcpy(bytes.data() + 1, matrix.view.data, 3 * 7 * 4);
  WeightRows rows = rows_of(matrix);
  rows.data = bytes.data() + 1;
  const PackedWeight w = pack_weight({rows}, 7, DType::kFloat32);
  EXPECT_EQ(w.bias(), nullptr);
  for (int64_t n = 0; n < 3; ++n) {
    for (int64_t k = 0; k < 7; ++k) EXPECT_EQ(packed_at(w, n, k), matrix.at(n, k));
  }
}

TEST(PackedWeight, NamesWhatIsWrong) {
  const Matrix matrix(3, 7, DType::kFloat32, 5);
  EXPECT_ERROR(pack_weight({rows_of(matrix)}, 7, DType::kFloat16), kValue, "dtype is float16");
  EXPECT_ERROR(pack_weight({}, 7, DType::kFloat32), kValue, "shape [0, 7]");
  WeightRows huge = rows_of(matrix);
  huge.rows = int64_t{1} << 40;
  EXPECT_ERROR(pack_weight({huge}, 7, DType::kFloat32), kMemory, "the packed weight needs");
}

// --- linear --------------------------------------------------------------------------------------------------------

struct LinearCase {
  Matrix x, weight, residual;
  std::vector<float> bias;
  PackedWeight w;

  LinearCase(int64_t m, int64_t n, int64_t k, DType x_dtype, DType w_dtype, unsigned seed)
      : x(m, k, x_dtype, seed),
        weight(n, k, w_dtype, seed + 1),
        residual(m, n, x_dtype, seed + 2),
        bias(static_cast<size_t>(n), 0.75f),
        w(pack_weight({{weight.view.data, w_dtype, n, weight.view.stride, bias.data(), DType::kFloat32}}, k, w_dtype)) {
  }

  double expected(int64_t m, int64_t n, double* magnitude) const {
    double sum = bias[n] + static_cast<double>(residual.at(m, n));
    *magnitude = std::abs(sum);
    for (int64_t k = 0; k < x.view.cols; ++k) {
      const double product = static_cast<double>(x.at(m, k)) * weight.at(n, k);
      sum += product;
      *magnitude += std::abs(product);
    }
    return sum;
  }
};

TEST_P(Ops, LinearMatchesFloat64) {
  struct Shape {
    int64_t m, n, k;
  };
  for (const Shape& shape : {Shape{1, 1, 1},
                             {2, 16, 32},
                             {3, 17, 33},
                             {13, 31, 255},
                             {33, 49, 257},
                             {200, 33, 40},
                             {31, 530, 70},
                             {18, 20, 1100}}) {
    for (DType x_dtype : dtypes()) {
      for (DType w_dtype : dtypes()) {
        const LinearCase test(shape.m, shape.n, shape.k, x_dtype, w_dtype, 7);
        for (DType out_dtype : {DType::kFloat32, DType::kBFloat16}) {
          Matrix out(shape.m, shape.n, out_dtype, 0);
          linear(linear_kernels(), test.x.view, {{&test.w, test.residual.view, out.view}});
          for (int64_t m = 0; m < shape.m; ++m) {
            for (int64_t n = 0; n < shape.n; ++n) {
              double magnitude;
              const double expected = test.expected(m, n, &magnitude);
              ASSERT_NEAR(out.at(m, n), expected, tolerance(out_dtype, magnitude, expected))
                  << "at " << m << ", " << n << " of m " << shape.m << " n " << shape.n << " k " << shape.k << " x "
                  << dtype_name(x_dtype) << " w " << dtype_name(w_dtype) << " out " << dtype_name(out_dtype);
            }
          }
        }
      }
    }
  }
}

TEST_P(Ops, LinearWritesItsOutputsAlone) {
  const LinearCase test(5, 19, 40, DType::kBFloat16, DType::kBFloat16, 8);
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    Matrix out(5, 19, dtype, 9);
    const Matrix before = out;
    linear(linear_kernels(), test.x.view, {{&test.w, {}, out.view}});
    for (int64_t m = 0; m < 5; ++m) {
      for (int64_t n = 19; n < out.view.stride; ++n) {
        EXPECT_EQ(load_float(out.view.row(m), dtype, n),
                  load_float(before.storage.data(), dtype, m * out.view.stride + n));
      }
    }
  }
}

TEST_P(Ops, LinearRowsAreIndependent) {
  const std::vector<DType> types = dtypes();
  for (DType x_dtype : types) {
    for (DType w_dtype : types) {
      const LinearCase test(100, 70, 1030, x_dtype, w_dtype, 10);
      Matrix all(100, 70, DType::kFloat32, 0);
      linear(linear_kernels(), test.x.view, {{&test.w, test.residual.view, all.view}});
      for (int64_t row : {0, 1, 11, 12, 31, 47, 64, 99}) {
        Matrix one(1, 70, DType::kFloat32, 0);
        linear(linear_kernels(), test.x.one_row(row), {{&test.w, test.residual.one_row(row), one.view}});
        EXPECT_TRUE(same_bits(one, 0, all, row)) << "row " << row;
      }
    }
  }
}

TEST_P(Ops, ThreadsDoNotChangeBits) {
  const LinearCase test(150, 200, 640, DType::kBFloat16, DType::kBFloat16, 11);
  const Matrix logits(2, 20000, DType::kFloat32, 12, 4.f);
  Matrix first(150, 200, DType::kFloat32, 0);
  std::vector<int64_t> first_ids(2);
  std::vector<float> first_confidence(2);
  for (int threads : {1, 2, 3}) {
    set_num_threads(threads);
    Matrix out(150, 200, DType::kFloat32, 0);
    std::vector<int64_t> ids(2);
    std::vector<float> confidence(2);
    linear(linear_kernels(), test.x.view, {{&test.w, {}, out.view}});
    token_confidence(kernels(), logits.view, Confidence::kNegativeEntropy, ids.data(), confidence.data());
    if (threads == 1) {
      first = out;
      first.view.data = first.storage.data();
      first_ids = ids;
      first_confidence = confidence;
    }
    for (int64_t row = 0; row < 150; ++row) ASSERT_TRUE(same_bits(out, row, first, row)) << threads << " threads";
    EXPECT_EQ(ids, first_ids);
    EXPECT_EQ(confidence, first_confidence);
  }
}

TEST_P(Ops, LinearOfNoRows) {
  const LinearCase test(1, 5, 6, DType::kBFloat16, DType::kBFloat16, 13);
  linear(linear_kernels(), {nullptr, DType::kBFloat16, 0, 6, 6}, {{&test.w, {}, {nullptr, DType::kFloat32, 0, 5, 5}}});
}

TEST(OpsErrors, NameArgumentFoundAndExpected) {
  const OpsKernels& kernels = *kernels_scalar().ops;
  const LinearCase test(2, 5, 6, DType::kFloat32, DType::kFloat32, 14);
  const Matrix narrow(2, 4, DType::kFloat32, 0), out(2, 5, DType::kFloat32, 0), wide(2, 6, DType::kFloat32, 0);
  const Matrix half(2, 6, DType::kFloat16, 0), pairs(2, 6, DType::kBFloat16, 0);
  EXPECT_ERROR(linear(kernels.linear, narrow.view, {{&test.w, {}, out.view}}), kValue,
               "x has shape [2, 4], expected 6 columns (from w [5, 6])");
  EXPECT_ERROR(linear(kernels.linear, half.view, {{&test.w, {}, out.view}}), kType, "x has dtype float16");
  EXPECT_ERROR(linear(kernels.linear, test.x.view, {{&test.w, narrow.view, out.view}}), kValue,
               "residual has shape [2, 4], expected [2, 5]");
  EXPECT_ERROR(linear(kernels.linear, test.x.view, {{&test.w, {}, wide.view}}), kValue, "out has shape [2, 6]");
  EXPECT_ERROR(rotary(kernels, wide.view, 4, nullptr, nullptr), kValue, "a multiple of head_dim 4");
  EXPECT_ERROR(rotary(kernels, wide.view, 3, nullptr, nullptr), kValue, "head_dim is 3");
  EXPECT_ERROR(silu_gate(kernels, wide.view, narrow.view), kValue, "silu_gate_: up has shape [2, 4]");
  EXPECT_ERROR(silu_gate(kernels, wide.view, pairs.view), kType, "silu_gate_: up has dtype bfloat16");
  EXPECT_ERROR(token_confidence(kernels, pairs.view, Confidence::kMargin, nullptr, nullptr), kType,
               "token_confidence: logits has dtype bfloat16");
}

// --- rows ----------------------------------------------------------------------------------------------------------

TEST_P(Ops, RmsNormMatchesFloat64) {
  for (int64_t cols : {1, 5, 64, 1031}) {
    for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      for (DType out_dtype : {DType::kFloat32, DType::kBFloat16}) {
        const Matrix x(7, cols, dtype, 15, 3.f), weight(1, cols, DType::kFloat32, 16);
        Matrix out(7, cols, out_dtype, 0);
        rms_norm(kernels(), x.view, static_cast<const float*>(weight.view.data), 1e-5f, out.view);
        for (int64_t m = 0; m < 7; ++m) {
          double squares = 0;
          for (int64_t i = 0; i < cols; ++i) squares += static_cast<double>(x.at(m, i)) * x.at(m, i);
          for (int64_t i = 0; i < cols; ++i) {
            const double expected = x.at(m, i) / std::sqrt(squares / cols + 1e-5) * weight.at(0, i);
            ASSERT_NEAR(out.at(m, i), expected, tolerance(out_dtype, std::abs(expected), expected));
          }
        }
      }
    }
  }
}

TEST_P(Ops, RotaryTurnsPairs) {
  for (int64_t head_dim : {2, 24, 64, 136}) {
    for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      const int64_t half = head_dim / 2;
      Matrix x(6, 3 * head_dim, dtype, 17);
      const std::vector<uint32_t> before = x.storage;
      std::vector<float> cos, sin;
      for (int64_t i = 0; i < 6 * half; ++i) {
        cos.push_back(std::cos(0.37f * i));
        sin.push_back(std::sin(0.37f * i));
      }
      rotary(kernels(), x.view, head_dim, cos.data(), sin.data());
      for (int64_t i = 0; i < 6 * 3 * half; ++i) {
        const int64_t m = i / (3 * half), head = i / half % 3, j = i % half;
        const int64_t at = m * x.view.stride + head * head_dim + j;
        const double a = load_float(before.data(), dtype, at), b = load_float(before.data(), dtype, at + half);
        const double c = cos[m * half + j], s = sin[m * half + j], size = std::abs(a) + std::abs(b);
        ASSERT_NEAR(x.at(m, head * head_dim + j), a * c - b * s, tolerance(dtype, size, a * c - b * s));
        ASSERT_NEAR(x.at(m, head * head_dim + j + half), b * c + a * s, tolerance(dtype, size, b * c + a * s));
      }
    }
  }
}

TEST_P(Ops, SiluGateIsAccurateFarFromZero) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (float scale : {0.1f, 5.f, 60.f, 1e4f}) {
      Matrix gate(5, 203, dtype, 18, scale);
      const Matrix up(5, 203, dtype, 19), before = gate;
      silu_gate(kernels(), gate.view, up.view);
      for (int64_t m = 0; m < 5; ++m) {
        for (int64_t i = 0; i < 203; ++i) {
          const double x = load_float(before.storage.data(), dtype, m * gate.view.stride + i);
          const double expected = x / (1 + std::exp(-x)) * up.at(m, i);
          const double relative = dtype == DType::kFloat32 ? 8e-6 : 4e-3;
          ASSERT_NEAR(gate.at(m, i), expected, relative * std::abs(expected) + 1e-35) << "x " << x;
        }
      }
    }
  }
  Matrix special(1, 3, DType::kFloat32, 0), ones(1, 3, DType::kFloat32, 0);
  float* x = static_cast<float*>(special.view.data);
  std::fill_n(static_cast<float*>(ones.view.data), 3, 1.f);
  x[0] = std::numeric_limits<float>::quiet_NaN(), x[1] = kInfinity, x[2] = 0.f;
  silu_gate(kernels(), special.view, ones.view);
  EXPECT_TRUE(std::isnan(x[0]));
  EXPECT_EQ(x[1], kInfinity);
  EXPECT_EQ(x[2], 0.f);
}

}  // namespace
}  // namespace sparsed::cpu
