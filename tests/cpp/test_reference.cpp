#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "core/float16.h"
#include "expect_error.h"
#include "random_array.h"
#include "reference.h"

namespace sparsed {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr int64_t kDim = 16;

struct Result {
  std::vector<double> out, lse;
};

Result attend(const AttentionParams& params, const BlockPattern* pattern = nullptr) {
  const size_t rows = static_cast<size_t>(params.batch() * params.heads() * params.q_len());
  Result result{std::vector<double>(rows * static_cast<size_t>(params.head_dim()), 99.),
                std::vector<double>(rows, 99.)};
  reference::attention(params, pattern, result.out.data(), result.lse.data());
  return result;
}

void expect_near(const std::vector<double>& found, const std::vector<double>& expected, double tolerance = 1e-12) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], expected[i], tolerance) << "index " << i;
}

// One head; key j has weight w[j] for every query: its first element is log w[j], the queries' is 1.
struct Weighted {
  std::vector<float> q, k, v;
  AttentionParams params;

  Weighted(int64_t queries, const std::vector<double>& weights) {
    const int64_t keys = static_cast<int64_t>(weights.size());
    q.resize(static_cast<size_t>(queries * kDim));
    k.resize(weights.size() * kDim);
    v.resize(weights.size() * kDim);
    for (size_t i = 0; i < q.size(); i += kDim) q[i] = 1.f;
    for (size_t j = 0; j < weights.size(); ++j) {
      k[j * kDim] = static_cast<float>(std::log(weights[j]));
      for (size_t d = 0; d < kDim; ++d) v[j * kDim + d] = static_cast<float>(10 * j + d);
    }
    params.q = view(q, queries);
    params.k = view(k, keys);
    params.v = view(v, keys);
  }

  static TensorView view(std::vector<float>& data, int64_t tokens) {
    const Shape4 shape{1, 1, tokens, kDim};
    return {data.data(), DType::kFloat32, shape, contiguous_strides(shape)};
  }
};

// Block size 16; the selected blocks of each query block.
BlockPattern pattern_of(const std::vector<std::vector<int64_t>>& rows, int64_t q_len, int64_t kv_len,
                        int64_t heads = 1) {
  PatternBuilder builder({1, heads, 16, q_len, kv_len, 0}, "test");
  for (size_t row = 0; row < rows.size(); ++row) {
    for (const int64_t block : rows[row]) builder.set(static_cast<int64_t>(row), block);
  }
  return std::move(builder).build();
}

TEST(ReferenceAttentionTest, WeighsValuesByHand) {
  const Weighted c(2, {1, 3});
  const Result result = attend(c.params);
  expect_near(result.lse, {std::log(4.), std::log(4.)}, 1e-7);
  for (size_t i = 0; i < 2 * kDim; ++i) EXPECT_NEAR(result.out[i], 7.5 + static_cast<double>(i % kDim), 1e-6);
}

TEST(ReferenceAttentionTest, ScaleMultipliesTheScores) {
  Weighted c(1, {1, 3});
  c.params.scale = 2.f;
  const Result result = attend(c.params);
  EXPECT_NEAR(result.lse[0], std::log(10.), 1e-7);
  EXPECT_NEAR(result.out[0], 9., 1e-6);
}

TEST(ReferenceAttentionTest, LseMayBeLeftOut) {
  const Weighted c(1, {1, 3});
  std::vector<double> out(kDim);
  reference::attention(c.params, nullptr, out.data(), nullptr);
  EXPECT_EQ(out, attend(c.params).out);
}

TEST(ReferenceAttentionTest, MaskedKeysTakeNoPart) {
  Weighted c(1, {1, 3, 4});
  const std::vector<uint8_t> mask{1, 0, 1};
  c.params.key_mask = mask.data();
  const Result result = attend(c.params);
  EXPECT_NEAR(result.lse[0], std::log(5.), 1e-7);
  EXPECT_NEAR(result.out[0], 16., 1e-6);
}

TEST(ReferenceAttentionTest, RowsWithoutAKeyAreZeroAndMinusInfinity) {
  Weighted c(2, {1, 3});
  const std::vector<uint8_t> mask{0, 0};
  c.params.key_mask = mask.data();
  Result result = attend(c.params);
  EXPECT_EQ(result.out, std::vector<double>(2 * kDim, 0.));
  EXPECT_EQ(result.lse, std::vector<double>(2, -kInf));

  c.params.key_mask = nullptr;
  const BlockPattern none = pattern_of({}, 2, 2);
  result = attend(c.params, &none);
  EXPECT_EQ(result.out, std::vector<double>(2 * kDim, 0.));
  EXPECT_EQ(result.lse, std::vector<double>(2, -kInf));
}

