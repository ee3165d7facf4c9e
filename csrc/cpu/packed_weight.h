// Weight matrices in the order that the CPU kernels read. M rows, N outputs, K inputs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "support/buffer.h"

namespace sparsed::cpu {

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

}  // namespace sparsed::cpu
