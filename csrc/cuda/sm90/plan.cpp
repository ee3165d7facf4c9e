#include "cuda/sm90/plan.h"

#include <algorithm>

#include "cuda/sm90/config.h"

namespace sparsed::cuda {
namespace {

using sm90::kTileKeys, sm90::kTileRows, sm90::kWarpgroupRows;

CopyMap map_of(const Array& array, const AttentionArgs& args, int tokens, int heads, int box_tokens) {
  CopyMap map{
      array.data, {args.head_dim, tokens, heads, args.batch}, {array.token, array.head, array.batch}, box_tokens};
  for (size_t i = 0; i < 3; ++i) {  // the stride of a single entry may be anything
    if (map.size[i + 1] == 1) map.stride[i] = i ? map.stride[i - 1] * map.size[i] : (args.head_dim + 7) / 8 * 8;
  }
  return map;
}

bool can_copy(const CopyMap& map) {
  constexpr int64_t kMost = int64_t{1} << 39;  // elements: 2^40 bytes
  return std::all_of(map.stride.begin(), map.stride.end(), [](int64_t s) { return s > 0 && s < kMost; });
}

}  // namespace

CopyMaps copy_maps(const Plan& plan) {
  const AttentionArgs& args = plan.args;
  const int kv_heads = args.heads / args.gqa_ratio;
  const Array& values = args.v.data ? args.v : args.k;  // a selection alone reads none
  const int box = args.counts ? std::min(1 << args.list_shift, kTileKeys) : kTileKeys;
  return {map_of(args.q, args, args.q_len, args.heads, kWarpgroupRows),
          map_of(args.k, args, args.kv_len, kv_heads, box), map_of(values, args, args.kv_len, kv_heads, box)};
}

bool move_to_sm90(Plan& plan) {
  AttentionArgs& args = plan.args;
  if (plan.kernel != Kernel::kSm80 || (plan.head_dim != 64 && plan.head_dim != 128)) return false;
  if (plan.blocks == 0 || args.kv_len == 0) return false;
  const CopyMaps maps = copy_maps(plan);
  if (!can_copy(maps.q) || !can_copy(maps.k) || !can_copy(maps.v)) return false;
  const int block = args.counts ? 1 << args.list_shift : kTileRows;
  plan.kernel = Kernel::kSm90;
  plan.split = block <= kWarpgroupRows;
  plan.threads = sm90::kThreads;
  args.tile_rows = std::min(block, kTileRows);
  args.item_rows = plan.sums == Sums::kNone ? args.tile_rows : std::max(kTileRows, 1 << args.select.block_shift);
  args.items = (args.q_len + args.item_rows - 1) / args.item_rows;
  args.select.threads = sm90::kComputingThreads;
  plan.blocks = int64_t{args.batch} * args.heads * args.items;
  return true;
}

}  // namespace sparsed::cuda
