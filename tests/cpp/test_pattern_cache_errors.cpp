// Errors of the pattern cache, and that a call that throws leaves the state as it was.
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "core/pattern_cache.h"
#include "expect_error.h"
#include "fake_backend.h"

namespace sparsed {
namespace {

TEST_F(PatternCacheTest, AFailedSelectionMayBeRepeated) {
  SparseConfig config = sparse_config();
  config.schedule.skip = 0;
  PatternCache cache(config, 2, kPrompt);
  cache.begin_step(0, {});
  fake.fail_after = 0;
  EXPECT_ERROR(cache.attend(backend_, 0, params_of()), kMemory, "no room");
  EXPECT_FALSE(cache.has_pattern(0));
  EXPECT_ERROR(cache.density(0), kValue, "");
  cache.attend(backend_, 0, params_of(2));  // not even the shape was kept
  EXPECT_TRUE(cache.has_pattern(0));
}

TEST_F(PatternCacheTest, AFailedRefreshKeepsTheOldPattern) {
  SparseConfig config = sparse_config();
  config.schedule.skip = 0;
  config.schedule.refresh_every = true;
  PatternCache cache(config, 3, kPrompt);
  step(cache, 0);
  const BlockPattern before = cache.pattern(0);
  cache.begin_step(1, {});
  fake.fail_after = 1;  // the selection succeeds, the attention does not
  EXPECT_ERROR(cache.attend(backend_, 0, params_of()), kMemory, "no room");
  EXPECT_EQ(cache.pattern(0), before);
  cache.attend(backend_, 0, params_of());
  EXPECT_NE(cache.pattern(0), before);
}

TEST_F(PatternCacheTest, AFailedWindowIsNotKept) {
  PatternCache cache(WindowConfig{20, 0, 16}, 2, 0);
  cache.begin_step(0, {});
  fake.fail_after = 0;
  EXPECT_ERROR(cache.attend(backend_, 0, params_of(1, 4, 2, 160)), kMemory, "no room");
  EXPECT_TRUE(cache.pattern_layers().empty());
}

TEST_F(PatternCacheTest, AWrongStepChangesNothing) {
  PatternCache cache(sparse_config(), 4, kPrompt);
  step(cache, 0);
  step(cache, 1);
  EXPECT_ERROR(cache.begin_step(3, {}), kValue, "");
  EXPECT_EQ(cache.step(), 1);
  EXPECT_EQ(cache.phase(), Phase::kSelect);
  EXPECT_EQ(step(cache, 2), "sparse a");
}

TEST_F(PatternCacheTest, NamesWrongSteps) {
  PatternCache cache(sparse_config(), 2, kPrompt);
  EXPECT_ERROR(cache.begin_step(1, {}), kValue, "PatternCache.begin_step: step is 1, expected 0 (steps come in order)");
  EXPECT_ERROR(cache.begin_step(-1, {}), kValue, "PatternCache.begin_step: step is -1, expected 0");
  cache.begin_step(0, {});
  EXPECT_ERROR(cache.begin_step(3, {}), kValue, "PatternCache.begin_step: step is 3, expected 1 (steps come in order)");
  EXPECT_ERROR(cache.begin_step(0, {}), kValue, "PatternCache.begin_step: step is 0, expected 1 (steps come in order)");
  cache.begin_step(1, {});
  EXPECT_ERROR(cache.begin_step(2, {}), kValue, "PatternCache.begin_step: step is 2, expected 0 ... 1 (steps is 2)");
}

TEST_F(PatternCacheTest, NamesAWrongUnmaskedShare) {
  PatternCache cache(sparse_config(), std::nullopt, kPrompt);
  EXPECT_ERROR(cache.begin_step(0, {}), kValue, "PatternCache.begin_step: unmasked is missing, expected 0 ... 1");
  for (const double unmasked : {-.1, 1.1, std::nan("")}) {
    EXPECT_ERROR(cache.begin_step(0, unmasked), kValue, "PatternCache.begin_step: unmasked is ");
  }
  cache.begin_step(0, 0.);
}

TEST_F(PatternCacheTest, NamesCallsBeforeTheFirstStep) {
  PatternCache cache(sparse_config(), 2, kPrompt);
  EXPECT_ERROR(cache.attend(backend_, 0, params_of()), kValue, "PatternCache.attend: no step has begun");
  EXPECT_ERROR(cache.phase(), kValue, "PatternCache.phase: no step has begun");
  EXPECT_ERROR(cache.density(0), kValue, "PatternCache.density: layer is 0, expected one that has attended in step -1");
  EXPECT_TRUE(fake.calls.empty());
}

TEST_F(PatternCacheTest, NamesWrongLayers) {
  PatternCache cache(sparse_config(), 6, kPrompt);
  cache.begin_step(0, {});
  EXPECT_ERROR(cache.attend(backend_, -1, params_of()), kValue, "PatternCache.attend: layer is -1, expected >= 0");
  cache.attend(backend_, 3, params_of());
  EXPECT_ERROR(cache.attend(backend_, 3, params_of()), kValue,
               "PatternCache.attend: layer is 3 again in step 0, expected each layer once a step");
  EXPECT_ERROR(cache.pattern(3), kValue, "PatternCache.pattern: layer is 3, expected one that holds a pattern: []");
  EXPECT_ERROR(cache.density(4), kValue, "PatternCache.density: layer is 4, expected one that has attended in step 0");
  cache.begin_step(1, {});
  EXPECT_ERROR(cache.density(3), kValue, "PatternCache.density: layer is 3, expected one that has attended in step 1");
}

TEST_F(PatternCacheTest, NamesALayerThatNeverSelected) {
  SparseConfig config = sparse_config();
  config.schedule.skip = 0;
  PatternCache cache(config, 3, kPrompt);
  step(cache, 0, {}, 2);
  cache.begin_step(1, {});
  EXPECT_ERROR(cache.attend(backend_, 5, params_of()), kValue,
               "PatternCache.attend: layer 5 has no pattern in sparse step 1, expected it to attend in step 0, which "
               "selects");
  EXPECT_ERROR(cache.pattern(5), kValue, "PatternCache.pattern: layer is 5, expected one that holds a pattern: [0, 1]");
  cache.attend(backend_, 0, params_of());
}

struct ChangedShape {
  int64_t layer;
  AttentionParams params;
  const char* text;
};

class ChangedShapeTest : public PatternCacheTest, public testing::WithParamInterface<ChangedShape> {};

TEST_P(ChangedShapeTest, IsNamed) {
  PatternCache cache(sparse_config(), 6, kPrompt);
  step(cache, 0);
  cache.begin_step(1, {});
  fake.calls.clear();
  EXPECT_ERROR(cache.attend(backend_, GetParam().layer, GetParam().params), kValue,
               std::string("PatternCache.attend: ") + GetParam().text);
  EXPECT_TRUE(fake.calls.empty());
  cache.attend(backend_, GetParam().layer, params_of());
}

INSTANTIATE_TEST_SUITE_P(
    Cases, ChangedShapeTest,
    testing::Values(ChangedShape{0, params_of(2), "q has batch 2, expected 1 (as before)"},
                    ChangedShape{1, params_of(2), "q has batch 2, expected 1 (as before)"},
                    ChangedShape{0, params_of(1, 4, 2, 65), "q has length 65, expected 64 (as before)"},
                    ChangedShape{1, params_of(1, 4, 2, 65), "q has length 65, expected 64 (as before)"},
                    ChangedShape{0, params_of(1, 8), "q has heads 8, expected 4 (as layer 0 before)"},
                    ChangedShape{0, params_of(1, 4, 4), "k has heads 4, expected 2 (as layer 0 before)"},
                    ChangedShape{0, params_of(1, 4, 2, 64, 32), "q has head_dim 32, expected 16 (as layer 0 before)"},
                    ChangedShape{0, params_of(1, 4, 2, 39), "q has length 39, expected at least 40 (prompt_length)"},
                    ChangedShape{1,
                                 [] {
                                   AttentionParams params = params_of();
                                   params.k.shape[2] = params.v.shape[2] = 80;
                                   return params;
                                 }(),
                                 "k has length 80, expected 64 (as q)"}),
    [](const auto& test) { return "case" + std::to_string(test.index); });

TEST_F(PatternCacheTest, NamesWrongConfigurations) {
  const auto with = [](auto change) {
    SparseConfig config = sparse_config();
    change(config);
    PatternCache(config, 8, kPrompt);
  };
  using C = SparseConfig;
  EXPECT_ERROR(with([](C& c) { c.rho = 1.5; }), kValue, "PatternCache: rho is 1.5, expected 0 ... 1");
  EXPECT_ERROR(with([](C& c) { c.block_size = 100; }), kValue, "PatternCache: block_size is 100, expected 16, 32");
  EXPECT_ERROR(with([](C& c) { c.selection_scale = 0.f; }), kValue, "PatternCache: selection_scale is 0");
  EXPECT_ERROR(with([](C& c) { c.min_length = -1; }), kValue, "PatternCache: min_length is -1, expected >= 0");
  EXPECT_ERROR(with([](C& c) { c.schedule.skip = 2; }), kValue, "PatternCache: skip is 2, expected 0 ... 1");
  EXPECT_ERROR(with([](C& c) { c.schedule.refresh = {.1}; }), kValue, "PatternCache: refresh[0] is 0.1");
  EXPECT_ERROR(PatternCache(sparse_config(), 0, kPrompt), kValue, "PatternCache: steps is 0, expected 1 ...");
  EXPECT_ERROR(PatternCache(sparse_config(), 8, -1), kValue, "PatternCache: prompt_length is -1, expected >= 0");
  EXPECT_ERROR(PatternCache(WindowConfig{0, 0, 16}, 8, 0), kValue, "PatternCache: window is 0, expected >= 1");
  EXPECT_ERROR(PatternCache(WindowConfig{4, -1, 16}, 8, 0), kValue, "PatternCache: sinks is -1, expected >= 0");
  EXPECT_ERROR(PatternCache(WindowConfig{4, 0, 24}, 8, 0), kValue, "PatternCache: block_size is 24, expected 16, 32");
  EXPECT_ERROR(PatternCache(WindowConfig{4, 0, 16}, 0, 0), kValue, "PatternCache: steps is 0, expected 1 ...");
  EXPECT_ERROR(PatternCache(WindowConfig{4, 0, 16}, 8, -1), kValue, "PatternCache: prompt_length is -1");
  EXPECT_ERROR(PatternCache(GivenConfig{}, 0, 0), kValue, "PatternCache: steps is 0, expected 1 ...");
  EXPECT_ERROR(PatternCache(GivenConfig{}, 8, -1), kValue, "PatternCache: prompt_length is -1");
}

TEST_F(PatternCacheTest, GivenPatternsMustFit) {
  SparseConfig config = sparse_config();
  config.schedule.skip = 0;
  PatternCache cache(config, 3, kPrompt);
  step(cache, 0);
  const auto set = [&](int64_t layer, const PatternGeometry& geometry) {
    cache.set_pattern(layer, BlockPattern(geometry, "test"));
  };
  const std::string function = "PatternCache.set_pattern: ";
  EXPECT_ERROR(set(-1, {1, 4, 16, 64, 64, 0}), kValue, function + "layer is -1, expected >= 0");
  EXPECT_ERROR(set(0, {1, 5, 16, 64, 64, 0}), kValue,
               function + "pattern has heads 5, expected 4 (as the layer before)");
  EXPECT_ERROR(set(0, {2, 4, 16, 64, 64, 0}), kValue, function + "pattern has batch 2, expected 1 (as before)");
  EXPECT_ERROR(set(0, {1, 4, 16, 80, 80, 0}), kValue, function + "pattern has q_len 80, expected 64 (as before)");
  EXPECT_ERROR(set(0, {1, 4, 16, 64, 80, 0}), kValue, function + "pattern has kv_len 80, expected 64 (as q_len)");
  EXPECT_ERROR(set(0, {0, 4, 16, 64, 64, 0}), kValue, function + "pattern has batch 0, heads 4 and q_len 64");
  EXPECT_ERROR(PatternCache(config, 3, 65).set_pattern(0, BlockPattern({1, 4, 16, 64, 64, 0}, "test")), kValue,
               function + "pattern has kv_len 64, expected at least 65 (prompt_length)");
}

TEST_F(PatternCacheTest, OnlyFittingStatesAreRestored) {
  PatternCache cache(sparse_config(), 6, kPrompt);
  for (int64_t number = 0; number < 4; ++number) step(cache, number);
  const PatternCache::State good = cache.state();
  const auto restore = [&](const auto& change) {
    PatternCache::State state = good;
    change(state);
    cache.restore(state);
  };
  const std::string function = "PatternCache.restore: ";
  EXPECT_ERROR(restore([](auto& s) { s.step = 6; }), kValue, function + "step is 6, expected -1 ... 5");
  EXPECT_ERROR(restore([](auto& s) { s.due = 2; }), kValue, function + "due is 2, expected 0 ... 1");
  EXPECT_ERROR(restore([](auto& s) { s.served = -1; }), kValue, function + "served is -1, expected 0 ... 1");
  EXPECT_ERROR(restore([](auto& s) { s.select_step = 4; }), kValue, function + "select_step is 4, expected -1 ... 3");
  EXPECT_ERROR(restore([](auto& s) { s.batch = 0; }), kValue, function + "batch is 0, expected 1 ...");
  EXPECT_ERROR(restore([](auto& s) { s.length = kPrompt - 1; }), kValue, function + "length is 39, expected 40 ...");
  EXPECT_ERROR(restore([](auto& s) { s.layers[0].attended_step = 4; }), kValue,
               function + "layer 0's attended_step is 4, expected -1 ... 3");
  EXPECT_ERROR(
      restore([](auto& s) { s.layers[0].heads = 3; }), kValue,
      function + "layer 0 has a pattern of batch 1, heads 4, q_len 64 and kv_len 64, expected 1, 3, 64 and 64");
  EXPECT_EQ(cache.step(), 3);
  restore([](auto&) {});
  EXPECT_EQ(step(cache, 4), "sparse a");
}

}  // namespace
}  // namespace sparsed
