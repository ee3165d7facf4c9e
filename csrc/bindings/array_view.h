// Arrays of any library as they lie in memory: numpy's through its own interface, all others through DLPack.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bindings/dlpack.h"
#include "bindings/scalars.h"

namespace sparsed::python {

struct ArrayView {
  py::object owner;  // keeps the memory alive
  void* data = nullptr;
  DLDevice device{kDLCPU, 0};
  std::string dtype;  // "float32", as numpy writes it
  int64_t itemsize = 0;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // in bytes
  bool writable = true;

  bool empty() const;
};

// Nothing is copied. A TypeError for what is neither a numpy array nor exports itself through DLPack.
// stream: where arrays on a CUDA device will be used, as DLPack counts streams.
ArrayView array_view(const Arguments& check, const char* argument, const py::object& object,
                     std::optional<int64_t> stream = std::nullopt);

// Memory that the CPU reads.
bool on_cpu(DLDevice device);
bool same_device(DLDevice a, DLDevice b);
// "the CPU", "CUDA device 1".
std::string device_name(DLDevice device);

}  // namespace sparsed::python
