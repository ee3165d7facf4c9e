// Files of patterns. Numbers are little endian. A pattern file:
//    0  8 bytes  "SPRSDPAT"
//    8  u32      version
//   12  u16      tokens of a key block
//   14  u16      tokens of a query block; 0: as many
//   16  5 x i64  batch, heads, q_len, kv_len, prompt_length
//   56  u64      FNV-1a of all other bytes
//   64  u64 ...  bit rows
// The file of a cache:
//    0  8 bytes  "SPRSDLAY"
//    8  u32      version
//   12  u32      number of layers
//   16  i64      prompt_length
//   24  u64      FNV-1a of all other bytes
//   32  for each layer, ascending: its number (i64), and its pattern file
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "core/pattern.h"

namespace sparsed {

struct LayerPatterns {
  int64_t prompt_length = 0;
  std::map<int64_t, BlockPattern> layers;
};

// A file that is not what save_layers() wrote is a kValue error that names the path; a missing one kFileNotFound.
LayerPatterns load_layers(const std::string& path, const std::string& function);
void save_layers(const LayerPatterns& patterns, const std::string& path, const std::string& function);

}  // namespace sparsed
