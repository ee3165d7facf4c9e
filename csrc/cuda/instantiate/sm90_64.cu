#include "cuda/instantiate/sm90.cuh"

namespace sparsed::cuda {

template DeviceKernel kernel_sm90<64>(DType, Sums, bool);

}  // namespace sparsed::cuda
