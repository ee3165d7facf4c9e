// Attention for compute capability 9.0a. One warp of a block loads tiles, two warpgroups compute in turns: while one
// has the matrix units the other is in its softmax. Blocks stay and take work items in turn.
#pragma once

#include "cuda/rows.cuh"
#include "cuda/tile_sm90.cuh"

namespace sparsed::cuda {

// Named barriers; 0 is sync_threads, kSumsBarrier that of block_sums.cuh.
constexpr int kTurn = 2;  // of warpgroup 0, then of warpgroup 1
constexpr int kMergeFull = 4, kMergeEmpty = 5;

// Query rows [row, row_end) of head (b, h) and the keys that they see. `first`: of their query block's tiles.
template <class Traits>
struct QueryTile {
  int b, h, row, row_end;
  bool first;
  typename Traits::Walk walk;
};

// Every role visits the same tiles in the same order.
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

// --- the loading warp ------------------------------------------------------------------------------------------------

// Keys [kKeys] of a tile, by one copy or as many as its blocks; positions beyond the walk's last become zeros.
template <class Traits>
SPARSED_DEVICE void load_tile(const AttentionArgs& args, const TensorMap& map, const QueryTile<Traits>& tile,
                              int number, bool leader, uint32_t shared, uint32_t empty, uint32_t round, uint32_t full) {
  const int block = tile.walk.listed() ? 1 << args.list_shift : Traits::kKeys;
  const int box = block < Traits::kKeys ? block : Traits::kKeys;
  const int position = number * Traits::kKeys + thread_index() % 32 * box;  // lane i: of copy i
  const int own = position < tile.walk.positions ? tile.walk.key(position) : args.kv_len;
  mbarrier_wait(empty, round ^ 1);
  if (leader) mbarrier_expect(full, Traits::kTileBytes);
  for (int i = 0; i < Traits::kKeys / box; ++i) {
    const int key = shuffle(own, i);
    if (!leader) continue;
    SPARSED_UNROLL
    for (int panel = 0; panel < Traits::kPanels; ++panel) {
      tma_load(shared + panel * Traits::kPanelBytes + static_cast<uint32_t>(i * box * 128), map, full,
               panel * kBoxColumns, key, tile.h / args.group, tile.b);
    }
  }
}

template <class Traits>
SPARSED_DEVICE void load_tiles(const Sm90Args& sm90) {
  const AttentionArgs& args = sm90.attention;
  const bool leader = elect();
  const uint32_t values_full = args.key_mask ? Traits::kRaw : Traits::kValuesFull;
  uint32_t count = 0, query_tiles = 0;
  for_each_tile<Traits>(args, [&](const QueryTile<Traits>& tile) {
    const int tiles = tile.walk.tiles();
    if (tiles == 0) return;
    const auto load_keys = [&](int number) {
      const Slot<Traits> slot{count + number};
      load_tile(args, sm90.k, tile, number, leader, slot.keys(), slot.barrier(Traits::kKeysEmpty), slot.round(),
                slot.barrier(Traits::kKeysFull));
    };
    mbarrier_wait(Traits::kQueriesEmpty, ~query_tiles++ & 1);
    if (leader) {
      mbarrier_expect(Traits::kQueriesFull, Traits::kQueryBytes);
      SPARSED_UNROLL
      for (int i = 0; i < Traits::kQueryGroups * Traits::kPanels; ++i) {
        const int group = i / Traits::kPanels, panel = i % Traits::kPanels;
        tma_load(i * Traits::kQueryPanelBytes, sm90.q, Traits::kQueriesFull, panel * kBoxColumns,
                 tile.row + group * kGroupRows, tile.h, tile.b);
      }
    }
    load_keys(0);
    for (int number = 0; number < tiles; ++number) {
      if (number + 1 < tiles) load_keys(number + 1);
      if constexpr (Traits::kOutput) {
        const Slot<Traits> slot{count + number};
        load_tile(args, sm90.v, tile, number, leader, slot.values(), slot.barrier(Traits::kValuesEmpty), slot.round(),
                  slot.barrier(values_full));
      }
    }
    count += tiles;
  });
}

// With a key mask: values of keys that do not take part become zeros, so that what their memory holds cannot matter.
template <class Traits>
SPARSED_DEVICE void clear_values(const AttentionArgs& args) {
  const int lane = thread_index() % 32;
  uint32_t count = 0;
  for_each_tile<Traits>(args, [&](const QueryTile<Traits>& tile) {
    const int tiles = tile.walk.tiles();
    for (int number = 0; number < tiles; ++number, ++count) {
      const Slot<Traits> slot{count};
      mbarrier_wait(slot.barrier(Traits::kRaw), slot.round());
      for (int part = 0; part < Traits::kKeys; part += 32) {
        const uint32_t live = tile.walk.live_bits(number * Traits::kKeys + part);
        for (int i = 0; i < 32; ++i) {
          if (live >> i & 1) continue;
          SPARSED_UNROLL
          for (int panel = 0; panel < Traits::kPanels; ++panel) {
            const uint32_t row = slot.values() + panel * Traits::kPanelBytes + static_cast<uint32_t>(part + i) * 128;
            store_shared(row + static_cast<uint32_t>(lane) * 4, 0u);
          }
        }
      }
      fence_async_proxy();
      sync_warp();
      if (lane == 0) mbarrier_arrive(slot.barrier(Traits::kValuesFull));
    }
  });
}

// --- the computing warpgroups ----------------------------------------------------------------------------------------

// Scores of the tile at position `first`, of which each row's highest is known, become probabilities relative to the
// running maximum; alpha: what older sums and outputs are to be multiplied by.
template <class Traits>
SPARSED_DEVICE void softmax(const AttentionArgs& args, const typename Traits::Walk& walk, int first,
                            const float (&highest)[Traits::kRows], Scores<Traits>& rS, RowState<Traits>& state,
                            BlockSums<Traits::kRows>& sums, float (&alpha)[Traits::kRows]) {
  SPARSED_UNROLL
  for (int r = 0; r < Traits::kRows; ++r) {
    const float max = max_of(highest[r] * args.scale, state.max[r]);
    alpha[r] = exp2_approx(state.max[r] - max);
    state.max[r] = max;
    float sum = state.sum[r] * alpha[r];
    SPARSED_UNROLL
    for (int n = 0; n < Traits::kKeys / 8; ++n) {
      float& x = rS[0][n][r * 2];
      float& y = rS[0][n][r * 2 + 1];
      x = exp2_approx(multiply_add(x, args.scale, -max));
      y = exp2_approx(multiply_add(y, args.scale, -max));
      sum += x + y;
    }
    state.sum[r] = sum;
  }
  if constexpr (Traits::kSums == Sums::kShared) {
    SPARSED_UNROLL
    for (int r = 0; r < Traits::kRows; ++r) sums.open[r] *= alpha[r];
    sum_blocks<Traits>(args.select, rS, walk, first, state.max, sums);
  }
}

template <class Traits>
SPARSED_DEVICE void rescale(RowState<Traits>& state, const float (&factor)[Traits::kRows]) {
  SPARSED_UNROLL
  for (int d = 0; d < Traits::kHeadDim / 8; ++d) {
    SPARSED_UNROLL
    for (int i = 0; i < 4; ++i) state.rO[0][d][i] *= factor[i / 2];
  }
}

// This warp no longer reads what the barrier stands for.
SPARSED_DEVICE void leave(uint32_t barrier) {
  if (thread_index() % 32 == 0) mbarrier_arrive(barrier);
}

// Probabilities of tile `number`, its scores being under way as the warp's latest group but kPending.
template <class Traits, int kPending>
SPARSED_DEVICE void finish_scores(const AttentionArgs& args, const typename Traits::Walk& walk, int number,
                                  const Slot<Traits>& slot, Scores<Traits>& rS, RowState<Traits>& state,
                                  BlockSums<Traits::kRows>& sums, float (&alpha)[Traits::kRows]) {
  const int first = number * Traits::kKeys;
  const bool ragged = args.key_mask || walk.ragged(first);
  LiveBits<Traits> live;
  if (ragged) find_live<Traits>(walk, first, live);
  wgmma_wait<kPending>(rS[0]);
  leave(slot.barrier(Traits::kKeysEmpty));
  if (ragged) mask_scores<Traits>(live, rS);
  float highest[Traits::kRows];
  row_max<Traits>(rS, highest);
  if constexpr (Traits::kSums == Sums::kOwn) sum_own<Traits>(args.select, rS, walk, first, highest, sums);
  if constexpr (Traits::kSums != Sums::kOwn || Traits::kOutput) {
    softmax<Traits>(args, walk, first, highest, rS, state, sums, alpha);
  }
}

// One warpgroup's tiles of the walk. `count`: tiles before this walk. The scores of a tile are issued before the values
// of the tile before, so that the matrix units work during the softmax. Keeps the turns of both warpgroups in step.
template <class Traits>
SPARSED_DEVICE void attend_group(const AttentionArgs& args, const typename Traits::Walk& walk, int group,
                                 uint32_t count, RowState<Traits>& state, BlockSums<Traits::kRows>& sums) {
  constexpr int kStep = Traits::kSplit ? 2 : 1;
  const int tiles = walk.tiles(), begin = Traits::kSplit ? group : 0;
  int number = begin;
  if (number < tiles) {
    Scores<Traits> rS;
    Probabilities<Traits> rP = {};
    float alpha[Traits::kRows];
    {
      const Slot<Traits> slot{count + number};
      mbarrier_wait(slot.barrier(Traits::kKeysFull), slot.round());
      issue_qk<Traits>(group, slot, rS[0]);
      finish_scores<Traits, 0>(args, walk, number, slot, rS, state, sums, alpha);
    }
    while (true) {
      const Slot<Traits> before{count + number};
      // The product with the values of one tile earlier ends here, a jump behind the softmax that it overlaps: ptxas
      // puts the wait in front of whatever stands with it between two jumps.
      wgmma_wait<0>(state.rO[0]);
      pin(rP[0]);
      if (number > begin) leave(Slot<Traits>{before.count - kStep}.barrier(Traits::kValuesEmpty));
      rescale<Traits>(state, alpha);
      round_probabilities<Traits>(rS, rP);
      number += kStep;
      if (number >= tiles) break;
      const Slot<Traits> slot{count + number};
      mbarrier_wait(slot.barrier(Traits::kKeysFull), slot.round());
      barrier_sync(kTurn + group, kConsumers);
      issue_qk<Traits>(group, slot, rS[0]);
      mbarrier_wait(before.barrier(Traits::kValuesFull), before.round());
      issue_pv<Traits>(rP[0], before, state.rO[0]);
      barrier_arrive(kTurn + 1 - group, kConsumers);
      finish_scores<Traits, 1>(args, walk, number, slot, rS, state, sums, alpha);
    }
    const Slot<Traits> last{count + number - kStep};
    mbarrier_wait(last.barrier(Traits::kValuesFull), last.round());
    issue_pv<Traits>(rP[0], last, state.rO[0]);
    wgmma_wait<0>(state.rO[0]);
    pin(rP[0]);
    leave(last.barrier(Traits::kValuesEmpty));
  }
  if (Traits::kSplit && group == 1 && tiles > 1 && tiles % 2 == 1) {  // a turn less than warpgroup 0 had
    barrier_sync(kTurn + 1, kConsumers);
    barrier_arrive(kTurn, kConsumers);
  }
}

// The same where nothing but the sums is asked for: while one warpgroup has the matrix units the other adds up.
template <class Traits>
SPARSED_DEVICE void score_group(const AttentionArgs& args, const typename Traits::Walk& walk, int group, uint32_t count,
                                RowState<Traits>& state, BlockSums<Traits::kRows>& sums) {
  for (int number = 0; number < walk.tiles(); ++number) {
    const Slot<Traits> slot{count + number};
    Scores<Traits> rS;
    float alpha[Traits::kRows];
    mbarrier_wait(slot.barrier(Traits::kKeysFull), slot.round());
    barrier_sync(kTurn + group, kConsumers);
    issue_qk<Traits>(group, slot, rS[0]);
    barrier_arrive(kTurn + 1 - group, kConsumers);
    finish_scores<Traits, 0>(args, walk, number, slot, rS, state, sums, alpha);
  }
}

// kSplit: warpgroup 0 adds what warpgroup 1 has of the same rows.
template <class Traits>
SPARSED_DEVICE void merge(int group, RowState<Traits>& state) {
  constexpr int kOutputs = Traits::kHeadDim / 2;
  const uint32_t own = Traits::kResults + static_cast<uint32_t>(thread_index() % kGroup) * 4;
  const auto at = [&](int i) { return own + static_cast<uint32_t>(i * kGroup * 4); };
  if (group == 1) {
    barrier_sync(kMergeEmpty, kConsumers);
    SPARSED_UNROLL
    for (int i = 0; i < kOutputs; ++i) store_shared(at(i), state.rO[0][i / 4][i % 4]);
    SPARSED_UNROLL
    for (int r = 0; r < Traits::kRows; ++r) {
      store_shared(at(kOutputs + r), state.max[r]);
      store_shared(at(kOutputs + 2 + r), state.sum[r]);
    }
    barrier_arrive(kMergeFull, kConsumers);
    return;
  }
  barrier_sync(kMergeFull, kConsumers);
  float factor[Traits::kRows], other[Traits::kRows];
  SPARSED_UNROLL
  for (int r = 0; r < Traits::kRows; ++r) {
    const float other_max = load_shared(at(kOutputs + r)), max = max_of(other_max, state.max[r]);
    factor[r] = exp2_approx(state.max[r] - max);
    other[r] = exp2_approx(other_max - max);
    state.max[r] = max;
    state.sum[r] = state.sum[r] * factor[r] + load_shared(at(kOutputs + 2 + r)) * other[r];
  }
  rescale<Traits>(state, factor);
  SPARSED_UNROLL
  for (int i = 0; i < kOutputs; ++i) state.rO[0][i / 4][i % 4] += load_shared(at(i)) * other[i % 4 / 2];
  barrier_arrive(kMergeEmpty, kConsumers);
}

// Output and log-sum-exp of a warpgroup's rows; `row`: the first of this thread.
template <class Traits>
SPARSED_DEVICE void finish_group(const AttentionArgs& args, const QueryTile<Traits>& tile, int row,
                                 const RowState<Traits>& state) {
  float inverse[Traits::kRows];
  SPARSED_UNROLL
  for (int r = 0; r < Traits::kRows; ++r) {
    inverse[r] = finish_row(args, state, r, tile.b, tile.h, row + r * 8, tile.row_end);
  }
  store_rows<Traits>(args, tile.b, tile.h, row, tile.row_end, state.rO[0], inverse);
}

template <class Traits>
SPARSED_DEVICE void compute_tiles(const AttentionArgs& args) {
  const int group = shuffle(thread_index() / kGroup, 0);  // known to be one for the warp
  uint32_t count = 0, query_tiles = 0;
  if (group == 1) barrier_arrive(kTurn, kConsumers);
  if (Traits::kSplit && group == 0) barrier_arrive(kMergeEmpty, kConsumers);
  for_each_tile<Traits>(args, [&](const QueryTile<Traits>& tile) {
    const int tiles = tile.walk.tiles();
    RowState<Traits> state;
    BlockSums<Traits::kRows> sums;
    state.start();
    if constexpr (Traits::kSums != Sums::kNone) sums.start();
    if (tiles > 0) {
      mbarrier_wait(Traits::kQueriesFull, query_tiles++ & 1);
      if constexpr (Traits::kOutput) {
        attend_group<Traits>(args, tile.walk, group, count, state, sums);
      } else {
        score_group<Traits>(args, tile.walk, group, count, state, sums);
      }
      leave(Traits::kQueriesEmpty);
      count += tiles;
    }
    if (Traits::kSplit && tiles > 1) merge<Traits>(group, state);
    const int warp = thread_index() / 32 % (Traits::kSplit ? 4 : 8);
    if (Traits::kOutput && (!Traits::kSplit || group == 0)) {
      finish_group<Traits>(args, tile, tile.row + warp * 16 + thread_index() % 32 / 4, state);
    }
    if constexpr (Traits::kSums != Sums::kNone) {
      finish_blocks<Traits>(args, tile.b * args.heads + tile.h, tile.row, tile.first, Traits::kResults, state, sums);
    }
  });
  if (group == 0) barrier_sync(kTurn, kConsumers);
  if (Traits::kSplit && group == 1) barrier_sync(kMergeEmpty, kConsumers);
}

template <class Traits>
SPARSED_DEVICE void attention_sm90(const Sm90Args& sm90) {
  if (thread_index() == 0) {
    make_barriers<Traits>();
    tma_prefetch(sm90.q);
    tma_prefetch(sm90.k);
    if constexpr (Traits::kOutput) tma_prefetch(sm90.v);
  }
  sync_threads();
  if (thread_index() >= kConsumers) {
    release_registers<Traits::kProducerRegisters>();
    const int warp = thread_index() / 32 - kConsumers / 32;
    if (warp == 0) load_tiles<Traits>(sm90);
    if (Traits::kOutput && warp == 1 && sm90.attention.key_mask) clear_values<Traits>(sm90.attention);
  } else {
    claim_registers<Traits::kConsumerRegisters>();
    compute_tiles<Traits>(sm90.attention);
  }
}

}  // namespace sparsed::cuda
