// The small matrix products of attention on AMX-bf16: K Q^T and V^T P^T on tile registers, softmax on AVX-512 vectors.
// A operand: 16 rows of 32 bfloat16. B operand: 16 pairs of rows, 16 columns, pairs side by side. Each is 1 KB,
// contiguous.
//
//   packed Q   [D/32][kVecs]      B operands: 32 d-rows x 16 queries
//   packed K   [D/32][2]          A operands: 16 keys x 32 d           (one group of 32 keys)
//   packed V   [D/16]             A operands: 16 d-rows x 32 keys      (one group; D padded to 32)
//   S^T        [keys][kQueries]   float32
//   P^T        [keys/32][kVecs]   B operands: 32 keys x 16 queries
//   O^T        [D][kQueries]      float32; 16 more rows, of which the first has the sums of P^T
//
// A tile store takes as long as two products unless other products run beside it. So two pairs of accumulators take
// turns: the one is stored after the first product of the other. No vector work goes between the products of a loop:
// that made everything slower where it was measured, on a Sapphire-Rapids-class Xeon, with trials of these loops.
// These kernels themselves have run on emulated tiles only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/amx.h"
#include "cpu/bf16_pairs.h"
#include "cpu/half.h"
#include "cpu/vec_avx512.h"

namespace sparsed::cpu {
namespace {

// An A operand whose first row is ones.
struct RowOfOnes {
  alignas(64) Bf16 at[512];
  constexpr RowOfOnes() : at() {
    for (int i = 0; i < 512; ++i) at[i].bits = i < 32 ? 0x3f80 : 0;
  }
};
constexpr RowOfOnes kRowOfOnes;

struct AmxMicroKernel {
  using Vec = VecAvx512;
  using Prob = Bf16;
  using Pairs = Bf16Pairs;
  static constexpr bool kBf16Only = true;
  static constexpr int kGroup = 32;
  static constexpr int kVecs = 2;
  static constexpr int kQueries = kVecs * Vec::kLanes;
  static constexpr int kItemQueries = 256;
  static constexpr int kChunk = 256;
  static constexpr int kStep = 64;  // keys whose scores stay in L1 beside Q and the chunk's probabilities

  static constexpr int kOperand = 512;  // elements of an operand
  static int k_steps(int head_dim) { return (head_dim + 31) / 32; }

  static size_t k_bytes(int head_dim) { return sizeof(Bf16) * 2 * kOperand * k_steps(head_dim); }
  static size_t v_bytes(int head_dim) { return k_bytes(head_dim); }
  static size_t q_bytes(int head_dim) { return k_bytes(head_dim); }
  // The row sum_row of O^T has the sums of the probabilities: products are cheaper there than more vector work.
  static constexpr bool kSumsInOutput = true;
  static int sum_row(int head_dim) { return 32 * k_steps(head_dim); }
  static int out_rows(int head_dim) { return sum_row(head_dim) + 16; }
  static void begin() { tile_configure(); }
  static void end() { tile_release(); }

  static void pack_k(const Bf16* rows, int64_t stride, int first, int count, int head_dim, std::byte* group) {
    Bf16* out = reinterpret_cast<Bf16*>(group) + 32 * first;
    for (int step = 0; step < k_steps(head_dim); ++step, out += 32 * kGroup) {
      for (int key = 0; key < count; ++key) {
        load_pairs(rows, stride, key, count, 32 * step, head_dim).store(reinterpret_cast<float*>(out + 32 * key));
      }
    }
  }

  static void pack_q(const Bf16* rows, int64_t stride, int count, int head_dim, std::byte* q) {
    Bf16* out = reinterpret_cast<Bf16*>(q);
    for (int step = 0; step < k_steps(head_dim); ++step) {
      for (int v = 0; v < kVecs; ++v, out += kOperand) {
        Vec block[16];
        for (int i = 0; i < 16; ++i) block[i] = load_pairs(rows, stride, 16 * v + i, count, 32 * step, head_dim);
        transpose(block);
        for (int i = 0; i < 16; ++i) block[i].store(reinterpret_cast<float*>(out + 32 * i));
      }
    }
  }

  // Two keys side by side first, then pairs are transposed as in pack_q.
  static void pack_v(const Bf16* rows, int64_t stride, int first, int count, int head_dim, std::byte* group) {
    Bf16* out = reinterpret_cast<Bf16*>(group);
    const uint32_t given = (~0u >> (32 - count)) << first;
    for (int d = 0; d < sum_row(head_dim); d += 32) {
      Vec low[16], high[16];
      for (int i = 0; i < 16; ++i) {
        const Vec even = load_pairs(rows, stride, 2 * i - first, count, d, head_dim);
        const Vec odd = load_pairs(rows, stride, 2 * i + 1 - first, count, d, head_dim);
        interleave_bf16(even, odd, low[i], high[i]);
      }
      transpose(low);
      transpose(high);
      for (int i = 0; i < 16; ++i) {  // an interleaved 128-bit lane holds four of its eight d
        Bf16* row = out + static_cast<size_t>(d + i / 4 * 8 + i % 4) * 32;
        store_bf16(low[i], row, given);
        store_bf16(high[i], row + 4 * 32, given);
      }
    }
  }

