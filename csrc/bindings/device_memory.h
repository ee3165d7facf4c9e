// Where a call's arrays lie. The library of arrays on a CUDA device gives the stream, and memory for the results.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "bindings/dlpack.h"
#include "core/tensor.h"

namespace sparsed::python {

namespace py = pybind11;

class DeviceMemory {
 public:
  DeviceMemory() = default;  // the host's
  // memory: a sparsed.kernels.arrays.DeviceMemory, or None for the host's. A ValueError where no CUDA kernel can run.
  DeviceMemory(const char* function, const py::object& memory);

  bool on_host() const { return !stream_; }
  DLDevice device() const { return device_; }
  std::optional<int64_t> stream() const { return stream_; }  // as DLPack counts streams, and the CUDA runtime too
  // A new row-major array of the library; *data becomes its address.
  py::object empty(const std::vector<int64_t>& shape, DType dtype, const char* function, const char* argument,
                   void** data) const;

 private:
  py::object memory_;
  DLDevice device_{kDLCPU, 0};
  std::optional<int64_t> stream_;
};

}  // namespace sparsed::python
