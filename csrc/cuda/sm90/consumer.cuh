// The two computing warpgroups: scores, softmax, outputs and the selection's sums.
#pragma once

#include "cuda/common/softmax_rows.cuh"
#include "cuda/sm90/query_tile.cuh"
#include "cuda/sm90/tile.cuh"

namespace sparsed::cuda {

// Named barriers. 0 is that of sync_threads, and kSumsBarrier that of block_sums.cuh.
constexpr int kTurn = 2;  // the turn of warpgroup 0; that of warpgroup 1 is kTurn + 1
constexpr int kMergeFull = 4, kMergeEmpty = 5;

// Turns the scores of the tile at position `first` into probabilities relative to the running maximum. `highest` holds
// the largest score of each row. Older sums and outputs have to be multiplied by `alpha`.
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

// Signals that this warp no longer reads the memory that the barrier stands for.
SPARSED_DEVICE void leave(uint32_t barrier) {
  if (thread_index() % 32 == 0) mbarrier_arrive(barrier);
}

// Waits for the scores of tile `number`, after which the warp has issued kPending groups, and computes probabilities.
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
  if constexpr (Traits::kSums == Sums::kSeparate) sum_separately<Traits>(args.select, rS, walk, first, highest, sums);
  if constexpr (Traits::kSums != Sums::kSeparate || Traits::kOutput) {
    softmax<Traits>(args, walk, first, highest, rS, state, sums, alpha);
  }
}

// Computes one warpgroup's tiles of the walk; `count` tiles were loaded before this walk. The scores of a tile are
// issued before the product with the values of the previous tile, so that the matrix units work during the softmax.
// Both warpgroups take the same number of turns.
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
      // The wait for the product with the values of the tile before must be here, a jump after the softmax that it
      // overlaps, because ptxas moves a wait to the front of the code between two jumps.
      wgmma_wait<0>(state.rO[0]);
      pin(rP[0]);
      if (number > begin) leave(Slot<Traits>{before.count - kStep}.barrier(Traits::kValuesEmpty));
      rescale<Traits>(state, alpha);
      round_probabilities<Traits>(rS, rP);
      number += kStep;
      if (number >= tiles) break;
      const Slot<Traits> slot{count + number};
      mbarrier_wait(slot.barrier(Traits::kKeysFull), slot.round());
      barrier_sync(kTurn + group, sm90::kComputingThreads);
      issue_qk<Traits>(group, slot, rS[0]);
      mbarrier_wait(before.barrier(Traits::kValuesFull), before.round());
      issue_pv<Traits>(rP[0], before, state.rO[0]);
      barrier_arrive(kTurn + 1 - group, sm90::kComputingThreads);
      finish_scores<Traits, 1>(args, walk, number, slot, rS, state, sums, alpha);
    }
    const Slot<Traits> last{count + number - kStep};
    mbarrier_wait(last.barrier(Traits::kValuesFull), last.round());
    issue_pv<Traits>(rP[0], last, state.rO[0]);
    wgmma_wait<0>(state.rO[0]);
    pin(rP[0]);
    leave(last.barrier(Traits::kValuesEmpty));
  }
  if (Traits::kSplit && group == 1 && tiles > 1 && tiles % 2 == 1) {  // it has had one turn less than warpgroup 0
    barrier_sync(kTurn + 1, sm90::kComputingThreads);
    barrier_arrive(kTurn, sm90::kComputingThreads);
  }
}

// Does the same for a selection without an output. While one warpgroup uses the matrix units, the other adds up sums.
template <class Traits>
SPARSED_DEVICE void score_group(const AttentionArgs& args, const typename Traits::Walk& walk, int group, uint32_t count,
                                RowState<Traits>& state, BlockSums<Traits::kRows>& sums) {
  for (int number = 0; number < walk.tiles(); ++number) {
    const Slot<Traits> slot{count + number};
    Scores<Traits> rS;
    float alpha[Traits::kRows];
    mbarrier_wait(slot.barrier(Traits::kKeysFull), slot.round());
    barrier_sync(kTurn + group, sm90::kComputingThreads);
    issue_qk<Traits>(group, slot, rS[0]);
    barrier_arrive(kTurn + 1 - group, sm90::kComputingThreads);
    finish_scores<Traits, 0>(args, walk, number, slot, rS, state, sums, alpha);
  }
}

// With kSplit, warpgroup 0 adds the results of warpgroup 1 for the same rows.
template <class Traits>
SPARSED_DEVICE void merge(int group, RowState<Traits>& state) {
  constexpr int kOutputs = Traits::kHeadDim / 2;
  const uint32_t base = Traits::kResults + static_cast<uint32_t>(thread_index() % sm90::kWarpgroupThreads) * 4;
  const auto at = [&](int i) { return base + static_cast<uint32_t>(i * sm90::kWarpgroupThreads * 4); };
  if (group == 1) {
    barrier_sync(kMergeEmpty, sm90::kComputingThreads);
    SPARSED_UNROLL
    for (int i = 0; i < kOutputs; ++i) store_shared(at(i), state.rO[0][i / 4][i % 4]);
    SPARSED_UNROLL
    for (int r = 0; r < Traits::kRows; ++r) {
      store_shared(at(kOutputs + r), state.max[r]);
      store_shared(at(kOutputs + 2 + r), state.sum[r]);
    }
    barrier_arrive(kMergeFull, sm90::kComputingThreads);
    return;
  }
  barrier_sync(kMergeFull, sm90::kComputingThreads);
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
  barrier_arrive(kMergeEmpty, sm90::kComputingThreads);
}

// Stores output and log-sum-exp of a warpgroup's rows. `row` is the first row of this thread.
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
  const int group =
      shuffle(thread_index() / sm90::kWarpgroupThreads, 0);  // tells the compiler that it is the same in a warp
  uint32_t count = 0, query_tiles = 0;
  if (group == 1) barrier_arrive(kTurn, sm90::kComputingThreads);
  if (Traits::kSplit && group == 0) barrier_arrive(kMergeEmpty, sm90::kComputingThreads);
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
  if (group == 0) barrier_sync(kTurn, sm90::kComputingThreads);
  if (Traits::kSplit && group == 1) barrier_sync(kMergeEmpty, sm90::kComputingThreads);
}

}  // namespace sparsed::cuda
