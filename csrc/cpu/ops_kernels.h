// Leaf kernels of the model operations: one block of a linear layer, one row, one stretch of a vocabulary. The driver
// (ops.cpp) owns memory and threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor.h"

namespace sparsed::cpu {

// rows x cols outputs of a linear layer, from the first column of a panel on. Strides count elements.
struct LinearBlock {
  const void* x;  // [rows, k]
  int64_t x_stride;
  DType x_dtype;  // float32 or bfloat16, as are the others
  const void* w;  // packed panels (packed_weight.h)
  DType w_dtype;
  int64_t k;
  int64_t k_padded;
  const float* bias;     // [cols] or nullptr
  const void* residual;  // [rows, cols] or nullptr
  int64_t residual_stride;
  DType residual_dtype;
  void* out;  // [rows, cols]
  int64_t out_stride;
  DType out_dtype;
  int64_t rows;
  int64_t cols;
  std::byte* scratch;  // linear_scratch(...)
};

// How a linear layer is best cut: blocks are multiples of the micro-kernel's tile, up to a size that caches hold.
struct LinearPlan {
  int64_t tile_rows;
  int64_t tile_panels;
  int64_t block_rows;
  int64_t block_panels;
};

struct OpsKernels {
  LinearPlan (*linear_plan)();
  size_t (*linear_scratch)(const LinearBlock& block);  // reads only dtypes and sizes
  void (*linear)(const LinearBlock& block);

  // One row each; dtypes float32 or bfloat16.
  void (*rms_norm)(const void* x, DType dtype, const float* weight, float eps, int64_t cols, void* out,
                   DType out_dtype);
  void (*rotary)(void* x, DType dtype, int64_t heads, int64_t head_dim, const float* cos, const float* sin);
  void (*silu_gate)(void* gate, const void* up, DType dtype, int64_t cols);

  // A stretch of n logits; NaN counts as -inf.
  void (*find_max)(const float* logits, int64_t n, float* max, int64_t* index);  // the first one; nothing: -inf, 0
  float (*exp_sum)(const float* logits, int64_t n, float max);                   // sum exp(l - max)
  // sum p log(p + 1e-10), p = exp(l - max) * inverse
  float (*entropy_sum)(const float* logits, int64_t n, float max, float inverse);
};

}  // namespace sparsed::cpu
