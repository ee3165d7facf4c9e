// Every instruction set against the float64 reference: dense, block-sparse and fused selection.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <utility>

#include "attention_cases.h"
#include "core/selection.h"
#include "cpu/attention.h"
#include "cpu/parallel.h"
#include "cpu_targets.h"
#include "random_array.h"
#include "reference.h"
#include "support/error.h"

namespace sparsed {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};

class CpuAttention : public testing::TestWithParam<cpu::Target> {
 protected:
  const cpu::AttentionKernels& kernels() const { return GetParam().kernels->attention; }
  std::vector<DType> dtypes() const {
    return GetParam().bf16_only ? std::vector<DType>{DType::kBFloat16}
                                : std::vector<DType>(std::begin(kDTypes), std::end(kDTypes));
  }
  // Of a block's score: its probabilities are rounded where they are bfloat16.
  double score_error() const { return GetParam().bf16_only ? 4.5e-3 : 2e-5; }
};

TEST_P(CpuAttention, DenseMatchesReference) {
  for (DType dtype : dtypes()) {
    for (const Case& c : random_cases(16)) {
      Call call(c, dtype);
      cpu::attention(kernels(), call.params, nullptr);
      expect_matches_reference(call, nullptr, message(dtype_name(dtype), " seed ", c.seed));
    }
  }
}

TEST_P(CpuAttention, SparseMatchesReference) {
  for (DType dtype : dtypes()) {
    for (int block_size : {16, 32, 64, 128, 256}) {
      for (const Case& c : random_cases(6)) {
        Call call(c, dtype);
        const BlockPattern pattern = random_pattern(c, block_size, 35);
        cpu::attention(kernels(), call.params, &pattern);
        expect_matches_reference(call, &pattern, message(dtype_name(dtype), " seed ", c.seed, " block ", block_size));
      }
    }
  }
}

TEST_P(CpuAttention, QueryBlocksAndKeyBlocksMayDiffer) {
  for (DType dtype : dtypes()) {
    for (const BlockSize block : {BlockSize{16, 128}, {256, 32}, {64, 16}, {32, 256}}) {
      for (const Case& c : random_cases(4)) {
        Call call(c, dtype);
        const BlockPattern pattern = random_pattern(c, block, 35);
        cpu::attention(kernels(), call.params, &pattern);
        expect_matches_reference(call, &pattern,
                                 message(dtype_name(dtype), " seed ", c.seed, " blocks ", block.q, " x ", block.kv));
      }
    }
  }
}

// Heads that share keys are computed together if they have few queries. Each has the same bits when it is alone.
TEST_P(CpuAttention, HeadsThatShareKeysHaveTheBitsOfHeadsThatDoNot) {
  for (DType dtype : dtypes()) {
    for (int64_t q_len : {1, 3, 20, 31, 32}) {
      for (int64_t group : {2, 7}) {
        Call call({2, 2, group, q_len, 300, 40, true, true, 25}, dtype);
        cpu::attention(kernels(), call.params, nullptr);
        const std::string what = message(dtype_name(dtype), " queries ", q_len, " group ", group);
        expect_matches_reference(call, nullptr, what);
        const Call shared = call;
        for (int64_t h = 0; h < 2 * group; ++h) {
          AttentionParams alone = call.params;
          alone.lse = nullptr;
          for (auto [view, head] :
               {std::pair{&alone.q, h}, {&alone.out, h}, {&alone.k, h / group}, {&alone.v, h / group}}) {
            view->data = view->row(0, head, 0);
            view->shape[1] = 1;
          }
          cpu::attention(kernels(), alone, nullptr);
        }
        EXPECT_EQ(call.out.storage, shared.out.storage) << what;
      }
    }
  }
}

TEST_P(CpuAttention, NoKeysGiveZero) {
  for (DType dtype : dtypes()) {
    Call call({2, 1, 2, 5, 0, 16, false, true, 24}, dtype);
    cpu::attention(kernels(), call.params, nullptr);
    expect_matches_reference(call, nullptr, dtype_name(dtype));
    const BlockPattern pattern({2, 2, 16, 5, 0, 0}, "test");
    cpu::attention(kernels(), call.params, &pattern);
    expect_matches_reference(call, nullptr, dtype_name(dtype));
  }
}

TEST_P(CpuAttention, EmptyRowsGiveZero) {
  const Case c{1, 1, 2, 70, 130, 64, false, false, 11};
  for (DType dtype : dtypes()) {
    Call call(c, dtype);
    const BlockPattern pattern = random_pattern(c, 32, 0);
    cpu::attention(kernels(), call.params, &pattern);
    for (float lse : call.lse) EXPECT_EQ(lse, -INFINITY);
    for (int64_t i = 0; i < 2 * 70 * 64; ++i) EXPECT_EQ(load_float(call.out.view.data, dtype, i), 0.f);
  }
}

