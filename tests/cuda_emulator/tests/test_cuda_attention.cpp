// The CUDA kernels' source on the emulator, against the float64 reference.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "attention_cases.h"
#include "cuda/plain/kernel.cuh"
#include "cuda/plan.h"
#include "cuda/sm80/kernel.cuh"
#include "cuda_family_tests.h"

namespace sparsed::cuda {
namespace {

template <class T, class F>
void with_plain_traits(const Plan& plan, const F& f) {
  switch (plan.sums) {
    case Sums::kNone: f(Plain<T, Sums::kNone>{}); break;
    case Sums::kShared: f(Plain<T, Sums::kShared>{}); break;
    case Sums::kSeparate: f(Plain<T, Sums::kSeparate>{}); break;
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
      case Sums::kSeparate: f(Sm80<T, kHeadDim, Sums::kSeparate>{}); break;
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

struct Sm80Family {
  static constexpr int64_t kNarrow = 32;
  static constexpr int kDenseBlocks[] = {16, 32, 64, 128, 256};

  static Report attention(Call& call, const Lists* lists, const How& how) {
    const Plan plan = plan_of(call, lists);
    Launch launch = launch_of(plan, call, how);
    launch.blocks = static_cast<int>(plan.blocks);
    if (lists) {
      launch.memory.push_back(region_of(lists->counts, false));
      launch.memory.push_back(region_of(lists->indices, false));
    }
    return run(plan, call.params.q.dtype, launch);
  }

  static Selected attention_and_scores(Call& call, const SelectParams& select, const How& how) {
    return run_selection(plan_selection(call.params, select), call, how, run);
  }

  // A few tiles, ragged everywhere, every head_dim that is compiled, and some that are not.
  static std::vector<Case16> cases() {
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
};
INSTANTIATE_TYPED_TEST_SUITE_P(Sm80, CudaKernels, Sm80Family);

// The cases of the CPU's kernels.
TEST(CudaAttention, RandomCasesMatchReference) {
  int number = 0;
  for (const Case& c : random_cases(16)) {
    const How how{++number % 2 ? Landing::kEarly : Landing::kLate, c.seed};
    Call dense(c, DType::kBFloat16), sparse(c, DType::kBFloat16);
    Sm80Family::attention(dense, nullptr, how);
    expect_matches_reference(dense, nullptr, message("dense, seed ", c.seed));
    const int block_size = 16 << number % 5;
    expect_sparse_matches_reference<Sm80Family>(sparse, random_pattern(c, block_size, 35), how,
                                                message("block ", block_size, ", seed ", c.seed));
  }
}

// A generation that gets e^-200 of the mass still ranks its own blocks.
TEST(CudaAttention, GenerationSoftmaxDoesNotUnderflow) {
  UnlikelyGeneration call;
  const Selected selected = Sm80Family::attention_and_scores(call, call.select, {});
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
      const Report report = Sm80Family::attention(call, block_size ? &lists : nullptr, {});
      if (!block_size) table.add(message("dense, head_dim ", head_dim), report);
      EXPECT_EQ(report.conflicts(), 0) << "head_dim " << head_dim << ", block " << block_size;
    }
    SelectParams select;
    select.block_size = 16;
    Call call({1, 1, 1, 192, 192, head_dim, false, false, 17}, DType::kBFloat16);
    select.scale = call.params.scale;
    const Report report = Sm80Family::attention_and_scores(call, select, {}).report;
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
