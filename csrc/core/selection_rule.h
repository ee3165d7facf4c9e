// The parts of the selection rule that run for each row of scores, as constant expressions: processors of every kind
// compile these.
#pragma once

#include <cstdint>

namespace sparsed {

// Bits of a float as an integer that orders as scores do: NaN is below -infinity, and -0 equals 0.
constexpr uint32_t ordered_score(uint32_t bits) {
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0;
  if (bits == 0x80000000u) bits = 0;
  return bits ^ ((bits >> 31) ? 0xffffffffu : 0x80000000u);
}

// k = min(n, max(1, int(n * rho) + 1)); 0 of 0.
constexpr int64_t keep_count(int64_t candidates, double rho) {
  const int64_t count = static_cast<int64_t>(static_cast<double>(candidates) * rho) + 1;
  return count < candidates ? count : candidates;
}

// One top-k: of the live blocks [begin, end) the keep_count largest, the lower index first among equals; those below
// marked_end are kept.
struct SelectRange {
  int64_t begin, end, marked_end;
  bool generation;  // by the scores under the softmax over generation keys alone
};

struct SelectRanges {
  SelectRange range[2] = {};
  int count = 0;
};

}  // namespace sparsed
