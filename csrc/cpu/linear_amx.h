// Linear layers on AMX tiles, for one block of rows x outputs: x and W in bfloat16, sums in float32.
//
//   out = x W^T + bias + residual        x [rows, K], W [outputs, K] packed in tiles of 32 inputs x 16 outputs
//
// Operands   A: 16 rows x 32 inputs of x, copied into the scratch as contiguous tiles. B: 32 inputs x 16 outputs, as W
//            is packed. The loops are those of linear_vector.h.
// Order      Every output is a chain of TDPBF16PS over k ascending, 32 inputs each, started at 0. Then come bias,
//            residual and one rounding. A row's bits do not depend on its block.
// Rate       Measured on one core of a Sapphire-Rapids-class Xeon: 50 cycles a product of 16 x 16 x 32 with random
//            data, which is 35 % of what the tile unit can do.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/amx.h"
#include "cpu/half.h"
#include "cpu/linear.h"
#include "cpu/ops_kernels.h"

namespace sparsed::cpu {
namespace {

// Arch::Vec is the vector of the last step.
template <class Arch>
class AmxLinear {
 public:
  static LinearPlan plan() { return {kTileRows, kTilePanels, kBlockRows, kBlockPanels}; }
  static size_t scratch_bytes(const LinearBlock& b) { return Scratch(b).bytes; }

  static void run_block(const LinearBlock& b) {
    const Scratch scratch(b);
    const int64_t row_tiles = tiles_of(b.rows, kTileRows);
    const int64_t panel = b.k_padded * kPanel;
    tile_configure();
    for (int64_t first = 0; first < b.k_padded; first += kDepth) {
      const int64_t depth = min_of(kDepth, b.k_padded - first);
      copy_rows(b, first, depth, scratch.x);
      for (int64_t col = 0; col < b.cols; col += kTileCols) {
        const Bf16* w = static_cast<const Bf16*>(b.w) + col * b.k_padded + first * kPanel;
        const int64_t cols = min_of(kTileCols, b.cols - col);
        for (int64_t tile = 0; tile < row_tiles; ++tile) {
          const int64_t row = tile * kTileRows, rows = min_of(kTileRows, b.rows - row);
          const int64_t place = b.k_padded > kDepth ? col / kTileCols * row_tiles + tile : 0;
          float* sums = scratch.sums + place * kTileRows * kTileCols;
          multiply_any(rows, tiles_of(cols, kPanel), scratch.x + row * depth, w, panel, depth, first == 0, sums);
          if (first + depth == b.k_padded) finish<Vec>(b, row, col, rows, cols, sums, kTileCols);
        }
      }
    }
    tile_release();
  }

 private:
  using Vec = typename Arch::Vec;

  static constexpr int kTileRows = 32;  // the micro-kernel: 2 x 2 tiles
  static constexpr int kTilePanels = 2;
  static constexpr int kTileCols = kTilePanels * kPanel;
  static constexpr int kStep = 32;      // inputs of a tile
  static constexpr int kDepth = 512;    // inputs of a pass: two panels of it, 32 KB, stay in L1
  static constexpr int kOperand = 512;  // elements of an operand tile
  static constexpr int64_t kBlockRows = 384;
  static constexpr int64_t kBlockPanels = 32;

  // Addresses inside a block's scratch, which may be null: only `bytes` counts then.
  struct Scratch {
    Bf16* x;      // [row tiles][kDepth / kStep][2][16][32]
    float* sums;  // [column tiles][row tiles][kTileRows][kTileCols]; one tile where no sum has to wait
    size_t bytes;

    explicit Scratch(const LinearBlock& b) {
      const int64_t row_tiles = tiles_of(b.rows, kTileRows);
      const int64_t waiting = b.k_padded > kDepth ? row_tiles * tiles_of(b.cols, kTileCols) : 1;
      const size_t x_bytes = static_cast<size_t>(row_tiles * kTileRows * kDepth) * sizeof(Bf16);
      x = reinterpret_cast<Bf16*>(b.scratch);
      sums = reinterpret_cast<float*>(b.scratch ? b.scratch + x_bytes : nullptr);
      bytes = x_bytes + static_cast<size_t>(waiting * kTileRows * kTileCols) * sizeof(float);
    }
  };

