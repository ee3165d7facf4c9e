// kernel_sm90 of one head_dim: two element types; no sums with rows of their own or shared, two kinds of sums with an
// output or alone.
#pragma once

#include "cuda/kernels.h"
#include "cuda/sm90/kernel.cuh"

namespace sparsed::cuda {

// An error where the instructions are missing: chosen on compute capability 9.0 alone, and by has_sm90a_kernels().
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
