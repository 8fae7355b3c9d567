// Writes engine/text/unicode_tables.inc: gen_unicode_tables > engine/text/unicode_tables.inc
//
// Categories, combining classes and canonical mappings come from utf8proc; white space and the
// alphabetic property (for \w) come from PCRE2. Where PCRE2's Unicode is older than utf8proc's, a
// code point that only utf8proc knows counts as a word character by its category alone, and as no
// white space. tests/engine/unicode_test.cpp compares the result with both libraries for every code
// point.
#include <utf8proc.h>
#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH 8
#endif
#include <pcre2.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <utility>
#include <vector>

namespace {

constexpr uint32_t kCodePoints = 0x110000;
constexpr uint32_t kBlock = 256;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "gen_unicode_tables: %s\n", what);
  std::exit(1);
}

bool is_surrogate(uint32_t code) { return code >= 0xD800 && code < 0xE000; }
bool is_hangul_syllable(uint32_t code) { return code >= 0xAC00 && code < 0xAC00 + 11172; }

// The code points that `pattern` matches, one flag each.
std::vector<bool> matches_of(const char* pattern) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern), PCRE2_ZERO_TERMINATED,
                                   PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr);
  if (code == nullptr) fail(pattern);
  pcre2_match_data* data = pcre2_match_data_create_from_pattern(code, nullptr);
  std::vector<bool> found(kCodePoints, false);
  for (uint32_t c = 0; c < kCodePoints; ++c) {
    if (is_surrogate(c)) continue;
    uint8_t text[4];
    const utf8proc_ssize_t n = utf8proc_encode_char(static_cast<int32_t>(c), text);
    found[c] =
        pcre2_match(code, text, static_cast<size_t>(n), 0, PCRE2_ANCHORED, data, nullptr) > 0;
  }
  pcre2_match_data_free(data);
  pcre2_code_free(code);
  return found;
}

// Canonical decomposition (composed = false) or NFC (true) of a few code points.
std::vector<uint32_t> normalise(const std::vector<uint32_t>& text, bool composed) {
  const int flags = UTF8PROC_STABLE | (composed ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE);
  std::vector<int32_t> buffer(64);
  utf8proc_ssize_t n = 0;
  for (const uint32_t c : text) {
    int last_boundclass = 0;
    const utf8proc_ssize_t got = utf8proc_decompose_char(
        static_cast<int32_t>(c), buffer.data() + n,
        static_cast<utf8proc_ssize_t>(buffer.size()) - n,
        static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE), &last_boundclass);
    if (got < 0) fail("utf8proc_decompose_char");
    n += got;
  }
  n = utf8proc_normalize_utf32(buffer.data(), n, static_cast<utf8proc_option_t>(flags));
  if (n < 0) fail("utf8proc_normalize_utf32");
  return {buffer.begin(), buffer.begin() + n};
}

template <typename T>
void print_array(const char* type, const char* name, const std::vector<T>& values) {
  std::printf("constexpr %s %s[%zu] = {", type, name, values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    std::printf("%s%llu,", i % 24 == 0 ? "\n    " : "", static_cast<unsigned long long>(values[i]));
  }
  std::printf("\n};\n");
}

}  // namespace

