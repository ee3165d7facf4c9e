// Attention of one work item, dense and block-sparse alike, with the block sums of the fused selection.
//
//   O = softmax(scale Q K^T) V        lse = log sum exp(scale Q K^T)        per query row, over the item's keys
//   A'[i][j] = sum of the probabilities of query block i in key block j     where a selection is asked for
//
// Blocking   An item is up to 256 query rows of one head. Their tiles of 16 or 32 queries share every chunk of keys, so
//            that K and V come from memory once and then from the second-level cache. A chunk is 128 or 256 keys: its
//            scores and probabilities stay in the first-level cache.
// Layout     Everything is transposed: S^T = K Q^T and O^T = V^T P^T. A vector lane is a query, so that maximum, sum,
//            rescaling and block sums need no step across lanes.
// Algorithm  for each chunk of the item's key groups:
//              for each query tile:
//                S^T = K Q^T                                     (scores of the micro-kernel)
//                maximum, P^T = exp2(S^T - maximum), sums        (softmax.h, softmax_bf16.h)
//                O^T = alpha O^T + V^T P^T                       (accumulate of the micro-kernel)
//            block sums of a selection become probabilities with the final maximum and sum of each row
//            O = O^T / sum, transposed and rounded
// Rate       Measured at head_dim 128: 0.96 TFLOP/s in bfloat16 and 0.41 to 0.43 in float32 on two cores of an AMD EPYC
//            (Zen 5, where linear layers reach 0.99 and 0.50). On AMX this form has not been timed (bench/NOTES.md).
//
// It is written once over a vector (vec_*.h) and a micro-kernel for the products (micro_kernel_*.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor.h"
#include "cpu/half.h"
#include "cpu/kernels.h"
#include "cpu/softmax.h"
#include "cpu/softmax_bf16.h"

namespace sparsed::cpu {
namespace {

inline size_t align64(size_t bytes) { return (bytes + 63) / 64 * 64; }

// The attention kernels of an instruction set: Arch has Vec and MicroKernel. Functions that are large, or have several
// callers, are defined below the class: in it they would be inline, which changes how the compiler merges them.
template <class Arch>
class Attention {
 public:
  static constexpr AttentionKernels table() {
    return {Kernel::kGroup,  Kernel::kItemQueries, Kernel::kChunk, Kernel::k_bytes,
            Kernel::v_bytes, scratch_bytes,        pack_k,         pack_v,
            run_item};
  }

 private:
  using Vec = typename Arch::Vec;
  using Kernel = typename Arch::MicroKernel;
  using Prob = typename Kernel::Prob;
  using State = SoftmaxState<Kernel>;

  static constexpr int kQ = Kernel::kQueries, kL = Vec::kLanes;
  static constexpr int kTiles = Kernel::kItemQueries / kQ;

  // Addresses inside an item's scratch, which may be null: only `bytes` counts then.
  struct Scratch {
    std::byte* q;      // [kTiles] packed query tiles
    float* o;          // [kTiles][out_rows][kQueries]
    State* state;      // [kTiles]
    float* s;          // [kChunk][kQueries]
    Prob* p;           // [kChunk][kQueries]
    float* cells;      // [kTiles][cells][kQueries] block sums
    float* chunk_max;  // [kTiles][chunks][kQueries] what the cells of a chunk are relative to
    float* weight;     // [chunks][kQueries]
    size_t bytes;

