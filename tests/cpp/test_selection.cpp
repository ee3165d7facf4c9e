#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "core/selection.h"
#include "expect_error.h"
#include "reference.h"

namespace sparsed {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

SelectParams params(double rho, int64_t prompt_length, SelectionRule rule = SelectionRule::kPaper, bool isolate = true,
                    int block_size = 16) {
  SelectParams select;
  select.rho = rho;
  select.prompt_length = prompt_length;
  select.rule = rule;
  select.isolate = isolate;
  select.block_size = block_size;
  return select;
}

PatternBuilder empty_pattern(int64_t blocks, int64_t rows = 1) { return {{1, rows, 16, 16, blocks * 16, 0}, "test"}; }

// The kept blocks of one row as a string such as "1.1".
std::string kept(const SelectParams& select, const std::vector<float>& scores,
                 const std::vector<float>& generation = {}, std::vector<uint8_t> live = {}) {
  const int64_t blocks = static_cast<int64_t>(scores.size());
  if (live.empty()) live.assign(scores.size(), 1);
  PatternBuilder pattern = empty_pattern(blocks);
  select_row(select, blocks * 16, scores.data(), generation.empty() ? nullptr : generation.data(), live.data(),
             pattern.row(0));
  std::string text;
  for (int64_t block = 0; block < blocks; ++block) text += has_block(pattern.row(0), block) ? '1' : '.';
  return text;
}

struct KeepCount {
  int64_t candidates;
  double rho;
  int64_t kept;
};

// Python: min(n, max(1, int(n * rho) + 1)).
class KeepCountTest : public testing::TestWithParam<KeepCount> {};

TEST_P(KeepCountTest, CountsAsPythonDoes) {
  EXPECT_EQ(keep_count(GetParam().candidates, GetParam().rho), GetParam().kept);
}

INSTANTIATE_TEST_SUITE_P(Cases, KeepCountTest,
                         testing::Values(KeepCount{0, .3, 0}, KeepCount{1, .3, 1}, KeepCount{2, .5, 2},
                                         KeepCount{3, .3, 1}, KeepCount{10, .3, 4}, KeepCount{10, .1, 2},
                                         KeepCount{10, .7, 8}, KeepCount{100, .29, 29}, KeepCount{100, .57, 57},
                                         KeepCount{35, .2, 8}, KeepCount{512, .3, 154}, KeepCount{7, 1., 7},
                                         KeepCount{7, 0., 1}, KeepCount{50, .58, 29}, KeepCount{4096, .07, 287}),
                         [](const auto& test) { return "case" + std::to_string(test.index); });

TEST(FirstGenerationBlockTest, SplitsByHand) {
  EXPECT_EQ(first_generation_block(0, 0, 16), 0);
  EXPECT_EQ(first_generation_block(16, 16, 16), 0);
  EXPECT_EQ(first_generation_block(384, 288, 32), 9);
  EXPECT_EQ(first_generation_block(1024, 724, 128), 6);  // block 5 holds both kinds: prompt
  EXPECT_EQ(first_generation_block(320, 300, 32), 9);    // the last block holds both kinds: generation
  EXPECT_EQ(first_generation_block(300, 300, 128), 2);
  EXPECT_EQ(first_generation_block(300, 0, 128), 0);
}

TEST(FirstGenerationBlockTest, FollowsItsDefinitionEverywhere) {
  for (const int64_t b : {16, 32}) {
    for (int64_t length = 1; length <= 100; ++length) {
      for (int64_t prompt = 0; prompt <= length; ++prompt) {
        int64_t expected = (length + b - 1) / b - 1;
        for (int64_t i = expected; i >= 0; --i) {
          if (length - i * b <= length - prompt) expected = i;
        }
        ASSERT_EQ(first_generation_block(length, prompt, b), expected) << length << ' ' << prompt << ' ' << b;
      }
    }
  }
}

TEST(CheckSelectTest, TakesTheLimits) {
  for (const double rho : {0., .3, 1.}) check_select(params(rho, 0), 0, "select");
  for (const int64_t prompt : {0, 64}) check_select(params(.3, prompt), 64, "select");
}

TEST(CheckSelectTest, NamesWhatIsWrong) {
  EXPECT_ERROR(check_select(params(.3, 0, SelectionRule::kPaper, true, 48), 64, "select"), kValue,
               "select: block_size is 48, expected 16, 32, 64, 128 or 256");
  EXPECT_ERROR(check_select(params(.3, 65), 64, "select"), kValue,
               "select: prompt_length is 65, expected 0 ... 64 (kv_len)");
  EXPECT_ERROR(check_select(params(.3, -1), 64, "select"), kValue, "select: prompt_length is -1");
  for (const double rho : {-.1, 1.1, std::nan("")}) {
    EXPECT_ERROR(check_select(params(rho, 0), 64, "select"), kValue, "select: rho is ");
  }
  for (const float scale : {0.f, -1.f, kInf, kNan}) {
    SelectParams select = params(.3, 0);
    select.scale = scale;
    EXPECT_ERROR(check_select(select, 64, "select"), kValue, "select: selection_scale is ");
  }
}

TEST(SelectRowTest, PaperTakesPromptAndGenerationApart) {
  // 4 prompt blocks, k = int(4 * .5) + 1 = 3; 2 generation blocks, k = 2.
  EXPECT_EQ(kept(params(.5, 64), {4, 1, 3, 2, .1f, .2f}), "1.1111");
  // k = int(4 * .25) + 1 = 2 and int(2 * .25) + 1 = 1.
  EXPECT_EQ(kept(params(.25, 64), {4, 1, 3, 2, .1f, .2f}), "1.1..1");
}

TEST(SelectRowTest, ReferenceDropsColumnsAfterTheCommonTopK) {
  const auto rule = SelectionRule::kReference;
  // k = int(6 * .3) + 1 = 2 of all: blocks 0 and 5, of which 5 is dropped; generation by its own scores, k = 1.
  EXPECT_EQ(kept(params(.3, 64, rule), {4, 1, 3, 2, .1f, 9}, {0, 0, 0, 0, 2, 1}), "1...1.");
  // Nothing of the prompt is left.
  EXPECT_EQ(kept(params(.3, 64, rule), {4, 1, 3, 2, 8, 9}, {0, 0, 0, 0, 1, 2}), ".....1");
}

TEST(SelectRowTest, WithoutIsolationThereIsOneTopK) {
  for (const SelectionRule rule : {SelectionRule::kPaper, SelectionRule::kReference}) {
    EXPECT_EQ(kept(params(.3, 64, rule, false), {4, 1, 3, 2, .1f, 9}), "1....1");
    EXPECT_EQ(kept(params(.3, 64, rule, false), {1, 1, 1, 1, 8, 9}), "....11");
  }
}

TEST(SelectRowTest, AllPromptOrAllGeneration) {
  EXPECT_EQ(kept(params(0, 0), {1, 3, 2}), ".1.");   // all generation
  EXPECT_EQ(kept(params(0, 48), {1, 3, 2}), ".1.");  // all prompt
  // The published code takes the last block for generation in any case.
  EXPECT_EQ(kept(params(0, 48, SelectionRule::kReference), {1, 3, 2}, {0, 0, 1}), ".11");
  EXPECT_EQ(kept(params(1, 16), {1, 3, 2}), "111");
  EXPECT_EQ(kept(params(0, 16), {1}), "1");
}

TEST(SelectRowTest, TiesGoToTheLowerIndex) {
  EXPECT_EQ(kept(params(.4, 0), {1, 1, 1, 1, 1}), "111..");
  EXPECT_EQ(kept(params(.4, 0), {0, 1, 2, 1, 1}), ".111.");
  EXPECT_EQ(kept(params(0, 0), {0.f, -0.f}), "1.");
  EXPECT_EQ(kept(params(0, 0), {-0.f, 0.f}), "1.");
}

TEST(SelectRowTest, OrdersNegativeInfiniteAndNanScores) {
  EXPECT_EQ(kept(params(.2, 0), {kNan, -kInf, -1, -2, kInf}), "..1.1");
  EXPECT_EQ(kept(params(.6, 0), {kNan, -kInf, -1, -2, kInf}), ".1111");
  EXPECT_EQ(kept(params(0, 0), {kNan, -kInf}), ".1");
  EXPECT_EQ(kept(params(.4, 0), {kNan, -kNan, kNan, kNan, kNan}), "111..");
}

TEST(SelectRowTest, DeadBlocksAreNeitherKeptNorCounted) {
  // 3 live prompt blocks: k = int(3 * .5) + 1 = 2; 1 live generation block.
  EXPECT_EQ(kept(params(.5, 64), {9, 1, 3, 2, 9, .2f}, {}, {0, 1, 1, 1, 0, 1}), "..11.1");
  EXPECT_EQ(kept(params(.5, 64), {9, 1, 3, 2, 9, .2f}, {}, {0, 0, 0, 0, 0, 1}), ".....1");
  EXPECT_EQ(kept(params(1, 64), {9, 1, 3, 2, 9, .2f}, {}, {0, 0, 0, 0, 0, 0}), "......");
  // 4 live blocks: k = int(4 * .3) + 1 = 2 of all.
  EXPECT_EQ(
      kept(params(.3, 64, SelectionRule::kReference), {9, 1, 3, 2, 9, .2f}, {9, 9, 9, 9, 9, 1}, {0, 1, 1, 1, 0, 1}),
      "..11.1");
}

TEST(SelectRowTest, TouchesItsRowAlone) {
  PatternBuilder pattern = empty_pattern(3, 3);
  const std::vector<float> scores{1, 2, 3};
  const std::vector<uint8_t> live(3, 1);
  select_row(params(1, 0), 48, scores.data(), nullptr, live.data(), pattern.row(1));
  EXPECT_EQ(pattern.bits(), (std::vector<uint64_t>{0, 7, 0}));
}

// What the scores of a row look like.
enum class Scores { kNormal, kTied, kNarrow, kSpread, kConstant, kHostile };

struct Row {
  std::vector<float> scores, generation;
  std::vector<uint8_t> live;
};

Row random_row(Scores kind, size_t blocks, std::mt19937& generator) {
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform;
  const auto draw = [&]() -> float {
    switch (kind) {
      case Scores::kNormal: return normal(generator);
      case Scores::kTied: return std::floor(4 * uniform(generator));
      case Scores::kNarrow: return 1.f + 1e-6f * uniform(generator);
      case Scores::kSpread: return std::exp(30 * normal(generator));
      case Scores::kConstant: return .5f;
      default: break;
    }
    const float special[] = {kNan, -kNan, kInf, -kInf, 0.f, -0.f, 1e-40f, -1e-40f, 1.f, std::nextafter(1.f, 2.f)};
    return special[static_cast<size_t>(10 * uniform(generator)) % 10];
  };
  const float dead_share = uniform(generator) < .5f ? 0.f : uniform(generator);
  Row row;
  for (size_t i = 0; i < blocks; ++i) {
    row.scores.push_back(draw());
    row.generation.push_back(draw());
    row.live.push_back(uniform(generator) >= dead_share);
  }
  return row;
}

// The same selection by the oracle, which sorts.
std::vector<uint8_t> oracle(const SelectParams& select, int64_t kv_len, const Row& row) {
  const std::vector<double> scores(row.scores.begin(), row.scores.end());
  const std::vector<double> generation(row.generation.begin(), row.generation.end());
  return reference::select_row(select, kv_len, scores.data(), generation.data(), row.live.data());
}

class SelectRowRandomTest : public testing::TestWithParam<std::tuple<Scores, SelectionRule, bool>> {};

TEST_P(SelectRowRandomTest, EqualsTheOracle) {
  const auto [kind, rule, isolate] = GetParam();
  std::mt19937 generator(11);
  std::vector<int64_t> sizes{1, 2, 3, 63, 64, 65, 1000, 4096};
  for (int i = 0; i < 150; ++i) sizes.push_back(1 + static_cast<int64_t>(generator() % 200));
  for (const int64_t blocks : sizes) {
    const int block_size = 16 << (generator() % 5);
    const int64_t kv_len = blocks * block_size - static_cast<int64_t>(generator() % 16);
    const int64_t prompt = static_cast<int64_t>(generator() % static_cast<uint64_t>(kv_len + 1));
    const double rho = static_cast<double>(generator() % 101) / 100;
    const SelectParams select = params(rho, prompt, rule, isolate, block_size);
    const Row row = random_row(kind, static_cast<size_t>(blocks), generator);
    PatternBuilder builder = empty_pattern(blocks);
    select_row(select, kv_len, row.scores.data(), row.generation.data(), row.live.data(), builder.row(0));
    const BlockPattern pattern = std::move(builder).build();
    std::vector<uint8_t> found(static_cast<size_t>(blocks));
    pattern.to_mask(found.data());
    ASSERT_EQ(found, oracle(select, kv_len, row)) << blocks << " blocks, prompt " << prompt << ", rho " << rho;
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, SelectRowRandomTest,
                         testing::Combine(testing::Values(Scores::kNormal, Scores::kTied, Scores::kNarrow,
                                                          Scores::kSpread, Scores::kConstant, Scores::kHostile),
                                          testing::Values(SelectionRule::kPaper, SelectionRule::kReference),
                                          testing::Bool()),
                         [](const auto& test) { return "case" + std::to_string(test.index); });

// All rows of a pattern by the rule, every block live.
BlockPattern selected(const SelectParams& select, const PatternGeometry& geometry, std::mt19937& generator) {
  PatternBuilder pattern(geometry, "test");
  for (int64_t i = 0; i < pattern.rows(); ++i) {
    Row row = random_row(Scores::kNormal, static_cast<size_t>(geometry.kv_blocks()), generator);
    row.live.assign(row.live.size(), 1);
    select_row(select, geometry.kv_len, row.scores.data(), row.generation.data(), row.live.data(), pattern.row(i));
  }
  if (select.dense_generation) pattern.fill_generation();
  return std::move(pattern).build();
}

TEST(MostKeptTest, BoundsRowsAndDensity) {
  std::mt19937 generator(5);
  for (int number = 0; number < 300; ++number) {
    const int64_t length = 1 + static_cast<int64_t>(generator() % 2500);
    const SelectionRule rule = number % 3 ? SelectionRule::kPaper : SelectionRule::kReference;
    SelectParams select = params(static_cast<double>(generator() % 101) / 100,
                                 static_cast<int64_t>(generator() % static_cast<uint64_t>(length + 1)), rule,
                                 number % 4 != 0, 16 << number % 5);
    if (number % 10 == 0) select.prompt_length = length;
    select.dense_generation = number % 2 == 0;
    const PatternGeometry geometry{1, 2, select.block_size, length, length, select.prompt_length};
    const BlockPattern pattern = selected(select, geometry, generator);
    const std::string what = message("case ", number, ", prompt ", select.prompt_length, " of ", length);
    int64_t most = 0;
    for (int64_t row = 0; row < pattern.rows(); ++row) {
      int64_t kept = 0;
      for (int64_t block = 0; block < geometry.kv_blocks(); ++block) kept += pattern.test(row, block);
      most = std::max(most, kept);
    }
    EXPECT_LE(most, most_kept(select, geometry)) << what;
    EXPECT_LE(pattern.density(), max_density(select, geometry)) << what;
    if (rule == SelectionRule::kPaper) {  // each row keeps the same count: both bounds are reached
      EXPECT_EQ(most, most_kept(select, geometry)) << what;
      EXPECT_EQ(pattern.density(), max_density(select, geometry)) << what;
    }
  }
}

TEST(MostKeptTest, ALongPromptIsFarFromDense) {
  SelectParams select = params(.3, 16384 - 128, SelectionRule::kPaper, true, 128);
  select.dense_generation = true;
  const PatternGeometry geometry{1, 32, 128, 16384, 16384, select.prompt_length};
  EXPECT_EQ(most_kept(select, geometry), 128);
  EXPECT_DOUBLE_EQ(max_density(select, geometry), (127 * 40. + 128) / (128 * 128));
}

TEST(SelectRowTest, RowsMayBeSelectedByManyThreads) {
  constexpr int64_t kRows = 64, kBlocks = 130;
  std::mt19937 generator(3);
  std::vector<Row> rows;
  for (int64_t i = 0; i < kRows; ++i) rows.push_back(random_row(Scores::kNormal, kBlocks, generator));
  const SelectParams select = params(.3, 1000, SelectionRule::kReference);
  const auto select_rows = [&](PatternBuilder& pattern, int64_t first, int64_t step) {
    for (int64_t i = first; i < kRows; i += step) {
      const Row& row = rows[static_cast<size_t>(i)];
      select_row(select, kBlocks * 16, row.scores.data(), row.generation.data(), row.live.data(), pattern.row(i));
    }
  };
  PatternBuilder alone = empty_pattern(kBlocks, kRows), shared = empty_pattern(kBlocks, kRows);
  select_rows(alone, 0, 1);
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < 4; ++t) threads.emplace_back([&, t] { select_rows(shared, t, 4); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(shared.bits(), alone.bits());
}

}  // namespace
}  // namespace sparsed
