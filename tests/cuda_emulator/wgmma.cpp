// wgmma.mma_async m64nNk16 with float accumulators. Each warp of a warpgroup computes its own 16 rows.
#include <algorithm>
#include <cstring>
#include <deque>
#include <limits>
#include <map>

#include "core/float16.h"
#include "sm90.h"
#include "sm90_state.h"

namespace sparsed::emulator {
namespace {

constexpr int kWarpsPerGroup = 4;

struct Descriptor {
  uint32_t start, panel, group;

  explicit Descriptor(uint64_t bits)
      : start(static_cast<uint32_t>(bits & 0x3fff) << 4),
        panel(static_cast<uint32_t>(bits >> 16 & 0x3fff) << 4),
        group(static_cast<uint32_t>(bits >> 32 & 0x3fff) << 4) {
    if (bits >> 62 != 1) fail("wgmma: descriptor with another swizzle than 128 bytes");
    if (bits >> 49 & 7 || start & 0x380) fail("wgmma: descriptor whose start is not in the first row of 8");
  }
};

struct Chunk {
  uint32_t address;  // of 8 elements
  int row, k;        // of the first one
};

// 16-byte chunks of a matrix of `rows` rows (columns of B) with 16 elements along K each.
std::vector<Chunk> chunks_of(const Descriptor& descriptor, int rows, bool transposed) {
  std::vector<Chunk> chunks;
  for (int i = 0; i < rows * 2; ++i) {
    if (transposed) {  // K rows of 64 columns
      const uint32_t k = static_cast<uint32_t>(i % 16), row = static_cast<uint32_t>(i / 16 * 8);
      const uint32_t offset = row / 64 * descriptor.panel + k / 8 * descriptor.group + k % 8 * 128 + row % 64 * 2;
      chunks.push_back({swizzled_128(descriptor.start + offset), static_cast<int>(row), static_cast<int>(k)});
    } else {
      const uint32_t row = static_cast<uint32_t>(i / 2), k = static_cast<uint32_t>(i % 2 * 8);
      const uint32_t offset = row / 8 * descriptor.group + row % 8 * 128 + k * 2;
      chunks.push_back({swizzled_128(descriptor.start + offset), static_cast<int>(row), static_cast<int>(k)});
    }
  }
  return chunks;
}

struct Product {
  WgmmaShape shape;
  std::array<WgmmaLane, kWarp> lanes;
  std::vector<Chunk> a, b;          // a: this warp's rows
  std::vector<float> accumulators;  // [32, tiles * 4] before it, unless a product before it makes them
  bool has_accumulators;

  size_t registers() const { return static_cast<size_t>(shape.tiles) * 4; }
  const float* key() const { return lanes[0].d; }
};

struct Warp {
  std::deque<std::vector<Product>> groups;  // committed, oldest first
  std::vector<Product> open;
  std::vector<WgmmaFenced> fenced;                     // registers of lane 0
  std::map<const float*, std::vector<float>> carried;  // late: between products of one accumulator
  size_t issued = 0;

  template <class Body>
  void each(const Body& body) const {
    for (const auto& group : groups) std::for_each(group.begin(), group.end(), body);
    std::for_each(open.begin(), open.end(), body);
  }
  bool under_way(const float* d) const {
    bool found = false;
    each([&](const Product& product) { found = found || product.key() == d; });
    return found;
  }
};

// What a warpgroup's warps must do alike.
struct Issue {
  uint64_t a, b;
  unsigned line;
  bool operator==(const Issue&) const = default;
};

struct Units {
  std::vector<Warp> warps;
  std::vector<std::vector<Issue>> history;  // [warpgroup]

