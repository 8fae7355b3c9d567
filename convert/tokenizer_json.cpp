#include "convert/tokenizer_json.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "convert/json.h"
#include "engine/text/tokenizer.h"
#include "engine/text/unicode.h"
#include "engine/text/utf8.h"

namespace mamba_edge::convert {
namespace {

using nlohmann::json;
using namespace tokenizer_format;

constexpr char kWordMark[] = "\xE2\x96\x81";  // U+2581

std::string shortened(const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > 120) text = text.substr(0, 120) + "...";
  return text;
}

const uint8_t* data_of(std::string_view text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

std::vector<uint32_t> code_points(std::string_view text) {
  std::vector<uint32_t> codes;
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = decode_utf8(data_of(text) + i, data_of(text) + text.size());
    codes.push_back(c.code);
    i += c.bytes;
  }
  return codes;
}

std::string utf8(uint32_t code) {
  uint8_t bytes[4];
  const uint32_t n = encode_utf8(code, bytes);
  return {reinterpret_cast<const char*>(bytes), n};
}

bool starts_with(std::string_view text, std::string_view start) {
  return text.substr(0, start.size()) == start;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const size_t at = std::min(text.find(from, i), text.size());
    out += text.substr(i, at - i);
    if (at < text.size()) out += to;
    i = at + from.size();
  }
  return out;
}

// The bytes that a token in the GPT-2 alphabet stands for; nothing if it has other characters.
std::optional<std::string> from_alphabet(std::string_view text) {
  static const std::map<uint32_t, char> bytes = [] {
    std::map<uint32_t, char> made;
    for (uint32_t b = 0; b < 256; ++b) {
      made[byte_to_character(static_cast<uint8_t>(b))] = static_cast<char>(b);
    }
    return made;
  }();
  std::string out;
  for (const uint32_t code : code_points(text)) {
    const auto it = bytes.find(code);
    if (it == bytes.end()) return std::nullopt;
    out += it->second;
  }
  return out;
}

// ---- Regular expressions

struct CharClass {
  bool negated = false;
  uint32_t mask = 0;   // categories
  uint32_t flags = 0;  // kClassSpace, kClassWord
  std::vector<std::pair<uint32_t, uint32_t>> ranges;

  bool operator==(const CharClass&) const = default;

  bool contains(uint32_t code) const {
    const uint8_t properties = unicode_properties(code);
    bool in = (category_mask(properties) & mask) != 0;
    in = in || ((flags & kClassSpace) != 0 && (properties & kPropertySpace) != 0);
    in = in || ((flags & kClassWord) != 0 && (properties & kPropertyWord) != 0);
    for (const auto& [first, last] : ranges) in = in || (code >= first && code <= last);
    return in != negated;
  }
};

struct Item {
  CharClass cls;
  uint32_t min = 1, max = 1;
  uint32_t kind = kItemRun;

  bool operator==(const Item&) const = default;
  bool unbounded() const { return max == kNone; }
  bool may_fail() const { return kind >= kItemLookahead || min > 0; }
};

using Sequence = std::vector<Item>;

class RegexParser {
 public:
  RegexParser(std::string_view pattern, const std::string& where)
      : where_(where), pattern_(pattern) {
    codes_ = code_points(pattern);
  }

  std::vector<Sequence> parse() {
    std::vector<Sequence> alternatives = parse_alternatives(false);
    if (at_ < codes_.size()) refuse("an unmatched )");
    check_time(alternatives);
    return alternatives;
  }

 private:
  [[noreturn]] void refuse(const std::string& why) const {
    throw Error(where_ + ": regular expression " + shortened(std::string(pattern_)) +
                " is not supported: " + why);
  }

  bool more() const { return at_ < codes_.size(); }
  bool eat(uint32_t code) {
    if (!more() || codes_[at_] != code) return false;
    ++at_;
    return true;
  }
  bool eat(std::string_view text) {
    for (size_t i = 0; i < text.size(); ++i) {
      if (at_ + i >= codes_.size() || codes_[at_ + i] != static_cast<unsigned char>(text[i]))
        return false;
    }
    at_ += text.size();
    return true;
  }
  uint32_t take(const char* wanted) {
    if (!more()) refuse(std::string("it ends where ") + wanted + " is expected");
    return codes_[at_++];
  }

  std::vector<Sequence> parse_alternatives(bool fold) {
    std::vector<Sequence> all;
    do {
      for (Sequence& sequence : parse_sequence(fold)) all.push_back(std::move(sequence));
      if (all.size() > 256) refuse("too many alternatives");
    } while (eat('|'));
    return all;
  }

  std::vector<Sequence> parse_sequence(bool fold) {
    std::vector<Sequence> sequences(1);
    while (more() && codes_[at_] != '|' && codes_[at_] != ')') {
      if (codes_[at_] == '(') {
        group(fold, &sequences);
        continue;
      }
      Item item;
      item.cls = atom(fold);
      quantifier(&item);
      for (Sequence& sequence : sequences) sequence.push_back(item);
    }
    for (const Sequence& sequence : sequences) {
      if (sequence.size() > kMaxItems) refuse("too long");
    }
    return sequences;
  }

  void group(bool fold, std::vector<Sequence>* sequences) {
    if (eat("(?!") || eat("(?=")) {
      Item item;
      item.kind = codes_[at_ - 1] == '!' ? kItemNotAhead : kItemLookahead;
      item.cls = atom(fold);
      if (!eat(')')) refuse("a look-ahead at more than one character");
      for (Sequence& sequence : *sequences) sequence.push_back(item);
      return;
    }
    if (eat("(?i:")) {
      fold = true;
    } else if (!eat("(?:")) {
      ++at_;
      if (more() && codes_[at_] == '?') refuse("a group of an unknown kind");
    }
    const std::vector<Sequence> inner = parse_alternatives(fold);
    if (!eat(')')) refuse("a missing )");
    if (more() &&
        (codes_[at_] == '?' || codes_[at_] == '*' || codes_[at_] == '+' || codes_[at_] == '{')) {
      refuse("a repeated group");
    }
    // Multiplied out. That keeps the order in which matches are tried only if what is before cannot
    // give back.
    std::vector<Sequence> product;
    for (const Sequence& before : *sequences) {
      for (const Item& item : before) {
        if (item.min != item.max && inner.size() > 1)
          refuse("alternatives after something that is repeated");
      }
      for (const Sequence& after : inner) {
        product.push_back(before);
        product.back().insert(product.back().end(), after.begin(), after.end());
      }
    }
    if (product.size() > 256) refuse("too many alternatives");
    *sequences = std::move(product);
  }

