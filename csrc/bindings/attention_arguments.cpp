#include "bindings/attention_arguments.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <string>
#include <utility>

#include "bindings/views.h"
#include "core/pattern.h"
#include "registry.h"

namespace sparsed::python {
namespace {

std::string from(const char* name, const TensorView& view) {
  return message(" (from ", name, " ", shape_string(view.shape), ")");
}

// First and last byte that a view reaches, the last one exclusive.
std::pair<int64_t, int64_t> reach(const TensorView& view) {
  int64_t low = 0, high = view.shape[3];
  for (size_t axis = 0; axis < 3; ++axis) {
    const int64_t last = (view.shape[axis] - 1) * view.stride[axis];
    low += std::min<int64_t>(last, 0);
    high += std::max<int64_t>(last, 0);
  }
  const int64_t begin = reinterpret_cast<int64_t>(view.data), size = static_cast<int64_t>(dtype_size(view.dtype));
  return {begin + low * size, begin + high * size};
}

bool is_empty(const TensorView& view) { return std::find(view.shape.begin(), view.shape.end(), 0) != view.shape.end(); }

// Whether two elements of a view share an address: an axis steps less far than the smaller ones reach.
bool overlaps_itself(const TensorView& view) {
  std::array<std::pair<int64_t, int64_t>, 3> axes;  // stride, size
  for (size_t axis = 0; axis < 3; ++axis) axes[axis] = {std::abs(view.stride[axis]), view.shape[axis]};
  std::sort(axes.begin(), axes.end());
  int64_t length = view.shape[3];
  for (const auto& [stride, size] : axes) {
    if (size == 1) continue;
    if (stride < length) return true;
    length = (size - 1) * stride + length;
  }
  return false;
}

class Reader {
 public:
  Reader(const Arguments& check, const AttentionArrays& arrays) : check_(check), arrays_(arrays) {
    if (!arrays.stream.is_none()) stream_ = py::cast<int64_t>(arrays.stream);
    result_.backend = stream_ ? &cuda_backend() : &active_backend();
    if (stream_) result_.params.stream = reinterpret_cast<void*>(*stream_);
  }

  AttentionArguments read(bool selects) {
    AttentionParams& params = result_.params;
    read_q(" or a CUDA device");
    params.k = view_of("k", arrays_.k);
    if (!selects) params.v = view_of("v", arrays_.v);
    check_shapes(!selects);
    read_scale();
    if (!arrays_.key_mask.is_none()) read_key_mask();
    if (!selects) read_out();
    read_lse();
    return std::move(result_);
  }

  AttentionArguments read_packed(const TensorView& keys) {
    AttentionParams& params = result_.params;
    read_q(" (where the keys and values are packed)");
    const TensorView& q = params.q;
    if (q.dtype != keys.dtype) {
      check_.fail(ErrorKind::kType, "q has dtype ", dtype_name(q.dtype), ", expected ", dtype_name(keys.dtype),
                  " (that of the packed keys)");
    }
    constexpr const char* kKeys = "the packed keys";
    same("q", "batch", q.shape[0], keys.shape[0], kKeys, keys);
    same("q", "head_dim", q.shape[3], keys.shape[3], kKeys, keys);
    check_length("q", q);
    check_(q.shape[1] % keys.shape[1] == 0, "q has heads ", q.shape[1], ", expected a multiple of ", keys.shape[1],
           from(kKeys, keys));
    read_scale();
    read_out();
    read_lse();
    return std::move(result_);
  }

 private:
  ArrayView array_of(const char* name, const py::object& object) {
    ArrayView array = array_view(check_, name, object, stream_);
    result_.alive.push_back(array.owner);
    return array;
  }

  void read_scale() {
    const double head_dim = static_cast<double>(result_.params.head_dim());
    result_.params.scale = arrays_.scale.is_none() ? static_cast<float>(1.0 / std::sqrt(head_dim))
                                                   : check_.positive_scale("scale", arrays_.scale);
  }

  void read_lse() {
    if (arrays_.lse.is_none()) return;
    const ArrayView lse = array_of("lse", arrays_.lse);
    result_.params.lse = static_cast<float*>(lse.data);
  }

  // elsewhere: where q may lie beside host memory.
  void read_q(const char* elsewhere) {
    const ArrayView array = array_of("q", arrays_.q);
    device_ = array.device;
    if (!stream_) require_device(check_, "q", array, {kDLCPU, 0}, elsewhere);
    result_.params.q = tensor_view(check_, "q", array);
  }

  TensorView view_of(const char* name, const py::object& object) {
    const ArrayView array = array_of(name, object);
    require_device(check_, name, array, device_, " (from q)");
    return tensor_view(check_, name, array);
  }

  void check_like_q(const char* name, const TensorView& view) const {
    const TensorView& q = result_.params.q;
    if (view.dtype != q.dtype) {
      check_.fail(ErrorKind::kType, name, " has dtype ", dtype_name(view.dtype), ", expected ", dtype_name(q.dtype),
                  " (from q)");
    }
    same(name, "batch", view.shape[0], q.shape[0], "q", q);
    same(name, "head_dim", view.shape[3], q.shape[3], "q", q);
  }

  void same(const char* name, const char* what, int64_t found, int64_t expected, const char* source,
            const TensorView& view) const {
    if (found != expected) check_.same(message(name, " has ", what), found, expected, from(source, view));
  }