TEST(ReferenceAttentionTest, NoKeysAtAll) {
  const Weighted c(3, {});
  const Result result = attend(c.params);
  EXPECT_EQ(result.out, std::vector<double>(3 * kDim, 0.));
  EXPECT_EQ(result.lse, std::vector<double>(3, -kInf));
}

TEST(ReferenceAttentionTest, PatternChoosesBlocksByQueryBlock) {
  // 40 keys of weights 1, 2, 4 by block of 16 (the last has 8); 20 queries in two blocks.
  std::vector<double> weights(40, 1.);
  for (size_t j = 16; j < 32; ++j) weights[j] = 2.;
  for (size_t j = 32; j < 40; ++j) weights[j] = 4.;
  Weighted c(20, weights);
  const BlockPattern pattern = pattern_of({{0, 2}, {1}}, 20, 40);
  const Result result = attend(c.params, &pattern);
  for (size_t i = 0; i < 20; ++i) EXPECT_NEAR(result.lse[i], std::log(i < 16 ? 48. : 32.), 1e-6) << i;
  EXPECT_NEAR(result.out[0], (75. * 16 + 355. * 32) / 48, 1e-4);  // mean values 75 and 355
  EXPECT_NEAR(result.out[16 * kDim], 235., 1e-4);
}

TEST(ReferenceAttentionTest, FullPatternIsDense) {
  const RandomArray q({2, 4, 40, kDim}, DType::kFloat32, 1), k({2, 2, 50, kDim}, DType::kFloat32, 2),
      v({2, 2, 50, kDim}, DType::kFloat32, 3);
  AttentionParams params;
  params.q = q.view, params.k = k.view, params.v = v.view;
  const Result dense = attend(params);
  const BlockPattern pattern = BlockPattern::full({2, 4, 16, 40, 50, 0});
  const Result sparse = attend(params, &pattern);
  EXPECT_EQ(sparse.out, dense.out);
  EXPECT_EQ(sparse.lse, dense.lse);
}

TEST(ReferenceAttentionTest, TwoHalvesMergeToTheWholeByTheirLse) {
  const RandomArray q({1, 2, 20, kDim}, DType::kFloat32, 4), k({1, 1, 64, kDim}, DType::kFloat32, 5),
      v({1, 1, 64, kDim}, DType::kFloat32, 6);
  AttentionParams params;
  params.q = q.view, params.k = k.view, params.v = v.view;
  params.scale = .25f;
  const Result whole = attend(params);
  const BlockPattern left = pattern_of({{0, 3}, {1}, {0}, {}}, 20, 64, 2);
  const BlockPattern right = pattern_of({{1, 2}, {0, 2, 3}, {1, 2, 3}, {0, 1, 2, 3}}, 20, 64, 2);
  const Result a = attend(params, &left);
  const Result b = attend(params, &right);
  for (size_t row = 0; row < whole.lse.size(); ++row) {
    const double part = std::exp(a.lse[row] - whole.lse[row]), rest = std::exp(b.lse[row] - whole.lse[row]);
    EXPECT_NEAR(part + rest, 1., 1e-12);
    for (size_t d = row * kDim; d < (row + 1) * kDim; ++d) {
      EXPECT_NEAR(part * a.out[d] + rest * b.out[d], whole.out[d], 1e-12);
    }
  }
}

TEST(ReferenceAttentionTest, HeadsShareKeysInGroups) {
  const RandomArray q({1, 6, 5, kDim}, DType::kFloat32, 1), k({1, 2, 7, kDim}, DType::kFloat32, 2),
      v({1, 2, 7, kDim}, DType::kFloat32, 3);
  AttentionParams params;
  params.q = q.view, params.k = k.view, params.v = v.view;
  const Result grouped = attend(params);
  for (TensorView* view : {&params.k, &params.v}) {  // the same by hand: one call per query head
    view->shape[1] = 1;
  }
  params.q.shape[1] = 1;
  for (int64_t h = 0; h < 6; ++h) {
    params.q.data = q.view.row(0, h, 0);
    params.k.data = k.view.row(0, h / 3, 0);
    params.v.data = v.view.row(0, h / 3, 0);
    const Result single = attend(params);
    for (size_t i = 0; i < single.out.size(); ++i) {
      EXPECT_EQ(single.out[i], grouped.out[static_cast<size_t>(h) * single.out.size() + i]);
    }
  }
}

