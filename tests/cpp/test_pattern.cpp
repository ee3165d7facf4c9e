// Patterns: their geometry, bit rows, windows, copies on devices and comparisons.
// The file is long because every member of BlockPattern is one short test.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/pattern.h"
#include "expect_error.h"

namespace sparsed {
namespace {

constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();

std::vector<uint8_t> random_mask(const PatternGeometry& geometry, double density, unsigned seed) {
  std::mt19937 generator(seed);
  std::bernoulli_distribution selected(density);
  std::vector<uint8_t> mask(
      static_cast<size_t>(geometry.batch * geometry.heads * geometry.q_blocks() * geometry.kv_blocks()));
  for (uint8_t& bit : mask) bit = selected(generator);
  return mask;
}

std::vector<uint8_t> mask_of(const BlockPattern& pattern) {
  std::vector<uint8_t> mask(static_cast<size_t>(pattern.rows() * pattern.geometry().kv_blocks()), 7);
  pattern.to_mask(mask.data());
  return mask;
}

std::vector<int64_t> blocks_of(const BlockPattern& pattern, int64_t row) {
  std::vector<int64_t> blocks;
  for_each_block(pattern.row(row), pattern.geometry().row_words(), [&](int64_t block) { blocks.push_back(block); });
  return blocks;
}

BlockPattern random_pattern(const PatternGeometry& geometry, double density, unsigned seed) {
  return BlockPattern::from_mask(geometry, random_mask(geometry, density, seed).data());
}

TEST(BlockSizeTest, AreFivePowersOfTwo) {
  for (int64_t size = -300; size <= 600; ++size) {
    EXPECT_EQ(is_block_size(size), size == 16 || size == 32 || size == 64 || size == 128 || size == 256) << size;
  }
  EXPECT_FALSE(is_block_size(kHuge));
  EXPECT_FALSE(is_block_size((int64_t{1} << 32) + 16));
}

TEST(BlockSizeTest, CutsLengthsUpwards) {
  EXPECT_EQ(num_blocks(0, 16), 0);
  EXPECT_EQ(num_blocks(1, 16), 1);
  EXPECT_EQ(num_blocks(16, 16), 1);
  EXPECT_EQ(num_blocks(17, 16), 2);
}

struct WrongGeometry {
  PatternGeometry geometry;
  const char* text;
};

class WrongGeometryTest : public testing::TestWithParam<WrongGeometry> {};

TEST_P(WrongGeometryTest, IsNamed) {
  EXPECT_ERROR(BlockPattern(GetParam().geometry, "here"), kValue, std::string("here: ") + GetParam().text);
  EXPECT_ERROR(BlockPattern::full(GetParam().geometry), kValue, std::string("BlockPattern.full: ") + GetParam().text);
  EXPECT_ERROR(BlockPattern::streaming(GetParam().geometry, 8, 0), kValue, GetParam().text);
  EXPECT_ERROR(BlockPattern::from_mask(GetParam().geometry, nullptr), kValue, GetParam().text);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, WrongGeometryTest,
    testing::Values(WrongGeometry{{1, 1, 0, 8, 8, 0}, "block_size is 0, expected 16, 32, 64, 128 or 256"},
                    WrongGeometry{{1, 1, 48, 8, 8, 0}, "block_size is 48"},
                    WrongGeometry{{1, 1, 512, 8, 8, 0}, "block_size is 512"},
                    WrongGeometry{{1, 1, -16, 8, 8, 0}, "block_size is -16"},
                    WrongGeometry{{1, 1, {48, 16}, 8, 8, 0}, "q_block_size is 48, expected 16, 32, 64, 128 or 256"},
                    WrongGeometry{{1, 1, {16, 48}, 8, 8, 0}, "kv_block_size is 48, expected 16, 32, 64, 128 or 256"},
                    WrongGeometry{{-1, 1, 16, 8, 8, 0}, "batch is -1, expected 0 ... 2147483647"},
                    WrongGeometry{{1, -1, 16, 8, 8, 0}, "heads is -1, expected 0 ... 2147483647"},
                    WrongGeometry{{kHuge, 1, 16, 8, 8, 0}, "batch is 9223372036854775807"},
                    WrongGeometry{{1, kHuge, 16, 8, 8, 0}, "heads is 9223372036854775807"},
                    WrongGeometry{{1, 1, 16, -1, 8, 0}, "q_len is -1, expected 0 ... 34359738368"},
                    WrongGeometry{{1, 1, 16, 8, -8, 0}, "kv_len is -8, expected 0 ... 34359738368"},
                    WrongGeometry{{1, 1, 16, kHuge, 8, 0}, "q_len is 9223372036854775807"},
                    WrongGeometry{{1, 1, 16, 8, kHuge, 0}, "kv_len is 9223372036854775807"},
                    WrongGeometry{{1, 1, 16, 8, 8, -1}, "prompt_length is -1, expected 0 ... 8 (kv_len)"},
                    WrongGeometry{{1, 1, 16, 8, 8, 9}, "prompt_length is 9, expected 0 ... 8 (kv_len)"}),
    [](const auto& test) { return "case" + std::to_string(test.index); });

class AbsurdGeometryTest : public testing::TestWithParam<PatternGeometry> {};

TEST_P(AbsurdGeometryTest, IsRefusedBeforeTheAllocation) {
#ifdef __linux__
  EXPECT_ERROR(BlockPattern(GetParam(), "here"), kMemory, "here: the pattern needs ");
#else
  GTEST_SKIP() << "available memory is known on Linux only";
#endif
}

constexpr int64_t kMaxCount = std::numeric_limits<int32_t>::max();
INSTANTIATE_TEST_SUITE_P(Cases, AbsurdGeometryTest,
                         testing::Values(PatternGeometry{kMaxCount, kMaxCount, 16, kMaxLength, kMaxLength, 0},
                                         PatternGeometry{1, 1, 16, kMaxLength, kMaxLength, 0},
                                         PatternGeometry{kMaxCount, 1, 16, 1 << 16, 1 << 20, 0},
                                         // No bits, but too many rows or heads to go through.
                                         PatternGeometry{kMaxCount, kMaxCount, 16, 16, 0, 0},
                                         PatternGeometry{kMaxCount, kMaxCount, 16, 0, 16, 0},
                                         PatternGeometry{0, kMaxCount, 16, kMaxLength, 16, 0}),
                         [](const auto& test) { return "case" + std::to_string(test.index); });

TEST(BitBytesTest, CountsOrSaturates) {
  EXPECT_EQ(bit_bytes({1, 32, 128, 65536, 65536, 0}), uint64_t{1} << 20);
  EXPECT_EQ(bit_bytes({2, 3, 16, 17, 65 * 16, 0}), 2u * 3 * 2 * 2 * 8);
  EXPECT_EQ(bit_bytes({0, kMaxCount, 16, kMaxLength, kMaxLength, 0}), 0u);
  EXPECT_EQ(bit_bytes({kMaxCount, kMaxCount, 16, kMaxLength, 0, 0}), 0u);
  EXPECT_EQ(bit_bytes({kMaxCount, kMaxCount, 16, kMaxLength, kMaxLength, 0}), std::numeric_limits<uint64_t>::max());
}

TEST(BlockPatternTest, SixtyFourThousandTokensTakeAMebibyteALayer) {
  EXPECT_EQ(BlockPattern({1, 32, 128, 65536, 65536, 0}, "test").nbytes(), size_t{1} << 20);
}

TEST(BlockPatternTest, StartsEmpty) {
  for (const BlockPattern& pattern : {BlockPattern(), BlockPattern({2, 3, 16, 33, 70, 5}, "test")}) {
    EXPECT_EQ(pattern.density(), 0.);
    EXPECT_EQ(pattern.num_selected(), 0);
    EXPECT_EQ(pattern.bits(), std::vector<uint64_t>(pattern.nbytes() / 8, 0));
  }
  EXPECT_EQ(BlockPattern().rows(), 0);
  EXPECT_EQ(BlockPattern().nbytes(), 0u);
  EXPECT_TRUE(BlockPattern().head_density().empty());
}

TEST(BlockPatternTest, SetsSingleBits) {
  PatternBuilder builder({1, 2, 16, 32, 130 * 16, 0}, "test");
  for (const int64_t block : {0, 63, 64, 127, 128, 129}) builder.set(2, block);
  const BlockPattern pattern = std::move(builder).build();
  for (int64_t row = 0; row < 4; ++row) {
    EXPECT_EQ(blocks_of(pattern, row),
              row == 2 ? (std::vector<int64_t>{0, 63, 64, 127, 128, 129}) : std::vector<int64_t>{});
  }
  EXPECT_TRUE(pattern.test(2, 127));
  EXPECT_FALSE(pattern.test(2, 126));
  EXPECT_FALSE(pattern.test(1, 127));
}

// Key blocks around the borders of words, and every density.
class RandomPatternTest : public testing::TestWithParam<std::tuple<int64_t, double>> {
 protected:
  PatternGeometry geometry() const { return {2, 3, 32, 4 * 32 - 5, std::get<0>(GetParam()) * 32 - 7, 11}; }
  double share() const { return std::get<1>(GetParam()); }
};

TEST_P(RandomPatternTest, MaskRoundTrips) {
  std::vector<uint8_t> mask = random_mask(geometry(), share(), 1);
  for (size_t i = 0; i < mask.size(); i += 3) mask[i] *= 255;  // any nonzero byte selects
  const BlockPattern pattern = BlockPattern::from_mask(geometry(), mask.data());
  for (uint8_t& bit : mask) bit = bit != 0;
  EXPECT_EQ(mask_of(pattern), mask);
  EXPECT_EQ(pattern.geometry(), geometry());
}

TEST_P(RandomPatternTest, RowsListTheirBlocksInOrder) {
  const std::vector<uint8_t> mask = random_mask(geometry(), share(), 2);
  const BlockPattern pattern = BlockPattern::from_mask(geometry(), mask.data());
  const size_t blocks = static_cast<size_t>(geometry().kv_blocks());
  int64_t total = 0;
  for (size_t row = 0; row < mask.size() / blocks; ++row) {
    std::vector<int64_t> expected;
    for (size_t block = 0; block < blocks; ++block) {
      if (mask[row * blocks + block]) expected.push_back(static_cast<int64_t>(block));
    }
    EXPECT_EQ(blocks_of(pattern, static_cast<int64_t>(row)), expected);
    total += static_cast<int64_t>(expected.size());
  }
  EXPECT_EQ(pattern.num_selected(), total);
}

TEST_P(RandomPatternTest, MeasuresDensityAndJaccard) {
  const std::vector<uint8_t> a = random_mask(geometry(), share(), 3), b = random_mask(geometry(), share(), 4);
  const BlockPattern first = BlockPattern::from_mask(geometry(), a.data());
  const BlockPattern second = BlockPattern::from_mask(geometry(), b.data());
  const size_t head_pairs = a.size() / 6;
  double total = 0;
  for (size_t head = 0; head < 6; ++head) {
    double mine = 0, both = 0, either = 0;
    for (size_t i = head * head_pairs; i < (head + 1) * head_pairs; ++i) {
      mine += a[i];
      both += a[i] && b[i];
      either += a[i] || b[i];
    }
    total += mine;
    EXPECT_DOUBLE_EQ(first.head_density()[head], mine / static_cast<double>(head_pairs));
    EXPECT_DOUBLE_EQ(first.jaccard(second)[head], either == 0 ? 1 : both / either);
    EXPECT_EQ(first.jaccard(first)[head], 1.);
  }
  EXPECT_DOUBLE_EQ(first.density(), total / static_cast<double>(a.size()));
}

TEST_P(RandomPatternTest, ComparesAndHashesByContent) {
  std::vector<uint8_t> mask = random_mask(geometry(), share(), 5);
  const BlockPattern pattern = BlockPattern::from_mask(geometry(), mask.data());
  const BlockPattern same = BlockPattern::from_mask(geometry(), mask.data()), handle = pattern;
  EXPECT_EQ(same, pattern);
  EXPECT_EQ(same.hash(), pattern.hash());
  EXPECT_FALSE(same.is(pattern));
  EXPECT_TRUE(handle.is(pattern));
  mask[3] = !mask[3];
  const BlockPattern other = BlockPattern::from_mask(geometry(), mask.data());
  EXPECT_NE(other, pattern);
  EXPECT_NE(other.hash(), pattern.hash());
}

INSTANTIATE_TEST_SUITE_P(Cases, RandomPatternTest,
                         testing::Combine(testing::Values(1, 2, 63, 64, 65, 130), testing::Values(0., .3, 1.)),
                         [](const auto& test) { return "case" + std::to_string(test.index); });

TEST(BlockPatternTest, GeometryIsContent) {
  const PatternGeometry base{1, 2, 16, 32, 48, 10};
  const BlockPattern pattern(base, "test");
  std::vector<PatternGeometry> others(6, base);
  others[0] = {2, 1, 16, 32, 48, 10};
  others[1].q_len = 31;
  others[2].kv_len = 47;
  others[3].prompt_length = 11;
  others[4].block = 32;
  others[5].block = {32, 16};
  for (const PatternGeometry& other : others) {
    EXPECT_NE(BlockPattern(other, "test"), pattern);
    EXPECT_NE(BlockPattern(other, "test").hash(), pattern.hash());
  }
}

TEST(BlockPatternTest, JaccardWantsTheSameBlocks) {
  const PatternGeometry base{1, 2, 16, 32, 48, 10};
  const BlockPattern pattern(base, "test");
  PatternGeometry other = base;
  other.prompt_length = 0;  // another prompt is fine
  EXPECT_EQ(pattern.jaccard(BlockPattern(other, "test")), (std::vector<double>{1, 1}));
  const auto with = [&](auto field, auto value) {
    PatternGeometry changed = base;
    changed.*field = value;
    return BlockPattern(changed, "test");
  };
  EXPECT_ERROR(pattern.jaccard(with(&PatternGeometry::batch, 2)), kValue,
               "BlockPattern.jaccard: other has batch 2, expected 1");
  EXPECT_ERROR(pattern.jaccard(with(&PatternGeometry::heads, 3)), kValue, "other has heads 3, expected 2");
  EXPECT_ERROR(pattern.jaccard(with(&PatternGeometry::block, 32)), kValue, "other has block_size 32, expected 16");
  EXPECT_ERROR(pattern.jaccard(with(&PatternGeometry::block, BlockSize{32, 16})), kValue,
               "other has q_block_size 32, expected 16");
  EXPECT_ERROR(pattern.jaccard(with(&PatternGeometry::block, BlockSize{16, 32})), kValue,
               "other has kv_block_size 32, expected 16");
  EXPECT_ERROR(pattern.jaccard(with(&PatternGeometry::q_len, 31)), kValue, "other has q_len 31, expected 32");
  EXPECT_ERROR(pattern.jaccard(with(&PatternGeometry::kv_len, 64)), kValue, "other has kv_len 64, expected 48");
}

class FullPatternTest : public testing::TestWithParam<int64_t> {};

TEST_P(FullPatternTest, SelectsEveryBlock) {
  const PatternGeometry geometry{2, 2, 16, 33, GetParam(), 0};
  const BlockPattern pattern = BlockPattern::full(geometry);
  const std::vector<uint8_t> ones(static_cast<size_t>(pattern.rows() * geometry.kv_blocks()), 1);
  EXPECT_EQ(pattern, BlockPattern::from_mask(geometry, ones.data()));
  EXPECT_EQ(pattern.density(), GetParam() == 0 ? 0. : 1.);
}

// Copies on a device: made once, and read back once where the host has no bits.
struct CountedCopy final : PatternCopy {
  std::vector<uint64_t> bits;
  mutable int reads = 0;

