// The emulator's form of what compute capability 9.0 adds: a matrix product through tile copies, barriers in memory and
// warpgroup products against a plain one, and that each kind of mistake is found.
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "cuda/sm90/prims.cuh"

namespace sparsed::cuda {
namespace {

using emulator::KernelError;
using emulator::Landing;
using emulator::Launch;

constexpr int kSteps = 3, kRows = 64, kDepth = 128;  // C [64, N] = sum over steps of A [64, 128] B [128, N]

enum class Mistake {
  kNone,
  kNoInitFence,
  kNoInitBarrier,
  kNoFullWait,
  kNoEmptyWait,
  kFewArrivals,
  kManyArrivals,
  kFewBytes,
  kManyBytes,
  kNoWgmmaFence,
  kNoRegisterFence,
  kNoWgmmaWait,
  kEarlyArrive,
  kRegistersReused,
  kStart,
  kGroup,
  kPanel,
  kSwizzle,
  kOneWarpLess,
  kUnevenDestination,
  kStoredWithoutFence,
};

struct Product {
  TensorMap a, b;
  const uint16_t* a_data;
  float* c;
  bool a_in_registers;
  Mistake mistake;
};

// Four warps multiply, a fifth copies tiles. Shared memory: A, B, two barriers.
template <class T, int kN, bool kTransposed>
void product_kernel(const Product& args) {
  constexpr uint32_t sA = 0, sB = kRows * kDepth * 2, bytes = sB + kN * kDepth * 2, kFull = bytes, kEmpty = bytes + 8;
  constexpr uint32_t kPanelA = kRows * 128, kPanelB = (kTransposed ? kDepth : kN) * 128;
  const auto has = [&](Mistake mistake) { return args.mistake == mistake; };
  const int warp = thread_index() / 32, lane = thread_index() % 32;
  if (thread_index() == 0) {
    mbarrier_init(kFull, 1);
    mbarrier_init(kEmpty, has(Mistake::kFewArrivals) ? 5 : has(Mistake::kManyArrivals) ? 3 : 4);
    if (!has(Mistake::kNoInitFence)) mbarrier_init_fence();
  }
  if (!has(Mistake::kNoInitBarrier)) sync_threads();

  if (warp == 4) {
    if (elect()) {
      for (int step = 0; step < kSteps; ++step) {
        if (step > 0 && !has(Mistake::kNoEmptyWait)) mbarrier_wait(kEmpty, (step - 1) & 1);
        mbarrier_expect(kFull, bytes + (has(Mistake::kFewBytes) ? -1024 : has(Mistake::kManyBytes) ? 1024 : 0));
        for (uint32_t i = 0; i < 2; ++i) {
          tma_load(sA + i * kPanelA + (has(Mistake::kUnevenDestination) ? 128 : 0), args.a, kFull,
                   static_cast<int>(i * 64), 0, step, 0);
        }
        for (uint32_t i = 0; i < (kTransposed ? kN : kDepth) / 64; ++i) {
          tma_load(sB + i * kPanelB, args.b, kFull, static_cast<int>(i * 64), 0, step, 0);
        }
      }
    }
    return;
  }

  float d[kN / 8][4];
  uint32_t a[kDepth / 16][4];
  for (int step = 0; step < kSteps; ++step) {
    if (args.a_in_registers) {
      for (int k = 0; k < kDepth / 16; ++k) {
        for (int i = 0; i < 4; ++i) {
          const int row = warp * 16 + lane / 4 + i % 2 * 8, column = k * 16 + lane % 4 * 2 + i / 2 * 8;
          const uint16_t* pair = args.a_data + (step * kRows + row) * kDepth + column;
          a[k][i] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
        }
      }
    }
    if (!has(Mistake::kNoFullWait)) mbarrier_wait(kFull, step & 1);
    if (has(Mistake::kStoredWithoutFence)) {
      store_shared(sA + static_cast<uint32_t>(thread_index()) * 4, 0u);
      barrier_sync(1, 128);
    }
    if (has(Mistake::kNoRegisterFence)) {
      wgmma_fence(d);
    } else if (!has(Mistake::kNoWgmmaFence)) {
      wgmma_fence(d, a);
    }
    for (int k = 0; k < kDepth / 16; ++k) {
      const uint32_t panel = static_cast<uint32_t>(k / 4), inner = static_cast<uint32_t>(k % 4) * 32;
      const uint32_t group = has(Mistake::kGroup) ? 512 : 1024;
      uint64_t b = kTransposed ? matrix_descriptor(sB + static_cast<uint32_t>(k) * 2048,
                                                   has(Mistake::kPanel) ? kPanelB / 2 : kPanelB, group)
                               : matrix_descriptor(sB + panel * kPanelB + inner, 0, group);
      if (has(Mistake::kSwizzle)) b ^= uint64_t{3} << 62;
      if (has(Mistake::kStart)) b += 128 >> 4;
      if (has(Mistake::kOneWarpLess) && warp == 3 && k == 7) continue;
      if (args.a_in_registers) {
        wgmma<T, kTransposed>(d, a[k], b, step + k > 0);
      } else {
        wgmma<T, kTransposed>(d, matrix_descriptor(sA + panel * kPanelA + inner, 0, group), b, step + k > 0);
      }
    }
    wgmma_commit();
    if (has(Mistake::kRegistersReused)) {
      for (auto& registers : a) registers[0] = 0;
    }
    if (has(Mistake::kEarlyArrive) && lane == 0) mbarrier_arrive(kEmpty);
    if (!has(Mistake::kNoWgmmaWait)) wgmma_wait<0>(d);
    if (!has(Mistake::kEarlyArrive) && lane == 0) mbarrier_arrive(kEmpty);
  }
  for (int n = 0; n < kN / 8; ++n) {
    for (int i = 0; i < 4; ++i) {
      const int row = warp * 16 + lane / 4 + i / 2 * 8, column = n * 8 + lane % 4 * 2 + i % 2;
      store_global(args.c + row * kN + column, d[n][i]);
    }
  }
}

emulator::TensorMap map_of(const std::vector<uint16_t>& data, uint64_t rows, uint64_t columns) {
  return {reinterpret_cast<const std::byte*>(data.data()),
          {columns, rows, kSteps, 1},
          {columns * 2, rows * columns * 2, kSteps * rows * columns * 2},
          {64, static_cast<uint32_t>(rows)}};
}

std::vector<uint16_t> small_numbers(size_t count, unsigned seed, DType dtype) {
  std::mt19937 generator(seed);
  std::vector<uint16_t> bits(count);
  for (size_t i = 0; i < count; ++i) {
    store_float(bits.data(), dtype, static_cast<int64_t>(i), static_cast<float>(static_cast<int>(generator() % 9) - 4));
  }
  return bits;
}

// What went wrong; "wrong result" where nothing did but C is not the product.
template <class T, int kN, bool kTransposed>
std::string outcome(bool a_in_registers, Mistake mistake, Landing landing, unsigned seed) {
  const DType dtype = std::is_same_v<T, Bf16> ? DType::kBFloat16 : DType::kFloat16;
  const std::vector<uint16_t> a = small_numbers(kSteps * kRows * kDepth, 1, dtype);
  const std::vector<uint16_t> b = small_numbers(kSteps * kDepth * kN, 2, dtype);
  std::vector<float> c(kRows * kN);
  const Product args{encode_fields(map_of(a, kRows, kDepth)),
                     encode_fields(kTransposed ? map_of(b, kDepth, kN) : map_of(b, kN, kDepth)),
                     a.data(),
                     c.data(),
                     a_in_registers,
                     mistake};
  Launch launch;
  launch.threads = 160;
  launch.shared_bytes = kRows * kDepth * 2 + kN * kDepth * 2 + 16;
  launch.landing = landing;
  launch.seed = seed;
  launch.memory = {{a.data(), a.size() * 2, false}, {b.data(), b.size() * 2, false}, {c.data(), c.size() * 4, true}};
  try {
    emulator::run(launch, [&] { product_kernel<T, kN, kTransposed>(args); });
  } catch (const KernelError& error) {
    return error.what();
  }
  const auto at = [&](const std::vector<uint16_t>& matrix, int64_t i) { return load_float(matrix.data(), dtype, i); };
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kN; ++column) {
      float expected = 0;
      for (int step = 0; step < kSteps; ++step) {
        for (int k = 0; k < kDepth; ++k) {
          const int64_t right =
              kTransposed ? int64_t{step * kDepth + k} * kN + column : int64_t{step * kN + column} * kDepth + k;
          expected += at(a, int64_t{step * kRows + row} * kDepth + k) * at(b, right);
        }
      }
      if (c[static_cast<size_t>(row * kN + column)] != expected) return "wrong result";
    }
  }
  return "";
}

