// attention, attention_and_select, select; the backends and threads that run them.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <tuple>

#include "bindings/arrays.h"
#include "bindings/register.h"
#include "core/pattern.h"
#include "core/selection.h"
#include "registry.h"
#include "support/error.h"

namespace sparsed::python {
namespace {

const BlockPattern& fitting_pattern(const py::object& object, const AttentionParams& params, const char* function) {
  if (!py::isinstance<BlockPattern>(object)) wrong_type(object, function, "pattern", "a BlockPattern");
  const BlockPattern& pattern = py::cast<const BlockPattern&>(object);
  const auto same = [&](const char* name, int64_t found, int64_t expected, const char* source, const Shape4& shape) {
    check(found == expected, function, ": pattern has ", name, " ", found, ", expected ", expected, " (from ", source,
          " ", shape_string(shape), ")");
  };
  const PatternGeometry& geometry = pattern.geometry();
  same("batch", geometry.batch, params.batch(), "q", params.q.shape);
  same("heads", geometry.heads, params.heads(), "q", params.q.shape);
  same("q_len", geometry.q_len, params.q_len(), "q", params.q.shape);
  same("kv_len", geometry.kv_len, params.kv_len(), "k", params.k.shape);
  return pattern;
}

py::object attention(const py::object& q, const py::object& k, const py::object& v, const py::object& pattern,
                     const py::object& scale, const py::object& key_mask, const py::object& return_lse,
                     const py::object& memory) {
  const char* function = "attention";
  const bool with_lse = boolean(return_lse, function, "return_lse");
  AttentionArguments arguments = attention_arguments(function, q, k, &v, scale, key_mask, memory);
  AttentionParams& params = arguments.params;
  const BlockPattern* blocks = pattern.is_none() ? nullptr : &fitting_pattern(pattern, params, function);
  const Backend& backend = backend_for(arguments);
  const py::object out = new_output(function, arguments);
  py::object lse = py::none();
  if (with_lse) lse = new_lse(function, arguments);
  {
    const py::gil_scoped_release release;
    backend.attention(params, blocks);
  }
  return with_lse ? py::object(py::make_tuple(out, lse)) : out;
}

SelectParams select_params(const char* function, const AttentionParams& params, const py::object& prompt_length,
                           const py::object& block_size, const py::object& rho, const py::object& selection,
                           const py::object& selection_scale) {
  check(params.q_len() == params.kv_len(), function, ": k has length ", params.kv_len(), ", expected ", params.q_len(),
        " (from q ", shape_string(params.q.shape), ")");
  SelectParams select;
  select.prompt_length = integer(prompt_length, function, "prompt_length");
  select.block_size = block_size_number(block_size, function);
  select.rho = real_number(rho, function, "rho");
  select.rule = selection_rule(selection, function);
  select.scale =
      selection_scale.is_none() ? params.scale : positive_scale(selection_scale, function, "selection_scale");
  check_select(select, params.kv_len(), function);
  return select;
}

BlockPattern run_selection(const AttentionArguments& arguments, const SelectParams& select) {
  const Backend& backend = backend_for(arguments);
  const py::gil_scoped_release release;
  return backend.attention_and_select(arguments.params, select);
}

py::typing::Tuple<py::object, BlockPattern> attention_and_select(const py::object& q, const py::object& k,
                                                                 const py::object& v, const py::object& prompt_length,
                                                                 const py::object& block_size, const py::object& rho,
                                                                 const py::object& selection, const py::object& scale,
                                                                 const py::object& selection_scale,
                                                                 const py::object& key_mask, const py::object& memory) {
  const char* function = "attention_and_select";
  AttentionArguments arguments = attention_arguments(function, q, k, &v, scale, key_mask, memory);
  const SelectParams select =
      select_params(function, arguments.params, prompt_length, block_size, rho, selection, selection_scale);
  const py::object out = new_output(function, arguments);
  return py::make_tuple(out, run_selection(arguments, select));
}

BlockPattern select(const py::object& q, const py::object& k, const py::object& prompt_length,
                    const py::object& block_size, const py::object& rho, const py::object& selection,
                    const py::object& scale, const py::object& selection_scale, const py::object& key_mask,
                    const py::object& memory) {
  const char* function = "select";
  const AttentionArguments arguments = attention_arguments(function, q, k, nullptr, scale, key_mask, memory);
  const SelectParams select =
      select_params(function, arguments.params, prompt_length, block_size, rho, selection, selection_scale);
  return run_selection(arguments, select);
}

std::vector<std::tuple<std::string, bool, std::vector<std::string>>> backend_rows() {
  std::vector<std::tuple<std::string, bool, std::vector<std::string>>> rows;
  for (const Backend* backend : backends()) {
    std::vector<std::string> reasons = backend->not_supported_reasons();
    rows.emplace_back(backend->name, reasons.empty(), std::move(reasons));
  }
  return rows;
}

void set_threads(const py::object& threads) {
  constexpr int64_t kMost = 1 << 14;
  const int64_t n = integer(threads, "set_num_threads", "n");
  check(n >= 1 && n <= kMost, "set_num_threads: n is ", n, ", expected 1 ... ", kMost);
  cpu::set_num_threads(static_cast<int>(n));
}

}  // namespace

void register_attention(py::module_& m) {
  m.def("attention", &attention, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("pattern"), py::arg("scale"),
        py::arg("key_mask"), py::arg("return_lse"), py::arg("memory") = py::none());
  m.def("attention_and_select", &attention_and_select, py::arg("q"), py::arg("k"), py::arg("v"),
        py::arg("prompt_length"), py::arg("block_size"), py::arg("rho"), py::arg("selection"), py::arg("scale"),
        py::arg("selection_scale"), py::arg("key_mask"), py::arg("memory") = py::none());
  m.def("select", &select, py::arg("q"), py::arg("k"), py::arg("prompt_length"), py::arg("block_size"), py::arg("rho"),
        py::arg("selection"), py::arg("scale"), py::arg("selection_scale"), py::arg("key_mask"),
        py::arg("memory") = py::none());
  m.def("backends", &backend_rows, "(name, available, reasons) of each backend, best first.");
  m.def("active_backend", [] { return active_backend().name; });
  m.def("set_backend", &set_backend, py::arg("name"),
        "The backend for arrays in host memory; None: the one that SPARSED_ISA names, or the best.");
  m.def("num_threads", &cpu::num_threads);
  m.def("set_num_threads", &set_threads, py::arg("n"));
}

}  // namespace sparsed::python
