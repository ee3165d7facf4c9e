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

#include "bindings/register.h"
#include "bindings/views.h"
#include "registry.h"

namespace sparsed::python {
namespace {

using cpu::Confidence;
using cpu::PackedWeight;
using cpu::RowsView;
using cpu::WeightRows;

// Elements between the rows of an array [rows, cols] whose last axis must be contiguous.
int64_t row_stride(const Arguments& check, const char* argument, const py::array& array) {
  const int64_t itemsize = array.itemsize();
  check(array.ndim() == 2, argument, " has shape ", shape_text(array), ", expected 2 axes");
  if (array.size() == 0) return array.shape(1);
  check(array.shape(1) == 1 || array.strides(1) == itemsize, argument, " has a last axis with a stride of ",
        array.strides(1), " bytes, expected ", itemsize, " (contiguous)");
  if (array.shape(0) == 1) return array.shape(1);
  check(array.strides(0) % itemsize == 0, argument, " has rows ", array.strides(0),
        " bytes apart, expected a multiple of ", itemsize);
  return array.strides(0) / itemsize;
}

void require_aligned(const Arguments& check, const char* argument, const py::array& array) {
  check(array.size() == 0 || (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0, argument,
        " is not aligned, expected addresses that are multiples of ", array.itemsize());
}

// An array [rows, cols] of float32 or bfloat16; the view borrows its memory.
RowsView rows_view(const Arguments& check, const char* argument, const py::object& object) {
  const py::array array = numpy_array(check, argument, object);
  RowsView view;
  view.dtype = element_type(check, argument, array, false);
  view.stride = row_stride(check, argument, array);
  require_aligned(check, argument, array);
  view.data = const_cast<void*>(array.data());
  view.rows = array.shape(0);
  view.cols = array.shape(1);
  return view;
}

// The same for an array that is written to.
RowsView writable_rows(const Arguments& check, const char* argument, const py::object& object) {
  const RowsView view = rows_view(check, argument, object);
  check(py::reinterpret_borrow<py::array>(object).writeable(), argument, " is read-only, expected a writable array");
  check(view.rows <= 1 || std::abs(view.stride) >= view.cols, argument, " has rows ", view.stride,
        " elements apart, expected at least ", view.cols, " (no overlap)");
  return view;
}

// A C-contiguous float32 array of `shape`, which `source` explains.
py::array_t<float> float_array(const Arguments& check, const char* argument, const py::object& object,
                               const std::vector<int64_t>& shape, const std::string& source) {
  const py::array array = numpy_array(check, argument, object);
  if (element_type(check, argument, array, false) != DType::kFloat32) {
    check.fail(ErrorKind::kType, argument, " has dtype bfloat16, expected float32");
  }
  const std::vector<int64_t> found(array.shape(), array.shape() + array.ndim());
  check(found == shape, argument, " has shape ", shape_text(array), ", expected ",
        shape_string(shape.data(), shape.size()), " (from ", source, ")");
  return py::array_t<float>(c_contiguous(check, argument, array));
}

DType dtype_argument(const Arguments& check, const char* argument, const py::object& object) {
  return check.choice(argument, object, {"float32", "bfloat16"}) == 0 ? DType::kFloat32 : DType::kBFloat16;
}

py::dtype numpy_dtype(DType dtype) {
  if (dtype == DType::kFloat32) return py::dtype::of<float>();
  return py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16"));
}

// A new array [rows, cols] and its view.
std::pair<py::array, RowsView> new_rows(const Arguments& check, DType dtype, int64_t rows, int64_t cols) {
  py::array array = new_array(check, "out", numpy_dtype(dtype), {rows, cols});
  return {array, RowsView{array.mutable_data(), dtype, rows, cols, cols}};
}

// --- packed weights ------------------------------------------------------------------------------------------------

// What is to be packed, by the names that messages give it.
struct WeightArguments {
  std::vector<WeightRows> parts;
  std::vector<py::array> alive;  // what the parts point into
  int64_t k = 0;

  void add(const Arguments& check, const py::object& object, const py::object& bias, const std::string& name,
           const std::string& bias_name) {
    const py::array weight = numpy_array(check, name.c_str(), object);
    WeightRows part;
    part.dtype = element_type(check, name.c_str(), weight, true);
    part.stride = row_stride(check, name.c_str(), weight);
    part.data = weight.data();
    part.rows = weight.shape(0);
    check(parts.empty() || weight.shape(1) == k, name, " has shape ", shape_text(weight), ", expected ", k,
          " columns (from weights[0])");
    k = weight.shape(1);
    alive.push_back(weight);
    if (!bias.is_none()) {
      const py::array given = numpy_array(check, bias_name.c_str(), bias);
      part.bias_dtype = element_type(check, bias_name.c_str(), given, true);
      check(given.ndim() == 1 && given.shape(0) == part.rows, bias_name, " has shape ", shape_text(given),
            ", expected [", part.rows, "] (from ", name, " ", shape_text(weight), ")");
      const py::array values = c_contiguous(check, bias_name.c_str(), given);
      part.bias = values.data();
      alive.push_back(values);
    }
    parts.push_back(part);
  }

  // dtype None: bfloat16 where all parts have it, else float32.
  PackedWeight pack(const Arguments& check, const py::object& dtype) const {
    DType packed = DType::kBFloat16;
    for (const WeightRows& part : parts) {
      if (part.dtype != DType::kBFloat16) packed = DType::kFloat32;
    }
    if (!dtype.is_none()) packed = dtype_argument(check, "dtype", dtype);
    const cpu::ModelOps& ops = active_ops();
    const py::gil_scoped_release release;
    return ops.pack_weight(parts, k, packed);
  }
};

PackedWeight pack_weight(const py::object& weight, const py::object& bias, const py::object& dtype) {
  const Arguments check("pack_weight");
  WeightArguments arguments;
  arguments.add(check, weight, bias, "weight", "bias");
  return arguments.pack(check, dtype);
}

std::vector<py::object> list_of(const Arguments& check, const char* argument, const py::object& object,
                                const char* expected) {
  if (!PyList_Check(object.ptr()) && !PyTuple_Check(object.ptr())) check.wrong_type(argument, object, expected);
  return py::cast<std::vector<py::object>>(object);
}

PackedWeight pack_weights(const py::object& weight_list, const py::object& bias_list, const py::object& dtype) {
  const Arguments check("pack_weights");
  const std::vector<py::object> weights = list_of(check, "weights", weight_list, "a list of numpy arrays");
  check(!weights.empty(), "weights has length 0, expected at least 1");
  std::vector<py::object> biases(weights.size(), py::none());
  if (!bias_list.is_none()) biases = list_of(check, "biases", bias_list, "a list of numpy arrays or None");
  check(biases.size() == weights.size(), "biases has length ", biases.size(), ", expected ", weights.size(),
        " (from weights)");
  WeightArguments arguments;
  for (size_t i = 0; i < weights.size(); ++i) {
    arguments.add(check, weights[i], biases[i], message("weights[", i, "]"), message("biases[", i, "]"));
  }
  return arguments.pack(check, dtype);
}

// --- operations ----------------------------------------------------------------------------------------------------

py::array linear(const py::object& x_object, const py::object& w_object, const py::object& residual_object,
                 const py::object& out_dtype) {
  const Arguments check("linear");
  const RowsView x = rows_view(check, "x", x_object);
  if (!py::isinstance<PackedWeight>(w_object)) check.wrong_type("w", w_object, "a PackedWeight");
  const PackedWeight& w = py::cast<const PackedWeight&>(w_object);
  const RowsView residual = residual_object.is_none() ? RowsView{} : rows_view(check, "residual", residual_object);
  const DType dtype = out_dtype.is_none() ? x.dtype : dtype_argument(check, "out_dtype", out_dtype);
  const cpu::ModelOps& ops = active_ops();
  const auto [out, view] = new_rows(check, dtype, x.rows, w.n());
  {
    const py::gil_scoped_release release;
    ops.linear(x, w, residual, view);
  }
  return out;
}

py::array rms_norm(const py::object& x_object, const py::object& weight_object, const py::object& eps_object) {
  const Arguments check("rms_norm");
  const RowsView x = rows_view(check, "x", x_object);
  const py::array_t<float> weight = float_array(check, "weight", weight_object, {x.cols}, "the columns of x");
  const double eps = check.number("eps", eps_object);
  check(eps >= 0.0 && std::isfinite(eps), "eps is ", eps, ", expected a finite number, 0 or above");
  const cpu::ModelOps& ops = active_ops();
  const auto [out, view] = new_rows(check, x.dtype, x.rows, x.cols);
  {
    const py::gil_scoped_release release;
    ops.rms_norm(x, weight.data(), static_cast<float>(eps), view);
  }
  return out;
}

void rotary(const py::object& x_object, const py::object& head_dim_object, const py::object& cos_object,
            const py::object& sin_object) {
  const Arguments check("rotary_");
  const RowsView x = writable_rows(check, "x", x_object);
  const int64_t head_dim = check.integer("head_dim", head_dim_object);
  check(head_dim > 0 && head_dim % 2 == 0, "head_dim is ", head_dim, ", expected an even number above 0");
  const std::vector<int64_t> shape{x.rows, head_dim / 2};
  const py::array_t<float> cos = float_array(check, "cos", cos_object, shape, "the rows of x and head_dim / 2");
  const py::array_t<float> sin = float_array(check, "sin", sin_object, shape, "the rows of x and head_dim / 2");
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
  const Arguments check("silu_gate_");
  const RowsView gate = writable_rows(check, "gate", gate_object);
  const RowsView up = rows_view(check, "up", up_object);
  check(!share_memory(gate, up), "up shares memory with gate, expected another array");
  const cpu::ModelOps& ops = active_ops();
  const py::gil_scoped_release release;
  ops.silu_gate(gate, up);
}

Confidence confidence_kind(const Arguments& check, const py::object& object) {
  constexpr Confidence kKinds[] = {Confidence::kProbability, Confidence::kMargin, Confidence::kNegativeEntropy};
  return kKinds[check.choice("kind", object, {"probability", "margin", "entropy"})];
}

py::typing::Tuple<py::array_t<int64_t>, py::array_t<float>> token_confidence(const py::object& logits_object,
                                                                             const py::object& kind_object) {
  const Arguments check("token_confidence");
  const RowsView logits = rows_view(check, "logits", logits_object);
  const Confidence kind = confidence_kind(check, kind_object);
  py::array_t<int64_t> ids(new_array(check, "ids", py::dtype::of<int64_t>(), {logits.rows}));
  py::array_t<float> confidence(new_array(check, "confidence", py::dtype::of<float>(), {logits.rows}));
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