TEST_P(CpuAttention, FullPatternHasTheBitsOfDense) {
  const Case c{1, 1, 2, 300, 300, 64, true, false, 12};
  for (DType dtype : dtypes()) {
    Call dense(c, dtype), sparse(c, dtype);
    const BlockPattern pattern = random_pattern(c, 64, 100);
    cpu::attention(kernels(), dense.params, nullptr);
    cpu::attention(kernels(), sparse.params, &pattern);
    EXPECT_EQ(dense.out.storage, sparse.out.storage);
    EXPECT_EQ(dense.lse, sparse.lse);
  }
}

// Key blocks that no query head of a key/value head selects are not packed, and what their place in the packed memory
// holds from the call before reaches no output.
TEST_P(CpuAttention, OnlyWhatAPatternSelectsIsPacked) {
  static std::atomic<int64_t> keys, values;
  static void (*pack_k)(const cpu::PackRows&, std::byte*);
  static void (*pack_v)(const cpu::PackRows&, std::byte*);
  cpu::AttentionKernels counting = kernels();
  pack_k = std::exchange(counting.pack_k, [](const cpu::PackRows& rows, std::byte* group) {
    keys += rows.count;
    pack_k(rows, group);
  });
  pack_v = std::exchange(counting.pack_v, [](const cpu::PackRows& rows, std::byte* group) {
    values += rows.count;
    pack_v(rows, group);
  });
  for (DType dtype : dtypes()) {
    for (bool masked : {false, true}) {
      const Case c{2, 2, 2, 100, 500, 64, masked, false, 22};
      Call poison(c, dtype), call(c, dtype);
      for (Call* each : {&poison, &call}) {
        if (masked) std::fill_n(each->mask.begin() + 128, 32, uint8_t{0});  // a block of the first batch row
      }
      for (int64_t b = 0; b < 2; ++b) {
        for (int64_t h = 0; h < 2; ++h) {
          for (int64_t key = 0; key < 500; ++key) {
            for (const RandomArray* each : {&poison.k, &poison.v}) {
              store_float(each->view.row(b, h, key), dtype, key % 64, std::numeric_limits<float>::quiet_NaN());
            }
          }
        }
      }
      PatternBuilder builder({2, 4, 32, 100, 500, 0}, "test");
      for (int64_t row = 0; row < 8 * 4; ++row) {
        const int64_t head = row / 4;
        builder.set(row, head / 2);                    // one block for each key/value head
        if (row % 4 == 3) builder.set(row, 4 + head);  // and one for each query head's last block of queries
        if (head == 7) builder.set(row, 15);           // the last one, of 20 keys
      }
      const BlockPattern pattern = std::move(builder).build();
      cpu::attention(kernels(), poison.params, nullptr);
      keys = values = 0;
      cpu::attention(counting, call.params, &pattern);
      // 4 x 1 + 8 x 1 blocks, in the mask's first batch row one less, and 20 keys.
      EXPECT_EQ(keys, (12 - masked) * 32 + 20);
      EXPECT_EQ(values, keys);
      expect_matches_reference(call, &pattern, message(dtype_name(dtype), " masked ", masked));
      cpu::attention(counting, call.params, nullptr);
      expect_matches_reference(call, nullptr, message(dtype_name(dtype), " dense, masked ", masked));
    }
  }
}

TEST_P(CpuAttention, LargeScoresDoNotOverflow) {
  const Case c{1, 1, 1, 40, 200, 32, false, false, 13};
  for (DType dtype : dtypes()) {
    Call call(c, dtype);
    call.params.scale = 40.f;  // scores of several hundred
    cpu::attention(kernels(), call.params, nullptr);
    std::vector<double> out(40 * 32), lse(40);
    reference::attention(call.params, nullptr, out.data(), lse.data());
    for (size_t i = 0; i < out.size(); ++i) {
      EXPECT_NEAR(out[i], load_float(call.out.view.data, dtype, static_cast<int64_t>(i)), 4e-2);
    }
  }
}

