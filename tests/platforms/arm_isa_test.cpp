// The conversions of the Arm tables that no kernel shows alone.
#if defined(__aarch64__)
#include "platforms/arm/neon_isa.h"

#include <gtest/gtest.h>

#include <cmath>

namespace mamba_edge {
namespace {

uint16_t half(float value) {
  alignas(64) float x[16] = {};
  alignas(32) uint16_t h[16];
  x[11] = value;
  NeonIsa::to_f16(NeonIsa::V::load(x), h);
  return h[11];
}

// Every finite binary16 and both infinities come back, in every lane, and so does what lies between
// two neighbours: the nearer one, of two equally near ones the one with an even last bit.
TEST(ArmIsa, ToHalfRoundsToNearestEven) {
  for (uint32_t first = 0; first < 0x7c00; first += 16) {
    for (const uint32_t sign : {0u, 0x8000u}) {
      alignas(64) float here[16], next[16], x[16];
      alignas(32) uint16_t in[16], above[16], out[16];
      for (uint32_t i = 0; i < 16; ++i) {
        in[i] = static_cast<uint16_t>(sign | (first + i));
        above[i] = static_cast<uint16_t>(in[i] + 1);
      }
      NeonIsa::from_f16(in).store(here);
      NeonIsa::from_f16(above).store(next);
      NeonIsa::to_f16(NeonIsa::V::load(here), out);
      for (int i = 0; i < 16; ++i) ASSERT_EQ(out[i], in[i]);
      for (int i = 0; i < 16; ++i) {
        // Above the largest finite number the next one would be 65536.
        if (std::isinf(next[i])) next[i] = std::copysign(65536.0f, next[i]);
        x[i] = (here[i] + next[i]) / 2;  // exact
      }
      NeonIsa::to_f16(NeonIsa::V::load(x), out);
      for (int i = 0; i < 16; ++i) ASSERT_EQ(out[i], in[i] % 2 == 0 ? in[i] : above[i]) << x[i];
      alignas(64) float below[16];
      for (int i = 0; i < 16; ++i) below[i] = std::nextafter(x[i], here[i]);
      NeonIsa::to_f16(NeonIsa::V::load(below), out);
      for (int i = 0; i < 16; ++i) ASSERT_EQ(out[i], in[i]) << below[i];
      for (int i = 0; i < 16; ++i) x[i] = std::nextafter(x[i], next[i]);
      NeonIsa::to_f16(NeonIsa::V::load(x), out);
      for (int i = 0; i < 16; ++i) ASSERT_EQ(out[i], above[i]) << x[i];
    }
  }
}

TEST(ArmIsa, ToHalfOverflowsToInfinityAndKeepsNan) {
  EXPECT_EQ(half(65519.0f), 0x7bff);
  EXPECT_EQ(half(65520.0f), 0x7c00);
  EXPECT_EQ(half(-1e38f), 0xfc00);
  EXPECT_EQ(half(-INFINITY), 0xfc00);
  EXPECT_EQ(half(1e-38f), 0);
  EXPECT_EQ(half(NAN) & 0x7c00, 0x7c00);
  EXPECT_NE(half(NAN) & 0x3ff, 0);
}

}  // namespace
}  // namespace mamba_edge
#endif
