// Model operations beside attention, as plain parameters. Rows are tokens; M rows, N outputs, K inputs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/memory.h"
#include "core/tensor.h"

namespace sparsed {

// Rows of a weight matrix to be packed: [rows, K] of any dtype, and their bias. Addresses need no alignment: a
// safetensors file gives none.
struct WeightRows {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t rows = 0;
  int64_t stride = 0;          // elements between rows
  const void* bias = nullptr;  // [rows] or nullptr: zeros where another part has a bias
  DType bias_dtype = DType::kFloat32;
};

// A weight matrix W [N, K] packed once for all CPU kernels, in panels of 16 outputs, K padded with zeros to a multiple
// of 32. Four bytes of one output, then of the next:
//   float32   [N/16][K][16]        lane n of a vector is output n
//   bfloat16  [N/16][K/2][16][2]   pairs along K: the operand of AMX (16 pairs = one 1 KB tile) and vdpbf16ps
class PackedWeight {
 public:
  static constexpr int64_t kPanel = 16;

  // Memory for it, not yet written; MemoryError before an allocation that cannot fit. dtype: float32 or bfloat16.
  PackedWeight(int64_t n, int64_t k, DType dtype);

  DType dtype() const { return dtype_; }
  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  int64_t k_padded() const { return (k_ + 31) / 32 * 32; }
  int64_t panels() const { return (n_ + kPanel - 1) / kPanel; }
  size_t panel_bytes() const { return static_cast<size_t>(k_padded() * kPanel) * dtype_size(dtype_); }
  size_t nbytes() const { return static_cast<size_t>(panels()) * panel_bytes() + bias_.size() * sizeof(float); }
  // The first one is 64-byte aligned.
  std::byte* panel(int64_t index) { return data_.get() + static_cast<size_t>(index) * panel_bytes(); }
  const std::byte* panel(int64_t index) const { return data_.get() + static_cast<size_t>(index) * panel_bytes(); }
  const float* bias() const { return bias_.empty() ? nullptr : bias_.data(); }  // [N] or nullptr
  void set_bias(std::vector<float> bias) { bias_ = std::move(bias); }

 private:
  DType dtype_;
  int64_t n_, k_;
  AlignedBytes data_;
  std::vector<float> bias_;
};

// A matrix of rows, each contiguous; float32 or bfloat16.
struct RowsView {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t rows = 0, cols = 0, stride = 0;  // stride in elements

  char* row(int64_t i) const { return static_cast<char*>(data) + i * stride * static_cast<int64_t>(dtype_size(dtype)); }
};

// How sure a row of logits is of its largest one.
enum class Confidence {
  kProbability,      // its softmax probability
  kMargin,           // the difference of the two largest probabilities
  kNegativeEntropy,  // sum p log(p + 1e-10) over the vocabulary
};

// Every row's result is the same bit for bit whatever the other rows and the number of threads are.
struct ModelOps {
  // The rows of all parts, one after the other, rounded to `dtype` (float32 or bfloat16).
  PackedWeight (*pack_weight)(const std::vector<WeightRows>& parts, int64_t k, DType dtype);
  // out[m, n] = sum_k x[m, k] * w[n, k] + bias[n] (+ residual[m, n] when residual.data), summed in float32 and rounded
  // once.
  void (*linear)(const RowsView& x, const PackedWeight& w, const RowsView& residual, const RowsView& out);
  // out = x / sqrt(mean(x^2) + eps) * weight, in float32. weight: [cols].
  void (*rms_norm)(const RowsView& x, const float* weight, float eps, const RowsView& out);
  // Half rotation in place, heads of head_dim side by side: (a, b) -> (a cos - b sin, b cos + a sin) for the pairs
  // (j, j + D/2). cos, sin: [rows, D/2] float32.
  void (*rotary)(const RowsView& x, int64_t head_dim, const float* cos, const float* sin);
  // gate = silu(gate) * up, in place.
  void (*silu_gate)(const RowsView& gate, const RowsView& up);
  // Per row of float32 logits: the first arg-max and its confidence. NaN counts as -inf; a row with nothing above
  // -inf gives id 0 and NaN.
  void (*token_confidence)(const RowsView& logits, Confidence kind, int64_t* ids, float* confidence);
};

}  // namespace sparsed
