// The CUDA kernels' source on the emulator, against the float64 reference.
#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "attention_cases.h"
#include "cuda/attention_sm80.cuh"
#include "cuda/plan.h"
#include "machine.h"

namespace sparsed::cuda {
namespace {

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

Region region_of(const RandomArray& array, bool writable) {
  return {array.storage.data(), array.storage.size() * sizeof(float), writable};
}

template <class T>
Region region_of(const std::vector<T>& array, bool writable) {
  return {array.data(), array.size() * sizeof(T), writable};
}

struct How {
  Landing landing = Landing::kLate;
  unsigned seed = 0;
};

Launch launch_of(const Plan& plan, const Call& call, const How& how) {
  Launch launch;
  launch.threads = plan.threads;
  launch.landing = how.landing;
  launch.seed = how.seed;
  launch.memory = {region_of(call.q, false),  region_of(call.k, false),   region_of(call.v, false),
                   region_of(call.out, true), region_of(call.lse, true), region_of(call.mask, false)};
  return launch;
}

Report run(const Plan& plan, DType dtype, Launch launch) {
  Report report;
  EXPECT_EQ(plan.kernel, Kernel::kSm80);
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

struct Case16 {
  DType dtype;
  Case shape;
};

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
  };
}

std::string name_of(const Case16& c) {
  return message(dtype_name(c.dtype), " head_dim ", c.shape.head_dim, " seed ", c.shape.seed);
}

TEST(CudaAttention, DenseMatchesReference) {
  for (const Case16& c : cases()) {
    for (const How& how : {How{Landing::kLate, 0}, How{Landing::kEarly, 1}}) {
      Call call(c.shape, c.dtype);
      attention(call, nullptr, how);
      expect_matches_reference(call, name_of(c));
    }
  }
}

TEST(CudaAttention, SparseMatchesReference) {
  for (int block_size : {16, 32, 64, 128, 256}) {
    for (const Case16& c : cases()) {
      if ((c.shape.seed + static_cast<unsigned>(block_size) / 16) % 2) continue;
      Call call(c.shape, c.dtype);
      const BlockPattern pattern = random_pattern(c.shape, block_size, 35);
      const Lists lists(pattern);
      attention(call, &lists, {c.shape.seed % 2 ? Landing::kLate : Landing::kEarly, c.shape.seed});
      const BlockLists host = pattern.expand();
      call.params.lists = &host;
      expect_matches_reference(call, message(name_of(c), " block ", block_size));
    }
  }
}

}  // namespace
}  // namespace sparsed::cuda
