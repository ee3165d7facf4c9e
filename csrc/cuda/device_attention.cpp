#include "cuda/device_attention.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "core/error.h"
#include "core/selection.h"
#include "cuda/runtime.h"
#include "cuda/selection/params.h"
#include "cuda/sm90/plan.h"
#include "cuda/sm90/tensor_map.h"

namespace sparsed::cuda {
namespace {

const cudaStream_t kAlwaysThere = cudaStreamLegacy;
constexpr int kThreads = 128;                            // of the kernels that take a row a warp
constexpr size_t kMostPartialBytes = size_t{512} << 20;  // of the selection's partial sums, all blocks together

int64_t warp_blocks(int64_t warps) { return std::min<int64_t>((warps + 3) / 4, 1 << 16); }

// Bits as in BlockPattern, in device memory. The streams that use them may be gone before the pattern is: it is read
// and freed on the stream that is always there.
class CudaPattern final : public DevicePattern {
 public:
  CudaPattern(const PatternGeometry& geometry, int64_t most_blocks, cudaStream_t stream)
      : geometry_(geometry), most_blocks_(most_blocks), bits_(nbytes(), stream), device_(current_device()) {
    used_.set(stream);
    bits_.free_on(kAlwaysThere);
  }
  // Errors are not reported: at the end of a process the driver may be gone.
  ~CudaPattern() override {
    try {
      const CurrentDevice current(device_);
      used_.wait(kAlwaysThere);
    } catch (const Error&) {
    }
  }

  const PatternGeometry& geometry() const override { return geometry_; }
  BlockPattern to_host() const override {
    const CurrentDevice current(device_);
    std::vector<uint64_t> bits(nbytes() / sizeof(uint64_t));
    use(kAlwaysThere, [&] { cuda::to_host(bits.data(), bits_.data(), nbytes(), kAlwaysThere); });
    return BlockPattern::from_bits(geometry_, std::move(bits));
  }

  // Gives `stream` work on the bits: one after the other, whatever the streams and threads.
  template <class Work>
  void use(cudaStream_t stream, const Work& work) const {
    const std::lock_guard lock(mutex_);
    used_.wait(stream);
    work();
    used_.set(stream);
  }

  int64_t rows() const { return geometry_.batch * geometry_.heads * geometry_.q_blocks(); }
  int words() const { return static_cast<int>((geometry_.kv_blocks() + 63) / 64 * 2); }  // of 32 bits, per row
  size_t nbytes() const { return static_cast<size_t>(rows() * words()) * sizeof(uint32_t); }
  uint32_t* bits() const { return bits_.as<uint32_t>(); }
  int64_t most_blocks() const { return most_blocks_; }  // no row has more

 private:
  PatternGeometry geometry_;
  int64_t most_blocks_;
  DeviceMemory bits_;
  int device_;
  mutable std::mutex mutex_;
  StreamMark used_;
};

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

// Which arrays decide where the work runs.
int device_of_params(const AttentionParams& params) {
  const int device = device_of(params.q.data);
  check(device >= 0, "cuda: q is not in the memory of a device");
  return device;
}

}  // namespace

void attention_on_device(const AttentionParams& params, const DevicePattern* pattern) {
  const CurrentDevice current(device_of_params(params));
  const auto stream = static_cast<cudaStream_t>(params.stream);
  check_can_run(stream);
  BlockRows rows;
  DeviceMemory counts, indices, order;
  if (pattern) {
    const CudaPattern& own = dynamic_cast<const CudaPattern&>(*pattern);
    counts = DeviceMemory(static_cast<size_t>(own.rows()) * sizeof(int32_t), stream);
    indices = DeviceMemory(static_cast<size_t>(own.rows() * own.most_blocks()) * sizeof(int32_t), stream);
    const ListArgs list{own.bits(),  counts.as<int32_t>(), indices.as<int32_t>(), static_cast<int>(own.rows()),
                        own.words(), own.most_blocks()};
    own.use(stream, [&] { launch(kernel_list_blocks(), warp_blocks(own.rows()), kThreads, &list, stream); });
    rows = {own.geometry().block_size, list.counts, list.indices, list.stride};
  }
  const DType dtype = params.q.dtype;
  Plan plan = for_this_device(plan_attention(params, pattern ? &rows : nullptr));
  AttentionArgs& args = plan.args;
  if (plan.kernel == Kernel::kSm90 && pattern) {
    order = DeviceMemory(static_cast<size_t>(plan.blocks) * sizeof(int32_t), stream);
    args.order = order.as<int32_t>();
    const OrderArgs own{args.counts,     order.as<int32_t>(), args.batch * args.heads, args.list_rows,
                        args.list_shift, args.items,          args.item_rows};
    launch(kernel_order_items(), warp_blocks(plan.blocks), kThreads, &own, stream);
  }
  int64_t blocks = plan.blocks;
  if (plan.kernel == Kernel::kSm90) blocks = std::min(blocks, resident_blocks(kernel_of(plan, dtype), plan.threads));
  launch_attention(plan, dtype, blocks, stream);
}

std::shared_ptr<const DevicePattern> select_on_device(const AttentionParams& params, const SelectParams& select) {
  const CurrentDevice current(device_of_params(params));
  const auto stream = static_cast<cudaStream_t>(params.stream);
  check_can_run(stream);
  Plan plan = for_this_device(plan_selection(params, select));
  const DeviceKernel kernel = kernel_of(plan, params.q.dtype);
  const int64_t afford = static_cast<int64_t>(kMostPartialBytes / partial_bytes(plan));
  int64_t blocks = std::min({plan.blocks, resident_blocks(kernel, plan.threads), std::max<int64_t>(afford, 1)});
  SelectArgs& args = plan.args.select;
  const DeviceMemory scores(score_bytes(plan), stream);
  DeviceMemory generation, live;
  args.scores = scores.as<float>();
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
  const PatternGeometry geometry{params.batch(), params.heads(),  select.block_size,
                                 params.q_len(), params.kv_len(), select.prompt_length};
  const auto pattern = std::make_shared<CudaPattern>(geometry, most_kept(select, params.kv_len()), stream);
  TopArgs top;
  top.scores = args.scores;
  top.generation = args.generation;
  top.live = live.as<uint8_t>();
  top.bits = pattern->bits();
  top.rows = static_cast<int>(pattern->rows());
  top.batch_rows = plan.args.heads * args.q_blocks;
  top.kv_blocks = args.kv_blocks;
  top.words = pattern->words();
  top.rho = select.rho;
  top.ranges = select_ranges(select, params.kv_len());
  pattern->use(stream, [&] { launch(kernel_top_rows(), warp_blocks(pattern->rows()), kThreads, &top, stream); });
  return pattern;
}

std::shared_ptr<const DevicePattern> pattern_to_device(const BlockPattern& pattern, int device, void* stream) {
  const CurrentDevice current(device);
  const auto own = static_cast<cudaStream_t>(stream);
  check_can_run(own);
  const auto there = std::make_shared<CudaPattern>(pattern.geometry(), pattern.geometry().kv_blocks(), own);
  there->use(own, [&] { copy_to_device(there->bits(), pattern.bits().data(), there->nbytes(), own); });
  return there;
}

}  // namespace sparsed::cuda
