// Prints the shared memory of a full block of each kernel of a head_dim, for cuda_resources.py: no GPU is asked.
// A line: kernel family, head_dim, sums, whether warpgroups share query rows, whether there is an output, bytes.
#include <cstdio>

#include "cuda/kernels.h"

namespace sparsed::cuda {
namespace {

template <int kHeadDim>
void print() {
  for (int sums = 0; sums < 3; ++sums) {
    const DeviceKernel kernel = kernel_sm80<kHeadDim>(DType::kBFloat16, static_cast<Sums>(sums), 4);
    std::printf("80 %d %d 0 1 %d\n", kHeadDim, sums, kernel.shared_bytes);
  }
}

template <int kHeadDim>
void print_sm90() {
  for (int sums = 0; sums < 3; ++sums) {
    for (const bool other : {false, true}) {
      Plan plan;
      plan.sums = static_cast<Sums>(sums);
      plan.split = other && plan.sums == Sums::kNone;
      if (!other || plan.sums == Sums::kNone) plan.args.out.data = &plan;  // any address: an output
      const DeviceKernel kernel = kernel_sm90<kHeadDim>(DType::kBFloat16, plan);
      std::printf("90 %d %d %d %d %d\n", kHeadDim, sums, plan.split, plan.output(), kernel.shared_bytes);
    }
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
  print_sm90<64>();
  print_sm90<128>();
}
