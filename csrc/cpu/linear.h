// What every linear kernel shares: panel geometry, and the last step from float32 sums to outputs. Needs Vec.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/half.h"
#include "cpu/ops_kernels.h"

namespace sparsed {
namespace {
namespace linear {

using cpu::LinearBlock;
using cpu::LinearPlan;

constexpr int kPanel = 16;  // outputs of a panel

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t tiles_of(int64_t n, int64_t tile) { return (n + tile - 1) / tile; }

template <class Residual, class Out>
void finish_typed(const LinearBlock& b, int64_t row, int64_t col, int64_t rows, int64_t cols, const float* sums,
                  int64_t stride) {
  for (int64_t r = row; r < row + rows; ++r, sums += stride) {
    Out* out = static_cast<Out*>(b.out) + r * b.out_stride + col;
    const Residual* residual = static_cast<const Residual*>(b.residual);
    if (residual) residual += r * b.residual_stride + col;
    for (int64_t i = 0; i < cols; i += Vec::kLanes) {
      const int n = static_cast<int>(min_of(cols - i, Vec::kLanes));
      Vec value = Vec::load(sums + i);
      if (b.bias) value = value + Vec::load_n(b.bias + col + i, n);
      if (residual) value = value + Vec::load_n(residual + i, n);
      value.store_n(out + i, n);
    }
  }
}

// body(Residual(), Out()): the element types of the block's residual and output.
template <class Body>
inline void with_out_types(const LinearBlock& b, const Body& body) {
  const bool wide_residual = b.residual_dtype == DType::kFloat32;
  if (b.out_dtype == DType::kFloat32) {
    wide_residual ? body(float(), float()) : body(Bf16(), float());
  } else {
    wide_residual ? body(float(), Bf16()) : body(Bf16(), Bf16());
  }
}

// out = sums + bias + residual, rounded once, for the outputs (row ..., col ...) of the block. sums: [rows][stride],
// readable up to a whole vector.
inline void finish(const LinearBlock& b, int64_t row, int64_t col, int64_t rows, int64_t cols, const float* sums,
                   int64_t stride) {
  with_out_types(b, [&](auto residual, auto out) {
    finish_typed<decltype(residual), decltype(out)>(b, row, col, rows, cols, sums, stride);
  });
}

}  // namespace linear
}  // namespace
}  // namespace sparsed
