#include <pybind11/pybind11.h>

#include "bindings/register.h"
#include "core/error.h"
#include "core/interrupt.h"

namespace py = pybind11;

namespace {

PyObject* exception_type(sparsed::ErrorKind kind) {
  switch (kind) {
    case sparsed::ErrorKind::kValue: return PyExc_ValueError;
    case sparsed::ErrorKind::kType: return PyExc_TypeError;
    case sparsed::ErrorKind::kMemory: return PyExc_MemoryError;
    case sparsed::ErrorKind::kFileNotFound: return PyExc_FileNotFoundError;
    case sparsed::ErrorKind::kOs: break;
  }
  return PyExc_OSError;
}

// Python runs signal handlers in its main thread alone; other threads need not ask for the GIL.
unsigned long g_main_thread = 0;

void poll_signals() {
  if (PyThread_get_thread_ident() != g_main_thread) return;
  const py::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Compiled part of sparsed; use it through the package.";
  py::register_exception_translator([](std::exception_ptr failure) {
    try {
      if (failure) std::rethrow_exception(failure);
    } catch (const sparsed::Error& error) {
      py::set_error(exception_type(error.kind()), error.what());
    }
  });
  g_main_thread = py::cast<unsigned long>(py::module_::import("threading").attr("main_thread")().attr("ident"));
  sparsed::set_interrupt_poll(poll_signals);
  sparsed::python::register_buffer(m);
  sparsed::python::register_pattern(m);
  sparsed::python::register_attention(m);
  sparsed::python::register_pattern_cache(m);
  sparsed::python::register_ops(m);
}