TEST_P(CpuAttention, HugeScoresStillChooseTheirKey) {
  // Half a unit in the last place of these scores is more than the exponential can stand.
  const Case c{1, 1, 1, 64, 64, 16, false, false, 17};
  for (DType dtype : dtypes()) {
    for (float scale : {1e7f, 3e8f, 1e12f, 1e30f}) {
      Call call(c, dtype);
      call.params.scale = scale;
      cpu::attention(kernels(), call.params, nullptr);
      for (int64_t i = 0; i < 64; ++i) {
        EXPECT_TRUE(std::isfinite(call.lse[static_cast<size_t>(i)])) << scale;
        double best = -std::numeric_limits<double>::infinity(), second = best;
        int64_t key = 0;
        for (int64_t j = 0; j < 64; ++j) {
          double score = 0;
          for (int64_t d = 0; d < 16; ++d) score += double{call.q.at(0, 0, i, d)} * call.k.at(0, 0, j, d);
          if (score > best) {
            second = best;
            best = score;
            key = j;
          } else {
            second = std::max(second, score);
          }
        }
        if ((best - second) / std::abs(best) < 1e-3) continue;  // no key is alone at the top
        for (int64_t d = 0; d < 16; ++d) EXPECT_EQ(call.out.at(0, 0, i, d), call.v.at(0, 0, key, d)) << scale;
      }
      SelectParams select{40, 16, 0.3, SelectionRule::kPaper, true, 2 * scale};
      const BlockPattern pattern = cpu::attention_and_select(kernels(), call.params, select);
      for (float value : call.lse) EXPECT_TRUE(std::isfinite(value)) << scale;
      EXPECT_GT(pattern.density(), 0.0);
    }
  }
}

TEST_P(CpuAttention, ValuesThatThePatternLeavesOutAreKnown) {
  const Case c{1, 1, 1, 64, 64, 32, false, false, 18};
  Call call(c, DType::kBFloat16);
  PatternBuilder builder({1, 1, 16, 64, 64, 0}, "test");
  for (int64_t row = 0; row < 4; ++row) builder.set(row, 0);
  const BlockPattern pattern = std::move(builder).build();
  const bool needs = kernels().group_keys > 16;
  EXPECT_EQ(cpu::needs_finite_values(kernels(), call.params, &pattern), needs);
  EXPECT_FALSE(cpu::needs_finite_values(kernels(), call.params, nullptr));
  EXPECT_TRUE(cpu::values_are_finite(call.params));
  store_float(call.v.view.row(0, 0, 20), DType::kBFloat16, 3, std::numeric_limits<float>::infinity());
  EXPECT_FALSE(cpu::values_are_finite(call.params));
  if (needs) return;
  cpu::attention(kernels(), call.params, &pattern);
  for (int64_t i = 0; i < 64; ++i) EXPECT_TRUE(std::isfinite(call.out.at(0, 0, i, 3)));
}

TEST_P(CpuAttention, NanReachesOnlyTheRowsThatSeeIt) {
  const Case c{1, 1, 1, 64, 128, 32, false, false, 14};
  Call call(c, DType::kBFloat16);
  store_float(call.q.view.row(0, 0, 5), DType::kBFloat16, 3, std::numeric_limits<float>::quiet_NaN());
  cpu::attention(kernels(), call.params, nullptr);
  for (int64_t i = 0; i < 64; ++i) {
    for (int64_t d = 0; d < 32; ++d) EXPECT_EQ(std::isnan(call.out.at(0, 0, i, d)), i == 5) << i;
  }
}

TEST_P(CpuAttention, FusedSelectionMatchesReference) {
  for_each_selection(dtypes(), [&](Call& call, const SelectParams& select, const std::string& what) {
    if (!cpu::can_select(kernels(), call.params, select)) return;
    const BlockPattern pattern = cpu::attention_and_select(kernels(), call.params, select);
    expect_matches_reference(call, nullptr, what);
    expect_selects(call.params, select, pattern, what, score_error());
    EXPECT_EQ(cpu::attention_and_select(kernels(), selection_alone(call.params), select), pattern) << what;
  });
}

