// Linear layers on vectors, for one block of rows x outputs.
//
//   out = x W^T + bias + residual        x [rows, K], W [outputs, K] packed in panels of outputs
//
// Blocking   192 rows x 32 panels a block. K is cut into depths of 256 (float32) or 512 (bfloat16) inputs: the rows of
//            x for one depth are copied into the scratch, and the part of W for a group of panels stays in the
//            first-level cache. The micro-kernel holds 12 rows x 2 panels of sums in the register file (AVX-512).
// Algorithm  for each depth of inputs:
//              copy its columns of x
//              for each group of panels, for each tile of rows:
//                a chain of multiply-adds over k ascending, started at 0, added to the sums so far
//            after the last depth: + bias, + residual, one rounding
// Order      Depths are added in order, which keeps long sums as exact as blocked ones. Tiles at the edge run the same
//            chains, so that a row's bits do not depend on its block.
// Rate       Measured on two cores of an AMD EPYC (Zen 5): 0.99 TFLOP/s in bfloat16, 0.50 in float32.
//
// mul_float.h takes any x and W and computes in float32; mul_bf16.h takes bfloat16, two inputs at a time. Sums that are
// not complete wait in the scratch as float32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor.h"
#include "cpu/half.h"
#include "cpu/linear_finish.h"
#include "cpu/ops_kernels.h"

namespace sparsed::cpu {
namespace {

// Arch has Vec and Mul.
template <class Arch>
class VectorLinear {
 public:
  static constexpr LinearKernels table() {
    return {{kTileRows, kTilePanels, kBlockRows, kBlockPanels}, tile_bytes, nullptr, scratch_bytes, run_block};
  }

 private:
  static size_t tile_bytes(int64_t) { return 0; }  // rows are copied by the blocks: it is nothing beside the products
  static size_t scratch_bytes(const LinearBlock& b) { return Scratch(b).bytes; }

  static void run_block(const LinearBlock& b) {
    const Scratch scratch(b);
    const int64_t size = b.w_dtype == DType::kFloat32 ? 4 : 2;
    for (int64_t first = 0; first < b.x.k_padded; first += kDepth) {
      const int64_t depth = min_of(kDepth, b.x.k_padded - first);
      copy_rows(b, first, depth, scratch.x);
      for (int64_t col = 0; col < b.cols; col += kTileCols) {
        const int64_t at = col * b.x.k_padded + first * kPanel;
        const int64_t next = col + kTileCols < b.cols ? at + kTileCols * b.x.k_padded : at;
        const Ahead ahead{static_cast<const std::byte*>(b.w) + next * size, 2 * kPanel * size,
                          b.x.k_padded * kPanel * size};
        multiply_part(b, scratch, at, {first, depth, col, min_of(kTileCols, b.cols - col), ahead});
      }
    }
  }

  using Vec = typename Arch::Vec;
  using Mul = typename Arch::Mul;
  using Operand = typename Mul::Operand;

  static constexpr int kPanelVecs = kPanel / Vec::kLanes;
  // The micro-kernel: kTileRows x kTilePanels * kPanelVecs accumulators nearly fill the register file.
  static constexpr int kTileRows = Vec::kLanes == 16 ? 12 : Vec::kLanes == 8 ? 6 : 2;
  static constexpr int kTilePanels = Vec::kLanes == 16 ? 2 : 1;
  static constexpr int kTileCols = kTilePanels * kPanel;

  using Elem = typename Mul::Elem;                  // Mul::kDepth inputs of a row, or of an output
  static constexpr int kDepth = 256 * Mul::kDepth;  // inputs
  // Elems between x rows: not a power of two, so that rows spread over L1.
  static constexpr int kXStride = 256 + kPanel;
  static constexpr int64_t kBlockRows = 192;
  static constexpr int64_t kBlockPanels = 32;

  // Addresses inside a block's scratch, which may be null: only `bytes` counts then.
  struct Scratch {
    Elem* x;      // [row tiles][kTileRows][kXStride]
    float* wide;  // [kTilePanels][kDepth][kPanel] bfloat16 weights, widened
    float* sums;  // [column tiles][row tiles][kTileRows * kTileCols]; one tile where no sum has to wait
    size_t bytes;

    explicit Scratch(const LinearBlock& b) {
      const int64_t row_tiles = tiles_of(b.x.rows, kTileRows);
      const int64_t waiting = b.x.k_padded > kDepth ? row_tiles * tiles_of(b.cols, kTileCols) : 1;
      size_t at = 0;
      const auto take = [&](int64_t elements) {  // of 4 bytes
        std::byte* p = b.scratch ? b.scratch + at : nullptr;
        at += static_cast<size_t>(elements) * 4;
        return p;
      };
      x = reinterpret_cast<Elem*>(take(row_tiles * kTileRows * kXStride));
      wide = reinterpret_cast<float*>(take(kTilePanels * kDepth * kPanel));
      sums = reinterpret_cast<float*>(take(waiting * kTileRows * kTileCols));
      bytes = at;
    }
  };

  // --- x rows and wide panels ----------------------------------------------------------------------------------------

