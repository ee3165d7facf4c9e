// The selection inside the dense pass sums probabilities per (row, key block), and then per (query block, key block).
// A thread holds parts of kRows rows of scores, which it shares with the three other threads of its quad. One value per
// lane leaves the registers: lane l stores the sum of row (l % 4) of its quad.
#pragma once

#include "cuda/common/prims.cuh"
#include "cuda/params.h"

namespace sparsed::cuda {

constexpr float kLn2 = 0.693147180559945309f;
constexpr int kSumsBarrier = 1;
constexpr float kLowest = -3.0e38f;  // stands for -inf, so that a masked score minus it is -inf and not NaN

// Returns values[lane % 4].
template <int kRows>
SPARSED_DEVICE float lane_value(const float (&values)[kRows]) {
  const int lane = thread_index() % 4;
  if constexpr (kRows == 2) return lane % 2 ? values[1] : values[0];
  return lane < 2 ? (lane == 0 ? values[0] : values[1]) : (lane == 2 ? values[2] : values[kRows - 1]);
}

// Returns the sum of values[lane % 4] over the quad.
template <int kRows>
SPARSED_DEVICE float lane_sum(const float (&values)[kRows]) {
  const bool odd = thread_index() & 1, high = thread_index() & 2;
  if constexpr (kRows == 2) {
    const float sum = (odd ? values[1] : values[0]) + shuffle_xor(odd ? values[0] : values[1], 1);
    return sum + shuffle_xor(sum, 2);
  } else {
    const float even_sum = (high ? values[2] : values[0]) + shuffle_xor(high ? values[0] : values[2], 2);
    const float odd_sum = (high ? values[3] : values[1]) + shuffle_xor(high ? values[1] : values[3], 2);
    return (odd ? odd_sum : even_sum) + shuffle_xor(odd ? even_sum : odd_sum, 1);
  }
}

// The softmax of the lane's row. A score's exponential is divided by 2^max * sum.
struct RowSoftmax {
  float max;  // scaled
  float sum;
};

// The running sums of the selection for one tile of rows. The partial sums of the current key block stay in registers.
// At its end they are stored in `partial` with the maximum that they are relative to.
template <int kRows>
struct BlockSums {
  float max[kRows];   // the running maximum, scaled; max and sum are used only with Sums::kSeparate
  float sum[kRows];   // of this thread's columns
  float open[kRows];  // of the current key block

