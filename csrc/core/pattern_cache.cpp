#include "core/pattern_cache.h"

#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/selection.h"

namespace sparsed {
namespace {

constexpr const char* kAttend = "PatternCache.attend";
constexpr const char* kRestore = "PatternCache.__setstate__";

SelectParams select_params(const SparseConfig& config, int64_t prompt_length, float attention_scale) {
  SelectParams select;
  select.prompt_length = prompt_length;
  select.block_size = config.block_size;
  select.rho = config.rho;
  select.rule = config.schedule.rule;
  select.isolate = config.isolate;
  select.scale = config.selection_scale.value_or(attention_scale);
  return select;
}

void check_prompt_length(int64_t prompt_length) {
  check(prompt_length >= 0, "PatternCache: prompt_length is ", prompt_length, ", expected >= 0");
}

void check_same(const std::string& what, int64_t found, int64_t expected, const std::string& as) {
  check(found == expected, kAttend, ": ", what, " ", found, ", expected ", expected, " (as ", as, ")");
}

}  // namespace

PatternCache::PatternCache(SparseConfig config, std::optional<int64_t> steps, int64_t prompt_length)
    : schedule_(Schedule(config.schedule, steps, "PatternCache")), steps_(steps), prompt_length_(prompt_length) {
  check_prompt_length(prompt_length);
  check_select(select_params(config, 0, 1.f), 0, "PatternCache");
  check(config.min_length >= 0, "PatternCache: min_length is ", config.min_length, ", expected >= 0");
  config_ = std::move(config);
}

PatternCache::PatternCache(WindowConfig config, std::optional<int64_t> steps, int64_t prompt_length)
    : config_(config), steps_(steps), prompt_length_(prompt_length) {
  check_steps(steps, "PatternCache");
  check_prompt_length(prompt_length);
  check_window(config.window, config.sinks, "PatternCache");
  check(is_block_size(config.block_size), "PatternCache: block_size is ", config.block_size,
        ", expected 16, 32, 64, 128 or 256");
}

void PatternCache::begin_step(int64_t step, std::optional<double> unmasked) {
  const std::string function = "PatternCache.begin_step";
  check(step == state_.step + 1, function, ": step is ", step, ", expected ", state_.step + 1,
        " (steps come in order)");
  check(!steps_ || step < *steps_, function, ": step is ", step, ", expected 0 ... ", steps_.value_or(0) - 1,
        " (steps is ", steps_.value_or(0), ")");
  if (schedule_ && !steps_) {
    check(unmasked.has_value(), function, ": unmasked is missing, expected 0 ... 1 (the number of steps is unknown)");
    check(*unmasked >= 0 && *unmasked <= 1, function, ": unmasked is ", *unmasked, ", expected 0 ... 1");
  }
  state_.step = step;
  if (!schedule_) {
    state_.phase = Phase::kSparse;
    return;
  }
  state_.served = std::max(state_.served, state_.due);
  state_.due = schedule_->points_due(step, unmasked.value_or(0));
  state_.phase = schedule_->phase(state_.due, state_.served);
  if (state_.phase == Phase::kSelect) state_.select_step = step;
}

Phase PatternCache::phase() const {
  check(state_.step >= 0, "PatternCache.phase: no step has begun, expected begin_step(0) before");
  return state_.length < 0 ? state_.phase : phase_at(state_.length);
}

Phase PatternCache::phase_at(int64_t length) const {
  const auto* config = std::get_if<SparseConfig>(&config_);
  return config && length < config->min_length ? Phase::kDense : state_.phase;
}

void PatternCache::attend(const Backend& backend, int64_t layer, const AttentionParams& params) {
  Layer next = checked_layer(layer, params);
  switch (phase_at(params.q_len())) {
    case Phase::kDense:
      sparsed::attend(backend, params, nullptr);
      next.sparse = false;
      break;
    case Phase::kSelect: attend_select(backend, params, next); break;
    case Phase::kSparse:
      if (!schedule_ && !next.pattern) next.pattern = window_pattern(params);
      check(next.pattern != nullptr, kAttend, ": layer ", layer, " has no pattern in sparse step ", state_.step,
            ", expected it to attend in step ", state_.select_step, ", which selects");
      attend_sparse(backend, params, next);
      break;
  }
  next.attended_step = state_.step;
  state_.layers[layer] = std::move(next);
  state_.batch = params.batch();
  state_.length = params.q_len();
}

// The layer's record if the call may go on, new if the layer has none.
PatternCache::Layer PatternCache::checked_layer(int64_t layer, const AttentionParams& params) const {
  check(state_.step >= 0, kAttend, ": no step has begun, expected begin_step(0) before");
  check(layer >= 0, kAttend, ": layer is ", layer, ", expected >= 0");
  check_same("k has length", params.kv_len(), params.q_len(), "q");
  check(prompt_length_ <= params.q_len(), kAttend, ": q has length ", params.q_len(), ", expected at least ",
        prompt_length_, " (prompt_length)");
  if (state_.length >= 0) {
    check_same("q has batch", params.batch(), state_.batch, "before");
    check_same("q has length", params.q_len(), state_.length, "before");
  }
  const auto found = state_.layers.find(layer);
  if (found == state_.layers.end()) return {params.heads(), params.kv_heads(), params.head_dim(), nullptr, false, -1};
  const Layer& known = found->second;
  const std::string as = message("layer ", layer, " before");
  check_same("q has heads", params.heads(), known.heads, as);
  check_same("k has heads", params.kv_heads(), known.kv_heads, as);
  check_same("q has head_dim", params.head_dim(), known.head_dim, as);
  check(known.attended_step != state_.step, kAttend, ": layer is ", layer, " again in step ", state_.step,
        ", expected each layer once a step");
  return known;
}

void PatternCache::attend_select(const Backend& backend, const AttentionParams& params, Layer& layer) const {
  const SelectParams select = select_params(std::get<SparseConfig>(config_), prompt_length_, params.scale);
  // Without reuse, each step after the first selection is sparse with its own pattern.
  const bool sparse = state_.due <= state_.served;
  AttentionParams pass = params;
  if (sparse) {
    pass.v.data = pass.out.data = nullptr;
    pass.lse = nullptr;
  }
  layer.pattern = attend_and_select(backend, pass, select);
  layer.sparse = false;
  if (sparse) attend_sparse(backend, params, layer);
}

void PatternCache::attend_sparse(const Backend& backend, const AttentionParams& params, Layer& layer) const {
  layer.sparse = !layer.pattern->denser_than(kDenseAbove);
  sparsed::attend(backend, params, layer.sparse ? layer.pattern.get() : nullptr);
}

std::shared_ptr<PlacedPattern> PatternCache::window_pattern(const AttentionParams& params) const {
  const WindowConfig& config = std::get<WindowConfig>(config_);
  PatternGeometry geometry;
  geometry.batch = params.batch();
  geometry.heads = params.heads();
  geometry.block_size = config.block_size;
  geometry.q_len = params.q_len();
  geometry.kv_len = params.kv_len();
  geometry.prompt_length = prompt_length_;
  for (const auto& [index, layer] : state_.layers) {
    if (layer.pattern && layer.pattern->geometry() == geometry) return layer.pattern;
  }
  return std::make_shared<PlacedPattern>(BlockPattern::streaming(geometry, config.window, config.sinks, kAttend));
}

bool PatternCache::has_pattern(int64_t layer) const {
  const auto found = state_.layers.find(layer);
  return found != state_.layers.end() && found->second.pattern;
}

const std::shared_ptr<PlacedPattern>& PatternCache::placed_pattern(int64_t layer) const {
  if (!has_pattern(layer)) {
    const std::vector<int64_t> layers = pattern_layers();
    fail(ErrorKind::kValue, "PatternCache.pattern: layer is ", layer,
         ", expected one that holds a pattern: ", shape_string(layers.data(), layers.size()));
  }
  return state_.layers.at(layer).pattern;
}

std::vector<int64_t> PatternCache::pattern_layers() const {
  std::vector<int64_t> layers;
  for (const auto& [index, layer] : state_.layers) {
    if (layer.pattern) layers.push_back(index);
  }
  return layers;
}

size_t PatternCache::nbytes() const {
  std::set<const PlacedPattern*> patterns;
  for (const auto& [index, layer] : state_.layers) {
    if (layer.pattern) patterns.insert(layer.pattern.get());
  }
  size_t bytes = 0;
  for (const PlacedPattern* pattern : patterns) bytes += pattern->nbytes();
  return bytes;
}

double PatternCache::density(int64_t layer) const {
  const auto found = state_.layers.find(layer);
  const bool attended = found != state_.layers.end() && found->second.attended_step == state_.step;
  check(attended, "PatternCache.density: layer is ", layer, ", expected one that has attended in step ", state_.step);
  return found->second.sparse ? found->second.pattern->density() : 1.0;
}

void PatternCache::reset() { state_ = State{}; }

void PatternCache::restore(State state) {
  const int block_size = std::visit([](const auto& config) { return config.block_size; }, config_);
  for (const auto& [index, layer] : state.layers) {
    check(layer.pattern || !layer.sparse, kRestore, ": layer ", index, " is sparse, expected a pattern with it");
    const PatternGeometry expected{state.batch, layer.heads, block_size, state.length, state.length, prompt_length_};
    check(!layer.pattern || layer.pattern->geometry() == expected, kRestore, ": layer ", index,
          " has a pattern of another shape, expected one that fits the cache and the layer");
  }
  state_ = std::move(state);
}

}  // namespace sparsed