  explicit CountedCopy(std::vector<uint64_t> given) : bits(std::move(given)) {}
  std::vector<uint64_t> read() const override {
    ++reads;
    return bits;
  }
};

TEST(BlockPatternTest, GoesToEachDeviceOnce) {
  const BlockPattern pattern = random_pattern({1, 2, 16, 40, 90, 33}, .5, 6);
  int uploads = 0;
  const auto upload = [&](const std::vector<uint64_t>& bits) {
    ++uploads;
    return std::make_shared<CountedCopy>(bits);
  };
  const auto first = pattern.on(0, upload);
  EXPECT_EQ(pattern.on(0, upload), first);
  const BlockPattern handle = pattern;
  EXPECT_EQ(handle.on(0, upload), first);
  EXPECT_EQ(uploads, 1);
  EXPECT_NE(pattern.on(1, upload), first);
  EXPECT_EQ(uploads, 2);
  EXPECT_EQ(first->read(), pattern.bits());
}

TEST(BlockPatternTest, ComesFromItsDeviceOnce) {
  const PatternGeometry geometry{1, 2, 16, 40, 90, 33};
  const BlockPattern expected = random_pattern(geometry, .5, 7);
  const auto copy = std::make_shared<CountedCopy>(expected.bits());
  const BlockPattern pattern(geometry, 3, copy, .6);
  EXPECT_EQ(pattern.on(3, nullptr), copy);
  EXPECT_FALSE(pattern.denser_than(.7));  // the most that it may keep tells
  EXPECT_EQ(pattern.nbytes(), expected.nbytes());
  EXPECT_EQ(copy->reads, 0);
  EXPECT_EQ(pattern, expected);
  EXPECT_EQ(pattern.density(), expected.density());
  EXPECT_EQ(pattern.denser_than(.2), expected.density() > .2);
  EXPECT_EQ(copy->reads, 1);
}

INSTANTIATE_TEST_SUITE_P(KvLengths, FullPatternTest, testing::Values(0, 1, 16, 17, 63 * 16, 64 * 16, 65 * 16, 2111));

struct Window {
  int64_t q_len, kv_len, window, sinks;
  BlockSize block = 16;
};

// Token by token: key j is seen by query i if it lies in its window or among the sinks.
bool touches(const Window& c, int64_t q_block, int64_t kv_block) {
  const int64_t q = c.block.q, kv = c.block.kv;
  for (int64_t i = q_block * q; i < std::min((q_block + 1) * q, c.q_len); ++i) {
    for (int64_t j = kv_block * kv; j < std::min((kv_block + 1) * kv, c.kv_len); ++j) {
      const int64_t first = i - c.window / 2;
      if (j < c.sinks || (j >= first && j < first + c.window)) return true;
    }
  }
  return false;
}

class StreamingTest : public testing::TestWithParam<Window> {};

TEST_P(StreamingTest, CoversEveryBlockThatAQueryTouches) {
  const Window& c = GetParam();
  const PatternGeometry geometry{2, 2, c.block, c.q_len, c.kv_len, 0};
  const BlockPattern pattern = BlockPattern::streaming(geometry, c.window, c.sinks);
  for (int64_t row = 0; row < pattern.rows(); ++row) {
    for (int64_t block = 0; block < geometry.kv_blocks(); ++block) {
      EXPECT_EQ(pattern.test(row, block), touches(c, row % geometry.q_blocks(), block)) << row << ' ' << block;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, StreamingTest,
                         testing::Values(Window{100, 100, 1, 0}, Window{100, 100, 2, 0}, Window{100, 100, 3, 0},
                                         Window{100, 100, 16, 0}, Window{100, 100, 17, 1}, Window{100, 100, 33, 16},
                                         Window{100, 100, 34, 17}, Window{96, 96, 32, 0}, Window{100, 100, 199, 0},
                                         Window{100, 100, 200, 0}, Window{100, 100, 400, 50}, Window{100, 30, 8, 0},
                                         Window{100, 30, 8, 3}, Window{30, 100, 8, 90}, Window{1, 1, 1, 1},
                                         Window{300, 300, 64, 20, 32}, Window{300, 300, 64, 20, {16, 64}},
                                         Window{300, 250, 70, 20, {128, 32}}, Window{1100, 1100, 40, 0},
                                         Window{0, 50, 4, 4}, Window{50, 0, 4, 4}, Window{1040, 1040, 1000, 1030}),
                         [](const auto& test) { return "case" + std::to_string(test.index); });

// By its definition: some query of the block is a token of the generation.
bool holds_generation(const PatternGeometry& geometry, int64_t q_block) {
  for (int64_t i = q_block * geometry.block.q; i < std::min((q_block + 1) * geometry.block.q, geometry.q_len); ++i) {
    if (i >= geometry.prompt_length && geometry.prompt_length < geometry.kv_len) return true;
  }
  return false;
}

TEST(GenerationTest, FirstQueryBlockByItsDefinition) {
  for (const int q : {16, 32}) {
    for (const int64_t length : {0, 1, 15, 16, 17, 64, 90}) {
      for (const int64_t q_len : {length, int64_t{40}}) {
        for (int64_t prompt = 0; prompt <= length; ++prompt) {
          const PatternGeometry geometry{1, 1, {q, 16}, q_len, length, prompt};
          int64_t first = 0;
          while (first < geometry.q_blocks() && !holds_generation(geometry, first)) ++first;
          ASSERT_EQ(geometry.first_generation_q_block(), first) << prompt << " of " << length << ", block " << q;
        }
      }
    }
  }
}

TEST(GenerationTest, FillsItsRowsAndNothingElse) {
  for (const PatternGeometry& geometry : {PatternGeometry{2, 3, 16, 1000, 1000, 970},
                                          {2, 3, 16, 1024, 1024, 1000},
                                          {1, 2, 16, 1040, 1040, 1040},
                                          {1, 2, 32, 100, 100, 0},
                                          {1, 1, 256, 90, 90, 40},
                                          {2, 2, {64, 16}, 300, 300, 200},
                                          {0, 2, 16, 40, 40, 8}}) {
    PatternBuilder builder(geometry, "test");
    for (int64_t row = 0; row < builder.rows(); ++row) builder.set(row, row % geometry.kv_blocks());
    builder.fill_generation();
    const BlockPattern pattern = std::move(builder).build();
    for (int64_t row = 0; row < pattern.rows(); ++row) {
      const bool full = holds_generation(geometry, row % geometry.q_blocks());
      for (int64_t block = 0; block < 64 * geometry.row_words(); ++block) {
        const bool expected = block < geometry.kv_blocks() && (full || block == row % geometry.kv_blocks());
        ASSERT_EQ(pattern.test(row, block), expected) << row << ' ' << block;
      }
    }
  }
}

TEST(GenerationTest, WindowsMayLeaveItDense) {
  for (const int64_t prompt : {0, 200, 217, 300}) {
    const Window window{300, 300, 40, 20};
    const PatternGeometry geometry{2, 2, 16, 300, 300, prompt};
    const BlockPattern pattern = BlockPattern::streaming(geometry, window.window, window.sinks, "test", true);
    for (int64_t row = 0; row < pattern.rows(); ++row) {
      const int64_t q_block = row % geometry.q_blocks();
      for (int64_t block = 0; block < geometry.kv_blocks(); ++block) {
        const bool expected = holds_generation(geometry, q_block) || touches(window, q_block, block);
        ASSERT_EQ(pattern.test(row, block), expected) << prompt << ' ' << row << ' ' << block;
      }
    }
  }
}

TEST(StreamingErrorTest, TakesAnyWidth) {
  const PatternGeometry geometry{1, 1, 16, 100, 100, 0};
  const BlockPattern full = BlockPattern::full(geometry);
  EXPECT_EQ(BlockPattern::streaming(geometry, kHuge, 0), full);
  EXPECT_EQ(BlockPattern::streaming(geometry, 1, kHuge), full);
  EXPECT_EQ(BlockPattern::streaming(geometry, kHuge, kHuge), full);
}

TEST(StreamingErrorTest, NamesWhatIsWrong) {
  const PatternGeometry geometry{1, 1, 16, 100, 100, 0};
  EXPECT_ERROR(BlockPattern::streaming(geometry, 0, 4), kValue, "BlockPattern.streaming: window is 0, expected >= 1");
  EXPECT_ERROR(BlockPattern::streaming(geometry, -5, 0, "BlockPattern.sliding_window"), kValue,
               "BlockPattern.sliding_window: window is -5, expected >= 1");
  EXPECT_ERROR(BlockPattern::streaming(geometry, 4, -1), kValue, "BlockPattern.streaming: sinks is -1, expected >= 0");
}

TEST(PatternSetTest, CombinesBlockByBlock) {
  const PatternGeometry geometry{2, 3, {32, 16}, 100, 65 * 16 + 3, 7};
  const BlockPattern a = random_pattern(geometry, .4, 1), b = random_pattern(geometry, .5, 2);
  const std::vector<uint8_t> in_a = mask_of(a), in_b = mask_of(b);
  const std::pair<SetOperation, bool (*)(bool, bool)> cases[] = {
      {SetOperation::kUnion, [](bool x, bool y) { return x || y; }},
      {SetOperation::kIntersection, [](bool x, bool y) { return x && y; }},
      {SetOperation::kDifference, [](bool x, bool y) { return x && !y; }}};
  for (const auto& [operation, expected] : cases) {
    const BlockPattern result = a.combined(b, operation, "test");
    const std::vector<uint8_t> found = mask_of(result);
    for (size_t i = 0; i < found.size(); ++i) ASSERT_EQ(found[i] != 0, expected(in_a[i], in_b[i])) << i;
    EXPECT_EQ(result.geometry(), geometry);
  }
  EXPECT_EQ(a.combined(BlockPattern::full(geometry), SetOperation::kIntersection, "test"), a);
}

TEST(PatternSetTest, OnlyTheSameGeometryCombines) {
  const BlockPattern a(PatternGeometry{1, 2, 16, 40, 90, 33}, "test");
  const auto with = [&](const PatternGeometry& other) {
    a.combined(BlockPattern(other, "test"), SetOperation::kUnion, "test");
  };
  EXPECT_ERROR(with({2, 2, 16, 40, 90, 33}), kValue, "test: other has batch 2, expected 1");
  EXPECT_ERROR(with({1, 3, 16, 40, 90, 33}), kValue, "other has heads 3, expected 2");
  EXPECT_ERROR(with({1, 2, 32, 40, 90, 33}), kValue, "other has block_size 32, expected 16");
  EXPECT_ERROR(with({1, 2, {16, 32}, 40, 90, 33}), kValue, "other has kv_block_size 32, expected 16");
  EXPECT_ERROR(with({1, 2, 16, 41, 90, 33}), kValue, "other has q_len 41, expected 40");
  EXPECT_ERROR(with({1, 2, 16, 40, 91, 33}), kValue, "other has kv_len 91, expected 90");
  EXPECT_ERROR(with({1, 2, 16, 40, 90, 32}), kValue, "other has prompt_length 32, expected 33");
}

TEST(PatternSetTest, TakesRowsAndHeads) {
  const PatternGeometry geometry{3, 4, 16, 40, 70 * 16, 7};
  const BlockPattern all = random_pattern(geometry, .4, 3);
  const std::vector<int64_t> batch{2, 0}, heads{1, 1, 3};
  const BlockPattern part = all.taken(batch, heads);
  PatternGeometry expected = geometry;
  expected.batch = 2;
  expected.heads = 3;
  ASSERT_EQ(part.geometry(), expected);
  int64_t row = 0;
  for (const int64_t b : batch) {
    for (const int64_t h : heads) {
      for (int64_t i = 0; i < geometry.q_blocks(); ++i, ++row) {
        ASSERT_EQ(blocks_of(part, row), blocks_of(all, (b * geometry.heads + h) * geometry.q_blocks() + i)) << row;
      }
    }
  }
  EXPECT_EQ(all.taken({}, {0}).rows(), 0);
  EXPECT_ERROR(all.taken({3}, {0}), kValue, "BlockPattern: batch is 3, expected 0 ... 2");
  EXPECT_ERROR(all.taken({0}, {-1}), kValue, "BlockPattern: head is -1, expected 0 ... 3");
}

}  // namespace
}  // namespace sparsed
