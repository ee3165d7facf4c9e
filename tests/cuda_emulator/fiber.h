// One stack of execution that runs until it switches to another. Hand-written on x86-64, ucontext elsewhere.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace sparsed::emulator {

class Fiber {
 public:
  Fiber();  // the stack that calls it
  // Not yet started; `body` must end by switching away for good.
  explicit Fiber(std::function<void()> body);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Leaves `from`, the running fiber, and continues `to`. `last`: `from` never runs again.
  static void switch_to(Fiber& from, Fiber& to, bool last = false);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sparsed::emulator
