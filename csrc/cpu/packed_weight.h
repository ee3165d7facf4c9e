// Weight matrices in the order that the CPU kernels read. M rows, N outputs, K inputs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
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
  const float* scales = nullptr;  // [rows] of int8 data
  std::string name = "weight";    // for messages
};

// A weight matrix W [N, K] packed once for all CPU kernels, in panels of 16 outputs, K padded with zeros to a multiple
// of 32 (int8: 64). Four bytes of one output, then of the next:
//   float32   [N/16][K][16]        lane n of a vector is output n
//   bfloat16  [N/16][K/2][16][2]   pairs along K: the operand of AMX (16 pairs = one 1 KB tile) and vdpbf16ps
//   int8      [N/16][K/4][16][4]   fours along K: the operand of AMX (16 fours = one 1 KB tile) and vpdpbusd
class PackedWeight {
 public:
  static constexpr int64_t kPanel = 16;

  // Memory for it, not yet written; MemoryError before an allocation that cannot fit. dtype: float32, bfloat16 or int8.
  PackedWeight(int64_t n, int64_t k, DType dtype);

  DType dtype() const { return dtype_; }
  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  int64_t k_padded() const { return dtype_ == DType::kInt8 ? (k_ + 63) / 64 * 64 : (k_ + 31) / 32 * 32; }
  int64_t panels() const { return (n_ + kPanel - 1) / kPanel; }
  size_t panel_bytes() const { return static_cast<size_t>(k_padded() * kPanel) * dtype_size(dtype_); }
  // Of everything: panels, bias, scales and starts.
  size_t nbytes() const {
    return static_cast<size_t>(panels()) * panel_bytes() + (bias_.size() + scales_.size() + starts_.size()) * 4;
  }
  // The first one is 64-byte aligned.
  std::byte* panel(int64_t index) { return data_.get() + static_cast<size_t>(index) * panel_bytes(); }
  const std::byte* panel(int64_t index) const { return data_.get() + static_cast<size_t>(index) * panel_bytes(); }
  const float* bias() const { return bias_.empty() ? nullptr : bias_.data(); }  // [N] or nullptr
  void set_bias(std::vector<float> bias) { bias_ = std::move(bias); }

  // int8, nullptr otherwise: an output's weights are its scale times its integers. [panels() * kPanel], 0 from N on.
  float* scales() { return scales_.empty() ? nullptr : scales_.data(); }
  const float* scales() const { return scales_.empty() ? nullptr : scales_.data(); }
  // int8: -128 times the sum of an output's integers, modulo 2^32. With it sums of (x + 128) w start. As many.
  int32_t* starts() { return starts_.empty() ? nullptr : starts_.data(); }
  const int32_t* starts() const { return starts_.empty() ? nullptr : starts_.data(); }

 private:
  DType dtype_;
  int64_t n_, k_;
  AlignedBytes data_;
  std::vector<float> bias_, scales_;
  std::vector<int32_t> starts_;
};

}  // namespace sparsed::cpu