    // At most cells + 1 chunks: a cell is no longer than a chunk, and one chunk may end early at the generation.
    Scratch(std::byte* base, int head_dim, int64_t cell_count) {
      const size_t per_query = sizeof(float) * kQ;
      const size_t rows = static_cast<size_t>(cell_count);
      size_t at = 0;
      const auto take = [&](size_t size) {
        std::byte* p = base ? base + at : nullptr;
        at += align64(size);
        return p;
      };
      q = take(kTiles * Kernel::q_bytes(head_dim));
      o = reinterpret_cast<float*>(take(kTiles * per_query * Kernel::out_rows(head_dim)));
      state = reinterpret_cast<State*>(take(kTiles * sizeof(State)));
      s = reinterpret_cast<float*>(take(per_query * Kernel::kChunk));
      p = reinterpret_cast<Prob*>(take(sizeof(Prob) * kQ * Kernel::kChunk));
      cells = reinterpret_cast<float*>(take(kTiles * per_query * rows));
      chunk_max = reinterpret_cast<float*>(take(kTiles * per_query * (rows ? rows + 1 : 0)));
      weight = reinterpret_cast<float*>(take(per_query * (rows ? rows + 1 : 0)));
      bytes = at;
    }
  };

  static size_t scratch_bytes(int head_dim, int64_t cells) { return Scratch(nullptr, head_dim, cells).bytes; }

  // S^T of `groups` groups of an item from `group` on, -inf where a key takes no part.
  template <int NV>
  static void masked_scores(const AttentionItem& item, const std::byte* q, int64_t group, int groups, float* s) {
    Kernel::template scores<NV>(item.k, item.groups.index + group, groups, q, item.head_dim, s);
    for (int g = 0; g < groups; ++g) {
      const uint32_t live = item.groups.live[group + g];
      if (live == (Kernel::kGroup == 32 ? ~0u : (1u << Kernel::kGroup % 32) - 1u)) continue;
      for (int key = 0; key < Kernel::kGroup; ++key) {
        if (live >> key & 1u) continue;
        float* row = s + (g * Kernel::kGroup + key) * kQ;
        for (int v = 0; v < NV; ++v) Vec::set(-__builtin_inff()).store(row + v * kL);
      }
    }
  }

  // [kQueries] of a tile's sums of probabilities.
  static float* prob_sums(const AttentionItem& item, const Scratch& scratch, int tile) {
    if constexpr (Kernel::kSumsInOutput) return tile_output(item, scratch, tile) + Kernel::sum_row(item.head_dim) * kQ;
    return scratch.state[tile].sum;
  }
  static float* tile_output(const AttentionItem& item, const Scratch& scratch, int tile) {
    return scratch.o + static_cast<size_t>(tile) * Kernel::out_rows(item.head_dim) * kQ;
  }

  // Scores, softmax and output of one chunk of groups for one query tile.
  template <int NV, Sums kSums>
  static void attend_chunk(const AttentionItem& item, const Scratch& at, const Chunk& chunk, int tile, int64_t group,
                           int groups, bool fresh);

  template <Sums kSums>
  static void attend_chunk(const AttentionItem& item, const Scratch& scratch, const Chunk& chunk, int tile,
                           int64_t group, int groups, bool fresh);

  static Sums sums_of(const SelectItem* select, int64_t group) {
    if (!select) return Sums::kNone;
    if (select->second_scale) return Sums::kTwice;
    return select->generation_apart && group >= select->generation_group ? Sums::kChunkMax : Sums::kShared;
  }

  // The item's chunks of groups, in order; a chunk does not cross into the generation when that has a separate softmax.
  // visit(first group, groups, first cell, chunk number).
  template <class Visit>
  static void for_each_chunk(const AttentionItem& item, const Visit& visit);

