// Keys and values that stay packed, for arrays in host memory.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/attention_arguments.h"
#include "bindings/register.h"
#include "bindings/views.h"
#include "core/pattern.h"
#include "registry.h"

namespace sparsed::python {
namespace {

using cpu::KvShape;
using cpu::PackedKeyValues;

DType dtype_argument(const Arguments& check, const py::object& object) {
  constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  return kDTypes[check.choice("dtype", object, {"float32", "float16", "bfloat16"})];
}

KvShape shape_argument(const Arguments& check, const py::object& batch, const py::object& kv_heads,
                       const py::object& length, const py::object& head_dim) {
  const auto size = [&](const char* name, const py::object& object) {
    const int64_t value = check.integer(name, object);
    check.range(name, value, 1, kMaxLength);
    return value;
  };
  KvShape shape{size("batch", batch), size("kv_heads", kv_heads), size("length", length), 0};
  const int64_t dim = check.integer("head_dim", head_dim);
  check_head_dim(check, "head_dim is", dim, "");
  shape.head_dim = static_cast<int>(dim);
  return shape;
}

size_t packed_nbytes(const py::object& batch, const py::object& kv_heads, const py::object& length,
                     const py::object& head_dim, const py::object& dtype) {
  const Arguments check("PackedKeyValues.required_nbytes");
  const KvShape shape = shape_argument(check, batch, kv_heads, length, head_dim);
  return cpu::PackedKv::nbytes(active_attention_kernels(dtype_argument(check, dtype)), shape);
}

std::unique_ptr<PackedKeyValues> packed_key_values(const py::object& batch, const py::object& kv_heads,
                                                   const py::object& length, const py::object& head_dim,
                                                   const py::object& dtype, const py::object& key_mask) {
  const Arguments check("PackedKeyValues");
  const KvShape shape = shape_argument(check, batch, kv_heads, length, head_dim);
  const DType element = dtype_argument(check, dtype);
  const cpu::AttentionKernels& kernels = active_attention_kernels(element);
  std::optional<py::array> mask;
  if (!key_mask.is_none()) {
    mask = bool_array(check, "key_mask", key_mask, 2, "[batch, keys]");
    check(mask->shape(0) == shape.batch && mask->shape(1) == shape.length, "key_mask has shape ", shape_text(*mask),
          ", expected [", shape.batch, ", ", shape.length, "] (batch and length)");
  }
  return check.named([&] {
    return std::make_unique<PackedKeyValues>(kernels, element, shape,
                                             mask ? static_cast<const uint8_t*>(mask->data()) : nullptr);
  });
}

// Its k or v [B, H_kv, R, D].
TensorView new_rows(const Arguments& check, const char* name, const py::object& object, const PackedKeyValues& self,
                    int64_t rows, const std::string& rows_source, std::vector<py::object>& alive) {
  const ArrayView array = array_view(check, name, object);
  alive.push_back(array.owner);
  require_device(check, name, array, {kDLCPU, 0}, " (where the keys and values are packed)");
  const TensorView view = tensor_view(check, name, array);
  if (view.dtype != self.dtype()) {
    check.fail(ErrorKind::kType, name, " has dtype ", dtype_name(view.dtype), ", expected ", dtype_name(self.dtype()),
               " (that of the packed keys)");
  }
  Shape4 shape = self.shape();
  shape[2] = rows;
  check(view.shape == shape, name, " has shape ", shape_string(view.shape), ", expected ", shape_string(shape),
        rows_source);
  return view;
}

// [R] int64, ascending.
py::array positions_array(const Arguments& check, const py::object& object, int64_t length) {
  const py::array array = numpy_array(check, "positions", object);
  const std::string dtype = py::cast<std::string>(py::str(array.dtype()));
  if (dtype != "int64") check.fail(ErrorKind::kType, "positions has dtype ", dtype, ", expected int64");
  check(array.ndim() == 1, "positions has shape ", shape_text(array), ", expected 1 axis");
  const py::array contiguous = c_contiguous(check, "positions", array);
  const auto* values = static_cast<const int64_t*>(contiguous.data());
  for (py::ssize_t i = 0; i < contiguous.size(); ++i) {
    check.range(message("positions[", i, "]"), values[i], 0, length - 1);
    check(i == 0 || values[i - 1] < values[i], "positions[", i, "] is ", values[i], " behind ", values[i ? i - 1 : 0],
          ", expected ascending positions");
  }
  return contiguous;
}

void update(PackedKeyValues& self, const py::object& positions, const py::object& k, const py::object& v) {
  const Arguments check("PackedKeyValues.update");
  std::vector<py::object> alive;
  const int64_t* at = nullptr;
  int64_t rows = self.shape()[2];
  std::string source = " (all positions)";
  if (!positions.is_none()) {
    const py::array array = positions_array(check, positions, rows);
    alive.push_back(array);
    at = static_cast<const int64_t*>(array.data());
    rows = array.size();
    source = message(" (from positions [", rows, "])");
  }
  const TensorView keys = new_rows(check, "k", k, self, rows, source, alive);
  const TensorView values = new_rows(check, "v", v, self, rows, source, alive);
  const py::gil_scoped_release release;
  self.put(at, keys, values);
}

void attention(const PackedKeyValues& self, const py::object& q, const py::object& out, const py::object& lse,
               const py::object& scale) {
  const Arguments check("PackedKeyValues.attention");
  TensorView keys;
  keys.dtype = self.dtype();
  keys.shape = self.shape();
  const AttentionArguments arguments =
      packed_attention_arguments(check, {q, py::none(), py::none(), out, lse, py::none(), scale, py::none()}, keys);
  const py::gil_scoped_release release;
  check.named([&] { self.attention(arguments.params); });
}

}  // namespace

void register_packed_key_values(py::module_& m) {
  py::class_<PackedKeyValues>(m, "PackedKeyValues", no_constructor(),
                              "Keys and values in the order that the kernels read, of ``sparsed.PackedKeyValues``.")
      .def("update", &update, py::arg("positions"), py::arg("k"), py::arg("v"))
      .def("attention", &attention, py::arg("q"), py::arg("out"), py::arg("lse"), py::arg("scale"),
           "Writes out, and lse unless it is None.")
      .def_property_readonly("shape",
                             [](const PackedKeyValues& self) {
                               const auto [batch, kv_heads, length, head_dim] = self.shape();
                               return std::tuple(batch, kv_heads, length, head_dim);
                             })
      .def_property_readonly("dtype", [](const PackedKeyValues& self) { return dtype_name(self.dtype()); })
      .def_property_readonly("nbytes", &PackedKeyValues::nbytes);
  m.def("packed_key_values", &packed_key_values, py::arg("batch"), py::arg("kv_heads"), py::arg("length"),
        py::arg("head_dim"), py::arg("dtype"), py::arg("key_mask"));
  m.def("packed_nbytes", &packed_nbytes, py::arg("batch"), py::arg("kv_heads"), py::arg("length"), py::arg("head_dim"),
        py::arg("dtype"));
}

}  // namespace sparsed::python
