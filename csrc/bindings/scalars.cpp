#include "bindings/scalars.h"

#include <cmath>
#include <limits>

namespace sparsed::python {
namespace {

std::string type_name(const py::object& object) {
  const py::type type = py::type::of(object);
  const std::string module = py::cast<std::string>(type.attr("__module__"));
  const std::string name = py::cast<std::string>(type.attr("__qualname__"));
  return module == "builtins" ? name : module + "." + name;
}

}  // namespace

void Arguments::wrong_type(const char* argument, const py::object& object, const char* expected) const {
  fail(ErrorKind::kType, argument, " is a ", type_name(object), ", expected ", expected);
}

double Arguments::number(const char* argument, const py::object& object) const {
  const bool real = PyFloat_Check(object.ptr()) || py::isinstance(object, py::module_::import("numbers").attr("Real"));
  if (!real || PyBool_Check(object.ptr())) wrong_type(argument, object, "a number");
  const double value = PyFloat_AsDouble(object.ptr());
  if (value == -1.0 && PyErr_Occurred()) {
    PyErr_Clear();  // OverflowError: an int beyond float64
    fail(ErrorKind::kValue, argument, " is beyond float64, expected a finite number");
  }
  return value;
}

bool Arguments::boolean(const char* argument, const py::object& object) const {
  if (!PyBool_Check(object.ptr()) && !py::isinstance(object, py::module_::import("numpy").attr("bool_"))) {
    wrong_type(argument, object, "True or False");
  }
  return PyObject_IsTrue(object.ptr()) == 1;
}

int64_t Arguments::integer(const char* argument, const py::object& object) const {
  if (!PyIndex_Check(object.ptr()) || PyBool_Check(object.ptr())) wrong_type(argument, object, "an int");
  const py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()));
  if (!index) {  // an array of several elements, for instance
    PyErr_Clear();
    wrong_type(argument, object, "an int");
  }
  int overflow = 0;
  const int64_t value = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  (*this)(overflow == 0, argument, " is ", py::cast<std::string>(py::str(index)), ", expected an int of 64 bits");
  return value;
}

size_t Arguments::choice(const char* argument, const py::object& object,
                         std::initializer_list<const char*> names) const {
  std::string expected;
  for (const char* const* name = names.begin(); name != names.end(); ++name) {
    if (!expected.empty()) expected += name + 1 == names.end() ? " or " : ", ";
    expected.append("\"").append(*name).append("\"");
  }
  if (!py::isinstance<py::str>(object)) wrong_type(argument, object, expected.c_str());
  const std::string given = py::cast<std::string>(object);
  for (const char* const* name = names.begin(); name != names.end(); ++name) {
    if (given == *name) return static_cast<size_t>(name - names.begin());
  }
  fail(ErrorKind::kValue, argument, " is \"", given, "\", expected ", expected);
}

float Arguments::positive_scale(const char* argument, const py::object& object) const {
  const double value = number(argument, object);
  const float scale = static_cast<float>(value);
  (*this)(std::isfinite(scale) && scale > 0.f, argument, " is ", value, ", expected a finite number above 0");
  constexpr float kMost = 1e35f;  // the kernels multiply it by log2(e) and a power of two
  (*this)(scale <= kMost, argument, " is ", value, ", expected at most ", kMost);
  return scale;
}

int Arguments::block_size(const py::object& object) const {
  const int64_t size = integer("block_size", object);
  (*this)(size >= 0 && size <= std::numeric_limits<int>::max(), "block_size is ", size,
          ", expected 16, 32, 64, 128 or 256");
  return static_cast<int>(size);
}

SelectionRule Arguments::selection_rule(const py::object& object) const {
  if (PyCallable_Check(object.ptr())) return SelectionRule::kCaller;
  return choice("selection", object, {"paper", "reference"}) == 0 ? SelectionRule::kPaper : SelectionRule::kReference;
}

std::string path_string(const Arguments& check, const py::object& path) {
  PyObject* bytes = nullptr;
  if (!PyUnicode_FSConverter(path.ptr(), &bytes)) {
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();  // a zero byte: ValueError
    PyErr_Clear();
    check.wrong_type("path", path, "a str or os.PathLike");
  }
  return py::cast<std::string>(py::reinterpret_steal<py::bytes>(bytes));
}

bool Arguments::dense_generation(const py::object& object) const {
  return choice("generation", object, {"dense", "sparse"}) == 0;
}

}  // namespace sparsed::python
