// Keys and values that stay packed: the bits of attention that packs them, in whatever order they were put.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "attention_cases.h"
#include "cpu/attention.h"
#include "cpu/packed_key_values.h"
#include "cpu/parallel.h"
#include "cpu_targets.h"
#include "expect_error.h"
#include "random_array.h"

namespace sparsed {
namespace {

class PackedKeyValues : public testing::TestWithParam<cpu::Target> {
 protected:
  const cpu::AttentionKernels& kernels() const { return GetParam().kernels->attention; }
  std::vector<DType> dtypes() const {
    if (GetParam().bf16_only) return {DType::kBFloat16};
    return {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  }
  cpu::PackedKeyValues empty(const Call& call) const {
    return {kernels(), call.params.q.dtype, cpu::kv_shape(call.params), call.params.key_mask};
  }
};

// The rows of `view` at `positions`, one after the other.
struct Rows : RandomArray {
  Rows(const TensorView& from, const std::vector<int64_t>& positions)
      : RandomArray({from.shape[0], from.shape[1], static_cast<int64_t>(positions.size()), from.shape[3]}, from.dtype,
                    1) {
    const size_t bytes = static_cast<size_t>(from.shape[3]) * dtype_size(from.dtype);
    for (int64_t b = 0; b < from.shape[0]; ++b) {
      for (int64_t h = 0; h < from.shape[1]; ++h) {
        for (size_t i = 0; i < positions.size(); ++i) {
          std::memcpy(view.row(b, h, static_cast<int64_t>(i)), from.row(b, h, positions[i]), bytes);
        }
      }
    }
  }
};

void put_rows(cpu::PackedKeyValues& packed, const Call& call, const std::vector<int64_t>& positions) {
  const Rows k(call.k.view, positions), v(call.v.view, positions);
  packed.put(positions.data(), k.view, v.view);
}

// All positions, in parts: runs of up to 40 neighbours, single ones and ones far apart, in any order.
std::vector<std::vector<int64_t>> random_parts(int64_t length, unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<std::vector<int64_t>> parts;
  for (int64_t begin = 0; begin < length;) {
    const int64_t end = std::min(length, begin + 1 + static_cast<int64_t>(generator() % 40));
    std::vector<int64_t> run(static_cast<size_t>(end - begin));
    std::iota(run.begin(), run.end(), begin);
    if (!parts.empty() && generator() % 3 == 0) {
      parts.back().insert(parts.back().end(), run.begin() + static_cast<std::ptrdiff_t>(run.size() / 2), run.end());
      run.resize(run.size() / 2);
    }
    if (!run.empty()) parts.push_back(run);
    begin = end;
  }
  for (auto& part : parts) std::sort(part.begin(), part.end());
  std::shuffle(parts.begin(), parts.end(), generator);
  return parts;
}

void expect_bits_of_attention(const cpu::AttentionKernels& kernels, const cpu::PackedKeyValues& packed,
                              const Call& call, const Case& c, const std::string& what) {
  Call expected(c, call.params.q.dtype);
  cpu::attention(kernels, expected.params, nullptr);
  AttentionParams params = call.params;  // without keys and values
  params.k = params.v = TensorView{};
  params.key_mask = nullptr;
  packed.attention(params);
  EXPECT_EQ(call.out.storage, expected.out.storage) << what;
  EXPECT_EQ(call.lse, expected.lse) << what;
}

TEST_P(PackedKeyValues, HaveTheBitsOfAttentionAndMatchTheReference) {
  for (DType dtype : dtypes()) {
    for (const Case& c : random_cases(16)) {
      const Call call(c, dtype);
      cpu::PackedKeyValues packed = empty(call);
      packed.put(nullptr, call.k.view, call.v.view);
      const std::string what = message(dtype_name(dtype), " seed ", c.seed);
      expect_bits_of_attention(kernels(), packed, call, c, what);
      expect_matches_reference(call, nullptr, what);
    }
  }
}

TEST_P(PackedKeyValues, AreTheSameInAnyOrderOfUpdates) {
  for (DType dtype : dtypes()) {
    for (const Case& c : random_cases(16)) {
      const Call call(c, dtype);
      cpu::PackedKeyValues packed = empty(call);
      if (c.seed % 200 == 0) {  // others before, or nothing
        Case other = c;
        other.seed += 50;
        const Call before(other, dtype);
        packed.put(nullptr, before.k.view, before.v.view);
      }
      for (const auto& part : random_parts(c.kv_len, c.seed)) put_rows(packed, call, part);
      expect_bits_of_attention(kernels(), packed, call, c, message(dtype_name(dtype), " seed ", c.seed));
    }
  }
}

TEST_P(PackedKeyValues, EveryPlaceInAGroupCanBePutAlone) {
  for (DType dtype : dtypes()) {
    for (int64_t head_dim : {16, 40, 72, 256}) {
      const Case c{1, 1, 2, 3, 67, head_dim, false, true, 5};
      const Call call(c, dtype);
      cpu::PackedKeyValues packed = empty(call);
      for (int64_t key = c.kv_len; key-- > 0;) put_rows(packed, call, {key});
      expect_bits_of_attention(kernels(), packed, call, c, message(dtype_name(dtype), " head_dim ", head_dim));
    }
  }
}

TEST_P(PackedKeyValues, MaskedValuesDoNotReachTheOutput) {
  const Case c{2, 2, 1, 20, 130, 32, true, false, 6};
  for (DType dtype : dtypes()) {
    Call call(c, dtype);
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t key = 0; key < c.kv_len; ++key) {
        if (call.mask[static_cast<size_t>(b * c.kv_len + key)]) continue;
        store_float(call.v.view.row(b, 1, key), dtype, 3, std::numeric_limits<float>::quiet_NaN());
        store_float(call.k.view.row(b, 0, key), dtype, 5, std::numeric_limits<float>::infinity());
      }
    }
    cpu::PackedKeyValues packed = empty(call);
    for (const auto& part : random_parts(c.kv_len, 3)) put_rows(packed, call, part);
    expect_bits_of_attention(kernels(), packed, call, c, dtype_name(dtype));
  }
}

TEST_P(PackedKeyValues, PositionsThatWereNeverPutAreRefused) {
  const Case c{1, 1, 1, 4, 50, 16, false, false, 7};
  const Call call(c, DType::kBFloat16);
  cpu::PackedKeyValues packed = empty(call);
  EXPECT_ERROR(packed.attention(call.params), kValue, "position 0 was never put, expected all 50 positions");
  std::vector<int64_t> positions(50);
  std::iota(positions.begin(), positions.end(), 0);
  positions.erase(positions.begin() + 33);
  put_rows(packed, call, positions);
  EXPECT_ERROR(packed.attention(call.params), kValue, "position 33 was never put");
  put_rows(packed, call, {33});
  expect_bits_of_attention(kernels(), packed, call, c, "all");
}

TEST_P(PackedKeyValues, HaveTheSameBitsForEveryThreadCount) {
  const Case c{2, 2, 2, 70, 500, 64, true, false, 8};
  const int before = cpu::num_threads();
  for (int threads : {1, 2, 3, 8}) {
    cpu::set_num_threads(threads);
    const Call call(c, DType::kBFloat16);
    cpu::PackedKeyValues packed = empty(call);
    for (const auto& part : random_parts(c.kv_len, 9)) put_rows(packed, call, part);
    packed.attention(call.params);
    cpu::set_num_threads(1);
    expect_bits_of_attention(kernels(), packed, call, c, message(threads, " threads"));
  }
  cpu::set_num_threads(before);
}

TEST_P(PackedKeyValues, CountTheirBytes) {
  const Case c{2, 3, 1, 1, 33, 48, false, false, 9};
  for (DType dtype : dtypes()) {
    const Call call(c, dtype);
    const int64_t padded = ceil_div(33, kernels().group_keys) * kernels().group_keys;
    const int64_t columns = GetParam().name.starts_with("amx") ? 64 : 48;
    const int64_t size = GetParam().bf16_only ? 2 : 4;
    EXPECT_EQ(empty(call).nbytes(), static_cast<size_t>(2 * 2 * 3 * padded * columns * size));
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, PackedKeyValues, testing::ValuesIn(cpu::targets()),
                         [](const auto& info) { return cpu::target_name(info.param); });

}  // namespace
}  // namespace sparsed