  void quantifier(Item* item) {
    if (eat('?')) {
      item->min = 0;
    } else if (eat('*')) {
      item->min = 0;
      item->max = kNone;
    } else if (eat('+')) {
      item->max = kNone;
    } else if (eat('{')) {
      item->min = number();
      item->max = item->min;
      if (eat(',')) item->max = more() && codes_[at_] == '}' ? kNone : number();
      if (!eat('}') || item->max < item->min || item->max == 0) refuse("a malformed {}");
      if (more() && (codes_[at_] == '+' || codes_[at_] == '?')) refuse("a quantifier after {}");
      return;
    } else {
      return;
    }
    if (eat('+')) {
      item->kind = kItemPossessive;
    } else if (more() && (codes_[at_] == '?' || codes_[at_] == '*')) {
      refuse("a lazy or doubled quantifier");
    }
  }

  uint32_t number() {
    uint32_t value = 0;
    size_t digits = 0;
    for (; more() && codes_[at_] >= '0' && codes_[at_] <= '9' && digits < 4; ++digits) {
      value = value * 10 + (codes_[at_++] - '0');
    }
    if (digits == 0) refuse("a malformed {}");
    return value;
  }

  // One character or class.
  CharClass atom(bool fold) {
    const uint32_t code = take("a character");
    CharClass cls;
    switch (code) {
      case '[':
        return bracket(fold);
      case '\\':
        escape(&cls, fold, true);
        return cls;
      case '.':
        cls.negated = true;
        cls.ranges.push_back({'\n', '\n'});
        return cls;
      case '^':
      case '$':
        refuse("an anchor");
      case '?':
      case '*':
      case '+':
      case '{':
      case ')':
        refuse("a quantifier without a character before it");
      default:
        literal(&cls, code, fold);
        return cls;
    }
  }

  static void literal(CharClass* cls, uint32_t code, bool fold) {
    cls->ranges.push_back({code, code});
    if (!fold) return;
    const bool upper = code >= 'A' && code <= 'Z', lower = code >= 'a' && code <= 'z';
    if (upper || lower) cls->ranges.push_back({code ^ 0x20, code ^ 0x20});
    if (code == 's' || code == 'S') cls->ranges.push_back({0x17F, 0x17F});    // long s
    if (code == 'k' || code == 'K') cls->ranges.push_back({0x212A, 0x212A});  // Kelvin sign
  }

  // After a backslash: adds to `cls`. Returns the character if it was a single one. `alone`: not in
  // brackets.
  std::optional<uint32_t> escape(CharClass* cls, bool fold, bool alone) {
    const uint32_t code = take("an escape");
    const auto negated = [&](const char* name) {
      if (!alone) refuse(std::string("\\") + name + " in brackets");
      cls->negated = true;
    };
    switch (code) {
      case 'S':
        negated("S");
        [[fallthrough]];
      case 's':
        cls->flags |= kClassSpace;
        return std::nullopt;
      case 'D':
        negated("D");
        [[fallthrough]];
      case 'd':
        cls->mask |= category_bit(Category::Nd);
        return std::nullopt;
      case 'P':
        negated("P");
        [[fallthrough]];
      case 'p':
        cls->mask |= property();
        return std::nullopt;
      default:
        break;
    }
    uint32_t single = code;
    if (code == 'n') {
      single = '\n';
    } else if (code == 'r') {
      single = '\r';
    } else if (code == 't') {
      single = '\t';
    } else if (code == 'u') {
      single = 0;
      for (int i = 0; i < 4; ++i) single = single * 16 + hex();
    } else if (code == 'x') {
      single = 0;
      const bool braces = eat('{');
      int digits = 0;
      for (; digits < (braces ? 6 : 2) && more() && codes_[at_] != '}'; ++digits)
        single = single * 16 + hex();
      if (digits == 0 || (braces && !eat('}'))) refuse("a malformed \\x");
    } else if (code >= 0x80 || is_word(code)) {
      refuse("\\" + utf8(code));
    }
    if (single > 0x10FFFF || (single >= 0xD800 && single < 0xE000))
      refuse("a code that is no character");
    literal(cls, single, fold);
    return single;
  }

  uint32_t hex() {
    const uint32_t code = take("a hexadecimal digit");
    if (code >= '0' && code <= '9') return code - '0';
    if (code >= 'a' && code <= 'f') return code - 'a' + 10;
    if (code >= 'A' && code <= 'F') return code - 'A' + 10;
    refuse("a malformed escape");
  }

  uint32_t property() {
    static constexpr const char* kNames =
        "CnLuLlLtLmLoMnMcMeNdNlNoPcPdPsPePiPfPoSmScSkSoZsZlZpCcCfCsCo";
    std::string name;
    if (!eat('{')) refuse("\\p without {");
    while (more() && !eat('}')) name += utf8(codes_[at_++]);
    uint32_t mask = 0;
    for (uint32_t i = 0; i < 30; ++i) {
      const std::string_view category(kNames + 2 * i, 2);
      if (name == category || (name.size() == 1 && name[0] == category[0])) mask |= 1u << i;
    }
    if (mask == 0) refuse("\\p{" + name + "}");
    return mask;
  }

  CharClass bracket(bool fold) {
    CharClass cls;
    cls.negated = eat('^');
    bool first = true;
    for (;; first = false) {
      const uint32_t code = take("]");
      if (code == ']') {
        if (first) refuse("a ] at the start of brackets");
        break;
      }
      if (code == '[') refuse("brackets in brackets");
      if (code == '&' && more() && codes_[at_] == '&') refuse("&& in brackets");
      std::optional<uint32_t> low = code;
      if (code == '\\') {
        low = escape(&cls, fold, false);
      } else {
        literal(&cls, code, fold);
      }
      if (!more() || codes_[at_] != '-' || at_ + 1 >= codes_.size() || codes_[at_ + 1] == ']')
        continue;
      ++at_;
      if (!low) refuse("a range that starts with a class");
      if (fold) refuse("a range in (?i:)");
      uint32_t high = take("]");
      if (high == '\\') {
        const std::optional<uint32_t> escaped = escape(&cls, fold, false);
        if (!escaped) refuse("a range that ends with a class");
        high = *escaped;
      } else if (high == '[') {
        refuse("brackets in brackets");
      }
      if (high < *low) refuse("a range that is empty");
      cls.ranges.push_back({*low, high});
    }
    return cls;
  }

