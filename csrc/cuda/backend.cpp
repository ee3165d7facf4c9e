// The registry's entries: host arrays are copied to the device and back, device arrays are used as they are.
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/memory.h"
#include "cuda/cuda.h"
#include "cuda/device_attention.h"
#include "cuda/runtime.h"

namespace sparsed::cuda {
namespace {

// One call's arrays in device memory.
class DeviceCall {
 public:
  explicit DeviceCall(const AttentionParams& params)
      : host_(params), params_(params), copies_(device_of(params.q.data) < 0) {
    if (!copies_) return;
    const auto stream = static_cast<cudaStream_t>(params.stream);
    for (TensorView* view : {&params_.q, &params_.k, &params_.v}) {
      if (view->data) copy_in(*view);
    }
    if (params.out.data) {
      params_.out = contiguous(params.out);
      params_.out.data = keep(DeviceMemory(nbytes(params_.out), stream));
    }
    if (params.lse) params_.lse = static_cast<float*>(keep(DeviceMemory(lse_bytes(), stream)));
    if (params.key_mask) {
      const size_t bytes = static_cast<size_t>(params.batch() * params.kv_len());
      params_.key_mask = static_cast<const uint8_t*>(keep(to_device(params.key_mask, bytes, stream)));
    }
    params_.lists = nullptr;
  }

  const AttentionParams& params() const { return params_; }

  void finish() const {
    const auto stream = static_cast<cudaStream_t>(host_.stream);
    if (copies_ && host_.lse) to_host(host_.lse, params_.lse, lse_bytes(), stream);
    if (copies_ && host_.out.data) {
      std::vector<std::byte> bytes(nbytes(params_.out));
      to_host(bytes.data(), params_.out.data, bytes.size(), stream);
      TensorView staged = params_.out;
      staged.data = bytes.data();
      copy_rows(staged, host_.out);
    }
  }

 private:
  static TensorView contiguous(TensorView view) {
    view.stride = contiguous_strides(view.shape);
    return view;
  }
  static size_t nbytes(const TensorView& view) {
    const Shape4& s = view.shape;
    return static_cast<size_t>(s[0] * s[1] * s[2] * s[3]) * dtype_size(view.dtype);
  }
  static void copy_rows(const TensorView& from, const TensorView& to) {
    const size_t row = static_cast<size_t>(from.shape[3]) * dtype_size(from.dtype);
    for (int64_t b = 0; b < from.shape[0]; ++b) {
      for (int64_t h = 0; h < from.shape[1]; ++h) {
        for (int64_t i = 0; i < from.shape[2]; ++i) std::memcpy(to.row(b, h, i), from.row(b, h, i), row);
      }
    }
  }

  size_t lse_bytes() const {
    return static_cast<size_t>(host_.batch() * host_.heads() * host_.q_len()) * sizeof(float);
  }
  void copy_in(TensorView& view) {
    const TensorView given = view;
    require_memory(nbytes(view), "a copy for the device");
    std::vector<std::byte> bytes(nbytes(view));
    view = contiguous(view);
    view.data = bytes.data();
    copy_rows(given, view);
    view.data = keep(to_device(bytes.data(), bytes.size(), static_cast<cudaStream_t>(host_.stream)));
  }
  void* keep(DeviceMemory memory) {
    kept_.push_back(std::move(memory));
    return kept_.back().data();
  }

  const AttentionParams& host_;
  AttentionParams params_;
  bool copies_;
  std::vector<DeviceMemory> kept_;
};

// The arrays' device, or the current one for host arrays.
int device_for(const AttentionParams& params) {
  const int device = device_of(params.q.data);
  return device < 0 ? current_device() : device;
}

// Rows of the lists as bits, on the device.
std::shared_ptr<const DevicePattern> to_pattern(const AttentionParams& params) {
  if (!params.lists) return nullptr;
  const BlockLists& lists = *params.lists;
  BlockPattern pattern({params.batch(), params.heads(), lists.block_size, params.q_len(), params.kv_len(), 0},
                       "attention");
  for (int64_t row = 0; row < pattern.rows(); ++row) {
    for (int64_t i = lists.offsets[static_cast<size_t>(row)]; i < lists.offsets[static_cast<size_t>(row) + 1]; ++i) {
      pattern.set(row, lists.indices[static_cast<size_t>(i)]);
    }
  }
  return pattern_to_device(pattern, device_for(params), params.stream);
}

void attention(const AttentionParams& params) {
  const CurrentDevice current(device_for(params));
  const std::shared_ptr<const DevicePattern> pattern = to_pattern(params);
  const DeviceCall call(params);
  attention_on_device(call.params(), pattern.get());
  call.finish();
}

BlockPattern attention_and_select(const AttentionParams& params, const SelectParams& select) {
  const CurrentDevice current(device_for(params));
  const DeviceCall call(params);
  const std::shared_ptr<const DevicePattern> pattern = select_on_device(call.params(), select);
  call.finish();
  return pattern->to_host();
}

std::vector<std::string> not_supported_reasons() {
  static const std::vector<std::string> reasons = missing_device();
  return reasons;
}

constexpr DeviceOps kDeviceOps{attention_on_device, select_on_device, pattern_to_device};

}  // namespace

Backend backend() {
  Backend backend{};
  backend.name = "cuda";
  backend.not_supported_reasons = not_supported_reasons;
  backend.attention = attention;
  backend.attention_and_select = attention_and_select;
  backend.device = &kDeviceOps;
  return backend;
}

}  // namespace sparsed::cuda
