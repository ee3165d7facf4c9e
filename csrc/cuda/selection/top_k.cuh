// The selection rule on the GPU. It turns rows of scores into rows of bits, and rows of bits into sorted lists. Each
// warp takes a row.
#pragma once

#include "cuda/common/prims.cuh"
#include "cuda/selection/params.h"

namespace sparsed::cuda {

// Calls f(i) for each i of [0, count), each in one warp.
template <class F>
SPARSED_DEVICE void for_each_warp(int count, const F& f) {
  const int warps = block_threads() / 32;
  for (int i = block_index() * warps + thread_index() / 32; i < count; i += grid_blocks() * warps) f(i);
}

// Returns the sum of the lanes' counts.
SPARSED_DEVICE int count_all(int count) {
  for (int mask = 16; mask > 0; mask /= 2) count += shuffle_xor(count, mask);
  return count;
}

// Sets the bits of the blocks that are selected from a range of a row.
SPARSED_DEVICE void mark_top(const float* scores, const uint8_t* live, const SelectRange& range, double rho,
                             uint32_t* bits) {
  const int lane = thread_index() % 32, begin = static_cast<int>(range.begin), end = static_cast<int>(range.end);
  const auto is_live = [&](int block) { return !live || load_global(live + block) != 0; };
  const auto score = [&](int block) { return ordered_score(float_bits(load_global(scores + block))); };
  const auto count_from = [&](uint32_t least) {
    int count = 0;
    for (int block = begin + lane; block < end; block += 32) count += is_live(block) && score(block) >= least;
    return count_all(count);
  };
  const int keep = static_cast<int>(keep_count(count_from(0), rho));
  if (keep == 0) return;
  uint32_t least = 0;  // becomes the smallest score that is kept, found bit by bit
  for (uint32_t bit = 1u << 31; bit; bit >>= 1) {
    if (count_from(least | bit) >= keep) least |= bit;
  }
  int equal_left = keep - (least == ~0u ? 0 : count_from(least + 1));
  for (int base = begin / 32 * 32; base < end; base += 32) {
    const int block = base + lane;
    const bool candidate = block >= begin && block < end && is_live(block);
    const uint32_t lane_score = candidate ? score(block) : 0;
    const uint32_t equal = vote(candidate && lane_score == least);
    const int before = count_bits(equal & ((1u << lane) - 1u));
    const bool taken = candidate && (lane_score > least || (lane_score == least && before < equal_left));
    const uint32_t word = vote(taken && block < range.marked_end);
    equal_left -= count_bits(equal);
    if (lane == 0) store_global(bits + base / 32, load_global(bits + base / 32) | word);
  }
}

// Returns a word of a row that keeps every block.
SPARSED_DEVICE uint32_t full_word(int word, int kv_blocks) {
  const int left = kv_blocks - 32 * word;
  if (left >= 32) return ~0u;
  return left > 0 ? (1u << left) - 1u : 0u;
}

SPARSED_DEVICE void top_rows(const TopArgs& args) {
  for_each_warp(args.rows, [&](int row) {
    uint32_t* bits = args.bits + static_cast<int64_t>(row) * args.words;
    const bool dense = row % args.q_blocks >= args.first_dense;
    if (thread_index() % 32 == 0) {
      for (int word = 0; word < args.words; ++word) {
        store_global(bits + word, dense ? full_word(word, args.kv_blocks) : 0u);
      }
    }
    if (dense) return;
    const int64_t first = static_cast<int64_t>(row) * args.kv_blocks;
    const uint8_t* live =
        args.live ? args.live + static_cast<int64_t>(row / args.batch_rows) * args.kv_blocks : nullptr;
    for (int i = 0; i < args.ranges.count; ++i) {
      const SelectRange& range = args.ranges.range[i];
      mark_top((range.generation ? args.generation : args.scores) + first, live, range, args.rho, bits);
    }
  });
}

SPARSED_DEVICE void live_blocks(const LiveArgs& args) {
  for_each_warp(args.batch * args.kv_blocks, [&](int i) {
    const int b = i / args.kv_blocks, first = i % args.kv_blocks * args.block_size;
    bool any = false;
    for (int key = first + thread_index() % 32; key < first + args.block_size && key < args.kv_len; key += 32) {
      any = any || load_global(args.key_mask + static_cast<int64_t>(b) * args.kv_len + key) != 0;
    }
    const uint8_t live = vote(any) != 0;
    if (thread_index() % 32 == 0) store_global(args.live + i, live);
  });
}

SPARSED_DEVICE void list_blocks(const ListArgs& args) {
  for_each_warp(args.rows, [&](int row) {
    const int lane = thread_index() % 32;
    int count = 0;
    for (int i = 0; i < args.words; ++i) {
      const uint32_t word = load_global(args.bits + static_cast<int64_t>(row) * args.words + i);
      if (word >> lane & 1u) {
        const int before = count_bits(word & ((1u << lane) - 1u));
        store_global(args.indices + row * args.stride + count + before, i * 32 + lane);
      }
      count += count_bits(word);
    }
    if (lane == 0) store_global(args.counts + row, count);
  });
}

// Sorts the work items of each head: those with the longest lists first, and equal ones by index. Starting with the
// longest lists keeps the blocks of the grid busy until the end.
SPARSED_DEVICE void order_items(const OrderArgs& args) {
  for_each_warp(args.heads * args.items, [&](int i) {
    const int head = i / args.items, item = i % args.items, lane = thread_index() % 32;
    const auto length = [&](int of) {
      const int row = static_cast<int>(static_cast<int64_t>(of) * args.item_rows >> args.list_shift);
      return load_global(args.counts + head * args.list_rows + row);
    };
    const int item_length = length(item);
    int before = 0;
    for (int first = 0; first < args.items; first += 32) {
      const int other = first + lane, count = other < args.items ? length(other) : -1;
      before += count_bits(vote(count > item_length || (count == item_length && other < item)));
    }
    if (lane == 0) store_global(args.order + head * args.items + before, item);
  });
}

}  // namespace sparsed::cuda
