#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "support/available_memory.h"
#include "support/buffer.h"
#include "support/error.h"

namespace sparsed {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMiB = uint64_t{1} << 20;

// A machine's /proc and /sys, written by hand.
class Machine : public ::testing::Test {
 protected:
  Machine() : root_(fs::path(::testing::TempDir()) / ("sparsed_memory_" + std::to_string(::getpid()))) {}
  ~Machine() override { fs::remove_all(root_); }

  void write(const std::string& path, const std::string& content) {
    const fs::path file = root_ / path;
    fs::create_directories(file.parent_path());
    std::ofstream(file) << content;
  }
  void write_meminfo(uint64_t available_mib) {
    write("proc/meminfo", "MemTotal:  99999999 kB\nMemFree: 12 kB\nMemAvailable:   " +
                              std::to_string(available_mib * 1024) + " kB\nBuffers: 3 kB\n");
  }
  std::optional<uint64_t> available() const { return available_memory(root_.string()); }

 private:
  fs::path root_;
};

TEST_F(Machine, UnknownWithoutProc) { EXPECT_EQ(available(), std::nullopt); }

TEST_F(Machine, MeminfoAlone) {
  write_meminfo(500);
  EXPECT_EQ(available(), 500 * kMiB);
}

TEST_F(Machine, Version2LimitLessWhatIsHeldOutsideTheCache) {
  write_meminfo(500);
  write("proc/self/cgroup", "0::/a/b\n");
  write("sys/fs/cgroup/a/b/memory.max", std::to_string(300 * kMiB));
  write("sys/fs/cgroup/a/b/memory.current", std::to_string(250 * kMiB));
  write("sys/fs/cgroup/a/b/memory.stat",
        "anon 7\ninactive_file " + std::to_string(100 * kMiB) + "\nactive_file " + std::to_string(50 * kMiB) + "\n");
  EXPECT_EQ(available(), 200 * kMiB);
}

TEST_F(Machine, Version2TightestGroupOnTheWayUp) {
  write_meminfo(500);
  write("proc/self/cgroup", "0::/a/b\n");
  write("sys/fs/cgroup/a/b/memory.max", "max\n");
  write("sys/fs/cgroup/a/b/memory.current", "0");
  write("sys/fs/cgroup/a/memory.max", std::to_string(90 * kMiB));
  write("sys/fs/cgroup/a/memory.current", std::to_string(100 * kMiB));
  EXPECT_EQ(available(), 0u);
}

TEST_F(Machine, Version1) {
  write_meminfo(500);
  write("proc/self/cgroup", "9:cpu,cpuacct:/x\n4:memory:/only/outside\n0::/\n");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", std::to_string(64 * kMiB));
  write("sys/fs/cgroup/memory/memory.usage_in_bytes", std::to_string(24 * kMiB));
  write("sys/fs/cgroup/memory/memory.stat", "total_inactive_file " + std::to_string(4 * kMiB) + "\n");
  EXPECT_EQ(available(), 44 * kMiB);
}

TEST_F(Machine, NoLimitIsALargeNumber) {
  write_meminfo(500);
  write("proc/self/cgroup", "4:memory:/\n");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712");
  write("sys/fs/cgroup/memory/memory.usage_in_bytes", "4096");
  EXPECT_EQ(available(), 500 * kMiB);
}

TEST(RequireMemory, RefusesWhatCannotFit) {
  require_memory(1, "a byte");
  if (!available_memory()) GTEST_SKIP() << "this system does not say what is available";
  try {
    require_memory(size_t{1} << 60, "attention: out");
    FAIL() << "an exbibyte fits";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kMemory);
    EXPECT_EQ(std::string(error.what()).rfind("attention: out needs 1073741824.0 GiB, available are ", 0), 0u);
  }
}

TEST(AllocateAligned, SmallAndLarge) {
  for (size_t bytes : {size_t{0}, size_t{100}, (size_t{5} << 20) + 1}) {
    const AlignedBytes data = allocate_aligned(bytes);
    ASSERT_NE(data.get(), nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(data.get()) % 64, 0u);
    std::memset(data.get(), 1, bytes);
  }
}

TEST(LentMemory, KeepsTheLargestAndLendsItOnce) {
  KeptMemory kept;
  std::byte* first = nullptr;
  {
    const LentMemory loan(kept, 1000, "a loan");
    first = loan.get();
    EXPECT_EQ(kept.capacity, 0u);
    const LentMemory nested(kept, 100, "a loan");  // as of a signal handler during a call
    EXPECT_NE(nested.get(), first);
    std::memset(first, 1, 1000);
    std::memset(nested.get(), 2, 100);
    EXPECT_EQ(first[999], std::byte{1});
  }
  EXPECT_EQ(kept.capacity, 1000u);
  EXPECT_EQ(LentMemory(kept, 500, "a loan").get(), first);
  const size_t large = size_t{5} << 20;
  { std::memset(LentMemory(kept, large, "a loan").get(), 3, large); }
  EXPECT_EQ(kept.capacity, large);
  if (available_memory()) {
    EXPECT_THROW(LentMemory(kept, size_t{1} << 60, "a loan"), Error);
  }
  { std::memset(LentMemory(kept, large, "a loan").get(), 4, large); }
}

}  // namespace
}  // namespace sparsed
