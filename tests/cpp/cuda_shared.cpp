// Prints the shared memory of a full block of each sm_80 kernel, for cuda_resources.py: no GPU is asked.
#include <cstdio>

#include "cuda/kernels.h"

namespace sparsed::cuda {
namespace {

template <int kHeadDim>
void print() {
  for (int sums = 0; sums < 3; ++sums) {
    const DeviceKernel kernel = kernel_sm80<kHeadDim>(DType::kBFloat16, static_cast<Sums>(sums), 4);
    std::printf("%d %d %d\n", kHeadDim, sums, kernel.shared_bytes);
  }
}

}  // namespace
}  // namespace sparsed::cuda

int main() {
  using namespace sparsed::cuda;
  print<32>();
  print<64>();
  print<96>();
  print<128>();
  print<256>();
}
