// The compiled kernels, which the runtime launches. plain/, sm80/, sm90/ and selection/ define them.
#pragma once

#include "core/tensor.h"
#include "cuda/plan.h"

namespace sparsed::cuda {

struct DeviceKernel {
  const void* function = nullptr;  // takes a struct of arguments
  int shared_bytes = 0;            // per block
};

template <int kHeadDim>
DeviceKernel kernel_sm80(DType dtype, Sums sums, int warps);
extern template DeviceKernel kernel_sm80<32>(DType, Sums, int);
extern template DeviceKernel kernel_sm80<64>(DType, Sums, int);
extern template DeviceKernel kernel_sm80<96>(DType, Sums, int);
extern template DeviceKernel kernel_sm80<128>(DType, Sums, int);
extern template DeviceKernel kernel_sm80<256>(DType, Sums, int);
template <int kHeadDim>
DeviceKernel kernel_sm90(DType dtype, const Plan& plan);  // Sm90Args
extern template DeviceKernel kernel_sm90<64>(DType, const Plan&);
extern template DeviceKernel kernel_sm90<128>(DType, const Plan&);
bool has_sm90a_kernels();  // whether they were compiled for 9.0a; other builds have no code for them
DeviceKernel kernel_plain(DType dtype, Sums sums);

DeviceKernel kernel_top_rows();     // TopArgs
DeviceKernel kernel_live_blocks();  // LiveArgs
DeviceKernel kernel_list_blocks();  // ListArgs
DeviceKernel kernel_order_items();  // OrderArgs

}  // namespace sparsed::cuda