  void check_shapes(bool with_v) const {
    const AttentionParams& params = result_.params;
    const int64_t heads = params.heads(), kv_heads = params.kv_heads();
    check_head_dim(check_, "q has head_dim", params.head_dim(), from("q", params.q));
    check_like_q("k", params.k);
    check_length("q", params.q);
    check_length("k", params.k);
    check_(kv_heads > 0 ? heads % kv_heads == 0 : heads == 0, "k has heads ", kv_heads, ", expected a divisor of ",
           heads, from("q", params.q));
    if (!with_v) return;
    check_like_q("v", params.v);
    same("v", "heads", params.v.shape[1], kv_heads, "k", params.k);
    same("v", "length", params.v.shape[2], params.kv_len(), "k", params.k);
  }

  void check_length(const char* name, const TensorView& view) const {
    check_(view.shape[2] <= kMaxLength, name, " has length ", view.shape[2], ", expected at most ", kMaxLength,
           from(name, view));
  }

  // [B, S], contiguous, on the device of q.
  void read_key_mask() {
    AttentionParams& params = result_.params;
    const ArrayView array = array_of("key_mask", arrays_.key_mask);
    if (array.dtype != "bool") {
      check_.fail(ErrorKind::kType, "key_mask has dtype ", array.dtype, ", expected bool");
    }
    require_device(check_, "key_mask", array, device_, " (from q)");
    const ArrayView view = bool_view(check_, "key_mask", array, 2, "[batch, keys]");
    check_(view.shape[0] == params.batch() && view.shape[1] == params.kv_len(), "key_mask has shape ",
           shape_string(view.shape.data(), view.shape.size()), ", expected [", params.batch(), ", ", params.kv_len(),
           "]", from("k", params.k));
    if (!stream_) {
      const py::array mask = contiguous_bools(check_, "key_mask", view);
      result_.alive.push_back(mask);
      params.key_mask = static_cast<const uint8_t*>(mask.data());
      return;
    }
    const bool rows = view.shape[1] <= 1 || view.strides[1] == 1;
    check_(view.empty() || (rows && (view.shape[0] == 1 || view.strides[0] == view.shape[1])), "key_mask has strides ",
           shape_string(view.strides.data(), 2), ", expected [", view.shape[1], ", 1] (contiguous)");
    params.key_mask = static_cast<const uint8_t*>(view.data);
  }

  void read_out() {
    AttentionParams& params = result_.params;
    if (arrays_.out.is_none()) {  // the library could not make one
      const Shape4& s = params.q.shape;
      const int64_t size = static_cast<int64_t>(dtype_size(params.q.dtype));
      check_.memory(saturating_product({s[0], s[1], s[2], s[3], size}), "out");
    }
    const ArrayView array = array_of("out", arrays_.out);
    require_device(check_, "out", array, device_, " (from q)");
    params.out = tensor_view(check_, "out", array);
    check_like_q("out", params.out);
    same("out", "heads", params.out.shape[1], params.heads(), "q", params.q);
    same("out", "length", params.out.shape[2], params.q_len(), "q", params.q);
    check_(array.writable, "out is read-only, expected a writable array");
    if (is_empty(params.out)) return;
    check_(!overlaps_itself(params.out), "out has elements that share memory, expected none that do");
    const auto [begin, end] = reach(params.out);
    const int64_t mask = reinterpret_cast<int64_t>(params.key_mask), mask_bytes = params.batch() * params.kv_len();
    check_(!params.key_mask || end <= mask || mask + mask_bytes <= begin,
           "out lies in the memory of key_mask, expected another array");
    for (const auto& [name, view] : {std::pair{"q", &params.q}, std::pair{"k", &params.k}, std::pair{"v", &params.v}}) {
      if (!view->data || is_empty(*view)) continue;
      const auto [first, last] = reach(*view);
      check_(end <= first || last <= begin, "out lies in the memory of ", name, ", expected another array");
    }
  }

  const Arguments& check_;
  const AttentionArrays& arrays_;
  std::optional<int64_t> stream_;
  DLDevice device_{kDLCPU, 0};
  AttentionArguments result_;
};

}  // namespace

AttentionArguments attention_arguments(const Arguments& check, const AttentionArrays& arrays, bool selects) {
  return Reader(check, arrays).read(selects);
}

float* scores_memory(const Arguments& check, const py::object& scores, int block_size, AttentionArguments& arguments) {
  if (scores.is_none()) return nullptr;
  const AttentionParams& params = arguments.params;
  std::optional<int64_t> stream;
  if (arguments.backend == &cuda_backend()) stream = reinterpret_cast<int64_t>(params.stream);
  const ArrayView array = array_view(check, "scores", scores, stream);
  const std::vector<int64_t> expected{params.batch(), params.heads(), num_blocks(params.q_len(), block_size),
                                      num_blocks(params.kv_len(), block_size)};
  check(array.dtype == "float32" && array.shape == expected && array.writable, "scores is ", array.dtype, " ",
        shape_string(array.shape.data(), array.shape.size()), ", expected float32 ",
        shape_string(expected.data(), expected.size()), " that can be written to");
  arguments.alive.push_back(array.owner);
  return static_cast<float*>(array.data);
}

AttentionArguments packed_attention_arguments(const Arguments& check, const AttentionArrays& arrays,
                                              const TensorView& keys) {
  return Reader(check, arrays).read_packed(keys);
}

void check_head_dim(const Arguments& check, const std::string& what, int64_t head_dim, const std::string& source) {
  check(head_dim >= 16 && head_dim <= 256 && head_dim % 8 == 0, what, " ", head_dim,
        ", expected a multiple of 8 from 16 to 256", source);
}

}  // namespace sparsed::python