  // Weights of the chunks that turn cell sums into probabilities, for the cells from first_cell on.
  static void chunk_weights(const AttentionItem& item, const float* cells, const float* chunk_max, int64_t first_cell,
                            int queries, float* weight) {
    for (int v = 0; v < Kernel::kVecs && v * kL < queries; ++v) {
      Vec highest = Vec::set(kLowest), total = Vec::zero();
      for_each_chunk(item, [&](int64_t, int, int64_t cell, int64_t chunk) {
        if (cell >= first_cell) highest = max(Vec::load(chunk_max + chunk * kQ + v * kL), highest);
      });
      for_each_chunk(item, [&](int64_t, int groups, int64_t cell, int64_t chunk) {
        if (cell < first_cell) return;
        const int64_t end = cell + (groups * Kernel::kGroup + item.select->cell_keys - 1) / item.select->cell_keys;
        const Vec w = exp2(Vec::load(chunk_max + chunk * kQ + v * kL) - highest);
        w.store(weight + chunk * kQ + v * kL);
        for (int64_t c = cell; c < end; ++c) total = fma(Vec::load(cells + c * kQ + v * kL), w, total);
      });
      float inverse[kL];
      total.store(inverse);
      // Lanes beyond the item's queries and rows that see no key weigh nothing.
      for (int i = 0; i < kL; ++i) inverse[i] = v * kL + i < queries && inverse[i] != 0.f ? 1.f / inverse[i] : 0.f;
      const Vec scale = Vec::load(inverse);
      for_each_chunk(item, [&](int64_t, int, int64_t cell, int64_t chunk) {
        if (cell < first_cell) return;
        (Vec::load(weight + chunk * kQ + v * kL) * scale).store(weight + chunk * kQ + v * kL);
      });
    }
  }

  // Adds one query tile's probability mass to the scores of its query blocks. A vector of queries lies in one query
  // block, because block sizes are multiples of 16.
  static void add_block_scores(const AttentionItem& item, const Scratch& scratch, int tile, int64_t first_cell,
                               float* scores) {
    const SelectItem& select = *item.select;
    const float* cells = scratch.cells + static_cast<size_t>(tile) * select.cells * kQ;
    const float* chunk_max = scratch.chunk_max + static_cast<size_t>(tile) * (select.cells + 1) * kQ;
    const int queries = item.queries - tile * kQ;
    chunk_weights(item, cells, chunk_max, first_cell, queries, scratch.weight);
    for (int v = 0; v < Kernel::kVecs && v * kL < queries; ++v) {
      float* row = scores + (tile * kQ + v * kL) / select.block_size * select.kv_blocks;
      for_each_chunk(item, [&](int64_t, int groups, int64_t cell, int64_t chunk) {
        if (cell < first_cell) return;
        const int64_t end = cell + (groups * Kernel::kGroup + select.cell_keys - 1) / select.cell_keys;
        const Vec w = Vec::load(scratch.weight + chunk * kQ + v * kL);
        for (int64_t c = cell; c < end && c / select.block_cells < select.kv_blocks; ++c) {
          row[c / select.block_cells] += reduce_add(Vec::load(cells + c * kQ + v * kL) * w);
        }
      });
    }
  }

  static void finish_selection(const AttentionItem& item, const Scratch& scratch) {
    const SelectItem& select = *item.select;
    const int64_t size = (item.queries + select.block_size - 1) / select.block_size * select.kv_blocks;
    for (int64_t i = 0; i < size; ++i) select.scores[i] = 0.f;
    if (select.generation) {
      for (int64_t i = 0; i < size; ++i) select.generation[i] = 0.f;
    }
    for (int tile = 0; tile * kQ < item.queries; ++tile) {
      add_block_scores(item, scratch, tile, 0, select.scores);
      if (select.generation) add_block_scores(item, scratch, tile, select.generation_cell, select.generation);
    }
  }

  template <class T>
  static void write_output(const AttentionItem& item, const Scratch& scratch);

  template <class T>
  static void run_typed(const AttentionItem& item);

  // Packing and output exist per element type that the micro-kernel takes.
  template <class F>
  static void for_dtype(DType dtype, const F& f);

  static void run_item(const AttentionItem& item) {
    Kernel::begin();
    for_dtype(item.dtype, [&](auto element) { run_typed<decltype(element)>(item); });
    Kernel::end();
  }

