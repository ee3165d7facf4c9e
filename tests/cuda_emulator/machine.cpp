#include "machine.h"

#include <algorithm>
#include <cstring>

namespace sparsed::emulator {
namespace {

thread_local Block* current = nullptr;

std::string location(const Where& where) {
  std::string file = where.file_name();
  file.erase(0, file.find_last_of('/') + 1);
  return file + ":" + std::to_string(where.line());
}

bool same_place(const Where& a, const Where& b) {
  return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

}  // namespace

void fail(const std::string& what) { throw KernelError(what); }

Block& block() { return *current; }
Thread& thread() { return *current->running_; }

int64_t Report::conflicts() const {
  int64_t total = 0;
  for (const auto& [place, count] : accesses) total += count.conflicts;
  return total;
}

void Report::add(const Report& other) {
  for (const auto& [place, count] : other.accesses) {
    AccessCount& sum = accesses[place];
    sum.kind = count.kind;
    sum.accesses += count.accesses;
    sum.wavefronts += count.wavefronts;
    sum.conflicts += count.conflicts;
  }
}

// --- a block ---------------------------------------------------------------------------------------------------------

Block::Block(const Launch& launch, int index, Report& report)
    : launch(launch),
      index(index),
      shared(launch.shared_bytes, launch.threads / kWarp + kEngines),
      report_(report),
      meetings_(static_cast<size_t>(warps())),
      threads_(static_cast<size_t>(launch.threads)),
      random_(launch.seed * 7919u + static_cast<unsigned>(index)) {
  const size_t agents = static_cast<size_t>(warps() + kEngines);
  clocks_.assign(agents, Clock(agents, 0));
  for (size_t agent = 0; agent < agents; ++agent) clocks_[agent][agent] = 1;
  for (Barrier& barrier : barriers) barrier.clock.assign(agents, 0);
}

void Block::run(const std::function<void()>& kernel) {
  current = this;
  for (int i = 0; i < launch.threads; ++i) {
    Thread& thread = threads_[static_cast<size_t>(i)];
    thread.index = i;
    thread.fiber = std::make_unique<Fiber>([&, this] {
      try {
        kernel();
        if (!thread.open.empty()) fail("the kernel ends with asynchronous copies that were never committed");
        for (const auto& group : thread.groups) {
          if (!group.empty()) fail("the kernel ends with asynchronous copies that nobody waited for");
        }
      } catch (const std::exception& error) {
        if (error_.empty()) error_ = message_of(thread, error.what());
      }
      thread.state = Thread::State::kDone;
      leave();
    });
  }
  running_ = choose();
  Fiber::switch_to(main_, *running_->fiber);
  current = nullptr;
  if (!error_.empty()) throw KernelError(error_);
  finish();
}

// Who runs next: a lane of the same warp before others, so that warps stay together; among warps chance decides.
Thread* Block::choose() {
  const auto can_run = [](Thread& thread) {
    return thread.state == Thread::State::kReady || (thread.state == Thread::State::kWaiting && (*thread.predicate)());
  };
  const int first_lane = running_ ? running_->lane() + 1 : 0;
  if (running_) {
    for (int i = 0; i < kWarp; ++i) {
      Thread& lane = threads_[static_cast<size_t>(running_->warp() * kWarp + (first_lane + i) % kWarp)];
      if (lane.state == Thread::State::kReady) return &lane;
    }
  }
  for (;;) {
    const int start = static_cast<int>(random_() % static_cast<unsigned>(warps()));
    for (int i = 0; i < launch.threads; ++i) {
      Thread& candidate = threads_[static_cast<size_t>((start * kWarp + i) % launch.threads)];
      if (can_run(candidate)) return &candidate;
    }
    if (landings_.empty()) return nullptr;
    // Nobody can go on without an asynchronous operation: any of them may be the next to land.
    const size_t next = random_() % landings_.size();
    const std::function<void()> land = std::move(landings_[next]);
    landings_.erase(landings_.begin() + static_cast<std::ptrdiff_t>(next));
    land();
  }
}

void Block::leave() {
  Thread& self = *running_;
  Thread* next = nullptr;
  if (error_.empty()) {
    try {
      next = choose();
      if (!next) {
        const bool done = std::all_of(threads_.begin(), threads_.end(),
                                      [](const Thread& t) { return t.state == Thread::State::kDone; });
        if (!done) error_ = deadlock();
      }
    } catch (const std::exception& error) {
      error_ = message_of(self, error.what());
    }
  }
  if (!error_.empty() || !next) {  // the other fibers are abandoned where they are
    Fiber::switch_to(*self.fiber, main_, true);
    return;
  }
  running_ = next;
  next->state = Thread::State::kReady;
  if (next != &self) Fiber::switch_to(*self.fiber, *next->fiber, self.state == Thread::State::kDone);
}

std::string Block::message_of(const Thread& thread, const std::string& what) const {
  return "block " + std::to_string(index) + ", thread " + std::to_string(thread.index) + ": " + what;
}

std::string Block::deadlock() const {
  std::string text = "block " + std::to_string(index) + ": deadlock;";
  std::map<std::string, int> places;
  for (const Thread& thread : threads_) {
    if (thread.state == Thread::State::kDone) {
      ++places["done"];
    } else {
      ++places[std::string(thread.waits_for) + " at " + location(thread.where)];
    }
  }
  for (const auto& [place, count] : places) text += " " + std::to_string(count) + " threads: " + place + ";";
  return text;
}

void Block::finish() {
  for (size_t id = 0; id < barriers.size(); ++id) {
    if (barriers[id].arrived) {
      throw KernelError("block " + std::to_string(index) + ": the kernel ends with " +
                        std::to_string(barriers[id].arrived) + " of " + std::to_string(barriers[id].expected) +
                        " threads at barrier " + std::to_string(id));
    }
  }
  try {
    for (const auto& check : at_end) check();
  } catch (const KernelError& error) {
    throw KernelError("block " + std::to_string(index) + ": " + error.what());
  }
  if (!landings_.empty()) {
    throw KernelError("block " + std::to_string(index) +
                      ": the kernel ends with asynchronous operations that nobody waited for");
  }
  for (auto& [key, site] : sites_) {
    for (const auto& [number, access] : site.unfinished) count(key, site, access);
  }
}

Report run(const Launch& launch, const std::function<void()>& kernel) {
  if (launch.threads <= 0 || launch.threads % kWarp || launch.threads > 1024) {
    fail("a block of " + std::to_string(launch.threads) + " threads, expected a multiple of 32 up to 1024");
  }
  Report report;
  for (int index = 0; index < launch.blocks; ++index) Block(launch, index, report).run(kernel);
  return report;
}

// --- waiting and meeting ---------------------------------------------------------------------------------------------

void wait_until(const char* what, const std::function<bool()>& predicate, Where where) {
  if (predicate()) return;
  Thread& self = thread();
  self.state = Thread::State::kWaiting;
  self.predicate = &predicate;
  self.waits_for = what;
  self.where = where;
  block().leave();
  self.predicate = nullptr;
}

void post_async(std::function<void()> land) {
  if (block().launch.landing == Landing::kEarly) {
    land();
  } else {
    block().landings_.push_back(std::move(land));
  }
}

void meet(Where where, const char* name, void* argument, const std::function<void(std::array<void*, kWarp>&)>& body) {
  Block& b = block();
  Thread& self = thread();
  Meeting& meeting = b.meetings_[static_cast<size_t>(self.warp())];
  if (meeting.arrived == 0) {
    meeting.name = name;
    meeting.where = where;
  } else if (!same_place(meeting.where, where) || std::strcmp(meeting.name, name) != 0) {
    fail(std::string("lanes of a warp part: ") + name + " at " + location(where) + ", others at " + meeting.name +
         " at " + location(meeting.where));
  }
  meeting.arguments[static_cast<size_t>(self.lane())] = argument;
  if (++meeting.arrived == kWarp) {
    meeting.arrived = 0;
    ++meeting.generation;
    body(meeting.arguments);
    for (int lane = 0; lane < kWarp; ++lane) {
      b.threads_[static_cast<size_t>(self.warp() * kWarp + lane)].state = Thread::State::kReady;
    }
    return;
  }
  self.state = Thread::State::kCollective;
  self.waits_for = name;
  self.where = where;
  b.leave();
}

// --- order -----------------------------------------------------------------------------------------------------------

void release(Clock& clock) {
  Block& b = block();
  const int warp = thread().warp();
  join(clock, b.clock(warp));
  ++b.clock(warp)[static_cast<size_t>(warp)];
}

void acquire(const Clock& clock) { join(block().clock(thread().warp()), clock); }

void sync_warp(Where where) {
  Block& b = block();
  const int warp = thread().warp();
  int nothing = 0;
  warp_collective(where, "bar.warp.sync", nothing,
                  [&](std::array<int*, kWarp>&) { ++b.clock(warp)[static_cast<size_t>(warp)]; });
}

void barrier(int id, int threads, bool wait, Where where) {
  if (id < 0 || id > 15) fail("barrier " + std::to_string(id) + ", expected 0 ... 15");
  if (threads <= 0 || threads % kWarp || threads > block().launch.threads) {
    fail("barrier " + std::to_string(id) + " of " + std::to_string(threads) + " threads in a block of " +
         std::to_string(block().launch.threads));
  }
  struct Arrival {
    int id, threads;
    bool wait;
    uint64_t generation;
  } arrival{id, threads, wait, 0};
  Block& b = block();
  const int warp = thread().warp();
  warp_collective(where, wait ? "bar.sync" : "bar.arrive", arrival, [&](std::array<Arrival*, kWarp>& lanes) {
    for (const Arrival* lane : lanes) {
      if (lane->id != id || lane->threads != threads) fail("lanes of a warp arrive at different barriers");
    }
    Barrier& barrier = b.barriers[static_cast<size_t>(id)];
    if (barrier.arrived && barrier.expected != threads) {
      fail("barrier " + std::to_string(id) + " is used with " + std::to_string(threads) + " and with " +
           std::to_string(barrier.expected) + " threads");
    }
    barrier.expected = threads;
    barrier.arrived += kWarp;
    release(barrier.clock);
    if (wait) barrier.waiting.push_back(warp);
    if (barrier.arrived > threads) fail("too many threads at barrier " + std::to_string(id));
    for (Arrival* lane : lanes) lane->generation = barrier.generation;
    if (barrier.arrived < threads) return;
    for (const int waiting : barrier.waiting) join(b.clock(waiting), barrier.clock);
    barrier.clock.assign(barrier.clock.size(), 0);
    barrier.waiting.clear();
    barrier.arrived = 0;
    ++barrier.generation;
  });
  if (!wait) return;
  const uint64_t& generation = b.barriers[static_cast<size_t>(id)].generation;
  wait_until(
      "bar.sync", [&] { return generation != arrival.generation; }, where);
}

// --- memory ----------------------------------------------------------------------------------------------------------

const void* check_global(const void* address, size_t bytes, bool write) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (at % std::min<size_t>(bytes, 16))
    fail("unaligned access of " + std::to_string(bytes) + " bytes to global memory");
  for (const Region& region : block().launch.memory) {
    const auto begin = reinterpret_cast<uintptr_t>(region.begin);
    if (at < begin || at + bytes > begin + region.bytes) continue;
    if (write && !region.writable) fail("write to read-only global memory");
    return address;
  }
  fail(std::string(write ? "write" : "read") + " of " + std::to_string(bytes) + " bytes outside of global memory");
}

std::pair<int, int> wavefronts(const PendingAccess& access, uint32_t bytes) {
  // Up to 4 bytes a lane the warp goes at once, with 8 a half, with 16 a quarter.
  const int lanes_at_once = bytes <= 4 ? kWarp : static_cast<int>(kWarp * 4 / bytes);
  int total = 0, needed = 0;
  for (int first = 0; first < kWarp; first += lanes_at_once) {
    std::array<std::vector<uint32_t>, 32> banks;
    bool any = false;
    for (int lane = first; lane < first + lanes_at_once; ++lane) {
      if (!(access.lanes >> lane & 1u)) continue;
      any = true;
      for (uint32_t offset = 0; offset < std::max(bytes, 4u); offset += 4) {
        const uint32_t word = access.address[static_cast<size_t>(lane)] / 4 + offset / 4;
        std::vector<uint32_t>& bank = banks[word % 32];
        if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
      }
    }
    if (!any) continue;
    size_t most = 0;
    for (const auto& bank : banks) most = std::max(most, bank.size());
    total += static_cast<int>(most);
    ++needed;
  }
  return {total, needed};
}

void Block::count(const AccessKey& key, AccessSite& site, const PendingAccess& access) {
  const auto [total, needed] = wavefronts(access, site.bytes);
  std::string file = key.file;
  file.erase(0, file.find_last_of('/') + 1);
  AccessCount& sum = report_.accesses[{file, static_cast<int>(key.line)}];
  sum.kind = site.kind;
  ++sum.accesses;
  sum.wavefronts += total;
  sum.conflicts += total - needed;
}

void note_access(Where where, const char* kind, uint32_t address, uint32_t bytes) {
  Block& b = block();
  const Thread& self = thread();
  const AccessKey key{where.file_name(), where.line(), where.column(), self.warp()};
  AccessSite& site = b.sites_[key];
  site.kind = kind;
  site.bytes = bytes;
  const size_t lane = static_cast<size_t>(self.lane());
  const uint32_t number = site.next[lane]++;
  PendingAccess& access = site.unfinished[number];
  access.address[lane] = address;
  access.lanes |= 1u << lane;
  if (access.lanes != ~0u) return;
  b.count(key, site, access);
  site.unfinished.erase(number);
}

}  // namespace sparsed::emulator
