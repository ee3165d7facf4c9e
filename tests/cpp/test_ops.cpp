#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "core/float16.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu_targets.h"
#include "expect_error.h"

namespace sparsed::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

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

WeightRows rows_of(const Matrix& matrix) {
  return {matrix.view.data, matrix.view.dtype, matrix.view.rows, matrix.view.stride, nullptr, DType::kFloat32};
}

bool same_bits(const Matrix& a, int64_t row_a, const Matrix& b, int64_t row_b) {
  return std::memcmp(a.view.row(row_a), b.view.row(row_b), a.view.cols * dtype_size(a.view.dtype)) == 0;
}

// Half a unit in the last place of a bfloat16, and some more for the sums before it.
double tolerance(DType out, double sum_of_magnitudes, double value) {
  return 4e-7 * sum_of_magnitudes + (out == DType::kBFloat16 ? std::abs(value) / 250 : 0);
}

class Ops : public testing::TestWithParam<Target> {
 protected:
  ~Ops() override { set_num_threads(threads_); }

  const OpsKernels& kernels() const { return *GetParam().kernels->ops; }
  // The dtypes of x and w that the target's linear kernels take.
  std::vector<DType> dtypes() const {
    if (GetParam().bf16_only) return {DType::kBFloat16};
    return {DType::kFloat32, DType::kBFloat16};
  }

 private:
  int threads_ = num_threads();
};

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
  EXPECT_ERROR(pack_weight({huge}, 7, DType::kFloat32), kMemory, "pack_weight: the packed weight needs");
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
          linear(kernels(), test.x.view, test.w, test.residual.view, out.view);
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
    linear(kernels(), test.x.view, test.w, {}, out.view);
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
      linear(kernels(), test.x.view, test.w, test.residual.view, all.view);
      for (int64_t row : {0, 1, 11, 12, 31, 47, 64, 99}) {
        Matrix one(1, 70, DType::kFloat32, 0);
        linear(kernels(), test.x.one_row(row), test.w, test.residual.one_row(row), one.view);
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
    linear(kernels(), test.x.view, test.w, {}, out.view);
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
  linear(kernels(), {nullptr, DType::kBFloat16, 0, 6, 6}, test.w, {}, {nullptr, DType::kFloat32, 0, 5, 5});
}