  // Whole groups are packed with constants, by unrolled loops.
  static void pack_k(const PackRows& r, std::byte* group) {
    for_dtype(r.dtype, [&](auto element) {
      const auto* rows = static_cast<const decltype(element)*>(r.rows);
      if (r.count == Kernel::kGroup) return Kernel::pack_k(rows, r.stride, 0, Kernel::kGroup, r.head_dim, group);
      Kernel::pack_k(rows, r.stride, r.first, r.count, r.head_dim, group);
    });
  }

  static void pack_v(const PackRows& r, std::byte* group) {
    for_dtype(r.dtype, [&](auto element) {
      const auto* rows = static_cast<const decltype(element)*>(r.rows);
      if (r.count == Kernel::kGroup) return Kernel::pack_v(rows, r.stride, 0, Kernel::kGroup, r.head_dim, group);
      Kernel::pack_v(rows, r.stride, r.first, r.count, r.head_dim, group);
    });
  }
};

template <class Arch>
template <int NV, Sums kSums>
void Attention<Arch>::attend_chunk(const AttentionItem& item, const Scratch& at, const Chunk& chunk, int tile,
                                   int64_t group, int groups, bool fresh) {
  const auto scores = [&](int first, int count, float* s) {
    masked_scores<NV>(item, at.q + tile * Kernel::q_bytes(item.head_dim), group + first, count, s);
  };
  State& state = at.state[tile];
  SoftmaxResult result = SoftmaxResult::kRefused;
  if constexpr (Kernel::kBf16Only && (kSums == Sums::kNone || kSums == Sums::kShared)) {
    result = item.lse ? softmax_bf16<Kernel, NV, kSums, true>(chunk, scores, fresh, state, at.s, at.p)
                      : softmax_bf16<Kernel, NV, kSums, false>(chunk, scores, fresh, state, at.s, at.p);
  }
  if (result == SoftmaxResult::kRefused) {
    scores(0, groups, at.s);
    result = softmax<Kernel, NV, kSums>(chunk, at.s, state, at.p) ? SoftmaxResult::kNewMax : SoftmaxResult::kSameMax;
  }
  if (!item.v) return;
  Kernel::template accumulate<NV>(item.v, item.groups.index + group, groups, at.p, item.head_dim, fresh,
                                  result == SoftmaxResult::kNewMax ? state.alpha : nullptr,
                                  tile_output(item, at, tile));
}

template <class Arch>
template <Sums kSums>
void Attention<Arch>::attend_chunk(const AttentionItem& item, const Scratch& scratch, const Chunk& chunk, int tile,
                                   int64_t group, int groups, bool fresh) {
  if (item.queries - tile * kQ > kL) {
    attend_chunk<2, kSums>(item, scratch, chunk, tile, group, groups, fresh);
  } else {
    attend_chunk<1, kSums>(item, scratch, chunk, tile, group, groups, fresh);
  }
}

template <class Arch>
template <class Visit>
void Attention<Arch>::for_each_chunk(const AttentionItem& item, const Visit& visit) {
  const SelectItem* select = item.select;
  int64_t group = 0, chunk = 0;
  while (group < item.groups.count) {
    int64_t end = group + Kernel::kChunk / Kernel::kGroup;
    if (end > item.groups.count) end = item.groups.count;
    if (select && group < select->generation_group && end > select->generation_group) end = select->generation_group;
    visit(group, static_cast<int>(end - group), select ? group * Kernel::kGroup / select->cell_keys : 0, chunk);
    group = end;
    ++chunk;
  }
}

template <class Arch>
template <class T>
void Attention<Arch>::write_output(const AttentionItem& item, const Scratch& scratch) {
  for (int first = 0; first < item.queries; first += kL) {
    const State& state = scratch.state[first / kQ];
    const int lane = first % kQ, count = item.queries - first < kL ? item.queries - first : kL;
    for (int i = 0; item.lse && i < count; ++i) {
      const float sum = state.exact_sum[lane + i];
      item.lse[first + i] = sum == 0.f ? -__builtin_inff() : (state.max[lane + i] + __builtin_log2f(sum)) * kLn2;
    }
    if (!item.out) continue;
    const float* o = tile_output(item, scratch, first / kQ) + lane;
    const float* sums = prob_sums(item, scratch, first / kQ) + lane;
    float inverse[kL] = {};
    for (int i = 0; i < count; ++i) inverse[i] = 1.f / sums[i];
    const Vec scale = Vec::load(inverse);
    for (int d = 0; d < item.head_dim; d += kL) {
      const int n = item.head_dim - d < kL ? item.head_dim - d : kL;
      Vec block[kL];
      for (int i = 0; i < kL; ++i) block[i] = i < n ? Vec::load(o + (d + i) * kQ) * scale : Vec::zero();
      transpose(block);
      for (int i = 0; i < count; ++i) {
        const bool empty = sums[i] == 0.f;  // 0 * infinity above
        (empty ? Vec::zero() : block[i]).store_n(static_cast<T*>(item.out) + (first + i) * item.out_stride + d, n);
      }
    }
  }
}

template <class Arch>
template <class T>
void Attention<Arch>::run_typed(const AttentionItem& item) {
  const SelectItem* select = item.select;
  const Scratch scratch(item.scratch, item.head_dim, select ? select->cells : 0);
  const int tiles = (item.queries + kQ - 1) / kQ;
  for (int tile = 0; tile < tiles; ++tile) {
    const int first = tile * kQ;
    const int count = item.queries - first < kQ ? item.queries - first : kQ;
    Kernel::pack_q(static_cast<const T*>(item.q) + first * item.q_stride, item.q_stride, count, item.head_dim,
                   scratch.q + tile * Kernel::q_bytes(item.head_dim));
    State& state = scratch.state[tile];
    float* sums = prob_sums(item, scratch, tile);
    for (int i = 0; i < kQ; ++i) {
      state.max[i] = kLowest;
      state.sum[i] = state.exact_sum[i] = sums[i] = 0.f;
    }
  }
  for_each_chunk(item, [&](int64_t group, int groups, int64_t cell, int64_t number) {
    Chunk chunk{groups * Kernel::kGroup, item.scale, 0.f, Kernel::kChunk, nullptr, nullptr};
    const Sums sums = sums_of(select, group);
    for (int tile = 0; tile < tiles; ++tile) {
      if (select) {
        chunk.select_scale = select->scale;
        chunk.cell_keys = select->cell_keys;
        chunk.cells = scratch.cells + (static_cast<size_t>(tile) * select->cells + cell) * kQ;
        chunk.chunk_max = scratch.chunk_max + (static_cast<size_t>(tile) * (select->cells + 1) + number) * kQ;
      }
      const bool fresh = group == 0;
      switch (sums) {
        case Sums::kNone: attend_chunk<Sums::kNone>(item, scratch, chunk, tile, group, groups, fresh); break;
        case Sums::kShared: attend_chunk<Sums::kShared>(item, scratch, chunk, tile, group, groups, fresh); break;
        case Sums::kChunkMax: attend_chunk<Sums::kChunkMax>(item, scratch, chunk, tile, group, groups, fresh); break;
        case Sums::kTwice: attend_chunk<Sums::kTwice>(item, scratch, chunk, tile, group, groups, fresh); break;
      }
    }
  });
  if (select) finish_selection(item, scratch);
  write_output<T>(item, scratch);
}

template <class Arch>
template <class F>
void Attention<Arch>::for_dtype(DType dtype, const F& f) {
  if constexpr (Kernel::kBf16Only) {
    f(Bf16{});
  } else {
    switch (dtype) {
      case DType::kFloat32: f(float{}); break;
      case DType::kFloat16: f(F16{}); break;
      case DType::kBFloat16: f(Bf16{}); break;
      case DType::kInt8: break;  // only weights have it
    }
  }
}

}  // namespace
}  // namespace sparsed::cpu
