#include "support/interrupt.h"

#include <atomic>

namespace sparsed {
namespace {

std::atomic<void (*)()> g_poll{nullptr};

}  // namespace

void set_interrupt_poll(void (*poll)()) { g_poll = poll; }

void InterruptTimer::check() {
  const auto now = std::chrono::steady_clock::now();
  if (now - last_ < std::chrono::milliseconds(100)) return;
  last_ = now;
  if (const auto poll = g_poll.load()) poll();
}

}  // namespace sparsed