TEST(OpsErrors, NameArgumentFoundAndExpected) {
  const OpsKernels& kernels = *kernels_scalar().ops;
  const LinearCase test(2, 5, 6, DType::kFloat32, DType::kFloat32, 14);
  const Matrix narrow(2, 4, DType::kFloat32, 0), out(2, 5, DType::kFloat32, 0), wide(2, 6, DType::kFloat32, 0);
  const Matrix half(2, 6, DType::kFloat16, 0), pairs(2, 6, DType::kBFloat16, 0);
  EXPECT_ERROR(linear(kernels, narrow.view, test.w, {}, out.view), kValue,
               "linear: x has shape [2, 4], expected 6 columns (from w [5, 6])");
  EXPECT_ERROR(linear(kernels, half.view, test.w, {}, out.view), kType, "linear: x has dtype float16");
  EXPECT_ERROR(linear(kernels, test.x.view, test.w, narrow.view, out.view), kValue,
               "linear: residual has shape [2, 4], expected [2, 5]");
  EXPECT_ERROR(linear(kernels, test.x.view, test.w, {}, wide.view), kValue, "linear: out has shape [2, 6]");
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

// --- token_confidence ----------------------------------------------------------------------------------------------

struct Choice {
  int64_t id;
  double probability, margin, entropy;
};

// In float64; what the largest term leaves over is summed apart from it, since 1 + 1e-15 terms would lose them.
Choice choose(const Matrix& logits, int64_t row) {
  std::vector<double> e;
  for (int64_t i = 0; i < logits.view.cols; ++i) e.push_back(logits.at(row, i));
  const int64_t id = std::max_element(e.begin(), e.end()) - e.begin();
  const double max = e[id];
  double rest = 0, second = 0;
  for (int64_t i = 0; i < logits.view.cols; ++i) {
    e[i] = std::exp(e[i] - max);
    if (i == id) continue;
    rest += e[i];
    second = std::max(second, e[i]);
  }
  const double sum = 1 + rest;
  double entropy = std::log1p(1e-10 - rest / sum) / sum;
  for (int64_t i = 0; i < logits.view.cols; ++i) {
    if (i != id) entropy += e[i] / sum * std::log(e[i] / sum + 1e-10);
  }
  return {id, 1 / sum, (1 - second) / sum, entropy};
}

TEST_P(Ops, TokenConfidenceMatchesFloat64) {
  for (int64_t vocabulary : {1, 2, 13, 255, 4096, 4097, 30000}) {
    for (float scale : {0.01f, 2.f, 40.f}) {
      const Matrix logits(5, vocabulary, DType::kFloat32, 20, scale);
      for (Confidence kind : {Confidence::kProbability, Confidence::kMargin, Confidence::kNegativeEntropy}) {
        std::vector<int64_t> ids(5);
        std::vector<float> confidence(5);
        token_confidence(kernels(), logits.view, kind, ids.data(), confidence.data());
        for (int64_t row = 0; row < 5; ++row) {
          const Choice choice = choose(logits, row);
          const double expected = kind == Confidence::kProbability ? choice.probability
                                  : kind == Confidence::kMargin    ? choice.margin
                                                                   : choice.entropy;
          EXPECT_EQ(ids[row], choice.id);
          EXPECT_NEAR(confidence[row], expected, 1e-6 * std::abs(expected) + 1e-9)
              << "vocabulary " << vocabulary << " scale " << scale << " kind " << static_cast<int>(kind);
        }
      }
    }
  }
}

TEST_P(Ops, TokenConfidenceOfNearlyCertainRows) {
  // The rest of the distribution, far below float32's resolution of 1, still orders the rows.
  Matrix logits(2, 5000, DType::kFloat32, 0, 0.f);
  store_float(logits.view.row(0), DType::kFloat32, 4321, 35.f);
  store_float(logits.view.row(1), DType::kFloat32, 4321, 36.f);
  int64_t ids[2];
  float entropy[2];
  token_confidence(kernels(), logits.view, Confidence::kNegativeEntropy, ids, entropy);
  for (int64_t row = 0; row < 2; ++row) {
    EXPECT_EQ(ids[row], 4321);
    EXPECT_NEAR(entropy[row] / choose(logits, row).entropy, 1.0, 1e-5);
  }
  EXPECT_GT(entropy[1], entropy[0]);
}

TEST_P(Ops, TokenConfidenceOfTiesAndSpecialValues) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  struct Case {
    std::vector<float> logits;
    int64_t id;
    float probability, margin;
  };
  std::vector<float> late_tie(9000, -kInfinity);
  late_tie[5000] = late_tie[8999] = 3.f;
  for (const Case& test : {Case{{1.f, 1.f, 1.f}, 0, 1.f / 3, 0.f},
                           {{kNaN, 2.f, 2.f, kNaN}, 1, 0.5f, 0.f},
                           {{-kInfinity, -5.f, -kInfinity}, 1, 1.f, 1.f},
                           {late_tie, 5000, 0.5f, 0.f},
                           {{kNaN, -kInfinity}, 0, kNaN, kNaN},
                           {{-3e38f, 3e38f}, 1, 1.f, 1.f}}) {
    std::vector<float> logits = test.logits;
    const int64_t size = static_cast<int64_t>(logits.size());
    const RowsView view{logits.data(), DType::kFloat32, 1, size, size};
    for (Confidence kind : {Confidence::kProbability, Confidence::kMargin, Confidence::kNegativeEntropy}) {
      int64_t id = -1;
      float confidence = -1.f;
      token_confidence(kernels(), view, kind, &id, &confidence);
      EXPECT_EQ(id, test.id);
      if (std::isnan(test.probability)) {
        EXPECT_TRUE(std::isnan(confidence));
      } else if (kind != Confidence::kNegativeEntropy) {
        EXPECT_NEAR(confidence, kind == Confidence::kMargin ? test.margin : test.probability, 1e-6f);
      } else {
        EXPECT_NEAR(confidence, std::log(test.probability), 1e-6f);
      }
    }
  }
}

}  // namespace
}  // namespace sparsed::cpu
