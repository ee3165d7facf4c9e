#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "core/schedule.h"
#include "expect_error.h"

namespace sparsed {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Phases of the steps as letters: d(ense), S(elect), . (sparse); as the pattern cache drives the schedule.
std::string phases(const Schedule& schedule, const std::vector<double>& unmasked) {
  std::string letters;
  int64_t due = 0, served = 0;
  for (size_t step = 0; step < unmasked.size(); ++step) {
    served = std::max(served, due);
    due = schedule.points_due(static_cast<int64_t>(step), unmasked[step]);
    const Phase phase = schedule.phase(due, served);
    letters += phase == Phase::kDense ? 'd' : phase == Phase::kSelect ? 'S' : '.';
  }
  return letters;
}

std::string phases(const Schedule& schedule) {
  return phases(schedule, std::vector<double>(static_cast<size_t>(*schedule.steps()), kNan));
}

ScheduleConfig config(double skip, SelectionRule rule = SelectionRule::kPaper, std::vector<double> refresh = {},
                      bool every = false) {
  return {skip, rule, std::move(refresh), every};
}

TEST(PhaseTest, HasNames) {
  EXPECT_STREQ(phase_name(Phase::kDense), "dense");
  EXPECT_STREQ(phase_name(Phase::kSelect), "select");
  EXPECT_STREQ(phase_name(Phase::kSparse), "sparse");
}

struct SelectStep {
  int64_t steps;
  double fraction;
  int64_t paper, reference;
};

// Expected steps: Python's max(0, floor(T * fraction) - 1) and int(T * fraction) + 1.
class SelectStepTest : public testing::TestWithParam<SelectStep> {};

TEST_P(SelectStepTest, FollowsBothRules) {
  const SelectStep& c = GetParam();
  EXPECT_EQ(Schedule(config(0), c.steps).select_step(c.fraction), c.paper);
  EXPECT_EQ(Schedule(config(0, SelectionRule::kReference), c.steps).select_step(c.fraction), c.reference);
}

INSTANTIATE_TEST_SUITE_P(Cases, SelectStepTest,
                         testing::Values(SelectStep{8, .2, 0, 2}, SelectStep{15, .2, 2, 4}, SelectStep{12, .2, 1, 3},
                                         SelectStep{10, .3, 2, 4}, SelectStep{5, 0., 0, 1}, SelectStep{128, .2, 24, 26},
                                         SelectStep{1024, .2, 203, 205}, SelectStep{1, .2, 0, 1},
                                         SelectStep{1, 1., 0, 2}, SelectStep{4, 1., 3, 5}, SelectStep{100, .29, 27, 29},
                                         SelectStep{35, .2, 6, 8}, SelectStep{50, .58, 27, 29},
                                         SelectStep{10, .99, 8, 10}),
                         [](const auto& test) { return "case" + std::to_string(test.index); });

TEST(ScheduleTest, PaperSelectsInItsLastDenseStep) {
  EXPECT_EQ(phases(Schedule(config(0), 4)), "S...");
  EXPECT_EQ(phases(Schedule(config(.2), 8)), "S.......");
  EXPECT_EQ(phases(Schedule(config(.2), 15)), "ddS............");
  EXPECT_EQ(phases(Schedule(config(1), 4)), "dddS");
  EXPECT_EQ(phases(Schedule(config(1), 1)), "S");
}

TEST(ScheduleTest, ReferenceSelectsTwoStepsLater) {
  EXPECT_EQ(phases(Schedule(config(0, SelectionRule::kReference), 4)), "dS..");
  EXPECT_EQ(phases(Schedule(config(.2, SelectionRule::kReference), 15)), "ddddS..........");
}

TEST(ScheduleTest, StaysDenseWhereTheSelectStepIsBehindTheEnd) {
  EXPECT_EQ(phases(Schedule(config(0, SelectionRule::kReference), 1)), "d");
  EXPECT_EQ(phases(Schedule(config(1, SelectionRule::kReference), 4)), "dddd");
  EXPECT_EQ(phases(Schedule(config(.9, SelectionRule::kReference, {}, true), 4)), "dddd");
}

TEST(ScheduleTest, RefreshesAtFurtherFractions) {
  EXPECT_EQ(phases(Schedule(config(.2, SelectionRule::kPaper, {.5, .8}), 10)), "dS..S..S..");
  EXPECT_EQ(phases(Schedule(config(.2, SelectionRule::kReference, {.5, .8, 1.}), 10)), "dddS..S..S");
}

TEST(ScheduleTest, SelectsOnceWhereFractionsFallIntoOneStep) {
  EXPECT_EQ(phases(Schedule(config(0, SelectionRule::kPaper, {.1, .2, .5}), 4)), "SS..");
  EXPECT_EQ(phases(Schedule(config(.1, SelectionRule::kPaper, {.11, .12, .9}), 5)), "S..S.");
}

TEST(ScheduleTest, RefreshEverySelectsFromTheFirstSelectionOn) {
  EXPECT_EQ(phases(Schedule(config(.5, SelectionRule::kPaper, {}, true), 6)), "ddSSSS");
  EXPECT_EQ(phases(Schedule(config(0, SelectionRule::kPaper, {}, true), 3)), "SSS");
}

TEST(ScheduleTest, UnknownStepsFollowTheUnmaskedShare) {
  EXPECT_EQ(phases(Schedule(config(.2), std::nullopt), {0, .1, .2, .3, 1}), "ddS..");
  EXPECT_EQ(phases(Schedule(config(0), std::nullopt), {0, .1, .2}), "S..");
  EXPECT_EQ(phases(Schedule(config(.5), std::nullopt), {0, .1, .49}), "ddd");
  EXPECT_EQ(phases(Schedule(config(.2, SelectionRule::kReference), std::nullopt), {0, .2, .3}), "dS.");
}

TEST(ScheduleTest, UnknownStepsRefreshOnceAtATime) {
  const Schedule schedule(config(.2, SelectionRule::kPaper, {.4, .6, .8}), std::nullopt);
  EXPECT_EQ(phases(schedule, {0, .2, .3, .4, .5, .6, .7, .8, 1}), "dS.S.S.S.");
  EXPECT_EQ(phases(schedule, {0, .7, .75, .9, .9}), "dS.S.");
  EXPECT_EQ(phases(schedule, {.9, .9, 1}), "S..");
}

TEST(ScheduleTest, UnknownStepsRefreshEvery) {
  EXPECT_EQ(phases(Schedule(config(.2, SelectionRule::kPaper, {}, true), std::nullopt), {0, .3, .4, .5}), "dSSS");
}

TEST(ScheduleTest, AShrinkingShareKeepsThePattern) {
  EXPECT_EQ(phases(Schedule(config(.2, SelectionRule::kPaper, {.5}), std::nullopt), {.3, .1, .3, .6, .4, .7}),
            "S..S..");
}

TEST(ScheduleTest, KnowsItsSteps) {
  EXPECT_EQ(Schedule(config(.2), 7).steps(), 7);
  EXPECT_EQ(Schedule(config(.2), std::nullopt).steps(), std::nullopt);
}

TEST(ScheduleTest, TakesAsManyStepsAsADoubleCounts) {
  const int64_t steps = int64_t{1} << 53;
  EXPECT_EQ(Schedule(config(0), steps).select_step(1), steps - 1);
  EXPECT_ERROR(Schedule(config(0), steps + 1), kValue, "Schedule: steps is 9007199254740993, expected 1 ...");
}

TEST(ScheduleTest, NamesWhatIsWrong) {
  EXPECT_ERROR(Schedule(config(.2), 0), kValue, "Schedule: steps is 0, expected 1 ...");
  EXPECT_ERROR(Schedule(config(.2), -3, "PatternCache"), kValue, "PatternCache: steps is -3, expected 1 ...");
  for (const double skip : {-.1, 1.1, kNan}) {
    EXPECT_ERROR(Schedule(config(skip), 8), kValue, "Schedule: skip is ");
  }
  const auto with_refresh = [](std::vector<double> refresh, bool every = false) {
    return Schedule(config(.2, SelectionRule::kPaper, std::move(refresh), every), 8);
  };
  EXPECT_ERROR(with_refresh({.2}), kValue, "refresh[0] is 0.2, expected more than 0.2 (skip) and at most 1");
  EXPECT_ERROR(with_refresh({.1}), kValue, "refresh[0] is 0.1, expected more than 0.2 (skip)");
  EXPECT_ERROR(with_refresh({.5, .5}), kValue, "refresh[1] is 0.5, expected more than 0.5 (the one before)");
  EXPECT_ERROR(with_refresh({.5, .4}), kValue, "refresh[1] is 0.4");
  EXPECT_ERROR(with_refresh({.5, 1.01}), kValue, "refresh[1] is 1.01");
  EXPECT_ERROR(with_refresh({kNan}), kValue, "refresh[0] is ");
  EXPECT_ERROR(with_refresh({.5}, true), kValue, "refresh is both \"every\" and 1 fractions");
  EXPECT_ERROR(Schedule(config(.2), std::nullopt).select_step(.2), kValue, "Schedule.select_step: steps is unknown");
}

TEST(ScheduleTest, ListsThePhasesOfAllSteps) {
  const auto phases = [](const ScheduleConfig& config, int64_t steps) {
    std::string text;
    for (const Phase phase : Schedule(config, steps).phases())
      text += phase_name(phase)[phase == Phase::kSelect ? 2 : 0];
    return text;
  };
  EXPECT_EQ(phases({.5, SelectionRule::kPaper, {}, false}, 6), "ddlsss");
  EXPECT_EQ(phases({.5, SelectionRule::kReference, {}, false}, 6), "ddddls");
  EXPECT_EQ(phases({.2, SelectionRule::kPaper, {.6}, false}, 10), "dlssslssss");
  EXPECT_EQ(phases({.5, SelectionRule::kPaper, {}, true}, 6), "ddllll");
  EXPECT_EQ(phases({1, SelectionRule::kReference, {}, false}, 2), "dd");
  EXPECT_ERROR(Schedule({}, std::nullopt).phases(), kValue, "Schedule.phases: steps is unknown, expected a number");
#ifdef __linux__
  EXPECT_ERROR(Schedule({}, int64_t{1} << 50).phases(), kMemory, "Schedule.phases: the list of phases needs ");
#endif
}

}  // namespace
}  // namespace sparsed
