// The model operations.
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
#include "bindings/rows.h"
#include "registry.h"

namespace sparsed::python {
namespace {

using cpu::Confidence;
using cpu::LinearPart;
using cpu::PackedWeight;
using cpu::RowsView;

const PackedWeight& packed_weight(const Arguments& check, const std::string& argument, const py::object& object) {
  if (!py::isinstance<PackedWeight>(object)) check.wrong_type(argument.c_str(), object, "a PackedWeight");
  return py::cast<const PackedWeight&>(object);
}

// New arrays for the outputs of all parts, whose dtype is x's where out_dtype is None.
std::vector<py::array> run_linear(const Arguments& check, const RowsView& x, std::vector<LinearPart> parts,
                                  const py::object& out_dtype) {
  const DType dtype = out_dtype.is_none() ? x.dtype : dtype_argument(check, "out_dtype", out_dtype);
  const cpu::ModelOps& ops = active_ops();
  std::vector<py::array> outs;
  for (LinearPart& part : parts) {
    const auto [out, view] = new_rows(check, dtype, x.rows, part.w->n());
    outs.push_back(out);
    part.out = view;
  }
  const py::gil_scoped_release release;
  check.named([&] { ops.linear(x, parts); });
  return outs;
}

py::array linear(const py::object& x_object, const py::object& w_object, const py::object& residual_object,
                 const py::object& out_dtype) {
  const Arguments check("linear");
  const RowsView x = rows_view(check, "x", x_object);
  const PackedWeight& w = packed_weight(check, "w", w_object);
  const RowsView residual = residual_object.is_none() ? RowsView{} : rows_view(check, "residual", residual_object);
  return run_linear(check, x, {{&w, residual, {}}}, out_dtype)[0];
}

std::vector<py::array> linears(const py::object& x_object, const py::object& w_list, const py::object& out_dtype) {
  const Arguments check("linears");
  const RowsView x = rows_view(check, "x", x_object);
  const std::vector<py::object> ws = list_of(check, "ws", w_list, "a list of PackedWeights");
  check(!ws.empty(), "ws has length 0, expected at least 1");
  std::vector<LinearPart> parts;
  for (size_t i = 0; i < ws.size(); ++i)
    parts.push_back({&packed_weight(check, message("ws[", i, "]"), ws[i]), {}, {}});
  return run_linear(check, x, std::move(parts), out_dtype);
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
  m.def("linear", &linear, py::arg("x"), py::arg("w"), py::arg("residual"), py::arg("out_dtype"));
  m.def("linears", &linears, py::arg("x"), py::arg("ws"), py::arg("out_dtype"));
  m.def("rms_norm", &rms_norm, py::arg("x"), py::arg("weight"), py::arg("eps"));
  m.def("rotary_", &rotary, py::arg("x"), py::arg("head_dim"), py::arg("cos"), py::arg("sin"));
  m.def("silu_gate_", &silu_gate, py::arg("gate"), py::arg("up"));
  m.def("token_confidence", &token_confidence, py::arg("logits"), py::arg("kind"));
  m.def(
      "require_memory", [](size_t bytes, const std::string& what) { require_memory(bytes, what.c_str()); },
      py::arg("bytes"), py::arg("what"));
}

}  // namespace sparsed::python
