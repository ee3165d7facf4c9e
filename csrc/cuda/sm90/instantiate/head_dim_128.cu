#include "cuda/sm90/launch.cuh"

namespace sparsed::cuda {

template DeviceKernel kernel_sm90<128>(DType, const Plan&);

}  // namespace sparsed::cuda
