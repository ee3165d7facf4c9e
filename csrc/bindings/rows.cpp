#include "bindings/rows.h"

#include <pybind11/stl.h>

#include <cstdlib>

namespace sparsed::python {

using cpu::RowsView;

namespace {

void require_aligned(const Arguments& check, const char* argument, const py::array& array) {
  check(array.size() == 0 || (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0, argument,
        " is not aligned, expected addresses that are multiples of ", array.itemsize());
}

py::dtype numpy_dtype(DType dtype) {
  if (dtype == DType::kFloat32) return py::dtype::of<float>();
  return py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16"));
}

}  // namespace

int64_t row_stride(const Arguments& check, const char* argument, const py::array& array) {
  const int64_t itemsize = array.itemsize();
  check(array.ndim() == 2, argument, " has shape ", shape_text(array), ", expected 2 axes");
  if (array.size() == 0) return array.shape(1);
  check(array.shape(1) == 1 || array.strides(1) == itemsize, argument, " has a last axis with a stride of ",
        array.strides(1), " bytes, expected ", itemsize, " (contiguous)");
  if (array.shape(0) == 1) return array.shape(1);
  check(array.strides(0) % itemsize == 0, argument, " has rows ", array.strides(0),
        " bytes apart, expected a multiple of ", itemsize);
  return array.strides(0) / itemsize;
}

RowsView rows_view(const Arguments& check, const char* argument, const py::object& object) {
  const py::array array = numpy_array(check, argument, object);
  RowsView view;
  view.dtype = element_type(check, argument, array, false);
  view.stride = row_stride(check, argument, array);
  require_aligned(check, argument, array);
  view.data = const_cast<void*>(array.data());
  view.rows = array.shape(0);
  view.cols = array.shape(1);
  return view;
}

RowsView writable_rows(const Arguments& check, const char* argument, const py::object& object) {
  const RowsView view = rows_view(check, argument, object);
  check(py::reinterpret_borrow<py::array>(object).writeable(), argument, " is read-only, expected a writable array");
  check(view.rows <= 1 || std::abs(view.stride) >= view.cols, argument, " has rows ", view.stride,
        " elements apart, expected at least ", view.cols, " (no overlap)");
  return view;
}

py::array_t<float> float_array(const Arguments& check, const char* argument, const py::object& object,
                               const std::vector<int64_t>& shape, const std::string& source) {
  const py::array array = numpy_array(check, argument, object);
  if (element_type(check, argument, array, false) != DType::kFloat32) {
    check.fail(ErrorKind::kType, argument, " has dtype bfloat16, expected float32");
  }
  const std::vector<int64_t> found(array.shape(), array.shape() + array.ndim());
  check(found == shape, argument, " has shape ", shape_text(array), ", expected ",
        shape_string(shape.data(), shape.size()), " (from ", source, ")");
  return py::array_t<float>(c_contiguous(check, argument, array));
}

DType dtype_argument(const Arguments& check, const char* argument, const py::object& object) {
  return check.choice(argument, object, {"float32", "bfloat16"}) == 0 ? DType::kFloat32 : DType::kBFloat16;
}

std::pair<py::array, RowsView> new_rows(const Arguments& check, DType dtype, int64_t rows, int64_t cols) {
  py::array array = new_array(check, "out", numpy_dtype(dtype), {rows, cols});
  return {array, RowsView{array.mutable_data(), dtype, rows, cols, cols}};
}

std::vector<py::object> list_of(const Arguments& check, const char* argument, const py::object& object,
                                const char* expected) {
  if (!PyList_Check(object.ptr()) && !PyTuple_Check(object.ptr())) check.wrong_type(argument, object, expected);
  return py::cast<std::vector<py::object>>(object);
}

}  // namespace sparsed::python
