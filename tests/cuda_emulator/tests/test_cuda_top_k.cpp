// The selection rule's CUDA kernels on the emulator, against the CPU's rule: the same patterns bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "core/selection.h"
#include "cuda/selection/top_k.cuh"
#include "machine.h"

namespace sparsed::cuda {
namespace {

using emulator::Launch;

template <class T>
emulator::Region region_of(const std::vector<T>& array, bool writable) {
  return {array.data(), array.size() * sizeof(T), writable};
}

std::vector<uint32_t> undefined_words(size_t size) { return std::vector<uint32_t>(size, 0xdeadbeefu); }

// Scores with many ties, and now and then something that is not a number.
std::vector<float> hard_scores(size_t count, unsigned seed) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const float special[] = {0.f, -0.f, kInf, -kInf, NAN, 1e-42f, 3e38f, -1.f};
  std::mt19937 generator(seed);
  std::vector<float> scores(count);
  for (float& score : scores) {
    const unsigned kind = generator() % 16;
    score = kind < 8 && seed % 2 ? special[kind] : static_cast<float>(generator() % 9) / 4.f;
  }
  return scores;
}

TEST(CudaTopK, PatternsAreThoseOfTheCpu) {
  unsigned seed = 0;
  for (const int64_t blocks : {1, 5, 31, 32, 33, 64, 100, 200}) {
    for (const SelectionRule rule : {SelectionRule::kPaper, SelectionRule::kReference}) {
      for (const bool isolate : {true, false}) {
        for (const double rho : {0., .1, .3, .5, 1.}) {
          ++seed;
          constexpr int64_t kBatch = 2, kHeads = 2;
          const int64_t kv_len = blocks * 16 - seed % 16, q_blocks = std::min<int64_t>(blocks, 3);
          const int64_t rows = kBatch * kHeads * q_blocks;
          SelectParams select;
          select.block_size = 16;
          select.rho = rho;
          select.rule = rule;
          select.isolate = isolate;
          select.prompt_length = kv_len * (seed % 6) / 5;
          const std::vector<float> scores = hard_scores(static_cast<size_t>(rows * blocks), seed);
          const std::vector<float> generation = hard_scores(static_cast<size_t>(rows * blocks), seed + 1000);
          std::mt19937 random(seed);
          std::vector<uint8_t> mask(static_cast<size_t>(kBatch * kv_len));
          for (uint8_t& m : mask) m = random() % 12 == 0;

          std::vector<uint8_t> live(static_cast<size_t>(kBatch * blocks), 77);
          Launch launch;
          launch.blocks = 2;
          launch.threads = 64;
          launch.memory = {region_of(mask, false), region_of(live, true)};
          emulator::run(launch, [&] {
            live_blocks({mask.data(), live.data(), kBatch, static_cast<int>(kv_len), static_cast<int>(blocks), 16});
          });

          PatternBuilder builder({kBatch, kHeads, 16, q_blocks * 16, kv_len, select.prompt_length}, "test");
          for (int64_t row = 0; row < rows; ++row) {
            if (row % q_blocks >= seed % 5) {
              for (int64_t block = 0; block < blocks; ++block) builder.set(row, block);
              continue;
            }
            select_row(select, kv_len, scores.data() + row * blocks, generation.data() + row * blocks,
                       live.data() + row / (kHeads * q_blocks) * blocks, builder.row(row));
          }
          const BlockPattern expected = std::move(builder).build();

          const int words = static_cast<int>((blocks + 63) / 64 * 2);
          std::vector<uint32_t> bits = undefined_words(static_cast<size_t>(rows * words));
          TopArgs args;
          args.scores = scores.data();
          args.generation = generation.data();
          args.live = live.data();
          args.bits = bits.data();
          args.rows = static_cast<int>(rows);
          args.batch_rows = static_cast<int>(kHeads * q_blocks);
          args.kv_blocks = static_cast<int>(blocks);
          args.words = words;
          args.rho = rho;
          args.ranges = select_ranges(select, kv_len);
          args.q_blocks = static_cast<int>(q_blocks);
          args.first_dense = static_cast<int>(seed % 5);  // at least q_blocks: no row is dense
          launch.memory = {region_of(scores, false), region_of(generation, false), region_of(live, false),
                           region_of(bits, true)};
          emulator::run(launch, [&] { top_rows(args); });

          std::vector<int32_t> counts(static_cast<size_t>(rows)), indices(static_cast<size_t>(rows * blocks));
          launch.memory = {region_of(bits, false), region_of(counts, true), region_of(indices, true)};
          emulator::run(launch, [&] {
            list_blocks({bits.data(), counts.data(), indices.data(), static_cast<int>(rows), words, blocks});
          });

          for (int64_t row = 0; row < rows; ++row) {
            std::vector<int32_t> found, wanted;
            for (int32_t i = 0; i < counts[static_cast<size_t>(row)]; ++i) {
              found.push_back(indices[static_cast<size_t>(row * blocks + i)]);
            }
            for_each_block(expected.row(row), expected.geometry().row_words(),
                           [&](int64_t block) { wanted.push_back(static_cast<int32_t>(block)); });
            ASSERT_EQ(found, wanted) << "row " << row << " of " << blocks << " blocks, seed " << seed;
          }
          for (int64_t row = 0; row < rows; ++row) {
            for (int64_t block = 0; block < 32 * words; ++block) {
              const bool bit = bits[static_cast<size_t>(row * words + block / 32)] >> (block % 32) & 1u;
              ASSERT_EQ(bit, block < blocks && expected.test(row, block));
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace sparsed::cuda
