#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cpu/parallel.h"
#include "support/interrupt.h"

namespace sparsed::cpu {
namespace {

class Parallel : public ::testing::Test {
 protected:
  void SetUp() override { set_num_threads(4); }
  void TearDown() override {
    set_interrupt_poll(nullptr);
    set_num_threads(0);
  }
};

// Whether each of so many items ran exactly once, and all of them before parallel_for returned.
bool runs_each_item_once(int64_t items) {
  std::vector<int> runs(static_cast<size_t>(items), 0);
  parallel_for(items, [&](int64_t item) { ++runs[static_cast<size_t>(item)]; });
  return std::all_of(runs.begin(), runs.end(), [](int count) { return count == 1; });
}

// The same for a hundred items, without memory from the heap: a sanitizer's heap may be locked in a forked child.
bool runs_a_hundred_items_once() {
  std::array<int, 100> runs{};
  parallel_for(100, [&](int64_t item) { ++runs[static_cast<size_t>(item)]; });
  return std::all_of(runs.begin(), runs.end(), [](int count) { return count == 1; });
}

// Runs body(number) in so many threads at once.
template <class Body>
void at_once(int threads, const Body& body) {
  std::vector<std::thread> started;
  for (int number = 0; number < threads; ++number) started.emplace_back(body, number);
  for (std::thread& thread : started) thread.join();
}

// The exit status of a forked child that runs body, or -1 where it does not end by itself within 30 s.
template <class Body>
int exit_status_of_child(const Body& body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(30);
    _exit(body() ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST_F(Parallel, EveryItemRunsOnce) {
  for (const int threads : {1, 2, 4}) {
    set_num_threads(threads);
    for (const int64_t items : {0, 1, 2, 3, 5, 1000})
      EXPECT_TRUE(runs_each_item_once(items)) << threads << ", " << items;
  }
}

TEST_F(Parallel, SeveralThreadsTakePart) {
  // Every item waits for the others: they end only where four threads run one each.
  std::atomic<int> begun{0};
  std::mutex mutex;
  std::set<std::thread::id> threads;
  parallel_for(4, [&](int64_t) {
    ++begun;
    while (begun < 4) std::this_thread::yield();
    const std::lock_guard lock(mutex);
    threads.insert(std::this_thread::get_id());
  });
  EXPECT_EQ(threads.size(), 4u);
  EXPECT_EQ(threads.count(std::this_thread::get_id()), 1u);
}

TEST_F(Parallel, NoMoreThreadsThanWereAskedFor) {
  for (const int asked : {4, 2, 3}) {  // the team of four stays
    set_num_threads(asked);
    std::atomic<int> running{0}, most{0};
    parallel_for(200, [&](int64_t) {
      const int now = ++running;
      for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {
      }
      std::this_thread::sleep_for(std::chrono::microseconds(20));
      --running;
    });
    EXPECT_LE(most, asked);
  }
}

TEST_F(Parallel, MoreThreadsThanCpus) {
  set_num_threads(4 * static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  for (int i = 0; i < 200; ++i) ASSERT_TRUE(runs_each_item_once(100));
}

TEST_F(Parallel, WakesThreadsThatSleep) {
  for (int i = 0; i < 20; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    ASSERT_TRUE(runs_each_item_once(50));
  }
}

TEST_F(Parallel, ManyCallersAtOnce) {
  std::atomic<int> wrong{0};
  at_once(16, [&](int number) {
    for (int i = 0; i < 200; ++i) wrong += !runs_each_item_once(1 + (number + i) % 40);
  });
  EXPECT_EQ(wrong, 0);
}

TEST_F(Parallel, ItemsMayCallItAgain) {
  std::atomic<int> wrong{0};
  parallel_for(20, [&](int64_t item) { wrong += !runs_each_item_once(item); });
  EXPECT_EQ(wrong, 0);
}

TEST_F(Parallel, TheNumberOfThreadsChangesMeanwhile) {
  std::atomic<int> wrong{0};
  std::atomic<bool> done{false};
  std::thread changes([&] {
    for (int n = 0; !done; ++n) set_num_threads(1 + n % 9);
  });
  at_once(4, [&](int) {
    for (int i = 0; i < 300; ++i) wrong += !runs_each_item_once(30);
  });
  done = true;
  changes.join();
  EXPECT_EQ(wrong, 0);
}

TEST_F(Parallel, AnExceptionEndsTheLoopAndReachesTheCaller) {
  for (const int64_t bad : {0, 7, 999}) {
    std::atomic<int> ran{0};
    EXPECT_THROW(parallel_for(1000000,
                              [&](int64_t item) {
                                ++ran;
                                if (item == bad) throw std::out_of_range("bad item");
                              }),
                 std::out_of_range);
    EXPECT_LT(ran, 1000000);
    EXPECT_TRUE(runs_each_item_once(100));
  }
}

TEST_F(Parallel, EveryItemThrows) {
  std::atomic<int> caught{0};
  at_once(8, [&](int number) {
    for (int i = 0; i < 50; ++i) {
      try {
        parallel_for(20, [&](int64_t) { throw number; });
      } catch (int thrown) {
        caught += thrown == number;  // the exception of this caller's loop
      }
    }
  });
  EXPECT_EQ(caught, 400);
}

TEST_F(Parallel, AnInterruptEndsTheLoop) {
  set_interrupt_poll([] { throw std::runtime_error("interrupted"); });
  EXPECT_THROW(parallel_for(1 << 20, [](int64_t) { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }),
               std::runtime_error);
}

TEST_F(Parallel, AForkedChildRunsOnOneThread) {
  ASSERT_TRUE(runs_each_item_once(100));  // starts the threads, which the child does not have
  EXPECT_EQ(exit_status_of_child([] { return num_threads() == 1 && runs_a_hundred_items_once(); }), 0);
  EXPECT_TRUE(runs_each_item_once(100));
}

TEST_F(Parallel, ForksWhileOtherThreadsCompute) {
  std::atomic<bool> done{false};
  std::atomic<int> wrong{0};
  std::thread forks([&] {
    for (int i = 0; i < 10; ++i) wrong += exit_status_of_child([] { return runs_a_hundred_items_once(); }) != 0;
    done = true;
  });
  at_once(3, [&](int) {
    while (!done) wrong += !runs_a_hundred_items_once();
  });
  forks.join();
  EXPECT_EQ(wrong, 0);
}

TEST_F(Parallel, AProcessEndsWhileItsThreadsWait) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // in a new process: a forked one would have one thread
  EXPECT_EXIT(
      {
        set_num_threads(3);
        exit(runs_each_item_once(100) ? 0 : 1);
      },
      ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace sparsed::cpu