  // n values as float32, then zeros up to `padded`, a multiple of 16.
  template <class X>
  static void copy_row(const X* x, int64_t n, int64_t padded, float* to) {
    int64_t i = 0;
    for (; i + Vec::kLanes <= n; i += Vec::kLanes) Vec::load(x + i).store(to + i);
    if (i < n) {
      Vec::load_n(x + i, static_cast<int>(n - i)).store(to + i);
      i += Vec::kLanes;
    }
    for (; i < padded; i += Vec::kLanes) Vec::zero().store(to + i);
  }

  // The same in bfloat16 pairs. `ahead`: values from here to what is copied soon, which is requested from memory; K of
  // 256 and 768 gain 1 and 4 %.
  static void copy_pairs(const Bf16* x, int64_t n, int64_t padded, int64_t ahead, Elem* to) {
    constexpr int64_t kLine = 64 / sizeof(Bf16);
    Bf16* out = reinterpret_cast<Bf16*>(to);
    int64_t i = 0;
    for (; i + kLine <= n; i += kLine) {
      __builtin_prefetch(x + i + ahead);
      __builtin_memcpy(out + i, x + i, 64);
    }
    if (i < n) __builtin_memcpy(out + i, x + i, static_cast<size_t>(n - i) * sizeof(Bf16));
    if (n < padded) __builtin_memset(out + n, 0, static_cast<size_t>(padded - n) * sizeof(Bf16));
  }

  // Inputs [first, first + depth) of all rows.
  static void copy_rows(const LinearBlock& b, int64_t first, int64_t depth, Elem* to) {
    constexpr int64_t kRowsAhead = 8;
    const int64_t n = min_of(depth, b.x.k - first);
    for (int64_t r = 0; r < b.x.rows; ++r, to += kXStride) {
      const int64_t at = r * b.x.stride + first;
      if constexpr (Mul::kDepth == 2) {
        const int64_t ahead = r + kRowsAhead < b.x.rows ? kRowsAhead * b.x.stride : 0;
        copy_pairs(static_cast<const Bf16*>(b.x.data) + at, n, depth, ahead, to);
      } else if (b.x.dtype == DType::kFloat32) {
        copy_row(static_cast<const float*>(b.x.data) + at, n, depth, to);
      } else {
        copy_row(static_cast<const Bf16*>(b.x.data) + at, n, depth, to);
      }
    }
  }

  // Part of `panels` bfloat16 panels as float32 panels [panels][depth][kPanel].
  static void widen_panels(const Bf16* w, int64_t panel, int64_t panels, int64_t depth, float* to) {
    for (int64_t p = 0; p < panels; ++p) {
      for (int64_t k = 0; k < depth; k += 2, to += 2 * kPanel) {
        for (int v = 0; v < kPanelVecs; ++v) {
          Vec even, odd;
          Vec::load_pairs(w + p * panel + k * kPanel + 2 * v * Vec::kLanes, even, odd);
          even.store(to + v * Vec::kLanes);
          odd.store(to + kPanel + v * Vec::kLanes);
        }
      }
    }
  }

  // --- micro-kernel --------------------------------------------------------------------------------------------------

  // Two inputs of a panel are 32 elements of W in both packed layouts: one step of pairs, or two of single inputs.
  static constexpr int kSteps = 2 / Mul::kDepth;

  // Vector v of step kStep.
  template <int kStep, class W>
  static Operand load_weights(const W* w, int v) {
    if constexpr (sizeof(Elem) == sizeof(W) * Mul::kDepth) {  // packed as they are multiplied
      return Mul::load(reinterpret_cast<const Elem*>(w) + kStep * kPanel + v * Vec::kLanes);
    } else {
      Vec even, odd;
      Vec::load_pairs(w + 2 * v * Vec::kLanes, even, odd);
      return kStep ? odd : even;
    }
  }

  template <int kStep, int R, int P, class W>
  static void multiply_step(const Elem* x, const W* w, int64_t panel, Vec (&sum)[R][P * kPanelVecs]) {
    Operand weights[P * kPanelVecs];
#pragma GCC unroll 8
    for (int i = 0; i < P * kPanelVecs; ++i) {
      weights[i] = load_weights<kStep>(w + i / kPanelVecs * panel, i % kPanelVecs);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Operand value = Mul::broadcast(x + r * kXStride + kStep);
#pragma GCC unroll 8
      for (int i = 0; i < P * kPanelVecs; ++i) sum[r][i] = Mul::multiply_add(value, weights[i], sum[r][i]);
    }
  }

  // The part of W that comes next, in bytes: two inputs of a panel take `step`, panels lie `panel` apart. It is
  // requested from memory during the multiplication by the first rows: twice as fast where few rows wait for W, and 5 %
  // where many do.
  struct Ahead {
    const std::byte* data;
    int64_t step;
    int64_t panel;
  };

  // What one pass over the rows multiplies: inputs [first, first + depth) and outputs [col, col + cols).
  struct Part {
    int64_t first, depth;
    int64_t col, cols;
    Ahead ahead;
  };

