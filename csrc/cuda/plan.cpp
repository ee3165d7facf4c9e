#include "cuda/plan.h"

#include <algorithm>
#include <bit>

#include "core/pattern.h"
#include "core/selection.h"
#include "cuda/sm80/config.h"
#include "support/error.h"
#include "support/softmax_constants.h"

namespace sparsed::cuda {
namespace {

Array array_of(const TensorView& view) { return {view.data, view.stride[0], view.stride[1], view.stride[2]}; }

bool aligned(const TensorView& view) {
  if (!view.data) return true;
  const auto steps = {view.stride[0], view.stride[1], view.stride[2]};
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 &&
         std::all_of(steps.begin(), steps.end(), [](int64_t step) { return step % 8 == 0; });
}

int kernel_head_dim(int head_dim) {
  for (int size : {32, 64, 96, 128}) {
    if (head_dim <= size) return size;
  }
  return 256;
}

int warp_rows(const Plan& plan) {
  return plan.kernel == Kernel::kSm80 ? sm80::warp_rows(plan.head_dim, plan.sums) : 32;
}

Plan make_plan(const AttentionParams& params) {
  constexpr int64_t kMost = int64_t{1} << 29;  // rows and items stay within int
  const int64_t heads = params.batch() * params.heads();
  check(params.q_len() <= kMost && params.kv_len() <= kMost, "q and k have lengths ", params.q_len(), " and ",
        params.kv_len(), ", expected at most ", kMost);
  check(heads * ((params.q_len() + 15) / 16) <= kMost, "q has shape ", shape_string(params.q.shape),
        ", expected at most ", kMost, " blocks of 16 tokens");
  Plan plan;
  AttentionArgs& args = plan.args;
  args.q = array_of(params.q);
  args.k = array_of(params.k);
  args.v = array_of(params.v);
  args.out = array_of(params.out);
  args.lse = params.lse;
  args.key_mask = params.key_mask;
  args.batch = static_cast<int>(params.batch());
  args.heads = static_cast<int>(params.heads());
  // Key/value heads that share memory are one: copies of tiles take no stride of 0.
  const bool shared = params.kv_heads() > 1 && args.k.head == 0 && (!args.v.data || args.v.head == 0);
  args.gqa_ratio = static_cast<int>(shared ? params.heads() : params.heads() / params.kv_heads());
  args.q_len = static_cast<int>(params.q_len());
  args.kv_len = static_cast<int>(params.kv_len());
  args.head_dim = static_cast<int>(params.head_dim());
  args.scale = std::max(params.scale * kLog2e, kMinScale);
  const bool halves = params.q.dtype != DType::kFloat32;
  if (halves && aligned(params.q) && aligned(params.k) && aligned(params.v) && aligned(params.out)) {
    plan.kernel = Kernel::kSm80;
  }
  plan.head_dim = plan.kernel == Kernel::kSm80 ? kernel_head_dim(args.head_dim) : 256;
  return plan;
}

void set_tiles(Plan& plan, int block_rows, bool whole_blocks) {
  const int rows = warp_rows(plan);
  const int warps = whole_blocks ? sm80::kMaxWarps : std::clamp(block_rows / rows, 1, sm80::kMaxWarps);
  plan.threads = warps * 32;
  plan.args.tile_rows = std::min(warps * rows, whole_blocks ? warps * rows : block_rows);
  plan.args.item_rows = whole_blocks ? std::max(plan.args.tile_rows, block_rows) : plan.args.tile_rows;
  plan.args.items = (plan.args.q_len + plan.args.item_rows - 1) / plan.args.item_rows;
  plan.blocks = int64_t{plan.args.batch} * plan.args.heads * plan.args.items;
}

}  // namespace

Plan plan_attention(const AttentionParams& params, const PatternGeometry* pattern) {
  Plan plan = make_plan(params);
  if (pattern) {
    const auto [q, kv] = pattern->block;
    check(q == kv, "pattern has query blocks of ", q, " and key blocks of ", kv,
          " tokens, expected blocks of one size (CUDA)");
    plan.args.list_shift = std::countr_zero(static_cast<unsigned>(kv));
    plan.args.list_rows = static_cast<int>(pattern->q_blocks());
  }
  // A tile lies in one query block: its rows share a list.
  set_tiles(plan, pattern ? pattern->block.q : sm80::kMaxWarps * warp_rows(plan), false);
  return plan;
}

Plan plan_selection(const AttentionParams& params, const SelectParams& select) {
  Plan plan = make_plan(params);
  SelectArgs& args = plan.args.select;
  args.scale = std::max(select.scale * kLog2e, kMinScale);
  args.generation_apart = select.rule == SelectionRule::kReference && select.isolate;
  args.block_shift = std::countr_zero(static_cast<unsigned>(select.block_size));
  args.kv_blocks = static_cast<int>(num_blocks(params.kv_len(), select.block_size));
  args.q_blocks = static_cast<int>(num_blocks(params.q_len(), select.block_size));
  args.generation_block =
      static_cast<int>(first_generation_block(params.kv_len(), select.prompt_length, select.block_size));
  plan.sums = args.generation_apart || select.scale != params.scale ? Sums::kSeparate : Sums::kShared;
  set_tiles(plan, select.block_size, true);
  args.threads = plan.threads;
  return plan;
}

size_t partial_bytes(const Plan& plan) {
  return sizeof(PartialSum) * static_cast<size_t>(plan.args.select.kv_blocks + 1) *
         static_cast<size_t>(plan.args.select.threads);
}

size_t score_bytes(const Plan& plan) {
  const SelectArgs& select = plan.args.select;
  return sizeof(float) * static_cast<size_t>(plan.args.batch) * static_cast<size_t>(plan.args.heads) *
         static_cast<size_t>(select.q_blocks) * static_cast<size_t>(select.kv_blocks);
}

}  // namespace sparsed::cuda
