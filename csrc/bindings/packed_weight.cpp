// Weights of linear layers, packed for the kernels.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/register.h"
#include "bindings/rows.h"
#include "registry.h"

namespace sparsed::python {
namespace {

using cpu::PackedWeight;
using cpu::WeightRows;

// float32, float16, bfloat16 or, beside scales, int8.
DType weight_type(const Arguments& check, const char* argument, const py::array& weight) {
  if (py::cast<std::string>(py::str(weight.dtype())) == "int8") return DType::kInt8;
  return element_type(check, argument, weight, true);
}

// What is to be packed, by the names that messages give it.
class WeightArguments {
 public:
  // `index`: "" or "[1]" behind an argument's name.
  void add(const Arguments& check, const std::string& argument, const std::string& index, const py::object& object,
           const py::object& bias, const py::object& scales) {
    const bool several = !index.empty();
    const std::string name = argument + index, bias_name = (several ? "biases" : "bias") + index;
    const py::array weight = numpy_array(check, name.c_str(), object);
    WeightRows part;
    part.name = name;
    part.dtype = weight_type(check, name.c_str(), weight);
    part.stride = row_stride(check, name.c_str(), weight);
    part.data = weight.data();
    part.rows = weight.shape(0);
    check(parts_.empty() || weight.shape(1) == k_, name, " has shape ", shape_text(weight), ", expected ", k_,
          " columns (from weights[0])");
    k_ = weight.shape(1);
    alive_.push_back(weight);
    if (!bias.is_none()) {
      const py::array given = numpy_array(check, bias_name.c_str(), bias);
      part.bias_dtype = element_type(check, bias_name.c_str(), given, true);
      check(given.ndim() == 1 && given.shape(0) == part.rows, bias_name, " has shape ", shape_text(given),
            ", expected [", part.rows, "] (from ", name, " ", shape_text(weight), ")");
      const py::array values = c_contiguous(check, bias_name.c_str(), given);
      part.bias = values.data();
      alive_.push_back(values);
    }
    add_scales(check, "scales" + index, scales, part);
    parts_.push_back(part);
  }

  PackedWeight pack(const Arguments& check, const py::object& dtype) const {
    const DType packed = packed_dtype(check, dtype);
    const cpu::ModelOps& ops = active_ops();
    const py::gil_scoped_release release;
    return check.named([&] { return ops.pack_weight(parts_, k_, packed); });
  }

 private:
  void add_scales(const Arguments& check, const std::string& scales_name, const py::object& scales, WeightRows& part) {
    if (part.dtype != DType::kInt8) {
      check(scales.is_none(), scales_name, " is given, expected None with ", part.name, " of dtype ",
            dtype_name(part.dtype), " (int8 weights have scales)");
      return;
    }
    check(!scales.is_none(), scales_name, " is None, expected the scales [", part.rows, "] of ", part.name,
          ", whose dtype is int8");
    const py::array_t<float> values =
        float_array(check, scales_name.c_str(), scales, {part.rows}, "the rows of " + part.name);
    part.scales = values.data();
    for (int64_t i = 0; i < part.rows; ++i) {
      check(std::isfinite(part.scales[i]) && part.scales[i] >= 0.f, scales_name, "[", i, "] is ", part.scales[i],
            ", expected a finite number, 0 or above");
    }
    alive_.push_back(values);
  }

  // None: what all parts have, of int8 and bfloat16; float32 otherwise.
  DType packed_dtype(const Arguments& check, const py::object& dtype) const {
    constexpr DType kPacked[] = {DType::kFloat32, DType::kBFloat16, DType::kInt8};
    DType packed = parts_[0].dtype == DType::kFloat16 ? DType::kFloat32 : parts_[0].dtype;
    for (const WeightRows& part : parts_) {
      if (part.dtype != packed) packed = DType::kFloat32;
    }
    if (!dtype.is_none()) packed = kPacked[check.choice("dtype", dtype, {"float32", "bfloat16", "int8"})];
    for (const WeightRows& part : parts_) {
      check(part.dtype != DType::kInt8 || packed == DType::kInt8, "dtype is ",
            dtype.is_none() ? "None" : dtype_name(packed), ", expected \"int8\" (from ", part.name,
            ", whose dtype is int8)");
    }
    return packed;
  }

