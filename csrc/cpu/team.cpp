#include "cpu/team.h"

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <thread>

namespace sparsed::cpu {
namespace {

// Longer than it mostly takes a model written in Python to make its next call, and far below a time slice of the
// system.
constexpr std::chrono::microseconds kSpin{50};

// Tells the core that this thread spins.
void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

void Loop::work(InterruptTimer* timer) {
  while (!stopped.load(std::memory_order_relaxed)) {
    const int64_t item = next.fetch_add(1, std::memory_order_relaxed);
    if (item >= items) return;
    try {
      if (timer) timer->check();
      run(body, item);
    } catch (...) {
      if (!stopped.exchange(true)) failure = std::current_exception();
    }
  }
}

Team& Team::get() {
  static Team& team = *new Team;  // never destroyed: its threads use it while the process ends
  return team;
}

void Team::open(Loop& loop, int threads) {
  const int wanted = threads - 1;
  bool all;
  {
    std::unique_lock lock(mutex_);
    if (threads > threads_) start(threads - threads_, lock);
    spins_ = threads <= cpus_;
    all = threads == threads_;
    loop.room = wanted;
    loops_.push_back(&loop);
    posts_.fetch_add(1, std::memory_order_release);
  }
  if (all) return posted_.notify_all();
  for (int i = 0; i < wanted; ++i) posted_.notify_one();
}

void Team::close(Loop& loop) {
  {
    const std::lock_guard lock(mutex_);
    std::erase(loops_, &loop);
  }
  wait(left_, [&] { return loop.workers.load(std::memory_order_acquire) == 0; });
}

void Team::start(int more, std::unique_lock<std::mutex>& lock) {
  std::thread([this, more] {
    omp_set_dynamic(0);  // the threads stay, the load of this moment does not
    int started = 0;
#pragma omp parallel num_threads(more + 1)
    {
      const int number = omp_get_thread_num();
      {
        const std::lock_guard start_lock(mutex_);
        if (++started == omp_get_num_threads()) ++started_groups_;
      }
      started_.notify_all();
      if (number > 0) {
        serve();
      } else {  // stands for the callers: where OpenMP binds threads to cores, this one's core is left to them
        std::unique_lock host_lock(mutex_);
        never_.wait(host_lock, [] { return false; });
      }
    }
  }).detach();
  threads_ += more;
  cpus_ = omp_get_num_procs();
  ++groups_;
  // From then on the threads do not call OpenMP, and the process may end: LLVM's runtime frees its data at the exit.
  started_.wait(lock, [&] { return started_groups_ == groups_; });
}

void Team::serve() {
  uint64_t posts_seen = 0;
  while (true) {
    if (Loop* loop = join(posts_seen)) {
      loop->work(nullptr);
      leave(*loop);
    } else {
      wait(posted_, [&] { return posts_.load(std::memory_order_acquire) != posts_seen; });
    }
  }
}

Loop* Team::join(uint64_t& posts_seen) {
  const std::lock_guard lock(mutex_);
  posts_seen = posts_.load(std::memory_order_relaxed);
  const auto found = std::find_if(loops_.begin(), loops_.end(), [](Loop* l) { return l->room > 0 && !l->finished(); });
  if (found == loops_.end()) return nullptr;
  --(*found)->room;
  (*found)->workers.fetch_add(1, std::memory_order_relaxed);
  return *found;
}

void Team::leave(Loop& loop) {
  bool last;
  {
    const std::lock_guard lock(mutex_);
    last = loop.workers.fetch_sub(1, std::memory_order_release) == 1;  // the caller may end the loop from here on
  }
  if (last) left_.notify_all();
}

template <class Ready>
void Team::wait(std::condition_variable& signal, const Ready& ready) {
  if (spins_.load(std::memory_order_relaxed)) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < 32; ++i) {
        if (ready()) return;
        relax();
      }
    } while (std::chrono::steady_clock::now() < end);
  }
  std::unique_lock lock(mutex_);
  signal.wait(lock, ready);
}

}  // namespace sparsed::cpu
