// Strided views of arrays that somebody else owns.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace sparsed {

// Only the weights of linear layers are kInt8.
enum class DType : uint8_t { kFloat32, kFloat16, kBFloat16, kInt8 };

inline size_t dtype_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : dtype == DType::kInt8 ? 1 : 2; }

inline const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "float32";
    case DType::kFloat16: return "float16";
    case DType::kInt8: return "int8";
    default: return "bfloat16";
  }
}

// For a >= 0, b > 0.
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

using Shape4 = std::array<int64_t, 4>;

// A rank-4 array [batch, heads, tokens, head_dim]; strides count elements, may be negative or 0; the last one is 1.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  Shape4 shape{};
  Shape4 stride{};

  // Address of row (b, h, i).
  char* row(int64_t b, int64_t h, int64_t i) const {
    const int64_t offset = b * stride[0] + h * stride[1] + i * stride[2];
    return static_cast<char*>(data) + offset * static_cast<int64_t>(dtype_size(dtype));
  }
};

inline std::string shape_string(const int64_t* shape, size_t rank) {
  std::string text = "[";
  for (size_t i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

inline std::string shape_string(const Shape4& shape) { return shape_string(shape.data(), shape.size()); }

// Row-major strides of a shape.
inline Shape4 contiguous_strides(const Shape4& shape) {
  return {shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1};
}

}  // namespace sparsed