  // Lets only expressions through that can be matched, over a whole text, in time proportional to
  // its length: a run without bound before something that may fail must be consumed by another
  // alternative if it fails.
  void check_time(const std::vector<Sequence>& alternatives) const {
    for (size_t a = 0; a < alternatives.size(); ++a) {
      const Sequence& items = alternatives[a];
      uint64_t ways = 1;
      uint64_t longest = 0;
      uint64_t least = 0;
      size_t open_runs = 0;
      for (size_t k = 0; k < items.size(); ++k) {
        const Item& item = items[k];
        if (item.kind < kItemLookahead) least += item.min;
        if (!item.unbounded()) {
          ways *= item.max - item.min + 1;
          longest += item.max;
        }
        if (ways > 64 || longest > 1024) refuse("too many ways to match");
        const bool followed =
            std::any_of(items.begin() + static_cast<std::ptrdiff_t>(k) + 1, items.end(),
                        [](const Item& later) { return later.may_fail(); });
        if (!item.unbounded() || !followed) continue;
        if (++open_runs > 1 || !consumed_otherwise(alternatives, a, k)) {
          refuse("it could take quadratic time");
        }
      }
      if (least == 0) refuse("it matches nothing at all");
    }
  }

  static bool consumed_otherwise(const std::vector<Sequence>& alternatives, size_t a, size_t k) {
    const Sequence& items = alternatives[a];
    // \s+(?!\S): gives back one character at most.
    if (k + 2 == items.size() && items[k + 1].kind == kItemNotAhead && items[k].kind == kItemRun) {
      CharClass complement = items[k + 1].cls;
      complement.negated = !complement.negated;
      if (complement == items[k].cls) return true;
    }
    for (size_t b = a + 1; b < alternatives.size(); ++b) {
      const Sequence& other = alternatives[b];
      if (other.size() <= k ||
          !std::equal(items.begin(), items.begin() + static_cast<std::ptrdiff_t>(k), other.begin()))
        continue;
      if (!(other[k].cls == items[k].cls) || !other[k].unbounded() || other[k].min > 1) continue;
      if (std::none_of(other.begin() + static_cast<std::ptrdiff_t>(k) + 1, other.end(),
                       [](const Item& later) { return later.may_fail(); })) {
        return true;
      }
    }
    return false;
  }

  const std::string& where_;
  std::string_view pattern_;
  std::vector<uint32_t> codes_;
  size_t at_ = 0;
};

// ---- The file

// The sections of a blob while they are made.
class Blob {
 public:
  void word(uint32_t section, uint32_t value) {
    for (int i = 0; i < 4; ++i) bytes_[section].push_back(static_cast<uint8_t>(value >> (8 * i)));
  }
  void byte(uint32_t section, uint8_t value) { bytes_[section].push_back(value); }
  void bytes(uint32_t section, std::string_view text) {
    bytes_[section].insert(bytes_[section].end(), text.begin(), text.end());
  }
  uint32_t size(uint32_t section) const {
    return static_cast<uint32_t>(bytes_[section].size() / kElementBytes[section]);
  }

  // Adds a string to the pool and its (offset, length) to a section.
  void string(uint32_t section, std::string_view text) {
    const std::vector<uint8_t>& pool = bytes_[kPool];
    auto at = std::search(pool.begin(), pool.end(), text.begin(), text.end(),
                          [](uint8_t a, char b) { return a == static_cast<uint8_t>(b); });
    const auto offset = static_cast<uint32_t>(at - pool.begin());
    if (at == pool.end()) bytes(kPool, text);
    word(section, text.empty() ? 0 : offset);
    word(section, static_cast<uint32_t>(text.size()));
  }

  void op(uint32_t section, uint32_t kind, uint32_t argument, std::string_view a = {},
          std::string_view b = {}) {
    word(section, kind);
    word(section, argument);
    string(section, a);
    string(section, b);
  }

  uint32_t program(const std::vector<Sequence>& alternatives) {
    word(kPrograms, size(kAlternatives));
    word(kPrograms, static_cast<uint32_t>(alternatives.size()));
    for (const Sequence& sequence : alternatives) {
      word(kAlternatives, size(kItems));
      word(kAlternatives, static_cast<uint32_t>(sequence.size()));
      for (const Item& item : sequence) {
        word(kItems, class_number(item.cls));
        word(kItems, item.min);
        word(kItems, item.max);
        word(kItems, item.kind);
      }
    }
    return size(kPrograms) - 1;
  }

  // header: the words from `flags` on.
  std::vector<uint8_t> finish(const std::vector<uint32_t>& header) const {
    std::vector<uint8_t> out(kHeaderBytes);
    const auto put = [&out](size_t index, uint32_t value) {
      for (size_t i = 0; i < 4; ++i) out[4 * index + i] = static_cast<uint8_t>(value >> (8 * i));
    };
    for (uint32_t s = 0; s < kSections; ++s) {
      while (out.size() % 4 != 0) out.push_back(0);
      put(14 + 2 * s, static_cast<uint32_t>(out.size()));
      put(15 + 2 * s, size(s));
      out.insert(out.end(), bytes_[s].begin(), bytes_[s].end());
      if (out.size() > UINT32_MAX / 2) throw Error("tokenizer: more than 2 GiB");
    }
    put(0, kMagic);
    put(1, kVersion);
    put(2, static_cast<uint32_t>(out.size()));
    for (size_t i = 0; i < header.size(); ++i) put(3 + i, header[i]);
    return out;
  }

