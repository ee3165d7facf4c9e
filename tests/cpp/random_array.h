// Random arrays of any dtype with the view that the library takes.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "core/float16.h"
#include "core/tensor.h"

namespace sparsed {

struct RandomArray {
  std::vector<float> storage;  // wide enough for every dtype
  TensorView view;

  // layout_lh: stored as (B, L, H, D), seen as (B, H, L, D).
  RandomArray(const Shape4& shape, DType dtype, unsigned seed, bool layout_lh = false)
      : storage(static_cast<size_t>(shape[0] * shape[1] * shape[2] * shape[3]) + 1) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    view = {storage.data(), dtype, shape, contiguous_strides(shape)};
    if (layout_lh) view.stride = {shape[1] * shape[2] * shape[3], shape[3], shape[1] * shape[3], 1};
    const int64_t size = shape[0] * shape[1] * shape[2] * shape[3];
    for (int64_t i = 0; i < size; ++i) store_float(view.data, dtype, i, normal(generator));
  }

  float at(int64_t b, int64_t h, int64_t i, int64_t d) const { return load_float(view.row(b, h, i), view.dtype, d); }
};

}  // namespace sparsed
