#include "core/schedule.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace sparsed {

const char* phase_name(Phase phase) {
  switch (phase) {
    case Phase::kDense: return "dense";
    case Phase::kSelect: return "select";
    default: return "sparse";
  }
}

void check_steps(std::optional<int64_t> steps, const Checker& check) {
  constexpr int64_t kMaxSteps = int64_t{1} << 53;  // exact as a double
  check(!steps || (*steps >= 1 && *steps <= kMaxSteps), "steps is ", steps.value_or(0), ", expected 1 ... ", kMaxSteps);
}

Schedule::Schedule(ScheduleConfig config, std::optional<int64_t> steps, const Checker& check)
    : config_(std::move(config)), steps_(steps) {
  check_steps(steps_, check);
  check(config_.skip >= 0 && config_.skip <= 1, "skip is ", config_.skip, ", expected 0 ... 1");
  check(!config_.refresh_every || config_.refresh.empty(), "refresh is both \"every\" and ", config_.refresh.size(),
        " fractions, expected one of them");
  double previous = config_.skip;
  for (size_t i = 0; i < config_.refresh.size(); ++i) {
    const double fraction = config_.refresh[i];
    check(fraction > previous && fraction <= 1, "refresh[", i, "] is ", fraction, ", expected more than ", previous,
          (i == 0 ? " (skip)" : " (the one before)"), " and at most 1");
    previous = fraction;
  }
}

int64_t Schedule::points_due(int64_t step, double unmasked) const {
  const auto due = [&](double fraction) { return steps_ ? step >= select_step(fraction) : unmasked >= fraction; };
  return (due(config_.skip) ? 1 : 0) + std::count_if(config_.refresh.begin(), config_.refresh.end(), due);
}

Phase Schedule::phase(int64_t due, int64_t served) const {
  if (due > served) return Phase::kSelect;
  if (served == 0) return Phase::kDense;
  return config_.refresh_every ? Phase::kSelect : Phase::kSparse;
}

std::vector<Phase> Schedule::phases(const Checker& check) const {
  check(steps_.has_value(), "steps is unknown, expected a number");
  check.memory(static_cast<size_t>(*steps_), "the list of phases");
  std::vector<Phase> phases(static_cast<size_t>(*steps_));
  int64_t served = 0;
  for (size_t step = 0; step < phases.size(); ++step) {
    const int64_t due = points_due(static_cast<int64_t>(step), 0);
    phases[step] = phase(due, served);
    served = std::max(served, due);
  }
  return phases;
}

int64_t Schedule::select_step(double fraction) const {
  check(steps_.has_value(), "Schedule.select_step: steps is unknown, expected a number");
  const double share = std::floor(static_cast<double>(*steps_) * fraction);
  if (config_.rule == SelectionRule::kReference) return static_cast<int64_t>(share) + 1;
  return std::max(static_cast<int64_t>(share) - 1, int64_t{0});
}

}  // namespace sparsed
