#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

// clang answers __has_feature, gcc before 14 defines macros.
#if defined(__has_feature)
#define SPARSED_ASAN __has_feature(address_sanitizer)
#define SPARSED_TSAN __has_feature(thread_sanitizer)
#elif defined(__SANITIZE_ADDRESS__)
#define SPARSED_ASAN 1
#elif defined(__SANITIZE_THREAD__)
#define SPARSED_TSAN 1
#endif
#if SPARSED_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if SPARSED_TSAN
#include <sanitizer/tsan_interface.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace sparsed::emulator {
namespace {

constexpr size_t kStackBytes = size_t{1} << 19;  // reserved; pages are taken as they are touched

// Stacks outlive their fibers: a launch runs one block after the other.
class Stacks {
 public:
  ~Stacks() {
    for (void* stack : free_) munmap(stack, kStackBytes);
  }
  void* take() {
    if (!free_.empty()) {
      void* stack = free_.back();
      free_.pop_back();
#if SPARSED_ASAN
      __asan_unpoison_memory_region(stack, kStackBytes);
#endif
      return stack;
    }
    void* stack =
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) throw std::bad_alloc();
    return stack;
  }
  void give_back(void* stack) { free_.push_back(stack); }

 private:
  std::vector<void*> free_;
};

thread_local Stacks stacks;

}  // namespace

struct Fiber::State {
  std::function<void()> body;
  void* stack = nullptr;
#if defined(__x86_64__)
  void* pointer = nullptr;
#else
  ucontext_t context;
#endif
#if SPARSED_ASAN
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
  State* before = nullptr;  // who switched here last
#endif
#if SPARSED_TSAN
  void* tsan = nullptr;
#endif
};

#if defined(__x86_64__)
extern "C" void sparsed_emulator_switch(void** save, void* load);
extern "C" void sparsed_emulator_start();
extern "C" void sparsed_emulator_enter(void (*run)(void*), void* argument) { run(argument); }

// Callee-saved registers of the System V ABI; a fresh fiber finds its start routine as the return address.
asm(R"(
.text
.type sparsed_emulator_switch, @function
sparsed_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size sparsed_emulator_switch, .-sparsed_emulator_switch
.type sparsed_emulator_start, @function
sparsed_emulator_start:
  .cfi_startproc
  .cfi_undefined rip
  movq %r12, %rdi
  movq %r13, %rsi
  call sparsed_emulator_enter
  ud2
  .cfi_endproc
.size sparsed_emulator_start, .-sparsed_emulator_start
)");
#endif

namespace {

#if SPARSED_ASAN
template <class State>
void arrived(State* state) {
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(state->fake_stack, &bottom, &size);
  if (state->before && !state->before->bottom) {  // the thread's own stack, whose bounds are learned here
    state->before->bottom = bottom;
    state->before->size = size;
  }
}
#else
template <class State>
void arrived(State*) {}
#endif

template <class State>
void run(void* argument) {
  State* state = static_cast<State*>(argument);
  arrived(state);
  state->body();
  std::abort();  // the body returned
}

}  // namespace

Fiber::Fiber() : state_(std::make_unique<State>()) {
#if SPARSED_TSAN
  state_->tsan = __tsan_get_current_fiber();
#endif
}

Fiber::Fiber(std::function<void()> body) : state_(std::make_unique<State>()) {
  State& state = *state_;
  state.body = std::move(body);
  state.stack = stacks.take();
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(static_cast<char*>(state.stack) + kStackBytes);
  *--top = nullptr;  // keeps the stack aligned at the start routine's call
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&sparsed_emulator_start);
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // rbp, rbx, r12 ... r15
  top[3] = reinterpret_cast<void*>(&run<State>);
  top[2] = &state;
  state.pointer = top;
#else
  getcontext(&state.context);
  state.context.uc_stack = {state.stack, 0, kStackBytes};
  state.context.uc_link = nullptr;
  const auto entry = +[](uint32_t high, uint32_t low) {
    run<State>(reinterpret_cast<void*>(static_cast<uintptr_t>(uint64_t{high} << 32 | low)));
  };
  const uint64_t address = reinterpret_cast<uintptr_t>(&state);
  makecontext(&state.context, reinterpret_cast<void (*)()>(entry), 2, static_cast<uint32_t>(address >> 32),
              static_cast<uint32_t>(address));
#endif
#if SPARSED_ASAN
  state.bottom = state.stack;
  state.size = kStackBytes;
#endif
#if SPARSED_TSAN
  state.tsan = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
  if (!state_->stack) return;
#if SPARSED_TSAN
  __tsan_destroy_fiber(state_->tsan);
#endif
  stacks.give_back(state_->stack);
}

void Fiber::switch_to(Fiber& from, Fiber& to, [[maybe_unused]] bool last) {
  State &a = *from.state_, &b = *to.state_;
#if SPARSED_ASAN
  b.before = &a;
  __sanitizer_start_switch_fiber(last ? nullptr : &a.fake_stack, b.bottom, b.size);
#endif
#if SPARSED_TSAN
  __tsan_switch_to_fiber(b.tsan, 0);
#endif
#if defined(__x86_64__)
  sparsed_emulator_switch(&a.pointer, b.pointer);
#else
  swapcontext(&a.context, &b.context);
#endif
  arrived(&a);
}

}  // namespace sparsed::emulator
