// The query tiles of a block. Loading and computing warps visit the same ones in the same order.
#pragma once

#include "cuda/common/key_walk.cuh"
#include "cuda/sm90/config.h"

namespace sparsed::cuda {

// Query rows [row, row_end) of head (b, h), and the keys that they see. `first` is true for the first tile of a query
// block.
template <class Traits>
struct QueryTile {
  int b, h, row, row_end;
  bool first;
  typename Traits::Walk walk;
};

template <class Traits, class Body>
SPARSED_DEVICE void for_each_tile(const AttentionArgs& args, const Body& body) {
  for (int item = block_index(); item < args.batch * args.heads * args.items; item += grid_blocks()) {
    const int head = item / args.items;
    const int first = (args.order ? load_global(args.order + item) : item % args.items) * args.item_rows;
    const int b = head / args.heads, h = head % args.heads;
    for (int row = first; row < first + args.item_rows && row < args.q_len; row += args.tile_rows) {
      const int row_end = row + args.tile_rows < args.q_len ? row + args.tile_rows : args.q_len;
      body(QueryTile<Traits>{b, h, row, row_end, row == first,
                             key_walk<Traits::kKeys, Traits::kSums != Sums::kNone>(args, b, h, row)});
    }
  }
}

}  // namespace sparsed::cuda
