#include "bindings/views.h"

#include <algorithm>

namespace sparsed::python {
namespace {

// Of an array of `shape`; the largest size_t where they are more.
size_t nbytes(std::vector<int64_t> shape, int64_t itemsize) {
  shape.push_back(itemsize);
  return saturating_product(shape);
}

}  // namespace

std::string shape_text(const py::array& array) {
  const std::vector<int64_t> shape(array.shape(), array.shape() + array.ndim());
  return shape_string(shape.data(), shape.size());
}

// A MaskedArray is an ndarray whose mask would be ignored.
py::array numpy_array(const Arguments& check, const char* argument, const py::object& object) {
  if (!py::isinstance<py::array>(object) || py::hasattr(object, "_mask")) {
    check.wrong_type(argument, object, "a numpy array");
  }
  return py::reinterpret_borrow<py::array>(object);
}

py::array c_contiguous(const Arguments& check, const char* argument, const py::array& array) {
  if (array.flags() & py::array::c_style) return array;
  const std::string what = message("a copy of ", argument);
  check.memory(nbytes({array.shape(), array.shape() + array.ndim()}, array.itemsize()), what);
  py::array copy = py::array::ensure(array, py::array::c_style);
  if (!copy) check.fail(ErrorKind::kMemory, what, " does not fit into memory");
  return copy;
}

DType element_type(const Arguments& check, const char* argument, const std::string& dtype, bool float16) {
  if (dtype == "float32") return DType::kFloat32;
  if (dtype == "float16" && float16) return DType::kFloat16;
  if (dtype == "bfloat16") return DType::kBFloat16;
  check.fail(ErrorKind::kType, argument, " has dtype ", dtype, ", expected float32", float16 ? ", float16" : "",
             " or bfloat16 (ml_dtypes)");
}

DType element_type(const Arguments& check, const char* argument, const py::array& array, bool float16) {
  return element_type(check, argument, py::cast<std::string>(py::str(array.dtype())), float16);
}

TensorView tensor_view(const Arguments& check, const char* argument, const ArrayView& array) {
  TensorView view;
  view.dtype = element_type(check, argument, array.dtype, true);
  check(array.shape.size() == 4, argument, " has shape ", shape_string(array.shape.data(), array.shape.size()),
        ", expected 4 axes [batch, heads, tokens, head_dim]");
  view.data = array.data;
  std::copy(array.shape.begin(), array.shape.end(), view.shape.begin());
  view.stride = contiguous_strides(view.shape);
  if (array.empty()) return view;

  const int64_t itemsize = array.itemsize;
  check(array.shape[3] == 1 || array.strides[3] == itemsize, argument, " has a last axis with a stride of ",
        array.strides[3], " bytes, expected ", itemsize, " (contiguous)");
  check(reinterpret_cast<uintptr_t>(array.data) % static_cast<uintptr_t>(itemsize) == 0, argument,
        " is not aligned, expected addresses that are multiples of ", itemsize);
  for (size_t axis = 0; axis < 3; ++axis) {
    if (view.shape[axis] == 1) continue;  // any stride may stand there
    check(array.strides[axis] % itemsize == 0, argument, " has a stride of ", array.strides[axis], " bytes on axis ",
          axis, ", expected a multiple of ", itemsize);
    view.stride[axis] = array.strides[axis] / itemsize;
  }
  return view;
}

void require_device(const Arguments& check, const char* argument, const ArrayView& array, DLDevice device,
                    const char* source) {
  check(same_device(array.device, device), argument, " is on ", device_name(array.device), ", expected ",
        device_name(device), source);
}

ArrayView bool_view(const Arguments& check, const char* argument, const ArrayView& view, size_t rank,
                    const char* axes) {
  if (view.dtype != "bool") check.fail(ErrorKind::kType, argument, " has dtype ", view.dtype, ", expected bool");
  check(view.shape.size() == rank, argument, " has shape ", shape_string(view.shape.data(), view.shape.size()),
        ", expected ", rank, " axes ", axes);
  return view;
}

py::array contiguous_bools(const Arguments& check, const char* argument, const ArrayView& view) {
  return c_contiguous(check, argument,
                      py::array(py::dtype::of<bool>(), view.shape, view.strides, view.data, view.owner));
}

py::array bool_array(const Arguments& check, const char* argument, const py::object& object, size_t rank,
                     const char* axes) {
  const ArrayView view = array_view(check, argument, object);
  if (view.dtype != "bool") check.fail(ErrorKind::kType, argument, " has dtype ", view.dtype, ", expected bool");
  require_device(check, argument, view, {kDLCPU, 0}, "");
  return contiguous_bools(check, argument, bool_view(check, argument, view, rank, axes));
}

py::array new_array(const Arguments& check, const char* argument, const py::dtype& dtype,
                    const std::vector<py::ssize_t>& shape) {
  check.memory(nbytes(shape, dtype.itemsize()), argument);
  return py::array(dtype, shape);
}

}  // namespace sparsed::python
