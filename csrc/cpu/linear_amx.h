// Linear layers on AMX tiles, for one block of rows x outputs: bfloat16 with sums in float32, int8 with sums in int32.
//
//   out = x W^T + bias + residual        x [rows, K], W [outputs, K] packed in tiles of 64 bytes x 16 outputs
//
// Operands   A: 16 rows x 64 bytes of x, laid out once per call. B: 64 bytes of 16 outputs, as W is packed.
// Blocking   384 rows x 32 panels a block. K is cut into depths of 1024 bytes: two panels of one depth, 32 KB, stay in
//            the first-level cache, and the rows of x stream past them. The next two panels are requested meanwhile, a
//            share with each tile of rows. The micro-kernel holds 2 x 2 tiles of sums.
// Order      Every output is a chain of products over k ascending, started at 0. Then come bias, residual and one
//            rounding (int8: the scales before them). A row's bits do not depend on its block.
// Rate       A trial of this structure in bfloat16, on one core of a Sapphire-Rapids-class Xeon with random data: 28 to
//            31 cycles a product of 16 x 16 x 64 bytes. The kernels here have run on emulated tiles only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/amx.h"
#include "cpu/half.h"
#include "cpu/linear_finish.h"
#include "cpu/ops_kernels.h"
#include "cpu/quantize_vec.h"

namespace sparsed::cpu {
namespace {

constexpr int64_t kTileRowBytes = 64;
constexpr int64_t kOperandBytes = 16 * kTileRowBytes;

// Where row r < 32 of a tile of rows has its inputs: two operands side by side, then those of the next 64 bytes of K.
inline std::byte* operand_row(std::byte* tile, int64_t r) { return tile + r * kTileRowBytes; }

template <class V>
struct AmxBf16 {
  using Vec = V;
  using Sum = float;
  static constexpr int64_t kInputBytes = 2;
  static constexpr int64_t kHeadBytes = 0;  // of a laid-out tile of rows, before its operands

  template <int C, int A, int B>
  static void multiply() {
    tile_dp<C, A, B>();
  }

  static void lay_out_row(const LinearRows& x, int64_t row, std::byte* tile) {
    constexpr int64_t kInputs = kTileRowBytes / kInputBytes;
    const Bf16* from = static_cast<const Bf16*>(x.data) + row * x.stride;
    std::byte* to = operand_row(tile, row);
    for (int64_t k = 0; k < x.k_padded; k += kInputs, to += 2 * kOperandBytes) {
      const int64_t n = min_of(kInputs, x.k - k);
      __builtin_memcpy(to, from + k, static_cast<size_t>(n * kInputBytes));
      if (n < kInputs) __builtin_memset(to + n * kInputBytes, 0, static_cast<size_t>((kInputs - n) * kInputBytes));
    }
  }

  static void finish_tile(const LinearBlock& b, const std::byte*, int64_t row, int64_t col, int64_t rows, int64_t cols,
                          const float* sums, int64_t stride) {
    finish<Vec>(b, row, col, rows, cols, sums, stride);
  }
};

template <class V>
struct AmxInt8 {
  using Vec = V;
  using Sum = int32_t;
  static constexpr int64_t kInputBytes = 1;
  static constexpr int64_t kHeadBytes = 128;  // the scales of 32 rows

  template <int C, int A, int B>
  static void multiply() {
    tile_dp_int8<C, A, B>();
  }

  static void lay_out_row(const LinearRows& x, int64_t row, std::byte* tile) {
    static_assert(RowQuantizer<Vec>::kStep == kTileRowBytes);
    std::byte* to = operand_row(tile + kHeadBytes, row);
    reinterpret_cast<float*>(tile)[row] = RowQuantizer<Vec>::run(x, row, [&](const int8_t* integers) {
      __builtin_memcpy(to, integers, kTileRowBytes);
      to += 2 * kOperandBytes;
    });
  }

