#include "engine/text/utf8.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace mamba_edge {
namespace {

uint32_t draw(std::mt19937& random, size_t below) {
  return static_cast<uint32_t>(random() % below);
}

const uint8_t* data_of(const std::string& text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

std::string utf8(uint32_t code) {
  uint8_t bytes[4];
  return std::string(reinterpret_cast<char*>(bytes), encode_utf8(code, bytes));
}

std::vector<uint32_t> streamed(const std::string& text) {
  std::vector<uint32_t> codes;
  Utf8Stream stream;
  for (const char c : text) {
    stream.push(static_cast<uint8_t>(c), [&](uint32_t code) { codes.push_back(code); });
    EXPECT_TRUE(stream.valid());
  }
  stream.finish([&](uint32_t code) { codes.push_back(code); });
  return codes;
}

std::string random_bytes(std::mt19937& random) {
  static const uint8_t kUsual[] = {0x41, 0x80, 0xBF, 0xC2, 0xE0, 0xE1, 0xED, 0xF0,
                                   0xF4, 0xA0, 0x9F, 0x90, 0x8F, 0xFF, 0xC0};
  std::string text;
  const uint32_t n = draw(random, 24);
  for (uint32_t i = 0; i < n; ++i) {
    text += static_cast<char>(draw(random, 4) == 0 ? draw(random, 256)
                                                   : kUsual[draw(random, sizeof(kUsual))]);
  }
  return text;
}

TEST(Utf8, EveryCodePointRoundTrips) {
  for (uint32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    const std::string text = utf8(c);
    ASSERT_EQ(text.size(), c < 0x80 ? 1u : c < 0x800 ? 2u : c < 0x10000 ? 3u : 4u);
    const Utf8Char forward = decode_utf8(data_of(text), data_of(text) + text.size());
    const Utf8Char backward = decode_utf8_backward(data_of(text), data_of(text) + text.size());
    ASSERT_EQ(forward.code, c);
    ASSERT_EQ(forward.bytes, text.size());
    ASSERT_EQ(backward.code, c);
    ASSERT_EQ(backward.bytes, text.size());
    ASSERT_EQ(streamed(text), std::vector<uint32_t>{c});
  }
}

TEST(Utf8, WhatIsNotACharacterIsOneByte) {
  for (const std::string text :
       {"\x80", "\xC0\x80", "\xC1\xBF", "\xC2", "\xE0\x80\x80", "\xE0\x9F\xBF", "\xED\xA0\x80",
        "\xE1\x80", "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xF1\x80\x80",
        "\xFF", "\xC2\x41", "\xE1\x41\x80"}) {
    const Utf8Char c = decode_utf8(data_of(text), data_of(text) + text.size());
    EXPECT_EQ(c.bytes, 1u);
    EXPECT_EQ(c.code, kInvalidByte + static_cast<uint8_t>(text[0]));
    EXPECT_EQ(utf8(c.code), text.substr(0, 1));
  }
}

TEST(Utf8, BackwardFindsTheSameCharactersAsForward) {
  std::mt19937 random(1);
  for (int round = 0; round < 100000; ++round) {
    const std::string text = random_bytes(random);
    std::vector<uint32_t> forward, backward;
    std::string again;
    for (size_t i = 0; i < text.size();) {
      const Utf8Char c = decode_utf8(data_of(text) + i, data_of(text) + text.size());
      forward.push_back(c.code);
      again += utf8(c.code);
      i += c.bytes;
    }
    ASSERT_EQ(again, text);
    for (size_t i = text.size(); i > 0;) {
      const Utf8Char c = decode_utf8_backward(data_of(text), data_of(text) + i);
      backward.insert(backward.begin(), c.code);
      i -= c.bytes;
    }
    ASSERT_EQ(backward, forward);
  }
}

// The examples of The Unicode Standard, chapter 3.9, tables 3-8 to 3-11.
TEST(Utf8Stream, MaximalSubparts) {
  constexpr uint32_t r = 0xFFFD;
  EXPECT_EQ(streamed("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
            (std::vector<uint32_t>{r, r, r, r, r, r, r, r, 0x41}));
  EXPECT_EQ(streamed("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"),
            (std::vector<uint32_t>{r, r, r, r, r, r, r, r, 0x41}));
  EXPECT_EQ(streamed("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
            (std::vector<uint32_t>{r, r, r, r, r, 0x41, r, r, 0x42}));
  EXPECT_EQ(streamed("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"),
            (std::vector<uint32_t>{r, r, r, r, 0x41}));
  EXPECT_EQ(streamed("\xE1\x80"), (std::vector<uint32_t>{r}));
}

TEST(Utf8Stream, AgreesWithDecoding) {
  std::mt19937 random(2);
  for (int round = 0; round < 100000; ++round) {
    const std::string text = random_bytes(random);
    std::vector<uint32_t> valid;  // the characters, without what stands for stray bytes
    for (size_t i = 0; i < text.size();) {
      const Utf8Char c = decode_utf8(data_of(text) + i, data_of(text) + text.size());
      if (c.code < kInvalidByte && c.code != 0xFFFD) valid.push_back(c.code);
      i += c.bytes;
    }
    std::vector<uint32_t> found;
    for (const uint32_t c : streamed(text)) {
      if (c != 0xFFFD) found.push_back(c);
    }
    ASSERT_EQ(found, valid);
  }
}

TEST(Utf8Stream, KnowsStatesThatCannotBe) {
  Utf8Stream stream;
  stream.n_pending = 4;
  EXPECT_FALSE(stream.valid());
  for (const std::string bad :
       {"A", "\x80", "\xC1", "\xC2\x80", "\xE0\x80", "\xED\xA0", "\xF5", "\xF4\x90", "\xE1\x41"}) {
    stream = {};
    for (const char c : bad) stream.pending[stream.n_pending++] = static_cast<uint8_t>(c);
    EXPECT_FALSE(stream.valid());
  }
}

}  // namespace
}  // namespace mamba_edge
