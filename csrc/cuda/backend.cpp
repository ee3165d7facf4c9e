// The CUDA backend: arrays are used where they lie in device memory, and everything is queued on a stream.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "core/selection.h"
#include "cuda/cuda.h"
#include "cuda/pattern.h"
#include "cuda/runtime.h"
#include "cuda/selection/params.h"
#include "cuda/sm90/plan.h"
#include "cuda/sm90/tensor_map.h"
#include "support/error.h"

namespace sparsed::cuda {
namespace {

constexpr int kThreads = 128;                            // of the kernels that take a row a warp
constexpr size_t kMostPartialBytes = size_t{512} << 20;  // of the selection's partial sums, all blocks together

int64_t warp_blocks(int64_t warps) { return std::min<int64_t>((warps + 3) / 4, 1 << 16); }

// The kernels of compute capability 9.0a run on 9.0 and on nothing else; a build for other architectures lacks them.
Plan for_this_device(Plan plan) {
  if (has_sm90a_kernels() && compute_capability(current_device()) == 90) move_to_sm90(plan);
  return plan;
}

DeviceKernel kernel_of(const Plan& plan, DType dtype) {
  if (plan.kernel == Kernel::kPlain) return kernel_plain(dtype, plan.sums);
  if (plan.kernel == Kernel::kSm90) {
    return plan.head_dim == 64 ? kernel_sm90<64>(dtype, plan) : kernel_sm90<128>(dtype, plan);
  }
  const int warps = plan.threads / 32;
  switch (plan.head_dim) {
    case 32: return kernel_sm80<32>(dtype, plan.sums, warps);
    case 64: return kernel_sm80<64>(dtype, plan.sums, warps);
    case 96: return kernel_sm80<96>(dtype, plan.sums, warps);
    case 128: return kernel_sm80<128>(dtype, plan.sums, warps);
    default: return kernel_sm80<256>(dtype, plan.sums, warps);
  }
}

void launch_attention(const Plan& plan, DType dtype, int64_t blocks, cudaStream_t stream) {
  const DeviceKernel kernel = kernel_of(plan, dtype);
  if (plan.kernel != Kernel::kSm90) return launch(kernel, blocks, plan.threads, &plan.args, stream);
  const CopyMaps maps = copy_maps(plan);
  const Sm90Args args{plan.args, encode_map(maps.q, dtype), encode_map(maps.k, dtype), encode_map(maps.v, dtype)};
  launch(kernel, blocks, plan.threads, &args, stream);
}

// `bytes` for each of `blocks`, or of fewer where memory is short: those that are there take work items in turn.
DeviceMemory partial_memory(size_t bytes, int64_t& blocks, cudaStream_t stream) {
  for (;; blocks /= 2) {
    try {
      return DeviceMemory(bytes * static_cast<size_t>(blocks), stream);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kMemory || blocks <= 1) throw;
    }
  }
}

// q decides where the work runs.
int device_of_params(const AttentionParams& params) {
  const int device = device_of(params.q.data);
  check(device >= 0, "cuda: q is not in the memory of a device");
  return device;
}

void attention(const AttentionParams& params, const BlockPattern* pattern) {
  if (params.batch() * params.heads() * params.q_len() == 0) return;
  const CurrentDevice current(device_of_params(params));
  const auto stream = static_cast<cudaStream_t>(params.stream);
  check_can_run(stream);
  Plan plan = plan_attention(params, pattern ? &pattern->geometry() : nullptr);
  AttentionArgs& args = plan.args;
  DeviceMemory counts, indices, order;
  if (pattern) {
    const std::shared_ptr<const DeviceBits> bits = bits_on(*pattern, current_device(), stream);
    counts = DeviceMemory(static_cast<size_t>(bits->rows()) * sizeof(int32_t), stream);
    indices = DeviceMemory(static_cast<size_t>(bits->rows() * bits->max_blocks()) * sizeof(int32_t), stream);
    const ListArgs list{bits->data(),  counts.as<int32_t>(), indices.as<int32_t>(), static_cast<int>(bits->rows()),
                        bits->words(), bits->max_blocks()};
    bits->use(stream, [&] { launch(kernel_list_blocks(), warp_blocks(bits->rows()), kThreads, &list, stream); });
    args.counts = list.counts;
    args.indices = list.indices;
    args.list_stride = list.stride;
  }
  plan = for_this_device(plan);
  const DType dtype = params.q.dtype;
  if (plan.kernel == Kernel::kSm90 && pattern) {
    order = DeviceMemory(static_cast<size_t>(plan.blocks) * sizeof(int32_t), stream);
    args.order = order.as<int32_t>();
    const OrderArgs items{args.counts,     order.as<int32_t>(), args.batch * args.heads, args.list_rows,
                          args.list_shift, args.items,          args.item_rows};
    launch(kernel_order_items(), warp_blocks(plan.blocks), kThreads, &items, stream);
  }
  int64_t blocks = plan.blocks;
  if (plan.kernel == Kernel::kSm90) blocks = std::min(blocks, resident_blocks(kernel_of(plan, dtype), plan.threads));
  launch_attention(plan, dtype, blocks, stream);
}

BlockPattern attention_and_select(const AttentionParams& params, const SelectParams& select) {
  const PatternGeometry geometry{params.batch(), params.heads(),  select.block_size,
                                 params.q_len(), params.kv_len(), select.prompt_length};
  if (params.empty()) {
    if (params.out.data) attention(params, nullptr);
    return {geometry, Checker()};
  }
  const CurrentDevice current(device_of_params(params));
  const auto stream = static_cast<cudaStream_t>(params.stream);
  check_can_run(stream);
  Plan plan = for_this_device(plan_selection(params, select));
  const DeviceKernel kernel = kernel_of(plan, params.q.dtype);
  const int64_t afford = static_cast<int64_t>(kMostPartialBytes / partial_bytes(plan));
  int64_t blocks = std::min({plan.blocks, resident_blocks(kernel, plan.threads), std::max<int64_t>(afford, 1)});
  SelectArgs& args = plan.args.select;
  DeviceMemory scores, generation, live;
  if (!select.scores) scores = DeviceMemory(score_bytes(plan), stream);
  args.scores = select.scores ? select.scores : scores.as<float>();
  if (args.generation_apart) {
    generation = DeviceMemory(score_bytes(plan), stream);
    args.generation = generation.as<float>();
  }
  const DeviceMemory partial = partial_memory(partial_bytes(plan), blocks, stream);
  args.partial = partial.as<PartialSum>();
  launch_attention(plan, params.q.dtype, blocks, stream);

  if (params.key_mask) {
    const int64_t live_count = params.batch() * args.kv_blocks;
    live = DeviceMemory(static_cast<size_t>(live_count), stream);
    const LiveArgs live_args{params.key_mask,  live.as<uint8_t>(), plan.args.batch,
                             plan.args.kv_len, args.kv_blocks,     select.block_size};
    launch(kernel_live_blocks(), warp_blocks(live_count), kThreads, &live_args, stream);
  }
  const auto bits = std::make_shared<DeviceBits>(geometry, most_kept(select, geometry), stream);
  TopArgs top;
  top.scores = args.scores;
  top.generation = args.generation;
  top.live = live.as<uint8_t>();
  top.bits = bits->data();
  top.rows = static_cast<int>(bits->rows());
  top.batch_rows = plan.args.heads * args.q_blocks;
  top.kv_blocks = args.kv_blocks;
  top.words = bits->words();
  top.q_blocks = args.q_blocks;
  top.first_dense = select.dense_generation ? static_cast<int>(geometry.first_generation_q_block()) : args.q_blocks;
  top.rho = select.rho;
  top.ranges = select_ranges(select, params.kv_len());
  bits->use(stream, [&] { launch(kernel_top_rows(), warp_blocks(bits->rows()), kThreads, &top, stream); });
  return {geometry, current_device(), bits, max_density(select, geometry)};
}

std::vector<std::string> not_supported_reasons() {
  static const std::vector<std::string> reasons = missing_device();
  return reasons;
}

}  // namespace

Backend backend() { return {"cuda", not_supported_reasons, attention, attention_and_select}; }

}  // namespace sparsed::cuda
