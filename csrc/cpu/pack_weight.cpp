#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "core/float16.h"
#include "core/int8.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "support/error.h"

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

// A row of a part; its data are nullptr beyond the last one.
struct Row {
  const std::byte* data = nullptr;
  DType dtype = DType::kFloat32;
  float scale = 0.f;  // of int8 data
};

Row row_of(const WeightRows& part, int64_t row) {
  const int64_t at = row * part.stride * static_cast<int64_t>(dtype_size(part.dtype));
  return {static_cast<const std::byte*>(part.data) + at, part.dtype, part.scales ? part.scales[row] : 0.f};
}

// Row `row` of all parts together.
Row find_row(const std::vector<WeightRows>& parts, int64_t row) {
  for (const WeightRows& part : parts) {
    if (row < part.rows) return row_of(part, row);
    row -= part.rows;
  }
  return {};
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
      const Row row = find_row(parts, index * PackedWeight::kPanel + lane);
      const int64_t count = std::clamp<int64_t>(w.k() - first, 0, padded);
      if (row.data) {
        convert(row.data, row.dtype, first, count, padded, w.dtype(), chunk);
      } else {
        std::memset(chunk, 0, static_cast<size_t>(padded * size));
      }
      for (int64_t i = 0; i < padded * size / 4; ++i) std::memcpy(to + i * 4 * PackedWeight::kPanel, chunk + 4 * i, 4);
    }
  }
}

// --- int8 ----------------------------------------------------------------------------------------------------------

// body(first, numbers, count) for `row` as float32, some at a time.
template <class Body>
void for_chunks(const Row& row, int64_t k, const Body& body) {
  float numbers[kChunk];
  for (int64_t first = 0; first < k; first += kChunk) {
    const int64_t count = std::min(kChunk, k - first);
    convert(row.data, row.dtype, first, count, count, DType::kFloat32, reinterpret_cast<std::byte*>(numbers));
    body(first, numbers, count);
  }
}

// NaN where a number of the row is not finite.
float scale_of(const Row& row, int64_t k) {
  int32_t largest = 0;  // the bits of magnitudes are in the order of their values, infinity and NaN above all others
  for_chunks(row, k, [&](int64_t, const float* numbers, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      largest = std::max(largest, static_cast<int32_t>(float_to_bits(numbers[i]) & 0x7fffffffu));
    }
  });
  const float magnitude = bits_to_float(static_cast<uint32_t>(largest));
  return std::isfinite(magnitude) ? int8_scale(magnitude) : std::numeric_limits<float>::quiet_NaN();
}

// The integers of a row, k of them, and its scale.
float quantize_row(const Row& row, int64_t k, int8_t* integers) {
  if (row.dtype == DType::kInt8) {
    std::memcpy(integers, row.data, static_cast<size_t>(k));
    return row.scale;
  }
  const float scale = scale_of(row, k);
  for_chunks(row, k, [&](int64_t first, const float* numbers, int64_t count) {
    for (int64_t i = 0; i < count; ++i) integers[first + i] = to_int8(numbers[i], scale);
  });
  return scale;
}

void pack_int8_panel(const std::vector<WeightRows>& parts, int64_t index, PackedWeight& w) {
  int8_t* integers = reinterpret_cast<int8_t*>(thread_scratch(static_cast<size_t>(w.k_padded())));
  std::memset(integers, 0, static_cast<size_t>(w.k_padded()));
  for (int64_t lane = 0; lane < PackedWeight::kPanel; ++lane) {
    const int64_t n = index * PackedWeight::kPanel + lane;
    const Row row = find_row(parts, n);
    if (row.data) {
      w.scales()[n] = quantize_row(row, w.k(), integers);
    } else {
      std::memset(integers, 0, static_cast<size_t>(w.k()));
    }
    uint32_t sum = 0;
    for (int64_t k = 0; k < w.k(); ++k) sum += static_cast<uint32_t>(integers[k]);
    w.starts()[n] = static_cast<int32_t>(0u - 128u * sum);
    std::byte* to = w.panel(index) + 4 * lane;
    for (int64_t k = 0; k < w.k_padded(); k += 4, to += 4 * PackedWeight::kPanel) std::memcpy(to, integers + k, 4);
  }
}

// ValueError where scales[i] of a part's row is NaN: a number of the row was not finite.
void require_finite(const WeightRows& part, const float* scales) {
  for (int64_t row = 0; row < part.rows; ++row) {
    check(!std::isnan(scales[row]), part.name, " has a value that is not finite in row ", row,
          ", expected finite values (for int8)");
  }
}

}  // namespace

void quantize_rows(const WeightRows& part, int64_t k, int8_t* values, float* scales) {
  constexpr int64_t kItemRows = 16;
  parallel_for(ceil_div(part.rows, kItemRows), [&](int64_t item) {
    for (int64_t row = item * kItemRows; row < std::min(part.rows, (item + 1) * kItemRows); ++row) {
      scales[row] = quantize_row(row_of(part, row), k, values + row * k);
    }
  });
  require_finite(part, scales);
}

PackedWeight pack_weight(const std::vector<WeightRows>& parts, int64_t k, DType dtype) {
  constexpr int64_t kMost = int64_t{1} << 60;  // cannot fit, and does not overflow
  int64_t n = 0;
  for (const WeightRows& part : parts) n = std::min(n + std::min(part.rows, kMost), kMost);
  PackedWeight w(n, k, dtype);
  parallel_for(w.panels(), [&](int64_t index) {
    dtype == DType::kInt8 ? pack_int8_panel(parts, index, w) : pack_panel(parts, index, w);
  });
  if (dtype == DType::kInt8) {
    int64_t row = 0;
    for (const WeightRows& part : parts) {
      require_finite(part, w.scales() + row);
      row += part.rows;
    }
  }
  w.set_bias(join_bias(parts, n));
  return w;
}

}  // namespace sparsed::cpu
