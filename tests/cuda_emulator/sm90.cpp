#include "sm90.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>

#include "sm90_state.h"

namespace sparsed::emulator {
namespace {

constexpr uint32_t kRowBytes = 128;  // of a box, with this swizzle

std::string name(uint32_t address) { return "mbarrier at byte " + std::to_string(address); }

struct MBarrier {
  int arrivals, pending;
  int owner;  // the warp that initialised it, in this epoch
  uint32_t epoch;
  bool fenced = false;
  int64_t bytes = 0;  // that this phase still waits for
  uint32_t phase = 0;
  Clock coming, passed;
};

struct MBarriers {
  std::unordered_map<uint32_t, MBarrier> at;

  explicit MBarriers(Block& block) {
    block.at_end.push_back([this] {
      for (const auto& [address, m] : at) {
        if (m.bytes) fail("the kernel ends while the " + name(address) + " expects bytes");
      }
    });
  }

  MBarrier& find(uint32_t address) {
    const auto found = at.find(address);
    if (found == at.end()) fail("no " + name(address) + " was initialised");
    MBarrier& m = found->second;
    const int warp = thread().warp();
    if (warp != m.owner && block().clock(warp)[static_cast<size_t>(m.owner)] < m.epoch) {
      fail("race: nothing orders the use of the " + name(address) + " after its initialisation");
    }
    return m;
  }
};

MBarriers& mbarriers() { return block().state<MBarriers>(); }

// A phase is over when all have arrived and all bytes are there.
void advance(MBarrier& m) {
  if (m.pending || m.bytes) return;
  join(m.passed, m.coming);
  m.coming.assign(m.coming.size(), 0);
  m.pending = m.arrivals;
  ++m.phase;
}

Actor tma_actor(Block& b) {
  const int engine = b.engine_agent(0);
  return {engine, 0, &b.clock(engine), &b.state<AsyncProxy>().fenced};
}

// The box as it will lie in shared memory: rows of 128 bytes, 16-byte chunks exchanged within 8 rows.
std::vector<std::byte> read_box(const TensorMap& map, uint32_t shared, const std::array<int64_t, 4>& at) {
  const uint32_t bytes = map.box[1] * kRowBytes;
  std::vector<std::byte> image(bytes);
  for (uint32_t offset = 0; offset < bytes; offset += 2) {
    const std::array<int64_t, 4> index{at[0] + offset % kRowBytes / 2, at[1] + offset / kRowBytes, at[2], at[3]};
    bool inside = true;
    uint64_t source = static_cast<uint64_t>(index[0]) * 2;
    for (size_t i = 0; i < 4; ++i) {
      inside = inside && index[i] >= 0 && static_cast<uint64_t>(index[i]) < map.size[i];
      if (i > 0) source += static_cast<uint64_t>(index[i]) * map.stride[i - 1];
    }
    if (!inside) continue;
    const uint32_t to = swizzled_128(shared + offset) - shared;
    std::memcpy(image.data() + to, check_global(map.data + source, 2, false), 2);
  }
  return image;
}

struct Registers {
  int free = 0;
  std::vector<int> held;  // per warp and thread