  static void finish_tile(const LinearBlock& b, const std::byte* tile, int64_t row, int64_t col, int64_t rows,
                          int64_t cols, const int32_t* sums, int64_t stride) {
    finish<Vec>(b, row, col, rows, cols, sums, stride, reinterpret_cast<const float*>(tile));
  }
};

// Product is AmxBf16 or AmxInt8. All distances are in bytes.
template <class Product>
class AmxLinear {
 public:
  static constexpr LinearKernels table() {
    return {{kTileRows, kTilePanels, kBlockRows, kBlockPanels}, tile_bytes, lay_out, scratch_bytes, run_block};
  }

 private:
  using Sum = typename Product::Sum;

  static constexpr int kTileRows = 32;  // the micro-kernel: 2 x 2 tiles
  static constexpr int kTilePanels = 2;
  static constexpr int kTileCols = kTilePanels * kPanel;
  static constexpr int64_t kDepth = 1024;
  static constexpr int64_t kBlockRows = 384;
  static constexpr int64_t kBlockPanels = 32;

  static int64_t row_bytes(int64_t k_padded) {
    return tiles_of(k_padded * Product::kInputBytes, kTileRowBytes) * kTileRowBytes;
  }
  static size_t tile_bytes(int64_t k_padded) {
    return static_cast<size_t>(Product::kHeadBytes + kTileRows * row_bytes(k_padded));
  }
  // [column tiles][row tiles][kTileRows][kTileCols] sums; one tile where no sum has to wait.
  static size_t scratch_bytes(const LinearBlock& b) {
    const int64_t waiting = tiles_of(b.x.rows, kTileRows) * tiles_of(b.cols, kTileCols);
    const int64_t tiles = row_bytes(b.x.k_padded) > kDepth ? waiting : 1;
    return static_cast<size_t>(tiles * kTileRows * kTileCols) * sizeof(Sum);
  }

  static void lay_out(const LinearRows& x, std::byte* tile) {
    for (int64_t row = 0; row < x.rows; ++row) Product::lay_out_row(x, row, tile);
    for (int64_t row = x.rows; row < tiles_of(x.rows, 16) * 16; ++row) {  // the rest of the last operand
      std::byte* to = operand_row(tile + Product::kHeadBytes, row);
      for (int64_t i = 0; i < row_bytes(x.k_padded); i += kTileRowBytes, to += 2 * kOperandBytes) {
        __builtin_memset(to, 0, kTileRowBytes);
      }
    }
  }

  static void run_block(const LinearBlock& b) {
    const int64_t bytes = row_bytes(b.x.k_padded), panel = bytes * kPanel;
    tile_configure();
    for (int64_t first = 0; first < bytes; first += kDepth) {
      const int64_t depth = min_of(kDepth, bytes - first);
      for (int64_t col = 0; col < b.cols; col += kTileCols) {
        const std::byte* w = static_cast<const std::byte*>(b.w) + col / kPanel * panel + first * kPanel;
        const bool last_cols = col + kTileCols >= b.cols;
        // After the last panels of a depth the first ones of the next depth follow.
        const std::byte* next = !last_cols              ? w + kTilePanels * panel
                                : first + depth < bytes ? static_cast<const std::byte*>(b.w) + (first + depth) * kPanel
                                                        : w;
        multiply_rows(b, {first, depth, bytes, col, min_of(kTileCols, b.cols - col)}, w, next, panel);
      }
    }
    tile_release();
  }

  // What one pass over the rows multiplies: bytes [first, first + depth) of K and outputs [col, col + cols).
  struct Part {
    int64_t first, depth, all;
    int64_t col, cols;
  };

  static void multiply_rows(const LinearBlock& b, const Part& part, const std::byte* w, const std::byte* next,
                            int64_t panel) {
    const int64_t row_tiles = tiles_of(b.x.rows, kTileRows), panels = tiles_of(part.cols, kPanel);
    const int64_t next_bytes = part.depth * kPanel;
    const std::byte* tile = b.x_tiles;
    for (int64_t i = 0; i < row_tiles; ++i, tile += tile_bytes(b.x.k_padded)) {
      const int64_t row = i * kTileRows, rows = min_of(kTileRows, b.x.rows - row);
      const int64_t place = part.all > kDepth ? part.col / kTileCols * row_tiles + i : 0;
      Sum* sums = reinterpret_cast<Sum*>(b.scratch) + place * kTileRows * kTileCols;
      const std::byte* x = tile + Product::kHeadBytes + part.first * kTileRows;
      if (next != w) prefetch(next, panels, panel, next_bytes * i / row_tiles, next_bytes * (i + 1) / row_tiles);
      multiply_any(rows, panels, x, w, panel, part.depth, part.first == 0, sums);
      if (part.first + part.depth == part.all) {
        Product::finish_tile(b, tile, row, part.col, rows, part.cols, sums, kTileCols);
      }
    }
  }