 private:
  uint32_t class_number(const CharClass& cls) {
    const auto it = std::find(classes_.begin(), classes_.end(), cls);
    if (it != classes_.end()) return static_cast<uint32_t>(it - classes_.begin());
    classes_.push_back(cls);
    for (uint32_t w = 0; w < 4; ++w) {
      uint32_t bits = 0;
      for (uint32_t i = 0; i < 32; ++i)
        bits |= static_cast<uint32_t>(cls.contains(32 * w + i)) << i;
      word(kClasses, bits);
    }
    word(kClasses, cls.mask);
    word(kClasses, cls.flags | (cls.negated ? kClassNegated : 0));
    word(kClasses, size(kRanges));
    uint32_t n = 0;
    for (const auto& [first, last] : cls.ranges) {
      if (last < 128) continue;  // in the bitmap
      word(kRanges, first);
      word(kRanges, last);
      ++n;
    }
    word(kClasses, n);
    return static_cast<uint32_t>(classes_.size() - 1);
  }

  std::vector<uint8_t> bytes_[kSections];
  std::vector<CharClass> classes_;
};

struct AddedToken {
  std::string content;
  uint32_t id;
  uint32_t flags;
  bool normalized;
};

class Compiler {
 public:
  explicit Compiler(const TokenizerFiles& files) : files_(files), name_(files.name) {}

  std::vector<uint8_t> run() {
    root_ = parse_json(files_.tokenizer_json, name_);
    if (!root_.is_object()) throw Error(name_ + ": expected an object");
    const json& version = get(root_, "version");
    if (!version.is_null() && version != "1.0") refuse("version", version);
    normalizer(get(root_, "normalizer"));
    pre_tokenizer(get(root_, "pre_tokenizer"));
    model(get(root_, "model"));
    added_tokens(get(root_, "added_tokens"));
    decoder(get(root_, "decoder"));
    post_processor(get(root_, "post_processor"));
    return build();
  }

 private:
  [[noreturn]] void refuse(const std::string& what, const json& value) const {
    throw Error(name_ + ": " + what + " " + shortened(value) + " is not supported");
  }
  [[noreturn]] void malformed(const std::string& what, const json& value,
                              const char* expected) const {
    throw Error(name_ + ": " + what + " is " + shortened(value) + ", expected " + expected);
  }

  static const json& get(const json& object, const char* key) {
    static const json null;
    const auto it = object.find(key);
    return it == object.end() ? null : *it;
  }
  bool boolean(const json& object, const char* key, std::optional<bool> missing) const {
    const json& value = get(object, key);
    if (value.is_null() && missing) return *missing;
    if (!value.is_boolean()) malformed(key, value, "true or false");
    return value.get<bool>();
  }
  std::string string(const json& object, const char* key) const {
    const json& value = get(object, key);
    if (!value.is_string()) malformed(key, value, "a string");
    return value.get<std::string>();
  }
  uint32_t unsigned_number(const json& value, const std::string& what) const {
    if (!value.is_number_unsigned() || value.get<uint64_t>() > INT32_MAX - 1) {
      malformed(what, value, "a number from 0 to 2147483646");
    }
    return value.get<uint32_t>();
  }
  // The elements of an object of type Sequence, opened up, or the object itself.
  void flatten(const json& node, const char* list, const char* what, std::vector<json>* out,
               int depth = 0) const {
    if (node.is_null()) return;
    if (!node.is_object() || !get(node, "type").is_string())
      malformed(what, node, "an object with a type");
    if (node["type"] != "Sequence") {
      out->push_back(node);
      return;
    }
    const json& elements = get(node, list);
    if (!elements.is_array() || depth > 8) malformed(what, node, "a list");
    for (const json& element : elements) flatten(element, list, what, out, depth + 1);
  }
  void check_count(const std::vector<json>& steps, const char* what) const {
    if (steps.size() > kMaxOps) throw Error(name_ + ": " + what + " has more than 16 steps");
  }

  // {"String": ...} or {"Regex": ...}; a regular expression without special characters is a string.
  std::string pattern_string(const json& pattern, const char* what) const {
    if (pattern.is_object() && get(pattern, "String").is_string())
      return pattern["String"].get<std::string>();
    if (pattern.is_object() && get(pattern, "Regex").is_string()) {
      std::string text = pattern["Regex"].get<std::string>();
      if (text.find_first_of("\\^$.|?*+()[]{}") == std::string::npos) return text;
    }
    refuse(what, pattern);
  }

  struct Step {
    uint32_t kind;
    uint32_t argument;
    std::string a, b;
  };

  void normalizer(const json& node) {
    std::vector<json> steps;
    flatten(node, "normalizers", "normalizer", &steps);
    check_count(steps, "normalizer");
    for (const json& step : steps) {
      const json& type = step["type"];
      Step made = {0, 0, {}, {}};
      if (type == "NFC") {
        made.kind = kNormNfc;
      } else if (type == "Prepend") {
        made.kind = kNormPrepend;
        made.a = string(step, "prepend");
      } else if (type == "Replace") {
        made.kind = kNormReplace;
        made.a = pattern_string(get(step, "pattern"), "normalizer Replace with pattern");
        made.b = string(step, "content");
        if (made.a.empty()) refuse("normalizer", step);
      } else if (type == "Strip") {
        made.kind = kNormStrip;
        made.argument = (boolean(step, "strip_left", std::nullopt) ? 1u : 0u) |
                        (boolean(step, "strip_right", std::nullopt) ? 2u : 0u);
      } else {
        refuse("normalizer", step);
      }
      normalizers_.push_back(made);
      blob_.op(kNormalizers, made.kind, made.argument, made.a, made.b);
    }
  }

  std::string normalize(std::string text) const {
    for (const Step& step : normalizers_) {
      if (step.kind == kNormNfc) {
        std::vector<uint32_t> work(nfc_work(text.size()));
        std::string out(kNfcGrowth * text.size(), '\0');
        out.resize(nfc(text, work, reinterpret_cast<uint8_t*>(out.data())));
        text = out;
      } else if (step.kind == kNormPrepend) {
        if (!text.empty()) text = step.a + text;
      } else if (step.kind == kNormReplace) {
        text = replace_all(text, step.a, step.b);
      } else {
        std::vector<uint32_t> codes = code_points(text);
        size_t begin = 0, end = codes.size();
        while ((step.argument & 1) != 0 && begin < end && is_space(codes[begin])) ++begin;
        while ((step.argument & 2) != 0 && begin < end && is_space(codes[end - 1])) --end;
        text.clear();
        for (size_t i = begin; i < end; ++i) text += utf8(codes[i]);
      }
    }
    return text;
  }

