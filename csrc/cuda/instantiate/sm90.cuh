// kernel_sm90 of one head_dim: two element types; no sums with rows of their own or shared, two kinds of sums.
#pragma once

#include "cuda/attention_sm90.cuh"
#include "cuda/kernels.h"

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

template <class T, int kHeadDim>
DeviceKernel kernel_of(Sums sums, bool split) {
  switch (sums) {
    case Sums::kNone:
      return split ? device_kernel<Sm90<T, kHeadDim, Sums::kNone, true>>()
                   : device_kernel<Sm90<T, kHeadDim, Sums::kNone, false>>();
    case Sums::kShared: return device_kernel<Sm90<T, kHeadDim, Sums::kShared, false>>();
    default: return device_kernel<Sm90<T, kHeadDim, Sums::kOwn, false>>();
  }
}

template <int kHeadDim>
DeviceKernel kernel_sm90(DType dtype, Sums sums, bool split) {
  return dtype == DType::kBFloat16 ? kernel_of<Bf16, kHeadDim>(sums, split) : kernel_of<F16, kHeadDim>(sums, split);
}

}  // namespace sparsed::cuda
