// The sm_80 kernels' constants and their shared memory on one page. Plain C++: the launcher and the tests read it too.
//
//   O = softmax(Q K^T) V of one query tile, over the key tiles of its walk, with the online softmax of FlashAttention.
//
// Tiles    A block has 1, 2 or 4 warps. A warp holds 16 or 32 query rows, their scores and their output in registers;
//          a key tile has 64 keys, or 32 where the selection's sums need the registers.
// Products mma.sync m16n8k16; tiles come by cp.async, 16 bytes a thread, swizzled over the banks.
// Stages   Two K and V tiles each up to head_dim 64, so that the next ones load during the products. Above that one
//          each: V loads during Q K^T, the next K during P V.
//
// Shared memory of a block, in bytes from 0:
//   Q        warps * kWarpRows rows of kRowBytes     (the output goes through it in the end)
//   K        kStages tiles of kKeys rows             (the selection's sums go through K and V in the end)
//   V        kStages tiles of kKeys rows
#pragma once

#include "cuda/params.h"

namespace sparsed::cuda {
namespace sm80 {

constexpr int kMaxWarps = 4;  // of a block

// Query rows of a warp: 32 where its registers hold them.
constexpr int warp_rows(int head_dim, Sums sums) {
  return head_dim > 128 || (head_dim == 128 && sums == Sums::kOwn) ? 16 : 32;
}

}  // namespace sm80

// The constants of one compiled kernel.
template <class T_, int kHeadDim_, Sums kSums_>
struct Sm80 {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_;  // of the arrays or more: columns beyond are zeros
  static constexpr Sums kSums = kSums_;
  // Keys of a tile: as many as leave registers for the selection's sums.
  static constexpr int kKeys = kSums == Sums::kNone || (kHeadDim <= 64 && kSums == Sums::kShared) ? 64 : 32;
  using Walk = KeyWalk<kKeys, kSums != Sums::kNone>;
  static constexpr int kWarpRows = sm80::warp_rows(kHeadDim, kSums);
  static constexpr int kRowTiles = kWarpRows / 16;
  static constexpr int kRows = 2 * kRowTiles;  // query rows per thread
  // Two K and V tiles each where they are small; else one each, loaded while the other is used.
  static constexpr int kStages = kHeadDim <= 64 ? 2 : 1;
  static constexpr int kRowBytes = kHeadDim * 2;
  static constexpr int kTileBytes = kKeys * kRowBytes;

  static_assert(kSums == Sums::kNone || 2 * kStages * kTileBytes >= kScoreBytes);

  static constexpr int q_bytes(int warps) { return warps * kWarpRows * kRowBytes; }
  static constexpr int shared_bytes(int warps) { return q_bytes(warps) + 2 * kStages * kTileBytes; }
};

}  // namespace sparsed::cuda
