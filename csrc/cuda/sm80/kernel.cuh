// Attention for compute capability 8.0 and up. Dense, block-sparse, and dense with selection are one loop over the
// tiles of a key walk. Names that begin with s are in shared memory, and those with r in the registers of a thread.
#pragma once

#include "cuda/common/block_sums.cuh"
#include "cuda/common/key_walk.cuh"
#include "cuda/common/prims.cuh"
#include "cuda/common/softmax_rows.cuh"
#include "cuda/params.h"
#include "cuda/sm80/tile.cuh"

namespace sparsed::cuda {

// Computes one query tile against all keys of its walk. No copies are in flight when it returns. sK and sV are
// Traits::kStages tiles each.
template <class Traits>
SPARSED_DEVICE void attend(const AttentionArgs& args, const typename Traits::Walk& walk, int kv_head, uint32_t sQ,
                           RowState<Traits>& state, BlockSums<Traits::kRows>& sums) {
  constexpr int kRows = Traits::kRows, kStages = Traits::kStages;
  const int warps = block_threads() / 32, tiles = walk.tiles();
  const bool with_output = Traits::kSums == Sums::kNone || args.out.data != nullptr;
  const auto sK = [&](int tile) {
    return static_cast<uint32_t>(Traits::q_bytes(warps) + tile % kStages * Traits::kTileBytes);
  };
  const auto sV = [&](int tile) { return sK(tile) + kStages * Traits::kTileBytes; };
  const auto load_k = [&](int tile) {
    if (tile < tiles) load_keys<Traits>(walk, args.k, kv_head, tile * Traits::kKeys, sK(tile));
  };
  const auto load_v = [&](int tile) {
    if (with_output && tile < tiles) load_keys<Traits>(walk, args.v, kv_head, tile * Traits::kKeys, sV(tile));
  };

  load_k(0);
  if constexpr (kStages == 2) load_v(0);
  copy_async_commit();  // with Q
  for (int tile = 0; tile < tiles; ++tile) {
    copy_async_wait<0>();
    sync_threads();  // K (and V) of this tile have arrived, and no thread reads the previous tile any more
    if constexpr (kStages == 2) {
      load_k(tile + 1);
      load_v(tile + 1);
    } else {
      load_v(tile);
    }
    copy_async_commit();

    Scores<Traits> rS;
    multiply_qk<Traits>(sQ, sK(tile), rS);
    if (args.key_mask || walk.ragged(tile * Traits::kKeys)) {
      LiveBits<Traits> bits;
      find_live<Traits>(walk, tile * Traits::kKeys, bits);
      mask_scores<Traits>(bits, rS);
    }
    float highest[kRows], alpha[kRows];
    row_max<Traits>(rS, highest);
    if constexpr (Traits::kSums == Sums::kSeparate) {
      sum_separately<Traits>(args.select, rS, walk, tile * Traits::kKeys, highest, sums);
    }
    bool changed = false;
    SPARSED_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const float max = max_of(highest[r] * args.scale, state.max[r]);
      changed = changed || max != state.max[r];
      alpha[r] = exp2_approx(state.max[r] - max);
      state.max[r] = max;
      state.sum[r] *= alpha[r];
      SPARSED_UNROLL
      for (int n = 0; n < Traits::kKeys / 8; ++n) {
        float& x = rS[r / 2][n][r % 2 * 2];
        float& y = rS[r / 2][n][r % 2 * 2 + 1];
        x = exp2_approx(multiply_add(x, args.scale, -max));
        y = exp2_approx(multiply_add(y, args.scale, -max));
        state.sum[r] += x + y;
      }
    }
    if constexpr (Traits::kSums == Sums::kShared) {
      SPARSED_UNROLL
      for (int r = 0; r < kRows; ++r) sums.open[r] *= alpha[r];
      sum_blocks<Traits>(args.select, rS, walk, tile * Traits::kKeys, state.max, sums);
    }
    Probabilities<Traits> rP;
    round_probabilities<Traits>(rS, rP);
    if constexpr (kStages == 1) {
      copy_async_wait<0>();
      sync_threads();  // V has arrived, and no thread reads K any more
      load_k(tile + 1);
      copy_async_commit();
    }
    if (!with_output) continue;
    if (vote(changed)) {
      SPARSED_UNROLL
      for (int t = 0; t < Traits::kRowTiles; ++t) {
        SPARSED_UNROLL
        for (int d = 0; d < Traits::kHeadDim / 8; ++d) {
          SPARSED_UNROLL
          for (int i = 0; i < 4; ++i) state.rO[t][d][i] *= alpha[2 * t + i / 2];
        }
      }
    }
    multiply_pv<Traits>(rP, sV(tile), state.rO);
  }
  copy_async_wait<0>();
}

// Stores the output and the log-sum-exp of a tile.
template <class Traits>
SPARSED_DEVICE void finish_rows(const AttentionArgs& args, int b, int h, int row, int row_end, uint32_t sQ,
                                const RowState<Traits>& state) {
  float inverse[Traits::kRows];
  SPARSED_UNROLL
  for (int r = 0; r < Traits::kRows; ++r) {
    const int lane_row =
        row + thread_index() / 32 * Traits::kWarpRows + r / 2 * 16 + r % 2 * 8 + thread_index() % 32 / 4;
    inverse[r] = finish_row(args, state, r, b, h, lane_row, row_end);
  }
  if (args.out.data) store_output<Traits>(args, b, h, row, row_end, state.rO, inverse, sQ);
}

// Computes query rows [row, row + args.tile_rows) of a head. `first` is true for the first tile of a query block.
template <class Traits>
SPARSED_DEVICE void attend_tile(const AttentionArgs& args, int head, int row, bool first) {
  constexpr uint32_t sQ = 0;
  const int b = head / args.heads, h = head % args.heads;
  const int row_end = row + args.tile_rows < args.q_len ? row + args.tile_rows : args.q_len;
  RowState<Traits> state;
  BlockSums<Traits::kRows> sums;
  state.start();
  if constexpr (Traits::kSums != Sums::kNone) sums.start();
  load_q<Traits>(args, b, h, row, row_end, sQ);
  const auto walk = key_walk<Traits::kKeys, Traits::kSums != Sums::kNone>(args, b, h, row);
  attend<Traits>(args, walk, h / args.gqa_ratio, sQ, state, sums);
  sync_threads();  // shared memory can now hold results
  finish_rows<Traits>(args, b, h, row, row_end, sQ, state);
  if constexpr (Traits::kSums != Sums::kNone) {
    const uint32_t buffer = static_cast<uint32_t>(Traits::q_bytes(block_threads() / 32));
    finish_blocks<Traits>(args, head, row, first, buffer, state, sums);
    sync_threads();  // the next tile may overwrite the results
  }
}

// Without selection there is one block per tile. With it, a few blocks take work items in turn, because each block
// needs memory for its partial sums.
template <class Traits>
SPARSED_DEVICE void attention_sm80(const AttentionArgs& args) {
  if constexpr (Traits::kSums == Sums::kNone) {
    const int item = block_index();
    attend_tile<Traits>(args, item / args.items, item % args.items * args.item_rows, true);
  } else {
    for (int item = block_index(); item < args.batch * args.heads * args.items; item += grid_blocks()) {
      const int first = item % args.items * args.item_rows;
      for (int row = first; row < first + args.item_rows && row < args.q_len; row += args.tile_rows) {
        attend_tile<Traits>(args, item / args.items, row, row == first);
      }
    }
  }
}

}  // namespace sparsed::cuda
