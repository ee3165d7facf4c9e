#include "core/pattern_cache.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/attention_arguments.h"
#include "bindings/register.h"

namespace sparsed::python {
namespace {

// The state machine behind a lock: attend runs without the GIL, so that another thread may call meanwhile.
class LockedCache {
 public:
  explicit LockedCache(PatternCache cache) : cache_(std::move(cache)) {}
  template <class Config>
  LockedCache(Config config, std::optional<int64_t> steps, int64_t prompt_length)
      : cache_(std::move(config), steps, prompt_length) {}

  // Takes the lock without holding the GIL: a holder may wait for the GIL, to run Python's signal handlers inside a
  // long call. Such a handler, in the holder's own thread, may read: a call changes the cache at its end.
  template <class Body>
  auto read(const Body& body) {
    const py::gil_scoped_release release;
    const std::lock_guard lock(mutex_);
    return body(cache_);
  }

  template <class Body>
  void change(const Checker& check, const Body& body) {
    const py::gil_scoped_release release;
    const std::lock_guard lock(mutex_);
    check(!changing_, "called by a signal handler inside another call, expected one after the other");
    struct Mark {
      bool& set;
      explicit Mark(bool& flag) : set(flag) { set = true; }
      ~Mark() { set = false; }
    } const mark(changing_);
    body(cache_);
  }

