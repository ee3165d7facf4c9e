// What csrc/cuda's .cu files define, for the host.
#include "cuda/kernels.h"

#include "cuda/plain/kernel.cuh"
#include "cuda/selection/top_k.cuh"
#include "cuda/sm80/kernel.cuh"
#include "cuda/sm90/kernel.cuh"
#include "fake_runtime/runtime.h"

namespace sparsed::cuda {
namespace {

template <class Args, void (*kRun)(const Args&)>
const void* host_kernel() {
  static constexpr fake_runtime::HostKernel kernel{[](const void* args) { kRun(*static_cast<const Args*>(args)); }};
  return &kernel;
}

template <class T, int kHeadDim>
DeviceKernel sm80_kernel(Sums sums, int warps) {
  const auto of = [&](auto traits) {
    using Traits = decltype(traits);
    return DeviceKernel{host_kernel<AttentionArgs, attention_sm80<Traits>>(), Traits::shared_bytes(warps)};
  };
  switch (sums) {
    case Sums::kNone: return of(Sm80<T, kHeadDim, Sums::kNone>{});
    case Sums::kShared: return of(Sm80<T, kHeadDim, Sums::kShared>{});
    default: return of(Sm80<T, kHeadDim, Sums::kSeparate>{});
  }
}

template <class T, int kHeadDim>
DeviceKernel sm90_kernel(const Plan& plan) {
  return with_sm90<T, kHeadDim>(plan.sums, plan.split, plan.output(), [](auto traits) {
    using Traits = decltype(traits);
    return DeviceKernel{host_kernel<Sm90Args, attention_sm90<Traits>>(), Traits::kSharedBytes};
  });
}

template <class T>
DeviceKernel plain_kernel(Sums sums) {
  const auto of = [&](auto traits) {
    using Traits = decltype(traits);
    return DeviceKernel{host_kernel<AttentionArgs, attention_plain<Traits>>(), Traits::shared_bytes(0)};
  };
  switch (sums) {
    case Sums::kNone: return of(Plain<T, Sums::kNone>{});
    case Sums::kShared: return of(Plain<T, Sums::kShared>{});
    default: return of(Plain<T, Sums::kSeparate>{});
  }
}

}  // namespace

template <int kHeadDim>
DeviceKernel kernel_sm80(DType dtype, Sums sums, int warps) {
  return dtype == DType::kBFloat16 ? sm80_kernel<Bf16, kHeadDim>(sums, warps) : sm80_kernel<F16, kHeadDim>(sums, warps);
}
template DeviceKernel kernel_sm80<32>(DType, Sums, int);
template DeviceKernel kernel_sm80<64>(DType, Sums, int);
template DeviceKernel kernel_sm80<96>(DType, Sums, int);
template DeviceKernel kernel_sm80<128>(DType, Sums, int);
template DeviceKernel kernel_sm80<256>(DType, Sums, int);

template <int kHeadDim>
DeviceKernel kernel_sm90(DType dtype, const Plan& plan) {
  return dtype == DType::kBFloat16 ? sm90_kernel<Bf16, kHeadDim>(plan) : sm90_kernel<F16, kHeadDim>(plan);
}
template DeviceKernel kernel_sm90<64>(DType, const Plan&);
template DeviceKernel kernel_sm90<128>(DType, const Plan&);
bool has_sm90a_kernels() { return fake_runtime::machine().sm90a_compiled; }

DeviceKernel kernel_plain(DType dtype, Sums sums) {
  switch (dtype) {
    case DType::kFloat32: return plain_kernel<float>(sums);
    case DType::kFloat16: return plain_kernel<F16>(sums);
    default: return plain_kernel<Bf16>(sums);
  }
}

DeviceKernel kernel_top_rows() { return {host_kernel<TopArgs, top_rows>(), 0}; }
DeviceKernel kernel_live_blocks() { return {host_kernel<LiveArgs, live_blocks>(), 0}; }
DeviceKernel kernel_order_items() { return {host_kernel<OrderArgs, order_items>(), 0}; }
DeviceKernel kernel_list_blocks() { return {host_kernel<ListArgs, list_blocks>(), 0}; }

}  // namespace sparsed::cuda
