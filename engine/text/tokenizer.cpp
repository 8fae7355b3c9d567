#include "engine/text/tokenizer.h"

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstring>

#include "engine/little_endian.h"
#include "engine/text/unicode.h"
#include "engine/text/utf8.h"

namespace mamba_edge {

using namespace tokenizer_format;

namespace {

constexpr uint32_t kOpWords = 6;
constexpr size_t kNoMatch = SIZE_MAX;
constexpr char kWordMarkBytes[] = "\xE2\x96\x81";
constexpr size_t kMaxPositions = 0xFFFFFFF0;  // positions are u32 while merging
constexpr uint32_t kSmallWord = 24;           // symbols up to which a plain scan beats a heap

// Sizes that stick to SIZE_MAX when they overflow.
size_t add(size_t a, size_t b) { return a > SIZE_MAX - b ? SIZE_MAX : a + b; }
size_t multiply(size_t a, size_t b) { return b != 0 && a > SIZE_MAX / b ? SIZE_MAX : a * b; }
size_t round_up_8(size_t a) { return a > SIZE_MAX - 7 ? SIZE_MAX : (a + 7) & ~size_t{7}; }

// Bytes that `n` bytes can become when each `from` bytes may turn into `to`.
size_t replaced_bytes(size_t n, size_t from, size_t to) {
  return to <= from ? n : add(n, multiply(n / from, to - from));
}

struct Op {
  uint32_t kind, argument;
  std::string_view a, b;
  uint32_t a_offset;
};

uint32_t word_at(const uint8_t* data, size_t index) { return load_le<uint32_t>(data + 4 * index); }

std::string_view view(const uint8_t* p, size_t n) { return {reinterpret_cast<const char*>(p), n}; }

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// The number of a byte token, "<0x1F>", or -1.
int byte_of_token(std::string_view text) {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return -1;
  const int high = hex_digit(text[3]), low = hex_digit(text[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

// The GPT-2 alphabet: printable Latin-1 stands for itself, the other bytes follow from U+0100 on.
constexpr std::array<uint16_t, 256> make_alphabet() {
  std::array<uint16_t, 256> table{};
  uint16_t next = 256;
  for (uint32_t b = 0; b < 256; ++b) {
    const bool itself = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    table[b] = itself ? static_cast<uint16_t>(b) : next++;
  }
  return table;
}
constexpr std::array<uint16_t, 256> kAlphabet = make_alphabet();

// Character kinds of the GPT-2 expression.
enum Kind : uint8_t { kOther, kLetter, kNumber, kBlank };

Kind kind_of_properties(uint8_t properties) {
  if ((properties & kPropertySpace) != 0) return kBlank;
  const uint32_t mask = category_mask(properties);
  return (mask & kMaskL) != 0 ? kLetter : (mask & kMaskN) != 0 ? kNumber : kOther;
}

constexpr std::array<uint8_t, 128> make_ascii_kinds() {
  std::array<uint8_t, 128> table{};
  for (uint32_t c = 0; c < 128; ++c) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    const bool blank = c == ' ' || (c >= 9 && c <= 13);
    table[c] = letter ? kLetter : c >= '0' && c <= '9' ? kNumber : blank ? kBlank : kOther;
  }
  return table;
}
constexpr std::array<uint8_t, 128> kAsciiKinds = make_ascii_kinds();

// A part of the text on its way to becoming ids.
struct Span {
  const uint8_t* p;
  size_t n;
  bool mapped;    // each byte is read as its character of the GPT-2 alphabet
  bool at_start;  // holds the beginning of the caller's text

  Utf8Char at(size_t i) const {
    if (mapped) return {kAlphabet[p[i]], 1};
    return decode_utf8(p + i, p + n);
  }
  // The character that ends at i > 0.
  Utf8Char before(size_t i) const {
    if (mapped) return {kAlphabet[p[i - 1]], 1};
    return decode_utf8_backward(p, p + i);
  }
  Span part(size_t begin, size_t end) const {
    return {p + begin, end - begin, mapped, at_start && begin == 0};
  }
};

Kind kind_at(const Span& s, size_t i, uint32_t* bytes) {
  const uint8_t b = s.p[i];
  if (b < 0x80) {
    *bytes = 1;
    return static_cast<Kind>(kAsciiKinds[b]);
  }
  const Utf8Char c = decode_utf8(s.p + i, s.p + s.n);
  *bytes = c.bytes;
  return kind_of_properties(unicode_properties(c.code));
}

// Where the match of GPT-2's expression that starts at `i` ends; it matches everywhere. The
// expression: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
size_t gpt2_match(const Span& s, size_t i) {
  const uint8_t* const p = s.p;
  const size_t n = s.n;
  if (p[i] == '\'' && i + 1 < n) {
    const uint8_t next = p[i + 1];
    if (next == 's' || next == 't' || next == 'm' || next == 'd') return i + 2;
    if (i + 2 < n) {
      const uint8_t last = p[i + 2];
      if (((next == 'r' || next == 'v') && last == 'e') || (next == 'l' && last == 'l'))
        return i + 3;
    }
  }
  uint32_t bytes;
  Kind kind = kind_at(s, i, &bytes);
  size_t at = i + bytes;
  if (p[i] == ' ' && at < n) {
    const Kind after = kind_at(s, at, &bytes);
    if (after != kBlank) {
      kind = after;
      at += bytes;
    }
  }
  size_t last = i;  // start of the last character of the run
  size_t length = 1;
  while (at < n && kind_at(s, at, &bytes) == kind) {
    last = at;
    at += bytes;
    ++length;
  }
  // White space before something else leaves its last character to what follows.
  return kind == kBlank && at < n && length > 1 ? last : at;
}

size_t find_string(const Span& s, size_t from, std::string_view pattern) {
  const size_t at = view(s.p, s.n).find(pattern, from);
  return at == std::string_view::npos ? kNoMatch : at;
}

}  // namespace

namespace tokenizer_format {

uint32_t hash(std::string_view bytes) {
  uint32_t h = 0x811C9DC5;
  for (const char c : bytes) h = (h ^ static_cast<uint8_t>(c)) * 0x01000193;
  h ^= h >> 15;
  h *= 0x2C1B3C6D;
  return h ^ h >> 12;
}

uint32_t byte_to_character(uint8_t byte) { return kAlphabet[byte]; }

}  // namespace tokenizer_format

// ---- Encoding
// -----------------------------------------------------------------------------------------------

class Encoder {
 public:
  // Where things lie in the scratch memory for a text of some length; false if that overflows.
  struct Layout {
    size_t normalized[2] = {};  // sizes of two buffers for normalised text
    size_t pre[kMaxOps] = {};   // size of each pre-tokeniser's buffer
    size_t work = 0;            // size of the memory of NFC, then of merging
    size_t word = 0;            // longest word in bytes
    size_t total = 0;
  };

  static bool layout(const Tokenizer& t, size_t text_bytes, Layout* out) {
    size_t n = text_bytes;
    size_t nfc_bytes = 0;
    int changing = 0;
    for (uint32_t i = 0; i < t.sections_[kNormalizers].n; ++i) {
      const Op op = op_at(t, kNormalizers, i);
      if (op.kind == kNormStrip) continue;
      if (op.kind == kNormNfc) {
        nfc_bytes = std::max(nfc_bytes, n);
        n = multiply(n, kNfcGrowth);
      } else if (op.kind == kNormPrepend) {
        n = add(n, op.a.size());
      } else {
        n = replaced_bytes(n, op.a.size(), op.b.size());
      }
      out->normalized[0] = n;  // sizes only grow: the last one is the largest
      if (++changing > 1) out->normalized[1] = n;
    }
    for (uint32_t i = 0; i < t.sections_[kPreTokenizers].n; ++i) {
      const Op op = op_at(t, kPreTokenizers, i);
      if (op.kind == kPreByteLevel && (op.argument & 1) != 0) {
        n = add(n, 1);
        out->pre[i] = n;
      } else if (op.kind == kPreMetaspace) {
        n = add(replaced_bytes(n, 1, op.a.size()), op.a.size());
        out->pre[i] = n;
      }
    }
    out->word = n;
    if (n > kMaxPositions) return false;
    const size_t merging = multiply(n, 3 * sizeof(uint32_t) + 2 * sizeof(uint64_t));
    const size_t composing = multiply(add(multiply(nfc_bytes, 4), 8), sizeof(uint32_t));
    out->work = std::max(merging, composing);
    size_t total = add(round_up_8(out->work), 8);
    for (size_t& size : out->normalized) total = add(total, size = round_up_8(size));
    for (size_t& size : out->pre) total = add(total, size = round_up_8(size));
    out->total = total;
    return total != SIZE_MAX;
  }

  // `scratch` must have layout.total bytes.
  Encoder(const Tokenizer& tokenizer, const Layout& layout, std::byte* scratch, int32_t* ids,
          size_t capacity)
      : t_(tokenizer), ids_(ids), capacity_(capacity) {
    auto* p = reinterpret_cast<uint8_t*>(scratch);
    p += (8 - (reinterpret_cast<uintptr_t>(p) & 7)) & 7;
    work_ = reinterpret_cast<uint64_t*>(p);
    p += round_up_8(layout.work);
    for (size_t i = 0; i < 2; ++i) {
      normalized_[i] = p;
      p += layout.normalized[i];
    }
    for (uint32_t i = 0; i < kMaxOps; ++i) {
      pre_[i] = p;
      p += layout.pre[i];
    }
  }

  void text(std::string_view text, unsigned flags) {
    plain_ = (flags & MAMBA_EDGE_PLAIN_TEXT) != 0;
    const bool with_template = (flags & MAMBA_EDGE_NO_TEMPLATE) == 0;
    if (with_template) constant(kPrefix);
    const Span all = {reinterpret_cast<const uint8_t*>(text.data()), text.size(), false, true};
    split_added(all, kAddedRaw, [this](const Span& piece) {
      split_added(normalize(piece), kAddedNorm,
                  [this](const Span& part) { pre_tokenize(0, part); });
    });
    if (with_template) constant(kSuffix);
  }

  void word(std::string_view word) {
    if (word.empty()) return;
    if (word.size() <= t_.longest_token_) {
      const uint32_t id = t_.find(word);
      if (id != kNone &&
          ((t_.flags_ & kFlagIgnoreMerges) != 0 || (token_flags(id) & kTokenWhole) != 0)) {
        emit(id);
        return;
      }
    }
    merge(word);
  }

  size_t n() const { return n_; }

 private:
  static Op op_at(const Tokenizer& t, Section section, uint32_t i) {
    const uint8_t* const p = t.sections_[section].data + size_t{i} * 4 * kOpWords;
    const uint8_t* const pool = t.sections_[kPool].data;
    Op op = {word_at(p, 0), word_at(p, 1), {}, {}, word_at(p, 2)};
    if (op.kind == kPreSplitRegex && section == kPreTokenizers) return op;
    op.a = view(pool + word_at(p, 2), word_at(p, 3));
    op.b = view(pool + word_at(p, 4), word_at(p, 5));
    return op;
  }

  uint32_t word_of(Section section, size_t i) const {
    return word_at(t_.sections_[section].data, i);
  }
  uint8_t token_flags(uint32_t id) const { return t_.sections_[kTokenFlags].data[id]; }

  void emit(uint32_t id) {
    if (n_ < capacity_) ids_[n_] = static_cast<int32_t>(id);
    ++n_;
  }

  void constant(Section section) {
    for (uint32_t i = 0; i < t_.sections_[section].n; ++i) emit(word_of(section, i));
  }

  // ---- added tokens

  struct Added {
    std::string_view pattern;
    uint32_t id, flags;
  };
  Added added(Section section, uint32_t i) const {
    const uint8_t* const p = t_.sections_[section].data + size_t{i} * 16;
    return {view(t_.sections_[kPool].data + word_at(p, 0), word_at(p, 1)), word_at(p, 2),
            word_at(p, 3)};
  }

  // The longest pattern among [lo, hi), all of which start with text[0], that `text` starts with,
  // or -1.
  int64_t longest_added(Section section, uint32_t lo, uint32_t hi, std::string_view text) const {
    int64_t best = -1;
    for (size_t depth = 1; lo < hi; ++depth) {
      // All of [lo, hi) agree with the text in `depth` bytes; the one that ends here comes first.
      if (added(section, lo).pattern.size() == depth) best = lo++;
      if (depth == text.size()) break;
      const auto byte_at = [&](uint32_t i) {
        return static_cast<uint8_t>(added(section, i).pattern[depth]);
      };
      const auto next = static_cast<uint8_t>(text[depth]);
      const auto bound = [&](uint32_t from, bool upper) {  // first whose byte is >= next (> next)
        uint32_t count = hi - from;
        while (count > 0) {
          const uint32_t half = count / 2;
          const uint8_t b = byte_at(from + half);
          if (b < next || (upper && b == next)) {
            from += half + 1;
            count -= half + 1;
          } else {
            count = half;
          }
        }
        return from;
      };
      lo = bound(lo, false);
      hi = bound(lo, true);
    }
    return best;
  }

  // Emits the added tokens in `s` and calls use() with each part between them. The parts that flags
  // exclude (single_word, special tokens in plain text) are text, and are not searched again.
  template <typename Use>
  void split_added(const Span& s, Section section, Use&& use) {
    const uint32_t n_added = t_.sections_[section].n;
    if (s.n == 0) return;
    if (n_added == 0) {
      use(s);
      return;
    }
    std::array<uint32_t, 257> first;  // patterns whose first byte is b: [first[b], first[b + 1])
    uint32_t index = 0;
    for (uint32_t b = 0; b <= 256; ++b) {
      while (index < n_added && static_cast<uint8_t>(added(section, index).pattern[0]) < b) ++index;
      first[b] = index;
    }
    size_t done = 0;
    size_t i = 0;
    while (i < s.n) {
      const uint8_t b = s.p[i];
      if (first[b] == first[b + 1u]) {
        ++i;
        continue;
      }
      const int64_t found = longest_added(section, first[b], first[b + 1u], view(s.p + i, s.n - i));
      if (found < 0) {
        ++i;
        continue;
      }
      const Added token = added(section, static_cast<uint32_t>(found));
      size_t begin = i;
      size_t end = i + token.pattern.size();
      i = end;
      if (plain_ && (token.flags & kAddedSpecial) != 0) continue;
      if ((token.flags & kAddedSingleWord) != 0 && ((begin > 0 && is_word(s.before(begin).code)) ||
                                                    (end < s.n && is_word(s.at(end).code)))) {
        continue;
      }
      if ((token.flags & kAddedLeftStrip) != 0) {
        while (begin > done) {
          const Utf8Char c = s.before(begin);
          if (!is_space(c.code)) break;
          begin -= c.bytes;
        }
      }
      if ((token.flags & kAddedRightStrip) != 0) {
        while (end < s.n) {
          const Utf8Char c = s.at(end);
          if (!is_space(c.code)) break;
          end += c.bytes;
        }
      }
      if (done < begin) use(s.part(done, begin));
      emit(token.id);
      done = end;
    }
    if (done < s.n) use(s.part(done, s.n));
  }

  // ---- normalisation

  Span normalize(Span s) {
    int buffer = 0;
    for (uint32_t i = 0; i < t_.sections_[kNormalizers].n; ++i) {
      const Op op = op_at(t_, kNormalizers, i);
      if (op.kind == kNormStrip) {
        if ((op.argument & 1) != 0) {
          size_t skip = 0;
          while (skip < s.n) {
            const Utf8Char c = s.at(skip);
            if (!is_space(c.code)) break;
            skip += c.bytes;
          }
          s = s.part(skip, s.n);
        }
        while ((op.argument & 2) != 0 && s.n > 0 && is_space(s.before(s.n).code))
          s.n -= s.before(s.n).bytes;
        continue;
      }
      uint8_t* const out = normalized_[buffer];
      if (s.n == 0) continue;
      if (op.kind == kNormNfc) {
        if (nfc_prefix(view(s.p, s.n)) == s.n) continue;
        s.n = nfc(view(s.p, s.n), {reinterpret_cast<uint32_t*>(work_), nfc_work(s.n)}, out);
      } else if (op.kind == kNormPrepend) {
        std::memcpy(out, op.a.data(), op.a.size());
        std::memcpy(out + op.a.size(), s.p, s.n);
        s.n += op.a.size();
      } else {
        s.n = replace(s, op.a, op.b, out);
      }
      s.p = out;
      buffer ^= 1;
    }
    return s;
  }

  static size_t replace(const Span& s, std::string_view a, std::string_view b, uint8_t* out) {
    uint8_t* to = out;
    size_t done = 0;
    while (done < s.n) {
      const size_t at = std::min(find_string(s, done, a), s.n);
      std::memcpy(to, s.p + done, at - done);
      to += at - done;
      done = at;
      if (at == s.n) break;
      std::memcpy(to, b.data(), b.size());
      to += b.size();
      done += a.size();
    }
    return static_cast<size_t>(to - out);
  }

  // ---- pre-tokenisation: each step hands its parts to the next one

  void pre_tokenize(uint32_t step, Span s) {
    if (s.n == 0) return;
    if (step == t_.sections_[kPreTokenizers].n) {
      words(s);
      return;
    }
    const Op op = op_at(t_, kPreTokenizers, step);
    switch (op.kind) {
      case kPreByteLevel: {
        if ((op.argument & 1) != 0 && s.p[0] != ' ') {
          pre_[step][0] = ' ';
          std::memcpy(pre_[step] + 1, s.p, s.n);
          s.p = pre_[step];
          ++s.n;
        }
        size_t i = (op.argument & 2) != 0 ? 0 : s.n;
        if (i == s.n) byte_level_part(step, s);
        while (i < s.n) {
          const size_t end = gpt2_match(s, i);
          byte_level_part(step, s.part(i, end));
          i = end;
        }
        break;
      }
      case kPreSplitRegex:
        split(step, op, s, [&](size_t from, size_t* begin, size_t* end) {
          for (size_t i = from; i < s.n; i += s.at(i).bytes) {
            const size_t match = match_program(op.a_offset, s, i);
            if (match == kNoMatch || match == i) continue;
            *begin = i;
            *end = match;
            return true;
          }
          return false;
        });
        break;
      case kPreSplitString:
        split(step, op, s, [&](size_t from, size_t* begin, size_t* end) {
          *begin = find_string(s, from, op.a);
          if (*begin == kNoMatch) return false;
          *end = *begin + op.a.size();
          return true;
        });
        break;
      case kPrePunctuation:
        split_characters(step, op, s, [](uint32_t code) { return is_punctuation(code); });
        break;
      case kPreDigits:
        split_characters(step, op, s, [](uint32_t code) { return is_number(code); });
        break;
      case kPreWhitespace:
        split_characters(step, op, s, [](uint32_t code) { return is_space(code); });
        break;
      case kPreMetaspace:
        metaspace(step, op, s);
        break;
      default:  // open() lets no other through
        break;
    }
  }

  void byte_level_part(uint32_t step, Span s) {
    s.mapped = true;
    pre_tokenize(step + 1, s);
  }

  void metaspace(uint32_t step, const Op& op, Span s) {
    uint8_t* const out = pre_[step];
    const uint32_t prepend = op.argument >> 1 & 3;
    const bool wanted = prepend == 2 || (prepend == 1 && s.at_start);
    const bool there = s.p[0] == ' ' || view(s.p, s.n).substr(0, op.a.size()) == op.a;
    size_t n = 0;
    if (wanted && !there) {
      std::memcpy(out, op.a.data(), op.a.size());
      n = op.a.size();
    }
    s.n = n + replace(s, " ", op.a, out + n);
    s.p = out;
    if ((op.argument & 1) == 0) {
      pre_tokenize(step + 1, s);
      return;
    }
    const Op at_marks = {kPreSplitString, kMergedWithNext, op.a, {}, 0};
    split(step, at_marks, s, [&](size_t from, size_t* begin, size_t* end) {
      *begin = find_string(s, from, op.a);
      if (*begin == kNoMatch) return false;
      *end = *begin + op.a.size();
      return true;
    });
  }

  template <typename Predicate>
  void split_characters(uint32_t step, const Op& op, const Span& s, Predicate&& predicate) {
    split(step, op, s, [&](size_t from, size_t* begin, size_t* end) {
      for (size_t i = from; i < s.n;) {
        const Utf8Char c = s.at(i);
        if (predicate(c.code)) {
          *begin = i;
          *end = i + c.bytes;
          return true;
        }
        i += c.bytes;
      }
      return false;
    });
  }

  // Cuts `s` into matches and what lies between them, joins these as the behaviour says, and passes
  // them on. next(from, &begin, &end) finds the first match at or after `from`; it is never empty.
  template <typename Next>
  void split(uint32_t step, const Op& op, const Span& s, Next&& next) {
    const uint32_t behavior = op.argument & 7;
    const bool invert = (op.argument & kInvert) != 0;
    // A part that may still grow, and whether the last piece of it was a match.
    size_t held_begin = 0, held_end = 0;
    bool held_match = false;
    const auto flush = [&] {
      if (held_end > held_begin) pre_tokenize(step + 1, s.part(held_begin, held_end));
    };
    const auto piece = [&](size_t begin, size_t end, bool match) {
      bool join = false;
      switch (behavior) {
        case kRemoved:
          if (!match) pre_tokenize(step + 1, s.part(begin, end));
          return;
        case kMergedWithPrevious:
          join = match && !held_match;
          break;
        case kMergedWithNext:
          join = !match && held_match;
          break;
        case kContiguous:
          join = match == held_match;
          break;
        default:
          break;
      }
      if (!join || held_end == held_begin) {
        flush();
        held_begin = begin;
      }
      held_end = end;
      held_match = match;
    };
    size_t from = 0;
    size_t begin = 0, end = 0;
    while (from < s.n && next(from, &begin, &end)) {
      if (begin > from) piece(from, begin, invert);
      piece(begin, end, !invert);
      from = end;
    }
    if (from < s.n) piece(from, s.n, invert);
    flush();
  }

  // ---- regular expressions

  size_t match_program(uint32_t program, const Span& s, size_t i) const {
    const uint32_t first = word_of(kPrograms, 2 * size_t{program});
    const uint32_t count = word_of(kPrograms, 2 * size_t{program} + 1);
    for (uint32_t a = first; a < first + count; ++a) {
      const uint32_t item = word_of(kAlternatives, 2 * size_t{a});
      const uint32_t n_items = word_of(kAlternatives, 2 * size_t{a} + 1);
      const size_t end = match_items(item, item + n_items, s, i);
      if (end != kNoMatch) return end;
    }
    return kNoMatch;
  }

  size_t match_items(uint32_t item, uint32_t end_item, const Span& s, size_t i) const {
    if (item == end_item) return i;
    const uint8_t* const fields = t_.sections_[kItems].data + 16 * size_t{item};
    const uint8_t* const cls = t_.sections_[kClasses].data + 32 * size_t{word_at(fields, 0)};
    const uint32_t min = word_at(fields, 1), max = word_at(fields, 2), kind = word_at(fields, 3);
    if (kind >= kItemLookahead) {
      const bool ahead = i < s.n && in_class(cls, s.at(i).code);
      return ahead == (kind == kItemLookahead) ? match_items(item + 1, end_item, s, i) : kNoMatch;
    }
    size_t at = i;
    size_t count = 0;
    while (count < max && at < s.n) {
      const Utf8Char c = s.at(at);
      if (!in_class(cls, c.code)) break;
      at += c.bytes;
      ++count;
    }
    if (count < min) return kNoMatch;
    if (item + 1 == end_item) return at;
    for (;;) {
      const size_t end = match_items(item + 1, end_item, s, at);
      if (end != kNoMatch) return end;
      if (count == min || kind == kItemPossessive) return kNoMatch;
      at -= s.before(at).bytes;
      --count;
    }
  }

  bool in_class(const uint8_t* cls, uint32_t code) const {
    if (code < 128) return (word_at(cls, code / 32) >> (code % 32) & 1) != 0;
    const uint32_t mask = word_at(cls, 4), flags = word_at(cls, 5);
    const uint8_t properties = unicode_properties(code);
    bool in = (category_mask(properties) & mask) != 0 ||
              ((flags & kClassSpace) != 0 && (properties & kPropertySpace) != 0) ||
              ((flags & kClassWord) != 0 && (properties & kPropertyWord) != 0);
    const uint32_t first = word_at(cls, 6), count = word_at(cls, 7);
    for (uint32_t r = first; !in && r < first + count; ++r) {
      in = code >= word_of(kRanges, 2 * size_t{r}) && code <= word_of(kRanges, 2 * size_t{r} + 1);
    }
    return in != ((flags & kClassNegated) != 0);
  }

  // ---- words

  // One pre-token. Where no merge can cross the border before a word mark, each marked word is
  // merged alone.
  void words(const Span& s) {
    if ((t_.flags_ & kFlagWordsStartWithMark) == 0) {
      word(view(s.p, s.n));
      return;
    }
    size_t begin = 0;
    bool after_mark = false;
    for (size_t i = 0; i < s.n;) {
      const bool mark = s.n - i >= 3 && std::memcmp(s.p + i, kWordMarkBytes, 3) == 0;
      if (mark && !after_mark && i > begin) {
        word(view(s.p + begin, i - begin));
        begin = i;
      }
      after_mark = mark;
      i += mark ? 3 : 1;
    }
    word(view(s.p + begin, s.n - begin));
  }

  // (rank, id) of a pair, or rank kNone.
  uint32_t rank_of(uint32_t left, uint32_t right) const {
    uint32_t first = word_of(kMergeIndex, left);
    uint32_t count = word_of(kMergeIndex, size_t{left} + 1) - first;
    const uint8_t* p = t_.sections_[kMerges].data + 8 * size_t{first};
    while (count > 0) {
      const uint32_t half = count / 2;
      const uint32_t here = load_le<uint32_t>(p + 8 * size_t{half});
      if (here == right) return load_le<uint32_t>(p + 8 * size_t{half} + 4);
      if (here < right) {
        p += 8 * (size_t{half} + 1);
        count -= half + 1;
      } else {
        count = half;
      }
    }
    return kNone;
  }

  // The symbols that a word starts from, into out[word.size()]; returns how many.
  size_t symbols(std::string_view word, uint32_t* out) const {
    const auto* const p = reinterpret_cast<const uint8_t*>(word.data());
    const bool bytes = (t_.flags_ & kFlagByteLevel) != 0;
    const bool fallback = (t_.flags_ & kFlagByteFallback) != 0;
    const bool fuse = (t_.flags_ & kFlagFuseUnknown) != 0;
    size_t n = 0;
    bool unknown = false;  // an unknown token that is not written yet, as it may grow
    for (size_t i = 0; i < word.size();) {
      uint32_t length = 1;
      uint32_t id = kNone;
      if (bytes || p[i] < 0x80) {
        id = word_of(kSingle, p[i]);
      } else {
        const Utf8Char c = decode_utf8(p + i, p + word.size());
        length = c.bytes;
        if (c.code < kInvalidByte) id = t_.find(word.substr(i, length));
      }
      const uint8_t* const character = p + i;
      i += length;
      if (id != kNone) {
        if (unknown) out[n++] = t_.unknown_;
        unknown = false;
        out[n++] = id;
        continue;
      }
      if (fallback) {
        bool all = true;
        for (uint32_t k = 0; k < length; ++k)
          all = all && word_of(kFallback, character[k]) != kNone;
        if (all) {  // goes before an unknown token that waits: so does the library whose ids these
                    // are
          for (uint32_t k = 0; k < length; ++k) out[n++] = word_of(kFallback, character[k]);
          continue;
        }
      }
      if (t_.unknown_ == kNone) continue;
      if (unknown && !fuse) out[n++] = t_.unknown_;
      unknown = true;
    }
    if (unknown) out[n++] = t_.unknown_;
    return n;
  }

  void merge(std::string_view word) {
    if (word.size() <= kSmallWord) {
      merge_small(word);
    } else {
      merge_large(word);
    }
  }

  void merge_small(std::string_view word) {
    uint32_t ids[kSmallWord];
    uint32_t ranks[kSmallWord];  // of the pair (i, i + 1)
    size_t n = symbols(word, ids);
    for (size_t i = 0; i + 1 < n; ++i) ranks[i] = rank_of(ids[i], ids[i + 1]);
    while (n > 1) {
      size_t best = 0;
      for (size_t i = 1; i + 1 < n; ++i) {
        if (ranks[i] < ranks[best]) best = i;
      }
      if (ranks[best] == kNone) break;
      ids[best] = word_of(kMergeIds, ranks[best]);
      for (size_t i = best + 1; i + 1 < n; ++i) {
        ids[i] = ids[i + 1];
        ranks[i] = ranks[i + 1];
      }
      --n;
      if (best + 1 < n) ranks[best] = rank_of(ids[best], ids[best + 1]);
      if (best > 0) ranks[best - 1] = rank_of(ids[best - 1], ids[best]);
    }
    for (size_t i = 0; i < n; ++i) emit(ids[i]);
  }

  // A binary min-heap of rank << 32 | position. Entries go stale when a symbol of their pair is
  // merged into something else; a merge only lengthens a symbol, so a pair that still has an
  // entry's rank is that pair.
  void merge_large(std::string_view word) {
    constexpr uint32_t kGone = kNone;
    uint64_t* const heap = work_;
    auto* const ids = reinterpret_cast<uint32_t*>(heap + 2 * word.size());
    uint32_t* const next = ids + word.size();
    uint32_t* const previous = next + word.size();
    const auto n = static_cast<uint32_t>(symbols(word, ids));
    size_t size = 0;
    for (uint32_t i = 0; i < n; ++i) {
      next[i] = i + 1 < n ? i + 1 : kNone;
      previous[i] = i > 0 ? i - 1 : kNone;
      if (i + 1 == n) break;
      const uint32_t rank = rank_of(ids[i], ids[i + 1]);
      if (rank != kNone) heap[size++] = uint64_t{rank} << 32 | i;
    }
    for (size_t i = size / 2; i-- > 0;) sift_down(heap, size, i);
    const auto push = [&](uint32_t position) {
      const uint32_t rank = rank_of(ids[position], ids[next[position]]);
      if (rank == kNone) return;
      const uint64_t entry = uint64_t{rank} << 32 | position;
      size_t i = size++;
      for (; i > 0 && heap[(i - 1) / 2] > entry; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
      heap[i] = entry;
    };
    while (size > 0) {
      const auto rank = static_cast<uint32_t>(heap[0] >> 32);
      const auto i = static_cast<uint32_t>(heap[0]);
      heap[0] = heap[--size];
      sift_down(heap, size, 0);
      if (ids[i] == kGone || next[i] == kNone || rank_of(ids[i], ids[next[i]]) != rank) continue;
      const uint32_t right = next[i];
      ids[i] = word_of(kMergeIds, rank);
      ids[right] = kGone;
      next[i] = next[right];
      if (next[i] != kNone) {
        previous[next[i]] = i;
        push(i);
      }
      if (previous[i] != kNone) push(previous[i]);
    }
    for (uint32_t i = 0; i < n; i = next[i]) emit(ids[i]);
  }

  static void sift_down(uint64_t* heap, size_t size, size_t i) {
    if (i >= size) return;
    const uint64_t entry = heap[i];
    for (;;) {
      size_t child = 2 * i + 1;
      if (child >= size) break;
      if (child + 1 < size && heap[child + 1] < heap[child]) ++child;
      if (heap[child] >= entry) break;
      heap[i] = heap[child];
      i = child;
    }
    heap[i] = entry;
  }

  const Tokenizer& t_;
  int32_t* ids_;
  size_t capacity_;
  size_t n_ = 0;
  bool plain_ = false;
  uint64_t* work_;
  uint8_t* normalized_[2];
  uint8_t* pre_[kMaxOps];
};

uint32_t Tokenizer::find(std::string_view bytes) const {
  const Section& table = sections_[kTokenHash];
  if (table.n == 0) return kNone;
  const uint32_t mask = table.n - 1;
  uint32_t slot = hash(bytes) & mask;
  for (uint32_t probes = 0; probes < table.n; ++probes) {
    const uint32_t id = word_at(table.data, slot);
    if (id == kNone) return kNone;
    if (token_bytes(static_cast<int32_t>(id)) == bytes) return id;
    slot = (slot + 1) & mask;
  }
  return kNone;
}

bool Tokenizer::is_special(int32_t id) const {
  if (id < 0 || static_cast<uint32_t>(id) >= n_tokens_) return false;
  return (sections_[kTokenFlags].data[id] & kTokenSpecial) != 0;
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  if (id < 0 || static_cast<uint32_t>(id) >= n_tokens_) return {};
  const uint8_t* const offsets = sections_[kTokenOffsets].data;
  const uint32_t begin = word_at(offsets, static_cast<size_t>(id));
  const uint32_t end = word_at(offsets, static_cast<size_t>(id) + 1);
  return view(sections_[kTokenBytes].data + begin, end - begin);
}

size_t Tokenizer::scratch_bytes(size_t text_bytes) const {
  Encoder::Layout layout;
  return Encoder::layout(*this, text_bytes, &layout) ? layout.total : SIZE_MAX;
}

Status Tokenizer::encode(std::string_view text, unsigned flags, std::span<std::byte> scratch,
                         int32_t* ids, size_t capacity, size_t* n) const {
  *n = 0;
  if ((flags & ~static_cast<unsigned>(MAMBA_EDGE_PLAIN_TEXT | MAMBA_EDGE_NO_TEMPLATE)) != 0) {
    return Status::error(MAMBA_EDGE_INVALID_ARGUMENT, "tokenizer: unknown flags %u", flags);
  }
  if ((ids == nullptr && capacity > 0) || (text.data() == nullptr && !text.empty())) {
    return Status::error(MAMBA_EDGE_INVALID_ARGUMENT, "tokenizer: NULL text or ids");
  }
  Encoder::Layout layout;
  if (!Encoder::layout(*this, text.size(), &layout)) {
    return Status::error(MAMBA_EDGE_INVALID_ARGUMENT, "tokenizer: a text of %zu bytes is too long",
                         text.size());
  }
  if (scratch.size() < layout.total) {
    return Status::error(MAMBA_EDGE_TOO_SMALL, "tokenizer: scratch of %zu bytes, needed are %zu",
                         scratch.size(), layout.total);
  }
  Encoder encoder(*this, layout, scratch.data(), ids, capacity);
  encoder.text(text, flags);
  *n = encoder.n();
  if (*n > capacity) {
    return Status::error(MAMBA_EDGE_TOO_SMALL, "tokenizer: room for %zu ids, the text has %zu",
                         capacity, *n);
  }
  return Status();
}

Status Tokenizer::encode_word(std::string_view word, std::span<std::byte> scratch, int32_t* ids,
                              size_t capacity, size_t* n) const {
  *n = 0;
  Encoder::Layout layout;
  if (!Encoder::layout(*this, word.size(), &layout) || scratch.size() < layout.total) {
    return Status::error(MAMBA_EDGE_TOO_SMALL, "tokenizer: scratch of %zu bytes for a word of %zu",
                         scratch.size(), word.size());
  }
  Encoder encoder(*this, layout, scratch.data(), ids, capacity);
  encoder.word(word);
  *n = encoder.n();
  if (*n > capacity) {
    return Status::error(MAMBA_EDGE_TOO_SMALL, "tokenizer: room for %zu ids, the word has %zu",
                         capacity, *n);
  }
  return Status();
}

// ---- Decoding
// -----------------------------------------------------------------------------------------------

namespace {

constexpr uint32_t kPastStart =
    0xFFFFFFFF;  // mamba_edge_decoder::started once the start is dealt with

// Collects text; counts what does not fit.
struct Output {
  char* text;
  size_t capacity;
  size_t n = 0;

  void put(uint32_t code) {
    uint8_t bytes[4];
    const uint32_t length = encode_utf8(code, bytes);
    for (uint32_t i = 0; i < length; ++i, ++n) {
      if (n < capacity) text[n] = static_cast<char>(bytes[i]);
    }
  }
};

Status finish_output(const Output& output, size_t* n) {
  *n = output.n;
  if (output.n <= output.capacity) return Status();
  return Status::error(MAMBA_EDGE_TOO_SMALL, "decode: room for %zu bytes, the text has %zu",
                       output.capacity, output.n);
}

}  // namespace

Status Tokenizer::decoder_init(mamba_edge_decoder* decoder, unsigned flags) const {
  if ((flags & ~static_cast<unsigned>(MAMBA_EDGE_SKIP_SPECIAL | MAMBA_EDGE_CONTINUATION)) != 0) {
    return Status::error(MAMBA_EDGE_INVALID_ARGUMENT, "decoder: unknown flags %u", flags);
  }
  decoder->flags = flags;
  decoder->started = (flags & MAMBA_EDGE_CONTINUATION) != 0 ? kPastStart : 0;
  std::memset(decoder->pending, 0, sizeof(decoder->pending));
  decoder->n_pending = 0;
  decoder->reserved = 0;
  return Status();
}

Status Tokenizer::decode(mamba_edge_decoder* decoder, int32_t token, char* text, size_t capacity,
                         size_t* n) const {
  *n = 0;
  if (token < 0 || static_cast<uint32_t>(token) >= n_tokens_) {
    return Status::error(MAMBA_EDGE_INVALID_ARGUMENT,
                         "decode: token %" PRId32 " is outside of [0, %" PRIu32 ")", token,
                         n_tokens_);
  }
  Utf8Stream stream;
  if (decoder->n_pending <= sizeof(stream.pending)) {
    std::memcpy(stream.pending, decoder->pending, sizeof(stream.pending));
    stream.n_pending = static_cast<uint8_t>(decoder->n_pending);
  }
  if (decoder->n_pending > sizeof(stream.pending) || !stream.valid()) {
    return Status::error(MAMBA_EDGE_INVALID_ARGUMENT, "decode: the decoder was not initialised");
  }
  const uint8_t flags = sections_[kTokenFlags].data[token];
  if ((flags & kTokenPresent) == 0) return Status();
  if ((flags & kTokenSpecial) != 0 && (decoder->flags & MAMBA_EDGE_SKIP_SPECIAL) != 0)
    return Status();

  Output output = {text, capacity};
  uint32_t started = decoder->started;
  const auto put = [&](uint32_t code) {
    if (started < strip_count_) {
      if (code == strip_char_) {
        ++started;
        return;
      }
      started = kPastStart;
    }
    output.put(code);
  };
  const auto push = [&](std::string_view bytes) {
    for (const char c : bytes) stream.push(static_cast<uint8_t>(c), put);
  };
  if ((flags_ & kFlagJoinWithSpace) != 0 && started != 0) push(" ");
  const bool first = started == 0;
  const std::string_view bytes = token_bytes(token);
  if ((flags & kTokenByte) != 0) {
    stream.push(static_cast<uint8_t>(byte_of_token(bytes)), put);
  } else if (sections_[kDecodeReplace].n == 0) {
    push(bytes);
  } else {
    const uint8_t* const op = sections_[kDecodeReplace].data;
    const uint8_t* const pool = sections_[kPool].data;
    const std::string_view from = view(pool + word_at(op, 2), word_at(op, 3));
    const std::string_view to = view(pool + word_at(op, 4), word_at(op, 5));
    const bool drop = word_at(op, 1) == 1 && first;
    for (size_t i = 0; i < bytes.size();) {
      const size_t at = std::min(bytes.find(from, i), bytes.size());
      push(bytes.substr(i, at - i));
      if (at < bytes.size() && !drop) push(to);
      i = at + from.size();
    }
  }
  if (strip_count_ == 0) started = kPastStart;
  ME_TRY(finish_output(output, n));
  std::memcpy(decoder->pending, stream.pending, sizeof(stream.pending));
  decoder->n_pending = stream.n_pending;
  decoder->started = started;
  return Status();
}

Status Tokenizer::decode_finish(mamba_edge_decoder* decoder, char* text, size_t capacity,
                                size_t* n) const {
  Output output = {text, capacity};
  if (decoder->n_pending > 0) output.put(Utf8Stream::kReplacement);
  ME_TRY(finish_output(output, n));
  decoder->n_pending = 0;
  return Status();
}

// ---- Opening
// ------------------------------------------------------------------------------------------------

namespace {

constexpr const char* kSectionNames[kSections] = {
    "token_offsets",  "token_bytes",    "token_flags", "token_hash",   "merge_index", "merges",
    "merge_ids",      "single",         "fallback",    "added_raw",    "added_norm",  "normalizers",
    "pre_tokenizers", "decode_replace", "programs",    "alternatives", "items",       "classes",
    "ranges",         "prefix",         "suffix",      "pool"};

Status damaged(const char* section, const char* what) {
  return Status::error(MAMBA_EDGE_BAD_FORMAT, "tokenizer: section %s: %s", section, what);
}

}  // namespace

Status Tokenizer::open(std::span<const uint8_t> blob, Tokenizer* out) {
  if (blob.size() < kHeaderBytes) {
    return Status::error(MAMBA_EDGE_BAD_FORMAT, "tokenizer: %zu bytes, the header alone has %u",
                         blob.size(), kHeaderBytes);
  }
  const uint8_t* const p = blob.data();
  if (word_at(p, 0) != kMagic)
    return Status::error(MAMBA_EDGE_BAD_FORMAT, "tokenizer: no METK at its start");
  if (word_at(p, 1) != kVersion) {
    return Status::error(MAMBA_EDGE_UNSUPPORTED,
                         "tokenizer: format version %" PRIu32 ", this build reads %" PRIu32,
                         word_at(p, 1), kVersion);
  }
  if (word_at(p, 2) != blob.size()) {
    return Status::error(MAMBA_EDGE_BAD_FORMAT, "tokenizer: %zu bytes, its header says %" PRIu32,
                         blob.size(), word_at(p, 2));
  }
  Tokenizer t;
  t.flags_ = word_at(p, 3);
  if ((t.flags_ & ~kAllFlags) != 0) {
    return Status::error(MAMBA_EDGE_UNSUPPORTED, "tokenizer: unknown flags %" PRIu32, t.flags_);
  }
  t.n_tokens_ = word_at(p, 4);
  if (t.n_tokens_ > INT32_MAX) {
    return Status::error(MAMBA_EDGE_BAD_FORMAT, "tokenizer: %" PRIu32 " tokens", t.n_tokens_);
  }
  t.unknown_ = word_at(p, 5);
  const uint32_t bos = word_at(p, 6), eos = word_at(p, 7);
  for (const uint32_t id : {t.unknown_, bos, eos}) {
    if (id != kNone && id >= t.n_tokens_) {
      return Status::error(MAMBA_EDGE_BAD_FORMAT,
                           "tokenizer: special id %" PRIu32 " of %" PRIu32 " tokens", id,
                           t.n_tokens_);
    }
  }
  t.bos_ = static_cast<int32_t>(bos);  // none is -1
  t.eos_ = static_cast<int32_t>(eos);
  t.longest_token_ = word_at(p, 8);
  t.strip_char_ = word_at(p, 9);
  t.strip_count_ = word_at(p, 10);
  if (t.strip_count_ > 0xFFFF || (t.strip_count_ > 0 && (t.flags_ & kFlagJoinWithSpace) != 0)) {
    return Status::error(MAMBA_EDGE_BAD_FORMAT, "tokenizer: strip count %" PRIu32, t.strip_count_);
  }
  for (uint32_t s = 0; s < kSections; ++s) {
    const uint32_t offset = word_at(p, 14 + 2 * s), n = word_at(p, 15 + 2 * s);
    const uint64_t end = offset + uint64_t{n} * kElementBytes[s];
    if (end > blob.size()) return damaged(kSectionNames[s], "reaches past the end");
    t.sections_[s] = {p + offset, n};
  }
  ME_TRY(t.check_sections());
  ME_TRY(t.check_tokens());
  ME_TRY(t.check_merges());
  ME_TRY(t.check_added(kAddedRaw));
  ME_TRY(t.check_added(kAddedNorm));
  ME_TRY(t.check_programs());
  ME_TRY(t.check_ops());

  size_t piece = t.longest_token_;
  if (t.sections_[kDecodeReplace].n > 0) {
    const uint8_t* const op = t.sections_[kDecodeReplace].data;
    piece = replaced_bytes(piece, word_at(op, 3), word_at(op, 5));
  }
  t.max_piece_bytes_ =
      add(multiply(add(piece, 1), 3), 1);  // U+FFFD for what is pending and for each byte; a space
  *out = t;
  return Status();
}

Status Tokenizer::check_sections() const {
  const uint32_t slots = sections_[kTokenHash].n;
  if (sections_[kTokenOffsets].n != uint64_t{n_tokens_} + 1)
    return damaged("token_offsets", "wrong length");
  if (sections_[kTokenFlags].n != n_tokens_) return damaged("token_flags", "wrong length");
  if ((slots & (slots - 1)) != 0) return damaged("token_hash", "length is not a power of two");
  if (sections_[kMergeIndex].n != uint64_t{n_tokens_} + 1)
    return damaged("merge_index", "wrong length");
  if (sections_[kSingle].n != 256) return damaged("single", "wrong length");
  if (sections_[kFallback].n != 256) return damaged("fallback", "wrong length");
  for (const uint32_t s : {kNormalizers, kPreTokenizers}) {
    if (sections_[s].n > kMaxOps) return damaged(kSectionNames[s], "too many");
  }
  if (sections_[kDecodeReplace].n > 1) return damaged("decode_replace", "too many");
  for (const uint32_t s : {kTokenHash, kSingle, kFallback, kMergeIds, kPrefix, kSuffix}) {
    const bool may_be_none = s == kTokenHash || s == kSingle || s == kFallback;
    for (uint32_t i = 0; i < sections_[s].n; ++i) {
      const uint32_t id = word_at(sections_[s].data, i);
      if (id >= n_tokens_ && !(may_be_none && id == kNone))
        return damaged(kSectionNames[s], "an id is too large");
    }
  }
  return Status();
}

Status Tokenizer::check_tokens() {
  const uint8_t* const offsets = sections_[kTokenOffsets].data;
  uint32_t previous = 0;
  uint32_t longest = 0;
  for (uint32_t i = 0; i <= n_tokens_; ++i) {
    const uint32_t offset = word_at(offsets, i);
    if (offset < previous || offset > sections_[kTokenBytes].n)
      return damaged("token_offsets", "out of order");
    longest = std::max(longest, offset - previous);
    previous = offset;
  }
  if (word_at(offsets, 0) != 0) return damaged("token_offsets", "do not start at 0");
  if (longest_token_ != longest)
    return damaged("token_offsets", "the header has another longest token");
  for (uint32_t i = 0; i < n_tokens_; ++i) {
    const uint8_t flags = sections_[kTokenFlags].data[i];
    if ((flags & ~kAllTokenFlags) != 0) return damaged("token_flags", "unknown flags");
    if ((flags & kTokenByte) != 0 && byte_of_token(token_bytes(static_cast<int32_t>(i))) < 0) {
      return damaged("token_flags", "a byte token is not written <0xXX>");
    }
  }
  return Status();
}

Status Tokenizer::check_merges() const {
  const uint8_t* const index = sections_[kMergeIndex].data;
  uint32_t previous = 0;
  for (uint32_t i = 0; i <= n_tokens_; ++i) {
    const uint32_t here = word_at(index, i);
    if (here < previous || here > sections_[kMerges].n)
      return damaged("merge_index", "out of order");
    previous = here;
  }
  if (sections_[kMergeIds].n == kNone) return damaged("merge_ids", "too many");
  for (uint32_t i = 0; i < sections_[kMerges].n; ++i) {
    if (word_at(sections_[kMerges].data, 2 * size_t{i} + 1) >= sections_[kMergeIds].n) {
      return damaged("merges", "a rank is too large");
    }
  }
  return Status();
}

bool Tokenizer::pool_string(uint32_t offset, uint32_t bytes) const {
  return uint64_t{offset} + bytes <= sections_[kPool].n;
}

Status Tokenizer::check_added(uint32_t section) const {
  std::string_view previous;
  for (uint32_t i = 0; i < sections_[section].n; ++i) {
    const uint8_t* const p = sections_[section].data + size_t{i} * 16;
    const uint32_t offset = word_at(p, 0), bytes = word_at(p, 1);
    if (bytes == 0 || !pool_string(offset, bytes))
      return damaged(kSectionNames[section], "pattern out of range");
    const std::string_view pattern = view(sections_[kPool].data + offset, bytes);
    if (i > 0 && pattern <= previous)
      return damaged(kSectionNames[section], "patterns out of order");
    if (word_at(p, 2) >= n_tokens_) return damaged(kSectionNames[section], "an id is too large");
    if (word_at(p, 3) > 15) return damaged(kSectionNames[section], "unknown flags");
    previous = pattern;
  }
  return Status();
}

Status Tokenizer::check_programs() const {
  for (uint32_t i = 0; i < sections_[kClasses].n; ++i) {
    const uint8_t* const p = sections_[kClasses].data + size_t{i} * 32;
    if (word_at(p, 5) > 7) return damaged("classes", "unknown flags");
    if (uint64_t{word_at(p, 6)} + word_at(p, 7) > sections_[kRanges].n)
      return damaged("classes", "ranges are missing");
  }
  for (uint32_t i = 0; i < sections_[kItems].n; ++i) {
    const uint8_t* const p = sections_[kItems].data + size_t{i} * 16;
    if (word_at(p, 0) >= sections_[kClasses].n) return damaged("items", "the class is missing");
    if (word_at(p, 1) > word_at(p, 2)) return damaged("items", "min is above max");
    if (word_at(p, 3) > kItemNotAhead) return damaged("items", "unknown kind");
  }
  for (uint32_t i = 0; i < sections_[kAlternatives].n; ++i) {
    const uint8_t* const p = sections_[kAlternatives].data + size_t{i} * 8;
    if (word_at(p, 1) == 0 || word_at(p, 1) > kMaxItems)
      return damaged("alternatives", "wrong number of items");
    if (uint64_t{word_at(p, 0)} + word_at(p, 1) > sections_[kItems].n)
      return damaged("alternatives", "items are missing");
  }
  for (uint32_t i = 0; i < sections_[kPrograms].n; ++i) {
    const uint8_t* const p = sections_[kPrograms].data + size_t{i} * 8;
    if (uint64_t{word_at(p, 0)} + word_at(p, 1) > sections_[kAlternatives].n) {
      return damaged("programs", "alternatives are missing");
    }
  }
  return Status();
}

Status Tokenizer::check_ops() const {
  uint32_t n_byte_level = 0;
  for (const uint32_t s : {kNormalizers, kPreTokenizers, kDecodeReplace}) {
    for (uint32_t i = 0; i < sections_[s].n; ++i) {
      const uint8_t* const p = sections_[s].data + size_t{i} * 4 * kOpWords;
      const uint32_t kind = word_at(p, 0), argument = word_at(p, 1);
      const bool regex = s == kPreTokenizers && kind == kPreSplitRegex;
      if (regex ? word_at(p, 2) >= sections_[kPrograms].n
                : !pool_string(word_at(p, 2), word_at(p, 3))) {
        return damaged(kSectionNames[s], "string or program out of range");
      }
      if (!pool_string(word_at(p, 4), word_at(p, 5)))
        return damaged(kSectionNames[s], "string out of range");
      const bool empty = word_at(p, 3) == 0;
      bool good = false;
      if (s == kNormalizers) {
        good = kind == kNormNfc || kind == kNormPrepend || (kind == kNormReplace && !empty) ||
               (kind == kNormStrip && argument <= 3);
      } else if (s == kDecodeReplace) {
        good = kind == kNormReplace && !empty && argument <= 1;
      } else if (kind == kPreByteLevel) {
        // After it, words are bytes: it comes once, and only where tokens are bytes.
        good = argument <= 3 && n_byte_level++ == 0 && (flags_ & kFlagByteLevel) != 0;
      } else if (kind == kPreMetaspace) {
        good = !empty && argument <= 5 && n_byte_level == 0;
      } else {
        good = kind >= kPreSplitRegex && kind <= kPreWhitespace &&
               (kind != kPreSplitString || !empty) && (argument & 7) <= kContiguous &&
               argument <= (7 | kInvert);
      }
      if (!good)
        return damaged(kSectionNames[s],
                       "an operation that this build does not know, or its argument");
    }
  }
  return Status();
}

}  // namespace mamba_edge
