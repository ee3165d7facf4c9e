// Arrays of rows (tokens, or a weight's outputs) -> views, for the model operations and packed weights.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "bindings/views.h"
#include "registry.h"

namespace sparsed::python {

// Elements between the rows of an array [rows, cols] whose last axis must be contiguous.
int64_t row_stride(const Arguments& check, const char* argument, const py::array& array);
// An array [rows, cols] of float32 or bfloat16; the view borrows its memory.
cpu::RowsView rows_view(const Arguments& check, const char* argument, const py::object& object);
// The same for an array that is written to.
cpu::RowsView writable_rows(const Arguments& check, const char* argument, const py::object& object);
// A new array [rows, cols] and its view.
std::pair<py::array, cpu::RowsView> new_rows(const Arguments& check, DType dtype, int64_t rows, int64_t cols);
// A C-contiguous float32 array of `shape`, which `source` explains.
py::array_t<float> float_array(const Arguments& check, const char* argument, const py::object& object,
                               const std::vector<int64_t>& shape, const std::string& source);
// "float32" or "bfloat16".
DType dtype_argument(const Arguments& check, const char* argument, const py::object& object);
// The entries of a list or a tuple.
std::vector<py::object> list_of(const Arguments& check, const char* argument, const py::object& object,
                                const char* expected);

}  // namespace sparsed::python
