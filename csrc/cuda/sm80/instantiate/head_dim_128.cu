#include "cuda/sm80/launch.cuh"

namespace sparsed::cuda {

template DeviceKernel kernel_sm80<128>(DType, Sums, int);

}  // namespace sparsed::cuda