  explicit Registers(Block& block) {
    held.assign(static_cast<size_t>(block.warps()), 65536 / block.launch.threads / 8 * 8);
  }
};

}  // namespace

AsyncProxy::AsyncProxy(Block& block) {
  const size_t warps = static_cast<size_t>(block.warps());
  fenced.assign(warps + Block::kEngines, std::numeric_limits<uint32_t>::max());
  std::fill_n(fenced.begin(), warps, 0);
}

// --- barriers --------------------------------------------------------------------------------------------------------

void mbarrier_init(uint32_t address, int arrivals) {
  Block& b = block();
  if (address % 8) fail("unaligned " + name(address));
  if (arrivals < 1) fail("no arrivals at the " + name(address));
  if (mbarriers().at.contains(address)) fail("the " + name(address) + " is initialised twice");
  b.shared.begin_flight(address, 8, b.actor(thread()));  // no ordinary access from now on
  const Clock none(b.clock(0).size(), 0);
  const int warp = thread().warp();
  mbarriers().at[address] = {arrivals, arrivals, warp, b.clock(warp)[static_cast<size_t>(warp)], false, 0,
                             0,        none,     none};
}

void mbarrier_init_fence() {
  for (auto& [address, m] : mbarriers().at) m.fenced = m.fenced || m.owner == thread().warp();
}

void mbarrier_arrive(uint32_t address, uint32_t bytes) {
  MBarrier& m = mbarriers().find(address);
  if (m.pending == 0) fail("too many arrivals at the " + name(address));
  --m.pending;
  m.bytes += bytes;
  release(m.coming);
  advance(m);
}

void mbarrier_wait(uint32_t address, uint32_t parity, Where where) {
  MBarrier& m = mbarriers().find(address);
  if (parity > 1) fail("parity " + std::to_string(parity) + " of the " + name(address));
  wait_until(
      "mbarrier", [&] { return (m.phase & 1) != parity; }, where);
  acquire(m.passed);
}

// --- tile copies -----------------------------------------------------------------------------------------------------

void tma_load(uint32_t shared, const TensorMap& map, uint32_t barrier, const std::array<int64_t, 4>& at) {
  Block& b = block();
  MBarrier& m = mbarriers().find(barrier);
  if (!m.fenced) fail("tile copy to a " + name(barrier) + " whose initialisation no fence published");
  if (map.box[0] * 2 != kRowBytes || map.box[1] < 1 || map.box[1] > 256) fail("tensor map with a wrong box");
  bool valid = reinterpret_cast<uintptr_t>(map.data) % 16 == 0;  // what the driver refuses to encode
  for (const uint64_t stride : map.stride) valid = valid && stride % 16 == 0 && stride > 0 && stride < 1ull << 40;
  for (const uint64_t size : map.size) valid = valid && size > 0 && size <= 1ull << 32;
  if (!valid) fail("tensor map with a wrong address, stride or size");
  if (shared % 1024) fail("tile copy to byte " + std::to_string(shared) + ", expected a multiple of 1024 (swizzle)");
  const int engine = b.engine_agent(0);
  join(b.clock(engine), b.clock(thread().warp()));
  const uint32_t bytes = map.box[1] * kRowBytes;
  b.shared.begin_flight(shared, bytes, tma_actor(b));
  post_async([&b, &m, map, shared, at, bytes, engine] {
    const std::vector<std::byte> image = read_box(map, shared, at);
    b.shared.end_flight(shared, image.data(), bytes, tma_actor(b));
    m.bytes -= bytes;
    Clock& clock = b.clock(engine);
    join(m.coming, clock);
    ++clock[static_cast<size_t>(engine)];
    advance(m);
  });
}

void fence_async_proxy(Where where) {
  Block& b = block();
  const size_t warp = static_cast<size_t>(thread().warp());
  int nothing = 0;
  warp_collective(where, "fence.proxy.async", nothing, [&](std::array<int*, kWarp>&) {
    uint32_t& epoch = b.clock(static_cast<int>(warp))[warp];
    b.state<AsyncProxy>().fenced[warp] = epoch++;
  });
}

// --- warps -----------------------------------------------------------------------------------------------------------

bool elect(Where where) {
  bool chosen = false;
  warp_collective(where, "elect.sync", chosen, [](std::array<bool*, kWarp>& lanes) {
    *lanes[(block().launch.seed * 7 + static_cast<unsigned>(thread().warp())) % kWarp] = true;  // any lane
  });
  return chosen;
}

void set_registers(int count, bool claim, Where where) {
  if (count % 8 || count < 24 || count > 256) fail("setmaxnreg " + std::to_string(count));
  warp_collective(where, "setmaxnreg", count, [](std::array<int*, kWarp>&) {});
  Registers& registers = block().state<Registers>();
  int& held = registers.held[static_cast<size_t>(thread().warp())];
  if (claim) {
    wait_until(
        "setmaxnreg", [&] { return held == count || registers.free >= (count - held) * kWarp; }, where);
  } else if (held < count) {
    fail("setmaxnreg.dec to " + std::to_string(count) + " from " + std::to_string(held));
  }
  if (held != count) registers.free -= (count - held) * kWarp;  // the first lane that gets here
  held = count;
}

}  // namespace sparsed::emulator
