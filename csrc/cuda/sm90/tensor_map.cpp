#include "cuda/sm90/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <bit>

#include "cuda/runtime.h"
#include "cuda/sm90/config.h"
#include "support/error.h"

namespace sparsed::cuda {
namespace {

static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) && alignof(TensorMap) >= alignof(CUtensorMap));

PFN_cuTensorMapEncodeTiled_v12000 find_encode() {
  constexpr const char* kName = "cuTensorMapEncodeTiled";
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  check_cuda(cudaGetDriverEntryPointByVersion(kName, &function, 12000, cudaEnableDefault, &found), kName);
#else
  check_cuda(cudaGetDriverEntryPoint(kName, &function, cudaEnableDefault, &found), kName);
#endif
  check(found == cudaDriverEntryPointSuccess && function, "cuda: the driver has no ", kName);
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

}  // namespace

TensorMap encode_map(const CopyMap& map, DType dtype) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = find_encode();
  cuuint64_t size[4], stride[3];
  for (int i = 0; i < 4; ++i) size[i] = static_cast<cuuint64_t>(map.size[static_cast<size_t>(i)]);
  for (int i = 0; i < 3; ++i) stride[i] = static_cast<cuuint64_t>(map.stride[static_cast<size_t>(i)]) * 2;
  const cuuint32_t box[4] = {sm90::kPanelColumns, static_cast<cuuint32_t>(map.box_tokens), 1, 1};
  const cuuint32_t step[4] = {1, 1, 1, 1};
  CUtensorMap encoded;
  const CUresult status =
      encode(&encoded, dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
             4, const_cast<void*>(map.data), size, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(status == CUDA_SUCCESS, "cuda: cuTensorMapEncodeTiled gives error ", static_cast<int>(status));
  return std::bit_cast<TensorMap>(encoded);
}

}  // namespace sparsed::cuda
