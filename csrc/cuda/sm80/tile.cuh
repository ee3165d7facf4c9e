// Tiles of 16-bit elements in shared memory, and the products of a warp's rows with them, which use mma.sync m16n8k16.
#pragma once

#include "cuda/common/block_sums.cuh"
#include "cuda/common/key_walk.cuh"
#include "cuda/common/prims.cuh"
#include "cuda/common/softmax_rows.cuh"
#include "cuda/sm80/config.h"

namespace sparsed::cuda {

// Returns the address of 16 bytes of a row (`chunk` counts 8 elements). The exclusive or spreads the rows that
// ldmatrix, copies and stores access together over all banks.
template <int kHeadDim>
SPARSED_DEVICE uint32_t swizzled(int row, int chunk) {
  constexpr int kChunks = kHeadDim / 8;
  static_assert(kChunks % 4 == 0);
  const int x = kChunks % 8 == 0 ? row & 7 : (row >> 1) & 3;
  return static_cast<uint32_t>(row * kChunks + (chunk ^ x)) * 16;
}

// The addresses of the chunks 2k and 2k + 1 (`odd`) of one row. Within a period of k they differ by an exclusive or,
// and from period to period by a constant. So a row takes one register for any number of chunks.
template <int kHeadDim>
struct RowChunks {
  static constexpr int kPeriod = kHeadDim / 8 % 8 == 0 ? 4 : 2;
  uint32_t row;  // address of the row
  uint32_t flip;

