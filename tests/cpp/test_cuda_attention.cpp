// The CUDA kernels' source on the emulator, against the float64 reference.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "attention_cases.h"
#include "cuda/attention_plain.cuh"
#include "cuda/attention_sm80.cuh"
#include "cuda/plan.h"
#include "cuda_calls.h"

namespace sparsed::cuda {
namespace {

using emulator::Landing;
using emulator::Launch;
using emulator::Region;
using emulator::Report;

template <class T, class F>
void with_plain_traits(const Plan& plan, const F& f) {
  switch (plan.sums) {
    case Sums::kNone: f(Plain<T, Sums::kNone>{}); break;
    case Sums::kShared: f(Plain<T, Sums::kShared>{}); break;
    case Sums::kOwn: f(Plain<T, Sums::kOwn>{}); break;
  }
}

template <class F>
void with_traits(const Plan& plan, DType dtype, const F& f) {
  const auto with_sums = [&](auto element, auto head_dim) {
    using T = decltype(element);
    constexpr int kHeadDim = decltype(head_dim)::value;
    switch (plan.sums) {
      case Sums::kNone: f(Sm80<T, kHeadDim, Sums::kNone>{}); break;
      case Sums::kShared: f(Sm80<T, kHeadDim, Sums::kShared>{}); break;
      case Sums::kOwn: f(Sm80<T, kHeadDim, Sums::kOwn>{}); break;
    }
  };
  if (dtype == DType::kFloat16) {  // the element type changes two instructions: one head_dim stands for all
    ASSERT_EQ(plan.head_dim, 64);
    return with_sums(F16{}, std::integral_constant<int, 64>{});
  }
  switch (plan.head_dim) {
    case 32: return with_sums(Bf16{}, std::integral_constant<int, 32>{});
    case 64: return with_sums(Bf16{}, std::integral_constant<int, 64>{});
    case 96: return with_sums(Bf16{}, std::integral_constant<int, 96>{});
    case 128: return with_sums(Bf16{}, std::integral_constant<int, 128>{});
    default: return with_sums(Bf16{}, std::integral_constant<int, 256>{});
  }
}

Report run(const Plan& plan, DType dtype, Launch launch) {
  Report report;
  if (plan.kernel == Kernel::kPlain) {
    const auto run_plain = [&](auto traits) {
      using Traits = decltype(traits);
      launch.shared_bytes = static_cast<size_t>(Traits::shared_bytes(plan.threads / 32));
      report = emulator::run(launch, [&] { attention_plain<Traits>(plan.args); });
    };
    switch (dtype) {
      case DType::kFloat32: with_plain_traits<float>(plan, run_plain); break;
      case DType::kFloat16: with_plain_traits<F16>(plan, run_plain); break;
      case DType::kBFloat16: with_plain_traits<Bf16>(plan, run_plain); break;
    }
    return report;
  }
  with_traits(plan, dtype, [&](auto traits) {
    using Traits = decltype(traits);
    launch.shared_bytes = static_cast<size_t>(Traits::shared_bytes(plan.threads / 32));
    report = emulator::run(launch, [&] { attention_sm80<Traits>(plan.args); });
  });
  return report;
}

Report attention(Call& call, const Lists* lists, const How& how = {}) {
  const Plan plan = plan_attention(call.params, lists ? &lists->rows : nullptr);
  Launch launch = launch_of(plan, call, how);
  launch.blocks = static_cast<int>(plan.blocks);
  if (lists) {
    launch.memory.push_back(region_of(lists->counts, false));
    launch.memory.push_back(region_of(lists->indices, false));
  }
  return run(plan, call.params.q.dtype, launch);
}

// Every second row starts 8 bytes off: what cannot be copied by 16 bytes.
RandomArray misaligned(const Shape4& shape, DType dtype, unsigned seed) {
  const Shape4 wide{shape[0], shape[1], shape[2], shape[3] + 4};
  RandomArray array(wide, dtype, seed);
  array.view.shape = shape;
  return array;
}

struct Case16 {
  DType dtype;
  Case shape;
  bool misaligned = false;
};

Call make_call(const Case16& c) {
  Call call(c.shape, c.dtype);
  if (c.misaligned) {
    call.k = misaligned(call.k.view.shape, c.dtype, c.shape.seed + 1);
    call.params.k = call.k.view;
  }
  return call;
}

// A few tiles, ragged everywhere, every head_dim that is compiled, and some that are not.
std::vector<Case16> cases() {
  constexpr DType kBf16 = DType::kBFloat16, kF16 = DType::kFloat16;
  return {
      {kBf16, {1, 1, 1, 1, 1, 256, false, false, 1}},
      {kBf16, {1, 1, 2, 130, 200, 128, false, false, 2}},
      {kBf16, {2, 1, 1, 37, 129, 128, true, true, 3}},
      {kBf16, {1, 2, 1, 128, 64, 64, false, true, 4}},
      {kBf16, {1, 1, 3, 70, 191, 64, true, false, 5}},
      {kF16, {1, 1, 2, 150, 257, 64, true, true, 6}},
      {kF16, {1, 1, 1, 20, 300, 48, false, false, 7}},
      {kBf16, {1, 1, 1, 140, 130, 32, true, false, 8}},
      {kBf16, {1, 1, 1, 33, 150, 24, false, true, 9}},
      {kBf16, {1, 1, 2, 100, 150, 96, true, true, 10}},
      {kBf16, {1, 1, 1, 129, 100, 80, false, false, 11}},
      {kBf16, {1, 1, 1, 80, 130, 256, true, false, 12}},
      {kBf16, {1, 1, 1, 17, 100, 136, false, true, 13}},
      {DType::kFloat32, {1, 1, 2, 40, 70, 64, true, false, 14}},
      {DType::kFloat32, {2, 1, 1, 130, 100, 16, false, true, 15}},
      {DType::kFloat32, {1, 1, 1, 20, 50, 256, true, false, 16}},
      {kF16, {1, 1, 1, 40, 70, 24, false, false, 17}, true},
      {kBf16, {1, 1, 1, 30, 60, 128, true, false, 18}, true},
  };
}

std::string name_of(const Case16& c) {
  return message(dtype_name(c.dtype), " head_dim ", c.shape.head_dim, " seed ", c.shape.seed);
}

Selected attention_and_scores(Call& call, const SelectParams& select, int blocks, const How& how = {}) {
  Plan plan = plan_selection(call.params, select);
  Selected selected;
  selected.scores.assign(score_bytes(plan) / sizeof(float), NAN);
  selected.generation = selected.scores;
  std::vector<std::byte> partial(partial_bytes(plan) * static_cast<size_t>(blocks), std::byte{0xff});
  plan.args.select.scores = selected.scores.data();
  plan.args.select.generation = selected.generation.data();
  plan.args.select.partial = reinterpret_cast<PartialSum*>(partial.data());
  Launch launch = launch_of(plan, call, how);
  launch.blocks = std::min(blocks, static_cast<int>(plan.blocks));
  for (auto* array : {&selected.scores, &selected.generation}) launch.memory.push_back(region_of(*array, true));
  launch.memory.push_back(region_of(partial, true));
  selected.report = run(plan, call.params.q.dtype, launch);
  return selected;
}

TEST(CudaAttention, DenseMatchesReference) {
  for (const Case16& c : cases()) {
    for (const How& how : {How{Landing::kLate, 0}, How{Landing::kEarly, 1}}) {
      Call call = make_call(c);
      attention(call, nullptr, how);
      expect_matches_reference(call, name_of(c));
    }
  }
}

// The cases of the CPU's kernels.
TEST(CudaAttention, RandomCasesMatchReference) {
  int number = 0;
  for (const Case& c : random_cases(16)) {
    const How how{++number % 2 ? Landing::kEarly : Landing::kLate, c.seed};
    Call dense(c, DType::kBFloat16), sparse(c, DType::kBFloat16);
    attention(dense, nullptr, how);
    expect_matches_reference(dense, message("dense, seed ", c.seed));
    const int block_size = 16 << number % 5;
    const BlockPattern pattern = random_pattern(c, block_size, 35);
    const Lists lists(pattern);
    attention(sparse, &lists, how);
    const BlockLists host = pattern.expand();
    sparse.params.lists = &host;
    expect_matches_reference(sparse, message("block ", block_size, ", seed ", c.seed));
  }
}

TEST(CudaAttention, SparseMatchesReference) {
  for (int block_size : {16, 32, 64, 128, 256}) {
    for (const Case16& c : cases()) {
      if ((c.shape.seed + static_cast<unsigned>(block_size) / 16) % 2) continue;
      Call call = make_call(c);
      const BlockPattern pattern = random_pattern(c.shape, block_size, 35);
      const Lists lists(pattern);
      attention(call, &lists, {c.shape.seed % 2 ? Landing::kLate : Landing::kEarly, c.shape.seed});
      const BlockLists host = pattern.expand();
      call.params.lists = &host;
      expect_matches_reference(call, message(name_of(c), " block ", block_size));
    }
  }
}

TEST(CudaAttention, SelectionSumsMatchReference) {
  int number = 0;
  for (int block_size : {16, 32, 64, 128, 256}) {
    for (const Case16& c : cases()) {
      for (SelectionRule rule : {SelectionRule::kPaper, SelectionRule::kReference}) {
        if ((++number + block_size / 16) % 3) continue;
        Case16 square = c;
        Case& shape = square.shape;
        shape.q_len = shape.kv_len = std::max(shape.q_len, shape.kv_len);
        Call call = make_call(square);
        SelectParams select;
        select.block_size = block_size;
        select.rule = rule;
        select.prompt_length = shape.kv_len * (number % 7) / 7;
        select.scale = number % 4 ? call.params.scale : .3f;
        const std::string what = message(name_of(c), " block ", block_size, " rule ", static_cast<int>(rule),
                                         " prompt ", select.prompt_length, " of ", shape.kv_len);
        const Selected selected = attention_and_scores(call, select, 1 + number % 3,
                                                       {number % 2 ? Landing::kLate : Landing::kEarly, c.shape.seed});
        expect_selection(call, select, selected, what);
      }
    }
  }
}

TEST(CudaAttention, SelectionAloneHasTheSameScores) { expect_same_scores_alone(attention_and_scores); }

TEST(CudaAttention, FullPatternHasTheBitsOfDense) {
  for (int block_size : {16, 32, 64, 128, 256}) {
    const Case shape{1, 1, 2, 150, 190, 128, true, false, 12};
    Call dense(shape, DType::kBFloat16), sparse(shape, DType::kBFloat16);
    const Lists lists(random_pattern(shape, block_size, 100));
    attention(dense, nullptr);
    attention(sparse, &lists);
    EXPECT_EQ(dense.out.storage, sparse.out.storage) << block_size;
    EXPECT_EQ(dense.lse, sparse.lse) << block_size;
  }
}

// A last block of which a few keys exist, listed alone and with others.
TEST(CudaAttention, LastBlockMayBeShort) {
  for (int block_size : {16, 32, 64, 128, 256}) {
    for (const int64_t tail : {1, 15, 66}) {
      if (tail >= block_size) continue;
      const Case shape{1, 1, 2, 40, block_size + tail, 32, false, false, 23};
      BlockPattern pattern({1, 2, block_size, 40, block_size + tail, 0}, "test");
      for (int64_t row = 0; row < pattern.rows(); ++row) {
        pattern.set(row, 1);
        if (row % 2) pattern.set(row, 0);
      }
      Call call(shape, DType::kBFloat16);
      const Lists lists(pattern);
      attention(call, &lists);
      const BlockLists host = pattern.expand();
      call.params.lists = &host;
      expect_matches_reference(call, message("block ", block_size, ", tail ", tail));
    }
  }
}

TEST(CudaAttention, EmptyRowsGiveZero) {
  const Case shape{1, 1, 2, 70, 130, 64, false, false, 11};
  Call call(shape, DType::kBFloat16);
  const Lists lists(random_pattern(shape, 32, 0));
  attention(call, &lists);
  for (float lse : call.lse) EXPECT_EQ(lse, -INFINITY);
  for (int64_t i = 0; i < 2 * 70 * 64; ++i) EXPECT_EQ(load_float(call.out.view.data, DType::kBFloat16, i), 0.f);
}

TEST(CudaAttention, HiddenKeysMayHoldAnything) {
  const Case shape{1, 1, 1, 40, 100, 64, true, false, 22};
  Call call(shape, DType::kBFloat16), poisoned(shape, DType::kBFloat16);
  for (int64_t key = 0; key < 100; ++key) {
    if (call.mask[static_cast<size_t>(key)]) continue;
    for (int64_t d = 0; d < 64; ++d) {
      store_float(poisoned.k.view.row(0, 0, key), DType::kBFloat16, d, NAN);
      store_float(poisoned.v.view.row(0, 0, key), DType::kBFloat16, d, INFINITY);
    }
  }
  attention(call, nullptr);
  attention(poisoned, nullptr);
  EXPECT_EQ(call.out.storage, poisoned.out.storage);
}

TEST(CudaAttention, LargeScoresDoNotOverflow) {
  const Case shape{1, 1, 1, 40, 200, 32, false, false, 13};
  Call call(shape, DType::kBFloat16);
  call.params.scale = 40.f;  // scores of several hundred
  attention(call, nullptr);
  std::vector<double> out(40 * 32), lse(40);
  reference::attention(call.params, out.data(), lse.data());
  for (size_t i = 0; i < out.size(); ++i) {
    EXPECT_NEAR(out[i], load_float(call.out.view.data, DType::kBFloat16, static_cast<int64_t>(i)), 4e-2);
  }
}

TEST(CudaAttention, NanReachesOnlyTheRowsThatSeeIt) {
  const Case shape{1, 1, 1, 64, 128, 32, false, false, 14};
  Call call(shape, DType::kBFloat16);
  store_float(call.q.view.row(0, 0, 5), DType::kBFloat16, 3, NAN);
  attention(call, nullptr);
  for (int64_t i = 0; i < 64; ++i) {
    for (int64_t d = 0; d < 32; ++d) EXPECT_EQ(std::isnan(call.out.at(0, 0, i, d)), i == 5) << i;
  }
}

// A generation that gets e^-200 of the mass still ranks its own blocks.
TEST(CudaAttention, GenerationSoftmaxDoesNotUnderflow) {
  UnlikelyGeneration call;
  const Selected selected = attention_and_scores(call, call.select, 1);
  const std::vector<double> expected = reference::block_scores(call.params, 32, call.select.scale, 128);
  expect_scores(selected.generation, expected, 4, 8, "generation");
}

// Rows of a table of accesses to shared memory; SPARSED_BANKS_TABLE names the file that it is written to.
class BanksTable {
 public:
  void add(const std::string& kernel, const Report& report) {
    for (const auto& [place, count] : report.accesses) {
      rows_ += message("| ", kernel, " | ", place.first, ":", place.second, " | ", count.kind, " | ", count.accesses,
                       " | ", count.wavefronts, " | ", count.conflicts, " |\n");
    }
  }
  void write() const {
    const char* path = std::getenv("SPARSED_BANKS_TABLE");
    if (!path) return;
    std::ofstream(path)
        << "# Shared memory of the CUDA kernels on the emulator\n\n"
           "A block of 128 queries, 192 keys, bfloat16; a conflict is a wavefront beyond those that the "
           "bytes of an access need. `block_sums.cuh` runs once a tile of queries, the rest is the main "
           "loop. Written by `SPARSED_BANKS_TABLE=... test_cuda_attention`.\n\n"
           "| kernel | place | access | by a warp | wavefronts | conflicts |\n"
           "| --- | --- | --- | ---: | ---: | ---: |\n"
        << rows_;
  }

