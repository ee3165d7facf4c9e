// The threads that help with loops. OpenMP starts them, but they wait for work here and not in OpenMP, where they would
// spin for milliseconds. On cores that are shared with other processes, that takes the time of the threads that work.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <vector>

#include "support/interrupt.h"

namespace sparsed::cpu {

// One loop over work items, on the stack of the thread that called.
struct Loop {
  int64_t items;
  void (*run)(const void* body, int64_t item);
  const void* body;

  std::exception_ptr failure = nullptr;  // the first; read after the last worker has left
  int room = 0;                          // for so many more workers; guarded by the team's mutex
  std::atomic<int> workers{0};           // that are in the loop; changed under the team's mutex
  std::atomic<bool> stopped{false};
  alignas(64) std::atomic<int64_t> next{0};

  // Runs items until none is left. The caller has a timer, which asks for interrupts.
  void work(InterruptTimer* timer);
  bool finished() const {
    return stopped.load(std::memory_order_relaxed) || next.load(std::memory_order_relaxed) >= items;
  }
};

class Team {
 public:
  // Lives to the end of the process, as its threads do.
  static Team& get();

  // Lets up to threads - 1 workers join the loop. The caller does not wait for them: it goes on to work in the loop.
  void open(Loop& loop, int threads);
  // Lets no more workers join, and returns when those that did have left.
  void close(Loop& loop);

 private:
  void start(int more, std::unique_lock<std::mutex>& lock);  // so many more workers; none ever ends
  void serve();                                              // what a worker does
  Loop* join(uint64_t& posts_seen);                          // nullptr: no open loop needs a worker
  void leave(Loop& loop);
  // Returns when ready() holds, which the signal announces.
  template <class Ready>
  void wait(std::condition_variable& signal, const Ready& ready);

  std::mutex mutex_;
  std::condition_variable posted_, left_, started_, never_;
  std::vector<Loop*> loops_;        // that are open; guarded by the mutex
  int threads_ = 1;                 // workers and one caller; guarded by the mutex
  int cpus_ = 1;                    // that the team may run on; guarded by the mutex
  int groups_ = 0;                  // of workers that were started together; guarded by the mutex
  int started_groups_ = 0;          // of these, whose threads all run; guarded by the mutex
  std::atomic<bool> spins_{false};  // a thread that waits spins at first: there is a CPU for each
  std::atomic<uint64_t> posts_{0};  // counts the loops that were opened
};

}  // namespace sparsed::cpu
