// Linear layers with int8 weights on vectors, for one block of rows x outputs.
//
//   out = x W^T + bias + residual        W [outputs, K] integers and a scale for each output
//
// Layout     Rows of x become integers and a scale each, by the rule of core/int8.h. A tile of rows has four inputs of
//            the first row, of the second ..., then the next four inputs; its scales stand before them.
// Blocking   192 rows x 32 panels a block. The micro-kernel holds the sums of a tile of rows x one or two panels in the
//            register file over all of K. W streams from the second-level cache, which takes a sixth of its bandwidth.
// Order      Sums are exact in int32, so their order does not matter. Then come the two scales, bias, residual and one
//            rounding, in one order of float32 operations: all instruction sets give the same bits.
// Rate       Measured on two cores of an AMD EPYC (Zen 4) with AVX-512 VNNI: 0.88 TOP/s from 32 rows on, twice the rate
//            of bfloat16. The kernel for AVX-VNNI has run on such a machine only, with the encoding of AVX-512.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor.h"
#include "cpu/linear_finish.h"
#include "cpu/ops_kernels.h"
#include "cpu/quantize_vec.h"

namespace sparsed::cpu {
namespace {

// Dot multiplies four inputs of a row with those of some outputs: dot_*.h. Vec does the first and the last step.
template <class Vec, class Dot>
class Int8Linear {
 public:
  static constexpr LinearKernels table() {
    return {{kTileRows, kTilePanels, kBlockRows, kBlockPanels}, tile_bytes, lay_out, scratch_bytes, run_block};
  }

 private:
  using Sum = typename Dot::Sum;

  static constexpr int kTileRows = Dot::kTileRows;
  static constexpr int kTilePanels = Dot::kTilePanels;
  static constexpr int kTileCols = kTilePanels * kPanel;
  static constexpr int kPanelVecs = kPanel / Dot::kLanes;
  static constexpr int kGroup = 4;  // inputs
  static constexpr int64_t kBlockRows = 192 / kTileRows * kTileRows;
  static constexpr int64_t kBlockPanels = 32;
  static constexpr size_t kScaleBytes = 64;
  static_assert(kTileRows * sizeof(float) <= kScaleBytes);

  static size_t tile_bytes(int64_t k_padded) {
    return kScaleBytes + static_cast<size_t>(tiles_of(k_padded / kGroup * kTileRows * Dot::kGroupBytes, 64) * 64);
  }
  static size_t scratch_bytes(const LinearBlock&) { return 0; }

  static void lay_out(const LinearRows& x, std::byte* tile) {
    float* scales = reinterpret_cast<float*>(tile);
    for (int64_t row = 0; row < x.rows; ++row) {
      std::byte* to = tile + kScaleBytes + row * Dot::kGroupBytes;
      scales[row] = RowQuantizer<Vec>::run(x, row, [&](const int8_t* integers) {
        for (int i = 0; i < RowQuantizer<Vec>::kStep; i += kGroup, to += kTileRows * Dot::kGroupBytes) {
          Dot::lay_out(integers + i, to);
        }
      });
    }
  }

  static void run_block(const LinearBlock& b) {
    const int64_t panel = b.x.k_padded * kPanel, groups = b.x.k_padded / kGroup;
    alignas(64) int32_t sums[kTileRows * kTileCols];
    for (int64_t col = 0; col < b.cols; col += kTileCols) {
      const std::byte* w = static_cast<const std::byte*>(b.w) + col / kPanel * panel;
      const int64_t cols = min_of(kTileCols, b.cols - col);
      // Every tile of rows requests its share of the next panels, so that memory is never idle.
      const int64_t share = 64 / tiles_of(b.x.rows, kTileRows);
      const std::byte* next = col + kTileCols < b.cols ? w + kTilePanels * panel : w;
      const std::byte* tile = b.x_tiles;
      for (int64_t row = 0; row < b.x.rows; row += kTileRows, tile += tile_bytes(b.x.k_padded)) {
        const int64_t rows = min_of(kTileRows, b.x.rows - row);
        const Tile part{tile + kScaleBytes, w, next, share, panel, groups, b.w_starts + col, sums};
        next += share * groups;
        multiply_any<kTileRows, kTilePanels>(rows, cols, part);
        finish<Vec>(b, row, col, rows, cols, sums, kTileCols, reinterpret_cast<const float*>(tile));
      }
    }
  }

  struct Tile {
    const std::byte* x;     // [groups][kTileRows] of Dot::kGroupBytes
    const std::byte* w;     // [groups][kPanel][kGroup], panels lie `panel` bytes apart
    const std::byte* next;  // what comes next of the panels, requested from memory: `share` bytes with each group
    int64_t share;
    int64_t panel;
    int64_t groups;
    const int32_t* starts;
    int32_t* sums;  // [rows][kTileCols]
  };

  // (Defined below the class: in it the function would be inline.)
  template <int R, int P>
  static void multiply_tile(const Tile& tile);

  // The instance for 1 ... R rows and 1 ... P panels.
  template <int R, int P>
  static void multiply_any(int64_t rows, int64_t cols, const Tile& tile) {
    if constexpr (P > 1) {
      if (cols <= (P - 1) * kPanel) return multiply_any<R, P - 1>(rows, cols, tile);
    }
    if constexpr (R > 1) {
      if (rows < R) return multiply_any<R - 1, P>(rows, cols, tile);
    }
    multiply_tile<R, P>(tile);
  }
};

template <class Vec, class Dot>
template <int R, int P>
void Int8Linear<Vec, Dot>::multiply_tile(const Tile& tile) {
  constexpr int kVecs = P * kPanelVecs;
  Sum sum[R][kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) sum[r][i] = Dot::kShifted ? Dot::load_sum(tile.starts + i * Dot::kLanes) : Sum{};
  }
  const std::byte *x = tile.x, *w = tile.w, *next = tile.next;
  for (int64_t g = 0; g < tile.groups; ++g, x += kTileRows * Dot::kGroupBytes, w += 64, next += tile.share) {
    typename Dot::Weights weights[kVecs];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) __builtin_prefetch(next + p * tile.panel, 0, 2);
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) {
      weights[i] = Dot::load(w + i / kPanelVecs * tile.panel + i % kPanelVecs * Dot::kLanes * kGroup);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const typename Dot::Inputs inputs = Dot::broadcast(x + r * Dot::kGroupBytes);
#pragma GCC unroll 8
      for (int i = 0; i < kVecs; ++i) sum[r][i] = Dot::multiply_add(inputs, weights[i], sum[r][i]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) Dot::store_sum(tile.sums + r * kTileCols + i * Dot::kLanes, sum[r][i]);
  }
}

}  // namespace
}  // namespace sparsed::cpu
