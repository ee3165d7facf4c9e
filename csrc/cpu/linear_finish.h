// The common parts of the linear kernels: panel geometry, and the last step from sums to outputs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor.h"
#include "cpu/half.h"
#include "cpu/ops_kernels.h"

namespace sparsed::cpu {
namespace {

constexpr int kPanel = 16;  // outputs of a panel

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t tiles_of(int64_t n, int64_t tile) { return (n + tile - 1) / tile; }

// n outputs from (row, col) of the block on: sum + bias + residual, in this order, rounded once.
template <class Residual, class Out, class Vec>
inline void finish_vec(const LinearBlock& b, int64_t row, int64_t col, Vec sum, int n) {
  const auto load = [n](const auto* p) { return n == Vec::kLanes ? Vec::load(p) : Vec::load_n(p, n); };
  if (b.bias) sum = sum + load(b.bias + col);
  if (b.residual) sum = sum + load(static_cast<const Residual*>(b.residual) + row * b.residual_stride + col);
  sum.store_n(static_cast<Out*>(b.out) + row * b.out_stride + col, n);
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

// The outputs (row ..., col ...) of the block from their sums: sum(r, i) has those of row r from column i on.
template <class Vec, class Sum>
inline void finish(const LinearBlock& b, int64_t row, int64_t col, int64_t rows, int64_t cols, const Sum& sum) {
  with_out_types(b, [&](auto residual, auto out) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < cols; i += Vec::kLanes) {
        const int n = static_cast<int>(min_of(cols - i, Vec::kLanes));
        finish_vec<decltype(residual), decltype(out)>(b, row + r, col + i, sum(r, i), n);
      }
    }
  });
}

// The same with sums [rows][stride], readable up to a whole vector.
template <class Vec>
inline void finish(const LinearBlock& b, int64_t row, int64_t col, int64_t rows, int64_t cols, const float* sums,
                   int64_t stride) {
  finish<Vec>(b, row, col, rows, cols, [&](int64_t r, int64_t i) { return Vec::load(sums + r * stride + i); });
}

// Exact sums of int8 products: float(sum) * (scale of x * scale of W) in this order, for the same bits everywhere.
// x_scales: of the rows.
template <class Vec>
inline void finish(const LinearBlock& b, int64_t row, int64_t col, int64_t rows, int64_t cols, const int32_t* sums,
                   int64_t stride, const float* x_scales) {
  finish<Vec>(b, row, col, rows, cols, [&](int64_t r, int64_t i) {
    return Vec::load(sums + r * stride + i) * (Vec::set(x_scales[r]) * Vec::load(b.w_scales + col + i));
  });
}

}  // namespace
}  // namespace sparsed::cpu
