// Runs a CUDA kernel's source on the host: a block is one fiber a thread, blocks run one after the other. The host
// forms of the primitives (cuda/common/prims.cuh, cuda/sm90/prims.cuh here) call what is declared below.
//
// How to add a primitive: declare it as csrc/cuda/prims*.cuh does, and give it a body from these parts:
//   one thread alone          thread() says who runs; block().shared, load/store through `read_shared` and the like
//   all 32 lanes together     warp_collective(where, "name", argument, [](std::array<Argument*, 32>& lanes) {...});
//                             the body runs once, when the last lane has arrived; results go into the arguments
//   waiting                   wait_until("what", predicate); other threads run meanwhile
//   an asynchronous engine    block().shared.begin_flight(...) now, post_async([...] { ... end_flight ... }): it lands
//                             at once (Landing::kEarly), or when no thread can run without it (kLate)
//   state                     block().state<T>(): the block's one T; block().at_end: what must hold at the end
//   ordering                  release(clock): what this warp did is published with `clock`; acquire(clock): seen.
//                             A warp that only reads what others published needs no more. Engines have agents of
//                             their own behind the warps: block().engine_agent(i), with block().clock(agent).
//   counting bank conflicts   note_access(where, "st.shared", address, bytes, write) per lane
// `where` is std::source_location::current() as a default argument: the place in the kernel.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <source_location>
#include <stdexcept>
#include <string>
#include <tuple>
#include <typeindex>
#include <unordered_map>
#include <vector>

#include "fiber.h"
#include "shared.h"

namespace sparsed::emulator {

constexpr int kWarp = 32;

// A kernel did what would be undefined on the device.
class KernelError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};
[[noreturn]] void fail(const std::string& what);

// When asynchronous copies land: as early, or as late as the waits allow.
enum class Landing { kEarly, kLate };

// Global memory that the kernel may touch.
struct Region {
  const void* begin;
  size_t bytes;
  bool writable;
};

struct Launch {
  int blocks = 1;
  int threads = kWarp;  // a multiple of 32
  size_t shared_bytes = 0;
  Landing landing = Landing::kLate;
  unsigned seed = 0;  // of the order in which warps take turns
  std::vector<Region> memory;
};

// One line of source that touches shared memory.
struct AccessCount {
  std::string kind;      // "ldmatrix", "cp.async", "ld.shared", "st.shared" ...
  int64_t accesses = 0;  // by a warp
  int64_t wavefronts = 0;
  int64_t conflicts = 0;  // wavefronts beyond those that the bytes need
};

struct Report {
  std::map<std::pair<std::string, int>, AccessCount> accesses;  // by (file, line)
  int64_t conflicts() const;
  void add(const Report& other);
};

// Throws KernelError, with block and thread, at the first mistake.
Report run(const Launch& launch, const std::function<void()>& kernel);

// --- what primitives are made of -------------------------------------------------------------------------------------

using Where = std::source_location;

struct Barrier {
  int expected = 0;  // threads; 0: nobody has arrived
  int arrived = 0;
  uint64_t generation = 0;
  Clock clock;
  std::vector<int> waiting;  // warps
};

struct CopyGroupEntry {
  uint32_t address;
  const void* source;  // nullptr: zeros
  uint32_t bytes;
  std::array<std::byte, 16> early;
};

struct Thread {
  int index = 0;
  enum class State { kReady, kWaiting, kCollective, kDone } state = State::kReady;
  const std::function<bool()>* predicate = nullptr;
  const char* waits_for = "";
  Where where;
  std::unique_ptr<Fiber> fiber;
  std::vector<std::vector<CopyGroupEntry>> groups;  // committed, oldest first
  std::vector<CopyGroupEntry> open;                 // not yet committed

  int warp() const { return index / kWarp; }
  int lane() const { return index % kWarp; }
};

// The lanes of a warp that have arrived at one collective operation.
struct Meeting {
  const char* name = nullptr;
  Where where;
  int arrived = 0;
  uint64_t generation = 0;
  std::array<void*, kWarp> arguments{};
};

struct AccessKey {
  const char* file;
  uint32_t line, column;
  int warp;
  bool operator==(const AccessKey&) const = default;
};

struct AccessHash {
  size_t operator()(const AccessKey& key) const {
    return std::hash<const void*>()(key.file) ^
           (key.line * 0x9e3779b1u + key.column * 0x85ebca77u + static_cast<unsigned>(key.warp) * 0xc2b2ae3du);
  }
};

