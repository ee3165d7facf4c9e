// The arguments of the kernels, passed by value: plain structs of device pointers. The launcher checks that sizes fit
// int.
#pragma once

#include <cstdint>

namespace sparsed::cuda {

// [B, heads, tokens, D] with a contiguous last axis; strides in elements.
struct Array {
  void* data = nullptr;
  int64_t batch = 0, head = 0, token = 0;
};

// The source of the selection's sums.
enum class Sums {
  kNone,      // no selection
  kShared,    // the probabilities of the attention
  kSeparate,  // a second exponential, because the selection has another scale or a separate softmax over the generation
};

// A partial sum of the softmax of one (row, key block), stored until the row is done.
struct alignas(8) PartialSum {
  float sum;   // of 2^(score * scale - base)
  float base;  // the running maximum at that time
};

// The shared memory in which a tile's probability mass is summed over its rows, for 4 warps with 2 halves each.
constexpr int kScoreColumns = 128;  // key blocks at a time
constexpr int kScoreStride = kScoreColumns + 1;
constexpr int kScoreBytes = 8 * kScoreStride * 4;

// The selection inside the dense pass.
struct SelectArgs {
  float scale = 0;  // of the selection, times log2(e)
  bool generation_apart = false;
  int threads = 0;  // the first threads of a block, which compute
  int block_shift = 0;
  int kv_blocks = 0;
  int q_blocks = 0;
  int generation_block = 0;       // the first block of the generation
  PartialSum* partial = nullptr;  // [grid, kv_blocks + 1, threads]
  float* scores = nullptr;        // [B, H, q_blocks, kv_blocks] mass under the softmax over all keys
  float* generation = nullptr;    // the same under the softmax over generation keys; with generation_apart
};

// The keys that a query tile sees, in tiles of kKeys: common/key_walk.cuh.
template <int kKeys, bool kParts>
struct KeyWalk;

struct AttentionArgs {
  Array q, k, v, out;                       // v and out are nullptr if only a selection is computed
  float* lse = nullptr;                     // [B, H, L] or nullptr
  const uint8_t* key_mask = nullptr;        // [B, S] or nullptr
  int batch = 0, heads = 0, gqa_ratio = 0;  // gqa_ratio: query heads per key/value head
  int q_len = 0, kv_len = 0, head_dim = 0;
  float scale = 0;  // times log2(e)

  // The selected key blocks of query block i are the counts[row] entries from indices[row * list_stride] on, with
  // row = (b H + h) q_blocks + i. With counts == nullptr, all keys are selected.
  const int32_t* counts = nullptr;
  const int32_t* indices = nullptr;
  int64_t list_stride = 0;
  int list_shift = 0;  // log2 of the block size
  int list_rows = 0;   // q_blocks

  int tile_rows = 0;  // query rows of a block's tile
  int item_rows = 0;  // query rows of a work item: a multiple of tile_rows
  int items = 0;      // per head; batch * heads * items fits int

  // [B, H, items]: the order in which blocks take the items of a head (sm_90a). nullptr: by index.
  const int32_t* order = nullptr;

  SelectArgs select;  // of kernels that select
};

// An array, box and swizzle of tile copies in the driver's encoding. The driver's type CUtensorMap is aligned to 64
// bytes up to CUDA 12 and to 128 from CUDA 13 on. This type always has 128, so that host and device agree on the layout
// of the kernels' arguments.
struct alignas(128) TensorMap {
  uint64_t opaque[16];
};

// The arguments of the sm_90a kernels.
struct Sm90Args {
  AttentionArgs attention;
  TensorMap q, k, v;
};

}  // namespace sparsed::cuda
