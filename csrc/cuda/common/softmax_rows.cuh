// A thread's query rows between the products, the same for every matrix instruction whose accumulators are those of
// mma m16n8: scores to probabilities, and the selection's sums. Traits: kRowTiles tiles of 16 rows, kRows = 2 rows a
// thread of each, kKeys, kHeadDim, kSums, kWarpRows, T and Walk.
#pragma once

#include "cuda/common/block_sums.cuh"
#include "cuda/common/key_walk.cuh"
#include "cuda/common/prims.cuh"
#include "cuda/params.h"

namespace sparsed::cuda {

// The running softmax of a thread's rows, and their output.
template <class Traits>
struct RowState {
  float max[Traits::kRows];  // scaled, the same in a quad
  float sum[Traits::kRows];  // of this thread's columns
  float rO[Traits::kRowTiles][Traits::kHeadDim / 8][4];

  SPARSED_DEVICE void start() {
    SPARSED_UNROLL
    for (int r = 0; r < Traits::kRows; ++r) {
      max[r] = kLowest;
      sum[r] = 0.f;
    }
    SPARSED_UNROLL
    for (int t = 0; t < Traits::kRowTiles; ++t) {
      SPARSED_UNROLL
      for (int d = 0; d < Traits::kHeadDim / 8; ++d) {
        SPARSED_UNROLL
        for (int i = 0; i < 4; ++i) rO[t][d][i] = 0.f;
      }
    }
  }
};

template <class Traits>
using Scores = float[Traits::kRowTiles][Traits::kKeys / 8][4];

// Which keys of a tile take part: bit j % 32 of word j / 32.
template <class Traits>
using LiveBits = uint32_t[(Traits::kKeys + 31) / 32];

template <class Traits>
SPARSED_DEVICE void find_live(const typename Traits::Walk& walk, int first, LiveBits<Traits>& bits) {
  SPARSED_UNROLL
  for (int i = 0; i < (Traits::kKeys + 31) / 32; ++i) bits[i] = walk.live_bits(first + i * 32);
}

// Scores of keys that do not take part become -inf.
template <class Traits>
SPARSED_DEVICE void mask_scores(const LiveBits<Traits>& live, Scores<Traits>& rS) {
  const int column = thread_index() % 4 * 2;
  SPARSED_UNROLL
  for (int n = 0; n < Traits::kKeys / 8; ++n) {
    const uint32_t bits = live[n / 4] >> (n % 4 * 8 + column);
    SPARSED_UNROLL
    for (int t = 0; t < Traits::kRowTiles; ++t) {
      SPARSED_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (!(bits >> i % 2 & 1u)) rS[t][n][i] = -__builtin_inff();
      }
    }
  }
}

// Largest score of each row in the tile, the same in a quad. NaN is not larger than anything.
template <class Traits>
SPARSED_DEVICE void row_max(const Scores<Traits>& rS, float (&highest)[Traits::kRows]) {
  SPARSED_UNROLL
  for (int r = 0; r < Traits::kRows; ++r) {
    float value = -__builtin_inff();
    SPARSED_UNROLL
    for (int n = 0; n < Traits::kKeys / 8; ++n) {
      value = max_of(value, max_of(rS[r / 2][n][r % 2 * 2], rS[r / 2][n][r % 2 * 2 + 1]));
    }
    value = max_of(value, shuffle_xor(value, 1));
    highest[r] = max_of(value, shuffle_xor(value, 2));
  }
}

// The selection's sums of one tile, which begins at position `tile`; rX: its probabilities, or scores (Sums::kOwn).
template <class Traits>
SPARSED_DEVICE void sum_blocks(const SelectArgs& select, const Scores<Traits>& rX, const typename Traits::Walk& walk,
                               int tile, const float (&base)[Traits::kRows], BlockSums<Traits::kRows>& sums) {
  const int first_key = walk.key(tile), block_size = 1 << select.block_shift;
  const bool last = walk.last(tile);
  const int key_end = walk.key_end(tile);
  SPARSED_UNROLL
  for (int n = 0; n < Traits::kKeys / 16; ++n) {
    SPARSED_UNROLL
    for (int r = 0; r < Traits::kRows; ++r) {
      const float(&left)[4] = rX[r / 2][2 * n];
      const float(&right)[4] = rX[r / 2][2 * n + 1];
      float sum;
      if constexpr (Traits::kSums == Sums::kOwn) {
        sum = (exp2_approx(multiply_add(left[r % 2 * 2], select.scale, -base[r])) +
               exp2_approx(multiply_add(left[r % 2 * 2 + 1], select.scale, -base[r]))) +
              (exp2_approx(multiply_add(right[r % 2 * 2], select.scale, -base[r])) +
               exp2_approx(multiply_add(right[r % 2 * 2 + 1], select.scale, -base[r])));
        sums.sum[r] += sum;
      } else {
        sum = (left[r % 2 * 2] + left[r % 2 * 2 + 1]) + (right[r % 2 * 2] + right[r % 2 * 2 + 1]);
      }
      sums.open[r] += sum;
    }
    const int end = first_key + (n + 1) * 16;
    const bool exists = end - 16 < key_end;
    if (exists && ((end & (block_size - 1)) == 0 || (last && end >= key_end))) {
      close_block(select, (end - 16) >> select.block_shift, base, sums.open);
    }
  }
}

