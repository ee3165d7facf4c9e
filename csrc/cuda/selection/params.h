// The arguments of the kernels of the selection rule, passed by value.
#pragma once

#include <cstdint>

#include "core/selection_rule.h"

namespace sparsed::cuda {

struct TopArgs {
  const float* scores = nullptr;      // [rows, kv_blocks]
  const float* generation = nullptr;  // [rows, kv_blocks] or nullptr
  const uint8_t* live = nullptr;  // [B, kv_blocks], nonzero if the block has a live key; nullptr: all blocks have one
  uint32_t* bits = nullptr;       // [rows, words]: bit j % 32 of word j / 32 is block j
  int rows = 0, batch_rows = 0, kv_blocks = 0, words = 0;
  int q_blocks = 1, first_dense = 1;  // of a head's query blocks, those from first_dense on keep every key block
  double rho = 0;
  SelectRanges ranges;
};

struct LiveArgs {
  const uint8_t* key_mask = nullptr;  // [B, kv_len]
  uint8_t* live = nullptr;            // [B, kv_blocks]
  int batch = 0, kv_len = 0, kv_blocks = 0, block_size = 0;
};

struct ListArgs {
  const uint32_t* bits = nullptr;  // [rows, words]
  int32_t* counts = nullptr;       // [rows]
  int32_t* indices = nullptr;      // [rows, stride]
  int rows = 0, words = 0;
  int64_t stride = 0;
};

struct OrderArgs {
  const int32_t* counts = nullptr;               // [heads, list_rows]
  int32_t* order = nullptr;                      // [heads, items]
  int heads = 0, list_rows = 0, list_shift = 0;  // list_shift: log2 of a list's query rows
  int items = 0, item_rows = 0;                  // work items of a head, and query rows of a work item
};

}  // namespace sparsed::cuda
