#include <algorithm>
#include <cstring>
#include <utility>

#include "core/float16.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace sparsed::cpu {
namespace {

constexpr int64_t kChunk = 256;  // inputs converted at a time

// Element i of an array at any address.
float load_unaligned(const std::byte* data, DType dtype, int64_t i) {
  float value;
  uint16_t half;
  if (dtype == DType::kFloat32) {
    std::memcpy(&value, data + 4 * i, 4);
    return value;
  }
  std::memcpy(&half, data + 2 * i, 2);
  return dtype == DType::kBFloat16 ? bf16_to_float(half) : f16_to_float(half);
}

// `count` elements from data[first] on as `to` wants them, then zeros up to `padded`.
void convert(const std::byte* data, DType dtype, int64_t first, int64_t count, int64_t padded, DType to,
             std::byte* out) {
  const int64_t size = static_cast<int64_t>(dtype_size(to));
  if (dtype == to) {
    std::memcpy(out, data + first * size, static_cast<size_t>(count * size));
  } else {
    for (int64_t i = 0; i < count; ++i) store_float(out, to, i, load_unaligned(data, dtype, first + i));
  }
  std::memset(out + count * size, 0, static_cast<size_t>((padded - count) * size));
}

// Row `row` of all parts together; nullptr beyond the last one.
const std::byte* find_row(const std::vector<WeightRows>& parts, int64_t row, DType& dtype) {
  for (const WeightRows& part : parts) {
    if (row < part.rows) {
      dtype = part.dtype;
      return static_cast<const std::byte*>(part.data) + row * part.stride * static_cast<int64_t>(dtype_size(dtype));
    }
    row -= part.rows;
  }
  return nullptr;
}

std::vector<float> join_bias(const std::vector<WeightRows>& parts, int64_t n) {
  if (std::none_of(parts.begin(), parts.end(), [](const WeightRows& part) { return part.bias; })) return {};
  std::vector<float> bias;
  bias.reserve(static_cast<size_t>(n));
  for (const WeightRows& part : parts) {
    const std::byte* values = static_cast<const std::byte*>(part.bias);
    for (int64_t i = 0; i < part.rows; ++i) bias.push_back(values ? load_unaligned(values, part.bias_dtype, i) : 0.f);
  }
  return bias;
}

// In both layouts four bytes of an output lie next to the same four bytes of the next output.
void pack_panel(const std::vector<WeightRows>& parts, int64_t index, PackedWeight& w) {
  const int64_t size = static_cast<int64_t>(dtype_size(w.dtype()));
  std::byte chunk[kChunk * sizeof(float)];
  for (int64_t first = 0; first < w.k_padded(); first += kChunk) {
    const int64_t padded = std::min(kChunk, w.k_padded() - first);
    std::byte* to = w.panel(index) + first * PackedWeight::kPanel * size;
    for (int64_t lane = 0; lane < PackedWeight::kPanel; ++lane, to += 4) {
      DType dtype = w.dtype();
      const std::byte* row = find_row(parts, index * PackedWeight::kPanel + lane, dtype);
      const int64_t count = std::clamp<int64_t>(w.k() - first, 0, padded);
      if (row) {
        convert(row, dtype, first, count, padded, w.dtype(), chunk);
      } else {
        std::memset(chunk, 0, static_cast<size_t>(padded * size));
      }
      for (int64_t i = 0; i < padded * size / 4; ++i) std::memcpy(to + i * 4 * PackedWeight::kPanel, chunk + 4 * i, 4);
    }
  }
}

}  // namespace

PackedWeight pack_weight(const std::vector<WeightRows>& parts, int64_t k, DType dtype) {
  constexpr int64_t kMost = int64_t{1} << 60;  // cannot fit, and does not overflow
  int64_t n = 0;
  for (const WeightRows& part : parts) n = std::min(n + std::min(part.rows, kMost), kMost);
  PackedWeight w(n, k, dtype);
  parallel_for(w.panels(), [&](int64_t index) { pack_panel(parts, index, w); });
  w.set_bias(join_bias(parts, n));
  return w;
}

}  // namespace sparsed::cpu
