// Results for libraries whose arrays cannot be written to: memory that exports itself through DLPack.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "bindings/scalars.h"
#include "core/tensor.h"

namespace sparsed::python {

// Row-major, from an address that is a multiple of 64: what every library takes without a copy.
class Buffer {
 public:
  // MemoryError, naming `argument`, before an allocation that cannot fit.
  Buffer(const Arguments& check, const char* argument, DType dtype, std::vector<int64_t> shape);

  // The same memory with axes 1 and 2 exchanged.
  void swap_heads_and_tokens();
  // A new DLPack capsule; the memory lives as long as one of them is in use.
  py::capsule capsule() const;

 private:
  py::array memory_;
  void* data_;
  DType dtype_;
  std::vector<int64_t> shape_, strides_;  // strides in elements
};

}  // namespace sparsed::python
