// Python objects -> numbers, each checked here and nowhere else.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/params.h"
#include "support/checker.h"

namespace sparsed::python {

namespace py = pybind11;

// A Checker of arguments that come from Python. Errors name the argument, what was found and what was expected.
class Arguments : public Checker {
 public:
  using Checker::Checker;

  // TypeError: "<argument> is a <type>, expected <expected>".
  [[noreturn]] void wrong_type(const char* argument, const py::object& object, const char* expected) const;

  double number(const char* argument, const py::object& object) const;
  bool boolean(const char* argument, const py::object& object) const;  // True or False, of Python or numpy
  int64_t integer(const char* argument, const py::object& object) const;
  // The position of a str among `names`.
  size_t choice(const char* argument, const py::object& object, std::initializer_list<const char*> names) const;
  // A number above 0, at most 1e35.
  float positive_scale(const char* argument, const py::object& object) const;
  // Only that it is an int: which ones are block sizes, check_geometry knows.
  int block_size(const py::object& object) const;
  SelectionRule selection_rule(const py::object& object) const;
  bool dense_generation(const py::object& object) const;
};

// str, bytes or os.PathLike as the file system's bytes.
std::string path_string(const Arguments& check, const py::object& path);

}  // namespace sparsed::python
