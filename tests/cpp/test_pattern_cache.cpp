// The pattern cache: each rule of its state machine, and its results over batches against the float64 reference.
// The file is long because every rule is one short test.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "core/pattern_cache.h"
#include "expect_error.h"
#include "fake_backend.h"
#include "random_array.h"
#include "reference.h"

namespace sparsed {
namespace {

TEST_F(PatternCacheTest, GoesFromDenseOverSelectToSparse) {
  PatternCache cache(sparse_config(), 6, kPrompt);
  EXPECT_EQ(cache.step(), -1);
  EXPECT_EQ(step(cache, 0, {}, 3), "dense AAA");
  EXPECT_EQ(step(cache, 1, {}, 3), "dense AAA");
  EXPECT_TRUE(cache.pattern_layers().empty());
  EXPECT_EQ(step(cache, 2, {}, 3), "select SSS");
  EXPECT_EQ(cache.density(1), 1.);
  EXPECT_EQ(cache.pattern_layers(), (std::vector<int64_t>{0, 1, 2}));
  for (int64_t number = 3; number < 6; ++number) {
    EXPECT_EQ(step(cache, number, {}, 3), "sparse aaa");
    EXPECT_EQ(cache.step(), number);
    EXPECT_EQ(cache.density(2), .5);
  }
}

TEST_F(PatternCacheTest, AnotherCacheContinuesFromItsState) {
  PatternCache cache(sparse_config(), 6, kPrompt);
  for (int64_t number = 0; number < 4; ++number) step(cache, number, {}, 3);
  PatternCache other(sparse_config(), 6, kPrompt);
  other.restore(cache.state());
  EXPECT_EQ(other.step(), 3);
  EXPECT_EQ(other.nbytes(), cache.nbytes());
  EXPECT_EQ(step(other, 4, {}, 3), "sparse aaa");
  EXPECT_EQ(cache.step(), 3);
  PatternCache::State wrong = cache.state();
  wrong.length += 16;
  EXPECT_THROW(other.restore(wrong), Error);
  EXPECT_EQ(other.step(), 4);
}

TEST_F(PatternCacheTest, ReferenceRuleSelectsLater) {
  SparseConfig config = sparse_config();
  config.schedule.rule = SelectionRule::kReference;
  PatternCache cache(config, 5, kPrompt);
  for (const char* expected : {"dense A", "dense A", "dense A", "select S", "sparse a"}) {
    EXPECT_EQ(step(cache, cache.step() + 1), expected);
  }
}

TEST_F(PatternCacheTest, HandsOnWhatTheSelectionNeeds) {
  SparseConfig config = sparse_config();
  config.schedule.rule = SelectionRule::kReference;
  config.schedule.skip = 0;
  config.rho = .7;
  config.isolate = false;
  PatternCache cache(config, 3, kPrompt);
  step(cache, 0);
  step(cache, 1);
  const Call& call = fake.calls.at(0);
  EXPECT_EQ(call.select.prompt_length, kPrompt);
  EXPECT_EQ(call.select.block_size, 16);
  EXPECT_EQ(call.select.rho, .7);
  EXPECT_EQ(call.select.rule, SelectionRule::kReference);
  EXPECT_FALSE(call.select.isolate);
  EXPECT_EQ(call.select.scale, .25f);  // the attention's
  EXPECT_EQ(call.params.scale, .25f);
}

TEST_F(PatternCacheTest, SelectionMayHaveItsOwnScale) {
  SparseConfig config = sparse_config();
  config.schedule.skip = 0;
  config.selection_scale = .5f;
  PatternCache cache(config, 3, kPrompt);
  step(cache, 0);
  EXPECT_EQ(fake.calls.at(0).select.scale, .5f);
  EXPECT_EQ(fake.calls.at(0).params.scale, .25f);
}

TEST_F(PatternCacheTest, EachLayerKeepsItsOwnPattern) {
  SparseConfig config = sparse_config();
  config.schedule.skip = 0;
  PatternCache cache(config, 3, kPrompt);
  step(cache, 0, {}, 2);
  const BlockPattern first = numbered_pattern(params_of(), fake.calls.at(0).select, 0);
  const BlockPattern second = numbered_pattern(params_of(), fake.calls.at(0).select, 1);
  EXPECT_EQ(cache.pattern(0), first);
  EXPECT_EQ(cache.pattern(1), second);
  EXPECT_EQ(cache.nbytes(), first.nbytes() + second.nbytes());
  step(cache, 1, {}, 2);
  EXPECT_EQ(fake.calls.at(0).pattern, first);
  EXPECT_EQ(fake.calls.at(1).pattern, second);
}

TEST_F(PatternCacheTest, PassesTheCallOn) {
  SparseConfig config = sparse_config();
  config.schedule.skip = 0;
  PatternCache cache(config, 2, kPrompt);
  const std::vector<uint8_t> first_mask(kLength, 1), second_mask(kLength, 1);
  AttentionParams params = params_of();
  params.key_mask = first_mask.data();
  step(cache, 0, {}, 1, params);
  EXPECT_FALSE(fake.calls.at(0).pattern);
  EXPECT_EQ(fake.calls.at(0).params.key_mask, first_mask.data());
  params.key_mask = second_mask.data();
  step(cache, 1, {}, 1, params);
  const AttentionParams& passed = fake.calls.at(0).params;
  EXPECT_EQ(passed.key_mask, second_mask.data());
  EXPECT_EQ(passed.q.data, params.q.data);
  EXPECT_EQ(passed.v.data, params.v.data);
  EXPECT_EQ(passed.out.data, params.out.data);
  EXPECT_EQ(passed.lse, params.lse);
  EXPECT_EQ(fake.calls.at(0).pattern, cache.pattern(0));
}

TEST_F(PatternCacheTest, LayersMayDifferInHeads) {
  SparseConfig config = sparse_config();
  config.schedule.skip = 0;
  PatternCache cache(config, 2, kPrompt);
  for (int64_t number = 0; number < 2; ++number) {
    cache.begin_step(number, {});
    cache.attend(backend_, 0, params_of(1, 4, 2));
    cache.attend(backend_, 1, params_of(1, 6, 1, kLength, 32));
  }
  EXPECT_EQ(cache.pattern(1).geometry().heads, 6);
}

TEST_F(PatternCacheTest, LayersMayComeInAnyOrderWithGaps) {
  SparseConfig config = sparse_config();
  config.schedule.skip = 0;
  PatternCache cache(config, 2, kPrompt);
  const int64_t far = std::numeric_limits<int64_t>::max();
  cache.begin_step(0, {});
  for (const int64_t layer : {far, int64_t{7}, int64_t{0}}) cache.attend(backend_, layer, params_of());
  EXPECT_EQ(cache.pattern_layers(), (std::vector<int64_t>{0, 7, far}));
}

TEST_F(PatternCacheTest, NearlyFullPatternsAttendDensely) {
  SparseConfig config = sparse_config();
  config.schedule.skip = 0;
  fake.share = 1;
  PatternCache cache(config, 2, kPrompt);
  step(cache, 0);
  EXPECT_EQ(step(cache, 1), "sparse A");
  EXPECT_EQ(cache.density(0), 1.);
  EXPECT_TRUE(cache.has_pattern(0));
}

// Rows of a batch do not decide together: less than all blocks is sparse.
TEST_F(PatternCacheTest, OnlyAPatternOfAllBlocksIsDense) {
  SparseConfig config = sparse_config();
  config.schedule.skip = 0;
  for (const auto& [share, expected] : {std::pair{.99, "sparse a"}, {1., "sparse A"}}) {
    fake.share = share;
    PatternCache cache(config, 2, 0);
    const AttentionParams params = params_of(1, 4, 2, 1600);  // 100 blocks
    step(cache, 0, {}, 1, params);
    EXPECT_EQ(step(cache, 1, {}, 1, params), expected);
    EXPECT_EQ(cache.density(0), share);
  }
}

TEST_F(PatternCacheTest, ShortSequencesStayDense) {
  SparseConfig config = sparse_config();
  config.schedule.skip = 0;
  config.min_length = kLength + 1;
  PatternCache cache(config, 3, kPrompt);
  cache.begin_step(0, {});
  EXPECT_EQ(cache.phase(), Phase::kSelect);  // nobody knows the length yet
  cache.attend(backend_, 0, params_of());
  EXPECT_EQ(cache.phase(), Phase::kDense);
  for (int64_t number = 1; number < 3; ++number) EXPECT_EQ(step(cache, number, {}, 2), "dense AA");
  EXPECT_FALSE(cache.has_pattern(0));
  EXPECT_EQ(cache.density(0), 1.);
}

TEST_F(PatternCacheTest, SequencesOfMinLengthAreSparse) {
  SparseConfig config = sparse_config();
  config.schedule.skip = 0;
  config.min_length = kLength;
  PatternCache cache(config, 2, kPrompt);
  EXPECT_EQ(step(cache, 0), "select S");
  EXPECT_EQ(step(cache, 1), "sparse a");
}

TEST_F(PatternCacheTest, ALateScheduleStaysDense) {
  SparseConfig config = sparse_config();
  config.schedule.rule = SelectionRule::kReference;
  config.schedule.skip = 1;
  PatternCache cache(config, 3, kPrompt);
  for (int64_t number = 0; number < 3; ++number) EXPECT_EQ(step(cache, number), "dense A");
}

TEST_F(PatternCacheTest, RefreshReplacesThePattern) {
  SparseConfig config = sparse_config();
  config.schedule.skip = .2;
  config.schedule.refresh = {.6};
  PatternCache cache(config, 10, kPrompt);
  std::string trace;
  for (int64_t number = 0; number < 10; ++number) trace += step(cache, number).back();
  EXPECT_EQ(trace, "ASaaaSaaaa");
  SelectParams select;
  select.block_size = 16;
  select.prompt_length = kPrompt;
  EXPECT_EQ(cache.pattern(0), numbered_pattern(params_of(), select, 1));
}

TEST_F(PatternCacheTest, RefreshEveryAttendsWithThePatternJustSelected) {
  SparseConfig config = sparse_config();
  config.schedule.skip = .5;
  config.schedule.refresh_every = true;
  PatternCache cache(config, 6, kPrompt);
  EXPECT_EQ(step(cache, 0), "dense A");
  EXPECT_EQ(step(cache, 1), "dense A");
  EXPECT_EQ(step(cache, 2), "select S");
  EXPECT_EQ(cache.density(0), 1.);
  for (int64_t number = 3; number < 6; ++number) {
    EXPECT_EQ(step(cache, number), "select sa");
    const Call& selection = fake.calls.at(0);
    EXPECT_EQ(selection.params.out.data, nullptr);
    EXPECT_EQ(selection.params.v.data, nullptr);
    EXPECT_EQ(selection.params.lse, nullptr);
    EXPECT_EQ(fake.calls.at(1).params.out.data, params_of().out.data);
    EXPECT_EQ(fake.calls.at(1).params.lse, params_of().lse);
    EXPECT_EQ(fake.calls.at(1).pattern, cache.pattern(0));
    EXPECT_EQ(cache.density(0), .5);
  }
}

TEST_F(PatternCacheTest, RefreshEveryStaysSparseWhereTheUnmaskedShareShrinks) {
  SparseConfig config = sparse_config();
  config.schedule.skip = .2;
  config.schedule.refresh_every = true;
  PatternCache cache(config, std::nullopt, kPrompt);
  EXPECT_EQ(step(cache, 0, .3), "select S");
  EXPECT_EQ(step(cache, 1, .1), "select sa");
}

TEST_F(PatternCacheTest, RefreshEveryKeepsNearlyFullPatternsDense) {
  SparseConfig config = sparse_config();
  config.schedule.skip = 0;
  config.schedule.refresh_every = true;
  fake.share = 1;
  PatternCache cache(config, 2, kPrompt);
  EXPECT_EQ(step(cache, 0), "select S");
  EXPECT_EQ(step(cache, 1), "select sA");
  EXPECT_EQ(cache.density(0), 1.);
}

TEST_F(PatternCacheTest, UnknownStepsFollowTheUnmaskedShare) {
  SparseConfig config = sparse_config();
  config.schedule.skip = .2;
  config.schedule.refresh = {.5, .6};
  PatternCache cache(config, std::nullopt, kPrompt);
  std::string trace;
  for (const double unmasked : {0., .1, .2, .3, .7, .8, 1.}) trace += step(cache, cache.step() + 1, unmasked).back();
  EXPECT_EQ(trace, "AASaSaa");
}

TEST_F(PatternCacheTest, UnknownStepsSelectAtOnceWithoutSkip) {
  SparseConfig config = sparse_config();
  config.schedule.skip = 0;
  PatternCache cache(config, std::nullopt, kPrompt);
  EXPECT_EQ(step(cache, 0, 0.), "select S");
  EXPECT_EQ(step(cache, 1, 0.), "sparse a");
}

TEST_F(PatternCacheTest, KnownStepsDoNotReadTheUnmaskedShare) {
  PatternCache cache(sparse_config(), 6, kPrompt);
  EXPECT_EQ(step(cache, 0, 1.), "dense A");
  EXPECT_EQ(step(cache, 1, std::nan("")), "dense A");
}

TEST_F(PatternCacheTest, WindowsAreSparseInEveryStep) {
  PatternCache cache(WindowConfig{20, 4, 16}, 3, kPrompt);
  for (int64_t number = 0; number < 3; ++number) {
    EXPECT_EQ(step(cache, number, {}, 2, params_of(1, 4, 2, 160)), "sparse aa");
    const BlockPattern expected = BlockPattern::streaming({1, 4, 16, 160, 160, kPrompt}, 20, 4);
    EXPECT_EQ(cache.pattern(1), expected);
    EXPECT_EQ(fake.calls.at(1).pattern, expected);
    EXPECT_DOUBLE_EQ(cache.density(0), expected.density());
  }
}

TEST_F(PatternCacheTest, WindowsMayLeaveTheGenerationDense) {
  PatternCache cache(WindowConfig{20, 4, 16, true}, 1, kPrompt);
  EXPECT_EQ(step(cache, 0, {}, 2, params_of(1, 4, 2, 160)), "sparse aa");
  PatternBuilder expected({1, 4, 16, 160, 160, kPrompt}, "test");
  const BlockPattern window = BlockPattern::streaming(expected.geometry(), 20, 4);
  for (int64_t row = 0; row < expected.rows(); ++row) {
    for (int64_t block = 0; block < 10; ++block) {
      if (row % 10 >= kPrompt / 16 || window.test(row, block)) expected.set(row, block);
    }
  }
  EXPECT_EQ(cache.pattern(0), std::move(expected).build());
  EXPECT_TRUE(cache.pattern(0).is(cache.pattern(1)));
  EXPECT_GT(cache.density(0), .7);
  EXPECT_LT(cache.density(0), 1);
}

TEST_F(PatternCacheTest, SelectionsAreAskedForADenseGeneration) {
  for (const bool dense : {false, true}) {
    SparseConfig config = sparse_config();
    config.schedule.skip = 0;
    config.dense_generation = dense;
    PatternCache cache(config, 2, kPrompt);
    EXPECT_EQ(step(cache, 0), "select S");
    EXPECT_EQ(fake.calls.at(0).select.dense_generation, dense);
  }
}

TEST_F(PatternCacheTest, WindowsNeedNoUnmaskedShare) {
  PatternCache cache(WindowConfig{20, 4, 16}, std::nullopt, kPrompt);
  EXPECT_EQ(step(cache, 0, {}, 1, params_of(1, 4, 2, 160)), "sparse a");
}

TEST_F(PatternCacheTest, LayersShareOneWindow) {
  PatternCache cache(WindowConfig{20, 4, 16}, 3, 0);
  cache.begin_step(0, {});
  EXPECT_EQ(cache.phase(), Phase::kSparse);
  cache.attend(backend_, 0, params_of(1, 4, 2, 160));
  cache.attend(backend_, 1, params_of(1, 6, 2, 160));
  cache.attend(backend_, 2, params_of(1, 4, 4, 160));
  EXPECT_TRUE(cache.pattern(0).is(cache.pattern(2)));
  EXPECT_FALSE(cache.pattern(0).is(cache.pattern(1)));
  EXPECT_EQ(cache.nbytes(), cache.pattern(0).nbytes() + cache.pattern(1).nbytes());
}

TEST_F(PatternCacheTest, WideWindowsAttendDensely) {
  PatternCache cache(WindowConfig{1000, 0, 16}, 3, 0);
  EXPECT_EQ(step(cache, 0), "sparse A");
  EXPECT_EQ(cache.density(0), 1.);
}

TEST_F(PatternCacheTest, DensityIsTheMeanOverTheLayersOfTheStep) {
  SparseConfig config = sparse_config();
  config.schedule.skip = 0;
  PatternCache cache(config, 3, kPrompt);
  cache.begin_step(0, {});
  EXPECT_ERROR(cache.density(), kValue, "PatternCache.density: no layer has attended in step 0, expected at least one");
  for (const double share : {.25, .75}) {
    fake.share = share;
    cache.attend(backend_, share == .25 ? 0 : 1, params_of());
  }
  EXPECT_EQ(cache.density(), 1.);
  cache.begin_step(1, {});
  cache.attend(backend_, 1, params_of());
  EXPECT_EQ(cache.density(), .75);
  cache.attend(backend_, 0, params_of());
  EXPECT_EQ(cache.density(), .5);
}

TEST_F(PatternCacheTest, APatternMayBeGiven) {
  const BlockPattern given = BlockPattern::streaming({1, 4, 16, kLength, kLength, kPrompt}, 20, 4);
  SparseConfig config = sparse_config();
  config.schedule.skip = 0;
  PatternCache cache(config, 4, kPrompt);
  step(cache, 0, {}, 2);
  step(cache, 1, {}, 2);
  cache.set_pattern(1, given);
  EXPECT_EQ(cache.density(1), .5);  // of what the step has computed
  EXPECT_TRUE(cache.pattern(1).is(given));
  EXPECT_EQ(step(cache, 2, {}, 2), "sparse aa");
  EXPECT_NE(fake.calls.at(0).pattern, given);
  EXPECT_EQ(fake.calls.at(1).pattern, given);
  EXPECT_EQ(cache.density(1), given.density());
}

TEST_F(PatternCacheTest, AGivenPatternStandsInForASelection) {
  const BlockPattern given = BlockPattern::streaming({1, 4, 16, kLength, kLength, kPrompt}, 20, 4);
  SparseConfig config = sparse_config();
  PatternCache cache(config, 6, kPrompt);
  for (int64_t number = 0; number < 3; ++number) cache.begin_step(number, {});  // the selection has passed
  cache.set_pattern(5, given);
  cache.begin_step(3, {});
  EXPECT_ERROR(cache.attend(backend_, 5, params_of(1, 6)), kValue, "q has heads 6, expected 4 (as layer 5 before)");
  cache.attend(backend_, 5, params_of());
  EXPECT_EQ(fake.calls.at(0).pattern, given);
  cache.begin_step(4, {});
  EXPECT_ERROR(cache.attend(backend_, 5, params_of(1, 4, 1)), kValue, "k has heads 1, expected 2 (as layer 5 before)");

  PatternCache windows(WindowConfig{1000, 0, 16}, 2, kPrompt);
  windows.set_pattern(0, given);
  EXPECT_EQ(step(windows, 0), "sparse a");
}

TEST_F(PatternCacheTest, GivenPatternsNeedNoSelection) {
  const PatternGeometry geometry{1, 4, 16, kLength, kLength, kPrompt};
  const BlockPattern every = BlockPattern::streaming(geometry, 20, 4), own = BlockPattern::streaming(geometry, 20, 0);
  PatternCache cache(GivenConfig{every}, std::nullopt, kPrompt);
  cache.set_pattern(1, own);
  for (int64_t number = 0; number < 3; ++number) {  // nobody says how much is unmasked
    EXPECT_EQ(step(cache, number, {}, 3), "sparse aaa");
    EXPECT_EQ(fake.calls.at(0).pattern, every);
    EXPECT_EQ(fake.calls.at(1).pattern, own);
    EXPECT_EQ(cache.density(1), own.density());
  }
  PatternCache other(GivenConfig{}, 2, kPrompt);
  other.set_pattern(0, own);
  other.begin_step(0, {});
  other.attend(backend_, 0, params_of());
  EXPECT_ERROR(other.attend(backend_, 1, params_of()), kValue,
               "PatternCache.attend: layer 1 has no pattern, expected set_pattern to give it one");
  const auto attend = [&](const AttentionParams& params) {
    PatternCache fresh(GivenConfig{every}, 2, kPrompt);
    fresh.begin_step(0, {});
    fresh.attend(backend_, 0, params);
  };
  EXPECT_ERROR(attend(params_of(2)), kValue, "q has batch 2, expected 1 (as in the pattern)");
  EXPECT_ERROR(attend(params_of(1, 6)), kValue, "q has heads 6, expected 4 (as in the pattern)");
  EXPECT_ERROR(attend(params_of(1, 4, 2, 80)), kValue, "q has length 80, expected 64 (as in the pattern)");
  other.reset();
  EXPECT_TRUE(other.pattern_layers().empty());
}

TEST_F(PatternCacheTest, TheCallerMaySelect) {
  const PatternGeometry geometry{1, 4, 16, kLength, kLength, kPrompt};
  const BlockPattern chosen = BlockPattern::streaming(geometry, 20, 4);
  SparseConfig config = sparse_config();
  config.schedule.rule = SelectionRule::kCaller;
  config.schedule.skip = 0;
  config.rho = 1;  // the caller's rule does not know it
  PatternCache cache(config, 4, kPrompt);
  float scores = 0;
  int choices = 0;
  const CallerSelection by_caller{&scores, [&] {
                                    ++choices;
                                    return chosen;
                                  }};
  cache.begin_step(0, {});
  EXPECT_ERROR(cache.attend(backend_, 0, params_of()), kValue, "PatternCache.attend: the selection is missing");
  const CallerSelection wrong{&scores, [&] { return BlockPattern(PatternGeometry{1, 4, 32, 64, 64, 40}, "test"); }};
  EXPECT_ERROR(cache.attend(backend_, 0, params_of(), &wrong), kValue, "the chosen pattern has another geometry");
  EXPECT_FALSE(cache.has_pattern(0));
  fake.calls.clear();
  cache.attend(backend_, 0, params_of(), &by_caller);
  EXPECT_EQ(calls(), "S");
  EXPECT_EQ(fake.calls.at(0).select.scores, &scores);
  EXPECT_EQ(fake.calls.at(0).select.rule, SelectionRule::kCaller);
  EXPECT_EQ(cache.density(0), 1.);
  EXPECT_TRUE(cache.pattern(0).is(chosen));
  EXPECT_EQ(step(cache, 1), "sparse a");
  EXPECT_EQ(fake.calls.at(0).pattern, chosen);
  EXPECT_EQ(choices, 1);

  config.schedule.refresh_every = true;  // each later step attends with the pattern that the caller has just chosen
  PatternCache every(config, 4, kPrompt);
  for (int64_t number = 0; number < 2; ++number) {
    fake.calls.clear();
    every.begin_step(number, {});
    every.attend(backend_, 0, params_of(), &by_caller);
    EXPECT_EQ(calls(), number == 0 ? "S" : "sa");
  }
  EXPECT_EQ(choices, 3);
}

TEST_F(PatternCacheTest, RestoredCachesGoOnAlike) {
  SparseConfig config = sparse_config();
  config.schedule.skip = .2;
  config.schedule.refresh = {.5};
  for (const bool known : {true, false}) {
    const std::optional<int64_t> steps = known ? std::optional<int64_t>(10) : std::nullopt;
    PatternCache cache(config, steps, kPrompt);
    for (int64_t number = 0; number < 10; ++number) {
      step(cache, number, .1 * static_cast<double>(number), 2);
      PatternCache other(config, steps, kPrompt);
      other.restore(cache.state());
      EXPECT_EQ(other.step(), number);
      EXPECT_EQ(other.phase(), cache.phase());
      EXPECT_EQ(other.density(), cache.density());
      EXPECT_EQ(other.nbytes(), cache.nbytes());
      EXPECT_ERROR(other.attend(backend_, 0, params_of()), kValue, "expected each layer once a step");
      cache = other;
    }
    EXPECT_EQ(fake.selections, known ? 4 : 8);
  }
}

TEST_F(PatternCacheTest, ResetBeginsAnew) {
  PatternCache cache(sparse_config(), 4, kPrompt);
  for (int64_t number = 0; number < 3; ++number) step(cache, number);
  cache.reset();
  EXPECT_EQ(cache.step(), -1);
  EXPECT_FALSE(cache.has_pattern(0));
  EXPECT_EQ(cache.nbytes(), 0u);
  const AttentionParams other = params_of(2, 2, 1, 2 * kLength, 32);
  std::string trace;
  for (int64_t number = 0; number < 4; ++number) trace += step(cache, number, {}, 1, other).back();
  EXPECT_EQ(trace, "ASaa");
  EXPECT_EQ(cache.pattern(0).geometry().batch, 2);
}

std::vector<double> oracle_out(const AttentionParams& params, const BlockPattern* pattern) {
  std::vector<double> out(static_cast<size_t>(params.batch() * params.heads() * params.q_len() * params.head_dim()));
  reference::attention(params, pattern, out.data(), nullptr);
  return out;
}

Backend oracle_backend() {
  Backend backend{};
  backend.attention = [](const AttentionParams& params, const BlockPattern* pattern) {
    const std::vector<double> out = oracle_out(params, pattern);
    for (size_t i = 0; i < out.size(); ++i) static_cast<float*>(params.out.data)[i] = static_cast<float>(out[i]);
  };
  backend.attention_and_select = [](const AttentionParams& params, const SelectParams& select) {
    if (params.out.data) oracle_backend().attention(params, nullptr);
    return reference::select(params, select);
  };
  return backend;
}

TEST(PatternCacheOracleTest, BatchRowsKeepTheirOwnPatterns) {
  const Shape4 shape{2, 2, kLength, 16};
  SparseConfig config = sparse_config();
  config.schedule.skip = 0;
  config.rho = .3;
  PatternCache cache(config, 2, kPrompt);
  std::vector<float> out(static_cast<size_t>(2 * 2 * kLength * 16));
  AttentionParams params;
  params.out = {out.data(), DType::kFloat32, shape, contiguous_strides(shape)};
  BlockPattern selected;
  for (unsigned number = 0; number < 2; ++number) {
    const RandomArray q(shape, DType::kFloat32, 10 + number), k(shape, DType::kFloat32, 20 + number),
        v(shape, DType::kFloat32, 30 + number);
    params.q = q.view, params.k = k.view, params.v = v.view;
    cache.begin_step(number, {});
    cache.attend(oracle_backend(), 0, params);
    if (number == 0) {
      SelectParams select;
      select.prompt_length = kPrompt;
      select.block_size = 16;
      select.rho = .3;
      selected = reference::select(params, select);
    }
    const std::vector<double> wanted = oracle_out(params, number == 1 ? &selected : nullptr);
    for (size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], static_cast<float>(wanted[i])) << number << ' ' << i;
  }
  EXPECT_EQ(cache.pattern(0), selected);
  const std::vector<uint8_t> mask = [&] {
    std::vector<uint8_t> bits(static_cast<size_t>(selected.rows() * selected.geometry().kv_blocks()));
    selected.to_mask(bits.data());
    return bits;
  }();
  const auto middle = mask.begin() + static_cast<std::ptrdiff_t>(mask.size() / 2);
  EXPECT_FALSE(std::equal(mask.begin(), middle, middle));  // the two rows differ
}

}  // namespace
}  // namespace sparsed
