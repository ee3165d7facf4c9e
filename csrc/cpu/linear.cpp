// The driver of linear layers: lays x out once for all weights of a call, and hands out blocks of rows x outputs.
#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "cpu/ops.h"
#include "cpu/ops_checks.h"
#include "cpu/parallel.h"
#include "support/buffer.h"

namespace sparsed::cpu {
namespace {

// Rows of x that lie in memory as blocks read them. More rows than that take turns, so that memory stays bounded.
constexpr size_t kMostTileBytes = size_t{64} << 20;

LinearRows rows_of(const RowsView& x, int64_t first, int64_t rows, int64_t k_padded) {
  return {x.row(first), x.stride, x.dtype, rows, x.cols, k_padded};
}

// x in the kernels' form, for the rows [first, first + rows) of a turn.
class LaidOut {
 public:
  LaidOut(const LinearKernels& kernels, int64_t rows, int64_t k_padded)
      : kernels_(kernels),
        k_padded_(k_padded),
        tile_bytes_(kernels.tile_bytes(k_padded)),
        turn_(turn_of(kernels.plan, rows, tile_bytes_)) {
    const size_t bytes = static_cast<size_t>(ceil_div(turn_, kernels.plan.tile_rows)) * tile_bytes_;
    if (bytes > 0) memory_.emplace(kept(), bytes, "x, laid out for the kernels,");
  }

  int64_t turn() const { return turn_; }

  void fill(const RowsView& x, int64_t first, int64_t rows) const {
    if (!memory_) return;
    constexpr int64_t kItemElements = 1 << 16;
    const int64_t tile_rows = kernels_.plan.tile_rows, tiles = ceil_div(rows, tile_rows);
    const int64_t item_tiles = std::max<int64_t>(1, kItemElements / (tile_rows * k_padded_));
    parallel_for(ceil_div(tiles, item_tiles), [&](int64_t item) {
      for (int64_t tile = item * item_tiles; tile < std::min(tiles, (item + 1) * item_tiles); ++tile) {
        const int64_t row = tile * tile_rows;
        kernels_.lay_out(rows_of(x, first + row, std::min(tile_rows, rows - row), k_padded_), at(row));
      }
    });
  }

  // The tile that starts with a row of the turn; nullptr where blocks read x itself.
  std::byte* at(int64_t row) const {
    if (!memory_) return nullptr;
    return memory_->get() + static_cast<size_t>(row / kernels_.plan.tile_rows) * tile_bytes_;
  }

 private:
  // As few turns as memory allows, of nearly the same size.
  static int64_t turn_of(const LinearPlan& plan, int64_t rows, size_t tile_bytes) {
    if (tile_bytes == 0) return rows;
    const int64_t tiles = ceil_div(rows, plan.tile_rows);
    const int64_t most = std::max<int64_t>(plan.block_rows / plan.tile_rows, kMostTileBytes / tile_bytes);
    return ceil_div(tiles, ceil_div(tiles, most)) * plan.tile_rows;
  }

  static KeptMemory& kept() {
    thread_local KeptMemory memory;
    return memory;
  }

  const LinearKernels& kernels_;
  int64_t k_padded_;
  size_t tile_bytes_;
  int64_t turn_;
  std::optional<LentMemory> memory_;
};

// Work items of a weight: row_blocks x panel_blocks blocks of block_rows x block_panels.
struct LinearGrid {
  int64_t block_rows, block_panels;
  int64_t row_blocks, panel_blocks;

