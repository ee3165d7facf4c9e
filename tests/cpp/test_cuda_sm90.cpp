// The sm_90a kernels' source on the emulator, against the float64 reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <type_traits>
#include <vector>

#include "attention_cases.h"
#include "cuda/attention_sm90.cuh"
#include "cuda/plan_sm90.h"
#include "cuda/top_k.cuh"
#include "cuda_calls.h"

namespace sparsed::cuda {
namespace {

TensorMap encode(const CopyMap& map) {
  emulator::TensorMap encoded;
  encoded.data = static_cast<const std::byte*>(map.data);
  for (size_t i = 0; i < 4; ++i) encoded.size[i] = static_cast<uint64_t>(map.size[i]);
  for (size_t i = 0; i < 3; ++i) encoded.stride[i] = static_cast<uint64_t>(map.stride[i]) * 2;
  encoded.box = {static_cast<uint32_t>(kCopyColumns), static_cast<uint32_t>(map.box_tokens)};
  return encode_fields(encoded);
}

template <class F>
void with_traits(const Plan& plan, DType dtype, const F& f) {
  const auto with_sums = [&](auto element, auto head_dim) {
    using T = decltype(element);
    constexpr int kHeadDim = decltype(head_dim)::value;
    switch (plan.sums) {
      case Sums::kNone:
        return plan.split ? f(Sm90<T, kHeadDim, Sums::kNone, true>{}) : f(Sm90<T, kHeadDim, Sums::kNone, false>{});
      case Sums::kShared: return f(Sm90<T, kHeadDim, Sums::kShared, false>{});
      case Sums::kOwn: return f(Sm90<T, kHeadDim, Sums::kOwn, false>{});
    }
  };
  if (dtype == DType::kFloat16) {  // the element type changes three instructions: one head_dim stands for both
    ASSERT_EQ(plan.head_dim, 64);
    return with_sums(F16{}, std::integral_constant<int, 64>{});
  }
  plan.head_dim == 64 ? with_sums(Bf16{}, std::integral_constant<int, 64>{})
                      : with_sums(Bf16{}, std::integral_constant<int, 128>{});
}

Report run(const Plan& plan, DType dtype, Launch launch) {
  Report report;
  const CopyMaps maps = copy_maps(plan);
  const Sm90Args args{plan.args, encode(maps.q), encode(maps.k), encode(maps.v)};
  with_traits(plan, dtype, [&](auto traits) {
    using Traits = decltype(traits);
    launch.shared_bytes = Traits::kSharedBytes;
    report = emulator::run(launch, [&] { attention_sm90<Traits>(args); });
  });
  return report;
}

void order_longest_first(const Plan& plan, const Lists& lists, std::vector<int32_t>& order) {
  const AttentionArgs& args = plan.args;
  Launch launch;
  launch.blocks = 2;
  launch.threads = 64;
  launch.memory = {region_of(lists.counts, false), region_of(order, true)};
  emulator::run(launch, [&] {
    order_items({lists.counts.data(), order.data(), args.batch * args.heads, args.list_rows, args.list_shift,
                 args.items, args.item_rows});
  });
}

// By `blocks` blocks.
Report attention(Call& call, const Lists* lists, int blocks, const How& how = {}) {
  Plan plan = plan_attention(call.params, lists ? &lists->rows : nullptr);
  EXPECT_TRUE(move_to_sm90(plan));
  std::vector<int32_t> order(static_cast<size_t>(plan.blocks), -1);
  Launch launch = launch_of(plan, call, how);
  launch.blocks = std::min(blocks, static_cast<int>(plan.blocks));
  if (lists) {
    order_longest_first(plan, *lists, order);
    plan.args.order = order.data();
    launch.memory.push_back(region_of(order, false));
    launch.memory.push_back(region_of(lists->counts, false));
    launch.memory.push_back(region_of(lists->indices, false));
  }
  return run(plan, call.params.q.dtype, launch);
}

Selected attention_and_scores(Call& call, const SelectParams& select, int blocks, const How& how = {}) {
  Plan plan = plan_selection(call.params, select);
  EXPECT_TRUE(move_to_sm90(plan));
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

struct Case16 {
  DType dtype;
  Case shape;
};

// A few tiles, ragged everywhere, columns beyond the arrays.
std::vector<Case16> cases() {
  constexpr DType kBf16 = DType::kBFloat16, kF16 = DType::kFloat16;
  return {
      {kBf16, {1, 1, 1, 1, 1, 128, false, false, 1}},     {kBf16, {1, 1, 2, 130, 270, 128, false, false, 2}},
      {kBf16, {2, 1, 1, 37, 129, 128, true, true, 3}},    {kBf16, {1, 2, 1, 128, 64, 64, false, true, 4}},
      {kBf16, {1, 1, 3, 70, 400, 64, true, false, 5}},    {kF16, {1, 1, 2, 150, 257, 64, true, true, 6}},
      {kF16, {1, 1, 1, 20, 640, 48, false, false, 7}},    {kBf16, {1, 1, 1, 200, 384, 112, true, true, 8}},
      {kBf16, {1, 1, 1, 256, 256, 128, false, false, 9}},
  };
}

std::string name_of(const Case16& c) {
  return message(dtype_name(c.dtype), " head_dim ", c.shape.head_dim, " seed ", c.shape.seed);
}

TEST(CudaSm90Attention, DenseMatchesReference) {
  for (const Case16& c : cases()) {
    for (Landing landing : {Landing::kEarly, Landing::kLate}) {
      Call call(c.shape, c.dtype);
      attention(call, nullptr, 1 + static_cast<int>(c.shape.seed % 3), {landing, c.shape.seed});
      expect_matches_reference(call, name_of(c));
    }
  }
}

TEST(CudaSm90Attention, SparseMatchesReference) {
  for (int block_size : {16, 32, 64, 128, 256}) {
    for (const Case16& c : cases()) {
      if ((c.shape.seed + static_cast<unsigned>(block_size) / 16) % 2) continue;
      Call call(c.shape, c.dtype);
      const BlockPattern pattern = random_pattern(c.shape, block_size, 50);
      const Lists lists(pattern);
      attention(call, &lists, 2, {c.shape.seed % 4 < 2 ? Landing::kLate : Landing::kEarly, c.shape.seed});
      const BlockLists host = pattern.expand();
      call.params.lists = &host;
      expect_matches_reference(call, message(name_of(c), " block ", block_size));
    }
  }
}

TEST(CudaSm90Attention, SelectionSumsMatchReference) {
  int number = 0;
  for (int block_size : {16, 32, 64, 128, 256}) {
    for (const Case16& c : cases()) {
      if ((++number + block_size / 16) % 2) continue;
      Case shape = c.shape;
      shape.q_len = shape.kv_len = std::max(shape.q_len, shape.kv_len) * 2 / 3 + 1;
      Call call(shape, c.dtype);
      SelectParams select;
      select.block_size = block_size;
      select.rule = number % 4 < 2 ? SelectionRule::kPaper : SelectionRule::kReference;
      select.prompt_length = shape.kv_len * (number % 7) / 7;
      select.scale = number % 3 ? call.params.scale : .3f;
      const std::string what = message(name_of(c), " block ", block_size, " rule ", static_cast<int>(select.rule),
                                       " prompt ", select.prompt_length, " of ", shape.kv_len);
      const Selected selected = attention_and_scores(call, select, 1 + number % 3,
                                                     {number % 8 < 4 ? Landing::kLate : Landing::kEarly, shape.seed});
      expect_selection(call, select, selected, what);
    }
  }
}

TEST(CudaSm90Attention, SelectionAloneHasTheSameScores) { expect_same_scores_alone(attention_and_scores); }

TEST(CudaSm90Attention, LongestListsComeFirst) {
  for (int block_size : {32, 128, 256}) {  // one item a list, and two
    const Case shape{1, 1, 2, 40 * block_size - 5, 600, 64, false, false, 24};
    Call call(shape, DType::kBFloat16);
    const Lists lists(random_pattern(shape, block_size, 50));
    Plan plan = plan_attention(call.params, &lists.rows);
    ASSERT_TRUE(move_to_sm90(plan));
    std::vector<int32_t> order(static_cast<size_t>(plan.blocks), -1);
    order_longest_first(plan, lists, order);
    const int items = plan.args.items, per_list = std::max(1, block_size / plan.args.item_rows);
    for (int head = 0; head < 2; ++head) {
      std::vector<int32_t> expected(static_cast<size_t>(items));
      std::iota(expected.begin(), expected.end(), 0);
      const auto length = [&](int32_t item) {
        return lists.counts[static_cast<size_t>(head * plan.args.list_rows + item / per_list)];
      };
      std::stable_sort(expected.begin(), expected.end(), [&](int a, int b) { return length(a) > length(b); });
      const auto begin = order.begin() + head * items;
      EXPECT_EQ(std::vector<int32_t>(begin, begin + items), expected) << block_size;
    }
  }
}

TEST(CudaSm90Attention, FullPatternHasTheBitsOfDense) {
  for (int block_size : {128, 256}) {
    const Case shape{1, 1, 2, 150, 390, 128, true, false, 12};
    Call dense(shape, DType::kBFloat16), sparse(shape, DType::kBFloat16);
    const Lists lists(random_pattern(shape, block_size, 100));
    attention(dense, nullptr, 2);
    attention(sparse, &lists, 2);
    EXPECT_EQ(dense.out.storage, sparse.out.storage) << block_size;
    EXPECT_EQ(dense.lse, sparse.lse) << block_size;
  }
}

// A last block of which a few keys exist, listed alone and with others.
TEST(CudaSm90Attention, LastBlockMayBeShort) {
  for (int block_size : {16, 32, 64, 128, 256}) {
    for (const int64_t tail : {1, 15, 66}) {
      if (tail >= block_size) continue;
      const Case shape{1, 1, 2, 40, block_size + tail, 64, false, false, 23};
      BlockPattern pattern({1, 2, block_size, 40, block_size + tail, 0}, "test");
      for (int64_t row = 0; row < pattern.rows(); ++row) {
        pattern.set(row, 1);
        if (row % 2) pattern.set(row, 0);
      }
      Call call(shape, DType::kBFloat16);
      const Lists lists(pattern);
      attention(call, &lists, 2);
      const BlockLists host = pattern.expand();
      call.params.lists = &host;
      expect_matches_reference(call, message("block ", block_size, ", tail ", tail));
    }
  }
}

TEST(CudaSm90Attention, EmptyRowsGiveZero) {
  for (int block_size : {32, 128}) {
    const Case shape{1, 1, 2, 130, 130, 64, false, false, 11};
    Call call(shape, DType::kBFloat16);
    const Lists lists(random_pattern(shape, block_size, 0));
    attention(call, &lists, 2);
    for (float lse : call.lse) EXPECT_EQ(lse, -INFINITY);
    for (int64_t i = 0; i < 2 * 130 * 64; ++i) EXPECT_EQ(load_float(call.out.view.data, DType::kBFloat16, i), 0.f);
  }
}

TEST(CudaSm90Attention, HiddenKeysMayHoldAnything) {
  const Case shape{1, 1, 1, 40, 300, 64, true, false, 22};
  Call call(shape, DType::kBFloat16), poisoned(shape, DType::kBFloat16);
  for (int64_t key = 0; key < 300; ++key) {
    if (call.mask[static_cast<size_t>(key)]) continue;
    for (int64_t d = 0; d < 64; ++d) {
      store_float(poisoned.k.view.row(0, 0, key), DType::kBFloat16, d, NAN);
      store_float(poisoned.v.view.row(0, 0, key), DType::kBFloat16, d, INFINITY);
    }
  }
  attention(call, nullptr, 1);
  attention(poisoned, nullptr, 1);
  EXPECT_EQ(call.out.storage, poisoned.out.storage);
}

TEST(CudaSm90Attention, NanReachesOnlyTheRowsThatSeeIt) {
  const Case shape{1, 1, 1, 64, 256, 64, false, false, 14};
  Call call(shape, DType::kBFloat16);
  store_float(call.q.view.row(0, 0, 5), DType::kBFloat16, 3, NAN);
  attention(call, nullptr, 1);
  for (int64_t i = 0; i < 64; ++i) {
    for (int64_t d = 0; d < 64; ++d) EXPECT_EQ(std::isnan(call.out.at(0, 0, i, d)), i == 5) << i;
  }
}

// What these kernels do not do stays with the others.
TEST(CudaSm90Attention, OtherCallsKeepTheirPlan) {
  const auto moves = [](const Case& shape, DType dtype, auto change) {
    Call call(shape, dtype);
    change(call.params);
    Plan plan = plan_attention(call.params, nullptr);
    return move_to_sm90(plan);
  };
  const auto nothing = [](AttentionParams&) {};
  const Case shape{1, 1, 2, 40, 40, 64, false, false, 15};
  EXPECT_TRUE(moves(shape, DType::kBFloat16, nothing));
  EXPECT_FALSE(moves(shape, DType::kFloat32, nothing));
  EXPECT_FALSE(moves({1, 1, 2, 40, 40, 256, false, false, 15}, DType::kBFloat16, nothing));
  EXPECT_FALSE(moves({1, 1, 2, 40, 40, 32, false, false, 15}, DType::kBFloat16, nothing));
  EXPECT_FALSE(moves(shape, DType::kBFloat16, [](AttentionParams& p) { p.q.stride[1] = 0; }));
  EXPECT_FALSE(moves(shape, DType::kBFloat16, [](AttentionParams& p) { p.k.stride[2] = -64; }));
  EXPECT_TRUE(moves(shape, DType::kBFloat16, [](AttentionParams& p) { p.k.stride[1] = -64; }));  // one head
}

// No access to shared memory waits for a bank.
TEST(CudaSm90Attention, NoBankConflicts) {
  for (const int64_t head_dim : {64, 128}) {
    const Case shape{1, 1, 1, 128, 300, head_dim, true, false, 16};
    for (int block_size : {0, 16, 64, 128}) {
      Call call(shape, DType::kBFloat16);
      const Lists lists(random_pattern(shape, block_size ? block_size : 16, 60));
      const Report report = attention(call, block_size ? &lists : nullptr, 1);
      for (const auto& [place, count] : report.accesses) {
        EXPECT_EQ(count.conflicts, 0) << place.first << ":" << place.second << " " << count.kind << ", head_dim "
                                      << head_dim << ", block " << block_size;
      }
    }
  }
}

}  // namespace
}  // namespace sparsed::cuda
