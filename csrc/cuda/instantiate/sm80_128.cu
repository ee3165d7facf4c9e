#include "cuda/instantiate/sm80.cuh"

namespace sparsed::cuda {

template DeviceKernel kernel_sm80<128>(DType, Sums, int);

}  // namespace sparsed::cuda