  // The bytes [begin, end) of panels, into the second-level cache.
  static void prefetch(const std::byte* panels, int64_t count, int64_t panel, int64_t begin, int64_t end) {
    for (int64_t at = begin / 64 * 64; at < end; at += 64) {
      for (int64_t p = 0; p < count; ++p) __builtin_prefetch(panels + p * panel + at, 0, 2);
    }
  }

  // Sums of R x P tiles, row-major in the registers 0 - 3.
  static constexpr size_t kSumStride = kTileCols * sizeof(Sum);
  static constexpr int kSumsDown = 16 * kTileCols;

  template <int R, int P>
  static void clear_sums() {
    tile_zero<0>();
    if constexpr (P == 2) tile_zero<1>();
    if constexpr (R == 2) tile_zero<2>();
    if constexpr (R == 2 && P == 2) tile_zero<3>();
  }

  template <int R, int P>
  static void load_sums(const Sum* sums) {
    tile_load<0>(sums, kSumStride);
    if constexpr (P == 2) tile_load<1>(sums + kPanel, kSumStride);
    if constexpr (R == 2) tile_load<2>(sums + kSumsDown, kSumStride);
    if constexpr (R == 2 && P == 2) tile_load<3>(sums + kSumsDown + kPanel, kSumStride);
  }

  template <int R, int P>
  static void store_sums(Sum* sums) {
    tile_store<0>(sums, kSumStride);
    if constexpr (P == 2) tile_store<1>(sums + kPanel, kSumStride);
    if constexpr (R == 2) tile_store<2>(sums + kSumsDown, kSumStride);
    if constexpr (R == 2 && P == 2) tile_store<3>(sums + kSumsDown + kPanel, kSumStride);
  }

  // sums [32][kTileCols] += R operands of x (registers 4, 5) times P panels (6, 7), over `depth` bytes of K. fresh: the
  // sums start at 0. (Defined below the class: in it the function would be inline.)
  template <int R, int P>
  static void multiply_tile(const std::byte* x, const std::byte* w, int64_t panel, int64_t depth, bool fresh,
                            Sum* sums);

  static void multiply_any(int64_t rows, int64_t panels, const std::byte* x, const std::byte* w, int64_t panel,
                           int64_t depth, bool fresh, Sum* sums) {
    const auto multiply = rows > 16 ? (panels == 2 ? multiply_tile<2, 2> : multiply_tile<2, 1>)
                                    : (panels == 2 ? multiply_tile<1, 2> : multiply_tile<1, 1>);
    multiply(x, w, panel, depth, fresh, sums);
  }
};

template <class Product>
template <int R, int P>
void AmxLinear<Product>::multiply_tile(const std::byte* x, const std::byte* w, int64_t panel, int64_t depth, bool fresh,
                                       Sum* sums) {
  if (fresh) {
    clear_sums<R, P>();
  } else {
    load_sums<R, P>(sums);
  }
  for (int64_t k = 0; k < depth; k += kTileRowBytes, x += 2 * kOperandBytes, w += kOperandBytes) {
    tile_load_stream<4>(x, kTileRowBytes);
    tile_load<6>(w, kTileRowBytes);
    Product::template multiply<0, 4, 6>();
    if constexpr (P == 2) {
      tile_load<7>(w + panel, kTileRowBytes);
      Product::template multiply<1, 4, 7>();
    }
    if constexpr (R == 2) {
      tile_load_stream<5>(x + kOperandBytes, kTileRowBytes);
      Product::template multiply<2, 5, 6>();
    }
    if constexpr (R == 2 && P == 2) Product::template multiply<3, 5, 7>();
  }
  store_sums<R, P>(sums);
}

}  // namespace
}  // namespace sparsed::cpu
