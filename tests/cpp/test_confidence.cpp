#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ops_fixture.h"

namespace sparsed::cpu {
namespace {

using TokenConfidence = Ops;
INSTANTIATE_TEST_SUITE_P(Targets, TokenConfidence, testing::ValuesIn(targets()),
                         [](const auto& info) { return target_name(info.param); });

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

TEST_P(TokenConfidence, MatchesFloat64) {
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

TEST_P(TokenConfidence, OfNearlyCertainRows) {
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

TEST_P(TokenConfidence, OfTiesAndSpecialValues) {
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
