// The sm_90a kernels' constants and their shared memory on one page. Plain C++: the launcher and the tests read it too.
//
//   O = softmax(Q K^T) V of one query tile, over the key tiles of its walk, with the online softmax of FlashAttention.
//
// Roles    One warpgroup of a block loads: one warp copies by TMA, and one clears the values of masked keys. Two
// compute,
//          64 query rows each. While one uses the tensor cores (wgmma), the other computes its softmax.
// Tiles    A tile has 128 query rows and 128 keys. For query blocks of 64 rows and less (kSplit), both computing
//          warpgroups take the same 64 rows and every other key tile, and they add up their results at the end.
// Order    The scores of tile j + 1 are issued before the product with the values of tile j.
// Grid     Blocks are persistent and take work items in turn.
//
// Shared memory of a block, in bytes from 0:
//   kQueryBytes        Q: panels of 64 columns (128 bytes, with the 128-byte swizzle) of each query group
//   kKeyTiles          K: kStages tiles of 128 keys
//   kValueTiles        V: kStages tiles of 128 keys; none in a selection
//   kResults           the results of warpgroup 1 for warpgroup 0 (kSplit), or the selection's sums
//   kQueriesFull ...   the barriers: two for the queries, five for each stage
#pragma once

#include "cuda/params.h"

namespace sparsed::cuda {
namespace sm90 {

constexpr int kTileRows = 128, kTileKeys = 128;
constexpr int kWarpgroupThreads = 128, kWarpgroupRows = 64;
constexpr int kComputingThreads = 2 * kWarpgroupThreads, kThreads = kComputingThreads + kWarpgroupThreads;
constexpr int kPanelColumns = 64;  // columns of one copy: 128 bytes

}  // namespace sm90

// The constants of one compiled kernel.
template <class T_, int kHeadDim_, Sums kSums_, bool kSplit_, bool kOutput_>
struct Sm90 {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_;  // 64 or 128, at least that of the arrays; further columns are zeros
  static constexpr Sums kSums = kSums_;
  // With kSplit, both warpgroups compute the same 64 rows, take key tiles in turn and add up their results at the end.
  // This is for query blocks of 64 rows and less, whose lists differ. Otherwise they share key tiles and each computes
  // 64 rows.
  static constexpr bool kSplit = kSplit_;
  static constexpr bool kOutput = kOutput_;  // false: only a selection, which reads no values
  static constexpr int kKeys = sm90::kTileKeys;
  using Walk = KeyWalk<kKeys, kSums != Sums::kNone>;
  static constexpr int kRowTiles = 1, kWarpRows = 16, kRows = 2;
  static constexpr int kStages = kOutput ? 2 : 4;
  static constexpr int kPanels = kHeadDim / sm90::kPanelColumns;
  static constexpr int kQueryGroups = kSplit ? 1 : 2;
  static constexpr int kThreads = sm90::kThreads;
  // Registers per thread. A block has 65536.
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;

  static constexpr uint32_t kPanelBytes = kKeys * 128, kTileBytes = kPanels * kPanelBytes;
  static constexpr uint32_t kQueryPanelBytes = sm90::kWarpgroupRows * 128,
                            kQueryGroupBytes = kPanels * kQueryPanelBytes;
  static constexpr uint32_t kQueryBytes = kQueryGroups * kQueryGroupBytes;
  static constexpr uint32_t kKeyTiles = kQueryBytes, kValueTiles = kKeyTiles + kStages * kTileBytes;
  static constexpr uint32_t kResults = kValueTiles + (kOutput ? kStages * kTileBytes : 0);
  static constexpr uint32_t kResultBytes = kSplit                 ? (kHeadDim / 2 + 4) * sm90::kWarpgroupThreads * 4
                                           : kSums == Sums::kNone ? 0
                                                                  : (kScoreBytes + 7) / 8 * 8;
  // Barriers: queries have arrived (full) or are no longer read (empty), and the same for the keys and values of each
  // stage. kRaw: values have arrived, but those of masked keys are not yet zeros.
  static constexpr uint32_t kQueriesFull = kResults + kResultBytes, kQueriesEmpty = kQueriesFull + 8;
  static constexpr uint32_t kRing = kQueriesFull + 16, kRingStage = 40;
  static constexpr uint32_t kKeysFull = 0, kKeysEmpty = 8, kValuesFull = 16, kValuesEmpty = 24, kRaw = 32;
  static constexpr int kSharedBytes = kRing + kStages * kRingStage;
};

// Calls f on the host with the Sm90 type of the requested kernel.
template <class T, int kHeadDim, class F>
auto with_sm90(Sums sums, bool split, bool output, const F& f) {
  switch (sums) {
    case Sums::kNone:
      return split ? f(Sm90<T, kHeadDim, Sums::kNone, true, true>{}) : f(Sm90<T, kHeadDim, Sums::kNone, false, true>{});
    case Sums::kShared:
      return output ? f(Sm90<T, kHeadDim, Sums::kShared, false, true>{})
                    : f(Sm90<T, kHeadDim, Sums::kShared, false, false>{});
    default:
      return output ? f(Sm90<T, kHeadDim, Sums::kSeparate, false, true>{})
                    : f(Sm90<T, kHeadDim, Sums::kSeparate, false, false>{});
  }
}

}  // namespace sparsed::cuda
