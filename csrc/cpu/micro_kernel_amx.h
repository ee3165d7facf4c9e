// The small matrix products of attention on AMX-bf16: K Q^T and V^T P^T on tile registers, softmax on AVX-512 vectors.
// A operand: 16 rows of 32 bfloat16. B operand: 16 pairs of rows, 16 columns, pairs side by side. Each is 1 KB,
// contiguous.
//
//   packed Q   [D/32][kVecs]      B operands: 32 d-rows x 16 queries
//   packed K   [D/32][2]          A operands: 16 keys x 32 d           (one group of 32 keys)
//   packed V   [D/16]             A operands: 16 d-rows x 32 keys      (one group; D padded to 32)
//   S^T        [keys][kQueries]   float32
//   P^T        [keys/32][kVecs]   B operands: 32 keys x 16 queries
//   O^T        [D][kQueries]      float32
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/amx.h"
#include "cpu/bf16_pairs.h"
#include "cpu/half.h"
#include "cpu/vec_avx512.h"

namespace sparsed::cpu {
namespace {

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
  static int out_rows(int head_dim) { return 32 * k_steps(head_dim); }
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
    for (int d = 0; d < out_rows(head_dim); d += 32) {
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

  // S^T of `count` groups, s[key][query] = sum over d of K[key][d] Q[query][d], a product at a time: other work goes
  // between them, beside which the tile unit runs.
  template <int NV>
  class Scores {
   public:
    Scores(const std::byte* k, const int32_t* index, int count, const std::byte* q, int head_dim, float* s)
        : k_(k),
          index_(index),
          q_(reinterpret_cast<const Bf16*>(q)),
          s_(s),
          group_bytes_(k_bytes(head_dim)),
          depth_(k_steps(head_dim)),
          left_(count * depth_) {}
    int left() const { return left_; }
    void step() {
      if (at_ == 0) clear<NV>();
      const std::byte* group = k_ + static_cast<size_t>(*index_) * group_bytes_;
      multiply<NV>(reinterpret_cast<const Bf16*>(group) + at_ * 2 * kOperand, q_ + at_ * kVecs * kOperand);
      --left_;
      if (++at_ < depth_) return;
      store<NV>(s_);
      at_ = 0;
      ++index_;
      s_ += kGroup * kQueries;
    }

   private:
    const std::byte* k_;
    const int32_t* index_;
    const Bf16* q_;
    float* s_;
    size_t group_bytes_;
    int depth_, left_, at_ = 0;
  };

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
    for (int d = 0; d < out_rows(head_dim); d += 32) {
      float* out = o + d * kQueries;
      if (fresh) {
        clear<NV>();
      } else {
        if (alpha) rescale<NV>(out, alpha);
        load<NV>(out);
      }
      for (int g = 0; g < count; ++g) {
        const Bf16* values =
            reinterpret_cast<const Bf16*>(v_packed + static_cast<size_t>(index[g]) * v_bytes(head_dim));
        multiply<NV>(values + static_cast<size_t>(d) * 32, p + static_cast<size_t>(g) * kVecs * kOperand);
      }
      store<NV>(out);
    }
  }

 private:
  static constexpr size_t kStride = kQueries * sizeof(float);

  // Up to 32 elements of a row from column d on, zeros outside of the array.
  static Vec load_pairs(const Bf16* rows, int64_t stride, int row, int count, int d, int head_dim) {
    if (row < 0 || row >= count) return Vec::zero();
    const int n = head_dim - d < 32 ? head_dim - d : 32;
    return Vec::load_n(reinterpret_cast<const float*>(rows + row * stride + d), n / 2);
  }

  // Tiles 0-3: a 32 x 16*NV block of float32; 4, 5: A; 6, 7: B.
  template <int NV>
  static void clear() {
    tile_zero<0>();
    tile_zero<2>();
    if constexpr (NV == 2) {
      tile_zero<1>();
      tile_zero<3>();
    }
  }
  template <int NV>
  static void multiply(const Bf16* a, const Bf16* b) {
    tile_load<4>(a, 64);
    tile_load<6>(b, 64);
    tile_dp<0, 4, 6>();
    tile_load<5>(a + kOperand, 64);
    tile_dp<2, 5, 6>();
    if constexpr (NV == 2) {
      tile_load<7>(b + kOperand, 64);
      tile_dp<1, 4, 7>();
      tile_dp<3, 5, 7>();
    }
  }
  template <int NV>
  static void load(const float* c) {
    tile_load<0>(c, kStride);
    tile_load<2>(c + 16 * kQueries, kStride);
    if constexpr (NV == 2) {
      tile_load<1>(c + 16, kStride);
      tile_load<3>(c + 16 * kQueries + 16, kStride);
    }
  }
  template <int NV>
  static void store(float* c) {
    tile_store<0>(c, kStride);
    tile_store<2>(c + 16 * kQueries, kStride);
    if constexpr (NV == 2) {
      tile_store<1>(c + 16, kStride);
      tile_store<3>(c + 16 * kQueries + 16, kStride);
    }
  }
  template <int NV>
  static void rescale(float* o, const float* alpha) {
    for (int r = 0; r < 32; ++r) {
      for (int v = 0; v < NV; ++v) {
        float* at = o + r * kQueries + v * Vec::kLanes;
        (Vec::load(at) * Vec::load(alpha + v * Vec::kLanes)).store(at);
      }
    }
  }
};

}  // namespace
}  // namespace sparsed::cpu