  // Inputs [first, first + depth) of all rows; zeros beyond the matrix.
  static void copy_rows(const LinearBlock& b, int64_t first, int64_t depth, Bf16* to) {
    const Bf16* x = static_cast<const Bf16*>(b.x) + first;
    const int64_t inputs = min_of(depth, b.k - first);
    for (int64_t r = 0; r < tiles_of(b.rows, kTileRows) * kTileRows; ++r) {
      // 32 rows: two operands side by side.
      Bf16* tile = to + r / kTileRows * kTileRows * depth + r % kTileRows * kStep;
      for (int64_t k = 0; k < depth; k += kStep, tile += 2 * kOperand) {
        const int64_t n = r < b.rows ? min_of(kStep, inputs - k) : 0;
        if (n == kStep) {
          __builtin_memcpy(tile, x + r * b.x_stride + k, kStep * sizeof(Bf16));
        } else {
          for (int64_t i = 0; i < kStep; ++i) tile[i] = i < n ? x[r * b.x_stride + k + i] : Bf16{0};
        }
      }
    }
  }

  // Sums of R x P tiles, row-major in the registers 0 - 3.
  static constexpr size_t kSumStride = kTileCols * sizeof(float);
  static constexpr int kSumsDown = 16 * kTileCols;

  template <int R, int P>
  static void clear_sums() {
    tile_zero<0>();
    if constexpr (P == 2) tile_zero<1>();
    if constexpr (R == 2) tile_zero<2>();
    if constexpr (R == 2 && P == 2) tile_zero<3>();
  }

  template <int R, int P>
  static void load_sums(const float* sums) {
    tile_load<0>(sums, kSumStride);
    if constexpr (P == 2) tile_load<1>(sums + kPanel, kSumStride);
    if constexpr (R == 2) tile_load<2>(sums + kSumsDown, kSumStride);
    if constexpr (R == 2 && P == 2) tile_load<3>(sums + kSumsDown + kPanel, kSumStride);
  }

  template <int R, int P>
  static void store_sums(float* sums) {
    tile_store<0>(sums, kSumStride);
    if constexpr (P == 2) tile_store<1>(sums + kPanel, kSumStride);
    if constexpr (R == 2) tile_store<2>(sums + kSumsDown, kSumStride);
    if constexpr (R == 2 && P == 2) tile_store<3>(sums + kSumsDown + kPanel, kSumStride);
  }

  // sums [32][kTileCols] += R operands of x (registers 4, 5) times P panels (6, 7), over `depth` inputs. fresh: the
  // sums start at 0. (Defined below the class: in it the function would be inline.)
  template <int R, int P>
  static void multiply_tile(const Bf16* x, const Bf16* w, int64_t panel, int64_t depth, bool fresh, float* sums);

  static void multiply_any(int64_t rows, int64_t panels, const Bf16* x, const Bf16* w, int64_t panel, int64_t depth,
                           bool fresh, float* sums) {
    const auto multiply = rows > 16 ? (panels == 2 ? multiply_tile<2, 2> : multiply_tile<2, 1>)
                                    : (panels == 2 ? multiply_tile<1, 2> : multiply_tile<1, 1>);
    multiply(x, w, panel, depth, fresh, sums);
  }
};

template <class Arch>
template <int R, int P>
void AmxLinear<Arch>::multiply_tile(const Bf16* x, const Bf16* w, int64_t panel, int64_t depth, bool fresh,
                                    float* sums) {
  if (fresh) {
    clear_sums<R, P>();
  } else {
    load_sums<R, P>(sums);
  }
  for (int64_t k = 0; k < depth; k += kStep, x += 2 * kOperand, w += kOperand) {
    tile_load<4>(x, 64);
    tile_load<6>(w, 64);
    tile_dp<0, 4, 6>();
    if constexpr (P == 2) {
      tile_load<7>(w + panel, 64);
      tile_dp<1, 4, 7>();
    }
    if constexpr (R == 2) {
      tile_load<5>(x + kOperand, 64);
      tile_dp<2, 5, 6>();
    }
    if constexpr (R == 2 && P == 2) tile_dp<3, 5, 7>();
  }
  store_sums<R, P>(sums);
}

}  // namespace
}  // namespace sparsed::cpu