// Sums::kOwn: the sums of one tile from its scores and each row's highest, with a softmax of their own.
template <class Traits>
SPARSED_DEVICE void sum_own(const SelectArgs& select, const Scores<Traits>& rS, const typename Traits::Walk& walk,
                            int tile, const float (&highest)[Traits::kRows], BlockSums<Traits::kRows>& sums) {
  if (tile == walk.split) {  // the generation begins
    stash_prompt(select, RowSoftmax{own_row(sums.max), own_row_sum(sums.sum)});
    sums.start();
  }
  SPARSED_UNROLL
  for (int r = 0; r < Traits::kRows; ++r) {
    const float max = max_of(highest[r] * select.scale, sums.max[r]);
    const float factor = exp2_approx(sums.max[r] - max);
    sums.max[r] = max;
    sums.sum[r] *= factor;
    sums.open[r] *= factor;
  }
  sum_blocks<Traits>(select, rS, walk, tile, sums.max, sums);
}

// Probabilities rounded to T: accumulator tiles of S are operand tiles of P as they are.
template <class Traits>
using Probabilities = uint32_t[Traits::kRowTiles][Traits::kKeys / 16][4];

template <class Traits>
SPARSED_DEVICE void round_probabilities(const float (&rS)[Traits::kRowTiles][Traits::kKeys / 8][4],
                                        Probabilities<Traits>& rP) {
  using T = typename Traits::T;
  SPARSED_UNROLL
  for (int t = 0; t < Traits::kRowTiles; ++t) {
    SPARSED_UNROLL
    for (int k = 0; k < Traits::kKeys / 16; ++k) {
      SPARSED_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float(&part)[4] = rS[t][2 * k + i / 2];
        rP[t][k][i] = pack_pair<T>(part[i % 2 * 2], part[i % 2 * 2 + 1]);
      }
    }
  }
}

// The end of row `own`, a thread's r-th: its log-sum-exp is written; what its output has to be multiplied with.
template <class Traits>
SPARSED_DEVICE float finish_row(const AttentionArgs& args, const RowState<Traits>& state, int r, int b, int h, int own,
                                int row_end) {
  float sum = state.sum[r] + shuffle_xor(state.sum[r], 1);
  sum += shuffle_xor(sum, 2);
  if (args.lse && thread_index() % 4 == 0 && own < row_end) {
    const float lse = sum == 0.f ? -__builtin_inff() : (state.max[r] + log2_approx(sum)) * kLn2;
    store_global(args.lse + (static_cast<int64_t>(b) * args.heads + h) * args.q_len + own, lse);
  }
  return sum == 0.f ? 0.f : reciprocal(sum);
}

// Scores of the query blocks of a tile: each lane answers for one row.
template <class Traits>
SPARSED_DEVICE void finish_blocks(const AttentionArgs& args, int head, int row, bool first, uint32_t buffer,
                                  const RowState<Traits>& state, const BlockSums<Traits::kRows>& sums) {
  const int lane = thread_index() % 32, slot = lane % 4;
  const int own = row + thread_index() / 32 * Traits::kWarpRows + slot / 2 * 16 + slot % 2 * 8 + lane / 4;
  RowSoftmax all, generation{0.f, 0.f};
  if constexpr (Traits::kSums == Sums::kOwn) {
    generation = RowSoftmax{own_row(sums.max), own_row_sum(sums.sum)};
    all = args.select.generation_apart ? with_prompt(args.select, generation) : generation;
  } else {
    all = RowSoftmax{own_row(state.max), own_row_sum(state.sum)};
  }
  finish_selection(args, head, row, slot < Traits::kRows ? own : args.q_len, Traits::kWarpRows, all, generation, first,
                   buffer);
}

}  // namespace sparsed::cuda
