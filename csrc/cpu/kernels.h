// What an instruction set provides: leaf kernels behind plain function pointers. Drivers (attention.cpp, ops.cpp) own
// memory, threads and planning, and are compiled once for the baseline; isa_*.cpp fill these tables.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor.h"

namespace sparsed::cpu {

struct LinearKernels;
struct OpsKernels;

// Keys are packed in groups of `group_keys`; a group list is what an item visits, in order.
struct KeyGroups {
  const int32_t* index;  // [count] group numbers
  const uint32_t* live;  // [count] bit j: key j of the group takes part
  int64_t count;
};

// Rows of K or V of one head to be packed: the keys [first, first + count) of a group, whose others stay as they are.
struct PackRows {
  const void* rows;  // [count, D]
  int64_t stride;    // elements between rows
  DType dtype;
  int first, count;  // first + count <= group_keys
  int head_dim;
};

// Block sums that come out of the dense pass (fused selection). A cell is block_size keys, or a chunk where a block is
// larger; cell sums are probabilities relative to the maximum of the chunk that the cell lies in.
struct SelectItem {
  float scale;        // of the selection, times log2(e)
  bool second_scale;  // differs from the attention's: exponentiate a second time
  int cell_keys;
  int64_t cells;             // ceil(padded keys / cell_keys)
  int64_t generation_cell;   // chunks do not cross it; from here on sums are kept relative to their chunk's own maximum
  int64_t generation_group;  // the same place as a position in the group list
  bool generation_apart;     // the rule wants a second softmax over generation keys alone
  int block_size;
  int64_t block_cells;  // cells per block
  int64_t kv_blocks;
  float* scores;      // [item's query blocks, kv_blocks] mass under the softmax over all keys
  float* generation;  // the same under the softmax over generation keys, or nullptr
};

// One work item: a run of queries of one (batch, head).
struct AttentionItem {
  const void* q;  // [queries, D], rows q_stride apart
  int64_t q_stride;
  void* out;  // [queries, D] or nullptr
  int64_t out_stride;
  float* lse;  // [queries] or nullptr
  DType dtype;
  int queries;  // 1 ... item_queries
  int head_dim;
  float scale;         // times log2(e)
  const std::byte* k;  // packed groups of the key/value head
  const std::byte* v;  // nullptr: selection only
  KeyGroups groups;
  const SelectItem* select;  // nullptr: no selection
  std::byte* scratch;        // scratch_bytes(...)
};

struct AttentionKernels {
  int group_keys;    // keys per packed group: 16 or 32
  int item_queries;  // queries of a full item
  int chunk_keys;    // keys of a chunk, a multiple of group_keys
  size_t (*k_group_bytes)(int head_dim);
  size_t (*v_group_bytes)(int head_dim);
  size_t (*scratch_bytes)(int head_dim, int64_t select_cells);
  void (*pack_k)(const PackRows& rows, std::byte* group);
  void (*pack_v)(const PackRows& rows, std::byte* group);
  void (*run_item)(const AttentionItem& item);
};

struct IsaKernels {
  AttentionKernels attention;
  const OpsKernels* ops;
};

const IsaKernels& kernels_scalar();
const IsaKernels& kernels_avx2();
const IsaKernels& kernels_avx512();
// For bfloat16 inputs; others run on kernels_avx512().
const IsaKernels& kernels_avx512_bf16();
const IsaKernels& kernels_amx();

// Linear layers with int8 weights. All give the same bits.
const LinearKernels& int8_scalar();
const LinearKernels& int8_avx2();
const LinearKernels& int8_avx_vnni();
const LinearKernels& int8_avx512();
const LinearKernels& int8_avx512_vnni();
const LinearKernels& int8_amx();

}  // namespace sparsed::cpu
