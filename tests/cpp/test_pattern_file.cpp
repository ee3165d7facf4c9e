#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/pattern.h"
#include "core/pattern_cache.h"
#include "expect_error.h"

namespace sparsed {
namespace {

namespace fs = std::filesystem;
using Bytes = std::string;

class PatternFileTest : public testing::Test {
 protected:
  PatternFileTest()
      : folder_(fs::path(testing::TempDir()) / ("sparsed-test-" + std::to_string(std::random_device{}()) + "-" +
                                                std::to_string(std::random_device{}()))) {
    fs::create_directory(folder_);
  }
  ~PatternFileTest() override { fs::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  std::string write(const Bytes& bytes, const std::string& name = "file") const {
    std::ofstream(path(name), std::ios::binary | std::ios::trunc) << bytes;
    return path(name);
  }

  static Bytes read(const std::string& name) {
    std::ifstream file(name, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  Bytes saved(const BlockPattern& pattern) const {
    pattern.save(path("saved"));
    return read(path("saved"));
  }

  size_t files() const { return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), {})); }

  fs::path folder_;
};

BlockPattern random_pattern(const PatternGeometry& geometry, unsigned seed) {
  PatternBuilder pattern(geometry, "test");
  std::mt19937 generator(seed);
  for (int64_t row = 0; row < pattern.rows(); ++row) {
    for (int64_t block = 0; block < geometry.kv_blocks(); ++block) {
      if (generator() % 3 == 0) pattern.set(row, block);
    }
  }
  return std::move(pattern).build();
}

BlockPattern small_pattern() { return random_pattern({1, 2, 16, 40, 90, 33}, 1); }

uint64_t fnv1a(const Bytes& bytes) {
  uint64_t hash = 14695981039346656037u;
  for (const char byte : bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * 1099511628211u;
  return hash;
}

void put(Bytes& bytes, size_t at, uint64_t value, size_t count) {
  for (size_t i = 0; i < count; ++i) bytes[at + i] = static_cast<char>(value >> (8 * i) & 0xff);
}

// The file with a checksum that fits what somebody changed in it.
Bytes resealed(Bytes bytes) {
  put(bytes, 56, fnv1a(bytes.substr(0, 56) + bytes.substr(64)), 8);
  return bytes;
}

TEST_F(PatternFileTest, RoundTrips) {
  const std::vector<PatternGeometry> geometries{
      {1, 1, 16, 1, 1, 0},         {2, 3, 32, 100, 64 * 32, 77}, {1, 2, 256, 70, 5, 5}, {1, 2, 16, 70, 65 * 16 - 3, 40},
      {0, 4, 128, 9, 9, 9},        {2, 2, 64, 0, 100, 100},      {2, 2, 64, 100, 0, 0}, {1, 4, 16, 2048, 2048, 1500},
      {1, 2, {64, 16}, 90, 90, 3}, {1, 2, {16, 128}, 90, 300, 3}};
  for (const PatternGeometry& geometry : geometries) {
    const BlockPattern pattern = random_pattern(geometry, 3);
    pattern.save(path("a"));
    const BlockPattern loaded = BlockPattern::load(path("a"));
    EXPECT_EQ(loaded, pattern);
    EXPECT_EQ(loaded.hash(), pattern.hash());
    EXPECT_EQ(fs::file_size(path("a")), 64 + pattern.nbytes());
  }
  EXPECT_EQ(files(), 1u);
}

// The format as written down, so that it cannot change unseen.
TEST_F(PatternFileTest, HasThisFormat) {
  PatternBuilder builder({1, 1, 16, 20, 40, 7}, "test");
  builder.set(0, 0);
  builder.set(0, 2);
  builder.set(1, 1);
  const BlockPattern pattern = std::move(builder).build();
  Bytes expected(80, '\0');
  expected.replace(0, 8, "SPRSDPAT");
  put(expected, 8, 1, 4);
  put(expected, 12, 16, 4);
  const uint64_t fields[] = {1, 1, 20, 40, 7};
  for (size_t i = 0; i < 5; ++i) put(expected, 16 + 8 * i, fields[i], 8);
  put(expected, 64, 5, 8);
  put(expected, 72, 2, 8);
  expected = resealed(expected);
  EXPECT_EQ(saved(pattern), expected);
  EXPECT_EQ(pattern.hash(), fnv1a(expected.substr(0, 56) + expected.substr(64)));
  EXPECT_EQ(BlockPattern::load(write(expected)), pattern);
}

TEST_F(PatternFileTest, EveryDamagedByteIsFound) {
  const Bytes good = saved(small_pattern());
  for (size_t at = 0; at < good.size(); ++at) {
    for (const int flip : {0x01, 0x80, 0xff}) {
      Bytes bad = good;
      bad[at] = static_cast<char>(bad[at] ^ flip);
      const std::string name = write(bad);
      EXPECT_ERROR(BlockPattern::load(name), kValue, "BlockPattern.load: " + name);
    }
  }
}

TEST_F(PatternFileTest, EveryTruncationIsFound) {
  const Bytes good = saved(small_pattern());
  for (size_t size = 0; size < good.size(); ++size) {
    const std::string name = write(good.substr(0, size));
    EXPECT_ERROR(BlockPattern::load(name), kValue, "BlockPattern.load: " + name);
  }
}

TEST_F(PatternFileTest, NamesWhatIsWrongInIt) {
  const Bytes good = saved(small_pattern());
  const auto with = [&](size_t at, uint64_t value, size_t count) {
    Bytes bytes = good;
    put(bytes, at, value, count);
    return write(resealed(bytes));
  };
  EXPECT_ERROR(BlockPattern::load(write("")), kValue, "is 0 bytes long, expected at least 64");
  EXPECT_ERROR(BlockPattern::load(write(Bytes(100, 'x'))), kValue, "is not a pattern file");
  EXPECT_ERROR(BlockPattern::load(write(good + '\0')), kValue, "has 49 bytes of bit rows, expected 48");
  EXPECT_ERROR(BlockPattern::load(with(8, 2, 4)), kValue, "has format version 2, expected 1");
  EXPECT_ERROR(BlockPattern::load(with(8, 0, 4)), kValue, "has format version 0, expected 1");
  EXPECT_ERROR(BlockPattern::load(with(12, 48, 4)), kValue, "block_size is 48");
  EXPECT_ERROR(BlockPattern::load(with(12, 0x80000010u, 4)), kValue, "q_block_size is 32768");
  const auto square = static_cast<uint64_t>(small_pattern().geometry().block.kv);
  EXPECT_ERROR(BlockPattern::load(with(14, square, 2)), kValue,
               "tokens, expected 0 where they are as long as key blocks");
  EXPECT_ERROR(BlockPattern::load(with(16, ~uint64_t{0}, 8)), kValue, "batch is -1");
  EXPECT_ERROR(BlockPattern::load(with(24, 3, 8)), kValue, "has 48 bytes of bit rows, expected 72");
  EXPECT_ERROR(BlockPattern::load(with(48, 91, 8)), kValue, "prompt_length is 91, expected 0 ... 90 (kv_len)");
  EXPECT_ERROR(BlockPattern::load(with(64, 1u << 6, 8)), kValue, "selects key blocks from 6 on, expected none");
  EXPECT_ERROR(BlockPattern::load(with(64 + 5 * 8, uint64_t{1} << 63, 8)), kValue, "selects key blocks from 6 on");
  Bytes bad = good;
  bad[70] = static_cast<char>(bad[70] ^ 1);
  EXPECT_ERROR(BlockPattern::load(write(bad)), kValue, "is damaged: its checksum differs");
}

TEST_F(PatternFileTest, PromisesOfHugeSizesAllocateNothing) {
  Bytes bytes = saved(small_pattern());
  put(bytes, 16, 0x7fffffff, 8);
  put(bytes, 24, 0x7fffffff, 8);
  put(bytes, 32, uint64_t{1} << 35, 8);
  put(bytes, 40, uint64_t{1} << 35, 8);
  EXPECT_ERROR(BlockPattern::load(write(resealed(bytes))), kValue,
               "has 48 bytes of bit rows, expected 18446744073709551615");
  put(bytes, 24, 1, 8);
  put(bytes, 16, 1, 8);
  EXPECT_ERROR(BlockPattern::load(write(resealed(bytes))), kValue, "has 48 bytes of bit rows, expected ");
}

TEST_F(PatternFileTest, AMissingFileIsNotFound) {
  EXPECT_ERROR(BlockPattern::load(path("nothing")), kFileNotFound, path("nothing"));
  EXPECT_ERROR(BlockPattern::load(path("no/folder")), kFileNotFound, path("no/folder"));
  EXPECT_ERROR(BlockPattern::load(""), kFileNotFound, "BlockPattern.load: ");
}

TEST_F(PatternFileTest, AMissingFolderIsNotFound) {
  EXPECT_ERROR(small_pattern().save(path("no/file")), kFileNotFound, path("no/file"));
}

TEST_F(PatternFileTest, OtherTroubleIsTheSystems) {
  EXPECT_ERROR(BlockPattern::load(folder_.string()), kOs, folder_.string() + " is a folder or device");
  EXPECT_ERROR(small_pattern().save(folder_.string()), kOs, folder_.string() + " is a folder or device");
  const std::string long_name = path(std::string(5000, 'n'));
  EXPECT_ERROR(BlockPattern::load(long_name), kOs, long_name);
  EXPECT_ERROR(small_pattern().save(long_name), kOs, long_name);
  EXPECT_EQ(files(), 0u);
}

TEST_F(PatternFileTest, AZeroByteInAPathIsRefused) {
  const std::string name = path("a") + '\0' + "b";
  EXPECT_ERROR(BlockPattern::load(name), kValue, "BlockPattern.load: path has a zero byte");
  EXPECT_ERROR(small_pattern().save(name), kValue, "BlockPattern.save: path has a zero byte");
}

TEST_F(PatternFileTest, SaveReplacesAndLeavesNothingElse) {
  small_pattern().save(path("a"));
  const BlockPattern other = random_pattern({1, 1, 16, 16, 16, 0}, 9);
  other.save(path("a"));
  EXPECT_EQ(BlockPattern::load(path("a")), other);
  EXPECT_EQ(files(), 1u);
}

TEST_F(PatternFileTest, AFailedSaveLeavesNoFile) {
  const fs::path before = fs::current_path();
  fs::current_path(folder_);
  EXPECT_ERROR(small_pattern().save(""), kFileNotFound, "BlockPattern.save: cannot write ");  // the rename fails
  fs::current_path(before);
  EXPECT_EQ(files(), 0u);
}

TEST_F(PatternFileTest, SaveWritesThroughALink) {
  random_pattern({1, 1, 16, 16, 16, 0}, 9).save(path("target"));
  fs::create_symlink(path("target"), path("link"));
  small_pattern().save(path("link"));
  EXPECT_TRUE(fs::is_symlink(path("link")));
  EXPECT_EQ(BlockPattern::load(path("target")), small_pattern());
}

// The file of a cache: the patterns of layers 0 and 3, which have other heads and blocks.
class LayersFileTest : public PatternFileTest {
 protected:
  LayersFileTest() {
    cache_.set_pattern(0, random_pattern({1, 2, 16, 90, 90, 33}, 1));
    cache_.set_pattern(3, random_pattern({1, 3, 32, 90, 90, 33}, 2));
    cache_.save(path("cache"));
    good_ = read(path("cache"));
  }

  // With the checksum of the whole that fits.
  static Bytes whole_resealed(Bytes bytes) {
    put(bytes, 24, fnv1a(bytes.substr(0, 24) + bytes.substr(32)), 8);
    return bytes;
  }

  PatternCache cache_{GivenConfig{}, std::nullopt, 33};
  Bytes good_;
};

TEST_F(LayersFileTest, RoundTrips) {
  const PatternCache loaded = PatternCache::load(path("cache"));
  EXPECT_EQ(loaded.pattern_layers(), (std::vector<int64_t>{0, 3}));
  for (const int64_t layer : {0, 3}) EXPECT_EQ(loaded.pattern(layer), cache_.pattern(layer));
  EXPECT_EQ(loaded.prompt_length(), 33);
  EXPECT_EQ(loaded.step(), -1);
  EXPECT_EQ(good_.size(), 32 + 2 * (8 + 64) + cache_.nbytes());
}

TEST_F(LayersFileTest, HasThisFormat) {
  Bytes expected(32, '\0');
  expected.replace(0, 8, "SPRSDLAY");
  put(expected, 8, 1, 4);
  put(expected, 12, 2, 4);
  put(expected, 16, 33, 8);
  for (const uint64_t layer : {0, 3}) {
    Bytes number(8, '\0');
    put(number, 0, layer, 8);
    expected += number + saved(cache_.pattern(static_cast<int64_t>(layer)));
  }
  EXPECT_EQ(good_, whole_resealed(expected));
}

TEST_F(LayersFileTest, EveryDamagedByteAndTruncationIsFound) {
  for (size_t at = 0; at < good_.size(); ++at) {
    for (const int flip : {0x01, 0x80}) {
      Bytes bad = good_;
      bad[at] = static_cast<char>(bad[at] ^ flip);
      const std::string name = write(bad);
      EXPECT_ERROR(PatternCache::load(name), kValue, "PatternCache.load: " + name);
    }
    const std::string name = write(good_.substr(0, at));
    EXPECT_ERROR(PatternCache::load(name), kValue, "PatternCache.load: " + name);
  }
}

TEST_F(LayersFileTest, NamesWhatIsWrongInIt) {
  const auto with = [&](size_t at, uint64_t value, size_t count) {
    Bytes bytes = good_;
    put(bytes, at, value, count);
    return write(whole_resealed(bytes));
  };
  const size_t second = 32 + 8 + 64 + cache_.pattern(0).nbytes();
  EXPECT_ERROR(PatternCache::load(write("")), kValue, "is 0 bytes long, expected at least 32");
  EXPECT_ERROR(PatternCache::load(write(saved(small_pattern()))), kValue, "is not a file of a PatternCache");
  EXPECT_ERROR(BlockPattern::load(path("cache")), kValue, "is not a pattern file");
  EXPECT_ERROR(PatternCache::load(with(8, 2, 4)), kValue, "has format version 2, expected 1");
  EXPECT_ERROR(PatternCache::load(with(12, 0, 4)), kValue, "holds no layer, expected at least one");
  EXPECT_ERROR(PatternCache::load(with(12, 1, 4)), kValue, "bytes of bit rows, expected ");
  EXPECT_ERROR(PatternCache::load(with(12, 3, 4)), kValue, "ends after 2 layers, expected 3");
  EXPECT_ERROR(PatternCache::load(with(12, 0xffffffffu, 4)), kValue, "ends after 2 layers, expected 4294967295");
  EXPECT_ERROR(PatternCache::load(with(16, ~uint64_t{0}, 8)), kValue, "prompt_length is -1, expected >= 0");
  EXPECT_ERROR(PatternCache::load(with(16, 91, 8)), kValue, "pattern has kv_len 90, expected at least 91");
  EXPECT_ERROR(PatternCache::load(with(32, ~uint64_t{0}, 8)), kValue, "has layer -1, expected more than -1");
  EXPECT_ERROR(PatternCache::load(with(32, ~uint64_t{0} >> 1, 8)), kValue, "has layer 3, expected more than 9223");
  EXPECT_ERROR(PatternCache::load(with(second, 0, 8)), kValue, "has layer 0, expected more than 0");
  EXPECT_ERROR(PatternCache::load(with(second + 8 + 64, 1u << 3, 8)), kValue, "is damaged: its checksum differs");
  Bytes bad = good_;
  bad[16] = static_cast<char>(bad[16] ^ 1);  // fits the patterns
  EXPECT_ERROR(PatternCache::load(write(bad)), kValue, "is damaged: its checksum differs");
  EXPECT_ERROR(PatternCache::load(write(good_ + '\0')), kValue, "bytes of bit rows, expected ");
}

TEST_F(LayersFileTest, LayersMustFitEachOther) {
  const Bytes other = saved(random_pattern({1, 3, 32, 80, 80, 33}, 2));
  const size_t second = 32 + 8 + 64 + cache_.pattern(0).nbytes();
  const std::string name = write(whole_resealed(good_.substr(0, second + 8) + other));
  EXPECT_ERROR(PatternCache::load(name), kValue,
               "PatternCache.load: " + name + ": pattern has q_len 80, expected 90 (as before)");
}

TEST_F(LayersFileTest, PromisesOfHugeSizesAllocateNothing) {
  Bytes bytes = good_;
  for (const size_t at : {16, 24}) put(bytes, 32 + 8 + at, 0x7fffffff, 8);
  for (const size_t at : {32, 40}) put(bytes, 32 + 8 + at, uint64_t{1} << 35, 8);
  EXPECT_ERROR(PatternCache::load(write(whole_resealed(bytes))), kValue, "expected 18446744073709551615");
}

TEST_F(LayersFileTest, TroubleWithTheFileHasItsName) {
  EXPECT_ERROR(PatternCache::load(path("nothing")), kFileNotFound, "PatternCache.load: " + path("nothing"));
  EXPECT_ERROR(PatternCache::load(folder_.string()), kOs, "is a folder or device");
  EXPECT_ERROR(cache_.save(path("no/file")), kFileNotFound, "PatternCache.save: cannot write " + path("no/file"));
  EXPECT_ERROR(PatternCache(GivenConfig{}, 2, 0).save(path("empty")), kValue,
               "PatternCache.save: no layer holds a pattern, expected at least one");
}

}  // namespace
}  // namespace sparsed
