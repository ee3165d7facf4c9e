#include "cuda/sm90/launch.cuh"

namespace sparsed::cuda {

template DeviceKernel kernel_sm90<64>(DType, const Plan&);

bool has_sm90a_kernels() {
#if defined(SPARSED_SM90A)  // CMakeLists.txt defines it if the architectures include 9.0a
  return true;
#else
  return false;
#endif
}

}  // namespace sparsed::cuda
