// Python objects -> views and numbers, each checked here and nowhere else. Messages open with the function's name and
// name the argument, what was found and what was expected.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bindings/array_view.h"
#include "bindings/device_memory.h"
#include "core/backend.h"
#include "core/params.h"

namespace sparsed::python {

namespace py = pybind11;

// TypeError: "<function>: <argument> is a <type>, expected <expected>".
[[noreturn]] void wrong_type(const py::object& object, const char* function, const char* argument,
                             const char* expected);

// "[2, 3]".
std::string shape_text(const py::array& array);
py::array numpy_array(const py::object& object, const char* function, const char* argument);
// Of an array of `shape`; the largest size_t where they are more.
size_t nbytes(std::vector<int64_t> shape, int64_t itemsize);
// Itself, or a copy where its memory is not in C order.
py::array c_contiguous(const py::array& array, const char* function, const char* argument);
// float32, bfloat16 and, where it is allowed, float16; a TypeError otherwise.
DType element_type(const std::string& dtype, const char* function, const char* argument, bool float16);
DType element_type(const py::array& array, const char* function, const char* argument, bool float16);

// The one place that turns an array into a view: [B, heads, tokens, D] of float32, float16 or bfloat16 with a
// contiguous last axis. The view borrows the array's memory.
TensorView tensor_view(const ArrayView& array, const char* function, const char* argument);

double real_number(const py::object& object, const char* function, const char* argument);
// True or False, of Python or numpy.
bool boolean(const py::object& object, const char* function, const char* argument);
int64_t integer(const py::object& object, const char* function, const char* argument);
// A number above 0, at most 1e35.
float positive_scale(const py::object& object, const char* function, const char* argument);
// Only that it is an int: which ones are block sizes, check_geometry knows.
int block_size_number(const py::object& object, const char* function);
SelectionRule selection_rule(const py::object& object, const char* function);
// A C-contiguous array of bool with `rank` axes, which `axes` names, of any library.
py::array bool_array(const py::object& object, py::ssize_t rank, const char* axes, const char* function,
                     const char* argument);

struct AttentionArguments {
  AttentionParams params;         // without outputs; borrows q, k and v
  std::vector<py::object> alive;  // what params points into
  DeviceMemory memory;            // where q lies
  bool foreign = false;           // q is not numpy's: results in host memory leave as a Buffer
};

// q, k, v and key_mask that fit together. `v` nullptr: selection alone. scale None: 1 / sqrt(D). memory: what
// DeviceMemory takes.
AttentionArguments attention_arguments(const char* function, const py::object& q, const py::object& k,
                                       const py::object* v, const py::object& scale, const py::object& key_mask,
                                       const py::object& memory);
// The kernels for them.
const Backend& backend_for(const AttentionArguments& arguments);

// A new C-contiguous array; MemoryError, naming `argument`, before an allocation that cannot fit.
py::array new_array(const py::dtype& dtype, const std::vector<py::ssize_t>& shape, const char* function,
                    const char* argument);

// out [B, H, L, D] in the dtype of q, and like q with heads or tokens outside; params.out becomes its view. A numpy
// array, a Buffer or an array of the device's library, as q came.
py::object new_output(const char* function, AttentionArguments& arguments);
// lse [B, H, L]; params.lse points at it.
py::object new_lse(const char* function, AttentionArguments& arguments);

}  // namespace sparsed::python
