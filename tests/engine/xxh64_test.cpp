#include "engine/xxh64.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

namespace mamba_edge {
namespace {

// Seed 0; published with the specification, its ports and their documentation.
TEST(Xxh64, KnownVectors) {
  const auto hash = [](const std::string& text) { return xxh64(text.data(), text.size()); };
  EXPECT_EQ(hash(""), 0xEF46DB3751D8E999ull);
  EXPECT_EQ(hash("a"), 0xD24EC4F1A98C6E5Bull);
  EXPECT_EQ(hash("as"), 0x1C330FB2D66BE179ull);
  EXPECT_EQ(hash("asd"), 0x631C37CE72A97393ull);
  EXPECT_EQ(hash("asdf"), 0x415872F599CEA71Eull);
  EXPECT_EQ(hash("abc"), 0x44BC2CF5AD770999ull);
  EXPECT_EQ(hash("Call me Ishmael. Some years ago--never mind how long precisely-"),
            0x02A2E85470D6FD96ull);  // 63 bytes: one stripe and every kind of remainder
}

// The specification's own test buffer: bytes of a 64-bit generator, with known results.
TEST(Xxh64, SanityBuffer) {
  std::vector<uint8_t> buffer(101);
  uint64_t generator = 2654435761u;
  for (uint8_t& byte : buffer) {
    byte = static_cast<uint8_t>(generator >> 56);
    generator *= 11400714785074694797ull;
  }
  EXPECT_EQ(xxh64(buffer.data(), 1), 0xE934A84ADB052768ull);
  EXPECT_EQ(xxh64(buffer.data(), 4), 0x9136A0DCA57457EEull);
  EXPECT_EQ(xxh64(buffer.data(), 14), 0x8282DCC4994E35C8ull);
}

// However a text is cut, the sum is the same: every pair of cuts of every length up to three
// stripes and more.
TEST(Xxh64, SplitAnywhere) {
  std::vector<uint8_t> bytes(101);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 37 + 11);
  for (size_t n = 0; n <= bytes.size(); n += 1 + n / 9) {
    const uint64_t whole = xxh64(bytes.data(), n);
    for (size_t a = 0; a <= n; ++a) {
      for (size_t b = a; b <= n; ++b) {
        Xxh64 state;
        state.update(bytes.data(), a);
        state.update(bytes.data() + a, b - a);
        state.update(bytes.data() + b, n - b);
        ASSERT_EQ(state.digest(), whole) << n << " bytes cut at " << a << " and " << b;
      }
    }
  }
}

TEST(Xxh64, DigestDoesNotEndTheSum) {
  const std::string text(77, 'x');
  Xxh64 state;
  state.update(text.data(), 40);
  EXPECT_EQ(state.digest(), xxh64(text.data(), 40));
  state.update(text.data() + 40, 37);
  EXPECT_EQ(state.digest(), xxh64(text.data(), 77));
}

TEST(Xxh64, EveryBitCounts) {
  std::vector<uint8_t> bytes(45, 0x5A);
  const uint64_t whole = xxh64(bytes.data(), bytes.size());
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    bytes[bit / 8] ^= static_cast<uint8_t>(1u << bit % 8);
    EXPECT_NE(xxh64(bytes.data(), bytes.size()), whole) << "bit " << bit;
    bytes[bit / 8] ^= static_cast<uint8_t>(1u << bit % 8);
  }
}

}  // namespace
}  // namespace mamba_edge
