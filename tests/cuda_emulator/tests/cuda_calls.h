// Launches of the CUDA kernels on the emulator: patterns as they take them, memory that they may touch, their scores.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
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
  PatternGeometry geometry;

  explicit Lists(const BlockPattern& pattern) : geometry(pattern.geometry()) {
    const size_t stride = static_cast<size_t>(geometry.kv_blocks());
    for (int64_t row = 0; row < pattern.rows(); ++row) {
      const size_t before = indices.size();
      for_each_block(pattern.row(row), geometry.row_words(),
                     [&](int64_t block) { indices.push_back(static_cast<int32_t>(block)); });
      counts.push_back(static_cast<int32_t>(indices.size() - before));
      indices.resize(counts.size() * stride, -1);
    }
  }
};

// lists == nullptr: dense.
inline Plan plan_of(const Call& call, const Lists* lists) {
  Plan plan = plan_attention(call.params, lists ? &lists->geometry : nullptr);
  if (lists) {
    plan.args.counts = lists->counts.data();
    plan.args.indices = lists->indices.data();
    plan.args.list_stride = lists->geometry.kv_blocks();
  }
  return plan;
}

inline Region region_of(const RandomArray& array, bool writable) {
  return {array.storage.data(), array.storage.size() * sizeof(float), writable};
}

template <class T>
inline Region region_of(const std::vector<T>& array, bool writable) {
  return {array.data(), array.size() * sizeof(T), writable};
}

// How a launch goes: when copies land, the order of the warps, and how many blocks share the work where that is free.
struct How {
  Landing landing = Landing::kLate;
  unsigned seed = 0;
  int blocks = 2;
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

// A selecting launch, each block with its own memory for partial sums: run(plan, dtype, launch).
template <class Run>
Selected run_selection(Plan plan, const Call& call, const How& how, const Run& run) {
  Selected selected;
  selected.scores.assign(score_bytes(plan) / sizeof(float), NAN);
  selected.generation = selected.scores;
  std::vector<std::byte> partial(partial_bytes(plan) * static_cast<size_t>(how.blocks), std::byte{0xff});
  plan.args.select.scores = selected.scores.data();
  plan.args.select.generation = selected.generation.data();
  plan.args.select.partial = reinterpret_cast<PartialSum*>(partial.data());
  Launch launch = launch_of(plan, call, how);
  launch.blocks = std::min(how.blocks, static_cast<int>(plan.blocks));
  for (auto* array : {&selected.scores, &selected.generation}) launch.memory.push_back(region_of(*array, true));
  launch.memory.push_back(region_of(partial, true));
  selected.report = run(plan, call.params.q.dtype, launch);
  return selected;
}

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
  expect_matches_reference(call, nullptr, what);
  const int64_t kv_len = call.params.kv_len(), blocks = num_blocks(kv_len, select.block_size);
  const auto expected = [&](int64_t first_key) {
    return reference::block_scores(call.params, select.block_size, select.scale, first_key);
  };
  expect_scores(selected.scores, expected(0), 0, blocks, what);
  if (select.rule == SelectionRule::kPaper) return;
  const int64_t first = first_generation_block(kv_len, select.prompt_length, select.block_size);
  expect_scores(selected.generation, expected(first * select.block_size), first, blocks, what);
}

}  // namespace sparsed::cuda
