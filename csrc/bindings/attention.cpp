// attention, attention_and_select, select; the backends and threads that run them.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/attention_arguments.h"
#include "bindings/register.h"
#include "core/pattern.h"
#include "core/selection.h"
#include "registry.h"

namespace sparsed::python {
namespace {

const BlockPattern& fitting_pattern(const Arguments& check, const py::object& object, const AttentionParams& params) {
  if (!py::isinstance<BlockPattern>(object)) check.wrong_type("pattern", object, "a BlockPattern");
  const BlockPattern& pattern = py::cast<const BlockPattern&>(object);
  const std::string q = message(" (from q ", shape_string(params.q.shape), ")");
  const std::string k = message(" (from k ", shape_string(params.k.shape), ")");
  const PatternGeometry& geometry = pattern.geometry();
  check.same("pattern has batch", geometry.batch, params.batch(), q);
  check.same("pattern has heads", geometry.heads, params.heads(), q);
  check.same("pattern has q_len", geometry.q_len, params.q_len(), q);
  check.same("pattern has kv_len", geometry.kv_len, params.kv_len(), k);
  return pattern;
}

void attention(const py::object& q, const py::object& k, const py::object& v, const py::object& out,
               const py::object& lse, const py::object& pattern, const py::object& scale, const py::object& key_mask,
               const py::object& stream) {
  const Arguments check("attention");
  const AttentionArguments arguments = attention_arguments(check, {q, k, v, out, lse, key_mask, scale, stream}, false);
  const BlockPattern* blocks = pattern.is_none() ? nullptr : &fitting_pattern(check, pattern, arguments.params);
  const py::gil_scoped_release release;
  check.named([&] { arguments.backend->attention(arguments.params, blocks); });
}

// The settings of a selection, as Python hands them over.
struct Settings {
  py::object prompt_length, block_size, rho, selection, selection_scale, isolate, generation;
  py::object scores;  // written to, or None
};

BlockPattern run_selection(const Arguments& check, AttentionArguments arguments, const Settings& settings) {
  const AttentionParams& params = arguments.params;
  check(params.q_len() == params.kv_len(), "k has length ", params.kv_len(), ", expected ", params.q_len(), " (from q ",
        shape_string(params.q.shape), ")");
  SelectParams select;
  select.prompt_length = check.integer("prompt_length", settings.prompt_length);
  select.block_size = check.block_size(settings.block_size);
  select.rho = check.number("rho", settings.rho);
  select.rule = check.selection_rule(settings.selection);
  select.isolate = check.boolean("isolate", settings.isolate);
  select.scale = settings.selection_scale.is_none() ? params.scale
                                                    : check.positive_scale("selection_scale", settings.selection_scale);
  select.dense_generation = check.dense_generation(settings.generation);
  check_select(select, params.kv_len(), check);
  select.scores = scores_memory(check, settings.scores, select.block_size, arguments);
  const py::gil_scoped_release release;
  return check.named([&] { return arguments.backend->attention_and_select(params, select); });
}

BlockPattern attention_and_select(const py::object& q, const py::object& k, const py::object& v, const py::object& out,
                                  const py::object& prompt_length, const py::object& block_size, const py::object& rho,
                                  const py::object& selection, const py::object& scale,
                                  const py::object& selection_scale, const py::object& isolate,
                                  const py::object& generation, const py::object& key_mask, const py::object& scores,
                                  const py::object& stream) {
  const Arguments check("attention_and_select");
  AttentionArguments arguments = attention_arguments(check, {q, k, v, out, py::none(), key_mask, scale, stream}, false);
  return run_selection(check, std::move(arguments),
                       {prompt_length, block_size, rho, selection, selection_scale, isolate, generation, scores});
}

BlockPattern select(const py::object& q, const py::object& k, const py::object& prompt_length,
                    const py::object& block_size, const py::object& rho, const py::object& selection,
                    const py::object& scale, const py::object& selection_scale, const py::object& isolate,
                    const py::object& generation, const py::object& key_mask, const py::object& scores,
                    const py::object& stream) {
  const Arguments check("select");
  AttentionArguments arguments =
      attention_arguments(check, {q, k, py::none(), py::none(), py::none(), key_mask, scale, stream}, true);
  return run_selection(check, std::move(arguments),
                       {prompt_length, block_size, rho, selection, selection_scale, isolate, generation, scores});
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
  const Arguments check("set_num_threads");
  const int64_t n = check.integer("n", threads);
  check.range("n", n, 1, 1 << 14);
  cpu::set_num_threads(static_cast<int>(n));
}

}  // namespace

void register_attention(py::module_& m) {
  m.def("attention", &attention, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"), py::arg("lse"),
        py::arg("pattern"), py::arg("scale"), py::arg("key_mask"), py::arg("stream"),
        "Writes out, and lse unless it is None.");
  m.def("attention_and_select", &attention_and_select, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"),
        py::arg("prompt_length"), py::arg("block_size"), py::arg("rho"), py::arg("selection"), py::arg("scale"),
        py::arg("selection_scale"), py::arg("isolate"), py::arg("generation"), py::arg("key_mask"), py::arg("scores"),
        py::arg("stream"), "Writes out, and scores unless it is None.");
  m.def("select", &select, py::arg("q"), py::arg("k"), py::arg("prompt_length"), py::arg("block_size"), py::arg("rho"),
        py::arg("selection"), py::arg("scale"), py::arg("selection_scale"), py::arg("isolate"), py::arg("generation"),
        py::arg("key_mask"), py::arg("scores"), py::arg("stream"));
  m.def("backends", &backend_rows, "(name, available, reasons) of each backend, best first.");
  m.def("active_backend", [] { return active_backend().name; });
  m.def("set_backend", &set_backend, py::arg("name"),
        "The backend for arrays in host memory; None: the one that SPARSED_ISA names, or the best.");
  m.def("num_threads", &cpu::num_threads);
  m.def("set_num_threads", &set_threads, py::arg("n"));
}

}  // namespace sparsed::python
