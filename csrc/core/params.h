// What attention is asked to do. Dimensions: B batch, H query heads, H_kv key/value heads (H % H_kv == 0),
// L queries, S keys, D head_dim. Plain structs: backends read them, bindings and the pattern cache fill them.
#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace sparsed {

struct AttentionParams {
  TensorView q;                       // [B, H, L, D]
  TensorView k;                       // [B, H_kv, S, D]
  TensorView v;                       // [B, H_kv, S, D]; data == nullptr: selection only, no output
  TensorView out;                     // [B, H, L, D], dtype of q; data == nullptr: selection only
  float* lse = nullptr;               // [B, H, L] natural log-sum-exp, or nullptr
  const uint8_t* key_mask = nullptr;  // [B, S], nonzero = a real key, or nullptr
  float scale = 1.f;                  // > 0, finite
  void* stream = nullptr;             // of a backend that has one: a cudaStream_t

  int64_t batch() const { return q.shape[0]; }
  int64_t heads() const { return q.shape[1]; }
  int64_t kv_heads() const { return k.shape[1]; }
  int64_t q_len() const { return q.shape[2]; }
  int64_t kv_len() const { return k.shape[2]; }
  int64_t head_dim() const { return q.shape[3]; }
  // There is nothing to compute: no output row, or no key, which leaves each row empty.
  bool empty() const { return batch() == 0 || heads() == 0 || q_len() == 0 || kv_len() == 0; }
};

// Which blocks a head keeps. kPaper: one softmax over all keys, top-k of the prompt blocks and of the generation
// blocks apart (arXiv 2509.24014, section 4). kReference: what the published code does (top-k over all blocks, of
// which the prompt columns stay; generation blocks by a softmax over generation keys alone). kCaller: none, the caller
// chooses by the scores.
enum class SelectionRule : uint8_t { kPaper, kReference, kCaller };

struct SelectParams {
  int64_t prompt_length = 0;  // 0 ... S
  int block_size = 128;       // 16, 32, 64, 128, 256
  double rho = 0.3;           // share of the candidate blocks that a row keeps, 0 ... 1
  SelectionRule rule = SelectionRule::kPaper;
  bool isolate = true;            // false: one top-k over all blocks
  float scale = 1.f;              // of the scores in the selection; the attention has its own
  bool dense_generation = false;  // query blocks with generation tokens keep every key block
  // [B, H, q_blocks, kv_blocks], written: the probability mass of each key block under the softmax over all keys,
  // summed over the queries of the block. nullptr: nobody asks. It lies where the backend computes.
  float* scores = nullptr;
};

}  // namespace sparsed
