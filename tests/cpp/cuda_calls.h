// Launches of the CUDA kernels on the emulator: patterns as they take them, memory that they may touch, their scores.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "attention_cases.h"
#include "cuda/plan.h"
#include "machine.h"

namespace sparsed::cuda {

using emulator::Landing;
using emulator::Launch;
using emulator::Region;
using emulator::Report;

// A pattern as the kernels take it.
struct Lists {
  std::vector<int32_t> counts, indices;
  BlockRows rows;

  explicit Lists(const BlockPattern& pattern) {
    const BlockLists lists = pattern.expand();
    const size_t stride = static_cast<size_t>(pattern.geometry().kv_blocks());
    indices.assign(counts.size() * stride, -1);
    for (size_t row = 0; row + 1 < lists.offsets.size(); ++row) {
      counts.push_back(static_cast<int32_t>(lists.offsets[row + 1] - lists.offsets[row]));
      const auto first = lists.indices.begin() + lists.offsets[row];
      indices.insert(indices.end(), first, first + counts.back());
      indices.resize(counts.size() * stride, -1);
    }
    rows = {lists.block_size, counts.data(), indices.data(), static_cast<int64_t>(stride)};
  }
};

inline Region region_of(const RandomArray& array, bool writable) {
  return {array.storage.data(), array.storage.size() * sizeof(float), writable};
}

template <class T>
inline Region region_of(const std::vector<T>& array, bool writable) {
  return {array.data(), array.size() * sizeof(T), writable};
}

struct How {
  Landing landing = Landing::kLate;
  unsigned seed = 0;
};

inline Launch launch_of(const Plan& plan, const Call& call, const How& how) {
  Launch launch;
  launch.threads = plan.threads;
  launch.landing = how.landing;
  launch.seed = how.seed;
  launch.memory = {region_of(call.q, false),  region_of(call.k, false),  region_of(call.v, false),
                   region_of(call.out, true), region_of(call.lse, true), region_of(call.mask, false)};
  return launch;
}

// Scores as the selecting kernel leaves them.
struct Selected {
  std::vector<float> scores, generation;
  Report report;
};

// Columns from `first` on of [rows, columns].
inline void expect_scores(const std::vector<float>& found, const std::vector<double>& expected, int64_t first,
                          int64_t columns, const std::string& what) {
  ASSERT_EQ(found.size(), expected.size());
  double worst = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    if (static_cast<int64_t>(i) % columns < first) continue;
    const double error = std::abs(found[i] - expected[i]) / (1e-6 + std::abs(expected[i]));
    worst = std::max(worst, std::isnan(error) ? INFINITY : error);
  }
  EXPECT_LE(worst, 2e-5) << what;
}

// A selecting pass: its output, and the scores of each softmax that the rule asks for.
inline void expect_selection(const Call& call, const SelectParams& select, const Selected& selected,
                             const std::string& what) {
  expect_matches_reference(call, what);
  const int64_t kv_len = call.params.kv_len(), blocks = num_blocks(kv_len, select.block_size);
  const auto expected = [&](int64_t first_key) {
    return reference::block_scores(call.params, select.block_size, select.scale, first_key);
  };
  expect_scores(selected.scores, expected(0), 0, blocks, what);
  if (select.rule == SelectionRule::kPaper) return;
  const int64_t first = first_generation_block(kv_len, select.prompt_length, select.block_size);
  expect_scores(selected.generation, expected(first * select.block_size), first, blocks, what);
}

// A selection alone gives the scores that come with an output.
inline void expect_same_scores_alone(Selected (*attention_and_scores)(Call&, const SelectParams&, int, const How&)) {
  const Case shape{1, 1, 2, 200, 200, 64, true, false, 21};
  Call with(shape, DType::kBFloat16), without(shape, DType::kBFloat16);
  without.params = selection_alone(without.params);
  SelectParams select;
  select.block_size = 32;
  select.scale = with.params.scale;
  EXPECT_EQ(attention_and_scores(with, select, 2, {}).scores, attention_and_scores(without, select, 1, {}).scores);
}

}  // namespace sparsed::cuda
