// Packed weights and the model operations.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/register.h"
#include "registry.h"
#include "support/available_memory.h"
#include "support/error.h"

namespace sparsed::python {
namespace {

using cpu::Confidence;
using cpu::PackedWeight;
using cpu::RowsView;
using cpu::WeightRows;

// Elements between the rows of an array [rows, cols] whose last axis must be contiguous.
int64_t row_stride(const py::array& array, const char* function, const char* argument) {
  const int64_t itemsize = array.itemsize();
  check(array.ndim() == 2, function, ": ", argument, " has shape ", shape_text(array), ", expected 2 axes");
  if (array.size() == 0) return array.shape(1);
  check(array.shape(1) == 1 || array.strides(1) == itemsize, function, ": ", argument,
        " has a last axis with a stride of ", array.strides(1), " bytes, expected ", itemsize, " (contiguous)");
  if (array.shape(0) == 1) return array.shape(1);
  check(array.strides(0) % itemsize == 0, function, ": ", argument, " has rows ", array.strides(0),
        " bytes apart, expected a multiple of ", itemsize);
  return array.strides(0) / itemsize;
}

void require_aligned(const py::array& array, const char* function, const char* argument) {
  check(array.size() == 0 || (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0, function, ": ", argument,
        " is not aligned, expected addresses that are multiples of ", array.itemsize());
}

// An array [rows, cols] of float32 or bfloat16; the view borrows its memory.
RowsView rows_view(const py::object& object, const char* function, const char* argument) {
  const py::array array = numpy_array(object, function, argument);
  RowsView view;
  view.dtype = element_type(array, function, argument, false);
  view.stride = row_stride(array, function, argument);
  require_aligned(array, function, argument);
  view.data = const_cast<void*>(array.data());
  view.rows = array.shape(0);
  view.cols = array.shape(1);
  return view;
}

// The same for an array that is written to.
RowsView writable_rows(const py::object& object, const char* function, const char* argument) {
  const RowsView view = rows_view(object, function, argument);
  check(py::reinterpret_borrow<py::array>(object).writeable(), function, ": ", argument,
        " is read-only, expected a writable array");
  check(view.rows <= 1 || std::abs(view.stride) >= view.cols, function, ": ", argument, " has rows ", view.stride,
        " elements apart, expected at least ", view.cols, " (no overlap)");
  return view;
}

// A C-contiguous float32 array of `shape`, which `source` explains.
py::array_t<float> float_array(const py::object& object, const std::vector<int64_t>& shape, const char* function,
                               const char* argument, const std::string& source) {
  const py::array array = numpy_array(object, function, argument);
  if (element_type(array, function, argument, false) != DType::kFloat32) {
    fail(ErrorKind::kType, function, ": ", argument, " has dtype bfloat16, expected float32");
  }
  const std::vector<int64_t> found(array.shape(), array.shape() + array.ndim());
  check(found == shape, function, ": ", argument, " has shape ", shape_text(array), ", expected ",
        shape_string(shape.data(), shape.size()), " (from ", source, ")");
  return py::array_t<float>(c_contiguous(array, function, argument));
}

DType dtype_argument(const py::object& object, const char* function, const char* argument) {
  if (!py::isinstance<py::str>(object)) wrong_type(object, function, argument, "\"float32\" or \"bfloat16\"");
  const std::string name = py::cast<std::string>(object);
  check(name == "float32" || name == "bfloat16", function, ": ", argument, " is \"", name,
        "\", expected \"float32\" or \"bfloat16\"");
  return name == "float32" ? DType::kFloat32 : DType::kBFloat16;
}

py::dtype numpy_dtype(DType dtype) {
  if (dtype == DType::kFloat32) return py::dtype::of<float>();
  return py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16"));
}

// A new array [rows, cols] and its view.
std::pair<py::array, RowsView> new_rows(DType dtype, int64_t rows, int64_t cols, const char* function) {
  py::array array = new_array(numpy_dtype(dtype), {rows, cols}, function, "out");
  return {array, RowsView{array.mutable_data(), dtype, rows, cols, cols}};
}

// --- packed weights ------------------------------------------------------------------------------------------------

// What is to be packed, by the names that messages give it.
struct WeightArguments {
  std::vector<WeightRows> parts;
  std::vector<py::array> alive;  // what the parts point into
  int64_t k = 0;

  void add(const py::object& object, const py::object& bias, const char* function, const std::string& name,
           const std::string& bias_name) {
    const py::array weight = numpy_array(object, function, name.c_str());
    WeightRows part;
    part.dtype = element_type(weight, function, name.c_str(), true);
    part.stride = row_stride(weight, function, name.c_str());
    part.data = weight.data();
    part.rows = weight.shape(0);
    check(parts.empty() || weight.shape(1) == k, function, ": ", name, " has shape ", shape_text(weight), ", expected ",
          k, " columns (from weights[0])");
    k = weight.shape(1);
    alive.push_back(weight);
    if (!bias.is_none()) {
      const py::array given = numpy_array(bias, function, bias_name.c_str());
      part.bias_dtype = element_type(given, function, bias_name.c_str(), true);
      check(given.ndim() == 1 && given.shape(0) == part.rows, function, ": ", bias_name, " has shape ",
            shape_text(given), ", expected [", part.rows, "] (from ", name, " ", shape_text(weight), ")");
      const py::array values = c_contiguous(given, function, bias_name.c_str());
      part.bias = values.data();
      alive.push_back(values);
    }
    parts.push_back(part);
  }

  // dtype None: bfloat16 where all parts have it, else float32.
  PackedWeight pack(const py::object& dtype, const char* function) const {
    DType packed = DType::kBFloat16;
    for (const WeightRows& part : parts) {
      if (part.dtype != DType::kBFloat16) packed = DType::kFloat32;
    }
    if (!dtype.is_none()) packed = dtype_argument(dtype, function, "dtype");
    const cpu::ModelOps& ops = active_ops();
    const py::gil_scoped_release release;
    return ops.pack_weight(parts, k, packed);
  }
};

PackedWeight pack_weight(const py::object& weight, const py::object& bias, const py::object& dtype) {
  WeightArguments arguments;
  arguments.add(weight, bias, "pack_weight", "weight", "bias");
  return arguments.pack(dtype, "pack_weight");
}

std::vector<py::object> list_of(const py::object& object, const char* function, const char* argument,
                                const char* expected) {
  if (!PyList_Check(object.ptr()) && !PyTuple_Check(object.ptr())) wrong_type(object, function, argument, expected);
  return py::cast<std::vector<py::object>>(object);
}

PackedWeight pack_weights(const py::object& weight_list, const py::object& bias_list, const py::object& dtype) {
  const char* function = "pack_weights";
  const std::vector<py::object> weights = list_of(weight_list, function, "weights", "a list of numpy arrays");
  check(!weights.empty(), function, ": weights has length 0, expected at least 1");
  std::vector<py::object> biases(weights.size(), py::none());
  if (!bias_list.is_none()) biases = list_of(bias_list, function, "biases", "a list of numpy arrays or None");
  check(biases.size() == weights.size(), function, ": biases has length ", biases.size(), ", expected ", weights.size(),
        " (from weights)");
  WeightArguments arguments;
  for (size_t i = 0; i < weights.size(); ++i) {
    arguments.add(weights[i], biases[i], function, message("weights[", i, "]"), message("biases[", i, "]"));
  }
  return arguments.pack(dtype, function);
}

// --- operations ----------------------------------------------------------------------------------------------------

py::array linear(const py::object& x_object, const py::object& w_object, const py::object& residual_object,
                 const py::object& out_dtype) {
  const char* function = "linear";
  const RowsView x = rows_view(x_object, function, "x");
  if (!py::isinstance<PackedWeight>(w_object)) wrong_type(w_object, function, "w", "a PackedWeight");
  const PackedWeight& w = py::cast<const PackedWeight&>(w_object);
  const RowsView residual = residual_object.is_none() ? RowsView{} : rows_view(residual_object, function, "residual");
  const DType dtype = out_dtype.is_none() ? x.dtype : dtype_argument(out_dtype, function, "out_dtype");
  const cpu::ModelOps& ops = active_ops();
  const auto [out, view] = new_rows(dtype, x.rows, w.n(), function);
  {
    const py::gil_scoped_release release;
    ops.linear(x, w, residual, view);
  }
  return out;
}

py::array rms_norm(const py::object& x_object, const py::object& weight_object, const py::object& eps_object) {
  const char* function = "rms_norm";
  const RowsView x = rows_view(x_object, function, "x");
  const py::array_t<float> weight = float_array(weight_object, {x.cols}, function, "weight", "the columns of x");
  const double eps = real_number(eps_object, function, "eps");
  check(eps >= 0.0 && std::isfinite(eps), function, ": eps is ", eps, ", expected a finite number, 0 or above");
  const cpu::ModelOps& ops = active_ops();
  const auto [out, view] = new_rows(x.dtype, x.rows, x.cols, function);
  {
    const py::gil_scoped_release release;
    ops.rms_norm(x, weight.data(), static_cast<float>(eps), view);
  }
  return out;
}

void rotary(const py::object& x_object, const py::object& head_dim_object, const py::object& cos_object,
            const py::object& sin_object) {
  const char* function = "rotary_";
  const RowsView x = writable_rows(x_object, function, "x");
  const int64_t head_dim = integer(head_dim_object, function, "head_dim");
  check(head_dim > 0 && head_dim % 2 == 0, function, ": head_dim is ", head_dim, ", expected an even number above 0");
  const std::vector<int64_t> shape{x.rows, head_dim / 2};
  const py::array_t<float> cos = float_array(cos_object, shape, function, "cos", "the rows of x and head_dim / 2");
  const py::array_t<float> sin = float_array(sin_object, shape, function, "sin", "the rows of x and head_dim / 2");
  const cpu::ModelOps& ops = active_ops();
  const py::gil_scoped_release release;
  ops.rotary(x, head_dim, cos.data(), sin.data());
}

// Whether an element of one lies in the other; views side by side in the same rows share none.
bool share_memory(const RowsView& a, const RowsView& b) {
  const auto range = [](const RowsView& view) {
    const int64_t rows = view.stride * (view.rows - 1), size = static_cast<int64_t>(dtype_size(view.dtype));
    const int64_t begin = reinterpret_cast<int64_t>(view.data) + std::min<int64_t>(rows, 0) * size;
    return std::pair{begin, begin + (std::abs(rows) + view.cols) * size};
  };
  if (a.rows == 0 || a.cols == 0) return false;
  const auto [a_begin, a_end] = range(a);
  const auto [b_begin, b_end] = range(b);
  if (a_end <= b_begin || b_end <= a_begin) return false;
  const int64_t stride = std::abs(a.stride);
  if (a.stride != b.stride || stride == 0 || a.dtype != b.dtype) return true;
  const int64_t bytes = static_cast<const char*>(b.data) - static_cast<const char*>(a.data);
  const int64_t apart = ((bytes / static_cast<int64_t>(dtype_size(a.dtype))) % stride + stride) % stride;
  return apart < a.cols || apart + a.cols > stride;
}

void silu_gate(const py::object& gate_object, const py::object& up_object) {
  const char* function = "silu_gate_";
  const RowsView gate = writable_rows(gate_object, function, "gate");
  const RowsView up = rows_view(up_object, function, "up");
  check(!share_memory(gate, up), function, ": up shares memory with gate, expected another array");
  const cpu::ModelOps& ops = active_ops();
  const py::gil_scoped_release release;
  ops.silu_gate(gate, up);
}

Confidence confidence_kind(const py::object& object, const char* function) {
  const char* expected = "\"probability\", \"margin\" or \"entropy\"";
  if (!py::isinstance<py::str>(object)) wrong_type(object, function, "kind", expected);
  const std::string name = py::cast<std::string>(object);
  if (name == "probability") return Confidence::kProbability;
  if (name == "margin") return Confidence::kMargin;
  check(name == "entropy", function, ": kind is \"", name, "\", expected ", expected);
  return Confidence::kNegativeEntropy;
}

py::typing::Tuple<py::array_t<int64_t>, py::array_t<float>> token_confidence(const py::object& logits_object,
                                                                             const py::object& kind_object) {
  const char* function = "token_confidence";
  const RowsView logits = rows_view(logits_object, function, "logits");
  const Confidence kind = confidence_kind(kind_object, function);
  py::array_t<int64_t> ids(new_array(py::dtype::of<int64_t>(), {logits.rows}, function, "ids"));
  py::array_t<float> confidence(new_array(py::dtype::of<float>(), {logits.rows}, function, "confidence"));
  int64_t* to_ids = ids.mutable_data();
  float* to_confidence = confidence.mutable_data();
  const cpu::ModelOps& ops = active_ops();
  {
    const py::gil_scoped_release release;
    ops.token_confidence(logits, kind, to_ids, to_confidence);
  }
  return py::make_tuple(ids, confidence);
}

}  // namespace

void register_ops(py::module_& m) {
  py::class_<PackedWeight>(m, "PackedWeight", no_constructor(),
                           "A weight matrix (N, K) in the order that the kernels read.")
      .def_property_readonly("shape", [](const PackedWeight& w) { return std::pair(w.n(), w.k()); })
      .def_property_readonly("dtype", [](const PackedWeight& w) { return dtype_name(w.dtype()); })
      .def_property_readonly("nbytes", &PackedWeight::nbytes)
      .def_property_readonly("has_bias", [](const PackedWeight& w) { return w.bias() != nullptr; })
      .def("__repr__", [](const PackedWeight& w) {
        return message("PackedWeight(shape=(", w.n(), ", ", w.k(), "), dtype=", dtype_name(w.dtype()), ")");
      });
  m.def("pack_weight", &pack_weight, py::arg("weight"), py::arg("bias"), py::arg("dtype"));
  m.def("pack_weights", &pack_weights, py::arg("weights"), py::arg("biases"), py::arg("dtype"));
  m.def("linear", &linear, py::arg("x"), py::arg("w"), py::arg("residual"), py::arg("out_dtype"));
  m.def("rms_norm", &rms_norm, py::arg("x"), py::arg("weight"), py::arg("eps"));
  m.def("rotary_", &rotary, py::arg("x"), py::arg("head_dim"), py::arg("cos"), py::arg("sin"));
  m.def("silu_gate_", &silu_gate, py::arg("gate"), py::arg("up"));
  m.def("token_confidence", &token_confidence, py::arg("logits"), py::arg("kind"));
  m.def(
      "require_memory", [](size_t bytes, const std::string& what) { require_memory(bytes, what.c_str()); },
      py::arg("bytes"), py::arg("what"));
}

}  // namespace sparsed::python
