#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/float16.h"

namespace sparsed {
namespace {

// A 16-bit format by its numbers, so that values and rounding can be computed in float64 without bit tricks.
struct Format {
  const char* name;
  DType dtype;
  int mantissa_bits;
  int min_exponent;  // of the smallest normal number
  double largest;
  float (*widen)(uint16_t);
  uint16_t (*narrow)(float);
};

const Format kFloat16{"float16", DType::kFloat16, 10, -14, 65504.0, f16_to_float, float_to_f16};
const Format kBFloat16{"bfloat16", DType::kBFloat16, 7, -126, 0x1.FEp127, bf16_to_float, float_to_bf16};

double value_of(const Format& format, uint16_t bits) {
  const int exponent_bits = 15 - format.mantissa_bits;
  const int exponent = (bits >> format.mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << format.mantissa_bits) - 1);
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  }
  const int implicit = exponent ? 1 << format.mantissa_bits : 0;
  const int power = format.min_exponent + std::max(exponent, 1) - 1 - format.mantissa_bits;
  return sign * std::ldexp(implicit + mantissa, power);
}

// Nearest number of the format, ties to the even mantissa, too large ones to infinity.
double rounded(const Format& format, float value) {
  if (!std::isfinite(value) || value == 0) return value;
  const int exponent = std::max(std::ilogb(value), format.min_exponent) - format.mantissa_bits;
  const double nearest = std::ldexp(std::nearbyint(std::ldexp(static_cast<double>(value), -exponent)), exponent);
  if (std::abs(nearest) <= format.largest) return nearest;
  return std::copysign(std::numeric_limits<double>::infinity(), nearest);
}

void expect_same(double found, double expected, const std::string& what) {
  if (std::isnan(expected)) {
    EXPECT_TRUE(std::isnan(found)) << what;
    return;
  }
  EXPECT_EQ(found, expected) << what;
  EXPECT_EQ(std::signbit(found), std::signbit(expected)) << what;
}

class Float16Test : public testing::TestWithParam<Format> {};

TEST_P(Float16Test, WidensEveryValue) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint16_t value = static_cast<uint16_t>(bits);
    expect_same(GetParam().widen(value), value_of(GetParam(), value), std::to_string(bits));
  }
}

TEST_P(Float16Test, NarrowsItsOwnValuesToThemselves) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = GetParam().widen(static_cast<uint16_t>(bits));
    const uint16_t found = GetParam().narrow(value);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(GetParam().widen(found))) << bits;
    } else {
      EXPECT_EQ(found, bits);
    }
  }
}

TEST_P(Float16Test, RoundsMidpointsToEvenAndTheirNeighboursToTheNearest) {
  for (uint32_t bits = 0; bits < 0x7fff; ++bits) {
    const float low = GetParam().widen(static_cast<uint16_t>(bits));
    const float high = GetParam().widen(static_cast<uint16_t>(bits + 1));
    if (!std::isfinite(low) || !std::isfinite(high)) continue;
    const float middle = static_cast<float>((static_cast<double>(low) + high) / 2);
    for (const float value : {std::nextafter(middle, low), middle, std::nextafter(middle, high)}) {
      for (const float signed_value : {value, -value}) {
        expect_same(GetParam().widen(GetParam().narrow(signed_value)), rounded(GetParam(), signed_value),
                    std::to_string(signed_value));
      }
    }
  }
}

TEST_P(Float16Test, RoundsRandomBits) {
  std::mt19937 generator(7);
  for (int i = 0; i < 200000; ++i) {
    const float value = bits_to_float(static_cast<uint32_t>(generator()));
    expect_same(GetParam().widen(GetParam().narrow(value)), rounded(GetParam(), value), std::to_string(value));
  }
}

TEST_P(Float16Test, RoundsTheEdges) {
  const float largest = static_cast<float>(GetParam().largest);
  const float step = std::ldexp(1.f, std::ilogb(largest) - GetParam().mantissa_bits);
  const float limits[] = {0.f,
                          -0.f,
                          largest,
                          largest + step / 4,
                          largest + step / 2,
                          std::numeric_limits<float>::max(),
                          std::numeric_limits<float>::min(),
                          std::numeric_limits<float>::denorm_min(),
                          std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()};
  for (const float value : limits) {
    expect_same(GetParam().widen(GetParam().narrow(value)), rounded(GetParam(), value), std::to_string(value));
  }
}

TEST_P(Float16Test, NanStaysNanWhateverItsPayload) {
  for (const uint32_t bits : {0x7f800001u, 0x7fffffffu, 0x7fc00000u, 0xff800001u, 0xffffffffu, 0x7f801fffu}) {
    EXPECT_TRUE(std::isnan(GetParam().widen(GetParam().narrow(bits_to_float(bits))))) << bits;
  }
}

TEST_P(Float16Test, LoadsAndStoresElements) {
  std::array<uint16_t, 3> data{0xffff, 0, 0xffff};
  store_float(data.data(), GetParam().dtype, 1, -1.5f);
  EXPECT_EQ(load_float(data.data(), GetParam().dtype, 1), -1.5f);
  EXPECT_EQ(data[0], 0xffff);
  EXPECT_EQ(data[2], 0xffff);
}

INSTANTIATE_TEST_SUITE_P(Formats, Float16Test, testing::Values(kFloat16, kBFloat16),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(Float32Test, LoadsAndStoresElements) {
  std::array<float, 3> data{1.f, 2.f, 3.f};
  store_float(data.data(), DType::kFloat32, 1, 0.1f);
  EXPECT_EQ(load_float(data.data(), DType::kFloat32, 1), 0.1f);
  EXPECT_EQ(data[0], 1.f);
  EXPECT_EQ(data[2], 3.f);
}

}  // namespace
}  // namespace sparsed
