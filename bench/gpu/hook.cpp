// The CUDA backend behind C functions, for measurements on torch's memory. Not part of the package.
#include <algorithm>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>

#include "cuda/cuda.h"

namespace {

using sparsed::AttentionParams;
using sparsed::BlockPattern;
using sparsed::DevicePattern;
using Handle = std::shared_ptr<const DevicePattern>;

std::string error;

template <class Body>
bool guarded(const Body& body) {
  try {
    body();
    error.clear();
  } catch (const std::exception& found) {
    error = found.what();
  }
  return error.empty();
}

}  // namespace

extern "C" {

struct GpuArray {
  void* data;
  int64_t shape[4];
  int64_t stride[4];
};

struct GpuCall {
  GpuArray q, k, v, out;
  int dtype;  // as sparsed::DType
  float scale;
  float* lse;
  const uint8_t* key_mask;
  void* stream;
};

const char* sparsed_gpu_error() { return error.c_str(); }

// Why it cannot run here; "" where it can.
const char* sparsed_gpu_missing() {
  static std::string text;
  text.clear();
  for (const std::string& reason : sparsed::cuda::backend().not_supported_reasons()) text += reason;
  return text.c_str();
}
}

namespace {

AttentionParams params_of(const GpuCall& call) {
  const auto view = [&](const GpuArray& array) {
    sparsed::TensorView view{array.data, static_cast<sparsed::DType>(call.dtype), {}, {}};
    std::copy_n(array.shape, 4, view.shape.begin());
    std::copy_n(array.stride, 4, view.stride.begin());
    return view;
  };
  AttentionParams params;
  params.q = view(call.q);
  params.k = view(call.k);
  params.v = view(call.v);
  params.out = view(call.out);
  params.lse = call.lse;
  params.key_mask = call.key_mask;
  params.scale = call.scale;
  params.stream = call.stream;
  return params;
}

}  // namespace

extern "C" {

bool sparsed_gpu_attention(const GpuCall* call, const void* pattern) {
  return guarded([&] {
    const DevicePattern* own = pattern ? static_cast<const Handle*>(pattern)->get() : nullptr;
    sparsed::cuda::backend().device->attention(params_of(*call), own);
  });
}

// nullptr where it failed; the rule is the paper's.
void* sparsed_gpu_select(const GpuCall* call, int64_t prompt_length, int block_size, double rho) {
  Handle pattern;
  guarded([&] {
    sparsed::SelectParams select;
    select.prompt_length = prompt_length;
    select.block_size = block_size;
    select.rho = rho;
    select.scale = call->scale;
    pattern = sparsed::cuda::backend().device->attention_and_select(params_of(*call), select);
  });
  return pattern ? new Handle(pattern) : nullptr;
}

// mask: [batch, heads, q_blocks, kv_blocks] in host memory.
void* sparsed_gpu_pattern(const uint8_t* mask, int64_t batch, int64_t heads, int block_size, int64_t length,
                          void* stream) {
  Handle pattern;
  guarded([&] {
    const BlockPattern host = BlockPattern::from_mask({batch, heads, block_size, length, length, 0}, mask);
    pattern = sparsed::cuda::backend().device->to_device(host, 0, stream);
  });
  return pattern ? new Handle(pattern) : nullptr;
}

double sparsed_gpu_density(const void* pattern) {
  return static_cast<const Handle*>(pattern)->get()->to_host().density();
}
// mask: [batch, heads, q_blocks, kv_blocks] in host memory.
bool sparsed_gpu_mask(const void* pattern, uint8_t* mask) {
  return guarded([&] { static_cast<const Handle*>(pattern)->get()->to_host().to_mask(mask); });
}
void sparsed_gpu_free(void* pattern) { delete static_cast<Handle*>(pattern); }
}
