// The state machine dense -> select -> sparse over denoising steps: one pattern per layer, batch rows apart.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/backend.h"
#include "core/params.h"
#include "core/pattern.h"
#include "core/schedule.h"

namespace sparsed {

// SparseD (arXiv 2509.24014).
struct SparseConfig {
  ScheduleConfig schedule;
  double rho = 0.3;
  int block_size = 128;
  std::optional<float> selection_scale;  // nullopt: the attention's own scale
  bool isolate = true;
  int64_t min_length = 2048;      // shorter sequences stay dense
  bool dense_generation = false;  // as in SelectParams
};

// Fixed windows: the baselines. Sparse in every step.
struct WindowConfig {
  int64_t window = 0;
  int64_t sinks = 0;
  int block_size = 128;
  bool dense_generation = false;  // as in SelectParams
};

// Patterns that the caller gives: sparse in every step, nothing is selected.
struct GivenConfig {
  std::optional<BlockPattern> pattern;  // of the layers that have none of their own
};

// The selection of SelectionRule::kCaller: a dense pass writes the scores, then `choose` makes a pattern of them.
struct CallerSelection {
  float* scores = nullptr;  // as in SelectParams
  std::function<BlockPattern()> choose;
};

// Not thread-safe. A call that throws leaves the state as it was.
class PatternCache {
 public:
  // A pattern of all blocks is dense attention, which is faster without the pattern. A smaller share would make a row
  // of a batch dense or sparse depending on the other rows.
  static constexpr double kDenseAbove = 1 - 0x1p-53;  // the largest number below 1

  PatternCache(SparseConfig config, std::optional<int64_t> steps, int64_t prompt_length);
  PatternCache(WindowConfig config, std::optional<int64_t> steps, int64_t prompt_length);
  PatternCache(GivenConfig config, std::optional<int64_t> steps, int64_t prompt_length);
  // The patterns of all layers in one file, and a cache of given patterns that has them.
  void save(const std::string& path) const;
  static PatternCache load(const std::string& path);

  // Enters step t; steps come in order from 0. `unmasked` is needed when the number of steps is not known.
  void begin_step(int64_t step, std::optional<double> unmasked);
  // The current step's phase. Sequences below min_length are dense from the first attend on.
  Phase phase() const;
  int64_t step() const { return state_.step; }  // -1 before the first
  int64_t prompt_length() const { return prompt_length_; }
  // Attention of one layer in the current step. Fills params.out. On a device the layer's pattern stays there: nothing
  // comes back to the host from one step to the next. The caller chooses the backend: the core knows no ISA.
  // A select step's output is that of its dense pass; with refresh_every only the first selection's is, later ones
  // attend sparsely with the pattern that they have just selected. by_caller: needed where the caller selects.
  void attend(const Backend& backend, int64_t layer, const AttentionParams& params,
              const CallerSelection* by_caller = nullptr);
  bool has_pattern(int64_t layer) const;
  const BlockPattern& pattern(int64_t layer) const;
  // Gives a layer the pattern that its sparse steps use until a step selects another one. The schedule goes on: steps
  // that are dense or select stay so.
  void set_pattern(int64_t layer, const BlockPattern& pattern,
                   const Checker& check = Checker("PatternCache.set_pattern"));
  std::vector<int64_t> pattern_layers() const;  // those that hold a pattern, ascending
  size_t nbytes() const;                        // of all patterns; one that layers share counts once
  // Share of blocks computed by `layer` in the current step (1 when dense). Waits where the pattern lies on a device,
  // once for each pattern.
  double density(int64_t layer) const;
  // Mean over the layers that have attended in the current step.
  double density() const;
  // Forgets patterns, geometry and step.
  void reset() { state_ = State{}; }

  struct Layer {
    int64_t heads = 0, kv_heads = 0, head_dim = 0;  // kv_heads, head_dim: 0 before the first attend
    std::optional<BlockPattern> pattern;            // that sparse steps use
    std::optional<BlockPattern> attended;           // that the latest attend used; nullopt: it was dense
    int64_t attended_step = -1;
  };
  // All that changes from call to call: with the arguments of the constructor it makes the same cache again.
  struct State {
    int64_t step = -1;
    int64_t due = 0, served = 0;      // selection points: with this step, before it
    int64_t select_step = -1;         // the latest
    int64_t batch = -1, length = -1;  // known from the first attend or set_pattern on
    std::map<int64_t, Layer> layers;
  };
  const State& state() const { return state_; }
  // Throws, and leaves the cache as it was, where the state is not one of such a cache.
  void restore(State state);

 private:
  Phase scheduled_phase() const;
  Phase phase_at(int64_t length) const;
  Layer checked_layer(int64_t layer, const AttentionParams& params) const;
  void attend_select(const Backend& backend, const AttentionParams& params, Layer& layer,
                     const CallerSelection* by_caller) const;
  void attend_sparse(const Backend& backend, const AttentionParams& params, Layer& layer) const;
  std::optional<BlockPattern> unselected_pattern(const AttentionParams& params) const;
  BlockPattern window_pattern(const WindowConfig& config, const AttentionParams& params) const;

  std::variant<SparseConfig, WindowConfig, GivenConfig> config_;
  std::optional<Schedule> schedule_;  // nullopt: nothing is selected
  std::optional<int64_t> steps_;
  int64_t prompt_length_ = 0;
  State state_;
};

}  // namespace sparsed
