// Model operations beside attention, as plain parameters. Rows are tokens; M rows, N outputs, K inputs.
#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor.h"

namespace sparsed {

// A weight matrix W [N, K] packed once for all CPU kernels, in panels of 16 outputs, K padded with zeros to a multiple of 32:
//   float32   [N/16][K][16]        lane n of a vector is output n
//   bfloat16  [N/16][K/2][16][2]   pairs along K: the operand of AMX (16 pairs = one 1 KB tile) and vdpbf16ps
struct PackedWeight {
  static constexpr int64_t kPanel = 16;
  DType dtype = DType::kFloat32;  // float32 or bfloat16
  int64_t n = 0, k = 0;
  std::vector<uint8_t> storage;   // 64-byte aligned part starts at data()
  std::vector<float> bias;        // [N] or empty

  int64_t k_padded() const { return (k + 31) / 32 * 32; }
  int64_t panels() const { return (n + kPanel - 1) / kPanel; }
  const uint8_t* data() const;
};

// w: [N, K] rows `row_stride` elements apart, dtype float32 / float16 / bfloat16. float16 is widened to float32.
PackedWeight pack_weight(const void* w, DType dtype, int64_t n, int64_t k, int64_t row_stride, DType packed_dtype,
                         const float* bias);

// A matrix of rows, each contiguous; float32 or bfloat16.
struct RowsView {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t rows = 0, cols = 0, stride = 0;  // stride in elements

  char* row(int64_t i) const { return static_cast<char*>(data) + i * stride * static_cast<int64_t>(dtype_size(dtype)); }
};

struct ModelOps {
  // out[m, n] = sum_k x[m, k] * w[n, k] + bias[n] (+ residual[m, n] when residual.data). Each output element is
  // summed in one order, whatever M and the threads: rows are independent of each other bit for bit.
  void (*linear)(const RowsView& x, const PackedWeight& w, const RowsView& residual, const RowsView& out);
  // out = x / sqrt(mean(x^2) + eps) * weight, in float32.
  void (*rms_norm)(const RowsView& x, const float* weight, float eps, const RowsView& out);
  // Half rotation in place, heads of head_dim side by side: (a, b) -> (a cos - b sin, b cos + a sin) for the pairs
  // (j, j + D/2). cos, sin: [rows, D/2] float32.
  void (*rotary)(const RowsView& x, int64_t head_dim, const float* cos, const float* sin);
  // gate = silu(gate) * up, in place.
  void (*silu_gate)(const RowsView& gate, const RowsView& up);
  // Per row of float32 logits: the first arg-max, and its confidence. kind 0: its softmax probability; 1: the margin
  // between the two largest probabilities; 2: sum p log(p + 1e-10), the negative entropy.
  void (*token_confidence)(const RowsView& logits, int kind, int64_t* ids, float* confidence);
};

}  // namespace sparsed
