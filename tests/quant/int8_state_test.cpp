// A group of a recurrent state in int8 against its definition in quant/blocks.h.
#include "quant/int8_state.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace mamba_edge {
namespace {

struct Group {
  size_t states;
  std::vector<uint8_t> bytes;

  explicit Group(const std::vector<float>& values) : states(values.size() / kTileRows) {
    bytes.assign(int8_state_group_bytes(states), 0);
    encode_int8_state(reinterpret_cast<const uint8_t*>(values.data()), states, bytes.data());
  }
  float scale(size_t lane) const {
    float s;
    std::memcpy(&s, bytes.data() + lane * sizeof(float), sizeof(s));
    return s;
  }
  int q(size_t n, size_t lane) const {
    return static_cast<int8_t>(bytes[kTileRows * sizeof(float) + n * kTileRows + lane]);
  }
  std::vector<float> values() const {
    std::vector<float> v(states * kTileRows);
    decode_int8_state(bytes.data(), states, reinterpret_cast<uint8_t*>(v.data()));
    return v;
  }
};

TEST(Int8State, RoundsToNearestAndComesBackUnchanged) {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (const size_t states : {size_t{1}, size_t{3}, size_t{16}, kStateGroup}) {
    for (int round = 0; round < 200; ++round) {
      std::vector<float> values(states * kTileRows);
      const float size = std::ldexp(1.0f, static_cast<int>(random() % 200) - 90);
      for (float& v : values) v = size * uniform(random);
      const Group group(values);
      const std::vector<float> decoded = group.values();
      for (size_t lane = 0; lane < kTileRows; ++lane) {
        double top = 0;
        for (size_t n = 0; n < states; ++n)
          top = std::fmax(top, std::fabs(values[n * kTileRows + lane]));
        const double scale = group.scale(lane);
        EXPECT_LE(std::fabs(scale - top / 127), top / 127 * (0x1p-17 + 0x1p-24));
        for (size_t n = 0; n < states; ++n) {
          const size_t i = n * kTileRows + lane;
          EXPECT_EQ(double{decoded[i]}, scale * group.q(n, lane));  // in double, which is exact
          EXPECT_LE(std::fabs(values[i] - double{decoded[i]}), scale * (0.5 + 0x1p-15));
        }
      }
      EXPECT_EQ(Group(decoded).bytes, group.bytes);
    }
  }
}

TEST(Int8State, ZerosTinyAndHugeValues) {
  std::vector<float> values(kTileRows);
  values[1] = 0x1p-102f;
  values[2] = -0x1p-97f;
  values[3] = std::numeric_limits<float>::max();
  values[4] = std::numeric_limits<float>::denorm_min();
  const Group group(values);
  for (const size_t lane : {size_t{0}, size_t{1}, size_t{2}, size_t{4}}) {
    EXPECT_EQ(group.scale(lane), kLeastStateScale);
  }
  EXPECT_EQ(group.q(0, 0), 0);
  EXPECT_EQ(group.q(0, 1), 0);
  EXPECT_EQ(group.q(0, 2), -8);
  EXPECT_EQ(group.q(0, 3), 127);
  EXPECT_EQ(group.q(0, 4), 0);
  EXPECT_TRUE(std::isfinite(group.values()[3]));
  // Fresh memory is a state of zeros.
  const std::vector<uint8_t> fresh(int8_state_group_bytes(1), 0);
  std::vector<float> decoded(kTileRows, 1.0f);
  decode_int8_state(fresh.data(), 1, reinterpret_cast<uint8_t*>(decoded.data()));
  EXPECT_EQ(decoded, std::vector<float>(kTileRows, 0.0f));
}

TEST(Int8State, NanAndInfinityStayVisibleInTheirLane) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    std::vector<float> values(3 * kTileRows, 0.5f);
    values[kTileRows + 7] = bad;
    const std::vector<float> decoded = Group(values).values();
    for (size_t i = 0; i < decoded.size(); ++i)
      EXPECT_EQ(std::isnan(decoded[i]), i % kTileRows == 7) << i;
  }
}

}  // namespace
}  // namespace mamba_edge
