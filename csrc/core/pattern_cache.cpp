#include "core/pattern_cache.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "core/pattern_file.h"
#include "core/selection.h"

namespace sparsed {
namespace {

const Checker kAttend("PatternCache.attend");

SelectParams select_params(const SparseConfig& config, int64_t prompt_length, float attention_scale) {
  SelectParams select;
  select.prompt_length = prompt_length;
  select.block_size = config.block_size;
  select.rho = config.rho;
  select.rule = config.schedule.rule;
  select.isolate = config.isolate;
  select.scale = config.selection_scale.value_or(attention_scale);
  select.dense_generation = config.dense_generation;
  return select;
}

PatternGeometry square_geometry(const AttentionParams& params, int block_size, int64_t prompt_length) {
  return {params.batch(), params.heads(), block_size, params.q_len(), params.kv_len(), prompt_length};
}

const Checker kCache("PatternCache");

void check_prompt_length(int64_t prompt_length) {
  kCache(prompt_length >= 0, "prompt_length is ", prompt_length, ", expected >= 0");
}

void check_same(const char* what, int64_t found, int64_t expected, const std::string& as) {
  kAttend.same(what, found, expected, message(" (as ", as, ")"));
}

}  // namespace

PatternCache::PatternCache(SparseConfig config, std::optional<int64_t> steps, int64_t prompt_length)
    : schedule_(Schedule(config.schedule, steps, kCache)), steps_(steps), prompt_length_(prompt_length) {
  check_prompt_length(prompt_length);
  check_select(select_params(config, 0, 1.f), 0, kCache);
  kCache(config.min_length >= 0, "min_length is ", config.min_length, ", expected >= 0");
  config_ = std::move(config);
}

PatternCache::PatternCache(WindowConfig config, std::optional<int64_t> steps, int64_t prompt_length)
    : config_(config), steps_(steps), prompt_length_(prompt_length) {
  check_steps(steps, kCache);
  check_prompt_length(prompt_length);
  check_window(config.window, config.sinks, kCache);
  check_block_size(config.block_size, kCache);
}

PatternCache::PatternCache(GivenConfig config, std::optional<int64_t> steps, int64_t prompt_length)
    : config_(std::move(config)), steps_(steps), prompt_length_(prompt_length) {
  check_steps(steps, kCache);
  check_prompt_length(prompt_length);
}

void PatternCache::save(const std::string& path) const {
  LayerPatterns patterns{prompt_length_, {}};
  for (const int64_t layer : pattern_layers()) patterns.layers.emplace(layer, pattern(layer));
  check(!patterns.layers.empty(), "PatternCache.save: no layer holds a pattern, expected at least one");
  save_layers(patterns, path, "PatternCache.save");
}

PatternCache PatternCache::load(const std::string& path) {
  const Checker check("PatternCache.load: " + path);
  const LayerPatterns patterns = load_layers(path, "PatternCache.load");
  check(patterns.prompt_length >= 0, "prompt_length is ", patterns.prompt_length, ", expected >= 0");
  PatternCache cache(GivenConfig{}, std::nullopt, patterns.prompt_length);
  for (const auto& [layer, pattern] : patterns.layers) cache.set_pattern(layer, pattern, check);
  return cache;
}

void PatternCache::begin_step(int64_t step, std::optional<double> unmasked) {
  const Checker check("PatternCache.begin_step");
  check(step == state_.step + 1, "step is ", step, ", expected ", state_.step + 1, " (steps come in order)");
  check(!steps_ || step < *steps_, "step is ", step, ", expected 0 ... ", steps_.value_or(0) - 1, " (steps is ",
        steps_.value_or(0), ")");
  if (schedule_ && !steps_) {
    check(unmasked.has_value(), "unmasked is missing, expected 0 ... 1 (the number of steps is unknown)");
    check(*unmasked >= 0 && *unmasked <= 1, "unmasked is ", *unmasked, ", expected 0 ... 1");
  }
  state_.step = step;
  if (!schedule_) return;
  state_.served = std::max(state_.served, state_.due);
  state_.due = schedule_->points_due(step, unmasked.value_or(0));
  if (scheduled_phase() == Phase::kSelect) state_.select_step = step;
}

Phase PatternCache::scheduled_phase() const {
  return schedule_ ? schedule_->phase(state_.due, state_.served) : Phase::kSparse;
}

Phase PatternCache::phase() const {
  check(state_.step >= 0, "PatternCache.phase: no step has begun, expected begin_step(0) before");
  return state_.length < 0 ? scheduled_phase() : phase_at(state_.length);
}

Phase PatternCache::phase_at(int64_t length) const {
  const auto* config = std::get_if<SparseConfig>(&config_);
  return config && length < config->min_length ? Phase::kDense : scheduled_phase();
}

void PatternCache::attend(const Backend& backend, int64_t layer, const AttentionParams& params,
                          const CallerSelection* by_caller) {
  Layer next = checked_layer(layer, params);
  switch (phase_at(params.q_len())) {
    case Phase::kDense:
      kAttend.named([&] { backend.attention(params, nullptr); });
      next.attended.reset();
      break;
    case Phase::kSelect: attend_select(backend, params, next, by_caller); break;
    case Phase::kSparse:
      if (!next.pattern) next.pattern = unselected_pattern(params);
      kAttend(next.pattern || !schedule_, "layer ", layer, " has no pattern in sparse step ", state_.step,
              ", expected it to attend in step ", state_.select_step, ", which selects");
      kAttend(next.pattern.has_value(), "layer ", layer, " has no pattern, expected set_pattern to give it one");
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
  kAttend(state_.step >= 0, "no step has begun, expected begin_step(0) before");
  kAttend(layer >= 0, "layer is ", layer, ", expected >= 0");
  check_same("k has length", params.kv_len(), params.q_len(), "q");
  kAttend(prompt_length_ <= params.q_len(), "q has length ", params.q_len(), ", expected at least ", prompt_length_,
          " (prompt_length)");
  if (state_.length >= 0) {
    check_same("q has batch", params.batch(), state_.batch, "before");
    check_same("q has length", params.q_len(), state_.length, "before");
  }
  const auto found = state_.layers.find(layer);
  if (found == state_.layers.end())
    return {params.heads(), params.kv_heads(), params.head_dim(), std::nullopt, std::nullopt, -1};
  Layer known = found->second;
  const std::string as = message("layer ", layer, " before");
  check_same("q has heads", params.heads(), known.heads, as);
  if (known.head_dim == 0) {  // so far it was given a pattern
    known.kv_heads = params.kv_heads();
    known.head_dim = params.head_dim();
  }
  check_same("k has heads", params.kv_heads(), known.kv_heads, as);
  check_same("q has head_dim", params.head_dim(), known.head_dim, as);
  kAttend(known.attended_step != state_.step, "layer is ", layer, " again in step ", state_.step,
          ", expected each layer once a step");
  return known;
}

void PatternCache::attend_select(const Backend& backend, const AttentionParams& params, Layer& layer,
                                 const CallerSelection* by_caller) const {
  const SparseConfig& config = std::get<SparseConfig>(config_);
  SelectParams select = select_params(config, prompt_length_, params.scale);
  const bool caller_selects = config.schedule.rule == SelectionRule::kCaller;
  if (caller_selects) {
    kAttend(by_caller != nullptr, "the selection is missing, expected one (the rule is the caller's)");
    select.scores = by_caller->scores;
  }
  if (config.rho == 1 && !caller_selects) {  // nothing is left out: the pass is dense, to the last bit
    layer.pattern = BlockPattern::full(square_geometry(params, config.block_size, prompt_length_));
    return attend_sparse(backend, params, layer);
  }
  // Without reuse, each step after the first selection is sparse with its own pattern.
  const bool sparse = state_.due <= state_.served;
  AttentionParams pass = params;
  if (sparse) {
    pass.v.data = pass.out.data = nullptr;
    pass.lse = nullptr;
  }
  layer.pattern = kAttend.named([&] { return backend.attention_and_select(pass, select); });
  if (caller_selects) {
    layer.pattern = by_caller->choose();
    kAttend(layer.pattern->geometry() == square_geometry(params, config.block_size, prompt_length_),
            "the chosen pattern has another geometry, expected that of the scores");
  }
  layer.attended.reset();
  if (sparse) attend_sparse(backend, params, layer);
}

void PatternCache::attend_sparse(const Backend& backend, const AttentionParams& params, Layer& layer) const {
  const bool dense = layer.pattern->denser_than(kDenseAbove);
  kAttend.named([&] { backend.attention(params, dense ? nullptr : &*layer.pattern); });
  layer.attended = dense ? std::nullopt : layer.pattern;
}

// The pattern of a layer that has none, where there is one without a selection.
std::optional<BlockPattern> PatternCache::unselected_pattern(const AttentionParams& params) const {
  if (const auto* window = std::get_if<WindowConfig>(&config_)) return window_pattern(*window, params);
  const auto* given = std::get_if<GivenConfig>(&config_);
  if (!given || !given->pattern) return std::nullopt;
  const PatternGeometry& geometry = given->pattern->geometry();
  check_same("q has batch", params.batch(), geometry.batch, "in the pattern");
  check_same("q has heads", params.heads(), geometry.heads, "in the pattern");
  check_same("q has length", params.q_len(), geometry.q_len, "in the pattern");
  check_same("k has length", params.kv_len(), geometry.kv_len, "in the pattern");
  return given->pattern;
}

BlockPattern PatternCache::window_pattern(const WindowConfig& config, const AttentionParams& params) const {
  const PatternGeometry geometry = square_geometry(params, config.block_size, prompt_length_);
  for (const auto& [index, layer] : state_.layers) {
    if (layer.pattern && layer.pattern->geometry() == geometry) return *layer.pattern;
  }
  return BlockPattern::streaming(geometry, config.window, config.sinks, kAttend, config.dense_generation);
}

bool PatternCache::has_pattern(int64_t layer) const {
  const auto found = state_.layers.find(layer);
  return found != state_.layers.end() && found->second.pattern;
}

const BlockPattern& PatternCache::pattern(int64_t layer) const {
  if (!has_pattern(layer)) {
    const std::vector<int64_t> layers = pattern_layers();
    fail(ErrorKind::kValue, "PatternCache.pattern: layer is ", layer,
         ", expected one that holds a pattern: ", shape_string(layers.data(), layers.size()));
  }
  return *state_.layers.at(layer).pattern;
}

void PatternCache::set_pattern(int64_t layer, const BlockPattern& pattern, const Checker& check) {
  const PatternGeometry& geometry = pattern.geometry();
  const auto same = [&](const char* name, int64_t found, int64_t expected, const char* as) {
    check.same(message("pattern has ", name), found, expected, message(" (as ", as, ")"));
  };
  check(layer >= 0, "layer is ", layer, ", expected >= 0");
  check(geometry.batch > 0 && geometry.heads > 0 && geometry.q_len > 0, "pattern has batch ", geometry.batch,
        ", heads ", geometry.heads, " and q_len ", geometry.q_len, ", expected at least 1 of each");
  same("kv_len", geometry.kv_len, geometry.q_len, "q_len");
  check(prompt_length_ <= geometry.kv_len, "pattern has kv_len ", geometry.kv_len, ", expected at least ",
        prompt_length_, " (prompt_length)");
  if (state_.length >= 0) {
    same("batch", geometry.batch, state_.batch, "before");
    same("q_len", geometry.q_len, state_.length, "before");
  }
  const auto found = state_.layers.find(layer);
  if (found != state_.layers.end()) same("heads", geometry.heads, found->second.heads, "the layer before");
  Layer& changed = state_.layers[layer];
  changed.heads = geometry.heads;
  changed.pattern = pattern;
  state_.batch = geometry.batch;
  state_.length = geometry.q_len;
}

std::vector<int64_t> PatternCache::pattern_layers() const {
  std::vector<int64_t> layers;
  for (const auto& [index, layer] : state_.layers) {
    if (layer.pattern) layers.push_back(index);
  }
  return layers;
}

size_t PatternCache::nbytes() const {
  std::vector<const BlockPattern*> patterns;
  size_t bytes = 0;
  for (const auto& [index, layer] : state_.layers) {
    const auto same = [&, &pattern = layer.pattern](const BlockPattern* other) { return other->is(*pattern); };
    if (!layer.pattern || std::any_of(patterns.begin(), patterns.end(), same)) continue;
    patterns.push_back(&*layer.pattern);
    bytes += layer.pattern->nbytes();
  }
  return bytes;
}

double PatternCache::density(int64_t layer) const {
  const auto found = state_.layers.find(layer);
  const bool attended = found != state_.layers.end() && found->second.attended_step == state_.step;
  check(attended, "PatternCache.density: layer is ", layer, ", expected one that has attended in step ", state_.step);
  return found->second.attended ? found->second.attended->density() : 1.0;
}

double PatternCache::density() const {
  double sum = 0;
  int64_t count = 0;
  for (const auto& [index, layer] : state_.layers) {
    if (layer.attended_step != state_.step || state_.step < 0) continue;
    sum += density(index);
    ++count;
  }
  check(count > 0, "PatternCache.density: no layer has attended in step ", state_.step, ", expected at least one");
  return sum / static_cast<double>(count);
}

void PatternCache::restore(State state) {
  const Checker check("PatternCache.restore");
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  check.range("step", state.step, -1, steps_ ? *steps_ - 1 : kMost - 1);
  const auto* config = std::get_if<SparseConfig>(&config_);
  const int64_t points = config ? static_cast<int64_t>(config->schedule.refresh.size()) + 1 : 0;
  check.range("due", state.due, 0, points);
  check.range("served", state.served, 0, points);
  check.range("select_step", state.select_step, -1, state.step);
  const bool known = !state.layers.empty();
  check.range("batch", state.batch, known ? 1 : -1, kMost);
  check.range("length", state.length, known ? std::max<int64_t>(prompt_length_, 1) : -1, kMaxLength);
  for (const auto& [index, layer] : state.layers) {
    const std::string name = message("layer ", index);
    check.range("a layer", index, 0, kMost);
    check.range(name + "'s attended_step", layer.attended_step, -1, state.step);
    for (const auto& pattern : {layer.pattern, layer.attended}) {
      if (!pattern) continue;
      const PatternGeometry& g = pattern->geometry();
      check(g.batch == state.batch && g.heads == layer.heads && g.q_len == state.length && g.kv_len == state.length,
            name, " has a pattern of batch ", g.batch, ", heads ", g.heads, ", q_len ", g.q_len, " and kv_len ",
            g.kv_len, ", expected ", state.batch, ", ", layer.heads, ", ", state.length, " and ", state.length);
    }
  }
  state_ = std::move(state);
}

}  // namespace sparsed
