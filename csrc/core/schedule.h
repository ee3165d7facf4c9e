// Which denoising step is dense, selects or is sparse.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/params.h"
#include "support/checker.h"

namespace sparsed {

enum class Phase : uint8_t { kDense, kSelect, kSparse };
const char* phase_name(Phase phase);  // "dense", "select", "sparse"

struct ScheduleConfig {
  double skip = 0.2;  // 0 ... 1
  SelectionRule rule = SelectionRule::kPaper;
  std::vector<double> refresh;  // further fractions of T, increasing, each > skip
  bool refresh_every = false;   // select anew at every step after the first selection
};

// Throws unless steps is unknown or 1 ... 2^53.
void check_steps(std::optional<int64_t> steps, const Checker& check);

// Selection points are the skip fraction and each refresh fraction. A point is due in its step when T is known, else
// in the first step that begins with that share of the generation unmasked. A step selects once, however many points
// became due since the step before.
class Schedule {
 public:
  // steps: T, known beforehand; nullopt: the phase follows the share of the generation that is unmasked.
  Schedule(ScheduleConfig config, std::optional<int64_t> steps, const Checker& check = Checker("Schedule"));

  std::optional<int64_t> steps() const { return steps_; }
  // Number of selection points that are due by `step` (0-based). `unmasked` (0 ... 1) is read only when T is unknown.
  int64_t points_due(int64_t step, double unmasked) const;
  // Phase of a step with `due` points of which earlier steps have served `served`.
  Phase phase(int64_t due, int64_t served) const;
  // The phase of every step. T must be known; kMemory where there are too many steps to list.
  std::vector<Phase> phases(const Checker& check = Checker("Schedule.phases")) const;
  // "paper": max(0, floor(T * fraction) - 1); "reference": int(T * fraction) + 1. T must be known.
  int64_t select_step(double fraction) const;

 private:
  ScheduleConfig config_;
  std::optional<int64_t> steps_;
};

}  // namespace sparsed
