// Defines kernel_sm80 for one head_dim, with two element types and three kinds of sums.
#pragma once

#include "cuda/kernels.h"
#include "cuda/sm80/kernel.cuh"

namespace sparsed::cuda {

// Two blocks of 128 threads fill a multiprocessor's registers.
template <class Traits>
__global__ void __launch_bounds__(128, 2) attention_sm80_kernel(const __grid_constant__ AttentionArgs args) {
  attention_sm80<Traits>(args);
}

template <class Traits>
DeviceKernel device_kernel(int warps) {
  return {reinterpret_cast<const void*>(&attention_sm80_kernel<Traits>), Traits::shared_bytes(warps)};
}

template <class T, int kHeadDim>
DeviceKernel kernel_of(Sums sums, int warps) {
  switch (sums) {
    case Sums::kNone: return device_kernel<Sm80<T, kHeadDim, Sums::kNone>>(warps);
    case Sums::kShared: return device_kernel<Sm80<T, kHeadDim, Sums::kShared>>(warps);
    default: return device_kernel<Sm80<T, kHeadDim, Sums::kSeparate>>(warps);
  }
}

template <int kHeadDim>
DeviceKernel kernel_sm80(DType dtype, Sums sums, int warps) {
  return dtype == DType::kBFloat16 ? kernel_of<Bf16, kHeadDim>(sums, warps) : kernel_of<F16, kHeadDim>(sums, warps);
}

}  // namespace sparsed::cuda
