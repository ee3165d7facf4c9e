// Attention for inputs that the fast kernels do not support: float32, and rows that are not aligned to 16 bytes. It is
// simple and not fast. A warp computes its rows one after the other, 32 keys at a time. Each lane computes the score of
// one key, and then a part of the output.
#pragma once

#include "cuda/common/block_sums.cuh"
#include "cuda/common/key_walk.cuh"
#include "cuda/common/prims.cuh"
#include "cuda/params.h"

namespace sparsed::cuda {

template <class T_, Sums kSums_>
struct Plain {
  using T = T_;
  static constexpr Sums kSums = kSums_;
  using Walk = KeyWalk<32, kSums != Sums::kNone>;
  static constexpr int kWarpRows = 32;
  static constexpr int kMostDims = 256 / 32;  // output columns per lane
  static constexpr int shared_bytes(int) { return kSums == Sums::kNone ? 0 : kScoreBytes; }
};

template <class T>
SPARSED_DEVICE const T* row_of(const Array& array, int b, int h, int row) {
  return static_cast<const T*>(array.data) + b * array.batch + h * array.head + row * array.token;
}

SPARSED_DEVICE float warp_sum(float x, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}
SPARSED_DEVICE float warp_max(float x) {
  for (int mask = 16; mask > 0; mask /= 2) x = max_of(x, shuffle_xor(x, mask));
  return x;
}

// The selection's sums of one row. All lanes hold the same values.
struct RowSums {
  RowSoftmax softmax{kLowest, 0.f};
  float open = 0.f;  // of the current key block
};

// Adds the probabilities of the keys at positions [first, first + 32), one per lane, to the sums of their key blocks.
// The lane `keeper` stores the sums of this row.
template <class Walk>
SPARSED_DEVICE void add_keys(const SelectArgs& select, const Walk& walk, int first, float p, float base, int keeper,
                             RowSums& sums) {
  const float half = warp_sum(p, 16);
  const int first_key = walk.key(first), key_end = walk.key_end(first);
  for (int i = 0; i < 2; ++i) {
    sums.open += shuffle(half, i * 16);
    const int end = first_key + (i + 1) * 16;
    if (end - 16 >= key_end) return;
    if ((end & ((1 << select.block_shift) - 1)) && !(walk.last(first) && end >= key_end)) continue;
    if (thread_index() % 32 == keeper) {
      store_global(partial_sums(select, (end - 16) >> select.block_shift), PartialSum{sums.open, base});
    }
    sums.open = 0.f;
  }
}

// Computes one query row. `sums` returns the selection's sums.
template <class Traits>
SPARSED_DEVICE void attend_row(const AttentionArgs& args, const typename Traits::Walk& walk, int b, int h, int row,
                               int keeper, RowSums& sums) {
  using T = typename Traits::T;
  const int lane = thread_index() % 32, kv_head = h / args.gqa_ratio;
  const T* q = row_of<T>(args.q, b, h, row);
  float max = kLowest, sum = 0.f, out[Traits::kMostDims] = {};
  for (int first = 0; first < walk.positions; first += 32) {
    const int position = first + lane, key = position < walk.positions ? walk.key(position) : 0;
    const bool live = walk.live(position, key, walk.key_end(first));
    float score = -__builtin_inff();
    if (live) {
      const T* k = row_of<T>(args.k, b, kv_head, key);
      score = 0.f;
      for (int d = 0; d < args.head_dim; ++d) {
        score = multiply_add(to_float(load_global(q + d)), to_float(load_global(k + d)), score);
      }
    }
    const float highest = warp_max(score);
    if constexpr (Traits::kSums == Sums::kSeparate) {
      if (first == walk.split) {  // the generation begins, which has a separate softmax
        if (lane == keeper) stash_prompt(args.select, sums.softmax);
        sums = RowSums{};
      }
      const float selection_max = max_of(highest * args.select.scale, sums.softmax.max);
      const float factor = exp2_approx(sums.softmax.max - selection_max);
      const float p = exp2_approx(multiply_add(score, args.select.scale, -selection_max));
      sums.softmax = RowSoftmax{selection_max, sums.softmax.sum * factor + warp_sum(p, 32)};
      sums.open *= factor;
      add_keys(args.select, walk, first, p, selection_max, keeper, sums);
    }
    const float new_max = max_of(highest * args.scale, max);
    const float alpha = exp2_approx(max - new_max), p = exp2_approx(multiply_add(score, args.scale, -new_max));
    max = new_max;
    sum = sum * alpha + warp_sum(p, 32);
    if constexpr (Traits::kSums == Sums::kShared) {
      sums.open *= alpha;
      add_keys(args.select, walk, first, p, max, keeper, sums);
      sums.softmax = RowSoftmax{max, sum};
    }
    if (!args.out.data) continue;
    SPARSED_UNROLL
    for (int i = 0; i < Traits::kMostDims; ++i) out[i] *= alpha;
    for (int j = 0; j < 32; ++j) {
      const float weight = shuffle(p, j);
      if (!shuffle(live ? 1 : 0, j)) continue;  // a NaN in the value of a hidden key must not reach the output
      const T* v = row_of<T>(args.v, b, kv_head, shuffle(key, j));
      SPARSED_UNROLL
      for (int i = 0; i < Traits::kMostDims; ++i) {
        const int d = i * 32 + lane;
        if (d < args.head_dim) out[i] = multiply_add(weight, to_float(load_global(v + d)), out[i]);
      }
    }
  }
  if (args.lse && lane == 0) {
    const float lse = sum == 0.f ? -__builtin_inff() : (max + log2_approx(sum)) * kLn2;
    store_global(args.lse + (static_cast<int64_t>(b) * args.heads + h) * args.q_len + row, lse);
  }
  if (!args.out.data) return;
  T* target = const_cast<T*>(row_of<T>(args.out, b, h, row));
  const float inverse = sum == 0.f ? 0.f : reciprocal(sum);
  SPARSED_UNROLL
  for (int i = 0; i < Traits::kMostDims; ++i) {
    const int d = i * 32 + lane;
    if (d < args.head_dim) store_global(target + d, from_float<T>(out[i] * inverse));
  }
}

// Computes query rows [row, row + args.tile_rows) of a head.
template <class Traits>
SPARSED_DEVICE void plain_tile(const AttentionArgs& args, int head, int row, bool first) {
  const int b = head / args.heads, h = head % args.heads, lane = thread_index() % 32;
  const int row_end = row + args.tile_rows < args.q_len ? row + args.tile_rows : args.q_len;
  const int warp_row = row + thread_index() / 32 * Traits::kWarpRows;
  const auto walk = key_walk<32, Traits::kSums != Sums::kNone>(args, b, h, row);
  RowSums kept;
  for (int i = 0; i < Traits::kWarpRows && warp_row + i < row_end; ++i) {
    const int keeper = i % 8 * 4 + i / 16 * 2 + i / 8 % 2;  // the order that add_scores expects
    RowSums sums;
    attend_row<Traits>(args, walk, b, h, warp_row + i, keeper, sums);
    if (lane == keeper) kept = sums;
  }
  if constexpr (Traits::kSums != Sums::kNone) {
    const int slot = lane % 4, lane_row = warp_row + slot / 2 * 16 + slot % 2 * 8 + lane / 4;
    RowSoftmax all = kept.softmax;
    if (args.select.generation_apart && lane_row < row_end) all = with_prompt(args.select, kept.softmax);
    finish_selection(args, head, row, lane_row, Traits::kWarpRows, all, kept.softmax, first, 0);
  }
}

template <class Traits>
SPARSED_DEVICE void attention_plain(const AttentionArgs& args) {
  for (int item = block_index(); item < args.batch * args.heads * args.items; item += grid_blocks()) {
    const int first = item % args.items * args.item_rows;
    for (int row = first; row < first + args.item_rows && row < args.q_len; row += args.tile_rows) {
      plain_tile<Traits>(args, item / args.items, row, row == first);
    }
  }
}

}  // namespace sparsed::cuda
