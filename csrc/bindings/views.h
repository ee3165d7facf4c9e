// Arrays of any library -> views: checked here and nowhere else.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bindings/array_view.h"
#include "bindings/scalars.h"
#include "core/tensor.h"

namespace sparsed::python {

// "[2, 3]".
std::string shape_text(const py::array& array);
py::array numpy_array(const Arguments& check, const char* argument, const py::object& object);
// Itself, or a copy where its memory is not in C order.
py::array c_contiguous(const Arguments& check, const char* argument, const py::array& array);
// float32, bfloat16 and, where it is allowed, float16; a TypeError otherwise.
DType element_type(const Arguments& check, const char* argument, const std::string& dtype, bool float16);
DType element_type(const Arguments& check, const char* argument, const py::array& array, bool float16);

// [B, heads, tokens, D] of float32, float16 or bfloat16 with a contiguous last axis. The view borrows the memory.
TensorView tensor_view(const Arguments& check, const char* argument, const ArrayView& array);
// An array of bool with `rank` axes, which `axes` names, on `device`.
ArrayView bool_view(const Arguments& check, const char* argument, const ArrayView& array, size_t rank,
                    const char* axes);
// A C-contiguous array of bool in host memory, of any library.
py::array bool_array(const Arguments& check, const char* argument, const py::object& object, size_t rank,
                     const char* axes);
py::array contiguous_bools(const Arguments& check, const char* argument, const ArrayView& view);
// `source` says where the expected device comes from.
void require_device(const Arguments& check, const char* argument, const ArrayView& array, DLDevice device,
                    const char* source);

// A new C-contiguous array; MemoryError, naming `argument`, before an allocation that cannot fit.
py::array new_array(const Arguments& check, const char* argument, const py::dtype& dtype,
                    const std::vector<py::ssize_t>& shape);

}  // namespace sparsed::python
