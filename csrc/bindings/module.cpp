#include <pybind11/pybind11.h>

#include "bindings/register.h"
#include "support/error.h"
#include "support/interrupt.h"

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

PYBIND11_MODULE(core, m) {
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
  sparsed::python::register_packed_key_values(m);
  sparsed::python::register_pattern_cache(m);
  sparsed::python::register_packed_weight(m);
  sparsed::python::register_ops(m);
}

// What Python looks for. pybind11's own start waits for ever for the GIL in a subinterpreter of Python 3.11 and older,
// so that these are refused before it.
extern "C" PYBIND11_EXPORT PyObject* PyInit__core() {
  if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
    PyErr_SetString(PyExc_ImportError, "sparsed: import in a subinterpreter, expected the main interpreter");
    return nullptr;
  }
  return PyInit_core();
}
