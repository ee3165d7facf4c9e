// Defines kernel_sm90 for one head_dim, with two element types. Without sums, the warpgroups share rows (split) or not.
// With each of the two kinds of sums, there is an output or not.
#pragma once

#include "cuda/kernels.h"
#include "cuda/sm90/kernel.cuh"

namespace sparsed::cuda {

// Code for other architectures lacks the instructions and traps. The kernel is chosen only on compute capability 9.0,
// and only if has_sm90a_kernels().
template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    attention_sm90_kernel([[maybe_unused]] const __grid_constant__ Sm90Args args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  attention_sm90<Traits>(args);
#else
  __trap();
#endif
}

template <class Traits>
DeviceKernel device_kernel() {
  return {reinterpret_cast<const void*>(&attention_sm90_kernel<Traits>), Traits::kSharedBytes};
}

template <int kHeadDim>
DeviceKernel kernel_sm90(DType dtype, const Plan& plan) {
  const auto kernel = [](auto traits) { return device_kernel<decltype(traits)>(); };
  return dtype == DType::kBFloat16 ? with_sm90<Bf16, kHeadDim>(plan.sums, plan.split, plan.output(), kernel)
                                   : with_sm90<F16, kHeadDim>(plan.sums, plan.split, plan.output(), kernel);
}

}  // namespace sparsed::cuda