template <class T, int kN, bool kTransposed>
void expect_product() {
  for (const bool a_in_registers : {false, true}) {
    for (const Landing landing : {Landing::kEarly, Landing::kLate}) {
      for (unsigned seed = 0; seed < 2; ++seed) {
        EXPECT_EQ((outcome<T, kN, kTransposed>(a_in_registers, Mistake::kNone, landing, seed)), "");
      }
    }
  }
}

TEST(CudaSm90, ProductsMatch) {
  expect_product<Bf16, 64, false>();
  expect_product<Bf16, 128, false>();
  expect_product<Bf16, 64, true>();
  expect_product<Bf16, 128, true>();
  expect_product<F16, 128, false>();
  expect_product<F16, 64, true>();
}

// Found in at least one of the runs; with `always` in each.
void expect_mistake(Mistake mistake, const std::string& text, bool always, bool a_in_registers = false) {
  int found = 0, runs = 0;
  std::string last;
  for (const Landing landing : {Landing::kEarly, Landing::kLate}) {
    for (unsigned seed = 0; seed < 3; ++seed, ++runs) {
      last = outcome<Bf16, 128, true>(a_in_registers, mistake, landing, seed);
      const bool matches = last.find(text) != std::string::npos && !last.empty();
      found += matches;
      EXPECT_TRUE(matches || !always) << "found: \"" << last << "\", expected: \"" << text << '"';
    }
  }
  EXPECT_GT(found, 0) << "found: \"" << last << "\", expected: \"" << text << '"';
}