class ReferenceDTypeTest : public testing::TestWithParam<DType> {};

TEST_P(ReferenceDTypeTest, ReadsEveryDTypeAndLayout) {
  const RandomArray q({2, 3, 5, kDim}, GetParam(), 1), k({2, 3, 7, kDim}, GetParam(), 2),
      v({2, 3, 7, kDim}, GetParam(), 3);
  // The same numbers as float32 stored as (B, L, H, D), and with the tokens backwards.
  const auto copy = [](const RandomArray& source, bool backwards) {
    RandomArray target(source.view.shape, DType::kFloat32, 0, true);
    TensorView& view = target.view;
    if (backwards) {
      view.data = view.row(0, 0, view.shape[2] - 1);
      view.stride[2] = -view.stride[2];
    }
    for (int64_t b = 0; b < view.shape[0]; ++b) {
      for (int64_t h = 0; h < view.shape[1]; ++h) {
        for (int64_t i = 0; i < view.shape[2]; ++i) {
          for (int64_t d = 0; d < kDim; ++d) store_float(view.row(b, h, i), view.dtype, d, source.at(b, h, i, d));
        }
      }
    }
    return target;
  };
  AttentionParams params;
  params.q = q.view, params.k = k.view, params.v = v.view;
  params.scale = .3f;
  const Result expected = attend(params);
  for (const bool backwards : {false, true}) {
    const RandomArray q2 = copy(q, backwards), k2 = copy(k, backwards), v2 = copy(v, backwards);
    params.q = q2.view, params.k = k2.view, params.v = v2.view;
    const Result found = attend(params);
    EXPECT_EQ(found.out, expected.out);
    EXPECT_EQ(found.lse, expected.lse);
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes, ReferenceDTypeTest,
                         testing::Values(DType::kFloat32, DType::kFloat16, DType::kBFloat16),
                         [](const auto& test) { return std::string(dtype_name(test.param)); });

TEST(ReferenceAttentionTest, NanReachesOnlyTheRowsThatSeeIt) {
  RandomArray q({1, 1, 32, kDim}, DType::kFloat32, 1), k({1, 1, 32, kDim}, DType::kFloat32, 2),
      v({1, 1, 32, kDim}, DType::kFloat32, 3);
  store_float(v.view.row(0, 0, 20), DType::kFloat32, 3, std::numeric_limits<float>::quiet_NaN());
  store_float(k.view.row(0, 0, 21), DType::kFloat32, 0, std::numeric_limits<float>::quiet_NaN());
  AttentionParams params;
  params.q = q.view, params.k = k.view, params.v = v.view;
  const BlockPattern pattern = pattern_of({{0}, {0, 1}}, 32, 32);
  const Result result = attend(params, &pattern);
  for (size_t i = 0; i < result.out.size(); ++i) EXPECT_EQ(std::isnan(result.out[i]), i >= 16 * kDim) << i;
}

TEST(BlockScoresTest, SumsMassByHand) {
  std::vector<double> weights(20, 1.);  // 16 keys of weight 1, then 4 of weight 4
  for (size_t j = 16; j < 20; ++j) weights[j] = 4.;
  const Weighted c(18, weights);  // query blocks of 16 and 2 rows
  expect_near(reference::block_scores(c.params, 16, 1.f, 0), {8, 8, 1, 1}, 1e-6);
  expect_near(reference::block_scores(c.params, 16, 2.f, 0), {16 / 5., 64 / 5., 2 / 5., 8 / 5.}, 1e-6);
  expect_near(reference::block_scores(c.params, 16, 1.f, 16), {0, 16, 0, 2}, 1e-6);
}

TEST(BlockScoresTest, MaskedKeysCarryNoMass) {
  Weighted c(1, std::vector<double>(40, 1.));
  std::vector<uint8_t> mask(40, 0);
  mask[0] = mask[39] = mask[38] = 1;
  c.params.key_mask = mask.data();
  expect_near(reference::block_scores(c.params, 16, 1.f, 0), {1 / 3., 0, 2 / 3.});
  expect_near(reference::block_scores(c.params, 16, 1.f, 16), {0, 0, 1});
  mask.assign(40, 0);
  expect_near(reference::block_scores(c.params, 16, 1.f, 0), {0, 0, 0});
}

TEST(BlockScoresTest, EveryRowsMassIsOne) {
  const RandomArray q({2, 4, 50, kDim}, DType::kFloat32, 1), k({2, 2, 50, kDim}, DType::kFloat32, 2);
  AttentionParams params;
  params.q = q.view, params.k = k.view;
  const std::vector<double> scores = reference::block_scores(params, 16, .25f, 0);
  ASSERT_EQ(scores.size(), 2u * 4 * 4 * 4);
  for (size_t row = 0; row < scores.size() / 4; ++row) {
    double sum = 0;
    for (size_t j = 0; j < 4; ++j) sum += scores[row * 4 + j];
    EXPECT_NEAR(sum, row % 4 == 3 ? 2. : 16., 1e-12);
  }
}

// 64 equal queries and keys of one weight per block of 16.
Weighted weighted_blocks(const std::vector<double>& block_weights) {
  std::vector<double> weights;
  for (const double weight : block_weights) weights.insert(weights.end(), 16, weight);
  return {static_cast<int64_t>(weights.size()), weights};
}

std::string first_row(const BlockPattern& pattern) {
  std::string text;
  for (int64_t block = 0; block < pattern.geometry().kv_blocks(); ++block) text += pattern.test(0, block) ? '1' : '.';
  return text;
}

TEST(ReferenceSelectTest, FollowsBothRulesByHand) {
  Weighted c = weighted_blocks({1, 3, 2, 9, 5});
  SelectParams select;
  select.block_size = 16;
  select.prompt_length = 48;
  select.rho = .2;  // paper: 1 of 3 prompt blocks, 1 of 2 generation blocks
  BlockPattern pattern = reference::select(c.params, select);
  EXPECT_EQ(first_row(pattern), ".1.1.");
  EXPECT_EQ(pattern.geometry(), (PatternGeometry{1, 1, 16, 80, 80, 48}));
  for (int64_t row = 0; row < pattern.rows(); ++row) EXPECT_EQ(pattern.test(row, 1), true);

  select.rule = SelectionRule::kReference;  // 2 of 5: blocks 3 and 4, both dropped
  EXPECT_EQ(first_row(reference::select(c.params, select)), "...1.");
  select.rho = .4;  // 3 of 5: block 1 stays
  EXPECT_EQ(first_row(reference::select(c.params, select)), ".1.1.");
  select.isolate = false;
  EXPECT_EQ(first_row(reference::select(c.params, select)), ".1.11");
}

TEST(ReferenceSelectTest, ScaleIsTheSelectionsOwn) {
  Weighted c = weighted_blocks({1, 3});
  c.params.scale = std::numeric_limits<float>::quiet_NaN();  // unread
  SelectParams select;
  select.block_size = 16;
  select.rho = 0;
  EXPECT_EQ(first_row(reference::select(c.params, select)), ".1");
}

TEST(ReferenceSelectTest, DeadBlocksAreNeverSelected) {
  Weighted c = weighted_blocks({1, 3, 2, 9});
  std::vector<uint8_t> mask(64, 1);
  for (size_t j = 16; j < 32; ++j) mask[j] = 0;
  c.params.key_mask = mask.data();
  SelectParams select;
  select.block_size = 16;
  select.prompt_length = 48;
  select.rho = 1;
  EXPECT_EQ(first_row(reference::select(c.params, select)), "1.11");
  select.rule = SelectionRule::kReference;
  EXPECT_EQ(first_row(reference::select(c.params, select)), "1.11");
}

TEST(ReferenceSelectTest, NamesWhatIsWrong) {
  Weighted c = weighted_blocks({1, 3});
  SelectParams select;
  select.prompt_length = 33;
  EXPECT_ERROR(reference::select(c.params, select), kValue, "select: prompt_length is 33, expected 0 ... 32");
  c.params.k.shape[2] = 16;
  EXPECT_ERROR(reference::select(c.params, select), kValue, "select: k has length 16, expected 32 (as q)");
}

}  // namespace
}  // namespace sparsed
