// The emulator itself: the documented fragment layouts, and that each kind of mistake is found.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "cuda/common/prims.cuh"

namespace sparsed::cuda {
namespace {

using emulator::KernelError;
using emulator::Landing;
using emulator::Launch;
using emulator::Report;

// What `kernel` does wrong; "" where nothing is.
std::string mistake(const Launch& launch, const std::function<void()>& kernel) {
  try {
    emulator::run(launch, kernel);
  } catch (const KernelError& error) {
    return error.what();
  }
  return "";
}

void expect_mistake(const Launch& launch, const std::string& text, const std::function<void()>& kernel) {
  for (Landing landing : {Landing::kEarly, Landing::kLate}) {
    for (unsigned seed = 0; seed < 4; ++seed) {
      Launch own = launch;
      own.landing = landing;
      own.seed = seed;
      const std::string found = mistake(own, kernel);
      EXPECT_NE(found.find(text), std::string::npos) << "found: \"" << found << "\", expected: \"" << text << '"';
    }
  }
}

Launch launch_of(int threads, size_t shared_bytes) {
  Launch launch;
  launch.threads = threads;
  launch.shared_bytes = shared_bytes;
  return launch;
}

std::vector<float> small_numbers(size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<float> numbers(count);
  for (float& x : numbers) x = static_cast<float>(static_cast<int>(generator() % 17) - 8) / 4.f;
  return numbers;
}

// C = A B through shared memory: A [16, 16] and B [16, 8] row-major; B^T comes by a transposed load.
template <class T>
void matrix_kernel(const T* a, const T* b, float* c) {
  const int lane = thread_index();
  for (int i = lane; i < 16 * 8; i += 32) {  // pairs
    store_shared(static_cast<uint32_t>(i) * 4, *reinterpret_cast<const uint32_t*>(a + 2 * i));
  }
  for (int i = lane; i < 16 * 4; i += 32) {
    store_shared(512 + static_cast<uint32_t>(i) * 4, *reinterpret_cast<const uint32_t*>(b + 2 * i));
  }
  sync_warp();
  uint32_t left[4], right[4];
  load_matrices(left, static_cast<uint32_t>(lane % 16 * 32 + lane / 16 * 16));
  load_matrices_transposed(right, 512 + static_cast<uint32_t>(lane % 16 * 16));
  float sum[4] = {1.f, 1.f, 1.f, 1.f};
  mma<T>(sum, left, right[0], right[1]);
  const int row = lane / 4, column = lane % 4 * 2;
  for (int i = 0; i < 4; ++i) store_global(c + (row + i / 2 * 8) * 8 + column + i % 2, sum[i]);
}

template <class T>
void expect_product(DType dtype) {
  const std::vector<float> a = small_numbers(256, 1), b = small_numbers(128, 2);
  std::vector<T> a_bits(256), b_bits(128);
  for (size_t i = 0; i < a.size(); ++i) store_float(a_bits.data(), dtype, static_cast<int64_t>(i), a[i]);
  for (size_t i = 0; i < b.size(); ++i) store_float(b_bits.data(), dtype, static_cast<int64_t>(i), b[i]);
  std::vector<float> c(128);
  Launch launch = launch_of(32, 1024);
  launch.memory = {{c.data(), 512, true}};
  emulator::run(launch, [&] { matrix_kernel(a_bits.data(), b_bits.data(), c.data()); });
  for (size_t i = 0; i < 16; ++i) {
    for (size_t j = 0; j < 8; ++j) {
      float expected = 1.f;
      for (size_t k = 0; k < 16; ++k) expected += a[i * 16 + k] * b[k * 8 + j];
      EXPECT_EQ(c[i * 8 + j], expected) << i << ", " << j;
    }
  }
}

TEST(CudaEmulator, MmaMultipliesBf16) { expect_product<Bf16>(DType::kBFloat16); }
TEST(CudaEmulator, MmaMultipliesF16) { expect_product<F16>(DType::kFloat16); }

// The layouts of the PTX ISA, element by element: the value of A[row][k] is row * 16 + k, exact in float16.
TEST(CudaEmulator, LdmatrixGivesTheFragmentsOfMma) {
  std::vector<uint32_t> plain(128), transposed(128);
  emulator::run(launch_of(32, 512), [&] {
    const uint32_t lane = static_cast<uint32_t>(thread_index());
    for (uint32_t i = lane; i < 128; i += 32) store_shared(i * 4, 2 * i | (2 * i + 1) << 16);  // bits = row * 16 + k
    sync_warp();
    uint32_t r[4];
    load_matrices(r, lane % 16 * 32 + lane / 16 * 16);
    for (uint32_t i = 0; i < 4; ++i) plain[lane * 4 + i] = r[i];
    load_matrices_transposed(r, lane % 16 * 32 + lane / 16 * 16);
    for (uint32_t i = 0; i < 4; ++i) transposed[lane * 4 + i] = r[i];
  });
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const uint32_t group = lane / 4, in_group = lane % 4;
    for (uint32_t i = 0; i < 8; ++i) {  // element a_i
      const uint32_t row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
      const uint32_t k = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
      EXPECT_EQ(plain[lane * 4 + i / 2] >> (16 * (i & 1)) & 0xffff, row * 16 + k) << lane << " a" << i;
    }
    for (uint32_t i = 0; i < 4; ++i) {  // element b_i of B = the first 8 columns
      const uint32_t k = in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0);
      EXPECT_EQ(transposed[lane * 4 + i / 2] >> (16 * (i & 1)) & 0xffff, k * 16 + group) << lane << " b" << i;
    }
  }
}