int main() {
  const std::vector<bool> white_space = matches_of("\\p{White_Space}");
  const std::vector<bool> alphabetic = matches_of("\\p{Alphabetic}");
  const std::vector<bool> join_control = matches_of("\\p{Join_Control}");
  const std::vector<bool> assigned = matches_of("\\P{Cn}");

  // Canonical mappings. Hangul syllables are computed, not tabulated.
  std::vector<uint32_t> decomposed_code, decomposed_at, pool;
  std::map<std::pair<uint32_t, uint32_t>, uint32_t> compositions;
  std::vector<bool> inert(kCodePoints, false), second(kCodePoints, false);
  for (uint32_t c = 0; c < kCodePoints; ++c) {
    if (is_surrogate(c)) continue;
    const bool starter = utf8proc_get_property(static_cast<int32_t>(c))->combining_class == 0;
    inert[c] = starter;
    if (is_hangul_syllable(c)) continue;
    const std::vector<uint32_t> nfd = normalise({c}, false);
    if (nfd.size() == 1 && nfd[0] == c) continue;
    decomposed_code.push_back(c);
    decomposed_at.push_back(static_cast<uint32_t>(pool.size()));
    pool.insert(pool.end(), nfd.begin(), nfd.end());
    const std::vector<uint32_t> nfc = normalise({c}, true);
    if (nfc.size() != 1 || nfc[0] != c) {
      inert[c] = false;
      continue;
    }
    std::vector<uint32_t> front = normalise({nfd.begin(), nfd.end() - 1}, true);
    if (front.size() != 1) fail("a primary composite is not a pair");
    compositions[{front[0], nfd.back()}] = c;
    second[nfd.back()] = true;
  }
  decomposed_at.push_back(static_cast<uint32_t>(pool.size()));
  for (uint32_t c = 0x1161; c < 0x1161 + 21; ++c) second[c] = true;
  for (uint32_t c = 0x11A8; c < 0x11A8 + 27; ++c) second[c] = true;

  std::vector<uint8_t> stage1;
  std::vector<uint8_t> stage2;
  std::map<std::vector<uint8_t>, size_t> blocks;
  for (uint32_t base = 0; base < kCodePoints; base += kBlock) {
    std::vector<uint8_t> block;
    for (uint32_t c = base; c < base + kBlock; ++c) {
      const auto category = static_cast<uint32_t>(utf8proc_category(static_cast<int32_t>(c)));
      const bool mark = category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_ME;
      const bool word = mark || category == UTF8PROC_CATEGORY_ND ||
                        category == UTF8PROC_CATEGORY_PC || alphabetic[c] || join_control[c] ||
                        (!assigned[c] &&
                         ((category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO) ||
                          category == UTF8PROC_CATEGORY_NL));
      uint32_t value = category;
      if (white_space[c]) value |= 0x20;
      if (word) value |= 0x40;
      if (inert[c] && !second[c]) value |= 0x80;
      block.push_back(static_cast<uint8_t>(value));
    }
    const auto [it, fresh] = blocks.emplace(block, stage2.size() / kBlock);
    if (fresh) stage2.insert(stage2.end(), block.begin(), block.end());
    if (it->second > 255) fail("more than 256 different blocks");
    stage1.push_back(static_cast<uint8_t>(it->second));
  }

  std::vector<uint32_t> ccc_first, ccc_last, ccc_value;
  for (uint32_t c = 0; c < kCodePoints; ++c) {
    const auto value =
        static_cast<uint32_t>(utf8proc_get_property(static_cast<int32_t>(c))->combining_class);
    if (value == 0) continue;
    if (!ccc_last.empty() && ccc_last.back() + 1 == c && ccc_value.back() == value) {
      ccc_last.back() = c;
    } else {
      ccc_first.push_back(c);
      ccc_last.push_back(c);
      ccc_value.push_back(value);
    }
  }

  std::vector<uint32_t> pair_first, pair_second, pair_composed;
  for (const auto& [pair, composed] : compositions) {
    pair_first.push_back(pair.first);
    pair_second.push_back(pair.second);
    pair_composed.push_back(composed);
  }

  char pcre_version[64] = {};
  pcre2_config(PCRE2_CONFIG_UNICODE_VERSION, pcre_version);
  std::printf(
      "// Written by tools/gen_unicode_tables.cpp from utf8proc (Unicode %s) and PCRE2 (Unicode "
      "%s).\n",
      utf8proc_unicode_version(), pcre_version);
  std::printf("// clang-format off\n");
  std::printf("constexpr char kUnicodeVersion[] = \"%s\";\n", utf8proc_unicode_version());
  print_array("uint8_t", "kStage1", stage1);
  print_array("uint8_t", "kStage2", stage2);
  print_array("uint32_t", "kCccFirst", ccc_first);
  print_array("uint32_t", "kCccLast", ccc_last);
  print_array("uint8_t", "kCccValue", ccc_value);
  print_array("uint32_t", "kDecomposedCode", decomposed_code);
  print_array("uint16_t", "kDecomposedAt", decomposed_at);
  print_array("uint32_t", "kDecomposedPool", pool);
  print_array("uint32_t", "kPairFirst", pair_first);
  print_array("uint32_t", "kPairSecond", pair_second);
  print_array("uint32_t", "kPairComposed", pair_composed);
  return 0;
}
