#include "engine/text/unicode.h"

#include <gtest/gtest.h>
#include <utf8proc.h>
#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH 8
#endif
#include <pcre2.h>

#include <chrono>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

namespace mamba_edge {
namespace {

uint32_t draw(std::mt19937& random, size_t below) {
  return static_cast<uint32_t>(random() % below);
}

constexpr uint32_t kCodePoints = 0x110000;

bool is_surrogate(uint32_t code) { return code >= 0xD800 && code < 0xE000; }

std::string utf8(uint32_t code) {
  uint8_t bytes[4];
  return std::string(reinterpret_cast<char*>(bytes), encode_utf8(code, bytes));
}

std::string our_nfc(const std::string& text) {
  std::vector<uint32_t> work(nfc_work(text.size()));
  std::string out(kNfcGrowth * text.size(), '\0');
  out.resize(nfc(text, work, reinterpret_cast<uint8_t*>(out.data())));
  return out;
}

std::string their_nfc(const std::string& text) {
  utf8proc_uint8_t* out = nullptr;
  const utf8proc_ssize_t n =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &out,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  EXPECT_GE(n, 0);
  std::string result(reinterpret_cast<char*>(out), static_cast<size_t>(n));
  std::free(out);
  return result;
}

// Matches one character at a time.
class Pattern {
 public:
  explicit Pattern(const char* pattern) {
    int error = 0;
    PCRE2_SIZE offset = 0;
    code_ = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern), PCRE2_ZERO_TERMINATED,
                          PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr);
    EXPECT_NE(code_, nullptr) << pattern;
    data_ = pcre2_match_data_create_from_pattern(code_, nullptr);
  }
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;
  ~Pattern() {
    pcre2_match_data_free(data_);
    pcre2_code_free(code_);
  }
  bool matches(uint32_t c) const {
    const std::string text = utf8(c);
    return pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0,
                       PCRE2_ANCHORED | PCRE2_NO_UTF_CHECK, data_, nullptr) > 0;
  }

 private:
  pcre2_code* code_;
  pcre2_match_data* data_;
};

std::string pcre_unicode_version() {
  char version[64] = {};
  pcre2_config(PCRE2_CONFIG_UNICODE_VERSION, version);
  return version;
}

bool utf8proc_is_ours() { return std::string(utf8proc_unicode_version()) == unicode_version(); }

// With a library of another Unicode version only what both have assigned can be compared.
bool utf8proc_knows(uint32_t c) {
  return utf8proc_is_ours() ||
         (utf8proc_category(static_cast<int32_t>(c)) != UTF8PROC_CATEGORY_CN &&
          (unicode_properties(c) & kCategoryBits) != 0);
}

TEST(Unicode, TablesAreOfVersion15) { EXPECT_STREQ(unicode_version(), "15.0.0"); }

TEST(Unicode, CategoriesAreThoseOfUtf8proc) {
  uint32_t compared = 0;
  for (uint32_t c = 0; c < kCodePoints; ++c) {
    if (!utf8proc_knows(c)) continue;
    ++compared;
    ASSERT_EQ(unicode_properties(c) & kCategoryBits,
              static_cast<int>(utf8proc_category(static_cast<int32_t>(c))))
        << std::hex << c;
    ASSERT_EQ(combining_class(c), utf8proc_get_property(static_cast<int32_t>(c))->combining_class)
        << std::hex << c;
  }
  EXPECT_GT(compared, 280000u);
}