TEST(CudaEmulator, ShufflesAndVotes) {
  emulator::run(launch_of(64, 0), [&] {
    const int lane = thread_index() % 32;
    EXPECT_EQ(shuffle_xor(lane, 5), lane ^ 5);
    EXPECT_EQ(shuffle(lane, 3), 3);
    EXPECT_EQ(vote(lane % 3 == 0), 0x49249249u);
  });
}

// One thread copies, waits, and reads: 16 numbers in two groups.
TEST(CudaEmulator, CopiesLandByTheirGroup) {
  alignas(16) static const float source[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  for (Landing landing : {Landing::kEarly, Landing::kLate}) {
    Launch launch = launch_of(32, 32 * 48);
    launch.landing = landing;
    launch.memory = {{source, sizeof(source), false}};
    emulator::run(launch, [&] {
      const uint32_t base = static_cast<uint32_t>(thread_index()) * 48;
      copy_async(base, source, true);
      copy_async(base + 16, nullptr, false);
      copy_async_commit();
      copy_async(base + 32, source + 4, true);
      copy_async_commit();
      copy_async_wait<1>();
      EXPECT_EQ(load_shared(base + 12), 4.f);
      EXPECT_EQ(load_shared(base + 16), 0.f);
      copy_async_wait<0>();
      EXPECT_EQ(load_shared(base + 32), 5.f);
    });
  }
}

TEST(CudaEmulator, AMissingWaitIsFound) {
  alignas(16) static const float source[8] = {};
  Launch launch = launch_of(32, 32 * 32);
  launch.memory = {{source, sizeof(source), false}};
  expect_mistake(launch, "read under an asynchronous copy", [&] {
    const uint32_t base = static_cast<uint32_t>(thread_index()) * 32;
    copy_async(base, source, true);
    copy_async_commit();
    copy_async(base + 16, source + 4, true);
    copy_async_commit();
    copy_async_wait<1>();
    load_shared(base + 16);
    copy_async_wait<0>();
  });
  expect_mistake(launch, "never committed",
                 [&] { copy_async(16 * static_cast<uint32_t>(thread_index()), source, true); });
}

// A ring of one buffer: the next copy is issued while other warps may still read.
void ring_kernel(const float* source, bool barrier_before_copy, bool barrier_after_wait) {
  const uint32_t own = static_cast<uint32_t>(thread_index()) * 16;
  const uint32_t other = static_cast<uint32_t>((thread_index() + 32) % 64) * 16;
  for (int step = 0; step < 3; ++step) {
    copy_async(own, source, true);
    copy_async_commit();
    copy_async_wait<0>();
    if (barrier_after_wait) sync_threads();
    EXPECT_EQ(load_shared(other), 1.f);
    if (barrier_before_copy) sync_threads();
  }
}

TEST(CudaEmulator, AMissingBarrierIsARace) {
  alignas(16) static const float source[4] = {1, 2, 3, 4};
  Launch launch = launch_of(64, 1024);
  launch.memory = {{source, sizeof(source), false}};
  expect_mistake(launch, "race: ", [&] { ring_kernel(source, false, true); });
  expect_mistake(launch, "shared memory", [&] { ring_kernel(source, true, false); });
  EXPECT_EQ(mistake(launch, [&] { ring_kernel(source, true, true); }), "");
}

TEST(CudaEmulator, ARaceWithinAWarpIsFound) {
  const auto kernel = [](bool sync) {
    const uint32_t lane = static_cast<uint32_t>(thread_index());
    store_shared(lane * 4, 1.f);
    if (sync) sync_warp();
    load_shared((lane ^ 1) * 4);
  };
  expect_mistake(launch_of(32, 128), "", [&] { kernel(true); });
  EXPECT_NE(mistake(launch_of(32, 128), [&] { kernel(false); }), "");
}

TEST(CudaEmulator, NamedBarriersOrderTheirWarpsAlone) {
  // Warp 0 produces, warp 1 consumes; warp 2 did not take part.
  const auto kernel = [](int reader) {
    const int warp = thread_index() / 32;
    const uint32_t address = static_cast<uint32_t>(thread_index() % 32) * 4;
    if (warp == 0) {
      store_shared(address, 2.f);
      barrier_arrive(1, 64);
    }
    if (warp == 1) {
      barrier_sync(1, 64);
      if (reader == 1) {
        EXPECT_EQ(load_shared(address), 2.f);
      }
    }
    if (warp == 2 && reader == 2) load_shared(address);
  };
  EXPECT_EQ(mistake(launch_of(96, 128), [&] { kernel(1); }), "");
  expect_mistake(launch_of(96, 128), "shared memory", [&] { kernel(2); });
}

TEST(CudaEmulator, WrongBarriersAreFound) {
  expect_mistake(launch_of(96, 0), "is used with", [] { barrier_sync(1, thread_index() < 32 ? 64 : 96); });
  expect_mistake(launch_of(64, 0), "deadlock", [] {
    if (thread_index() < 32) sync_threads();
  });
  expect_mistake(launch_of(64, 0), "32 of 64 threads at barrier 2", [] {
    if (thread_index() < 32) barrier_arrive(2, 64);
  });
  expect_mistake(launch_of(32, 0), "lanes of a warp part", [] {
    if (thread_index() < 16) {
      shuffle_xor(1, 1);
    } else {
      vote(true);
    }
  });
}

TEST(CudaEmulator, WrongAddressesAreFound) {
  alignas(16) static float numbers[8] = {};
  Launch launch = launch_of(32, 64);
  launch.memory = {{numbers, sizeof(numbers), false}};
  expect_mistake(launch, "outside the 64 bytes", [] { store_shared(64, 1.f); });
  expect_mistake(launch, "never written", [] { load_shared(0); });
  expect_mistake(launch, "unaligned", [] { store_shared(2, 1.f); });
  expect_mistake(launch, "outside of global memory", [] { load_global(numbers + 8); });
  expect_mistake(launch, "read-only", [] { store_global(numbers, 1.f); });
  expect_mistake(launch, "unaligned", [] { copy_async(0, numbers + 1, true); });
}

TEST(CudaEmulator, BankConflictsAreCounted) {
  const auto conflicts = [](uint32_t stride) {
    const Report report = emulator::run(launch_of(32, 32 * 128),
                                        [&] { store_shared(static_cast<uint32_t>(thread_index()) * stride, 1.f); });
    return report.conflicts();
  };
  EXPECT_EQ(conflicts(4), 0);
  EXPECT_EQ(conflicts(8), 1);
  EXPECT_EQ(conflicts(128), 31);
  EXPECT_EQ(conflicts(68), 0);

  const auto matrix_conflicts = [](uint32_t row_bytes) {
    const Report report = emulator::run(launch_of(32, 32 * 144), [&] {
      const uint32_t lane = static_cast<uint32_t>(thread_index());
      for (uint32_t i = lane; i < 32 * 36; i += 32) store_shared(i * 4, i);
      sync_warp();
      uint32_t r[4];
      load_matrices(r, lane * row_bytes);
    });
    return report.conflicts();
  };
  EXPECT_EQ(matrix_conflicts(128), 4 * 7);
  EXPECT_EQ(matrix_conflicts(144), 0);
  EXPECT_EQ(matrix_conflicts(16), 0);
}

}  // namespace
}  // namespace sparsed::cuda
