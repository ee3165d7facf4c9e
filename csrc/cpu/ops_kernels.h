// Leaf kernels of the model operations: one block of a linear layer, one row, one stretch of a vocabulary. The drivers
// (linear.cpp, ops.cpp) own memory and threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor.h"

namespace sparsed::cpu {

// Rows of x of a linear layer. Strides count elements.
struct LinearRows {
  const void* data;  // [rows, k]
  int64_t stride;
  DType dtype;  // float32 or bfloat16
  int64_t rows;
  int64_t k;
  int64_t k_padded;  // of the weights (packed_weight.h)
};

// rows x cols outputs of a linear layer, from the first column of a panel on.
struct LinearBlock {
  LinearRows x;
  const std::byte* x_tiles;  // x as it was laid out, where tile_bytes(...) is above 0
  const void* w;             // packed panels (packed_weight.h)
  DType w_dtype;
  const float* w_scales;    // int8: [cols], and to the end of the last panel
  const int32_t* w_starts;  // int8: as many
  const float* bias;        // [cols] or nullptr
  const void* residual;     // [rows, cols] or nullptr
  int64_t residual_stride;
  DType residual_dtype;
  void* out;  // [rows, cols]
  int64_t out_stride;
  DType out_dtype;
  int64_t cols;
  std::byte* scratch;  // scratch_bytes(...)
};

// How a linear layer is best cut: blocks are multiples of the micro-kernel's tile, up to a size that caches hold.
struct LinearPlan {
  int64_t tile_rows;
  int64_t tile_panels;
  int64_t block_rows;
  int64_t block_panels;
};

// Linear layers whose weights have some dtype.
struct LinearKernels {
  LinearPlan plan;
  // Of plan.tile_rows rows in the form that blocks read, a multiple of 64. 0: blocks read x itself.
  size_t (*tile_bytes)(int64_t k_padded);
  void (*lay_out)(const LinearRows& rows, std::byte* tile);  // up to plan.tile_rows rows, before any block
  size_t (*scratch_bytes)(const LinearBlock& block);         // reads only dtypes and sizes
  void (*run_block)(const LinearBlock& block);
};

struct OpsKernels {
  LinearKernels linear;  // of float32 and bfloat16 weights; on AMX, of bfloat16 x and weights

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
