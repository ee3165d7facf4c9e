#include "cuda/instantiate/sm80.cuh"

namespace sparsed::cuda {

template DeviceKernel kernel_sm80<64>(DType, Sums, int);

}  // namespace sparsed::cuda