TEST(Unicode, ClassesAreThoseOfPcre2) {
  const Pattern letter("\\p{L}"), number("\\p{N}"), space("\\p{White_Space}"), mark("\\p{M}"),
      symbol("\\p{S}"), separator("\\p{Z}"), punctuation("\\p{P}"), unassigned("\\p{Cn}"),
      word("[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]");
  uint32_t younger = 0;
  for (uint32_t c = 0; c < kCodePoints; ++c) {
    if (is_surrogate(c)) continue;
    const uint32_t ours = category_mask(unicode_properties(c));
    if (unassigned.matches(c) != (ours == 1)) {  // assigned between the two versions
      ++younger;
      continue;
    }
    SCOPED_TRACE(c);
    ASSERT_EQ(is_letter(c), letter.matches(c));
    ASSERT_EQ(is_number(c), number.matches(c));
    ASSERT_EQ(is_space(c), space.matches(c));
    ASSERT_EQ(is_word(c), word.matches(c));
    ASSERT_EQ((ours & kMaskM) != 0, mark.matches(c));
    ASSERT_EQ((ours & kMaskS) != 0, symbol.matches(c));
    ASSERT_EQ((ours & kMaskZ) != 0, separator.matches(c));
    ASSERT_EQ((ours & kMaskP) != 0, punctuation.matches(c));
  }
  // Unicode 15.0 added 4489 characters to 14.0.
  if (pcre_unicode_version() == "14.0.0") {
    EXPECT_EQ(younger, 4489u);
  } else if (pcre_unicode_version() == "15.0.0") {
    EXPECT_EQ(younger, 0u);
  }
}

// The Rust library's table of punctuation is older: these 127 became punctuation later, and 2
// stopped being it.
TEST(Unicode, PunctuationDiffersFromPIn129Places) {
  uint32_t ours_only = 0, theirs_only = 0, symbols = 0;
  for (uint32_t c = 0; c < kCodePoints; ++c) {
    const bool p = (category_mask(unicode_properties(c)) & kMaskP) != 0;
    if (c < 128) {
      symbols += is_punctuation(c) && !p;
      EXPECT_TRUE(is_punctuation(c) || !p) << c;
    } else {
      ours_only += is_punctuation(c) && !p;
      theirs_only += p && !is_punctuation(c);
    }
  }
  EXPECT_EQ(symbols, 9u);  // $ + < = > ^ ` | ~
  EXPECT_EQ(ours_only + theirs_only, 129u);
  EXPECT_EQ(ours_only, 2u);
  EXPECT_TRUE(is_punctuation(0x166D) && is_punctuation(0x111C9));
  EXPECT_FALSE(is_punctuation(0x2E43));
}

TEST(Unicode, WhiteSpaceIsTheStandardList) {
  std::vector<uint32_t> found;
  for (uint32_t c = 0; c < kCodePoints; ++c) {
    if (is_space(c)) found.push_back(c);
  }
  const std::vector<uint32_t> expected = {0x9,    0xA,    0xB,    0xC,    0xD,    0x20,   0x85,
                                          0xA0,   0x1680, 0x2000, 0x2001, 0x2002, 0x2003, 0x2004,
                                          0x2005, 0x2006, 0x2007, 0x2008, 0x2009, 0x200A, 0x2028,
                                          0x2029, 0x202F, 0x205F, 0x3000};
  EXPECT_EQ(found, expected);
}

TEST(Unicode, CodesAboveTheLastAreUnassigned) {
  for (const uint32_t c : {kInvalidByte, kInvalidByte + 0xFF, 0xFFFFFFFFu}) {
    EXPECT_EQ(unicode_properties(c), kPropertyInert);
    EXPECT_EQ(combining_class(c), 0);
    EXPECT_FALSE(is_punctuation(c));
  }
}

TEST(Nfc, EveryCodePointAlone) {
  for (uint32_t c = 0; c < kCodePoints; ++c) {
    if (is_surrogate(c) || !utf8proc_knows(c)) continue;
    const std::string text = utf8(c);
    const std::string expected = their_nfc(text);
    ASSERT_EQ(our_nfc(text), expected) << std::hex << c;
    ASSERT_LE(expected.size(), kNfcGrowth * text.size());
    if (nfc_prefix(text) == text.size()) {
      ASSERT_EQ(expected, text);
    }
    uint32_t codes[4];
    ASSERT_LE(decompose(c, codes), 2 * text.size());
  }
}