  // S^T of `count` groups, s[key][query] = sum over d of K[key][d] Q[query][d].
  template <int NV>
  static void scores(const std::byte* k, const int32_t* index, int count, const std::byte* q, int head_dim, float* s) {
    const auto keys = [&](int half, int step) __attribute__((always_inline)) {
      const std::byte* group = k + static_cast<size_t>(index[half / 2]) * k_bytes(head_dim);
      return reinterpret_cast<const Bf16*>(group) + (2 * step + half % 2) * kOperand;
    };
    multiply_blocks<NV>(2 * count, k_steps(head_dim), keys, reinterpret_cast<const Bf16*>(q), true, s);
  }

  // 2^x, as exact as the probabilities are stored.
  static Vec exp2_probability(Vec x) { return exp2_for_bf16(x); }

  // Probabilities of keys key and key + 1 for the query vector v: interleaved, as the B operand wants them.
  static Prob* pairs_at(Prob* p, int key, int v) { return p + ((key & ~31) * kVecs + (key & 31)) * 16 + v * kOperand; }
  static void store_pair(Prob* p, int key, int v, Vec first, Vec second) {
    Pairs::round(first, second).store(pairs_at(p, key, v));
  }

  // O^T = O^T * alpha + V^T P^T over `count` groups. fresh: O^T starts at 0; alpha: nullptr where nothing changes.
  template <int NV>
  static void accumulate(const std::byte* v_packed, const int32_t* index, int count, const Prob* p, int head_dim,
                         bool fresh, const float* alpha, float* o) {
    const int blocks = out_rows(head_dim) / 16;
    const auto values = [&](int block, int g) __attribute__((always_inline)) {
      const std::byte* group = v_packed + static_cast<size_t>(index[g]) * v_bytes(head_dim);
      return block == blocks - 1 ? kRowOfOnes.at : reinterpret_cast<const Bf16*>(group) + block * kOperand;
    };
    if (alpha && !fresh) rescale<NV>(out_rows(head_dim), alpha, o);
    multiply_blocks<NV>(blocks, count, values, p, fresh, o);
  }

 private:
  static constexpr size_t kStride = kQueries * sizeof(float);
  static constexpr int kBlock = 16 * kQueries;  // floats of 16 rows

  // Up to 32 elements of a row from column d on, zeros outside of the array.
  static Vec load_pairs(const Bf16* rows, int64_t stride, int row, int count, int d, int head_dim) {
    if (row < 0 || row >= count) return Vec::zero();
    const int n = head_dim - d < 32 ? head_dim - d : 32;
    return Vec::load_n(reinterpret_cast<const float*>(rows + row * stride + d), n / 2);
  }

  // c[16 * block ...][kQueries] += the sum over `depth` steps of A a(block, step) times the B operands of b's step.
  // fresh: c starts at 0.
  template <int NV, class Operand>
  static void multiply_blocks(int blocks, int depth, const Operand& a, const Bf16* b, bool fresh, float* c) {
    const auto turn = [&]<int kPair>(int block) __attribute__((always_inline)) {
      fresh ? clear<NV, kPair>() : load<NV, kPair>(c + block * kBlock);
      multiply<NV, kPair>(a(block, 0), b);
      if (block > 0) store<NV, 1 - kPair>(c + (block - 1) * kBlock);
      for (int step = 1; step < depth; ++step) multiply<NV, kPair>(a(block, step), b + step * kVecs * kOperand);
    };
    for (int block = 0; block < blocks; ++block) {
      block % 2 == 0 ? turn.template operator()<0>(block) : turn.template operator()<1>(block);
    }
    float* last = c + (blocks - 1) * kBlock;
    blocks % 2 == 0 ? store<NV, 1>(last) : store<NV, 0>(last);
  }

  // Tiles 0, 1 and 2, 3: two pairs of accumulators, 16 x 16*NV float32 each; 4, 5: their A; 6, 7: B.
  template <int NV, int kPair>
  static void clear() {
    tile_zero<2 * kPair>();
    if constexpr (NV == 2) tile_zero<2 * kPair + 1>();
  }
  template <int NV, int kPair>
  static void multiply(const Bf16* a, const Bf16* b) {
    tile_load<4 + kPair>(a, 64);
    tile_load<6>(b, 64);
    tile_dp<2 * kPair, 4 + kPair, 6>();
    if constexpr (NV == 2) {
      tile_load<7>(b + kOperand, 64);
      tile_dp<2 * kPair + 1, 4 + kPair, 7>();
    }
  }
  template <int NV, int kPair>
  static void load(const float* c) {
    tile_load<2 * kPair>(c, kStride);
    if constexpr (NV == 2) tile_load<2 * kPair + 1>(c + 16, kStride);
  }
  template <int NV, int kPair>
  static void store(float* c) {
    tile_store<2 * kPair>(c, kStride);
    if constexpr (NV == 2) tile_store<2 * kPair + 1>(c + 16, kStride);
  }
  template <int NV>
  static void rescale(int rows, const float* alpha, float* o) {
    for (int r = 0; r < rows; ++r) {
      for (int v = 0; v < NV; ++v) {
        float* at = o + r * kQueries + v * Vec::kLanes;
        (Vec::load(at) * Vec::load(alpha + v * Vec::kLanes)).store(at);
      }
    }
  }
};

}  // namespace
}  // namespace sparsed::cpu
