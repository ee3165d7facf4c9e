// The parts of the Python module, one per source file, and what their classes share.
#pragma once

#include <pybind11/pybind11.h>

namespace sparsed::python {

// For a class whose objects come from functions. Without it, what C.__new__(C) returns is memory that nobody
// initialised.
inline pybind11::custom_type_setup no_constructor() {
  return pybind11::custom_type_setup([](PyHeapTypeObject* type) {
    type->ht_type.tp_new = [](PyTypeObject* self, PyObject*, PyObject*) -> PyObject* {
      PyErr_Format(PyExc_TypeError, "%s has no constructor, only functions that make one", self->tp_name);
      return nullptr;
    };
  });
}

void register_buffer(pybind11::module_& m);
void register_pattern(pybind11::module_& m);
void register_attention(pybind11::module_& m);
void register_packed_key_values(pybind11::module_& m);
void register_pattern_cache(pybind11::module_& m);
void register_packed_weight(pybind11::module_& m);
void register_ops(pybind11::module_& m);

}  // namespace sparsed::python