// What can meet in a text: each code point between letters and marks that compose.
TEST(Nfc, EveryCodePointAmongMarks) {
  const std::string before[] = {"a", "e\xCC\xA7", "\xE1\x84\x80"};  // a, e + cedilla, Hangul L
  const std::string after[] = {"\xCC\x81", "\xCC\xA3\xCC\x82", "\xE1\x85\xA1\xE1\x86\xA8"};
  for (uint32_t c = 0; c < 0x20000; ++c) {
    if (is_surrogate(c) || !utf8proc_knows(c)) continue;
    for (const std::string& left : before) {
      for (const std::string& right : after) {
        const std::string text = left + utf8(c) + right;
        ASSERT_EQ(our_nfc(text), their_nfc(text)) << std::hex << c;
      }
    }
  }
}

TEST(Nfc, RandomStrings) {
  std::mt19937 random(1);
  std::vector<uint32_t> pool;
  for (uint32_t c = 0; c < kCodePoints; ++c) {
    uint32_t codes[4];
    if (!is_surrogate(c) && utf8proc_knows(c) &&
        (combining_class(c) != 0 || (unicode_properties(c) & kPropertyInert) == 0 ||
         (c < 0xAC00 && decompose(c, codes) > 1))) {
      pool.push_back(c);
    }
  }
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    const uint32_t n = 1 + draw(random, 12);
    for (uint32_t i = 0; i < n; ++i) {
      const uint32_t kind = draw(random, 8);
      uint32_t c = kind < 5    ? pool[draw(random, pool.size())]
                   : kind == 5 ? 'a' + draw(random, 26)
                   : kind == 6 ? 0xAC00 + draw(random, 11172)
                               : 0x1100 + draw(random, 256);
      text += utf8(c);
    }
    const std::string composed = our_nfc(text);
    ASSERT_EQ(composed, their_nfc(text)) << round;
    ASSERT_EQ(our_nfc(composed), composed) << "not idempotent";
    const size_t same = nfc_prefix(text);
    ASSERT_EQ(composed.substr(0, same), text.substr(0, same));
  }
}

TEST(Nfc, StrayBytesStayAndSeparate) {
  EXPECT_EQ(our_nfc("e\xFF\xCC\x81"), "e\xFF\xCC\x81");
  EXPECT_EQ(our_nfc("e\xCC"), "e\xCC");
  EXPECT_EQ(our_nfc("\x80"), "\x80");
  EXPECT_EQ(our_nfc("e\xCC\x81\xC3"), "\xC3\xA9\xC3");
  std::mt19937 random(2);
  for (int round = 0; round < 20000;
       ++round) {  // valid parts around a stray byte are composed alone
    std::string left, right;
    for (int i = 0; i < 4; ++i)
      left += utf8(0x300 + draw(random, 0x40)) + utf8('a' + draw(random, 26));
    for (int i = 0; i < 4; ++i)
      right += utf8('a' + draw(random, 26)) + utf8(0x300 + draw(random, 0x40));
    ASSERT_EQ(our_nfc(left + "\xFF" + right), our_nfc(left) + "\xFF" + our_nfc(right));
  }
}

// A million marks on one letter: sorting them by insertion would take minutes.
TEST(Nfc, LinearInTheLengthOfARunOfMarks) {
  std::string text = "a";
  for (int i = 0; i < 500000; ++i)
    text += i % 2 == 0 ? "\xCC\x81" : "\xCC\xA3";  // classes 230, 220
  const auto start = std::chrono::steady_clock::now();
  const std::string composed = our_nfc(text);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
  EXPECT_EQ(composed.substr(0, 5),
            "\xE1\xBA\xA1\xCC\xA3");        // a with dot below, then the other dots
  EXPECT_EQ(composed.size(), text.size());  // "a" and a mark (3 bytes) became one character of 3
}

}  // namespace
}  // namespace mamba_edge
