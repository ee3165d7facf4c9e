#include "bindings/device_memory.h"

#include <string>

#include "bindings/array_view.h"
#include "registry.h"
#include "support/error.h"

namespace sparsed::python {

DeviceMemory::DeviceMemory(const char* function, const py::object& memory) {
  if (memory.is_none()) return;
  device_ = {kDLCUDA, py::cast<int32_t>(memory.attr("device"))};
  std::string why;
  for (const std::string& reason : cuda_backend().not_supported_reasons()) why += (why.empty() ? "" : ", ") + reason;
  check(why.empty(), function, ": q is on ", device_name(device_), ", expected the CPU (", why, ")");
  memory_ = memory;
  stream_ = py::cast<int64_t>(memory.attr("stream")());
}

py::object DeviceMemory::empty(const std::vector<int64_t>& shape, DType dtype, const char* function,
                               const char* argument, void** data) const {
  py::tuple sizes(shape.size());
  for (size_t axis = 0; axis < shape.size(); ++axis) sizes[axis] = shape[axis];
  py::object array = memory_.attr("empty")(sizes, dtype_name(dtype));
  *data = array_view(array, function, argument, stream_).data;
  return array;
}

}  // namespace sparsed::python
