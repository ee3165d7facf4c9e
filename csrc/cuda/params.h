// What the kernels are given, by value. Plain structs of device pointers; sizes fit int (checked by the launcher).
#pragma once

#include <cstdint>

namespace sparsed::cuda {

// [B, heads, tokens, D] with a contiguous last axis; strides in elements.
struct Array {
  void* data = nullptr;
  int64_t batch = 0, head = 0, token = 0;
};

// Where the selection's sums come from.
enum class Sums {
  kNone,    // no selection
  kShared,  // the attention's own probabilities
  kOwn,     // a second exponential: the selection has another scale, or a softmax over the generation alone
};

// One softmax partial sum per (row, key block), kept until the row is done.
struct alignas(8) PartialSum {
  float sum;   // of 2^(score * scale - base)
  float base;  // the running maximum at that time
};

// Shared memory in which a tile's probability mass is summed over its rows: 4 warps, 2 halves.
constexpr int kScoreColumns = 128;  // key blocks at a time
constexpr int kScoreStride = kScoreColumns + 1;
constexpr int kScoreBytes = 8 * kScoreStride * 4;

// The selection inside the dense pass.
struct SelectArgs {
  float scale = 0;  // of the selection, times log2(e)
  bool generation_apart = false;
  int threads = 0;  // of a block that compute: the first ones
  int block_shift = 0;
  int kv_blocks = 0;
  int q_blocks = 0;
  int generation_block = 0;       // first one
  PartialSum* partial = nullptr;  // [grid, kv_blocks + 1, threads]
  float* scores = nullptr;        // [B, H, q_blocks, kv_blocks] mass under the softmax over all keys
  float* generation = nullptr;    // the same under the softmax over generation keys; with generation_apart
};

// The keys that a query tile sees, in tiles of kKeys: common/key_walk.cuh.
template <int kKeys, bool kParts>
struct KeyWalk;

struct AttentionArgs {
  Array q, k, v, out;                   // v, out: nullptr in a selection alone
  float* lse = nullptr;                 // [B, H, L] or nullptr
  const uint8_t* key_mask = nullptr;    // [B, S] or nullptr
  int batch = 0, heads = 0, group = 0;  // group: query heads per key/value head
  int q_len = 0, kv_len = 0, head_dim = 0;
  float scale = 0;  // times log2(e)

  // Selected key blocks of query block i: indices[row * list_stride ...], counts[row] of them, row = (b H + h) q_blocks
  // + i. counts == nullptr: all keys.
  const int32_t* counts = nullptr;
  const int32_t* indices = nullptr;
  int64_t list_stride = 0;
  int list_shift = 0;  // log2 of the block size
  int list_rows = 0;   // q_blocks

  int tile_rows = 0;  // query rows of a block's tile
  int item_rows = 0;  // query rows of a work item: a multiple of tile_rows
  int items = 0;      // per head; batch * heads * items fits int

  const int32_t* order =
      nullptr;  // [B, H, items] how a head's items are taken in turn, or nullptr: as they come (sm_90a)

  SelectArgs select;  // kernels that select
};

// What the driver encodes: array, box and swizzle of tile copies. A type of our own, so that host and device lay out
// the kernels' arguments alike: the driver's CUtensorMap is aligned to 64 bytes up to CUDA 12 and to 128 from CUDA 13
// on.
struct alignas(128) TensorMap {
  uint64_t opaque[16];
};

// Of the sm_90a kernels.
struct Sm90Args {
  AttentionArgs attention;
  TensorMap q, k, v;
};

}  // namespace sparsed::cuda
