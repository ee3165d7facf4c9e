#include "core/pattern_cache.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/register.h"
#include "core/error.h"
#include "registry.h"

namespace sparsed::python {
namespace {

// The state machine behind a lock: attend runs without the GIL, so that another thread may call meanwhile.
class LockedCache {
 public:
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
  void change(const char* function, const Body& body) {
    const py::gil_scoped_release release;
    const std::lock_guard lock(mutex_);
    check(!changing_, function, ": called by a signal handler inside another call, expected one after the other");
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

py::object attend(LockedCache& self, const py::object& layer, const py::object& q, const py::object& k,
                  const py::object& v, const py::object& key_mask, const py::object& scale, const py::object& memory) {
  const char* function = "PatternCache.attend";
  const int64_t index = integer(layer, function, "layer");
  AttentionArguments arguments = attention_arguments(function, q, k, &v, scale, key_mask, memory);
  check(!arguments.trivial(), function, ": q has shape ", shape_string(arguments.params.q.shape), " and k ",
        shape_string(arguments.params.k.shape), ", expected at least one row, head, query and key");
  const Backend& backend = backend_for(arguments);
  const py::object out = new_output(function, arguments);
  self.change(function, [&](PatternCache& cache) { cache.attend(backend, index, arguments.params); });
  return out;
}

std::optional<int64_t> step_count(const py::object& steps) {
  if (steps.is_none()) return std::nullopt;
  return integer(steps, "PatternCache", "steps");
}

// The fields of the Python dataclasses, which have checked them.
std::unique_ptr<LockedCache> sparse_cache(const py::object& steps, const py::object& prompt_length, double skip,
                                          double rho, int block_size, const py::object& selection,
                                          const py::object& selection_scale, bool isolate, std::vector<double> refresh,
                                          bool refresh_every, int64_t min_length) {
  SparseConfig config;
  config.schedule = {skip, selection_rule(selection, "PatternCache"), std::move(refresh), refresh_every};
  config.rho = rho;
  config.block_size = block_size;
  if (!selection_scale.is_none()) {
    config.selection_scale = positive_scale(selection_scale, "SparseConfig", "selection_scale");
  }
  config.isolate = isolate;
  config.min_length = min_length;
  return std::make_unique<LockedCache>(std::move(config), step_count(steps),
                                       integer(prompt_length, "PatternCache", "prompt_length"));
}

std::unique_ptr<LockedCache> window_cache(const py::object& steps, const py::object& prompt_length, int64_t window,
                                          int64_t sinks, int block_size) {
  return std::make_unique<LockedCache>(WindowConfig{window, sinks, block_size}, step_count(steps),
                                       integer(prompt_length, "PatternCache", "prompt_length"));
}

void begin_step(LockedCache& self, const py::object& step, const py::object& unmasked) {
  const char* function = "PatternCache.begin_step";
  const int64_t number = integer(step, function, "step");
  std::optional<double> share;
  if (!unmasked.is_none()) share = real_number(unmasked, function, "unmasked");
  self.change(function, [&](PatternCache& cache) { cache.begin_step(number, share); });
}

std::shared_ptr<PlacedPattern> pattern(LockedCache& self, const py::object& layer) {
  const int64_t index = integer(layer, "PatternCache.pattern", "layer");
  return self.read([&](PatternCache& cache) { return cache.placed_pattern(index); });
}

double density(LockedCache& self, const py::object& layer) {
  const int64_t index = integer(layer, "PatternCache.density", "layer");
  return self.read([&](PatternCache& cache) { return cache.density(index); });
}

// The fields of PatternCache::Layer and PatternCache::State in order. Python pickles and compares these tuples.
using SavedLayer = std::tuple<int64_t, int64_t, int64_t, std::shared_ptr<PlacedPattern>, bool, int64_t>;
using SavedState = std::tuple<int64_t, int, int64_t, int64_t, int64_t, int64_t, int64_t, std::map<int64_t, SavedLayer>>;

SavedState state(LockedCache& self) {
  return self.read([](PatternCache& cache) {
    const PatternCache::State& s = cache.state();
    std::map<int64_t, SavedLayer> layers;
    for (const auto& [index, l] : s.layers) {
      layers.emplace(index, SavedLayer{l.heads, l.kv_heads, l.head_dim, l.pattern, l.sparse, l.attended_step});
    }
    return SavedState{s.step,   static_cast<int>(s.phase), s.due, s.served, s.select_step, s.batch,
                      s.length, std::move(layers)};
  });
}

void restore(LockedCache& self, SavedState saved) {
  auto& [step, phase, due, served, select_step, batch, length, layers] = saved;
  check(phase >= 0 && phase <= static_cast<int>(Phase::kSparse), "PatternCache.__setstate__: phase is ", phase,
        ", expected 0, 1 or 2");
  PatternCache::State state{step, static_cast<Phase>(phase), due, served, select_step, batch, length, {}};
  for (auto& [index, saved_layer] : layers) {
    auto& [heads, kv_heads, head_dim, pattern, sparse, attended_step] = saved_layer;
    state.layers[index] = {heads, kv_heads, head_dim, std::move(pattern), sparse, attended_step};
  }
  self.change("PatternCache.__setstate__", [&](PatternCache& cache) { cache.restore(std::move(state)); });
}

}  // namespace

void register_pattern_cache(py::module_& m) {
  py::class_<LockedCache>(m, "PatternCache", no_constructor(), "The state machine of ``sparsed.PatternCache``.")
      .def_static("sparse", &sparse_cache, py::kw_only(), py::arg("steps"), py::arg("prompt_length"), py::arg("skip"),
                  py::arg("rho"), py::arg("block_size"), py::arg("selection"), py::arg("selection_scale"),
                  py::arg("isolate"), py::arg("refresh"), py::arg("refresh_every"), py::arg("min_length"))
      .def_static("window", &window_cache, py::kw_only(), py::arg("steps"), py::arg("prompt_length"), py::arg("window"),
                  py::arg("sinks"), py::arg("block_size"))
      .def("begin_step", &begin_step, py::arg("step"), py::arg("unmasked"))
      .def("attend", &attend, py::arg("layer"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("key_mask"),
           py::arg("scale"), py::arg("memory") = py::none())
      .def("pattern", &pattern, py::arg("layer"))
      .def("density", &density, py::arg("layer"))
      .def("reset",
           [](LockedCache& self) { self.change("PatternCache.reset", [](PatternCache& cache) { cache.reset(); }); })
      .def("state", &state, "The step and the layers as a tuple; see ``restore``.")
      .def("restore", &restore, py::arg("state"),
           "Continues from a tuple that ``state`` of a cache with the same arguments returned.")
      .def_property_readonly(
          "phase",
          [](LockedCache& self) { return self.read([](PatternCache& cache) { return phase_name(cache.phase()); }); })
      .def_property_readonly(
          "step", [](LockedCache& self) { return self.read([](PatternCache& cache) { return cache.step(); }); })
      .def_property_readonly(
          "layers",
          [](LockedCache& self) { return self.read([](PatternCache& cache) { return cache.pattern_layers(); }); })
      .def_property_readonly(
          "nbytes", [](LockedCache& self) { return self.read([](PatternCache& cache) { return cache.nbytes(); }); });
}

}  // namespace sparsed::python
