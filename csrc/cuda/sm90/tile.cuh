// The ring of key and value tiles in shared memory, the products with them by wgmma, and the stores of output rows.
#pragma once

#include "cuda/common/block_sums.cuh"
#include "cuda/common/key_walk.cuh"
#include "cuda/sm90/config.h"
#include "cuda/sm90/prims.cuh"

namespace sparsed::cuda {

// The slot of the count-th tile in the ring.
template <class Traits>
struct Slot {
  uint32_t count;
  SPARSED_DEVICE uint32_t stage() const { return count % Traits::kStages; }
  SPARSED_DEVICE uint32_t round() const { return count / Traits::kStages & 1; }  // parity of a full slot
  SPARSED_DEVICE uint32_t barrier(uint32_t which) const { return Traits::kRing + stage() * Traits::kRingStage + which; }
  SPARSED_DEVICE uint32_t keys() const { return Traits::kKeyTiles + stage() * Traits::kTileBytes; }
  SPARSED_DEVICE uint32_t values() const { return Traits::kValueTiles + stage() * Traits::kTileBytes; }
};

// Initialises the barriers. One thread calls this before any thread uses them.
template <class Traits>
SPARSED_DEVICE void make_barriers() {
  constexpr int kWarps = sm90::kComputingThreads / 32, kTileWarps = Traits::kSplit ? kWarps / 2 : kWarps;
  mbarrier_init(Traits::kQueriesFull, 1);
  mbarrier_init(Traits::kQueriesEmpty, kWarps);
  for (uint32_t stage = 0; stage < Traits::kStages; ++stage) {
    const Slot<Traits> slot{stage};
    mbarrier_init(slot.barrier(Traits::kKeysFull), 1);
    mbarrier_init(slot.barrier(Traits::kKeysEmpty), kTileWarps);
    mbarrier_init(slot.barrier(Traits::kValuesFull), 1);
    mbarrier_init(slot.barrier(Traits::kValuesEmpty), kTileWarps);
    mbarrier_init(slot.barrier(Traits::kRaw), 1);
  }
  mbarrier_init_fence();
}

// Issues rS = Q K^T of a warpgroup's rows as one group. Addresses in descriptors advance in units of 16 bytes.
template <class Traits>
SPARSED_DEVICE void issue_qk(int group, const Slot<Traits>& slot, float (&rS)[Traits::kKeys / 8][4]) {
  const uint64_t q = matrix_descriptor(Traits::kSplit ? 0 : group * Traits::kQueryGroupBytes, 0, 1024);
  const uint64_t k = matrix_descriptor(slot.keys(), 0, 1024);
  wgmma_fence(rS);
  SPARSED_UNROLL
  for (uint32_t i = 0; i < Traits::kHeadDim / 16; ++i) {
    const uint32_t inner = i % 4 * 32;
    wgmma<typename Traits::T, false>(rS, q + (i / 4 * Traits::kQueryPanelBytes + inner) / 16,
                                     k + (i / 4 * Traits::kPanelBytes + inner) / 16, i > 0);
  }
  wgmma_commit();
}

// Issues rO += P V as one group.
template <class Traits>
SPARSED_DEVICE void issue_pv(uint32_t (&rP)[Traits::kKeys / 16][4], const Slot<Traits>& slot,
                             float (&rO)[Traits::kHeadDim / 8][4]) {
  const uint64_t v = matrix_descriptor(slot.values(), Traits::kPanelBytes, 1024);
  wgmma_fence(rO, rP);
  SPARSED_UNROLL
  for (uint32_t i = 0; i < Traits::kKeys / 16; ++i) wgmma<typename Traits::T, true>(rO, rP[i], v + i * 2048 / 16, true);
  wgmma_commit();
}

// Stores a warpgroup's rows of the output. The lanes of a quad exchange values, so that each stores 16 bytes of a row.
template <class Traits>
SPARSED_DEVICE void store_rows(const AttentionArgs& args, int b, int h, int row, int row_end,
                               const float (&rO)[Traits::kHeadDim / 8][4], const float (&inverse)[2]) {
  using T = typename Traits::T;
  const int lane = thread_index() % 4;
  const bool odd = lane & 1, high = lane & 2;
  auto* base = static_cast<T*>(args.out.data) + b * args.out.batch + h * args.out.head;
  SPARSED_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int query_row = row + half * 8;
    const float scale = inverse[half];
    SPARSED_UNROLL
    for (int d = 0; d < Traits::kHeadDim / 8; d += 4) {
      uint32_t word[4];  // of columns 8 (d + i) + 2 lane; then of columns 8 (d + lane) + 2 i
      SPARSED_UNROLL
      for (int i = 0; i < 4; ++i) {
        // 0 * NaN would be NaN, and a row without a key must be 0.
        const float x = scale == 0.f ? 0.f : rO[d + i][2 * half] * scale;
        const float y = scale == 0.f ? 0.f : rO[d + i][2 * half + 1] * scale;
        word[i] = pack_pair<T>(x, y);
      }
      SPARSED_UNROLL
      for (int i = 0; i < 4; i += 2) {
        const uint32_t other = shuffle_xor(odd ? word[i] : word[i + 1], 1);
        (odd ? word[i] : word[i + 1]) = other;
      }
      SPARSED_UNROLL
      for (int i = 0; i < 2; ++i) {
        const uint32_t other = shuffle_xor(high ? word[i] : word[i + 2], 2);
        (high ? word[i] : word[i + 2]) = other;
      }
      const int column = 8 * (d + lane);
      if (query_row < row_end && column < args.head_dim) {
        store_global(reinterpret_cast<uint4*>(base + query_row * args.out.token + column),
                     uint4{word[0], word[1], word[2], word[3]});
      }
    }
  }
}

}  // namespace sparsed::cuda
