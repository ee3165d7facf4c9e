// Keys and values that stay packed from call to call, for cached decoding: a step puts some rows and attends to all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/params.h"
#include "cpu/key_groups.h"
#include "cpu/packed_kv.h"

namespace sparsed::cpu {

// They belong to the kernels that packed them, whichever backend is active later. The mask belongs to the keys too:
// masked values are packed as zeros.
class PackedKeyValues {
 public:
  // shape: none of its sizes is 0; key_mask: [B, S], nonzero = a real key, or nullptr. MemoryError as PackedKv.
  PackedKeyValues(const AttentionKernels& kernels, DType dtype, const KvShape& shape, const uint8_t* key_mask);
  PackedKeyValues(const PackedKeyValues&) = delete;
  PackedKeyValues& operator=(const PackedKeyValues&) = delete;

  Shape4 shape() const { return {shape_.batch, shape_.kv_heads, shape_.length, shape_.head_dim}; }
  DType dtype() const { return dtype_; }
  size_t nbytes() const { return PackedKv::nbytes(kernels_, shape_); }

  // Row i of k and v [B, H_kv, R, D] becomes that of positions[i], ascending below S; nullptr: of position i. What an
  // exception, such as an interrupt's, ends has put none of its rows.
  void put(const int64_t* positions, const TensorView& k, const TensorView& v);

  // Dense attention with the bits of the backend's own: q, out, lse and scale of params are read. ValueError where a
  // position was never put.
  void attention(AttentionParams params) const;

 private:
  void mark(const int64_t* positions, int64_t rows, bool present);

  const AttentionKernels& kernels_;
  DType dtype_;
  KvShape shape_;
  KeptMemory memory_;
  PackedKv packed_;                // in memory_; before what follows, which is smaller, it asks whether it fits
  std::vector<uint8_t> key_mask_;  // [B, S], or empty
  DenseGroups groups_;
  std::vector<uint8_t> present_;  // [S]
};

}  // namespace sparsed::cpu
