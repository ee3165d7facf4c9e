// What each family of CUDA kernels must do, by its source on the emulator and the float64 reference. A family's test
// file has a struct with attention(call, lists, how), attention_and_scores(call, select, how), cases(), the narrowest
// head_dim, and the block sizes whose full pattern has dense's bits, and instantiates the suite with it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "cuda_calls.h"

namespace sparsed::cuda {

struct Case16 {
  DType dtype;
  Case shape;
  bool misaligned = false;  // k: every second row starts 8 bytes off, so it cannot be copied by 16 bytes
};

inline Call make_call(const Case16& c) {
  Call call(c.shape, c.dtype);
  if (c.misaligned) {
    const Shape4 shape = call.k.view.shape;
    call.k = RandomArray({shape[0], shape[1], shape[2], shape[3] + 4}, c.dtype, c.shape.seed + 1);
    call.k.view.shape = shape;
    call.params.k = call.k.view;
  }
  return call;
}

inline std::string name_of(const Case16& c) {
  return message(dtype_name(c.dtype), " head_dim ", c.shape.head_dim, " seed ", c.shape.seed);
}

// One of several ways, by a number.
inline How how_of(unsigned number) {
  return {number % 2 ? Landing::kLate : Landing::kEarly, number, 1 + static_cast<int>(number % 3)};
}

// Attention over `pattern`.
template <class Family>
void expect_sparse_matches_reference(Call& call, const BlockPattern& pattern, const How& how, const std::string& what) {
  const Lists lists(pattern);
  Family::attention(call, &lists, how);
  expect_matches_reference(call, &pattern, what);
}

// What no kernel writes is NaN in both.
inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

template <class Family>
class CudaKernels : public testing::Test {};
TYPED_TEST_SUITE_P(CudaKernels);

TYPED_TEST_P(CudaKernels, DenseMatchesReference) {
  for (const Case16& c : TypeParam::cases()) {
    for (unsigned number : {c.shape.seed, c.shape.seed + 1}) {
      Call call = make_call(c);
      TypeParam::attention(call, nullptr, how_of(number));
      expect_matches_reference(call, nullptr, name_of(c));
    }
  }
}

TYPED_TEST_P(CudaKernels, SparseMatchesReference) {
  unsigned number = 0;
  for (int block_size : {16, 32, 64, 128, 256}) {
    for (const Case16& c : TypeParam::cases()) {
      if ((c.shape.seed + static_cast<unsigned>(block_size) / 16) % 2) continue;
      Call call = make_call(c);
      expect_sparse_matches_reference<TypeParam>(call, random_pattern(c.shape, block_size, 40), how_of(++number),
                                                 message(name_of(c), " block ", block_size));
    }
  }
}

TYPED_TEST_P(CudaKernels, SelectionSumsMatchReference) {
  unsigned number = 0;
  for (int block_size : {16, 32, 64, 128, 256}) {
    for (const Case16& c : TypeParam::cases()) {
      for (SelectionRule rule : {SelectionRule::kPaper, SelectionRule::kReference}) {
        if ((++number + static_cast<unsigned>(block_size) / 16) % 3) continue;
        Case16 square = c;
        const int64_t length = std::max(c.shape.q_len, c.shape.kv_len) * 2 / 3 + 1;
        square.shape.q_len = square.shape.kv_len = length;
        Call call = make_call(square);
        SelectParams select;
        select.block_size = block_size;
        select.rule = rule;
        select.prompt_length = length * (number % 7) / 7;
        select.scale = number % 4 ? call.params.scale : .3f;
        expect_selection(call, select, TypeParam::attention_and_scores(call, select, how_of(number)),
                         message(name_of(c), " block ", block_size, " rule ", static_cast<int>(rule), " prompt ",
                                 select.prompt_length, " of ", length));
      }
    }
  }
}

// A selection alone gives the scores that come with an output.
TYPED_TEST_P(CudaKernels, SelectionAloneHasTheSameScores) {
  unsigned number = 0;
  for (const int64_t head_dim : {64, 128}) {
    for (SelectionRule rule : {SelectionRule::kPaper, SelectionRule::kReference}) {
      for (const bool other_scale : {false, true}) {
        const int64_t length = number % 3 ? 200 : 700;  // 700: more tiles than a ring holds
        const Case shape{1, 1, 2, length, length, head_dim, number / 3 % 2 == 0, false, 21};
        Call with(shape, DType::kBFloat16), without(shape, DType::kBFloat16);
        without.params = selection_alone(without.params);
        SelectParams select;
        select.block_size = 16 << number % 5;
        select.rule = rule;
        select.prompt_length = length / 3;
        select.scale = other_scale ? .3f : with.params.scale;
        const Selected expected = TypeParam::attention_and_scores(with, select, how_of(number));
        const Selected found = TypeParam::attention_and_scores(without, select, how_of(number + 1));
        EXPECT_TRUE(same_bits(found.scores, expected.scores)) << number;
        EXPECT_TRUE(same_bits(found.generation, expected.generation)) << number;
        ++number;
      }
    }
  }
}

TYPED_TEST_P(CudaKernels, FullPatternHasTheBitsOfDense) {
  for (int block_size : TypeParam::kDenseBlocks) {
    const Case shape{1, 1, 2, 150, 390, 128, true, false, 12};
    Call dense(shape, DType::kBFloat16), sparse(shape, DType::kBFloat16);
    const Lists lists(random_pattern(shape, block_size, 100));
    TypeParam::attention(dense, nullptr, {});
    TypeParam::attention(sparse, &lists, {});
    EXPECT_EQ(dense.out.storage, sparse.out.storage) << block_size;
    EXPECT_EQ(dense.lse, sparse.lse) << block_size;
  }
}

// A last block of which a few keys exist, listed alone and with others.
TYPED_TEST_P(CudaKernels, LastBlockMayBeShort) {
  for (int block_size : {16, 32, 64, 128, 256}) {
    for (const int64_t tail : {1, 15, 66}) {
      if (tail >= block_size) continue;
      PatternBuilder builder({1, 2, block_size, 40, block_size + tail, 0}, "test");
      for (int64_t row = 0; row < builder.rows(); ++row) {
        builder.set(row, 1);
        if (row % 2) builder.set(row, 0);
      }
      const BlockPattern pattern = std::move(builder).build();
      Call call({1, 1, 2, 40, block_size + tail, TypeParam::kNarrow, false, false, 23}, DType::kBFloat16);
      expect_sparse_matches_reference<TypeParam>(call, pattern, {}, message("block ", block_size, ", tail ", tail));
    }
  }
}

TYPED_TEST_P(CudaKernels, EmptyRowsGiveZero) {
  for (int block_size : {32, 128}) {
    const Case shape{1, 1, 2, 130, 130, 64, false, false, 11};
    Call call(shape, DType::kBFloat16);
    const Lists lists(random_pattern(shape, block_size, 0));
    TypeParam::attention(call, &lists, {});
    for (float lse : call.lse) EXPECT_EQ(lse, -INFINITY);
    for (int64_t i = 0; i < 2 * 130 * 64; ++i) EXPECT_EQ(load_float(call.out.view.data, DType::kBFloat16, i), 0.f);
  }
}

TYPED_TEST_P(CudaKernels, HiddenKeysMayHoldAnything) {
  const Case shape{1, 1, 1, 40, 300, 64, true, false, 22};
  Call call(shape, DType::kBFloat16), poisoned(shape, DType::kBFloat16);
  for (int64_t key = 0; key < 300; ++key) {
    if (call.mask[static_cast<size_t>(key)]) continue;
    for (int64_t d = 0; d < 64; ++d) {
      store_float(poisoned.k.view.row(0, 0, key), DType::kBFloat16, d, NAN);
      store_float(poisoned.v.view.row(0, 0, key), DType::kBFloat16, d, INFINITY);
    }
  }
  TypeParam::attention(call, nullptr, {});
  TypeParam::attention(poisoned, nullptr, {});
  EXPECT_EQ(call.out.storage, poisoned.out.storage);
}

TYPED_TEST_P(CudaKernels, LargeScoresDoNotOverflow) {
  Call call({1, 1, 1, 40, 200, TypeParam::kNarrow, false, false, 13}, DType::kBFloat16);
  call.params.scale = 40.f;  // scores of several hundred
  TypeParam::attention(call, nullptr, {});
  std::vector<double> out(static_cast<size_t>(40 * TypeParam::kNarrow)), lse(40);
  reference::attention(call.params, nullptr, out.data(), lse.data());
  for (size_t i = 0; i < out.size(); ++i) {
    EXPECT_NEAR(out[i], load_float(call.out.view.data, DType::kBFloat16, static_cast<int64_t>(i)), 4e-2);
  }
}

TYPED_TEST_P(CudaKernels, NanReachesOnlyTheRowsThatSeeIt) {
  Call call({1, 1, 1, 64, 256, TypeParam::kNarrow, false, false, 14}, DType::kBFloat16);
  store_float(call.q.view.row(0, 0, 5), DType::kBFloat16, 3, NAN);
  TypeParam::attention(call, nullptr, {});
  for (int64_t i = 0; i < 64; ++i) {
    for (int64_t d = 0; d < TypeParam::kNarrow; ++d) EXPECT_EQ(std::isnan(call.out.at(0, 0, i, d)), i == 5) << i;
  }
}

REGISTER_TYPED_TEST_SUITE_P(CudaKernels, DenseMatchesReference, SparseMatchesReference, SelectionSumsMatchReference,
                            SelectionAloneHasTheSameScores, FullPatternHasTheBitsOfDense, LastBlockMayBeShort,
                            EmptyRowsGiveZero, HiddenKeysMayHoldAnything, LargeScoresDoNotOverflow,
                            NanReachesOnlyTheRowsThatSeeIt);

}  // namespace sparsed::cuda
