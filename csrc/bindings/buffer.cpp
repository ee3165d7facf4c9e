#include "bindings/buffer.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include "bindings/dlpack.h"
#include "bindings/register.h"
#include "bindings/views.h"

namespace sparsed::python {
namespace {

constexpr size_t kAlignment = 64;

// What a capsule points at: the tensor and all that it needs.
struct Export {
  DLManagedTensor managed{};
  py::array memory;
  std::vector<int64_t> shape, strides;
};

// Called by whoever took the tensor, on any thread, with or without the GIL.
void release(DLManagedTensor* tensor) {
  if (!Py_IsInitialized()) return;  // the interpreter is gone, and the memory goes with the process
  const py::gil_scoped_acquire acquire;
  delete static_cast<Export*>(tensor->manager_ctx);
}

// A capsule that nobody took.
void release_capsule(PyObject* capsule) {
  if (!PyCapsule_IsValid(capsule, kCapsule)) return;
  auto* tensor = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, kCapsule));
  tensor->deleter(tensor);
}

Buffer host_buffer(const std::string& function, const std::string& argument, const py::object& q) {
  const Arguments check(function);
  const ArrayView array = array_view(check, "q", q);
  require_device(check, "q", array, {kDLCPU, 0}, " or a CUDA device");
  const TensorView view = tensor_view(check, "q", array);
  const auto [batch, heads, tokens, head_dim] = view.shape;
  if (argument == "lse") return Buffer(check, "lse", DType::kFloat32, {batch, heads, tokens});
  if (std::abs(view.stride[1]) >= std::abs(view.stride[2])) {
    return Buffer(check, "out", view.dtype, {batch, heads, tokens, head_dim});
  }
  Buffer out(check, "out", view.dtype, {batch, tokens, heads, head_dim});
  out.swap_heads_and_tokens();
  return out;
}

DLDataType dlpack_dtype(DType dtype) {
  const uint8_t code = dtype == DType::kBFloat16 ? kDLBfloat : kDLFloat;
  return {code, static_cast<uint8_t>(8 * dtype_size(dtype)), 1};
}

}  // namespace

Buffer::Buffer(const Arguments& check, const char* argument, DType dtype, std::vector<int64_t> shape)
    : dtype_(dtype), shape_(std::move(shape)), strides_(shape_.size()) {
  int64_t stride = 1;
  for (size_t axis = shape_.size(); axis-- > 0; stride *= shape_[axis]) strides_[axis] = stride;
  std::vector<int64_t> factors = shape_;
  factors.push_back(static_cast<int64_t>(dtype_size(dtype)));
  // numpy's allocator asks for huge pages, which a first touch of large arrays gains from.
  constexpr size_t kMost = size_t{1} << 62;  // new_array refuses it, and it has room for the alignment
  const size_t bytes = std::min(saturating_product(factors), kMost);
  size_t space = bytes + kAlignment;
  memory_ = new_array(check, argument, py::dtype::of<uint8_t>(), {static_cast<py::ssize_t>(space)});
  data_ = memory_.mutable_data();
  std::align(kAlignment, bytes, data_, space);
}

void Buffer::swap_heads_and_tokens() {
  std::swap(shape_[1], shape_[2]);
  std::swap(strides_[1], strides_[2]);
}

py::capsule Buffer::capsule() const {
  auto exported = std::make_unique<Export>();
  exported->memory = memory_;
  exported->shape = shape_;
  exported->strides = strides_;
  DLManagedTensor& managed = exported->managed;
  managed.dl_tensor = {data_,
                       {kDLCPU, 0},
                       static_cast<int32_t>(shape_.size()),
                       dlpack_dtype(dtype_),
                       exported->shape.data(),
                       exported->strides.data(),
                       0};
  managed.manager_ctx = exported.get();
  managed.deleter = &release;
  py::capsule capsule(&managed, kCapsule, &release_capsule);
  exported.release();
  return capsule;
}

void register_buffer(py::module_& m) {
  py::class_<Buffer>(m, "HostBuffer", no_constructor(),
                     "A result that another library's ``from_dlpack`` takes without a copy.")
      .def(
          "__dlpack__", [](const Buffer& self, const py::kwargs&) { return self.capsule(); },
          "A new capsule. Consumers' arguments (stream, max_version, dl_device, copy) change nothing on the CPU.")
      .def("__dlpack_device__", [](const Buffer&) { return std::pair<int32_t, int32_t>(kDLCPU, 0); });
  m.def("host_buffer", &host_buffer, py::arg("function"), py::arg("argument"), py::arg("q"),
        "For a call's out (like q, heads or tokens outermost in memory as in q) or lse.");
}

}  // namespace sparsed::python
