// Ends long calls early: Ctrl-C in Python.
#pragma once

#include <chrono>

namespace sparsed {

// What asks whether to go on, by throwing where not; nullptr: always go on. Set once, by the bindings.
void set_interrupt_poll(void (*poll)());

// Held by the thread that made a call; asks between work items, ten times a second at most.
class InterruptTimer {
 public:
  void check();

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace sparsed