  uint32_t behavior(const json& step, const char* missing) const {
    const json& value = get(step, "behavior");
    const std::string text = value.is_null() && missing != nullptr ? missing
                             : value.is_string()                   ? value.get<std::string>()
                                                                   : "";
    static constexpr const char* kNames[] = {"Removed", "Isolated", "MergedWithPrevious",
                                             "MergedWithNext", "Contiguous"};
    for (uint32_t i = 0; i < 5; ++i) {
      if (text == kNames[i]) return i;
    }
    refuse("behavior", value);
  }

  void pre_tokenizer(const json& node) {
    std::vector<json> steps;
    flatten(node, "pretokenizers", "pre_tokenizer", &steps);
    check_count(steps, "pre_tokenizer");
    for (const json& step : steps) {
      const json& type = step["type"];
      if (type == "ByteLevel") {
        if (byte_level_) refuse("a second pre_tokenizer", step);
        byte_level_ = true;
        const uint32_t space = boolean(step, "add_prefix_space", std::nullopt) ? 1 : 0;
        blob_.op(kPreTokenizers, kPreByteLevel,
                 space | (boolean(step, "use_regex", true) ? 2u : 0u));
      } else if (type == "Split") {
        split(step);
      } else if (type == "Punctuation") {
        blob_.op(kPreTokenizers, kPrePunctuation, behavior(step, "Isolated"));
      } else if (type == "Digits") {
        blob_.op(kPreTokenizers, kPreDigits,
                 boolean(step, "individual_digits", std::nullopt) ? kIsolated : kContiguous);
      } else if (type == "WhitespaceSplit") {
        blob_.op(kPreTokenizers, kPreWhitespace, kRemoved);
      } else if (type == "Whitespace") {
        Item words, others;  // \w+|[^\w\s]+
        words.cls.flags = kClassWord;
        others.cls.flags = kClassWord | kClassSpace;
        others.cls.negated = true;
        words.max = others.max = kNone;
        program({{words}, {others}}, kRemoved | kInvert);
      } else if (type == "CharDelimiterSplit") {
        const std::string delimiter = string(step, "delimiter");
        if (code_points(delimiter).size() != 1)
          malformed("delimiter", step["delimiter"], "one character");
        split_string(step, delimiter, kRemoved);
      } else if (type == "Metaspace") {
        if (byte_level_) refuse("after ByteLevel, pre_tokenizer", step);
        metaspace_step(step);
      } else {
        refuse("pre_tokenizer", step);
      }
    }
  }

  void program(const std::vector<Sequence>& alternatives, uint32_t argument) {
    const uint32_t number = blob_.program(alternatives);
    for (const uint32_t field : {kPreSplitRegex, argument, number, 0u, 0u, 0u})
      blob_.word(kPreTokenizers, field);
  }

  void split_string(const json& step, std::string text, uint32_t argument) {
    if (byte_level_) {  // it is looked for among characters of the alphabet; the engine has their
                        // bytes
      const std::optional<std::string> bytes = from_alphabet(text);
      if (!bytes) refuse("after ByteLevel, pre_tokenizer", step);
      text = *bytes;
    }
    if (text.empty()) refuse("pre_tokenizer", step);
    blob_.op(kPreTokenizers, kPreSplitString, argument, text);
  }

  void split(const json& step) {
    const uint32_t argument =
        behavior(step, nullptr) | (boolean(step, "invert", std::nullopt) ? kInvert : 0);
    const json& pattern = get(step, "pattern");
    if (pattern.is_object() && get(pattern, "Regex").is_string()) {
      const std::string regex = pattern["Regex"].get<std::string>();
      const std::string where = name_ + ": pre_tokenizer Split";
      program(RegexParser(regex, where).parse(), argument);
    } else {
      split_string(step, pattern_string(pattern, "pre_tokenizer Split with pattern"), argument);
    }
  }

  // 0 never, 1 first, 2 always.
  uint32_t prepend_scheme(const json& step) const {
    const json& scheme = get(step, "prepend_scheme");
    const bool add = boolean(step, "add_prefix_space", true);
    if (scheme.is_null()) return add ? 2 : 0;
    if (scheme == "never") return 0;
    if (!add || (scheme != "first" && scheme != "always")) refuse("Metaspace", step);
    return scheme == "first" ? 1 : 2;
  }

  std::string replacement(const json& step) const {
    std::string text = string(step, "replacement");
    if (code_points(text).size() != 1)
      malformed("replacement", step["replacement"], "one character");
    return text;
  }

  void metaspace_step(const json& step) {
    const uint32_t split_here = boolean(step, "split", true) ? 1 : 0;
    blob_.op(kPreTokenizers, kPreMetaspace, split_here | prepend_scheme(step) << 1,
             replacement(step));
  }

  void model(const json& node) {
    if (!node.is_object()) malformed("model", node, "an object");
    const json& type = get(node, "type");
    if (!type.is_null() && type != "BPE") refuse("model type", type);
    const json& dropout = get(node, "dropout");
    if (!dropout.is_null() && dropout != 0) refuse("dropout", dropout);
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      const json& value = get(node, key);
      const bool empty = value.is_string() && value.get_ref<const std::string&>().empty();
      if (!value.is_null() && !empty) refuse(key, value);
    }
    fuse_unknown_ = boolean(node, "fuse_unk", false);
    byte_fallback_ = boolean(node, "byte_fallback", false);
    ignore_merges_ = boolean(node, "ignore_merges", false);

    const json& vocab = get(node, "vocab");
    if (!vocab.is_object()) malformed("model.vocab", vocab, "an object");
    for (const auto& [token, id] : vocab.items()) {
      const uint32_t number = unsigned_number(id, "id of token \"" + token + "\"");
      vocab_.emplace(token, number);
      place(token, number);
    }
    merges(get(node, "merges"));

