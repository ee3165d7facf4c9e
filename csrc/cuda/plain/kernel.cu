#include "cuda/kernels.h"
#include "cuda/plain/kernel.cuh"

namespace sparsed::cuda {
namespace {

template <class Traits>
__global__ void __launch_bounds__(128, 4) attention_plain_kernel(const __grid_constant__ AttentionArgs args) {
  attention_plain<Traits>(args);
}

template <class Traits>
DeviceKernel device_kernel() {
  return {reinterpret_cast<const void*>(&attention_plain_kernel<Traits>), Traits::shared_bytes(0)};
}

template <class T>
DeviceKernel kernel_of(Sums sums) {
  switch (sums) {
    case Sums::kNone: return device_kernel<Plain<T, Sums::kNone>>();
    case Sums::kShared: return device_kernel<Plain<T, Sums::kShared>>();
    default: return device_kernel<Plain<T, Sums::kSeparate>>();
  }
}

}  // namespace

DeviceKernel kernel_plain(DType dtype, Sums sums) {
  switch (dtype) {
    case DType::kFloat32: return kernel_of<float>(sums);
    case DType::kFloat16: return kernel_of<F16>(sums);
    default: return kernel_of<Bf16>(sums);
  }
}

}  // namespace sparsed::cuda