TEST(CudaSm90, MistakesWithBarriersAreFound) {
  expect_mistake(Mistake::kNoInitFence, "no fence published", true);
  expect_mistake(Mistake::kNoInitBarrier, "mbarrier", true);
  expect_mistake(Mistake::kNoFullWait, "shared memory", true);
  expect_mistake(Mistake::kNoEmptyWait, "", true);
  expect_mistake(Mistake::kFewArrivals, "deadlock", true);
  expect_mistake(Mistake::kManyArrivals, "", true);
  expect_mistake(Mistake::kFewBytes, "", true);
  expect_mistake(Mistake::kManyBytes, "deadlock", true);
  expect_mistake(Mistake::kUnevenDestination, "multiple of 1024", true);
  expect_mistake(Mistake::kStoredWithoutFence, "without fence.proxy.async", true);
}

TEST(CudaSm90, MistakesWithProductsAreFound) {
  expect_mistake(Mistake::kNoWgmmaFence, "without wgmma.fence", true);
  expect_mistake(Mistake::kNoRegisterFence, "without wgmma.fence", true, true);
  expect_mistake(Mistake::kNoWgmmaWait, "", true);
  expect_mistake(Mistake::kEarlyArrive, "", true);
  expect_mistake(Mistake::kRegistersReused, "wrong result", false, true);
  expect_mistake(Mistake::kOneWarpLess, "", true);
}

TEST(CudaSm90, WrongDescriptorsAreFound) {
  expect_mistake(Mistake::kStart, "first row of 8", true);
  expect_mistake(Mistake::kGroup, "wrong result", true);
  expect_mistake(Mistake::kPanel, "wrong result", true);
  expect_mistake(Mistake::kSwizzle, "another swizzle", true);
}

TEST(CudaSm90, RegistersAreHandedOver) {
  const auto kernel = [](bool fits) {
    if (thread_index() < 256) {
      fits ? claim_registers<240>() : claim_registers<248>();
    } else {
      release_registers<24>();
    }
  };
  Launch launch;
  launch.threads = 384;
  emulator::run(launch, [&] { kernel(true); });
  EXPECT_THROW(emulator::run(launch, [&] { kernel(false); }), KernelError);
}

// Tokens beyond the array and columns beyond its rows come as zeros.
TEST(CudaSm90, CopiesBeyondTheArrayAreZeros) {
  const std::vector<uint16_t> data = small_numbers(kSteps * 10 * 40, 3, DType::kFloat16);
  emulator::TensorMap map = map_of(data, 10, 40);
  map.box = {64, 16};
  Launch launch;
  launch.shared_bytes = 2048 + 8;
  launch.memory = {{data.data(), data.size() * 2, false}};
  emulator::run(launch, [&] {
    if (thread_index() == 0) {
      mbarrier_init(2048, 1);
      mbarrier_init_fence();
    }
    sync_warp();
    if (elect()) {
      mbarrier_expect(2048, 2048);
      tma_load(0, encode_fields(map), 2048, 0, 5, 1, 0);
    }
    mbarrier_wait(2048, 0);
    for (int i = thread_index(); i < 16 * 32; i += 32) {
      const int row = i / 32, column = i % 32 * 2;
      const uint32_t address = static_cast<uint32_t>(row * 128 + (column / 8 ^ row % 8) * 16 + column % 8 * 2);
      const uint32_t pair = float_bits(load_shared(address));
      const bool inside = row < 5 && column < 40;
      EXPECT_EQ(pair & 0xffff, inside ? data[static_cast<size_t>((10 + 5 + row) * 40 + column)] : 0) << i;
    }
  });
}

}  // namespace
}  // namespace sparsed::cuda