// Scores that rise and fall along the keys: the running maximum moves within a chunk and between chunks, by little and
// by more than a probability can hold.
TEST_P(CpuAttention, MaximumMayMoveAtAnyKey) {
  struct Course {
    const char* name;
    float (*score)(int64_t key);
  };
  const Course courses[] = {
      {"slope", [](int64_t key) { return 0.03f * static_cast<float>(key); }},
      {"ascent", [](int64_t key) { return 0.5f * static_cast<float>(key); }},
      {"descent", [](int64_t key) { return -2.f * static_cast<float>(key); }},
      {"step", [](int64_t key) { return key < 333 ? -3.f : 90.f; }},
      {"cliff", [](int64_t key) { return key < 70 ? 500.f : 0.f; }},
      {"peak", [](int64_t key) { return key == 450 ? 12.f : 0.f; }},
      {"stairs", [](int64_t key) { return 11.f * static_cast<float>(key / 64 % 5); }},
      {"abyss", [](int64_t key) { return key % 2 ? 1.f : -3e30f; }},
      {"summit", [](int64_t key) { return key == 520 ? 3e6f : 1.f; }},
  };
  for (DType dtype : dtypes()) {
    for (const Course& course : courses) {
      if (dtype == DType::kFloat16 && std::abs(course.score(520)) + std::abs(course.score(0)) > 6e4f) continue;
      const auto call_of = [&](int64_t q_len) {
        Call call({1, 1, 1, q_len, 600, 32, false, false, 19}, dtype);
        for (int64_t i = 0; i < q_len; ++i) store_float(call.q.view.row(0, 0, i), dtype, 0, 1.f);
        for (int64_t j = 0; j < 600; ++j) store_float(call.k.view.row(0, 0, j), dtype, 0, course.score(j));
        call.params.scale = 1.f;
        return call;
      };
      const std::string what = message(dtype_name(dtype), " ", course.name);
      const Call dense = call_of(40);
      cpu::attention(kernels(), dense.params, nullptr);
      expect_matches_reference(dense, nullptr, what, 1e-3);
      for (int block_size : {16, 64, 256}) {
        const Call call = call_of(600);
        const SelectParams select{500, block_size, 0.3, SelectionRule::kPaper, true, 1.f};
        if (!cpu::can_select(kernels(), call.params, select)) continue;
        const std::string where = message(what, " block ", block_size);
        const BlockPattern pattern = cpu::attention_and_select(kernels(), call.params, select);
        expect_matches_reference(call, nullptr, where, 1e-3);
        expect_selects(call.params, select, pattern, where, score_error());
      }
    }
  }
}

// One row's huge score sends its chunk to another softmax after the maximum of all rows has moved in it.
TEST_P(CpuAttention, OneHugeScoreLeavesOtherRowsAlone) {
  Call call({1, 1, 1, 40, 600, 32, false, false, 21}, DType::kBFloat16);
  for (int64_t i = 0; i < 40; ++i) {
    store_float(call.q.view.row(0, 0, i), DType::kBFloat16, 0, 1.f);
    store_float(call.q.view.row(0, 0, i), DType::kBFloat16, 1, i == 7 ? 1.f : 0.f);
  }
  for (int64_t j = 0; j < 600; ++j) {
    store_float(call.k.view.row(0, 0, j), DType::kBFloat16, 0, j == 300 ? 15.f : 0.f);
    store_float(call.k.view.row(0, 0, j), DType::kBFloat16, 1, j == 400 ? 3e6f : 0.f);
  }
  call.params.scale = 1.f;
  cpu::attention(kernels(), call.params, nullptr);
  expect_matches_reference(call, nullptr, "bfloat16", 1e-3);
}

// NaN among the scores of a later step of a chunk reaches every row that sees it.
TEST_P(CpuAttention, NanInALaterKeyIsSeen) {
  for (int64_t key : {0, 70, 130, 599}) {
    Call call({1, 1, 1, 40, 600, 32, false, false, 20}, DType::kBFloat16);
    store_float(call.k.view.row(0, 0, key), DType::kBFloat16, 3, std::numeric_limits<float>::quiet_NaN());
    cpu::attention(kernels(), call.params, nullptr);
    for (int64_t i = 0; i < 40; ++i) EXPECT_TRUE(std::isnan(call.out.at(0, 0, i, 5))) << key;
  }
}

// A generation that gets e^-200 of the mass still ranks its own blocks.
TEST_P(CpuAttention, GenerationSoftmaxDoesNotUnderflow) {
  UnlikelyGeneration call;
  const BlockPattern pattern = cpu::attention_and_select(kernels(), call.params, call.select);
  for (int64_t row = 0; row < pattern.rows(); ++row) {
    for (int64_t block = 4; block < 8; ++block) EXPECT_EQ(pattern.test(row, block), block >= 6) << block;
  }
}

TEST_P(CpuAttention, SameBitsForEveryThreadCount) {
  const Case c{2, 1, 3, 333, 333, 64, true, false, 16};
  const SelectParams select{200, 32, 0.3, SelectionRule::kPaper, true, 0.125f};
  const int before = cpu::num_threads();
  std::vector<float> bits;
  BlockPattern pattern;
  for (int threads : {1, 2, 3, 8}) {
    cpu::set_num_threads(threads);
    Call call(c, DType::kBFloat16);
    const BlockPattern found = cpu::attention_and_select(kernels(), call.params, select);
    if (bits.empty()) {
      bits = call.out.storage;
      pattern = found;
    }
    EXPECT_EQ(bits, call.out.storage) << threads;
    EXPECT_EQ(pattern, found) << threads;
  }
  cpu::set_num_threads(before);
}

INSTANTIATE_TEST_SUITE_P(Targets, CpuAttention, testing::ValuesIn(cpu::targets()),
                         [](const auto& info) { return cpu::target_name(info.param); });

}  // namespace
}  // namespace sparsed
