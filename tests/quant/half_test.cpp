// binary16 against its definition: sign, 5 bits of exponent with bias 15, 10 bits of fraction.
#include "quant/half.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

namespace mamba_edge {
namespace {

// The value of a finite half's magnitude bits, from the definition.
double magnitude_of(uint32_t bits) {
  const int exponent = static_cast<int>(bits >> 10);
  const double fraction = bits & 0x3FF;
  return exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
}

// Nearest half by looking at its neighbours; ties to the even one; 65504 and half a step more
// overflow.
uint16_t nearest(float value) {
  const uint32_t sign = std::signbit(value) ? 0x8000u : 0u;
  const double x = std::fabs(static_cast<double>(value));
  uint32_t low = 0, high = 0x7C00;  // 0x7C00 stands for 65536, where the next half would be
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    (magnitude_of(middle) <= x ? low : high) = middle;
  }
  const double below = x - magnitude_of(low), above = magnitude_of(high) - x;
  const bool up = above < below || (above == below && high % 2 == 0);
  return static_cast<uint16_t>(sign | (up ? high : low));
}

TEST(Half, EveryHalfToFloat) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = half_to_float(static_cast<uint16_t>(bits));
    const uint32_t magnitude = bits & 0x7FFF;
    EXPECT_EQ(std::signbit(value), bits >> 15 != 0) << bits;
    if (magnitude > 0x7C00) {
      EXPECT_TRUE(std::isnan(value)) << bits;
    } else if (magnitude == 0x7C00) {
      EXPECT_TRUE(std::isinf(value)) << bits;
    } else {
      EXPECT_EQ(std::fabs(static_cast<double>(value)), magnitude_of(magnitude)) << bits;
    }
  }
}

TEST(Half, EveryHalfThereAndBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const uint16_t back = float_to_half(half_to_float(half));
    if ((bits & 0x7FFF) > 0x7C00) {
      EXPECT_GT(back & 0x7FFF, 0x7C00) << bits;  // some NaN, of the same sign
      EXPECT_EQ(back >> 15, half >> 15) << bits;
    } else {
      EXPECT_EQ(back, half);
    }
  }
}

// Between any two neighbours: the middle, which goes to the even one, and the floats on both sides
// of it.
TEST(Half, EveryTie) {
  for (uint32_t bits = 0; bits < 0x7C00; ++bits) {
    const double exact = (magnitude_of(bits) + magnitude_of(bits + 1)) / 2;
    const auto middle = static_cast<float>(exact);
    ASSERT_EQ(static_cast<double>(middle), exact);
    const uint32_t even = bits + bits % 2;
    for (const float sign : {1.0f, -1.0f}) {
      const uint32_t s = sign < 0 ? 0x8000u : 0u;
      EXPECT_EQ(float_to_half(sign * middle), s | even) << bits;
      EXPECT_EQ(float_to_half(sign * std::nextafter(middle, 0.0f)), s | bits) << bits;
      EXPECT_EQ(float_to_half(sign * std::nextafter(middle, INFINITY)), s | (bits + 1)) << bits;
    }
  }
}

TEST(Half, RandomFloats) {
  std::mt19937 random(11);
  for (int i = 0; i < 1000000; ++i) {
    // Half of them anywhere, half where halves are.
    uint32_t bits = static_cast<uint32_t>(random());
    if (i % 2 == 0) {
      bits = (bits & 0x807FFFFFu) | (100 + static_cast<uint32_t>(random() % 46)) << 23;
    }
    const auto value = std::bit_cast<float>(bits);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(half_to_float(float_to_half(value))));
    } else if (std::isinf(value)) {
      EXPECT_EQ(half_to_float(float_to_half(value)), value);
    } else {
      ASSERT_EQ(float_to_half(value), nearest(value)) << std::hexfloat << value;
    }
  }
}

TEST(Half, Extremes) {
  EXPECT_EQ(float_to_half(65504.0f), 0x7BFF);
  EXPECT_EQ(float_to_half(std::nextafter(65520.0f, 0.0f)), 0x7BFF);
  EXPECT_EQ(float_to_half(65520.0f), 0x7C00);
  EXPECT_EQ(float_to_half(-3e38f), 0xFC00);
  EXPECT_EQ(float_to_half(0x1p-25f), 0);  // a tie between 0 and the smallest half
  EXPECT_EQ(float_to_half(std::nextafter(0x1p-25f, 1.0f)), 1);
  EXPECT_EQ(float_to_half(1e-45f), 0);
  EXPECT_EQ(float_to_half(-0.0f), 0x8000);
  EXPECT_EQ(float_to_half(std::nextafter(0x1p-14f, 0.0f)),
            0x0400);  // subnormal rounds up to normal
}

TEST(Half, EveryBfloat16) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    EXPECT_EQ(std::bit_cast<uint32_t>(bfloat16_to_float(static_cast<uint16_t>(bits))), bits << 16);
  }
}

}  // namespace
}  // namespace mamba_edge
