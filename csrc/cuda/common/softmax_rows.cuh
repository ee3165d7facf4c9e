// The work on a thread's query rows between the two products: scores become probabilities, and the selection's sums are
// added up. It fits every matrix instruction that has the accumulator layout of mma m16n8. Traits has kRowTiles tiles
// of 16 rows, of each of which a thread holds 2 (kRows in all), and kKeys, kHeadDim, kSums, kWarpRows, T and Walk.
#pragma once

#include "cuda/common/block_sums.cuh"
#include "cuda/common/key_walk.cuh"
#include "cuda/common/prims.cuh"
#include "cuda/params.h"

namespace sparsed::cuda {

// The running softmax and the output of a thread's rows.
template <class Traits>
struct RowState {
  float max[Traits::kRows];  // scaled; the same in all lanes of a quad
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

// The keys of a tile that take part: bit j % 32 of word j / 32 stands for key j.
template <class Traits>
using LiveBits = uint32_t[(Traits::kKeys + 31) / 32];

template <class Traits>
SPARSED_DEVICE void find_live(const typename Traits::Walk& walk, int first, LiveBits<Traits>& bits) {
  SPARSED_UNROLL
  for (int i = 0; i < (Traits::kKeys + 31) / 32; ++i) bits[i] = walk.live_bits(first + i * 32);
}

// Sets the scores of keys that do not take part to -inf.
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

// Finds the largest score of each row in the tile, in all lanes of a quad. NaN is ignored.
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

// Adds up the selection's sums of the tile that begins at position `tile`. rX holds its probabilities, or its scores
// with Sums::kSeparate.
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
      if constexpr (Traits::kSums == Sums::kSeparate) {
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

// Computes the sums of one tile with Sums::kSeparate, from its scores and the largest score of each row, in a second
// softmax.
template <class Traits>
SPARSED_DEVICE void sum_separately(const SelectArgs& select, const Scores<Traits>& rS,
                                   const typename Traits::Walk& walk, int tile, const float (&highest)[Traits::kRows],
                                   BlockSums<Traits::kRows>& sums) {
  if (tile == walk.split) {  // the generation begins
    stash_prompt(select, RowSoftmax{lane_value(sums.max), lane_sum(sums.sum)});
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

// Probabilities rounded to T. The accumulator layout of S is the operand layout of P, so no lane exchanges values.
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

// Ends query row `row`, which is the r-th of the thread: stores its log-sum-exp and returns the factor of its output.
template <class Traits>
SPARSED_DEVICE float finish_row(const AttentionArgs& args, const RowState<Traits>& state, int r, int b, int h, int row,
                                int row_end) {
  float sum = state.sum[r] + shuffle_xor(state.sum[r], 1);
  sum += shuffle_xor(sum, 2);
  if (args.lse && thread_index() % 4 == 0 && row < row_end) {
    const float lse = sum == 0.f ? -__builtin_inff() : (state.max[r] + log2_approx(sum)) * kLn2;
    store_global(args.lse + (static_cast<int64_t>(b) * args.heads + h) * args.q_len + row, lse);
  }
  return sum == 0.f ? 0.f : reciprocal(sum);
}

// Computes the scores of the query blocks of a tile. Each lane handles one row.
template <class Traits>
SPARSED_DEVICE void finish_blocks(const AttentionArgs& args, int head, int row, bool first, uint32_t buffer,
                                  const RowState<Traits>& state, const BlockSums<Traits::kRows>& sums) {
  const int lane = thread_index() % 32, slot = lane % 4;
  const int lane_row = row + thread_index() / 32 * Traits::kWarpRows + slot / 2 * 16 + slot % 2 * 8 + lane / 4;
  RowSoftmax all, generation{0.f, 0.f};
  if constexpr (Traits::kSums == Sums::kSeparate) {
    generation = RowSoftmax{lane_value(sums.max), lane_sum(sums.sum)};
    all = args.select.generation_apart ? with_prompt(args.select, generation) : generation;
  } else {
    all = RowSoftmax{lane_value(state.max), lane_sum(state.sum)};
  }
  finish_selection(args, head, row, slot < Traits::kRows ? lane_row : args.q_len, Traits::kWarpRows, all, generation,
                   first, buffer);
}

}  // namespace sparsed::cuda
