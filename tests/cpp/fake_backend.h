// A backend that records what it is asked for, and the fixture of the pattern cache's tests.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/pattern_cache.h"
#include "support/error.h"

namespace sparsed {

constexpr int64_t kLength = 64, kPrompt = 40;

// What a backend was asked for.
struct Call {
  std::string kind;  // "attention" or "select"
  AttentionParams params;
  SelectParams select;
  std::optional<BlockPattern> pattern;
};

// A backend that computes nothing: it records, selects what the test wants, and fails when told to.
struct Fake {
  std::vector<Call> calls;
  double share = .5;  // of the blocks that a selection keeps
  int selections = 0;
  int fail_after = -1;  // calls that still succeed

  Call& record(const char* kind, const AttentionParams& params) {
    if (fail_after-- == 0) fail(ErrorKind::kMemory, "no room");
    calls.push_back({kind, params, {}, std::nullopt});
    return calls.back();
  }
};
inline Fake fake;

// Pattern number n selects the same share of blocks, begun at another one.
inline BlockPattern numbered_pattern(const AttentionParams& params, const SelectParams& select, int number) {
  PatternBuilder pattern(
      {params.batch(), params.heads(), select.block_size, params.q_len(), params.kv_len(), select.prompt_length},
      "fake");
  const int64_t blocks = pattern.geometry().kv_blocks();
  for (int64_t row = 0; row < pattern.rows(); ++row) {
    for (int64_t i = 0; i < std::lround(fake.share * static_cast<double>(blocks)); ++i) {
      pattern.set(row, (row + number + i) % blocks);
    }
  }
  return std::move(pattern).build();
}

inline Backend fake_backend() {
  Backend backend{};
  backend.name = "fake";
  backend.attention = [](const AttentionParams& params, const BlockPattern* pattern) {
    Call& call = fake.record("attention", params);
    if (pattern) call.pattern = *pattern;
  };
  backend.attention_and_select = [](const AttentionParams& params, const SelectParams& select) {
    fake.record("select", params).select = select;
    return numbered_pattern(params, select, fake.selections++);
  };
  return backend;
}

// q, k, v, out of one call; the fake reads none of it.
inline AttentionParams params_of(int64_t batch = 1, int64_t heads = 4, int64_t kv_heads = 2, int64_t length = kLength,
                                 int64_t head_dim = 16) {
  static float storage;
  AttentionParams params;
  for (auto [view, h] :
       {std::pair{&params.q, heads}, {&params.k, kv_heads}, {&params.v, kv_heads}, {&params.out, heads}}) {
    view->data = &storage;
    view->shape = {batch, h, length, head_dim};
    view->stride = contiguous_strides(view->shape);
  }
  params.lse = &storage;
  params.scale = .25f;
  return params;
}

inline SparseConfig sparse_config() {
  SparseConfig config;
  config.schedule.skip = .5;
  config.block_size = 16;
  config.min_length = 0;
  return config;
}

class PatternCacheTest : public testing::Test {
 protected:
  PatternCacheTest() { fake = Fake{}; }

  // One step of all layers: its phase at the end and the calls, "A" dense attention,
  // "a" sparse attention, "S" selection with output, "s" selection alone.
  std::string step(PatternCache& cache, int64_t number, std::optional<double> unmasked = std::nullopt, int layers = 1,
                   const AttentionParams& params = params_of()) {
    fake.calls.clear();
    cache.begin_step(number, unmasked);
    for (int layer = 0; layer < layers; ++layer) cache.attend(backend_, layer, params);
    return std::string(phase_name(cache.phase())) + " " + calls();
  }

  static std::string calls() {
    std::string text;
    for (const Call& call : fake.calls) {
      text += call.kind == "select" ? (call.params.out.data ? 'S' : 's') : (call.pattern ? 'a' : 'A');
    }
    return text;
  }

  const Backend backend_ = fake_backend();
};

}  // namespace sparsed