    const json& unknown = get(node, "unk_token");
    if (unknown.is_null()) return;
    if (!unknown.is_string()) malformed("unk_token", unknown, "a string");
    const auto it = vocab_.find(unknown.get<std::string>());
    if (it != vocab_.end()) {
      unknown_ = it->second;
    } else if (!byte_level_) {
      malformed("unk_token", unknown, "a token of model.vocab");
    }
  }

  void place(const std::string& token, uint32_t id) {
    if (id > 16u << 20)
      throw Error(name_ + ": token \"" + token + "\" has id " + std::to_string(id) +
                  ", expected less than 2^24");
    if (id >= tokens_.size()) tokens_.resize(id + 1);
    if (tokens_[id] && *tokens_[id] != token) {
      throw Error(name_ + ": tokens \"" + *tokens_[id] + "\" and \"" + token +
                  "\" have the same id " + std::to_string(id));
    }
    tokens_[id] = token;
  }

  void merges(const json& list) {
    if (!list.is_array()) malformed("model.merges", list, "a list");
    for (const json& merge : list) {
      std::string left, right;
      if (merge.is_string()) {
        const std::string text = merge.get<std::string>();
        if (starts_with(text, "#version")) continue;
        const size_t space = text.find(' ');
        if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
          malformed("a merge", merge, "two tokens with a space between them");
        }
        left = text.substr(0, space);
        right = text.substr(space + 1);
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
                 merge[1].is_string()) {
        left = merge[0].get<std::string>();
        right = merge[1].get<std::string>();
      } else {
        malformed("a merge", merge, "\"a b\" or [\"a\", \"b\"]");
      }
      const auto l = vocab_.find(left), r = vocab_.find(right), both = vocab_.find(left + right);
      if (l == vocab_.end() || r == vocab_.end() || both == vocab_.end()) {
        malformed("a merge", merge, "tokens that model.vocab has, and their union too");
      }
      merges_[{l->second, r->second}] =
          static_cast<uint32_t>(merge_ids_.size());  // the last of equal ones counts
      merge_ids_.push_back(both->second);
      if (starts_with(right, kWordMark) &&
          !(left.size() >= 3 && left.substr(left.size() - 3) == kWordMark)) {
        merges_cross_marks_ = true;
      }
    }
  }

  void added_tokens(const json& list) {
    if (list.is_null()) return;
    if (!list.is_array()) malformed("added_tokens", list, "a list");
    std::unordered_map<std::string, size_t> seen;
    uint32_t largest = 0;
    for (const json& entry : list) {
      if (!entry.is_object()) malformed("added_tokens", entry, "objects");
      AddedToken token;
      token.content = string(entry, "content");
      if (token.content.empty()) continue;
      token.normalized = boolean(entry, "normalized", std::nullopt);
      token.flags = (boolean(entry, "special", std::nullopt) ? kAddedSpecial : 0) |
                    (boolean(entry, "single_word", std::nullopt) ? kAddedSingleWord : 0) |
                    (boolean(entry, "lstrip", std::nullopt) ? kAddedLeftStrip : 0) |
                    (boolean(entry, "rstrip", std::nullopt) ? kAddedRightStrip : 0);
      const std::string what = "id of added token " + shortened(token.content);
      token.id = unsigned_number(get(entry, "id"), what);
      // The library gives a token that is new the next free number, whatever the file says.
      const auto known = vocab_.find(token.content);
      const auto earlier = seen.find(token.content);
      const auto n_vocab = static_cast<uint32_t>(vocab_.size());
      const uint32_t expected = known != vocab_.end()   ? known->second
                                : earlier != seen.end() ? added_[earlier->second].id
                                : added_.empty()        ? n_vocab
                                : largest >= n_vocab    ? largest + 1
                                                        : n_vocab;
      if (token.id != expected) malformed(what, entry["id"], std::to_string(expected).c_str());
      largest = std::max(largest, token.id);
      place(token.content, token.id);
      if (earlier != seen.end()) {
        added_[earlier->second] = token;
      } else {
        seen.emplace(token.content, added_.size());
        added_.push_back(token);
      }
    }
  }

  void decoder(const json& node) {
    std::vector<json> steps;
    flatten(node, "decoders", "decoder", &steps);
    if (byte_level_) {
      steps.erase(std::remove_if(steps.begin(), steps.end(),
                                 [](const json& s) { return s["type"] == "Fuse"; }),
                  steps.end());
      if (steps.size() != 1 || steps[0]["type"] != "ByteLevel")
        refuse("with pre_tokenizer ByteLevel, decoder", node);
      return;
    }
    if (steps.empty()) join_with_space_ = true;
    // What each step works on is only right in the order Replace or Metaspace, ByteFallback, Fuse,
    // Strip.
    int stage = 0;
    for (const json& step : steps) {
      const json& type = step["type"];
      const int at = type == "Replace" || type == "Metaspace" ? 1
                     : type == "ByteFallback"                 ? 2
                     : type == "Fuse"                         ? 3
                     : type == "Strip"                        ? 4
                                                              : 0;
      if (at == 0) refuse("decoder", step);
      if (at <= stage && at != 3) refuse("in this place, decoder", step);
      if (at == 3 && stage > 3) continue;  // one string already
      if (at == 1) {
        const bool metaspace = type == "Metaspace";
        const std::string from =
            metaspace ? replacement(step)
                      : pattern_string(get(step, "pattern"), "decoder Replace with pattern");
        if (from.empty()) refuse("decoder", step);
        const std::string to = metaspace ? " " : string(step, "content");
        blob_.op(kDecodeReplace, kNormReplace, metaspace && prepend_scheme(step) != 0 ? 1 : 0, from,
                 to);
      } else if (at == 2) {
        decode_bytes_ = true;
      } else if (at == 4) {
        const uint32_t start = unsigned_number(get(step, "start"), "start");
        const uint32_t stop = unsigned_number(get(step, "stop"), "stop");
        const std::vector<uint32_t> content = code_points(string(step, "content"));
        if (content.size() != 1 || stop != 0 || start > 0xFFFF || stage != 3)
          refuse("decoder", step);
        strip_char_ = content[0];
        strip_count_ = start;
      }
      stage = at;
    }
  }

  void post_processor(const json& node) {
    std::vector<json> steps;
    flatten(node, "processors", "post_processor", &steps);
    bool adds = false;
    for (const json& step : steps) {
      const json& type = step["type"];
      std::vector<uint32_t> before, after;
      if (type == "ByteLevel") continue;  // changes offsets only
      if (type == "TemplateProcessing") {
        template_ids(step, &before, &after);
      } else if (type == "RobertaProcessing" || type == "BertProcessing") {
        before.push_back(pair_id(step, "cls"));
        after.push_back(pair_id(step, "sep"));
      } else {
        refuse("post_processor", step);
      }
      // The library gives a second one the pieces that the first one made, as if they were several
      // texts.
      if (adds) refuse("a second post_processor that adds tokens,", step);
      adds = true;
      prefix_.insert(prefix_.begin(), before.begin(), before.end());
      suffix_.insert(suffix_.end(), after.begin(), after.end());
    }
    for (const uint32_t id : prefix_) blob_.word(kPrefix, known_id(id));
    for (const uint32_t id : suffix_) blob_.word(kSuffix, known_id(id));
  }

  uint32_t known_id(uint32_t id) const {
    if (id >= tokens_.size()) malformed("post_processor", id, "the id of a token");
    return id;
  }

  uint32_t pair_id(const json& step, const char* key) const {
    const json& pair = get(step, key);
    if (!pair.is_array() || pair.size() != 2) malformed(key, pair, "[token, id]");
    return unsigned_number(pair[1], key);
  }

  void template_ids(const json& step, std::vector<uint32_t>* before,
                    std::vector<uint32_t>* after) const {
    const json& single = get(step, "single");
    if (!single.is_array()) malformed("TemplateProcessing single", single, "a list");
    bool text = false;
    for (const json& piece : single) {
      const json& sequence = piece.is_object() ? get(piece, "Sequence") : piece;
      const json& special = piece.is_object() ? get(piece, "SpecialToken") : piece;
      if (sequence.is_object() && get(sequence, "id") == "A" && !text) {
        text = true;
      } else if (special.is_object() && get(special, "id").is_string()) {
        const json& known = get(step, "special_tokens");
        const json& entry =
            known.is_object() ? get(known, special["id"].get<std::string>().c_str()) : known;
        const json& ids = entry.is_object() ? get(entry, "ids") : entry;
        if (!ids.is_array())
          malformed("TemplateProcessing special_tokens", known, "the ids of each token used");
        for (const json& id : ids)
          (text ? after : before)->push_back(unsigned_number(id, "TemplateProcessing id"));
      } else {
        refuse("TemplateProcessing piece", piece);
      }
    }
    if (!text) refuse("TemplateProcessing single", single);
  }

  // ---- start and end of text

  std::optional<uint32_t> id_of(const std::string& token) const {
    for (const AddedToken& added : added_) {
      if (added.content == token) return added.id;
    }
    const auto it = vocab_.find(token);
    if (it == vocab_.end()) return std::nullopt;
    return it->second;
  }

  // A file beside tokenizer.json.
  std::string beside(const char* name) const {
    return std::filesystem::path(files_.name).replace_filename(name).string();
  }

  uint32_t named_token(const char* token_key, const char* id_key, int32_t from_config) const {
    const std::pair<std::string, const std::string*> named[] = {
        {beside("tokenizer_config.json"), &files_.tokenizer_config_json},
        {beside("special_tokens_map.json"), &files_.special_tokens_map_json}};
    for (const auto& [file, text] : named) {
      if (text->empty()) continue;
      const json parsed = parse_python_json(*text, file);
      if (!parsed.is_object()) throw Error(file + ": expected an object");
      const json* value = &get(parsed, token_key);
      if (value->is_object()) value = &get(*value, "content");
      if (value->is_null()) continue;
      if (!value->is_string())
        throw Error(file + ": " + token_key + " is " + shortened(*value) + ", expected a string");
      if (const auto id = id_of(value->get<std::string>())) return *id;
    }
    if (!files_.generation_config_json.empty()) {
      const std::string file = beside("generation_config.json");
      const json parsed = parse_python_json(files_.generation_config_json, file);
      if (!parsed.is_object()) throw Error(file + ": expected an object");
      const json* value = &get(parsed, id_key);
      if (value->is_array() && !value->empty()) value = &(*value)[0];
      if (value->is_number_unsigned() && value->get<uint64_t>() < tokens_.size())
        return value->get<uint32_t>();
    }
    return from_config >= 0 && static_cast<size_t>(from_config) < tokens_.size()
               ? static_cast<uint32_t>(from_config)
               : kNone;
  }

  // ---- the blob

  std::vector<uint8_t> build() {
    const auto n = static_cast<uint32_t>(tokens_.size());
    std::vector<std::string> bytes(n);
    std::vector<uint8_t> flags(n, 0);
    for (uint32_t id = 0; id < n; ++id) {
      if (!tokens_[id]) continue;
      flags[id] = kTokenPresent;
      std::optional<std::string> mapped = *tokens_[id];
      if (byte_level_) mapped = from_alphabet(*tokens_[id]);
      bytes[id] = mapped ? *mapped : *tokens_[id];
      if (mapped && !bytes[id].empty() && vocab_.count(*tokens_[id]) > 0) flags[id] |= kTokenWord;
      if (decode_bytes_ && is_byte_token(*tokens_[id])) flags[id] |= kTokenByte;
    }
    for (const AddedToken& token : added_) {
      if ((token.flags & kAddedSpecial) != 0) flags[token.id] |= kTokenSpecial;
    }
    uint32_t longest = 0;
    blob_.word(kTokenOffsets, 0);
    for (const std::string& text : bytes) {
      blob_.bytes(kTokenBytes, text);
      blob_.word(kTokenOffsets, blob_.size(kTokenBytes));
      longest = std::max(longest, static_cast<uint32_t>(text.size()));
    }
    hash_table(bytes, flags);
    merge_table(n);
    byte_tables();
    added_table(kAddedRaw, false);
    added_table(kAddedNorm, true);

    uint32_t header_flags =
        (byte_level_ ? kFlagByteLevel : 0) | (byte_fallback_ ? kFlagByteFallback : 0) |
        (fuse_unknown_ ? kFlagFuseUnknown : 0) | (ignore_merges_ ? kFlagIgnoreMerges : 0) |
        (join_with_space_ ? kFlagJoinWithSpace : 0);
    const bool unknown_ends_with_mark =
        unknown_ != kNone && tokens_[unknown_]->size() >= 3 &&
        tokens_[unknown_]->substr(tokens_[unknown_]->size() - 3) == kWordMark;
    if (!byte_level_ && !ignore_merges_ && !merges_cross_marks_ && !unknown_ends_with_mark &&
        nothing_is_dropped() && vocab_.count(kWordMark) > 0) {
      header_flags |= kFlagWordsStartWithMark;
    }
    const std::vector<uint32_t> header = {
        header_flags,
        n,
        unknown_,
        named_token("bos_token", "bos_token_id", files_.config_bos),
        named_token("eos_token", "eos_token_id", files_.config_eos),
        longest,
        strip_char_,
        strip_count_};

    for (const uint8_t f : flags) blob_.byte(kTokenFlags, f);
    std::vector<uint8_t> out = blob_.finish(header);
    mark_whole_tokens(&out);
    return out;
  }

  // Whether each character gives a symbol, so that marks which are apart in the text stay apart.
  bool nothing_is_dropped() const {
    if (unknown_ != kNone) return true;
    static constexpr char kHex[] = "0123456789ABCDEF";
    for (size_t b = 0; b < 256 && byte_fallback_; ++b) {
      if (vocab_.count(std::string("<0x") + kHex[b / 16] + kHex[b % 16] + '>') == 0) return false;
    }
    return byte_fallback_;
  }

  static bool is_byte_token(const std::string& text) {
    return text.size() == 6 && starts_with(text, "<0x") && text[5] == '>' &&
           text.find_first_not_of("0123456789ABCDEFabcdef", 3) == 5;
  }

  void hash_table(const std::vector<std::string>& bytes, const std::vector<uint8_t>& flags) {
    size_t words = 0;
    for (const uint8_t f : flags) words += (f & kTokenWord) != 0;
    uint32_t slots = 1;
    while (3 * size_t{slots} < 4 * words + 3) slots *= 2;
    std::vector<uint32_t> table(slots, kNone);
    for (uint32_t id = 0; id < bytes.size(); ++id) {
      if ((flags[id] & kTokenWord) == 0) continue;
      uint32_t slot = hash(bytes[id]) & (slots - 1);
      while (table[slot] != kNone) slot = (slot + 1) & (slots - 1);
      table[slot] = id;
    }
    for (const uint32_t id : table) blob_.word(kTokenHash, id);
  }

  void merge_table(uint32_t n) {
    uint32_t written = 0;
    auto it = merges_.begin();
    for (uint32_t left = 0; left < n; ++left) {
      blob_.word(kMergeIndex, written);
      for (; it != merges_.end() && it->first.first == left; ++it, ++written) {
        blob_.word(kMerges, it->first.second);
        blob_.word(kMerges, it->second);
      }
    }
    blob_.word(kMergeIndex, written);
    for (const uint32_t id : merge_ids_) blob_.word(kMergeIds, id);
  }

  void byte_tables() {
    const auto vocab_id = [this](const std::string& token) {
      const auto it = vocab_.find(token);
      return it == vocab_.end() ? kNone : it->second;
    };
    for (uint32_t b = 0; b < 256; ++b) {
      const uint32_t code = byte_level_ ? byte_to_character(static_cast<uint8_t>(b)) : b;
      blob_.word(kSingle, byte_level_ || b < 128 ? vocab_id(utf8(code)) : kNone);
    }
    static constexpr char kHex[] = "0123456789ABCDEF";
    for (uint32_t b = 0; b < 256; ++b) {
      const std::string token = std::string("<0x") + kHex[b / 16] + kHex[b % 16] + '>';
      // With ByteLevel these would be the bytes of the alphabet's characters, which all have tokens
      // of their own.
      blob_.word(kFallback, byte_fallback_ && !byte_level_ ? vocab_id(token) : kNone);
    }
  }

  void added_table(uint32_t section, bool normalized) {
    std::map<std::string, const AddedToken*> sorted;
    for (const AddedToken& token : added_) {
      if (token.normalized != normalized) continue;
      const std::string pattern = normalized ? normalize(token.content) : token.content;
      if (pattern.empty()) continue;
      const auto [it, fresh] = sorted.emplace(pattern, &token);
      if (!fresh && token.id < it->second->id) it->second = &token;
    }
    for (const auto& [pattern, token] : sorted) {
      blob_.string(section, pattern);
      blob_.word(section, token->id);
      blob_.word(section, token->flags);
    }
  }

  // Asks the engine which tokens a word made of their own bytes becomes; for these it need not
  // merge.
  void mark_whole_tokens(std::vector<uint8_t>* blob) const {
    Tokenizer tokenizer;
    const Status status = Tokenizer::open(*blob, &tokenizer);
    if (!status.ok()) throw Error(name_ + ": " + status.message());
    uint32_t flags_at;
    std::memcpy(&flags_at, blob->data() + 56 + 8 * kTokenFlags, 4);
    std::vector<std::byte> scratch;
    std::vector<int32_t> ids;
    for (int32_t id = 0; id < tokenizer.n_tokens(); ++id) {
      const size_t at = flags_at + static_cast<size_t>(id);
      if (((*blob)[at] & kTokenWord) == 0) continue;
      const std::string_view word = tokenizer.token_bytes(id);
      scratch.resize(std::max(scratch.size(), tokenizer.scratch_bytes(word.size())));
      ids.resize(std::max(ids.size(), word.size()));
      size_t n = 0;
      const Status encoded = tokenizer.encode_word(word, scratch, ids.data(), ids.size(), &n);
      if (!encoded.ok()) throw Error(name_ + ": " + encoded.message());
      if (n == 1 && ids[0] == id) (*blob)[at] |= kTokenWhole;
    }
  }

  const TokenizerFiles& files_;
  const std::string& name_;
  json root_;
  Blob blob_;
  std::vector<Step> normalizers_;
  bool byte_level_ = false, byte_fallback_ = false, fuse_unknown_ = false, ignore_merges_ = false;
  bool join_with_space_ = false, decode_bytes_ = false, merges_cross_marks_ = false;
  uint32_t unknown_ = kNone, strip_char_ = 0, strip_count_ = 0;
  std::unordered_map<std::string, uint32_t> vocab_;
  std::vector<std::optional<std::string>> tokens_;  // by id
  std::map<std::pair<uint32_t, uint32_t>, uint32_t> merges_;
  std::vector<uint32_t> merge_ids_;
  std::vector<AddedToken> added_;
  std::vector<uint32_t> prefix_, suffix_;
};

}  // namespace

std::vector<uint8_t> compile_tokenizer(const TokenizerFiles& files) {
  return Compiler(files).run();
}

}  // namespace mamba_edge::convert
