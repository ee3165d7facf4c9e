#include "cuda/kernels.h"
#include "cuda/selection/top_k.cuh"

namespace sparsed::cuda {
namespace {

__global__ void __launch_bounds__(128) top_rows_kernel(const __grid_constant__ TopArgs args) { top_rows(args); }
__global__ void __launch_bounds__(128) live_blocks_kernel(const __grid_constant__ LiveArgs args) { live_blocks(args); }
__global__ void __launch_bounds__(128) list_blocks_kernel(const __grid_constant__ ListArgs args) { list_blocks(args); }
__global__ void __launch_bounds__(128) order_items_kernel(const __grid_constant__ OrderArgs args) { order_items(args); }

}  // namespace

DeviceKernel kernel_top_rows() { return {reinterpret_cast<const void*>(&top_rows_kernel), 0}; }
DeviceKernel kernel_live_blocks() { return {reinterpret_cast<const void*>(&live_blocks_kernel), 0}; }
DeviceKernel kernel_list_blocks() { return {reinterpret_cast<const void*>(&list_blocks_kernel), 0}; }
DeviceKernel kernel_order_items() { return {reinterpret_cast<const void*>(&order_items_kernel), 0}; }

}  // namespace sparsed::cuda
