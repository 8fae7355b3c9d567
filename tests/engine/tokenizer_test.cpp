#include "engine/text/tokenizer.h"

#include <gtest/gtest.h>
#include <utf8proc.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <random>
#include <sstream>

#include "engine/text/utf8.h"
#include "tests/engine/tokenizer_builders.h"

namespace mamba_edge {
namespace {

using nlohmann::json;
using testing::byte_level_json;
using testing::Compiled;
using testing::read_file;
using testing::shared_file;
using testing::source_file;

using Ids = std::vector<int32_t>;

uint32_t draw(std::mt19937& random, size_t below) {
  return static_cast<uint32_t>(random() % below);
}

std::string replacement_characters(size_t n) {
  std::string text;
  for (size_t i = 0; i < n; ++i) text += "\xEF\xBF\xBD";
  return text;
}

std::vector<json> json_lines(const std::string& path) {
  std::istringstream in(read_file(path));
  std::vector<json> lines;
  for (std::string line; std::getline(in, line);) {
    if (!line.empty()) lines.push_back(json::parse(line));
  }
  return lines;
}

std::string random_text(std::mt19937& random, uint32_t characters) {
  std::string text;
  for (uint32_t i = 0; i < characters; ++i) {
    const uint32_t kind = draw(random, 10);
    uint32_t code = kind < 4   ? 32 + draw(random, 95)
                    : kind < 5 ? 9 + draw(random, 5)
                    : kind < 7 ? 0x80 + draw(random, 0x780)
                    : kind < 9 ? 0x800 + draw(random, 0xD000)
                               : 0xE000 + draw(random, 0x102000);
    uint8_t bytes[4];
    text.append(reinterpret_cast<char*>(bytes), encode_utf8(code, bytes));
  }
  return text;
}

std::string random_bytes(std::mt19937& random, uint32_t n) {
  std::string text;
  for (uint32_t i = 0; i < n; ++i) {
    text += static_cast<char>(draw(random, 3) == 0 ? draw(random, 256) : 32 + draw(random, 95));
  }
  return text;
}

std::string nfc_of(const std::string& text) {
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

// ---- What the Rust library says

class Golden : public ::testing::TestWithParam<const char*> {};

TEST_P(Golden, EveryCaseHasTheIdsOfTheRustLibrary) {
  const std::string folder = shared_file(std::string("golden/tokenizer-") + GetParam());
  const std::string file = read_file(folder + "/tokenizer.json");
  if (file.empty()) GTEST_SKIP() << "no golden data at " << folder;
  const Compiled tokenizer(file);
  const std::vector<json> cases = json_lines(folder + "/cases.jsonl");
  ASSERT_GE(cases.size(), 394u);
  for (const json& line : cases) {
    const std::string text = line["text"];
    EXPECT_EQ(tokenizer.encode(text), line["ids"].get<Ids>()) << line["text"];
  }
  for (const json& line : json_lines(folder + "/decode.jsonl")) {
    const Ids ids = line["ids"];
    EXPECT_EQ(tokenizer.decode(ids), line["text"]) << line["ids"];
    EXPECT_EQ(tokenizer.decode(ids, MAMBA_EDGE_SKIP_SPECIAL), line["text_without_special"])
        << line["ids"];
  }
}

INSTANTIATE_TEST_SUITE_P(Published, Golden, ::testing::Values("gpt-neox", "falcon", "llama-spm"),
                         [](const auto& param) {
                           std::string name = param.param;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

TEST(Tokenizer, VariantsHaveTheIdsOfTheRustLibrary) {
  const std::string folder = source_file("tests/data/tokenizer-small");
  const std::vector<json> variants = json_lines(folder + "/variants.jsonl");
  ASSERT_GT(variants.size(), 50u);
  const json byte_level = json::parse(read_file(source_file("models/mamba1-tiny/tokenizer.json")));
  const json spm = json::parse(read_file(folder + "/spm/tokenizer.json"));
  size_t texts = 0;
  for (const json& variant : variants) {
    SCOPED_TRACE(variant["name"].get<std::string>());
    json patched = variant["base"] == "spm" ? spm : byte_level;
    for (const auto& [key, value] : variant["patch"].items()) {
      if (key != "model") {
        patched[key] = value;
        continue;
      }
      for (const auto& [name, member] : value.items()) patched["model"][name] = member;
    }
    const Compiled tokenizer(patched.dump());
    for (const json& pair : variant["encode"]) {
      const std::string text = pair[0];
      EXPECT_EQ(tokenizer.encode(text), pair[1].get<Ids>()) << pair[0];
      ++texts;
    }
    for (const json& triple : variant["decode"]) {
      EXPECT_EQ(tokenizer.decode(triple[0]), triple[1]);
      EXPECT_EQ(tokenizer.decode(triple[0], MAMBA_EDGE_SKIP_SPECIAL), triple[2]);
    }
  }
  EXPECT_GT(texts, 700u);
}

void check_prompts(const std::string& folder) {
  SCOPED_TRACE(folder);
  const Compiled tokenizer(read_file(folder + "/tokenizer.json"));
  for (const json& entry : json::parse(read_file(folder + "/text.json"))) {
    const std::string prompt = entry["prompt"];
    EXPECT_EQ(tokenizer.encode(prompt), entry["prompt_ids"].get<Ids>());
    std::string hex;
    for (const char c : tokenizer.bytes(entry["greedy_ids"])) {
      static constexpr char kDigits[] = "0123456789abcdef";
      hex += kDigits[static_cast<uint8_t>(c) >> 4];
      hex += kDigits[static_cast<uint8_t>(c) & 15];
    }
    EXPECT_EQ(hex, entry["continuation_hex"]);
  }
}

TEST(Tokenizer, PromptsOfSmallModels) {
  check_prompts(source_file("tests/data/tokenizer-small/neox-277"));
  check_prompts(source_file("tests/data/tokenizer-small/neox-301"));
  for (const char* name :
       {"falcon-mamba-hf-eps", "mamba1-hf-dims", "mamba1-hf-tied", "mamba2-hf"}) {
    const std::string folder = shared_file(std::string("golden/") + name);
    if (!read_file(folder + "/text.json").empty()) check_prompts(folder);
  }
}

// ---- Round trips

TEST(Tokenizer, ByteLevelKeepsEveryByte) {
  const Compiled plain(byte_level_json().dump());
  json with_nfc = byte_level_json();
  with_nfc["normalizer"] = {{"type", "NFC"}};
  const Compiled composing(with_nfc.dump());
  std::mt19937 random(3);
  for (int round = 0; round < 3000; ++round) {
    const std::string bytes = random_bytes(random, draw(random, 60));
    ASSERT_EQ(plain.bytes(plain.encode(bytes)), bytes);
    const std::string text = random_text(random, draw(random, 40));
    ASSERT_EQ(plain.decode(plain.encode(text)), text);
    ASSERT_EQ(composing.decode(composing.encode(text)), nfc_of(text));
  }
}

TEST(Tokenizer, ByteFallbackKeepsEveryByte) {
  const Compiled tokenizer(read_file(source_file("tests/data/tokenizer-small/spm/tokenizer.json")));
  std::mt19937 random(4);
  for (int round = 0; round < 2000; ++round) {
    const std::string text = random_text(random, draw(random, 30));
    const Ids ids = tokenizer.encode(text, MAMBA_EDGE_NO_TEMPLATE | MAMBA_EDGE_PLAIN_TEXT);
    std::string expected;  // U+2581 is what a space becomes; it comes back as one
    for (size_t i = 0; i < text.size();) {
      const bool mark = text.compare(i, 3, "\xE2\x96\x81") == 0;
      expected += mark ? " " : text.substr(i, 1);
      i += mark ? 3 : 1;
    }
    ASSERT_EQ(tokenizer.decode(ids), expected) << text;
  }
  const Ids stray = tokenizer.encode("a\xFF\xC3", MAMBA_EDGE_NO_TEMPLATE);
  ASSERT_GE(stray.size(), 3u);
  EXPECT_EQ(tokenizer->token_bytes(stray[stray.size() - 2]), "<0xFF>");
  EXPECT_EQ(tokenizer->token_bytes(stray.back()), "<0xC3>");
}

// ---- The flags, sizes and errors of encode

TEST(Tokenizer, PlainTextAndTemplate) {
  const Compiled tokenizer(byte_level_json().dump());
  EXPECT_EQ(tokenizer.encode("a<eot>b"), (Ids{'a', 262, 'b'}));
  EXPECT_EQ(tokenizer.encode("<eot>", MAMBA_EDGE_PLAIN_TEXT), (Ids{'<', 'e', 'o', 't', '>'}));
  const Compiled spm(read_file(source_file("tests/data/tokenizer-small/spm/tokenizer.json")));
  EXPECT_EQ(spm.encode(""), (Ids{1}));
  EXPECT_EQ(spm.encode("", MAMBA_EDGE_NO_TEMPLATE), (Ids{}));
}

TEST(Tokenizer, SaysHowManyIdsThereAre) {
  const Compiled tokenizer(byte_level_json().dump());
  std::vector<std::byte> scratch(tokenizer->scratch_bytes(5));
  int32_t ids[3] = {-7, -7, -7};
  size_t n = 0;
  const Status status = tokenizer->encode("vwxyz", 0, scratch, ids, 2, &n);
  EXPECT_EQ(status.code(), MAMBA_EDGE_TOO_SMALL);
  EXPECT_EQ(n, 5u);
  EXPECT_EQ(ids[1], 'w');
  EXPECT_EQ(ids[2], -7);
  EXPECT_EQ(tokenizer->encode("vwxyz", 0, scratch, nullptr, 0, &n).code(), MAMBA_EDGE_TOO_SMALL);
  EXPECT_EQ(n, 5u);
  scratch.pop_back();
  EXPECT_EQ(tokenizer->encode("vwxyz", 0, scratch, ids, 3, &n).code(), MAMBA_EDGE_TOO_SMALL);
  EXPECT_EQ(tokenizer->encode("", 4, scratch, ids, 3, &n).code(), MAMBA_EDGE_INVALID_ARGUMENT);
  EXPECT_EQ(tokenizer->encode("", 0, scratch, nullptr, 3, &n).code(), MAMBA_EDGE_INVALID_ARGUMENT);
  EXPECT_EQ(tokenizer->scratch_bytes(SIZE_MAX / 2), SIZE_MAX);
  EXPECT_EQ(tokenizer->scratch_bytes(size_t{1} << 32), SIZE_MAX);
}

// The scratch memory may lie anywhere, and not a byte beyond its end is touched (AddressSanitizer
// sees that).
TEST(Tokenizer, ScratchOfAnyAlignmentSuffices) {
  json prefixed = byte_level_json();
  prefixed["normalizer"] = {
      {"type", "Sequence"},
      {"normalizers",
       {{{"type", "Prepend"}, {"prepend", "++"}},
        {{"type", "NFC"}},
        {{"type", "Replace"}, {"pattern", {{"String", "x"}}}, {"content", "four"}}}}};
  prefixed["pre_tokenizer"]["add_prefix_space"] = true;
  const Compiled tokenizer(prefixed.dump());
  const std::string texts[] = {"", "x", std::string(200, 'x'),
                               "\xF0\x9D\x85\xA0\xF0\x9D\x85\xA0\xF0\x9D\x85\xA0"};
  for (const std::string& text : texts) {
    for (size_t shift = 0; shift < 8; ++shift) {
      std::vector<std::byte> memory(shift + tokenizer->scratch_bytes(text.size()));
      std::vector<int32_t> ids(5000);
      size_t n = 0;
      ASSERT_TRUE(
          tokenizer->encode(text, 0, std::span(memory).subspan(shift), ids.data(), ids.size(), &n)
              .ok());
      ids.resize(n);
      EXPECT_EQ(ids, tokenizer.encode(text));
    }
  }
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("axb")), " ++afourb");
}

// ---- Time

// Quadratic merging of these takes hours; a generous limit keeps slow machines and sanitizers
// green.
TEST(Tokenizer, GiantWordsTakeNoQuadraticTime) {
  const Compiled byte_level(byte_level_json().dump());
  json cl100k = byte_level_json();
  cl100k["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"},
         {"pattern",
          {{"Regex",
            "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
            "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
            "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}}},
         {"behavior", "Isolated"},
         {"invert", false}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  const Compiled generic(cl100k.dump());
  const Compiled spm(read_file(source_file("tests/data/tokenizer-small/spm/tokenizer.json")));
  std::string random_letters;
  std::mt19937 random(5);
  for (int i = 0; i < 1000000; ++i) random_letters += static_cast<char>('a' + draw(random, 26));
  const auto start = std::chrono::steady_clock::now();
  for (const Compiled* tokenizer : {&byte_level, &generic, &spm}) {
    EXPECT_GT(tokenizer->encode(std::string(1000000, 'a')).size(), 200000u);
    tokenizer->encode(random_letters);
    tokenizer->encode(std::string(1000000, ' '));
    tokenizer->encode(std::string(999999, ' ') + "x");
    tokenizer->encode(std::string(1000000, '\n'));
    tokenizer->encode(std::string(1000000, '<'));
    tokenizer->encode(std::string(1000000, '\xCC'));
    tokenizer->encode(std::string(1000000, '1'));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(120));
}

// The short and the long way to merge: the same word alone, and where it is too long for the short
// way.
TEST(Tokenizer, BothWaysToMergeAgree) {
  const json spm = json::parse(read_file(source_file("models/mamba1-tiny/tokenizer.json")));
  json single = spm;
  single["pre_tokenizer"]["use_regex"] = false;
  const Compiled tokenizer(single.dump());
  const std::string separator(40, '\x01');  // merges with nothing
  const size_t n_separator = tokenizer.encode(separator).size();
  std::mt19937 random(6);
  for (int round = 0; round < 3000; ++round) {
    std::string word;
    for (uint32_t i = draw(random, 24) + 1; i > 0; --i) word += "etaoinsh rdlu"[draw(random, 13)];
    Ids joined = tokenizer.encode(separator + word);
    joined.erase(joined.begin(), joined.begin() + static_cast<std::ptrdiff_t>(n_separator));
    ASSERT_EQ(tokenizer.encode(word), joined) << word;
  }
}

// ---- Decoding

TEST(Decoder, GivesWholeCharactersOnly) {
  const Compiled tokenizer(byte_level_json().dump());
  mamba_edge_decoder decoder = {};
  ASSERT_TRUE(tokenizer->decoder_init(&decoder, 0).ok());
  char text[16];
  size_t n = 0;
  std::string all;
  const std::vector<size_t> lengths = {0, 0, 3, 1, 0, 4};
  const Ids ids = {0xE6, 0x97, 0xA5, 'x', 0xC3, 'y'};
  for (size_t i = 0; i < ids.size(); ++i) {
    ASSERT_TRUE(tokenizer->decode(&decoder, ids[i], text, sizeof(text), &n).ok());
    EXPECT_EQ(n, lengths[i]);
    all.append(text, n);
  }
  EXPECT_EQ(all, "\xE6\x97\xA5x\xEF\xBF\xBDy");
  ASSERT_TRUE(tokenizer->decode(&decoder, 0xF0, text, sizeof(text), &n).ok());
  mamba_edge_decoder fork = decoder;
  ASSERT_TRUE(tokenizer->decode_finish(&decoder, text, sizeof(text), &n).ok());
  EXPECT_EQ(std::string(text, n), replacement_characters(1));
  for (const int32_t byte : {0x9F, 0x9A, 0x80}) {
    ASSERT_TRUE(tokenizer->decode(&fork, byte, text, sizeof(text), &n).ok());
  }
  EXPECT_EQ(std::string(text, n), "\xF0\x9F\x9A\x80");
}

TEST(Decoder, TooSmallChangesNothing) {
  const Compiled tokenizer(byte_level_json().dump());
  mamba_edge_decoder decoder = {};
  ASSERT_TRUE(tokenizer->decoder_init(&decoder, 0).ok());
  char text[16];
  size_t n = 0;
  ASSERT_TRUE(tokenizer->decode(&decoder, 0xC3, text, 0, &n).ok());
  EXPECT_EQ(tokenizer->decode(&decoder, 258, text, 3, &n).code(), MAMBA_EDGE_TOO_SMALL);  // " the"
  EXPECT_EQ(n, 7u);
  ASSERT_TRUE(tokenizer->decode(&decoder, 258, text, 7, &n).ok());
  EXPECT_EQ(std::string(text, n), "\xEF\xBF\xBD the");
}

TEST(Decoder, RefusesWhatIsNotADecoderOrAToken) {
  const Compiled tokenizer(byte_level_json().dump());
  mamba_edge_decoder decoder = {};
  EXPECT_EQ(tokenizer->decoder_init(&decoder, 8).code(), MAMBA_EDGE_INVALID_ARGUMENT);
  ASSERT_TRUE(tokenizer->decoder_init(&decoder, 0).ok());
  char text[64];
  size_t n = 0;
  for (const int32_t token : {-1, 263, INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(tokenizer->decode(&decoder, token, text, sizeof(text), &n).code(),
              MAMBA_EDGE_INVALID_ARGUMENT);
    EXPECT_FALSE(tokenizer->is_special(token));
    EXPECT_EQ(tokenizer->token_bytes(token), "");
  }
  decoder.n_pending = 7;
  EXPECT_EQ(tokenizer->decode(&decoder, 'a', text, sizeof(text), &n).code(),
            MAMBA_EDGE_INVALID_ARGUMENT);
}

TEST(Decoder, MaxPieceBytesIsNeverExceeded) {
  std::mt19937 random(7);
  for (const char* path :
       {"tests/data/tokenizer-small/spm/tokenizer.json", "models/mamba1-tiny/tokenizer.json"}) {
    const Compiled tokenizer(read_file(source_file(path)));
    for (int round = 0; round < 300; ++round) {
      Ids ids;
      for (int i = 0; i < 40; ++i) {
        ids.push_back(
            static_cast<int32_t>(draw(random, static_cast<size_t>(tokenizer->n_tokens()))));
      }
      tokenizer.decode(ids);  // fails if a piece does not fit
      tokenizer.decode(ids, MAMBA_EDGE_CONTINUATION | MAMBA_EDGE_SKIP_SPECIAL);
    }
  }
}

TEST(Decoder, ByteRunsThatAreNotUtf8) {
  const Compiled spm(read_file(source_file("tests/data/tokenizer-small/spm/tokenizer.json")));
  const auto byte = [](int b) { return 3 + b; };
  EXPECT_EQ(spm.decode({byte(0xE6), byte(0x97), byte(0xA5)}), "\xE6\x97\xA5");
  // One U+FFFD for E6 97, one for FF; the letter between ends the character.
  EXPECT_EQ(spm.decode({byte(0xE6), byte(0x97), byte('x'), byte(0xFF)}),
            "\xEF\xBF\xBDx\xEF\xBF\xBD");
}

TEST(Decoder, LeadingSpaceAndContinuation) {
  const Compiled spm(read_file(source_file("tests/data/tokenizer-small/spm/tokenizer.json")));
  const Ids ids = spm.encode("the  end", MAMBA_EDGE_NO_TEMPLATE);
  EXPECT_EQ(spm.decode(ids), "the  end");
  EXPECT_EQ(spm.decode(ids, MAMBA_EDGE_CONTINUATION), " the  end");
  Ids with_start = ids;
  with_start.insert(with_start.begin(), 1);
  EXPECT_EQ(spm.decode(with_start), "<s> the  end");
  EXPECT_EQ(spm.decode(with_start, MAMBA_EDGE_SKIP_SPECIAL), "the  end");
}

// ---- Hostile bytes

// Whatever opens must work without a crash; AddressSanitizer and UBSan watch.
void use(const std::vector<uint8_t>& blob) {
  Tokenizer tokenizer;
  if (!Tokenizer::open(blob, &tokenizer).ok()) return;
  static const std::string kTexts[] = {"<eot> the 12 aaaaa's\n\n x",
                                       "\xCC\x81 \xFF"
                                       "e\xCC\x81\xE2\x96\x81 the"};
  std::vector<std::byte> scratch;
  int32_t ids[64];
  size_t n = 0;
  for (const std::string& text : kTexts) {
    const size_t bytes = tokenizer.scratch_bytes(text.size());
    if (bytes > 1u << 24) continue;
    scratch.resize(bytes);
    (void)tokenizer.encode(text, 0, scratch, ids, 64, &n).ok();
    for (size_t i = 0; i < std::min<size_t>(n, 64); ++i) {
      ASSERT_GE(ids[i], 0);
      ASSERT_LT(ids[i], tokenizer.n_tokens());
    }
  }
  mamba_edge_decoder decoder = {};
  std::vector<char> piece(std::min<size_t>(tokenizer.max_piece_bytes(), 1u << 20));
  ASSERT_TRUE(tokenizer.decoder_init(&decoder, 0).ok());
  const int32_t step = tokenizer.n_tokens() / 64 + 1;
  for (int32_t id = 0; id < tokenizer.n_tokens(); id += step) {
    (void)tokenizer.decode(&decoder, id, piece.data(), piece.size(), &n).ok();
    (void)tokenizer.is_special(id);
    (void)tokenizer.token_bytes(id);
  }
  (void)tokenizer.decode_finish(&decoder, piece.data(), piece.size(), &n).ok();
}

// A tokenizer with something in every section, and few tokens, so that every byte can be tried.
json small_json(bool byte_level) {
  json vocab, merges = {"t h", "a a"};
  if (!byte_level) merges.push_back("\xE2\x96\x81 th");
  for (const char* token : {"<u>", "t", "h", "a", "th", "aa", "1", "2", "x", "<0xCC>", "<0x81>",
                            "<0xFF>", "\xE2\x96\x81", "\xE2\x96\x81th", "\xC4\xA0", "\xC3\x8C"}) {
    vocab[token] = vocab.size();
  }
  json file = {
      {"added_tokens", json::array()},
      {"normalizer",
       {{"type", "Sequence"},
        {"normalizers",
         {{{"type", "NFC"}},
          {{"type", "Strip"}, {"strip_left", true}, {"strip_right", false}},
          {{"type", "Replace"}, {"pattern", {{"String", "x"}}}, {"content", "aa"}},
          {{"type", "Prepend"}, {"prepend", "t"}}}}}},
      {"post_processor", {{"type", "BertProcessing"}, {"sep", {"t", 1}}, {"cls", {"h", 2}}}},
      {"model",
       {{"type", "BPE"},
        {"unk_token", "<u>"},
        {"fuse_unk", true},
        {"byte_fallback", true},
        {"vocab", vocab},
        {"merges", merges}}}};
  int id = static_cast<int>(vocab.size());
  for (const char* content : {"<eot>", "e"}) {
    file["added_tokens"].push_back({{"id", id},
                                    {"content", content},
                                    {"single_word", id % 2 == 0},
                                    {"lstrip", true},
                                    {"rstrip", true},
                                    {"normalized", id % 2 == 1},
                                    {"special", true}});
    ++id;
  }
  const json split = {
      {"type", "Split"},
      {"pattern", {{"Regex", " ?[a-z\\p{Lu}\xC3\xA9-\xC3\xBF]+|\\s+(?!\\S)|\\d{1,2}"}}},
      {"behavior", "MergedWithNext"},
      {"invert", false}};
  if (byte_level) {
    file["pre_tokenizer"] = {
        {"type", "Sequence"},
        {"pretokenizers",
         {split,
          {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"use_regex", true}},
          {{"type", "Digits"}, {"individual_digits", false}}}}};
    file["decoder"] = {{"type", "ByteLevel"}};
  } else {
    file["pre_tokenizer"] = {
        {"type", "Sequence"},
        {"pretokenizers",
         {split,
          {{"type", "Metaspace"}, {"replacement", "\xE2\x96\x81"}, {"prepend_scheme", "first"}},
          {{"type", "Punctuation"}, {"behavior", "Contiguous"}}}}};
    file["decoder"] = {
        {"type", "Sequence"},
        {"decoders",
         {{{"type", "Replace"}, {"pattern", {{"String", "\xE2\x96\x81"}}}, {"content", " "}},
          {{"type", "ByteFallback"}},
          {{"type", "Fuse"}},
          {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}};
  }
  return file;
}

TEST(TokenizerOpen, EveryChangedByteIsHarmless) {
  for (const bool byte_level : {true, false}) {
    const std::vector<uint8_t> blob = testing::compile(small_json(byte_level).dump());
    use(blob);
    for (size_t i = 0; i < blob.size(); ++i) {
      for (const uint8_t value :
           {uint8_t{0}, uint8_t{1}, uint8_t{0x7F}, uint8_t{0xFF},
            static_cast<uint8_t>(blob[i] ^ 0x80), static_cast<uint8_t>(blob[i] + 1),
            static_cast<uint8_t>(blob[i] - 1)}) {
        std::vector<uint8_t> changed = blob;
        changed[i] = value;
        use(changed);
      }
    }
  }
}

TEST(TokenizerOpen, EveryChangedWordIsHarmless) {
  for (const bool byte_level : {true, false}) {
    const std::vector<uint8_t> blob = testing::compile(small_json(byte_level).dump());
    for (size_t i = 0; i + 4 <= blob.size(); i += 4) {
      for (const uint32_t value : {0xFFFFFFFFu, 0xFFFFFFFEu, 0x80000000u, 0x7FFFFFFFu, 0u,
                                   0x01000000u, static_cast<uint32_t>(blob.size())}) {
        std::vector<uint8_t> changed = blob;
        std::memcpy(changed.data() + i, &value, 4);
        use(changed);
      }
    }
  }
}

TEST(TokenizerOpen, TruncatedIsRefused) {
  const std::vector<uint8_t> blob = testing::compile(small_json(true).dump());
  for (size_t n = 0; n < blob.size(); ++n) {
    const std::vector<uint8_t> cut(blob.begin(), blob.begin() + static_cast<std::ptrdiff_t>(n));
    Tokenizer tokenizer;
    ASSERT_EQ(Tokenizer::open(cut, &tokenizer).code(), MAMBA_EDGE_BAD_FORMAT) << n;
    if (n < 12) continue;
    std::vector<uint8_t> patched = cut;  // with a header that agrees
    const auto size = static_cast<uint32_t>(n);
    std::memcpy(patched.data() + 8, &size, 4);
    ASSERT_NE(Tokenizer::open(patched, &tokenizer).code(), MAMBA_EDGE_OK) << n;
  }
}

TEST(TokenizerOpen, RandomChangesAreHarmless) {
  std::mt19937 random(8);
  for (const bool byte_level : {true, false}) {
    const std::vector<uint8_t> blob = testing::compile(small_json(byte_level).dump());
    for (int round = 0; round < 20000; ++round) {
      std::vector<uint8_t> changed = blob;
      for (uint32_t k = 1 + draw(random, 4); k > 0; --k) {
        changed[12 + draw(random, changed.size() - 12)] =
            static_cast<uint8_t>(draw(random, 4) == 0 ? 255 : draw(random, 256));
      }
      use(changed);
    }
  }
}

TEST(TokenizerOpen, UnalignedIsFine) {
  const std::vector<uint8_t> blob = testing::compile(byte_level_json().dump());
  std::vector<uint8_t> shifted(blob.size() + 1);
  std::memcpy(shifted.data() + 1, blob.data(), blob.size());
  Tokenizer tokenizer;
  ASSERT_TRUE(Tokenizer::open(std::span(shifted).subspan(1), &tokenizer).ok());
  EXPECT_EQ(tokenizer.n_tokens(), 263);
}

TEST(TokenizerOpen, NamesAVersionThatIsTooNew) {
  std::vector<uint8_t> blob = testing::compile(byte_level_json().dump());
  blob[4] = 2;
  Tokenizer tokenizer;
  const Status status = Tokenizer::open(blob, &tokenizer);
  EXPECT_EQ(status.code(), MAMBA_EDGE_UNSUPPORTED);
  EXPECT_NE(std::string(status.message()).find("version 2"), std::string::npos);
}

}  // namespace
}  // namespace mamba_edge