  // The rows of a part that the registers hold.
  struct RowTile {
    const Elem* x;
    int64_t row, rows;
    float* sums;  // [rows][panels * kPanel], where sums wait that are not complete
  };

  // `finish` for a row tile that fills its registers, straight from there: 8 % faster where K is 256.
  template <class Residual, class Out, int R, int kVecs>
  static void finish_whole(const LinearBlock& b, int64_t row, int64_t col, const Vec (&sum)[R][kVecs]) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < kVecs; ++i) {
        finish_vec<Residual, Out>(b, row + r, col + i * Vec::kLanes, sum[r][i], Vec::kLanes);
      }
    }
  }

  // tile.x [R][kXStride] times P panels over the part's inputs, added to the sums of the inputs before. After the last
  // inputs the tile's outputs are written. (Defined below the class: in it the function would be inline.)
  template <int R, int P, class W>
  static void multiply_tile(const LinearBlock& b, const Part& part, const RowTile& tile, const W* w, int64_t panel);

  // The instance for 1 ... R rows and 1 ... P panels.
  template <int R, int P, class W>
  static void multiply_any(const LinearBlock& b, const Part& part, const RowTile& tile, const W* w, int64_t panel) {
    if constexpr (P > 1) {
      if (part.cols <= (P - 1) * kPanel) return multiply_any<R, P - 1>(b, part, tile, w, panel);
    }
    if constexpr (R > 1) {
      if (tile.rows < R) return multiply_any<R - 1, P>(b, part, tile, w, panel);
    }
    multiply_tile<R, P>(b, part, tile, w, panel);
  }

  // --- block ---------------------------------------------------------------------------------------------------------

  // All rows times `w`, the part's panels.
  template <class W>
  static void multiply_rows(const LinearBlock& b, const Scratch& scratch, const W* w, int64_t panel, const Part& part) {
    const int64_t row_tiles = tiles_of(b.x.rows, kTileRows);
    const bool waiting = b.x.k_padded > kDepth;
    for (int64_t tile = 0; tile < row_tiles; ++tile) {
      const int64_t row = tile * kTileRows;
      const int64_t place = waiting ? part.col / kTileCols * row_tiles + tile : 0;
      const RowTile rows{scratch.x + row * kXStride, row, min_of(kTileRows, b.x.rows - row),
                         scratch.sums + place * kTileRows * kTileCols};
      multiply_any<kTileRows, kTilePanels>(b, part, rows, w, panel);
    }
  }

  static void multiply_part(const LinearBlock& b, const Scratch& scratch, int64_t at, const Part& part) {
    const int64_t panel = b.x.k_padded * kPanel;
    if constexpr (Mul::kDepth == 1) {
      if (b.w_dtype == DType::kFloat32) {
        return multiply_rows(b, scratch, static_cast<const float*>(b.w) + at, panel, part);
      }
      if (b.x.rows > kTileRows) {  // widened once for all row tiles; a single tile widens as it goes
        const int64_t panels = tiles_of(part.cols, kPanel);
        widen_panels(static_cast<const Bf16*>(b.w) + at, panel, panels, part.depth, scratch.wide);
        return multiply_rows(b, scratch, scratch.wide, part.depth * kPanel, part);
      }
    }
    multiply_rows(b, scratch, static_cast<const Bf16*>(b.w) + at, panel, part);
  }
};

template <class Arch>
template <int R, int P, class W>
void VectorLinear<Arch>::multiply_tile(const LinearBlock& b, const Part& part, const RowTile& tile, const W* w,
                                       int64_t panel) {
  constexpr int kVecs = P * kPanelVecs;
  Vec sum[R][kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) sum[r][i] = Vec::zero();
  }
  const Elem* x = tile.x;
  const Ahead ahead = tile.row == 0 ? part.ahead : Ahead{reinterpret_cast<const std::byte*>(w), 0, 0};
  const std::byte* next = ahead.data;
  for (int64_t k = 0; k < part.depth; k += 2, x += kSteps, w += 2 * kPanel, next += ahead.step) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      __builtin_prefetch(next + p * ahead.panel, 0, 2);
      if constexpr (sizeof(W) == 4) __builtin_prefetch(next + p * ahead.panel + 64, 0, 2);
    }
    multiply_step<0, R, P>(x, w, panel, sum);
    if constexpr (kSteps == 2) multiply_step<1, R, P>(x, w, panel, sum);
  }
  if (part.first > 0) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < kVecs; ++i) sum[r][i] = Vec::load(tile.sums + (r * kVecs + i) * Vec::kLanes) + sum[r][i];
    }
  }
  const bool complete = part.first + part.depth == b.x.k_padded;
  if constexpr (R == kTileRows && P == kTilePanels) {
    if (complete && part.cols == kTileCols) {
      return with_out_types(b, [&](auto residual, auto out) {
        finish_whole<decltype(residual), decltype(out)>(b, tile.row, part.col, sum);
      });
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) sum[r][i].store(tile.sums + (r * kVecs + i) * Vec::kLanes);
  }
  if (complete) finish<Vec>(b, tile.row, part.col, R, part.cols, tile.sums, P * kPanel);
}

}  // namespace
}  // namespace sparsed::cpu