  int64_t items() const { return row_blocks * panel_blocks; }
};

// The plan's largest blocks, halved along their longer side (in tiles) until every thread has several, as long as a
// block is worth handing out.
LinearGrid cut(const LinearPlan& plan, int64_t rows, const PackedWeight& w) {
  constexpr int64_t kItemsPerThread = 8, kItemProducts = 1 << 18;
  const int64_t all_row_tiles = ceil_div(rows, plan.tile_rows),
                all_panel_tiles = ceil_div(w.panels(), plan.tile_panels);
  int64_t row_tiles = std::min(all_row_tiles, plan.block_rows / plan.tile_rows);
  int64_t panel_tiles = std::min(all_panel_tiles, plan.block_panels / plan.tile_panels);
  const int64_t tile_products = std::min(rows, plan.tile_rows) * plan.tile_panels * PackedWeight::kPanel * w.k();
  const int64_t wanted = num_threads() > 1 ? kItemsPerThread * num_threads() : 1;
  while (ceil_div(all_row_tiles, row_tiles) * ceil_div(all_panel_tiles, panel_tiles) < wanted &&
         std::max(row_tiles, panel_tiles) > 1 && row_tiles * panel_tiles * tile_products >= 2 * kItemProducts) {
    int64_t& longer = row_tiles > panel_tiles ? row_tiles : panel_tiles;
    longer = ceil_div(longer, 2);
  }
  // Blocks of nearly the same size instead of full ones and a small rest.
  LinearGrid grid;
  grid.block_rows = ceil_div(all_row_tiles, ceil_div(all_row_tiles, row_tiles)) * plan.tile_rows;
  grid.block_panels = ceil_div(all_panel_tiles, ceil_div(all_panel_tiles, panel_tiles)) * plan.tile_panels;
  grid.row_blocks = ceil_div(rows, grid.block_rows);
  grid.panel_blocks = ceil_div(w.panels(), grid.block_panels);
  return grid;
}

// The rows [first, first + rows) of x, which a turn computes.
struct Turn {
  const RowsView& x;
  int64_t first, rows;
  const LaidOut& laid_out;
};

LinearBlock block_at(const LinearGrid& grid, int64_t item, const Turn& turn, const LinearPart& part) {
  // Rows first: neighbouring items share their part of W, the larger matrix as a rule.
  const int64_t row = item % grid.row_blocks * grid.block_rows;
  const int64_t panel = item / grid.row_blocks * grid.block_panels;
  const int64_t col = panel * PackedWeight::kPanel;
  const PackedWeight& w = *part.w;
  const auto address = [&](const RowsView& view) {
    return view.data ? view.row(turn.first + row) + col * static_cast<int64_t>(dtype_size(view.dtype)) : nullptr;
  };
  LinearBlock block;
  block.x = rows_of(turn.x, turn.first + row, std::min(grid.block_rows, turn.rows - row), w.k_padded());
  block.x_tiles = turn.laid_out.at(row);
  block.w = w.panel(panel);
  block.w_dtype = w.dtype();
  block.w_scales = w.scales() ? w.scales() + col : nullptr;
  block.w_starts = w.starts() ? w.starts() + col : nullptr;
  block.bias = w.bias() ? w.bias() + col : nullptr;
  block.residual = address(part.residual);
  block.residual_stride = part.residual.stride;
  block.residual_dtype = part.residual.dtype;
  block.out = address(part.out);
  block.out_stride = part.out.stride;
  block.out_dtype = part.out.dtype;
  block.cols = std::min(grid.block_panels * PackedWeight::kPanel, w.n() - col);
  block.scratch = nullptr;
  return block;
}

// All blocks of all weights in one loop.
void run_turn(const LinearKernels& kernels, const Turn& turn, const std::vector<LinearPart>& parts) {
  turn.laid_out.fill(turn.x, turn.first, turn.rows);
  std::vector<LinearGrid> grids;
  int64_t items = 0;
  for (const LinearPart& part : parts) {
    grids.push_back(cut(kernels.plan, turn.rows, *part.w));
    items += grids.back().items();
  }
  parallel_for(items, [&](int64_t item) {
    size_t index = 0;
    for (; item >= grids[index].items(); ++index) item -= grids[index].items();
    LinearBlock block = block_at(grids[index], item, turn, parts[index]);
    block.scratch = thread_scratch(kernels.scratch_bytes(block));
    kernels.run_block(block);
  });
}

// An argument's name, where several weights have one each.
std::string name_of(const char* argument, size_t index, size_t count) {
  return count == 1 ? argument : message(argument, "s[", index, "]");
}

void check_parts(const RowsView& x, const std::vector<LinearPart>& parts) {
  const Checker check;
  check_dtype(check, "x", x);
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto& [w, residual, out] = parts[i];
    const std::string name = name_of("w", i, parts.size());
    check(x.cols == w->k(), "x has shape ", shape_of(x), ", expected ", w->k(), " columns (from ", name, " [", w->n(),
          ", ", w->k(), "])");
    if (w->dtype() != parts[0].w->dtype()) {
      check.fail(ErrorKind::kType, name, " has dtype ", dtype_name(w->dtype()), ", expected ",
                 dtype_name(parts[0].w->dtype()), " (from ws[0])");
    }
    check_shape(check, name_of("out", i, parts.size()), out, x.rows, w->n(), "x and w");
    if (residual.data) {
      check_shape(check, name_of("residual", i, parts.size()), residual, x.rows, w->n(), "x and w");
    }
  }
}

}  // namespace

void linear(const LinearKernels& kernels, const RowsView& x, const std::vector<LinearPart>& parts) {
  check_parts(x, parts);
  if (x.rows == 0 || parts.empty()) return;
  const LaidOut laid_out(kernels, x.rows, parts[0].w->k_padded());
  for (int64_t first = 0; first < x.rows; first += laid_out.turn()) {
    run_turn(kernels, {x, first, std::min(laid_out.turn(), x.rows - first), laid_out}, parts);
  }
}

}  // namespace sparsed::cpu
