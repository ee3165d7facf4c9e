// The order in which a tile of query rows visits keys. Positions number all keys, or the keys of the listed blocks.
// Block sizes need not match the tiles of a kernel: a tile gathers small blocks, and large blocks are split over tiles.
#pragma once

#include "cuda/common/prims.cuh"
#include "cuda/params.h"

namespace sparsed::cuda {

// A walk in tiles of kKeys, a power of two from 32 on. With kParts it is that of a selection: it visits all keys, and
// the generation may be a separate part. Otherwise it visits all keys or lists.
template <int kKeys, bool kParts>
struct KeyWalk {
  const AttentionArgs& args;
  int b;
  int list;       // row of the lists, if there are lists
  int positions;  // number of positions
  // Positions from `split` on (a multiple of kKeys) are the generation. Its first key is split - gap, so no tile holds
  // keys of both parts. Without a separate part, split is beyond all positions.
  int split = 0x7fffffff, gap = 0;

  SPARSED_DEVICE int tiles() const { return (positions + kKeys - 1) / kKeys; }
  // Addresses are computed at each use, so that a walk takes few registers in the loop over its tiles.
  SPARSED_DEVICE const int32_t* blocks() const { return args.indices + opaque(list) * args.list_stride; }
  SPARSED_DEVICE const uint8_t* mask() const {
    return args.key_mask + static_cast<int64_t>(opaque(b)) * args.kv_len;  // [kv_len]
  }
  SPARSED_DEVICE bool listed() const { return !kParts && args.counts != nullptr; }

  // Whether the keys of a tile are contiguous.
  SPARSED_DEVICE bool contiguous() const { return !listed() || (1 << args.list_shift) >= kKeys; }
  // The key at a position, which must be below `positions`.
  SPARSED_DEVICE int key(int position) const {
    if constexpr (kParts) return position < split ? position : position - gap;
    if (!listed()) return position;
    const int shift = args.list_shift;
    return (load_global(blocks() + (position >> shift)) << shift) + (position & ((1 << shift) - 1));
  }
  // The end of the part that contains the tile at `first`.
  SPARSED_DEVICE int key_end(int first) const {
    if constexpr (kParts) {
      const int prompt = split - gap;
      return first < split && prompt < args.kv_len ? prompt : args.kv_len;
    }
    return args.kv_len;
  }
  SPARSED_DEVICE bool live(int position, int key, int key_end) const {
    return position < positions && key < key_end && (!args.key_mask || load_global(mask() + key) != 0);
  }
  // Whether the tile at `first` is the last of a part.
  SPARSED_DEVICE bool last(int first) const { return first + kKeys >= positions || (kParts && first + kKeys == split); }
  // Whether the tile at `first` may hold keys that do not exist. The last listed block may end in any of its tiles.
  SPARSED_DEVICE bool ragged(int first) const {
    const int block = listed() ? 1 << args.list_shift : 0;
    return last(first) || first + block >= positions;
  }
  // Returns which of 32 keys take part, as bits. All lanes of a warp call this.
  SPARSED_DEVICE uint32_t live_bits(int first) const {
    const int position = first + thread_index() % 32;
    return vote(position < positions && live(position, key(position), key_end(first / kKeys * kKeys)));
  }
};

// The walk of the query rows from `row` on of head (b, h). If there are lists, the rows are in one query block.
template <int kKeys, bool kParts>
SPARSED_DEVICE KeyWalk<kKeys, kParts> key_walk(const AttentionArgs& args, int b, int h, int row) {
  KeyWalk<kKeys, kParts> walk{args, b, 0, args.kv_len};
  if constexpr (kParts) {
    if (args.select.generation_apart) {
      const int prompt = args.select.generation_block << args.select.block_shift;
      walk.split = (prompt + kKeys - 1) / kKeys * kKeys;
      walk.gap = walk.split - prompt;
      walk.positions += walk.gap;
    }
  } else if (args.counts) {
    walk.list = (b * args.heads + h) * args.list_rows + (row >> args.list_shift);
    walk.positions = load_global(args.counts + walk.list) << args.list_shift;
  }
  return walk;
}

}  // namespace sparsed::cuda
