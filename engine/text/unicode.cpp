#include "engine/text/unicode.h"

#include <algorithm>
#include <cstring>
#include <iterator>

namespace mamba_edge {
namespace {

#include "engine/text/unicode_tables.inc"

// Hangul syllables are composed by arithmetic (The Unicode Standard, 3.12).
constexpr uint32_t kHangulS = 0xAC00, kHangulL = 0x1100, kHangulV = 0x1161, kHangulT = 0x11A7;
constexpr uint32_t kHangulLCount = 19, kHangulVCount = 21, kHangulTCount = 28;
constexpr uint32_t kHangulSCount = kHangulLCount * kHangulVCount * kHangulTCount;

// Where the punctuation of the Rust library (crate unicode_categories 0.1.1, of about Unicode 8)
// and \p{P} of our tables differ, found by asking the library about every code point: punctuation
// that came later, and two characters that were punctuation then.
struct Range {
  uint32_t first, last;
};
constexpr Range kOtherPunctuation[] = {
    {0x61D, 0x61D},     {0x9FD, 0x9FD},     {0xA76, 0xA76},     {0xC77, 0xC77},
    {0xC84, 0xC84},     {0x166D, 0x166D},   {0x1B7D, 0x1B7E},   {0x2E43, 0x2E4F},
    {0x2E52, 0x2E5D},   {0x10EAD, 0x10EAD}, {0x10F55, 0x10F59}, {0x10F86, 0x10F89},
    {0x111C9, 0x111C9}, {0x1144B, 0x1144F}, {0x1145A, 0x1145B}, {0x1145D, 0x1145D},
    {0x11660, 0x1166C}, {0x116B9, 0x116B9}, {0x1183B, 0x1183B}, {0x11944, 0x11946},
    {0x119E2, 0x119E2}, {0x11A3F, 0x11A46}, {0x11A9A, 0x11A9C}, {0x11A9E, 0x11AA2},
    {0x11B00, 0x11B09}, {0x11C41, 0x11C45}, {0x11C70, 0x11C71}, {0x11EF7, 0x11EF8},
    {0x11F43, 0x11F4F}, {0x11FFF, 0x11FFF}, {0x12FF1, 0x12FF2}, {0x16E97, 0x16E9A},
    {0x16FE2, 0x16FE2}, {0x1E95E, 0x1E95F}};

// The index of `value` in a sorted array, or `n`.
size_t find_sorted(const uint32_t* sorted, size_t n, uint32_t value) {
  const uint32_t* const at = std::lower_bound(sorted, sorted + n, value);
  return at != sorted + n && *at == value ? static_cast<size_t>(at - sorted) : n;
}

const uint8_t* bytes_of(std::string_view text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

// A segment: characters from one place where NFC can be cut to the next. Holds n characters in
// `codes`, and room for as many in `other`.
struct Segment {
  uint32_t* codes;
  uint32_t* other;
  size_t n;
};

// Canonical ordering: each run of non-starters is sorted by class, stably, by counting.
void reorder(const Segment& segment) {
  size_t i = 0;
  while (i < segment.n) {
    if (combining_class(segment.codes[i]) == 0) {
      ++i;
      continue;
    }
    size_t end = i;
    bool sorted = true;
    uint8_t previous = 0;
    for (; end < segment.n; ++end) {
      const uint8_t c = combining_class(segment.codes[end]);
      if (c == 0) break;
      sorted = sorted && c >= previous;
      previous = c;
    }
    if (!sorted && end - i < 32) {
      for (size_t k = i + 1; k < end; ++k) {
        const uint32_t code = segment.codes[k];
        const uint8_t c = combining_class(code);
        size_t at = k;
        for (; at > i && combining_class(segment.codes[at - 1]) > c; --at) {
          segment.codes[at] = segment.codes[at - 1];
        }
        segment.codes[at] = code;
      }
    } else if (!sorted) {
      size_t start[257] = {};
      for (size_t k = i; k < end; ++k) ++start[combining_class(segment.codes[k]) + 1];
      for (size_t c = 0; c < 256; ++c) start[c + 1] += start[c];
      for (size_t k = i; k < end; ++k) {
        segment.other[start[combining_class(segment.codes[k])]++] = segment.codes[k];
      }
      std::memcpy(segment.codes + i, segment.other, (end - i) * sizeof(uint32_t));
    }
    i = end;
  }
}

// Canonical composition in place; returns how many characters remain.
size_t compose_all(uint32_t* codes, size_t n) {
  size_t written = 0;
  size_t starter = n;      // index among the written ones; n: none yet
  uint8_t last_class = 0;  // of what was written after the starter; 0: nothing
  for (size_t i = 0; i < n; ++i) {
    const uint32_t code = codes[i];
    const uint8_t c = combining_class(code);
    if (starter < n) {
      const bool adjacent = written == starter + 1;
      const bool blocked = !adjacent && (last_class == 0 || last_class >= c);
      const uint32_t composite = blocked ? 0 : compose(codes[starter], code);
      if (composite != 0) {
        codes[starter] = composite;
        continue;
      }
    }
    if (c == 0) starter = written;
    last_class = c;
    codes[written++] = code;
  }
  return written;
}

}  // namespace

uint8_t unicode_properties(uint32_t code) {
  if (code > 0x10FFFF) return kPropertyInert;
  return kStage2[uint32_t{kStage1[code >> 8]} << 8 | (code & 0xFF)];
}

bool is_punctuation(uint32_t code) {
  if (code < 0x80) {
    return (code >= '!' && code <= '/') || (code >= ':' && code <= '@') ||
           (code >= '[' && code <= '`') || (code >= '{' && code <= '~');
  }
  const bool punctuation = (category_mask(unicode_properties(code)) & kMaskP) != 0;
  if (code < kOtherPunctuation[0].first) return punctuation;
  const Range* const at =
      std::lower_bound(std::begin(kOtherPunctuation), std::end(kOtherPunctuation), code,
                       [](const Range& range, uint32_t c) { return range.last < c; });
  return punctuation != (at != std::end(kOtherPunctuation) && code >= at->first);
}

uint8_t combining_class(uint32_t code) {
  if (code < kCccFirst[0]) return 0;
  const size_t i =
      static_cast<size_t>(std::upper_bound(std::begin(kCccFirst), std::end(kCccFirst), code) -
                          std::begin(kCccFirst) - 1);
  return code <= kCccLast[i] ? kCccValue[i] : 0;
}

uint32_t decompose(uint32_t code, uint32_t out[4]) {
  if (code - kHangulS < kHangulSCount) {
    const uint32_t s = code - kHangulS;
    out[0] = kHangulL + s / (kHangulVCount * kHangulTCount);
    out[1] = kHangulV + s / kHangulTCount % kHangulVCount;
    out[2] = kHangulT + s % kHangulTCount;
    return s % kHangulTCount == 0 ? 2 : 3;
  }
  const size_t i = find_sorted(kDecomposedCode, std::size(kDecomposedCode), code);
  if (i == std::size(kDecomposedCode)) {
    out[0] = code;
    return 1;
  }
  const uint32_t n = uint32_t{kDecomposedAt[i + 1]} - kDecomposedAt[i];
  for (uint32_t k = 0; k < n; ++k) out[k] = kDecomposedPool[kDecomposedAt[i] + k];
  return n;
}

uint32_t compose(uint32_t first, uint32_t second) {
  if (first - kHangulL < kHangulLCount && second - kHangulV < kHangulVCount) {
    return kHangulS + ((first - kHangulL) * kHangulVCount + (second - kHangulV)) * kHangulTCount;
  }
  if (first - kHangulS < kHangulSCount && (first - kHangulS) % kHangulTCount == 0 &&
      second - kHangulT - 1 < kHangulTCount - 1) {
    return first + (second - kHangulT);
  }
  const auto [from, to] = std::equal_range(std::begin(kPairFirst), std::end(kPairFirst), first);
  for (const uint32_t* p = from; p != to; ++p) {
    const auto i = static_cast<size_t>(p - std::begin(kPairFirst));
    if (kPairSecond[i] == second) return kPairComposed[i];
  }
  return 0;
}

size_t nfc_prefix(std::string_view text) {
  const uint8_t* const p = bytes_of(text);
  const uint8_t* const end = p + text.size();
  size_t at = 0;
  size_t last = 0;  // start of the last character seen: what follows may join it
  while (at < text.size()) {
    if (text.size() - at >= 8) {
      uint64_t eight;
      std::memcpy(&eight, p + at, 8);
      if ((eight & 0x8080808080808080u) == 0) {
        at += 8;
        last = at - 1;
        continue;
      }
    }
    const Utf8Char c = decode_utf8(p + at, end);
    if ((unicode_properties(c.code) & kPropertyInert) == 0) return last;
    last = at;
    at += c.bytes;
  }
  return at;
}

size_t nfc(std::string_view text, std::span<uint32_t> work, uint8_t* out) {
  const uint8_t* p = bytes_of(text);
  const uint8_t* const end = p + text.size();
  Segment segment = {work.data(), work.data() + work.size() / 2, 0};
  uint8_t* to = out;
  while (p < end) {
    const size_t same =
        nfc_prefix({reinterpret_cast<const char*>(p), static_cast<size_t>(end - p)});
    std::memcpy(to, p, same);
    to += same;
    p += same;
    if (p == end) break;
    // One segment: a character of any kind, then all that are not inert.
    segment.n = 0;
    do {
      const Utf8Char c = decode_utf8(p, end);
      if (segment.n > 0 && (unicode_properties(c.code) & kPropertyInert) != 0) break;
      segment.n += decompose(c.code, segment.codes + segment.n);
      p += c.bytes;
    } while (p < end);
    reorder(segment);
    const size_t n = compose_all(segment.codes, segment.n);
    for (size_t i = 0; i < n; ++i) to += encode_utf8(segment.codes[i], to);
  }
  return static_cast<size_t>(to - out);
}

const char* unicode_version() { return kUnicodeVersion; }

}  // namespace mamba_edge