 private:
  std::string rows_;
};

// No access to shared memory in the main loop waits for a bank, at any head_dim.
TEST(CudaAttention, NoBankConflicts) {
  BanksTable table;
  for (const int64_t head_dim : {32, 64, 96, 128, 256}) {
    for (int block_size : {0, 16, 32, 64, 128}) {
      Call call({1, 1, 1, 128, 192, head_dim, false, false, 16}, DType::kBFloat16);
      const Lists lists(
          random_pattern({1, 1, 1, 128, 192, head_dim, false, false, 16}, block_size ? block_size : 16, 60));
      const Report report = attention(call, block_size ? &lists : nullptr);
      if (!block_size) table.add(message("dense, head_dim ", head_dim), report);
      EXPECT_EQ(report.conflicts(), 0) << "head_dim " << head_dim << ", block " << block_size;
    }
    SelectParams select;
    select.block_size = 16;
    Call call({1, 1, 1, 192, 192, head_dim, false, false, 17}, DType::kBFloat16);
    select.scale = call.params.scale;
    const Report report = attention_and_scores(call, select, 1).report;
    table.add(message("selecting, head_dim ", head_dim), report);
    for (const auto& [place, count] : report.accesses) {
      if (place.first == "block_sums.cuh") continue;  // once a tile, at its end
      EXPECT_EQ(count.conflicts, 0) << place.first << ":" << place.second << " " << count.kind << ", head_dim "
                                    << head_dim;
    }
  }
  table.write();
}

}  // namespace
}  // namespace sparsed::cuda
