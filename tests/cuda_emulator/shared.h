// A block's shared memory with the shadow that finds mistakes: what was never written, what an asynchronous copy still
// owns, and which accesses no barrier orders. Words are 4 bytes; order is kept per warp with vector clocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace sparsed::emulator {

// Clock[w]: the epoch of warp w (or of another agent: an asynchronous engine) up to which everything is visible.
using Clock = std::vector<uint32_t>;
void join(Clock& into, const Clock& from);

// Who touches memory, and what it has seen. `lane` < 0: several lanes of the warp.
struct Actor {
  int agent;
  int lane;
  const Clock* seen;              // seen[agent] is the agent's own epoch
  const Clock* fenced = nullptr;  // through the async proxy, which sees an agent's writes up to this epoch
};

class SharedMemory {
 public:
  // Agents 0 ... agents - 1: the warps, then any engines.
  SharedMemory(size_t bytes, int agents);

  size_t size() const { return bytes_.size(); }
  // Throw KernelError naming what is wrong: outside, unaligned to `bytes`, not written, in flight, or a race.
  const std::byte* read(uint32_t address, size_t bytes, const Actor& actor);
  std::byte* write(uint32_t address, size_t bytes, const Actor& actor);

  // An asynchronous copy writes [address, address + bytes) at any time from now on ...
  void begin_flight(uint32_t address, size_t bytes, const Actor& actor);
  // ... and these bytes are there; it counts as a write by `actor`.
  void end_flight(uint32_t address, const void* data, size_t bytes, const Actor& actor);
  // The bytes of a copy that lands early: still in flight, for whoever looks.
  void land(uint32_t address, const void* data, size_t bytes);
  // An asynchronous engine reads; until end_read nobody may write.
  void begin_read(uint32_t address, size_t bytes, const Actor& actor);
  void end_read(uint32_t address, size_t bytes, const Actor& actor);
  const std::byte* peek(uint32_t address) const { return bytes_.data() + address; }

 private:
  struct Touch {
    uint32_t epoch = 0;  // 0: never
    int16_t agent = 0;
    int16_t lane = 0;
  };
  struct Word {
    Touch written;
    bool defined = false;
    bool in_flight = false;
    int32_t async_readers = 0;
  };

  size_t check(uint32_t address, size_t bytes, const char* what) const;
  static bool ordered(const Touch& before, const Actor& actor);
  static void check_proxy(const Word& word, uint32_t address, const Actor& actor);
  void check_write(size_t word, const Actor& actor) const;
  void mark_read(size_t word, const Actor& actor);
  void mark_written(size_t word, const Actor& actor);

  int agents_;
  std::vector<std::byte> bytes_;
  std::vector<Word> words_;
  std::vector<Touch> reads_;  // [words, agents]
};

}  // namespace sparsed::emulator
