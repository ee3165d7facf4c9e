// The parts of the Python module, one per source file.
#pragma once

#include <pybind11/pybind11.h>

namespace sparsed::python {

void register_buffer(pybind11::module_& m);
void register_pattern(pybind11::module_& m);
void register_attention(pybind11::module_& m);
void register_pattern_cache(pybind11::module_& m);
void register_ops(pybind11::module_& m);

}  // namespace sparsed::python