 private:
  PatternCache cache_;
  std::recursive_mutex mutex_;
  bool changing_ = false;
};

// scores, block_size and choose: of the caller's selection, or None. choose() returns a BlockPattern.
void attend(LockedCache& self, const py::object& layer, const py::object& q, const py::object& k, const py::object& v,
            const py::object& out, const py::object& key_mask, const py::object& scale, const py::object& stream,
            const py::object& scores, const py::object& block_size, const py::object& choose) {
  const Arguments check("PatternCache.attend");
  const int64_t index = check.integer("layer", layer);
  AttentionArguments arguments = attention_arguments(check, {q, k, v, out, py::none(), key_mask, scale, stream}, false);
  const AttentionParams& params = arguments.params;
  check(!params.empty(), "q has shape ", shape_string(params.q.shape), " and k ", shape_string(params.k.shape),
        ", expected at least one row, head, query and key");
  CallerSelection by_caller;
  if (!choose.is_none()) {
    by_caller.scores = scores_memory(check, scores, check.block_size(block_size), arguments);
    by_caller.choose = [&choose] {
      const py::gil_scoped_acquire acquire;
      return py::cast<BlockPattern>(choose());
    };
  }
  self.change(check, [&](PatternCache& cache) {
    cache.attend(*arguments.backend, index, params, by_caller.scores ? &by_caller : nullptr);
  });
}

std::optional<int64_t> step_count(const py::object& steps) {
  if (steps.is_none()) return std::nullopt;
  return Arguments("PatternCache").integer("steps", steps);
}

// The fields of the Python dataclasses, which have checked them.
ScheduleConfig schedule_config(const Arguments& check, double skip, const py::object& selection,
                               std::vector<double> refresh, bool refresh_every) {
  return {skip, check.selection_rule(selection), std::move(refresh), refresh_every};
}

std::vector<const char*> phases(const py::object& steps, double skip, const py::object& selection,
                                std::vector<double> refresh, bool refresh_every) {
  const Arguments check("SparseConfig.phases");
  const Schedule schedule(schedule_config(check, skip, selection, std::move(refresh), refresh_every),
                          check.integer("steps", steps), check);
  std::vector<const char*> names;
  for (const Phase phase : schedule.phases(check)) names.push_back(phase_name(phase));
  return names;
}

std::unique_ptr<LockedCache> sparse_cache(const py::object& steps, const py::object& prompt_length, double skip,
                                          double rho, int block_size, const py::object& selection,
                                          const py::object& selection_scale, bool isolate, std::vector<double> refresh,
                                          bool refresh_every, int64_t min_length, const py::object& generation) {
  SparseConfig config;
  config.schedule = schedule_config("PatternCache", skip, selection, std::move(refresh), refresh_every);
  config.rho = rho;
  config.block_size = block_size;
  if (!selection_scale.is_none()) {
    config.selection_scale = Arguments("SparseConfig").positive_scale("selection_scale", selection_scale);
  }
  config.isolate = isolate;
  config.min_length = min_length;
  config.dense_generation = Arguments("PatternCache").dense_generation(generation);
  return std::make_unique<LockedCache>(std::move(config), step_count(steps),
                                       Arguments("PatternCache").integer("prompt_length", prompt_length));
}

std::unique_ptr<LockedCache> window_cache(const py::object& steps, const py::object& prompt_length, int64_t window,
                                          int64_t sinks, int block_size, const py::object& generation) {
  const Arguments check("PatternCache");
  return std::make_unique<LockedCache>(WindowConfig{window, sinks, block_size, check.dense_generation(generation)},
                                       step_count(steps), check.integer("prompt_length", prompt_length));
}

// pattern: of the layers that have none of their own, or None.
std::unique_ptr<LockedCache> given_cache(const py::object& steps, const py::object& prompt_length,
                                         const py::object& pattern) {
  GivenConfig config;
  if (!pattern.is_none()) config.pattern = py::cast<BlockPattern>(pattern);
  return std::make_unique<LockedCache>(std::move(config), step_count(steps),
                                       Arguments("PatternCache").integer("prompt_length", prompt_length));
}

std::unique_ptr<LockedCache> load(const py::object& path) {
  const std::string file = path_string("PatternCache.load", path);
  const py::gil_scoped_release release;
  return std::make_unique<LockedCache>(PatternCache::load(file));
}

void save(LockedCache& self, const py::object& path) {
  const std::string file = path_string("PatternCache.save", path);
  self.read([&](PatternCache& cache) { cache.save(file); });
}

void begin_step(LockedCache& self, const py::object& step, const py::object& unmasked) {
  const Arguments check("PatternCache.begin_step");
  const int64_t number = check.integer("step", step);
  std::optional<double> share;
  if (!unmasked.is_none()) share = check.number("unmasked", unmasked);
  self.change(check, [&](PatternCache& cache) { cache.begin_step(number, share); });
}

BlockPattern pattern(LockedCache& self, const py::object& layer) {
  const int64_t index = Arguments("PatternCache.pattern").integer("layer", layer);
  return self.read([&](PatternCache& cache) { return cache.pattern(index); });
}

void set_pattern(LockedCache& self, const py::object& layer, const py::object& pattern) {
  const Arguments check("PatternCache.set_pattern");
  const int64_t index = check.integer("layer", layer);
  if (!py::isinstance<BlockPattern>(pattern)) check.wrong_type("pattern", pattern, "a BlockPattern");
  const BlockPattern given = py::cast<const BlockPattern&>(pattern);
  self.change(check, [&](PatternCache& cache) { cache.set_pattern(index, given); });
}

double density(LockedCache& self, const py::object& layer) {
  if (layer.is_none()) return self.read([](PatternCache& cache) { return cache.density(); });
  const int64_t index = Arguments("PatternCache.density").integer("layer", layer);
  return self.read([&](PatternCache& cache) { return cache.density(index); });
}

using LayerTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, py::object, py::object, int64_t>;
using StateTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, std::vector<LayerTuple>>;

// Numbers, and for each layer (number, heads, kv_heads, head_dim, pattern, attended, attended_step). Handles of one
// pattern become one object.
StateTuple state(LockedCache& self) {
  const PatternCache::State state = self.read([](PatternCache& cache) { return cache.state(); });
  std::vector<std::pair<BlockPattern, py::object>> known;
  const auto object_of = [&](const std::optional<BlockPattern>& pattern) -> py::object {
    if (!pattern) return py::none();
    for (const auto& [other, object] : known) {
      if (other.is(*pattern)) return object;
    }
    known.emplace_back(*pattern, py::cast(*pattern));
    return known.back().second;
  };
  std::vector<LayerTuple> layers;
  for (const auto& [number, layer] : state.layers) {
    layers.emplace_back(number, layer.heads, layer.kv_heads, layer.head_dim, object_of(layer.pattern),
                        object_of(layer.attended), layer.attended_step);
  }
  return {state.step, state.due, state.served, state.select_step, state.batch, state.length, std::move(layers)};
}

void restore(LockedCache& self, const StateTuple& given) {
  const auto pattern_of = [](const py::object& object) -> std::optional<BlockPattern> {
    if (object.is_none()) return std::nullopt;
    if (!py::isinstance<BlockPattern>(object)) {
      Arguments("PatternCache.restore").wrong_type("pattern", object, "a BlockPattern");
    }
    return py::cast<BlockPattern>(object);
  };
  PatternCache::State state;
  std::vector<LayerTuple> layers;
  std::tie(state.step, state.due, state.served, state.select_step, state.batch, state.length, layers) = given;
  for (const auto& [number, heads, kv_heads, head_dim, pattern, attended, attended_step] : layers) {
    state.layers[number] = {heads, kv_heads, head_dim, pattern_of(pattern), pattern_of(attended), attended_step};
  }
  self.change("PatternCache.restore", [&](PatternCache& cache) { cache.restore(std::move(state)); });
}

}  // namespace

void register_pattern_cache(py::module_& m) {
  m.def("phases", &phases, py::kw_only(), py::arg("steps"), py::arg("skip"), py::arg("selection"), py::arg("refresh"),
        py::arg("refresh_every"));
  py::class_<LockedCache>(m, "PatternCache", no_constructor(), "The state machine of ``sparsed.PatternCache``.")
      .def_static("sparse", &sparse_cache, py::kw_only(), py::arg("steps"), py::arg("prompt_length"), py::arg("skip"),
                  py::arg("rho"), py::arg("block_size"), py::arg("selection"), py::arg("selection_scale"),
                  py::arg("isolate"), py::arg("refresh"), py::arg("refresh_every"), py::arg("min_length"),
                  py::arg("generation"))
      .def_static("window", &window_cache, py::kw_only(), py::arg("steps"), py::arg("prompt_length"), py::arg("window"),
                  py::arg("sinks"), py::arg("block_size"), py::arg("generation"))
      .def_static("given", &given_cache, py::kw_only(), py::arg("steps"), py::arg("prompt_length"), py::arg("pattern"))
      .def_static("load", &load, py::arg("path"))
      .def("save", &save, py::arg("path"))
      .def("begin_step", &begin_step, py::arg("step"), py::arg("unmasked"))
      .def("attend", &attend, py::arg("layer"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"),
           py::arg("key_mask"), py::arg("scale"), py::arg("stream"), py::arg("scores"), py::arg("block_size"),
           py::arg("choose"))
      .def("pattern", &pattern, py::arg("layer"))
      .def("set_pattern", &set_pattern, py::arg("layer"), py::arg("pattern"))
      .def("density", &density, py::arg("layer"))
      .def("state", &state)
      .def("restore", &restore, py::arg("state"))
      .def("reset",
           [](LockedCache& self) { self.change("PatternCache.reset", [](PatternCache& cache) { cache.reset(); }); })
      .def_property_readonly(
          "phase",
          [](LockedCache& self) { return self.read([](PatternCache& cache) { return phase_name(cache.phase()); }); })
      .def_property_readonly(
          "step", [](LockedCache& self) { return self.read([](PatternCache& cache) { return cache.step(); }); })
      .def_property_readonly(
          "prompt_length",
          [](LockedCache& self) { return self.read([](PatternCache& cache) { return cache.prompt_length(); }); })
      .def_property_readonly(
          "layers",
          [](LockedCache& self) { return self.read([](PatternCache& cache) { return cache.pattern_layers(); }); })
      .def_property_readonly(
          "nbytes", [](LockedCache& self) { return self.read([](PatternCache& cache) { return cache.nbytes(); }); });
}

}  // namespace sparsed::python