  explicit Units(Block& block)
      : warps(static_cast<size_t>(block.warps())), history(static_cast<size_t>(block.warps() / kWarpsPerGroup)) {
    block.at_end.push_back([this] {
      for (size_t i = 0; i < warps.size(); ++i) {
        warps[i].each([](const Product&) { fail("the kernel ends with warpgroup products that nobody waited for"); });
        const size_t group = i / kWarpsPerGroup;
        if (group < history.size() && warps[i].issued != history[group].size()) {
          fail("a warpgroup's warps issue different products");
        }
      }
    });
  }
};

Units& units() { return block().state<Units>(); }
Warp& own() { return units().warps[static_cast<size_t>(thread().warp())]; }

Actor reader() {
  Actor actor = block().actor(thread(), true);
  actor.fenced = &block().state<AsyncProxy>().fenced;
  return actor;
}

// Whether this warp answers for the chunk: the warps of a group share B.
bool answers(const Chunk& chunk) { return (chunk.row / 8 + chunk.k / 8) % kWarpsPerGroup == thread().warp() % 4; }

void begin_reads(const Product& product) {
  SharedMemory& shared = block().shared;
  for (const Chunk& chunk : product.a) shared.begin_read(chunk.address, 16, reader());
  for (const Chunk& chunk : product.b) {
    if (answers(chunk)) shared.begin_read(chunk.address, 16, reader());
  }
}
void end_reads(const Product& product) {
  SharedMemory& shared = block().shared;
  for (const Chunk& chunk : product.a) shared.end_read(chunk.address, 16, reader());
  for (const Chunk& chunk : product.b) {
    if (answers(chunk)) shared.end_read(chunk.address, 16, reader());
  }
}

float number(uint16_t bits, bool bf16) { return bf16 ? bf16_to_float(bits) : f16_to_float(bits); }

// One chunk: 8 elements along K, or with `transposed` 8 rows; [row][k].
void read_chunk(const Chunk& chunk, bool transposed, bool bf16, int first_row, float (*matrix)[16]) {
  if (chunk.address + 16 > block().shared.size()) fail("wgmma: descriptor beyond shared memory");
  uint16_t bits[8];
  std::memcpy(bits, block().shared.peek(chunk.address), 16);
  for (int i = 0; i < 8; ++i) {
    const int row = chunk.row - first_row + (transposed ? i : 0), k = chunk.k + (transposed ? 0 : i);
    matrix[row][k] = number(bits[i], bf16);
  }
}

std::vector<float> read_accumulators(const Product& product) {
  std::vector<float> values;
  for (const WgmmaLane& lane : product.lanes) values.insert(values.end(), lane.d, lane.d + product.registers());
  return values;
}
void write_accumulators(const Product& product, const std::vector<float>& values) {
  for (size_t lane = 0; lane < kWarp; ++lane) {
    std::copy_n(values.data() + lane * product.registers(), product.registers(), product.lanes[lane].d);
  }
}

std::vector<float> multiply(const Product& product, const std::vector<float>& before) {
  const bool bf16 = product.shape.bf16;
  float a[16][16], b[256][16];
  if (product.lanes[0].a_registers) {
    for (size_t lane = 0; lane < kWarp; ++lane) {
      for (size_t i = 0; i < 8; ++i) {  // a0 ... a7, as mma.m16n8k16 takes them
        const size_t row = lane / 4 + (i / 2 % 2 ? 8 : 0), k = lane % 4 * 2 + i % 2 + (i < 4 ? 0 : 8);
        const uint32_t pair = product.lanes[lane].a_registers[i / 2];
        a[row][k] = number(static_cast<uint16_t>(i % 2 ? pair >> 16 : pair), bf16);
      }
    }
  } else {
    for (const Chunk& chunk : product.a) read_chunk(chunk, false, bf16, thread().warp() % 4 * 16, a);
  }
  for (const Chunk& chunk : product.b) read_chunk(chunk, product.shape.transposed, bf16, 0, b);
  std::vector<float> after(before.size());
  for (size_t lane = 0; lane < kWarp; ++lane) {
    for (size_t i = 0; i < product.registers(); ++i) {  // d0 ... of the PTX ISA's layout for D
      const size_t row = lane / 4 + (i / 2 % 2 ? 8 : 0), column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      float sum = 0;
      for (size_t k = 0; k < 16; ++k) sum += a[row][k] * b[column][k];
      const size_t at = lane * product.registers() + i;
      after[at] = product.shape.accumulate ? before[at] + sum : sum;
    }
  }
  return after;
}

void issue(Product product, Where where) {
  Warp& warp = own();
  const int index = thread().warp();
  const size_t group = static_cast<size_t>(index / kWarpsPerGroup);
  if (group >= units().history.size()) fail("wgmma by a warp that belongs to no warpgroup");
  const WgmmaLane& first = product.lanes[0];
  bool d_fenced = false, a_fenced = !first.a_registers;
  for (const WgmmaFenced& fenced : warp.fenced) {
    d_fenced = d_fenced || fenced.d == first.d;
    a_fenced = a_fenced || (fenced.a <= first.a_registers && first.a_registers < fenced.a + fenced.a_count);
  }
  if (!d_fenced || !a_fenced) fail("wgmma without wgmma.fence for its registers since the last group");
  for (const WgmmaLane& lane : product.lanes) {
    if (lane.a_descriptor != first.a_descriptor || lane.b_descriptor != first.b_descriptor) {
      fail("wgmma: lanes give different descriptors");
    }
  }
  std::vector<Issue>& history = units().history[group];
  const Issue own_issue{first.a_descriptor, first.b_descriptor, where.line()};
  if (warp.issued == history.size()) history.push_back(own_issue);
  if (!(history[warp.issued++] == own_issue)) fail("a warpgroup's warps issue different products");

  product.b = chunks_of(Descriptor(first.b_descriptor), product.shape.tiles * 8, product.shape.transposed);
  if (!first.a_registers) {
    const Descriptor descriptor(first.a_descriptor);
    for (const Chunk& chunk : chunks_of(descriptor, 64, false)) {
      if (chunk.row / 16 == index % kWarpsPerGroup) product.a.push_back(chunk);
    }
  }
  begin_reads(product);
  product.has_accumulators = !warp.under_way(product.key());
  if (block().launch.landing == Landing::kEarly) {
    write_accumulators(product, multiply(product, read_accumulators(product)));
  } else if (product.has_accumulators) {
    product.accumulators = read_accumulators(product);
    write_accumulators(product,
                       std::vector<float>(product.accumulators.size(), std::numeric_limits<float>::quiet_NaN()));
  }
  warp.open.push_back(std::move(product));
}

void complete(Warp& warp) {
  const std::vector<Product> group = std::move(warp.groups.front());
  warp.groups.pop_front();
  for (size_t i = 0; i < group.size(); ++i) {
    const Product& product = group[i];
    end_reads(product);
    if (block().launch.landing == Landing::kEarly) continue;
    std::vector<float> after =
        multiply(product, product.has_accumulators ? product.accumulators : warp.carried[product.key()]);
    bool more = warp.under_way(product.key());
    for (size_t j = i + 1; j < group.size(); ++j) more = more || group[j].key() == product.key();
    if (more) {
      warp.carried[product.key()] = std::move(after);
    } else {
      write_accumulators(product, after);
    }
  }
}

}  // namespace

void wgmma(const WgmmaLane& lane, const WgmmaShape& shape, Where where) {
  WgmmaLane argument = lane;
  warp_collective(where, "wgmma", argument, [&](std::array<WgmmaLane*, kWarp>& lanes) {
    Product product{shape, {}, {}, {}, {}, false};
    for (size_t i = 0; i < kWarp; ++i) product.lanes[i] = *lanes[i];
    issue(std::move(product), where);
  });
}

void wgmma_fence(const WgmmaFenced& registers, Where where) {
  WgmmaFenced argument = registers;
  warp_collective(where, "wgmma.fence", argument,
                  [](std::array<WgmmaFenced*, kWarp>& lanes) { own().fenced.push_back(*lanes[0]); });
}

void wgmma_commit(Where where) {
  int nothing = 0;
  warp_collective(where, "wgmma.commit_group", nothing, [](std::array<int*, kWarp>&) {
    Warp& warp = own();
    warp.groups.push_back(std::move(warp.open));
    warp.open.clear();
    warp.fenced.clear();
  });
}

void wgmma_wait(int pending, float* d, Where where) {
  warp_collective(where, "wgmma.wait_group", d, [&](std::array<float**, kWarp>& lanes) {
    Warp& warp = own();
    while (warp.groups.size() > static_cast<size_t>(pending)) complete(warp);
    if (warp.under_way(*lanes[0])) fail("wgmma.wait_group leaves a product of these accumulators under way");
  });
}

}  // namespace sparsed::emulator
