// The small matrix products of attention on vectors, one query per lane, over a multiply-add step: float32 products one
// by one (mul_float.h), or bfloat16 products in pairs (mul_bf16.h). A step covers kDepth inputs.
//
//   packed Q   [D/kDepth][kQueries]             one query tile, transposed
//   packed K   [D/kDepth][kGroup]               one group: a row holds the group's keys, to be broadcast one by one
//   packed V   [D/kRows][kGroup/kDepth][kRows]  one group: for each panel of d-rows, the keys in order
//   S^T        [keys][kQueries]                 float32
//   P^T        [keys/kDepth][kQueries]
//   O^T        [D][kQueries]                    float32
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/half.h"

namespace sparsed::cpu {
namespace {

template <class Mul>
struct VectorMicroKernel {
  using Vec = typename Mul::Vec;
  using Elem = typename Mul::Elem;
  using Prob = typename Mul::Prob;
  using Pairs = typename Mul::Pairs;
  static constexpr bool kBf16Only = sizeof(Prob) == 2;
  static constexpr int kDepth = Mul::kDepth;
  static constexpr int kGroup = 16;
  static constexpr int kVecs = 2;
  static constexpr int kQueries = kVecs * Vec::kLanes;
  static constexpr int kRows = Vec::kLanes == 16 ? 8 : 4;  // kRows x kVecs accumulators fill the register file
  static constexpr int kItemQueries = 256;
  static constexpr int kChunk = Vec::kLanes == 16 ? 128 : 256;  // its scores and probabilities stay in L1
  static constexpr int kStep = kChunk;

  static size_t k_bytes(int head_dim) { return sizeof(Prob) * kGroup * head_dim; }
  static size_t v_bytes(int head_dim) { return sizeof(Prob) * kGroup * head_dim; }
  static size_t q_bytes(int head_dim) { return sizeof(Prob) * kQueries * head_dim; }
  static constexpr bool kSumsInOutput = false;
  static int out_rows(int head_dim) { return head_dim; }
  static void begin() {}
  static void end() {}

  template <class T>
  static void pack_k(const T* rows, int64_t stride, int first, int count, int head_dim, std::byte* group) {
    transpose_rows<kGroup>(rows, stride, count, head_dim, count, reinterpret_cast<Elem*>(group) + first);
  }

  template <class T>
  static void pack_q(const T* rows, int64_t stride, int count, int head_dim, std::byte* q) {
    transpose_rows<kQueries>(rows, stride, count, head_dim, kQueries, reinterpret_cast<Elem*>(q));
  }

  template <class T>
  static void pack_v(const T* rows, int64_t stride, int first, int count, int head_dim, std::byte* group) {
    const int end = first + count;
    for (int d = 0; d < head_dim; d += kRows) {
      Prob* panel = reinterpret_cast<Prob*>(group) + d * kGroup;
      for (int key = first - first % kDepth; key < end; key += kDepth) {
        const T* keys[kDepth];
        for (int i = 0; i < kDepth; ++i) {
          const bool given = key + i >= first && key + i < end;
          keys[i] = given ? rows + (key + i - first) * stride + d : nullptr;
        }
        Mul::template pack_column<kRows>(keys, panel + key * kRows);
      }
    }
  }

  // S^T of `count` groups, s[key][query] = sum over d of K[key][d] Q[query][d].
  template <int NV>
  static void scores(const std::byte* k, const int32_t* index, int count, const std::byte* q, int head_dim, float* s) {
    for (int g = 0; g < count; ++g) {
      const Elem* keys = reinterpret_cast<const Elem*>(k + static_cast<size_t>(index[g]) * k_bytes(head_dim));
      for (int first = 0; first < kGroup; first += kRows, s += kRows * kQueries) {
        Vec acc[kRows][NV];
        clear(acc);
        for (int d = 0; d < head_dim / kDepth; ++d) {
          step(acc, keys + d * kGroup + first, reinterpret_cast<const Elem*>(q) + d * kQueries);
        }
        for (int r = 0; r < kRows; ++r) {
          for (int v = 0; v < NV; ++v) acc[r][v].store(s + r * kQueries + v * Vec::kLanes);
        }
      }
    }
  }

