// How four inputs of a row, int8, are laid out for the products of dot_*.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sparsed::cpu {
namespace {

// As bytes. kFlip is 0x80808080 for unsigned bytes, x + 128: sums then start at -128 times the sum of w.
template <uint32_t kFlip>
struct InputBytes {
  static constexpr int kGroupBytes = 4;
  static constexpr bool kShifted = kFlip != 0;

  static void lay_out(const int8_t* group, std::byte* to) {
    uint32_t bytes;
    __builtin_memcpy(&bytes, group, sizeof bytes);
    bytes ^= kFlip;
    __builtin_memcpy(to, &bytes, sizeof bytes);
  }
};

using SignedInputs = InputBytes<0>;
using ShiftedInputs = InputBytes<0x80808080u>;

// In 16 bits, 0 and 2, then 1 and 3.
struct InputPairs {
  static constexpr int kGroupBytes = 8;
  static constexpr bool kShifted = false;

  static void lay_out(const int8_t* group, std::byte* to) {
    const int16_t pairs[] = {group[0], group[2], group[1], group[3]};
    __builtin_memcpy(to, pairs, sizeof pairs);
  }
};

}  // namespace
}  // namespace sparsed::cpu