  SPARSED_DEVICE RowChunks(uint32_t shared, int row_index, int odd) {
    const int index = opaque(row_index);
    row = shared + static_cast<uint32_t>(index * kHeadDim * 2);
    flip = static_cast<uint32_t>((odd ^ (kPeriod == 4 ? index & 7 : (index >> 1) & 3)) * 16);
  }
  // The address of a chunk `rows` rows further down; `rows` is a multiple of 8.
  SPARSED_DEVICE uint32_t at(int k, int rows = 0) const {
    return row + (flip ^ static_cast<uint32_t>(k % kPeriod * 32)) +
           static_cast<uint32_t>(k / kPeriod * kPeriod * 32 + rows * kHeadDim * 2);
  }
};

// Copies the query rows [row, row_end) of a head. The other rows of the warps, and columns beyond the array, become 0.
template <class Traits>
SPARSED_DEVICE void load_q(const AttentionArgs& args, int b, int h, int row, int row_end, uint32_t shared) {
  constexpr int kChunks = Traits::kHeadDim / 8;
  const int rows = block_threads() / 32 * Traits::kWarpRows;
  const auto* base = static_cast<const typename Traits::T*>(args.q.data) + b * args.q.batch + h * args.q.head;
  for (int i = thread_index(); i < rows * kChunks; i += block_threads()) {
    const int r = i / kChunks, chunk = i % kChunks;
    const bool live = row + r < row_end && chunk * 8 < args.head_dim;
    const int64_t offset = live ? (row + r) * args.q.token + chunk * 8 : 0;
    copy_async(shared + swizzled<Traits::kHeadDim>(r, chunk), base + offset, live);
  }
}

// Copies the keys at positions [first, first + kKeys) of a walk. Keys that do not take part become zeros, so that the
// content of their memory (a NaN, for example) cannot affect the result.
template <class Traits>
SPARSED_DEVICE void load_keys(const typename Traits::Walk& walk, const Array& array, int kv_head, int first,
                              uint32_t shared) {
  constexpr int kChunks = Traits::kHeadDim / 8;
  const auto* base =
      static_cast<const typename Traits::T*>(array.data) + opaque(walk.b) * array.batch + opaque(kv_head) * array.head;
  const bool contiguous = walk.contiguous();
  const int start = contiguous ? walk.key(first) : 0, key_end = walk.key_end(first);
  SPARSED_UNROLL_BY(1)
  for (int i = thread_index(); i < Traits::kKeys * kChunks; i += block_threads()) {
    const int r = i / kChunks, chunk = i % kChunks, position = first + r;
    const int key = contiguous ? start + r : position < walk.positions ? walk.key(position) : 0;
    const bool live = chunk * 8 < walk.args.head_dim && walk.live(position, key, key_end);
    const int64_t offset = live ? key * array.token + chunk * 8 : 0;
    copy_async(shared + swizzled<Traits::kHeadDim>(r, chunk), base + offset, live);
  }
}

// Computes rS = Q K^T of this warp's rows, in tiles of 16 rows x 8 keys in the accumulator layout of mma.
template <class Traits>
SPARSED_DEVICE void multiply_qk(uint32_t sQ, uint32_t sK, float (&rS)[Traits::kRowTiles][Traits::kKeys / 8][4]) {
  constexpr int kRowTiles = Traits::kRowTiles;
  const int lane = thread_index() % 32, warp = thread_index() / 32;
  SPARSED_UNROLL
  for (int t = 0; t < kRowTiles; ++t) {
    SPARSED_UNROLL
    for (int n = 0; n < Traits::kKeys / 8; ++n) {
      SPARSED_UNROLL
      for (int i = 0; i < 4; ++i) rS[t][n][i] = 0.f;
    }
  }
  const RowChunks<Traits::kHeadDim> q_chunks(sQ, warp * Traits::kWarpRows + lane % 16, lane / 16);
  const RowChunks<Traits::kHeadDim> k_chunks(sK, lane / 16 * 8 + lane % 8, lane / 8 % 2);
  SPARSED_UNROLL
  for (int k = 0; k < Traits::kHeadDim / 16; ++k) {
    uint32_t rQ[kRowTiles][4];
    SPARSED_UNROLL
    for (int t = 0; t < kRowTiles; ++t) {
      load_matrices(rQ[t], q_chunks.at(k, t * 16));
    }
    SPARSED_UNROLL
    for (int n = 0; n < Traits::kKeys / 16; ++n) {
      uint32_t rK[4];
      load_matrices(rK, k_chunks.at(k, n * 16));
      SPARSED_UNROLL
      for (int t = 0; t < kRowTiles; ++t) {
        mma<typename Traits::T>(rS[t][2 * n], rQ[t], rK[0], rK[1]);
        mma<typename Traits::T>(rS[t][2 * n + 1], rQ[t], rK[2], rK[3]);
      }
    }
  }
}

// Computes rO += P V.
template <class Traits>
SPARSED_DEVICE void multiply_pv(const Probabilities<Traits>& rP, uint32_t sV,
                                float (&rO)[Traits::kRowTiles][Traits::kHeadDim / 8][4]) {
  const int lane = thread_index() % 32;
  const RowChunks<Traits::kHeadDim> v_chunks(sV, lane % 16, lane / 16);
  SPARSED_UNROLL
  for (int k = 0; k < Traits::kKeys / 16; ++k) {
    SPARSED_UNROLL
    for (int d = 0; d < Traits::kHeadDim / 16; ++d) {
      uint32_t rV[4];
      load_matrices_transposed(rV, v_chunks.at(d, k * 16));
      SPARSED_UNROLL
      for (int t = 0; t < Traits::kRowTiles; ++t) {
        mma<typename Traits::T>(rO[t][2 * d], rP[t][k], rV[0], rV[1]);
        mma<typename Traits::T>(rO[t][2 * d + 1], rP[t][k], rV[2], rV[3]);
      }
    }
  }
}

// Stores this warp's rows of the output. They pass through its rows of Q in shared memory, so that each store has 16
// bytes.
template <class Traits>
SPARSED_DEVICE void store_output(const AttentionArgs& args, int b, int h, int row, int row_end,
                                 const float (&rO)[Traits::kRowTiles][Traits::kHeadDim / 8][4],
                                 const float (&inverse)[Traits::kRows], uint32_t sQ) {
  using T = typename Traits::T;
  constexpr int kChunks = Traits::kHeadDim / 8;
  const int lane = thread_index() % 32, first = thread_index() / 32 * Traits::kWarpRows;
  const RowChunks<Traits::kHeadDim> chunks(sQ, first + lane / 4, 0);
  SPARSED_UNROLL
  for (int d = 0; d < kChunks; ++d) {
    const uint32_t address = (chunks.at(d / 2) ^ static_cast<uint32_t>(d % 2 * 16)) + lane % 4 * 4;
    SPARSED_UNROLL
    for (int r = 0; r < Traits::kRows; ++r) {
      const float* pair = &rO[r / 2][d][r % 2 * 2];
      store_shared(address + r * 8 * Traits::kRowBytes, pack_pair<T>(pair[0] * inverse[r], pair[1] * inverse[r]));
    }
  }
  sync_warp();
  auto* base = static_cast<T*>(args.out.data) + b * args.out.batch + h * args.out.head;
  SPARSED_UNROLL_BY(4)
  for (int i = lane; i < Traits::kWarpRows * kChunks; i += 32) {
    const int r = first + i / kChunks, chunk = i % kChunks;
    const uint4 value = load_shared16(sQ + swizzled<Traits::kHeadDim>(r, chunk));
    if (row + r >= row_end || chunk * 8 >= args.head_dim) continue;
    store_global(reinterpret_cast<uint4*>(base + (row + r) * args.out.token + chunk * 8), value);
  }
}

}  // namespace sparsed::cuda