  std::vector<WeightRows> parts_;
  std::vector<py::array> alive_;  // what the parts point into
  int64_t k_ = 0;
};

PackedWeight pack_weight(const py::object& weight, const py::object& bias, const py::object& dtype,
                         const py::object& scales) {
  const Arguments check("pack_weight");
  WeightArguments arguments;
  arguments.add(check, "weight", "", weight, bias, scales);
  return arguments.pack(check, dtype);
}

// One entry for each of `count` weights; None stands for as many.
std::vector<py::object> list_or_none(const Arguments& check, const char* argument, const py::object& object,
                                     size_t count) {
  if (object.is_none()) return std::vector<py::object>(count, py::none());
  const std::vector<py::object> list = list_of(check, argument, object, "a list of numpy arrays or None");
  check(list.size() == count, argument, " has length ", list.size(), ", expected ", count, " (from weights)");
  return list;
}

PackedWeight pack_weights(const py::object& weight_list, const py::object& bias_list, const py::object& dtype,
                          const py::object& scale_list) {
  const Arguments check("pack_weights");
  const std::vector<py::object> weights = list_of(check, "weights", weight_list, "a list of numpy arrays");
  check(!weights.empty(), "weights has length 0, expected at least 1");
  const std::vector<py::object> biases = list_or_none(check, "biases", bias_list, weights.size());
  const std::vector<py::object> scales = list_or_none(check, "scales", scale_list, weights.size());
  WeightArguments arguments;
  for (size_t i = 0; i < weights.size(); ++i) {
    arguments.add(check, "weights", message("[", i, "]"), weights[i], biases[i], scales[i]);
  }
  return arguments.pack(check, dtype);
}

py::typing::Tuple<py::array_t<int8_t>, py::array_t<float>> quantize_rows(const py::object& object) {
  const Arguments check("quantize_rows");
  const py::array weight = numpy_array(check, "weight", object);
  WeightRows part;
  part.dtype = element_type(check, "weight", weight, true);
  part.stride = row_stride(check, "weight", weight);
  part.data = weight.data();
  part.rows = weight.shape(0);
  const int64_t k = weight.shape(1);
  py::array_t<int8_t> values(new_array(check, "values", py::dtype::of<int8_t>(), {part.rows, k}));
  py::array_t<float> scales(new_array(check, "scales", py::dtype::of<float>(), {part.rows}));
  int8_t* to_values = values.mutable_data();
  float* to_scales = scales.mutable_data();
  const cpu::ModelOps& ops = active_ops();
  {
    const py::gil_scoped_release release;
    check.named([&] { ops.quantize_rows(part, k, to_values, to_scales); });
  }
  return py::make_tuple(values, scales);
}

// A copy of the N scales, or None.
std::optional<py::array_t<float>> scales_of(const PackedWeight& w) {
  if (!w.scales()) return std::nullopt;
  py::array_t<float> scales(new_array("PackedWeight", "scales", py::dtype::of<float>(), {w.n()}));
  std::copy_n(w.scales(), w.n(), scales.mutable_data());
  return scales;
}

}  // namespace

void register_packed_weight(py::module_& m) {
  py::class_<PackedWeight>(m, "PackedWeight", no_constructor(),
                           "A weight matrix (N, K) in the order that the kernels read.")
      .def_property_readonly("shape", [](const PackedWeight& w) { return std::pair(w.n(), w.k()); })
      .def_property_readonly("dtype", [](const PackedWeight& w) { return dtype_name(w.dtype()); })
      .def_property_readonly("nbytes", &PackedWeight::nbytes)
      .def_property_readonly("scales", &scales_of,
                             "(N,) float32, the scale of each output's integers; None unless dtype is int8.")
      .def_property_readonly("has_bias", [](const PackedWeight& w) { return w.bias() != nullptr; })
      .def("__repr__", [](const PackedWeight& w) {
        return message("PackedWeight(shape=(", w.n(), ", ", w.k(), "), dtype=", dtype_name(w.dtype()), ")");
      });
  m.def("pack_weight", &pack_weight, py::arg("weight"), py::arg("bias"), py::arg("dtype"), py::arg("scales"));
  m.def("pack_weights", &pack_weights, py::arg("weights"), py::arg("biases"), py::arg("dtype"), py::arg("scales"));
  m.def("quantize_rows", &quantize_rows, py::arg("weight"));
}

}  // namespace sparsed::python
