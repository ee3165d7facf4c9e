// Model operations beside attention, as plain parameters. Only the CPU has them. Rows are tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor.h"
#include "cpu/packed_weight.h"

namespace sparsed::cpu {

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

// A weight of a linear layer, what is added to its outputs (residual.data may be nullptr), and where they go.
struct LinearPart {
  const PackedWeight* w;
  RowsView residual;
  RowsView out;
};

// Errors of pack_weight, quantize_rows and linear have no function's name yet: several functions call them.
// Every row's result is the same bit for bit whatever the other rows and the number of threads are.
struct ModelOps {
  // The rows of all parts, one after the other, rounded to `dtype`: float32, bfloat16, or int8 (core/int8.h). Rows of
  // int8 are packed as they are.
  PackedWeight (*pack_weight)(const std::vector<WeightRows>& parts, int64_t k, DType dtype);
  // The integers [rows, k] and the scales [rows] that pack_weight keeps of `part` as int8.
  void (*quantize_rows)(const WeightRows& part, int64_t k, int8_t* values, float* scales);
  // For each part: out[m, n] = sum_k x[m, k] * w[n, k] + bias[n] (+ residual[m, n] when residual.data), summed in
  // float32 and rounded once. With int8 weights (all parts then have them), x too becomes int8 row by row; sums are
  // exact integers, and every instruction set gives the same bits. x is laid out once for all parts.
  void (*linear)(const RowsView& x, const std::vector<LinearPart>& parts);
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

}  // namespace sparsed::cpu
