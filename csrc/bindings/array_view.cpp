#include "bindings/array_view.h"

#include <pybind11/numpy.h>

#include <algorithm>
#include <string>

#include "bindings/views.h"

namespace sparsed::python {
namespace {

ArrayView numpy_view(const py::array& array) {
  ArrayView view;
  view.owner = array;
  view.data = const_cast<void*>(array.data());
  view.dtype = py::cast<std::string>(py::str(array.dtype()));
  view.itemsize = array.itemsize();
  view.shape.assign(array.shape(), array.shape() + array.ndim());
  view.strides.assign(array.strides(), array.strides() + array.ndim());
  view.writable = array.writeable();
  return view;
}

std::string dtype_text(DLDataType dtype) {
  if (dtype.code == kDLBool && dtype.bits == 8) return "bool";
  const auto base = [&]() -> std::string {
    switch (dtype.code) {
      case kDLInt: return "int";
      case kDLUInt: return "uint";
      case kDLFloat: return "float";
      case kDLBfloat: return "bfloat";
      case kDLComplex: return "complex";
      default: return message("DLPack code ", static_cast<int>(dtype.code), " of bits ");
    }
  }();
  const std::string text = base + std::to_string(dtype.bits);
  return dtype.lanes == 1 ? text : message(text, " x ", dtype.lanes);
}

// Calls a method of the protocol; what it raises becomes a TypeError that names the argument.
template <class Call>
auto exported(const Arguments& check, const char* argument, const Call& call) {
  try {
    return call();
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_Exception)) throw;  // KeyboardInterrupt
    check.fail(ErrorKind::kType, argument,
               " cannot be shared through DLPack: ", py::cast<std::string>(py::str(error.value())));
  }
}

// Version 1 where the array knows it: only that exports read-only memory.
py::object capsule_of(const py::object& array, std::optional<int64_t> stream) {
  const py::object method = array.attr("__dlpack__");
  py::dict arguments;
  // Other devices' arrays may refuse a stream.
  if (stream && py::cast<int32_t>(array.attr("__dlpack_device__")()[py::int_(0)]) == kDLCUDA) {
    arguments["stream"] = *stream;
  }
  try {
    return method(py::arg("max_version") = py::make_tuple(1, 1), **arguments);
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;  // an argument that older libraries do not have
  }
  return method(**arguments);
}

const DLTensor& tensor_of(const Arguments& check, const char* argument, const py::object& capsule, bool* writable) {
  if (PyCapsule_IsValid(capsule.ptr(), kVersionedCapsule)) {
    const auto* managed =
        static_cast<DLManagedTensorVersioned*>(PyCapsule_GetPointer(capsule.ptr(), kVersionedCapsule));
    *writable = (managed->flags & kReadOnly) == 0;
    if (managed->version.major == 1) return managed->dl_tensor;
    check.fail(ErrorKind::kType, argument, " exports DLPack ", managed->version.major, ".", managed->version.minor,
               ", expected 0.x or 1.x");
  }
  if (!PyCapsule_IsValid(capsule.ptr(), kCapsule)) check.wrong_type(argument, capsule, "a DLPack capsule");
  return static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), kCapsule))->dl_tensor;
}

// The capsule is not taken over: it stays as the owner, and frees its tensor when the call is done.
ArrayView dlpack_view(const Arguments& check, const char* argument, const py::object& object,
                      std::optional<int64_t> stream) {
  ArrayView view;
  view.owner = exported(check, argument, [&] { return capsule_of(object, stream); });
  const DLTensor& tensor = tensor_of(check, argument, view.owner, &view.writable);
  view.device = tensor.device;
  view.dtype = dtype_text(tensor.dtype);
  view.itemsize = (tensor.dtype.bits * tensor.dtype.lanes + 7) / 8;
  view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  view.shape.assign(tensor.shape, tensor.shape + tensor.ndim);
  view.strides.resize(view.shape.size());
  int64_t row_major = view.itemsize;
  for (size_t axis = view.shape.size(); axis-- > 0; row_major *= view.shape[axis]) {
    view.strides[axis] = tensor.strides ? tensor.strides[axis] * view.itemsize : row_major;
  }
  return view;
}

}  // namespace

bool ArrayView::empty() const { return std::find(shape.begin(), shape.end(), 0) != shape.end(); }

ArrayView array_view(const Arguments& check, const char* argument, const py::object& object,
                     std::optional<int64_t> stream) {
  if (py::isinstance<py::array>(object)) return numpy_view(numpy_array(check, argument, object));
  if (py::hasattr(object, "__dlpack__")) return dlpack_view(check, argument, object, stream);
  check.wrong_type(argument, object, "a numpy array or an array that has __dlpack__");
}

bool on_cpu(DLDevice device) { return device.device_type == kDLCPU || device.device_type == kDLCUDAHost; }

bool same_device(DLDevice a, DLDevice b) {
  return (on_cpu(a) && on_cpu(b)) || (a.device_type == b.device_type && a.device_id == b.device_id);
}

std::string device_name(DLDevice device) {
  if (on_cpu(device)) return "the CPU";
  if (device.device_type == kDLCUDA) return message("CUDA device ", device.device_id);
  return message("device ", device.device_id, " of DLPack type ", device.device_type);
}

}  // namespace sparsed::python