  SPARSED_DEVICE void start() {
    SPARSED_UNROLL
    for (int r = 0; r < kRows; ++r) {
      max[r] = kLowest;
      sum[r] = open[r] = 0.f;
    }
  }
};

SPARSED_DEVICE PartialSum* partial_sums(const SelectArgs& select, int block) {
  const int64_t row = static_cast<int64_t>(block_index()) * (select.kv_blocks + 1) + block;
  return select.partial + row * select.threads + thread_index();
}

// Ends a key block with one store per lane.
template <int kRows>
SPARSED_DEVICE void close_block(const SelectArgs& select, int block, const float (&base)[kRows], float (&open)[kRows]) {
  const float sum = lane_sum(open);
  store_global(partial_sums(select, block), PartialSum{sum, lane_value(base)});
  SPARSED_UNROLL
  for (int r = 0; r < kRows; ++r) open[r] = 0.f;
}

// Returns 1 / sum for a row that exists and sees a key, and 0 for others.
SPARSED_DEVICE float inverse_mass(const RowSoftmax& row, bool exists) {
  return exists && row.sum != 0.f ? reciprocal(row.sum) : 0.f;
}

// Adds the probability mass of a tile's rows to rows of `scores`. All computing threads call this function. It uses the
// shared memory from `buffer` on.
//   row      the softmax of the lane's row
//   inverse  1 / sum of this row; 0 if the lane has no row
//   halves   2 if the 32 rows of a warp belong to two query blocks (block size 16); lanes with bit 1 have the second
//   groups   number of query blocks in the tile; their units (warps, or halves) are summed in a fixed order, so that
//            results are deterministic
//   first    true for the first tile of the query block, which sets the scores; later tiles add to them
SPARSED_DEVICE void add_scores(const SelectArgs& select, const RowSoftmax& row, float inverse, int first_block,
                               int halves, int groups, int live_groups, bool first, float* scores, uint32_t buffer) {
  const int lane = thread_index() % 32, warp = thread_index() / 32;
  const int units = select.threads / 32 * halves, units_per_group = units / groups;
  for (int begin = first_block; begin < select.kv_blocks; begin += kScoreColumns) {
    const int columns = select.kv_blocks - begin < kScoreColumns ? select.kv_blocks - begin : kScoreColumns;
    for (int column = 0; column < columns; column += 4) {
      PartialSum partial[4];
      SPARSED_UNROLL
      for (int i = 0; i < 4; ++i) {  // starts several loads before the first one is used
        partial[i] = PartialSum{0.f, 0.f};
        if (column + i < columns) partial[i] = load_global(partial_sums(select, begin + column + i));
      }
      SPARSED_UNROLL
      for (int i = 0; i < 4; ++i) {
        float mass = inverse != 0.f ? partial[i].sum * exp2_approx(partial[i].base - row.max) * inverse : 0.f;
        mass += shuffle_xor(mass, 4);
        mass += shuffle_xor(mass, 8);
        mass += shuffle_xor(mass, 16);
        mass += shuffle_xor(mass, 1);
        if (halves == 1) mass += shuffle_xor(mass, 2);
        const int unit = warp * halves + lane / 2;
        if (column + i < columns && lane % 2 == 0 && lane / 2 < halves) {
          store_shared(buffer + static_cast<uint32_t>(unit * kScoreStride + column + i) * 4, mass);
        }
      }
    }
    barrier_sync(kSumsBarrier, select.threads);
    for (int i = thread_index(); i < live_groups * columns; i += select.threads) {
      const int group = i / columns, column = i % columns;
      float* score = scores + static_cast<int64_t>(group) * select.kv_blocks + begin + column;
      float mass = first ? 0.f : load_global(score);
      for (int unit = group * units_per_group; unit < (group + 1) * units_per_group; ++unit) {
        mass += load_shared(buffer + static_cast<uint32_t>(unit * kScoreStride + column) * 4);
      }
      store_global(score, mass);
    }
    barrier_sync(kSumsBarrier, select.threads);
  }
}

// Adds up the scores of the query blocks of a tile that begins at row `row`. lane_row is the row whose softmax this
// lane holds; it may be beyond the array. `first` says whether the tile is the first of its query block.
SPARSED_DEVICE void finish_selection(const AttentionArgs& args, int head, int row, int lane_row, int warp_rows,
                                     const RowSoftmax& all, const RowSoftmax& generation, bool first, uint32_t buffer) {
  const SelectArgs& select = args.select;
  const bool exists = lane_row < args.q_len;
  const int tile_blocks = args.tile_rows >> select.block_shift, query_block = row >> select.block_shift;
  const int groups = tile_blocks > 1 ? tile_blocks : 1;
  const int halves = (1 << select.block_shift) < warp_rows ? 2 : 1;
  const int live_groups = groups < select.q_blocks - query_block ? groups : select.q_blocks - query_block;
  const int64_t at = (static_cast<int64_t>(head) * select.q_blocks + query_block) * select.kv_blocks;
  add_scores(select, all, inverse_mass(all, exists), 0, halves, groups, live_groups, first, select.scores + at, buffer);
  if (!select.generation_apart) return;
  add_scores(select, generation, inverse_mass(generation, exists), select.generation_block, halves, groups, live_groups,
             first, select.generation + at, buffer);
}

// With separate softmaxes, that of the prompt is stored behind the block sums until that of the generation is complete.
// with_prompt then returns the softmax over both.
SPARSED_DEVICE void stash_prompt(const SelectArgs& select, const RowSoftmax& prompt) {
  store_global(partial_sums(select, select.kv_blocks), PartialSum{prompt.sum, prompt.max});
}
SPARSED_DEVICE RowSoftmax with_prompt(const SelectArgs& select, const RowSoftmax& generation) {
  const PartialSum prompt = load_global(partial_sums(select, select.kv_blocks));
  const float max = max_of(prompt.base, generation.max);
  return {max, prompt.sum * exp2_approx(prompt.base - max) + generation.sum * exp2_approx(generation.max - max)};
}

}  // namespace sparsed::cuda