// One access of a warp, gathered lane by lane.
struct PendingAccess {
  std::array<uint32_t, kWarp> address{};
  uint32_t lanes = 0;  // bit mask
};

struct AccessSite {
  const char* kind = "";
  uint32_t bytes = 0;
  std::array<uint32_t, kWarp> next{};            // number of each lane's next access here
  std::map<uint32_t, PendingAccess> unfinished;  // by number
};

class Block {
 public:
  static constexpr int kEngines = 2;  // agents for asynchronous engines

  Block(const Launch& launch, int index, Report& report);

  const Launch& launch;
  const int index;
  SharedMemory shared;
  std::array<Barrier, 16> barriers;           // of bar.sync
  std::vector<std::function<void()>> at_end;  // checks when all threads have returned

  void run(const std::function<void()>& kernel);
  int warps() const { return launch.threads / kWarp; }
  int engine_agent(int engine) const { return warps() + engine; }
  Clock& clock(int agent) { return clocks_[static_cast<size_t>(agent)]; }
  Actor actor(const Thread& thread, bool all_lanes = false) {
    return {thread.warp(), all_lanes ? -1 : thread.lane(), &clock(thread.warp())};
  }
  // The block's one T, made from the block when first asked for.
  template <class T>
  T& state() {
    std::shared_ptr<void>& entry = states_[std::type_index(typeid(T))];
    if (!entry) entry = std::make_shared<T>(*this);
    return *static_cast<T*>(entry.get());
  }

 private:
  friend Thread& thread();
  friend void wait_until(const char* what, const std::function<bool()>& predicate, Where where);
  friend void post_async(std::function<void()> land);
  friend void note_access(Where where, const char* kind, uint32_t address, uint32_t bytes);
  friend void meet(Where where, const char* name, void* argument,
                   const std::function<void(std::array<void*, kWarp>&)>& body);

  void leave();  // the running thread cannot go on: others run until it can
  Thread* choose();
  void finish();
  void count(const AccessKey& key, AccessSite& site, const PendingAccess& access);
  std::string deadlock() const;
  std::string message_of(const Thread& thread, const std::string& what) const;

  Report& report_;
  std::vector<Clock> clocks_;
  std::vector<Meeting> meetings_;
  std::vector<Thread> threads_;
  std::map<std::type_index, std::shared_ptr<void>> states_;
  std::vector<std::function<void()>> landings_;  // asynchronous, under way
  std::unordered_map<AccessKey, AccessSite, AccessHash> sites_;
  std::mt19937 random_;
  std::string error_;
  Thread* running_ = nullptr;
  Fiber main_;
};

Block& block();
Thread& thread();

void wait_until(const char* what, const std::function<bool()>& predicate, Where where);
void post_async(std::function<void()> land);
// Notes one lane's access of `bytes` to shared memory; the 32 lanes' n-th accesses at one place are one access.
void note_access(Where where, const char* kind, uint32_t address, uint32_t bytes);
// Bank conflicts of one access by the given lanes: {wavefronts, those that the bytes need}.
std::pair<int, int> wavefronts(const PendingAccess& access, uint32_t bytes);

// The 32 lanes meet; the last one runs `body` on all arguments.
void meet(Where where, const char* name, void* argument, const std::function<void(std::array<void*, kWarp>&)>& body);
template <class Argument, class Body>
void warp_collective(Where where, const char* name, Argument& argument, const Body& body) {
  meet(where, name, &argument, [&](std::array<void*, kWarp>& raw) {
    std::array<Argument*, kWarp> lanes;
    for (size_t i = 0; i < kWarp; ++i) lanes[i] = static_cast<Argument*>(raw[i]);
    body(lanes);
  });
}

void release(Clock& clock);        // the running warp's past becomes part of `clock`
void acquire(const Clock& clock);  // and of the running warp's past

// bar.sync and bar.arrive: whole warps.
void barrier(int id, int threads, bool wait, Where where);
void sync_warp(Where where);

// Global memory, checked against the launch's regions.
const void* check_global(const void* address, size_t bytes, bool write);
template <class T>
T load_global(const T* address) {
  return *static_cast<const T*>(check_global(address, sizeof(T), false));
}
template <class T>
void store_global(T* address, const T& value) {
  check_global(address, sizeof(T), true);
  *address = value;
}

}  // namespace sparsed::emulator
