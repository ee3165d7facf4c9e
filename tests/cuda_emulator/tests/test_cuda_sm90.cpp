// The sm_90a kernels' source on the emulator, against the float64 reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "attention_cases.h"
#include "cuda/selection/top_k.cuh"
#include "cuda/sm90/kernel.cuh"
#include "cuda/sm90/plan.h"
#include "cuda_family_tests.h"

namespace sparsed::cuda {
namespace {

TensorMap encode(const CopyMap& map) {
  emulator::TensorMap encoded;
  encoded.data = static_cast<const std::byte*>(map.data);
  for (size_t i = 0; i < 4; ++i) encoded.size[i] = static_cast<uint64_t>(map.size[i]);
  for (size_t i = 0; i < 3; ++i) encoded.stride[i] = static_cast<uint64_t>(map.stride[i]) * 2;
  encoded.box = {static_cast<uint32_t>(sm90::kPanelColumns), static_cast<uint32_t>(map.box_tokens)};
  return encode_fields(encoded);
}

template <class F>
void with_traits(const Plan& plan, DType dtype, const F& f) {
  if (dtype == DType::kFloat16) {  // the element type changes three instructions: one head_dim stands for both
    ASSERT_EQ(plan.head_dim, 64);
    return with_sm90<F16, 64>(plan.sums, plan.split, plan.output(), f);
  }
  plan.head_dim == 64 ? with_sm90<Bf16, 64>(plan.sums, plan.split, plan.output(), f)
                      : with_sm90<Bf16, 128>(plan.sums, plan.split, plan.output(), f);
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

struct Sm90Family {
  static constexpr int64_t kNarrow = 64;
  static constexpr int kDenseBlocks[] = {128, 256};  // smaller ones leave a tile's keys in another order

  static Report attention(Call& call, const Lists* lists, const How& how) {
    Plan plan = plan_of(call, lists);
    EXPECT_TRUE(move_to_sm90(plan));
    std::vector<int32_t> order(static_cast<size_t>(plan.blocks), -1);
    Launch launch = launch_of(plan, call, how);
    launch.blocks = std::min(how.blocks, static_cast<int>(plan.blocks));
    if (lists) {
      order_longest_first(plan, *lists, order);
      plan.args.order = order.data();
      launch.memory.push_back(region_of(order, false));
      launch.memory.push_back(region_of(lists->counts, false));
      launch.memory.push_back(region_of(lists->indices, false));
    }
    return run(plan, call.params.q.dtype, launch);
  }

  static Selected attention_and_scores(Call& call, const SelectParams& select, const How& how) {
    Plan plan = plan_selection(call.params, select);
    EXPECT_TRUE(move_to_sm90(plan));
    return run_selection(plan, call, how, run);
  }

  // A few tiles, ragged everywhere, columns beyond the arrays.
  static std::vector<Case16> cases() {
    constexpr DType kBf16 = DType::kBFloat16, kF16 = DType::kFloat16;
    return {
        {kBf16, {1, 1, 1, 1, 1, 128, false, false, 1}},     {kBf16, {1, 1, 2, 130, 270, 128, false, false, 2}},
        {kBf16, {2, 1, 1, 37, 129, 128, true, true, 3}},    {kBf16, {1, 2, 1, 128, 64, 64, false, true, 4}},
        {kBf16, {1, 1, 3, 70, 400, 64, true, false, 5}},    {kF16, {1, 1, 2, 150, 257, 64, true, true, 6}},
        {kF16, {1, 1, 1, 20, 640, 48, false, false, 7}},    {kBf16, {1, 1, 1, 200, 384, 112, true, true, 8}},
        {kBf16, {1, 1, 1, 256, 256, 128, false, false, 9}},
    };
  }
};
INSTANTIATE_TYPED_TEST_SUITE_P(Sm90, CudaKernels, Sm90Family);

TEST(CudaSm90Attention, LongestListsComeFirst) {
  for (int block_size : {32, 128, 256}) {  // one item a list, and two
    const Case shape{1, 1, 2, 40 * block_size - 5, 600, 64, false, false, 24};
    Call call(shape, DType::kBFloat16);
    const Lists lists(random_pattern(shape, block_size, 50));
    Plan plan = plan_of(call, &lists);
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
      const Report report = Sm90Family::attention(call, block_size ? &lists : nullptr, {});
      for (const auto& [place, count] : report.accesses) {
        EXPECT_EQ(count.conflicts, 0) << place.first << ":" << place.second << " " << count.kind << ", head_dim "
                                      << head_dim << ", block " << block_size;
      }
    }
  }
}

}  // namespace
}  // namespace sparsed::cuda
