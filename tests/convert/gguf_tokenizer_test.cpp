// The tokenizer inside GGUF, in both directions.
#include "convert/gguf_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <sstream>

#include "convert/error.h"
#include "tests/convert/gguf_builder.h"
#include "tests/engine/tokenizer_builders.h"

namespace mamba_edge::convert {
namespace {

using mamba_edge::testing::byte_level_json;
using mamba_edge::testing::Compiled;
using mamba_edge::testing::read_file;
using mamba_edge::testing::shared_file;
using mamba_edge::testing::source_file;
using nlohmann::json;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::TempFolder;

// A GGUF file with a tokenizer and nothing else, as metadata.
struct Metadata {
  explicit Metadata(const GgufBuilder& builder)
      : file(folder.write("t.gguf", builder.bytes())), metadata(read_gguf(file).metadata) {}
  TempFolder folder;
  File file;
  GgufMetadata metadata;
};

TokenizerFiles import(const GgufBuilder& builder) {
  const Metadata m(builder);
  return gguf_to_tokenizer_json(m.metadata);
}

std::string refusal(const GgufBuilder& builder) {
  try {
    compile_tokenizer(import(builder));
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("t.gguf"));
    return error.what();
  }
  return "";
}

GgufTokenizer to_gguf(const std::string& tokenizer_json, uint32_t n_vocab) {
  TokenizerFiles files;
  files.tokenizer_json = tokenizer_json;
  const Compiled compiled(compile_tokenizer(files));
  return tokenizer_json_to_gguf(files, n_vocab, compiled->bos(), compiled->eos());
}

GgufBuilder builder_of(const GgufTokenizer& t, int32_t bos = -1, int32_t eos = -1) {
  GgufBuilder b;
  b.text("tokenizer.ggml.model", t.model).text("tokenizer.ggml.pre", t.pre);
  b.texts("tokenizer.ggml.tokens", t.tokens);
  std::vector<int32_t> types;
  for (const GgufToken type : t.types) types.push_back(static_cast<int32_t>(type));
  b.integers("tokenizer.ggml.token_type", types);
  if (!t.scores.empty()) b.floats("tokenizer.ggml.scores", t.scores);
  if (!t.merges.empty()) b.texts("tokenizer.ggml.merges", t.merges);
  if (bos >= 0) b.number("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(bos));
  if (eos >= 0) b.number("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(eos));
  if (t.unknown) b.number("tokenizer.ggml.unknown_token_id", *t.unknown);
  b.flag("tokenizer.ggml.add_bos_token", t.add_bos).flag("tokenizer.ggml.add_eos_token", t.add_eos);
  return b;
}

// ---- there and back

struct Published {
  const char* path;  // of tokenizer.json
  const char* model;
  const char* pre;
  bool shared;
};

void PrintTo(const Published& p, std::ostream* out) { *out << p.path; }

class ThereAndBack : public ::testing::TestWithParam<Published> {};

TEST_P(ThereAndBack, SameIdsAndTexts) {
  const Published& p = GetParam();
  const std::string text = read_file(p.shared ? shared_file(p.path) : source_file(p.path));
  if (text.empty() && p.shared) GTEST_SKIP() << "no " << p.path;
  TokenizerFiles files;
  files.tokenizer_json = text;
  files.config_bos = 1;
  files.config_eos = 0;
  const Compiled original(compile_tokenizer(files));
  const auto n = static_cast<uint32_t>(original->n_tokens());
  const GgufTokenizer t = tokenizer_json_to_gguf(files, n + 3, original->bos(), original->eos());
  EXPECT_EQ(t.model, p.model);
  EXPECT_EQ(t.pre, p.pre);
  ASSERT_EQ(t.tokens.size(), n + 3);
  EXPECT_EQ(t.tokens.back(), "[PAD" + std::to_string(n + 2) + "]");
  EXPECT_EQ(t.types.back(), GgufToken::unused);
  std::map<std::string, int> seen;
  for (const std::string& token : t.tokens) EXPECT_EQ(seen[token]++, 0) << token;

  const Compiled back(compile_tokenizer(import(builder_of(t, original->bos(), original->eos()))));
  EXPECT_EQ(back->n_tokens(), original->n_tokens());
  EXPECT_EQ(back->bos(), original->bos());
  EXPECT_EQ(back->eos(), original->eos());
  for (int32_t id = 0; id < original->n_tokens(); ++id) {
    ASSERT_EQ(back->token_bytes(id), original->token_bytes(id)) << id;
    ASSERT_EQ(back->is_special(id), original->is_special(id)) << id;
  }
  // Texts: those of the reference, or this file's own source, line by line.
  std::vector<std::string> texts;
  const std::string folder = shared_file(p.path).substr(0, shared_file(p.path).rfind('/'));
  std::istringstream lines(p.shared ? read_file(folder + "/cases.jsonl") : read_file(__FILE__));
  for (std::string line; std::getline(lines, line);) {
    texts.push_back(p.shared ? json::parse(line)["text"].get<std::string>() : line);
  }
  ASSERT_GT(texts.size(), 100u);
  texts.insert(texts.end(), {"", " ", "  two  spaces ", "<|endoftext|>x", "caf\xC3\xA9 e\xCC\x81",
                             "\xFF\xC0", "123456 7.5\n\n\tend\r\n"});
  for (const std::string& line : texts) {
    const std::vector<int32_t> ids = original.encode(line);
    EXPECT_EQ(back.encode(line), ids) << line;
    EXPECT_EQ(back.decode(ids), original.decode(ids)) << line;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Tokenizers, ThereAndBack,
    ::testing::Values(
        Published{"models/mamba1-tiny/tokenizer.json", "gpt2", "gpt-2", false},
        Published{"tests/data/tokenizer-small/neox-277/tokenizer.json", "gpt2", "mpt", false},
        Published{"golden/tokenizer-gpt-neox/tokenizer.json", "gpt2", "mpt", true},
        Published{"golden/tokenizer-falcon/tokenizer.json", "gpt2", "falcon", true},
        Published{"golden/tokenizer-llama-spm/tokenizer.json", "llama", "default", true}));

// ---- from GGUF

// Byte-level BPE as byte_level_json has it.
GgufBuilder byte_level(const char* pre) {
  GgufBuilder b = builder_of(to_gguf(byte_level_json().dump(), 263), 262, 262);
  return b.remove("tokenizer.ggml.pre").text("tokenizer.ggml.pre", pre);
}

std::vector<std::string> pieces(const Compiled& tokenizer, const std::string& text) {
  std::vector<std::string> all;
  for (const int32_t id : tokenizer.encode(text)) all.emplace_back(tokenizer->token_bytes(id));
  return all;
}

// Each name splits as its tokenizer does. "12" is a token of this vocabulary: where it stays whole,
// digits were not taken apart.
TEST(FromGguf, EveryWayOfSplitting) {
  const struct {
    const char* pre;
    bool whole_number;  // of two digits
    bool joined;        // "aaaa" is one word
    bool starts;        // with <eot>, where add_bos_token does not say
  } all[] = {{"gpt-2", true, true, false},      {"mpt", true, true, false},
             {"olmo", true, true, false},       {"falcon", true, true, false},
             {"starcoder", false, true, false}, {"llama-bpe", true, true, true},
             {"falcon3", true, true, true},     {"dbrx", true, true, false},
             {"qwen2", false, true, false},     {"tekken", false, true, true},
             {"default", true, true, false}};
  for (const auto& c : all) {
    GgufBuilder b = byte_level(c.pre);
    b.remove("tokenizer.ggml.add_bos_token").remove("tokenizer.ggml.add_eos_token");
    const Compiled tokenizer(compile_tokenizer(import(b)));
    std::vector<std::string> expected;
    if (c.starts) expected.push_back("<eot>");
    for (const char* piece : {"the", " the", "aaaa"}) expected.push_back(piece);
    EXPECT_EQ(pieces(tokenizer, "the theaaaa").size(), expected.size() + (c.joined ? 0 : 1))
        << c.pre;
    const std::vector<std::string> number = pieces(tokenizer, "12");
    EXPECT_EQ(number.size() - (c.starts ? 1 : 0), c.whole_number ? 1u : 2u) << c.pre;
  }
  // Without a name, as llama.cpp does: the default.
  EXPECT_EQ(import(byte_level("x").remove("tokenizer.ggml.pre")).tokenizer_json,
            import(byte_level("default")).tokenizer_json);
}

TEST(FromGguf, StartAndEndOfText) {
  for (const bool bos : {false, true}) {
    for (const bool eos : {false, true}) {
      GgufBuilder b = byte_level("gpt-2");
      b.remove("tokenizer.ggml.add_bos_token").remove("tokenizer.ggml.add_eos_token");
      b.flag("tokenizer.ggml.add_bos_token", bos).flag("tokenizer.ggml.add_eos_token", eos);
      const Compiled tokenizer(compile_tokenizer(import(b)));
      std::vector<int32_t> expected = {'x'};
      if (bos) expected.insert(expected.begin(), 262);
      if (eos) expected.push_back(262);
      EXPECT_EQ(tokenizer.encode("x"), expected);
      EXPECT_EQ(tokenizer->bos(), 262);
    }
  }
}

TEST(FromGguf, TokensThatAreNotForWords) {
  GgufBuilder b = testing::small_gguf();  // control <end>, unused [PAD5], user-defined two spaces
  const Compiled tokenizer(compile_tokenizer(import(b)));
  EXPECT_EQ(tokenizer->n_tokens(), 7);
  EXPECT_EQ(tokenizer.encode("ab<end>  b"), (std::vector<int32_t>{2, 4, 6, 1}));
  EXPECT_TRUE(tokenizer->is_special(4));
  EXPECT_FALSE(tokenizer->is_special(6));
  EXPECT_EQ(tokenizer->token_bytes(5), "");
  EXPECT_EQ(tokenizer.decode({0, 6, 1}), "a  b");
}

// SentencePiece: scores, not the order of ids, say what is joined first.
TEST(FromGguf, ScoresDecide) {
  const std::string mark = "\xE2\x96\x81";
  const auto make = [&](float ab, float bc) {
    GgufBuilder b;
    b.text("tokenizer.ggml.model", "llama");
    b.texts("tokenizer.ggml.tokens",
            {"<unk>", "<s>", "</s>", "a", "b", "c", "ab", "bc", mark, mark + "a"});
    b.integers("tokenizer.ggml.token_type", {2, 3, 3, 1, 1, 1, 1, 1, 1, 1});
    b.floats("tokenizer.ggml.scores", {0, 0, 0, -9, -9, -9, ab, bc, -9, -5});
    return b;
  };
  const Compiled first(compile_tokenizer(import(make(-1, -2))));
  EXPECT_EQ(first.encode("babc"), (std::vector<int32_t>{1, 8, 4, 6, 5}));
  const Compiled second(compile_tokenizer(import(make(-2, -1))));
  EXPECT_EQ(second.encode("babc"), (std::vector<int32_t>{1, 8, 4, 3, 7}));
  // A space is put in front, and taken away again.
  EXPECT_EQ(first.decode({9, 7}), "abc");
  GgufBuilder plain = make(-1, -2);
  plain.flag("tokenizer.ggml.add_space_prefix", false).flag("tokenizer.ggml.add_bos_token", false);
  EXPECT_EQ(Compiled(compile_tokenizer(import(plain))).encode("abc"), (std::vector<int32_t>{6, 5}));
}

TEST(FromGguf, WhatCannotBeReadIsNamed) {
  const auto changed = [](const char* key, auto set) {
    GgufBuilder b = byte_level("gpt-2");
    b.remove(key);
    set(b);
    return b;
  };
  const auto nothing = [](GgufBuilder&) {};
  EXPECT_THAT(refusal(changed("tokenizer.ggml.model", nothing)), HasSubstr("holds no tokenizer"));
  EXPECT_THAT(refusal(changed("tokenizer.ggml.model",
                              [](auto& b) { b.text("tokenizer.ggml.model", "none"); })),
              HasSubstr("holds no tokenizer"));
  EXPECT_THAT(refusal(changed("tokenizer.ggml.model",
                              [](auto& b) { b.text("tokenizer.ggml.model", "rwkv"); })),
              HasSubstr("\"rwkv\""));
  EXPECT_THAT(refusal(byte_level("deepseek-llm")), HasSubstr("\"deepseek-llm\""));
  EXPECT_THAT(refusal(byte_level("deepseek-llm")), HasSubstr("tokenizer.ggml.pre"));
  EXPECT_THAT(refusal(changed("tokenizer.ggml.tokens", nothing)), HasSubstr("no tokens"));
  EXPECT_THAT(refusal(changed("tokenizer.ggml.token_type",
                              [](auto& b) {
                                b.integers("tokenizer.ggml.token_type", {1, 1});
                              })),
              HasSubstr("2 token types"));
  EXPECT_THAT(refusal(changed("tokenizer.ggml.tokens",
                              [](auto& b) {
                                b.texts("tokenizer.ggml.tokens", {"a", "a"});
                                b.remove("tokenizer.ggml.token_type");
                              })),
              HasSubstr("\"a\" twice"));
  EXPECT_THAT(refusal(changed("tokenizer.ggml.tokens",
                              [](auto& b) {
                                b.texts("tokenizer.ggml.tokens", {"a", "\xFF"});
                                b.remove("tokenizer.ggml.token_type");
                              })),
              HasSubstr("UTF-8"));
  EXPECT_THAT(refusal(changed("tokenizer.ggml.merges",
                              [](auto& b) { b.texts("tokenizer.ggml.merges", {"a z\xC3\xA9z"}); })),
              HasSubstr("merge"));

  const auto sentence_piece = [](const std::vector<std::string>& tokens,
                                 const std::vector<float>& scores) {
    GgufBuilder b;
    return b.text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", tokens)
        .floats("tokenizer.ggml.scores", scores);
  };
  EXPECT_THAT(refusal(sentence_piece({"a", "b"}, {0})), HasSubstr("1 scores"));
  EXPECT_THAT(refusal(sentence_piece({"a", "b"}, {0, NAN})), HasSubstr("not finite"));
  EXPECT_THAT(refusal(sentence_piece({"a", std::string(300, 'b')}, {0, 0})),
              HasSubstr("300 bytes"));
}

// ---- to GGUF

std::string export_refusal(const json& file) {
  try {
    to_gguf(file.dump(), 4096);
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("tokenizer.json"));
    return error.what();
  }
  return "";
}

TEST(ToGguf, WhatGgufHasNoWordsForIsNamed) {
  EXPECT_EQ(export_refusal(byte_level_json()), "");
  json file = byte_level_json();
  file["normalizer"] = {{"type", "Strip"}, {"strip_left", true}, {"strip_right", false}};
  EXPECT_THAT(export_refusal(file), HasSubstr("Strip"));
  file = byte_level_json();
  file["model"]["ignore_merges"] = true;
  EXPECT_THAT(export_refusal(file), HasSubstr("ByteLevel"));
  file = byte_level_json();
  file["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single",
       {{{"SpecialToken", {{"id", "a"}, {"type_id", 0}}}},
        {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
      {"special_tokens", {{"a", {{"id", "a"}, {"ids", {97}}, {"tokens", {"a"}}}}}}};
  EXPECT_THAT(export_refusal(file), HasSubstr("post_processor"));

  json spm = json::parse(read_file(source_file("tests/data/tokenizer-small/spm/tokenizer.json")));
  // Trained by other means: it makes each token in one way only.
  EXPECT_THAT(export_refusal(spm), HasSubstr("scores"));
  json other = spm;
  other["normalizer"] = {{"type", "NFC"}};
  other["model"]["byte_fallback"] = true;
  EXPECT_THAT(export_refusal(other), HasSubstr("SentencePiece"));
}

// Scores come back in the same order.
TEST(ToGguf, ScoresOfSentencePiece) {
  const std::string mark = "\xE2\x96\x81";
  const std::vector<std::string> tokens = {
      "<unk>", "<s>", "</s>",      "<0x41>",           "a",       "b", "c", "ab", "bc",
      "abc",   mark,  mark + mark, mark + mark + mark, mark + "a"};
  const std::vector<float> scores = {0, 0, 0, 0, -20, -21, -22, -3, -1, -2, -23, -7, -7, -5};
  GgufBuilder b;
  b.text("tokenizer.ggml.model", "llama").texts("tokenizer.ggml.tokens", tokens);
  b.integers("tokenizer.ggml.token_type", {2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1});
  b.floats("tokenizer.ggml.scores", scores);
  const TokenizerFiles files = import(b);
  const GgufTokenizer t = tokenizer_json_to_gguf(files, 15, 1, 2);
  EXPECT_EQ(t.model, "llama");
  EXPECT_TRUE(t.add_bos);
  EXPECT_FALSE(t.add_eos);
  EXPECT_EQ(t.unknown, 0u);
  EXPECT_EQ(t.types[0], GgufToken::unknown);
  EXPECT_EQ(t.types[1], GgufToken::control);
  EXPECT_EQ(t.types[3], GgufToken::byte);
  EXPECT_EQ(t.types[14], GgufToken::unused);
  EXPECT_TRUE(t.merges.empty());
  const size_t order[] = {8, 9, 7, 13, 11};  // bc, abc, ab, and those with marks
  for (size_t i = 1; i < std::size(order); ++i) {
    EXPECT_LT(t.scores[order[i]], t.scores[order[i - 1]]) << tokens[order[i]];
  }
  EXPECT_LE(t.scores[11], t.scores[12]);
  EXPECT_LT(t.scores[4], t.scores[11]);
  EXPECT_EQ(import(builder_of(t, 1, 2)).tokenizer_json, files.tokenizer_json);
}

TEST(ToGguf, TokensAndTypes) {
  json file = byte_level_json();
  file["added_tokens"].push_back({{"id", 263},
                                  {"content", "   "},
                                  {"single_word", false},
                                  {"lstrip", false},
                                  {"rstrip", false},
                                  {"normalized", true},
                                  {"special", false}});
  const GgufTokenizer t = to_gguf(file.dump(), 266);
  EXPECT_EQ(t.types[97], GgufToken::normal);
  EXPECT_EQ(t.tokens[97], "a");
  EXPECT_EQ(t.tokens[32], mamba_edge::testing::alphabet(' '));
  EXPECT_EQ(t.types[262], GgufToken::control);
  EXPECT_EQ(t.tokens[263], "   ");
  EXPECT_EQ(t.types[263], GgufToken::user_defined);
  EXPECT_EQ(t.tokens[265], "[PAD265]");
  EXPECT_EQ(t.types[265], GgufToken::unused);
  ASSERT_EQ(t.merges.size(), 6u);
  EXPECT_EQ(t.merges[1], "th e");
  EXPECT_TRUE(t.scores.empty());
}

}  // namespace
}  // namespace mamba_edge::convert