  // 2^x, as exact as the probabilities are stored.
  static Vec exp2_probability(Vec x) { return Mul::exp2_probability(x); }

  // Probabilities of keys key and key + 1 (key even) for the query vector v.
  static Prob* pairs_at(Prob* p, int key, int v) { return p + key * kQueries + v * Vec::kLanes * kDepth; }
  static void store_pair(Prob* p, int key, int v, Vec first, Vec second) {
    Mul::store_pair(pairs_at(p, key, v), kQueries, first, second);
  }

  // O^T = O^T * alpha + V^T P^T over `count` groups. fresh: O^T starts at 0; alpha: nullptr where nothing changes.
  // The groups are summed by themselves before they meet O^T: long sums in float32 stay as exact as blocked ones.
  template <int NV>
  static void accumulate(const std::byte* v_packed, const int32_t* index, int count, const Prob* p, int head_dim,
                         bool fresh, const float* alpha, float* o) {
    for (int d = 0; d < head_dim; d += kRows) {
      Vec acc[kRows][NV];
      clear(acc);
      for (int g = 0; g < count; ++g) {
        const Elem* values =
            reinterpret_cast<const Elem*>(v_packed + static_cast<size_t>(index[g]) * v_bytes(head_dim)) +
            d * kGroup / kDepth;
        const Elem* probs = reinterpret_cast<const Elem*>(p + static_cast<size_t>(g) * kGroup * kQueries);
        for (int i = 0; i < kGroup / kDepth; ++i) step(acc, values + i * kRows, probs + i * kQueries);
      }
      for (int v = 0; v < NV; ++v) {
        const Vec scale = alpha ? Vec::load(alpha + v * Vec::kLanes) : Vec::set(1.f);
        for (int r = 0; r < kRows; ++r) {
          float* out = o + (d + r) * kQueries + v * Vec::kLanes;
          (fresh ? acc[r][v] : fma(Vec::load(out), scale, acc[r][v])).store(out);
        }
      }
    }
  }

 private:
  template <int NV>
  static void clear(Vec (&acc)[kRows][NV]) {
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < NV; ++v) acc[r][v] = Vec::zero();
    }
  }

  // acc[r][v] += column[r] * row[v].
  template <int NV>
  static void step(Vec (&acc)[kRows][NV], const Elem* column, const Elem* row) {
    typename Mul::Operand x[NV];
    for (int v = 0; v < NV; ++v) x[v] = Mul::load(row + v * Vec::kLanes);
    for (int r = 0; r < kRows; ++r) {
      const typename Mul::Operand c = Mul::broadcast(column + r);
      for (int v = 0; v < NV; ++v) acc[r][v] = Mul::multiply_add(c, x[v], acc[r][v]);
    }
  }

  // out[d][i] = rows[i][d] in `columns` columns of kWidth, zeros from `count` on.
  template <int kWidth, class T>
  static void transpose_rows(const T* rows, int64_t stride, int count, int head_dim, int columns, Elem* out) {
    const int depth = head_dim / kDepth;
    for (int first = 0; first < columns; first += Vec::kLanes) {
      const int lanes = columns - first < Vec::kLanes ? columns - first : Vec::kLanes;
      for (int d = 0; d < depth; d += Vec::kLanes) {
        const int n = depth - d < Vec::kLanes ? depth - d : Vec::kLanes;
        Vec block[Vec::kLanes];
        for (int i = 0; i < Vec::kLanes; ++i) {
          const bool real = first + i < count;
          __builtin_prefetch(rows + (first + i + Vec::kLanes) * stride + d * kDepth);  // what comes next
          block[i] = real ? Mul::load_elems(rows + (first + i) * stride + d * kDepth, n) : Vec::zero();
        }
        transpose(block);
        for (int i = 0; i < n; ++i) {
          block[i].store_n(reinterpret_cast<float*>(out + (d + i) * kWidth + first), lanes);
        }
      }
    }
  }
};

}  // namespace
}  // namespace sparsed::cpu
