#include "cuda/sm80/launch.cuh"

namespace sparsed::cuda {

template DeviceKernel kernel_sm80<64>(DType, Sums, int);

}  // namespace sparsed::cuda
