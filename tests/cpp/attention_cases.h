// Calls of attention and what their results must be by the float64 reference, for the tests of every backend.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/selection.h"
#include "random_array.h"
#include "reference.h"
#include "support/error.h"

namespace sparsed {

struct Case {
  int64_t batch, kv_heads, group, q_len, kv_len, head_dim;
  bool masked, transposed;
  unsigned seed;
};

// Inputs, output and parameters of one call.
struct Call {
  RandomArray q, k, v, out;
  std::vector<float> lse;
  std::vector<uint8_t> mask;
  AttentionParams params;

  Call(const Case& c, DType dtype)
      : q({c.batch, c.kv_heads * c.group, c.q_len, c.head_dim}, dtype, c.seed, c.transposed),
        k({c.batch, c.kv_heads, c.kv_len, c.head_dim}, dtype, c.seed + 1, c.transposed),
        v({c.batch, c.kv_heads, c.kv_len, c.head_dim}, dtype, c.seed + 2, c.transposed),
        out({c.batch, c.kv_heads * c.group, c.q_len, c.head_dim}, dtype, c.seed + 3),
        lse(static_cast<size_t>(c.batch * c.kv_heads * c.group * c.q_len)),
        mask(static_cast<size_t>(c.batch * c.kv_len)) {
    std::mt19937 generator(c.seed + 4);
    for (uint8_t& m : mask) m = generator() % 4 != 0;
    params.q = q.view;
    params.k = k.view;
    params.v = v.view;
    params.out = out.view;
    params.lse = lse.data();
    params.key_mask = c.masked ? mask.data() : nullptr;
    params.scale = 1.f / std::sqrt(static_cast<float>(c.head_dim));
  }
};

inline std::vector<Case> random_cases(int count) {
  std::vector<Case> cases;
  std::mt19937 generator(7);
  const auto draw = [&](int64_t n) { return static_cast<int64_t>(generator() % static_cast<uint64_t>(n)); };
  for (int i = 0; i < count; ++i) {
    cases.push_back({1 + draw(2), 1 + draw(2), 1 + draw(3), 1 + draw(300), 1 + draw(600), 8 * (2 + draw(15)),
                     i % 2 == 1, i % 4 >= 2, 100u * static_cast<unsigned>(i)});
  }
  cases.push_back({1, 1, 1, 1, 1, 256, false, false, 1});
  cases.push_back({1, 1, 7, 33, 257, 128, true, true, 2});
  return cases;
}

// Inputs round the same way in both; the allowance is the output's own rounding, and for AMX that of the probabilities.
inline double tolerance(DType dtype, double float32_tolerance) {
  return dtype == DType::kFloat32 ? float32_tolerance : dtype == DType::kFloat16 ? 2e-3 : 1.6e-2;
}

inline void expect_matches_reference(const Call& call, const BlockPattern* pattern, const std::string& what,
                                     double float32_tolerance = 2e-6) {
  const AttentionParams& p = call.params;
  std::vector<double> out(call.lse.size() * static_cast<size_t>(p.head_dim())), lse(call.lse.size());
  reference::attention(p, pattern, out.data(), lse.data());
  double worst = 0, worst_lse = 0;
  for (size_t row = 0; row < lse.size(); ++row) {
    const double got = call.lse[row];
    if (std::isinf(lse[row]) || std::isinf(got)) {
      ASSERT_EQ(lse[row], got) << what << " lse of row " << row;
    } else {
      // beyond 10 relative to it
      worst_lse = std::max(worst_lse, std::abs(lse[row] - got) / std::max(1., std::abs(lse[row]) / 10));
    }
    for (int64_t d = 0; d < p.head_dim(); ++d) {
      const int64_t at = static_cast<int64_t>(row) * p.head_dim() + d;
      const double error = std::abs(out[static_cast<size_t>(at)] - load_float(p.out.data, p.out.dtype, at));
      worst = std::max(worst, std::isnan(error) ? INFINITY : error);
    }
  }
  EXPECT_LE(worst, tolerance(p.q.dtype, float32_tolerance)) << what;
  EXPECT_LE(worst_lse, 1e-5) << what;
}

inline BlockPattern random_pattern(const Case& c, BlockSize block, unsigned percent) {
  PatternBuilder pattern({c.batch, c.kv_heads * c.group, block, c.q_len, c.kv_len, 0}, "test");
  std::mt19937 generator(c.seed + 5);
  for (int64_t row = 0; row < pattern.rows(); ++row) {
    for (int64_t block = 0; block < pattern.geometry().kv_blocks(); ++block) {
      if (generator() % 100 < percent) pattern.set(row, block);
    }
  }
  return std::move(pattern).build();
}

// Row of `scores`: the k largest of the candidates are selected, up to rounding of nearly equal scores.
inline void expect_top_k(const double* scores, const std::vector<int64_t>& candidates, double rho,
                         const std::set<int64_t>& selected, int64_t dropped_from, double relative_slack,
                         const std::string& what) {
  std::vector<double> sorted;
  for (int64_t j : candidates) sorted.push_back(scores[j]);
  std::sort(sorted.rbegin(), sorted.rend());
  const int64_t k = keep_count(static_cast<int64_t>(candidates.size()), rho);
  if (k == 0) return;
  const double last_in = sorted[static_cast<size_t>(k - 1)];
  const double first_out = static_cast<size_t>(k) < sorted.size() ? sorted[static_cast<size_t>(k)] : -1.;
  const double slack = relative_slack * last_in + 1e-12;
  for (int64_t j : candidates) {
    if (j >= dropped_from) continue;
    if (scores[j] > first_out + slack) {
      EXPECT_TRUE(selected.count(j)) << what << " block " << j;
    } else if (scores[j] < last_in - slack) {
      EXPECT_FALSE(selected.count(j)) << what << " block " << j;
    }
  }
}

// Whether a row of a square pattern belongs to a query block with a generation token.
inline bool is_generation_row(int64_t row, const SelectParams& select, int64_t length) {
  const int64_t q_block = row % num_blocks(length, select.block_size);
  return std::min((q_block + 1) * select.block_size, length) > select.prompt_length;
}

// The row keeps every block, and has no bit beyond them.
inline void expect_full_row(const BlockPattern& pattern, int64_t row, const std::string& what) {
  const PatternGeometry& geometry = pattern.geometry();
  for (int64_t block = 0; block < 64 * geometry.row_words(); ++block) {
    EXPECT_EQ(pattern.test(row, block), block < geometry.kv_blocks()) << what << " row " << row << " block " << block;
  }
}

// slack: relative error of a block's score.
inline void expect_selects(const AttentionParams& params, const SelectParams& select, const BlockPattern& pattern,
                           const std::string& what, double slack = 2e-5) {
  const int64_t blocks = num_blocks(params.kv_len(), select.block_size);
  const int64_t generation = first_generation_block(params.kv_len(), select.prompt_length, select.block_size);
  const std::vector<double> all = reference::block_scores(params, select.block_size, select.scale, 0);
  const std::vector<double> generation_scores =
      reference::block_scores(params, select.block_size, select.scale, generation * select.block_size);
  for (int64_t row = 0; row < pattern.rows(); ++row) {
    if (select.dense_generation && is_generation_row(row, select, params.q_len())) {
      expect_full_row(pattern, row, what);
      continue;
    }
    const int64_t b = row / (params.heads() * blocks);
    std::vector<int64_t> live, prompt, gen;
    std::set<int64_t> selected;
    for (int64_t j = 0; j < blocks; ++j) {
      bool alive = false;
      for (int64_t key = j * select.block_size; key < std::min((j + 1) * select.block_size, params.kv_len()); ++key) {
        alive = alive || !params.key_mask || params.key_mask[b * params.kv_len() + key];
      }
      if (pattern.test(row, j)) {
        selected.insert(j);
        EXPECT_TRUE(alive) << what;
      }
      if (!alive) continue;
      live.push_back(j);
      (j < generation ? prompt : gen).push_back(j);
    }
    const std::string where = message(what, " row ", row);
    const double* scores = all.data() + row * blocks;
    const double* generation_row = generation_scores.data() + row * blocks;
    if (!select.isolate) {
      expect_top_k(scores, live, select.rho, selected, blocks, slack, where);
    } else if (select.rule == SelectionRule::kPaper) {
      expect_top_k(scores, prompt, select.rho, selected, blocks, slack, where + " prompt");
      expect_top_k(scores, gen, select.rho, selected, blocks, slack, where + " generation");
    } else {
      expect_top_k(scores, live, select.rho, selected, generation, slack, where + " prompt");
      expect_top_k(generation_row, gen, select.rho, selected, blocks, slack, where + " generation");
    }
  }
}

// Selections with every block size, rule and isolation over odd lengths: check(call, select, what).
template <class DTypes, class Check>
void for_each_selection(const DTypes& dtypes, const Check& check) {
  int number = 0;
  for (DType dtype : dtypes) {
    for (int block_size : {16, 32, 64, 128, 256}) {
      for (SelectionRule rule : {SelectionRule::kPaper, SelectionRule::kReference}) {
        for (bool isolate : {true, false}) {
          const unsigned seed = static_cast<unsigned>(++number) * 31;
          const int64_t length = 150 + (number * 97) % 500;
          const Case c{1 + number % 2, 1,   1 + number % 2, length, length, 32 + 8 * (number % 5), number % 3 == 0,
                       false,          seed};
          Call call(c, dtype);
          SelectParams select{length - 60 - number % 40, block_size, 0.3, rule, isolate, call.params.scale};
          if (number % 4 == 1) select.scale = 0.5f;
          select.dense_generation = number / 4 % 2 == 1;
          check(call, select,
                message(dtype_name(dtype), " block ", block_size, " rule ", static_cast<int>(rule), " isolate ",
                        isolate, " dense generation ", select.dense_generation, " length ", length));
        }
      }
    }
  }
}

// The same call without an output.
inline AttentionParams selection_alone(AttentionParams params) {
  params.v.data = params.out.data = nullptr;
  params.lse = nullptr;
  return params;
}

// Keys from 128 on, the generation, get e^-200 of the mass, the more the later.
struct UnlikelyGeneration : Call {
  UnlikelyGeneration() : Call({1, 1, 1, 256, 256, 16, false, false, 15}, DType::kBFloat16) {
    for (int64_t key = 0; key < 256; ++key) {
      for (int64_t d = 0; d < 16; ++d) {
        const float value = d > 0 ? 0.f : key < 128 ? 300.f : static_cast<float>(key / 32);
        store_float(k.view.row(0, 0, key), DType::kBFloat16, d, value);
      }
    }
    for (int64_t i = 0; i < 256; ++i) store_float(q.view.row(0, 0, i), DType::kBFloat16, 0, 4.f);
  }
  const SelectParams select{128, 32, 0.3, SelectionRule::kReference, true, params.scale};
};

}  // namespace sparsed
