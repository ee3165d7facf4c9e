// The sm_80 kernels' constants and their shared memory on one page. Plain C++: the launcher and the tests read it too.
//
//   O = softmax(Q K^T) V of one query tile, over the key tiles of its walk, with the online softmax of FlashAttention.
//
// Tiles    A block has 1, 2 or 4 warps. A warp holds 16 or 32 query rows, their scores and their output in registers;
//          a key tile has 64 keys, or 32 if the selection's sums need the registers.
// Products They use mma.sync m16n8k16. Tiles are copied by cp.async, 16 bytes per thread, and swizzled over the banks.
// Stages   Up to head_dim 64 there are two K and two V tiles, so that the next ones load during the products. Above
// that
//          there is one of each: V loads during Q K^T, and the next K during P V.
//
// Shared memory of a block, in bytes from 0:
//   Q        warps * kWarpRows rows of kRowBytes     (at the end, the output passes through it)
//   K        kStages tiles of kKeys rows             (at the end, the selection's sums use K and V)
//   V        kStages tiles of kKeys rows
#pragma once

#include "cuda/params.h"

namespace sparsed::cuda {
namespace sm80 {

constexpr int kMaxWarps = 4;  // of a block

// Query rows of a warp: 32 if its registers can hold them.
constexpr int warp_rows(int head_dim, Sums sums) {
  return head_dim > 128 || (head_dim == 128 && sums == Sums::kSeparate) ? 16 : 32;
}

}  // namespace sm80

// The constants of one compiled kernel.
template <class T_, int kHeadDim_, Sums kSums_>
struct Sm80 {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_;  // at least that of the arrays; further columns are zeros
  static constexpr Sums kSums = kSums_;
  // Keys of a tile. Fewer leave registers for the selection's sums.
  static constexpr int kKeys = kSums == Sums::kNone || (kHeadDim <= 64 && kSums == Sums::kShared) ? 64 : 32;
  using Walk = KeyWalk<kKeys, kSums != Sums::kNone>;
  static constexpr int kWarpRows = sm80::warp_rows(kHeadDim, kSums);
  static constexpr int kRowTiles = kWarpRows / 16;
  static constexpr int kRows = 2 * kRowTiles;  // query rows per thread
  // Two K and two V tiles if they are small, else one of each, which loads while the other is used.
  static constexpr int kStages = kHeadDim <= 64 ? 2 : 1;
  static constexpr int kRowBytes = kHeadDim * 2;
  static constexpr int kTileBytes = kKeys * kRowBytes;

  static_assert(kSums == Sums::kNone || 2 * kStages * kTileBytes >= kScoreBytes);

  static constexpr int q_bytes(int warps) { return warps * kWarpRows * kRowBytes; }
  static constexpr int shared_bytes(int warps) { return q_bytes(warps) + 2 * kStages * kTileBytes; }
};

}  // namespace sparsed::cuda
