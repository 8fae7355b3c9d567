#include "convert/tokenizer_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/tokenizer_builders.h"

namespace mamba_edge {
namespace {

using nlohmann::json;
using testing::byte_level_json;
using testing::Compiled;
using testing::read_file;
using testing::source_file;
using Ids = std::vector<int32_t>;

// The message with which a file is refused; empty if it is not.
std::string refusal(const std::string& text) {
  try {
    testing::compile(text);
  } catch (const convert::Error& error) {
    return error.what();
  }
  return "";
}

std::string refusal(const json& file) { return refusal(file.dump()); }

// byte_level_json with one member replaced.
json with(const char* key, json value) {
  json file = byte_level_json();
  file[key] = std::move(value);
  return file;
}
json with_model(const char* key, json value) {
  json file = byte_level_json();
  file["model"][key] = std::move(value);
  return file;
}
json spm() {
  return json::parse(read_file(source_file("tests/data/tokenizer-small/spm/tokenizer.json")));
}

json split(const std::string& regex, const char* behavior = "Isolated", bool invert = false) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", regex}}},
          {"behavior", behavior},
          {"invert", invert}};
}

json with_split(const json& step) {
  return with(
      "pre_tokenizer",
      {{"type", "Sequence"},
       {"pretokenizers",
        {step, {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}});
}

void expect_refused(const json& file, const std::vector<std::string>& named) {
  const std::string message = refusal(file);
  EXPECT_FALSE(message.empty()) << "nothing was refused; expected "
                                << ::testing::PrintToString(named);
  EXPECT_THAT(message, ::testing::HasSubstr("tokenizer.json"));
  for (const std::string& name : named) EXPECT_THAT(message, ::testing::HasSubstr(name));
}

TEST(TokenizerJson, SameFileSameBytes) {
  const std::string text = read_file(source_file("models/mamba1-tiny/tokenizer.json"));
  ASSERT_FALSE(text.empty());
  EXPECT_EQ(testing::compile(text), testing::compile(text));
  // The order of a JSON object's members means nothing.
  json file = byte_level_json();
  const std::string sorted = file.dump();
  std::string reordered = "{\"model\":" + file["model"].dump();
  for (const auto& [key, value] : file.items()) {
    if (key != "model") reordered += ",\"" + key + "\":" + value.dump();
  }
  EXPECT_EQ(testing::compile(sorted), testing::compile(reordered + "}"));
}

TEST(TokenizerJson, MergesAsStringsOrPairs) {
  json pairs = byte_level_json();
  for (json& merge : pairs["model"]["merges"]) {
    const std::string text = merge;
    merge = {text.substr(0, text.find(' ')), text.substr(text.find(' ') + 1)};
  }
  EXPECT_EQ(testing::compile(pairs.dump()), testing::compile(byte_level_json().dump()));
}

TEST(TokenizerJson, RefusesModelsByName) {
  for (const char* type : {"WordPiece", "Unigram", "WordLevel"}) {
    expect_refused(with_model("type", type), {"model type", type});
  }
  expect_refused(with_model("dropout", 0.1), {"dropout", "0.1"});
  expect_refused(with_model("continuing_subword_prefix", "##"),
                 {"continuing_subword_prefix", "##"});
  expect_refused(with_model("end_of_word_suffix", "</w>"), {"end_of_word_suffix", "</w>"});
  EXPECT_EQ(refusal(with_model("dropout", 0.0)), "");
  EXPECT_EQ(refusal(with_model("continuing_subword_prefix", "")), "");
}

TEST(TokenizerJson, RefusesStepsByName) {
  for (const char* type : {"NFKC", "NFD", "NFKD", "Lowercase", "StripAccents", "Nmt",
                           "BertNormalizer", "Precompiled", "ByteLevel"}) {
    expect_refused(with("normalizer", {{"type", type}}), {"normalizer", type});
    expect_refused(with("normalizer", {{"type", "Sequence"},
                                       {"normalizers", {{{"type", "NFC"}}, {{"type", type}}}}}),
                   {"normalizer", type});
  }
  expect_refused(with("normalizer",
                      {{"type", "Replace"}, {"pattern", {{"Regex", " {2,}"}}}, {"content", " "}}),
                 {"Replace", " {2,}"});
  for (const char* type : {"BertPreTokenizer", "UnicodeScripts", "FixedLength"}) {
    expect_refused(with_split({{"type", type}}), {"pre_tokenizer", type});
  }
  for (const char* type : {"WordPiece", "BPEDecoder", "CTC"}) {
    json file = spm();
    file["decoder"] = {{"type", type}};
    expect_refused(file, {"decoder", type});
    expect_refused(with("decoder", {{"type", type}}), {"decoder", type});
  }
  expect_refused(with("decoder", nullptr), {"decoder", "null"});
  expect_refused(with("post_processor", {{"type", "Unheard"}}), {"post_processor", "Unheard"});
  EXPECT_EQ(refusal(with("truncation", {{"max_length", 512}})), "");
  EXPECT_EQ(refusal(with("padding", {{"strategy", {{"Fixed", 8}}}})), "");
  expect_refused(with("version", "2.0"), {"version", "2.0"});
  const json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  expect_refused(
      with("pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {byte_level, byte_level}}}),
      {"second"});
}

TEST(TokenizerJson, RefusesDecodersInAnotherOrder) {
  json file = spm();
  json& steps = file["decoder"]["decoders"];
  std::swap(steps[0], steps[1]);  // ByteFallback, Replace
  expect_refused(file, {"decoder", "Replace"});
  file = spm();
  file["decoder"]["decoders"].erase(2);  // Strip without Fuse
  expect_refused(file, {"decoder", "Strip"});
  file = spm();
  file["decoder"]["decoders"][3]["stop"] = 1;
  expect_refused(file, {"decoder", "Strip", "\"stop\":1"});
}

TEST(TokenizerJson, RefusesWhatIsInconsistent) {
  json file = byte_level_json();
  file["added_tokens"][0]["id"] = 300;  // the library would make it 262
  expect_refused(file, {"<eot>", "300", "262"});
  file = byte_level_json();
  file["model"]["vocab"]["same"] = 3;
  expect_refused(file, {"the same id 3"});
  file = byte_level_json();
  file["model"]["merges"].push_back("t zz");
  expect_refused(file, {"merge", "t zz"});
  file = byte_level_json();
  file["model"]["merges"].push_back("a b c");
  expect_refused(file, {"merge", "a b c"});
  file = byte_level_json();
  file["model"]["vocab"]["far"] = 1u << 30;
  expect_refused(file, {"far"});
  file = byte_level_json();
  file["model"]["vocab"]["far"] = -1;
  expect_refused(file, {"far", "-1"});
  file = spm();
  file["model"]["unk_token"] = "<none>";
  expect_refused(file, {"unk_token", "<none>"});
  for (const char* text : {"", "{", "[]", "null", "{}", "{\"model\":{}}",
                           "{\"model\":{\"vocab\":{},\"merges\":[[1,2]]}}"}) {
    EXPECT_NE(refusal(std::string(text)), "") << text;
  }
}

// ---- Regular expressions

TEST(TokenizerJson, RefusesRegularExpressionsByName) {
  for (const char* regex :
       {"a*?",     "^a",          "a$",     "\\bword", "(a|b)+",    "(a",
        "a)",      "[a",          "[a&&b]", "\\w+",    "\\p{Han}",  "(?<=a)b",
        "(?i)abc", "a{2",         "*a",     "\\1",     "(?!ab)c",   "[\\S]",
        "a{1,3}+", "a|",          "a*",     "(?!a)",   "\\p{L}+b",  "a+b+c",
        "[b-a]",   "[[:alpha:]]", "\\",     "a++b",    "(?:a|b)?c", "a?(?:b|c)"}) {
    expect_refused(with_split(split(regex)), {"regular expression", json(regex).dump()});
  }
}

// What each expression cuts out of a text, by the library's rules: matches and what is between
// them.
TEST(TokenizerJson, RegularExpressionsCut) {
  struct Case {
    const char* regex;
    const char* text;
    std::vector<std::string> parts;
  };
  const std::vector<Case> cases = {
      {"[0-9][0-9][0-9]", "12345678x9", {"123", "456", "78x9"}},
      {"\\d{1,3}", "12345x", {"123", "45", "x"}},
      {"\\p{N}", "a12", {"a", "1", "2"}},
      {"[^0-9a-c]+", "abxyz09", {"ab", "xyz", "09"}},
      {"\\s+(?!\\S)|\\s+", "a   b ", {"a", "  ", " ", "b", " "}},
      {"'(?i:[sdmt]|ll|ve|re)|x", "I'LLx'q'S", {"I", "'LL", "x", "'q", "'S"}},
      {"(?i:k)",
       "k\xE2\x84\xAA"
       "K\xC5\xBF",
       {"k", "\xE2\x84\xAA", "K", "\xC5\xBF"}},
      {"\\x41|\\x{42}|\\u0043|\\-|\\[", "ABC-[D", {"A", "B", "C", "-", "[", "D"}},
      {"[\\-a\\]]+", "x-a]y", {"x", "-a]", "y"}},
      {"a{2,3}b?", "aaaabab", {"aaa", "abab"}},
      {"\\S\\s?", "a b", {"a ", "b"}},
      {".", "a\nb", {"a", "\n", "b"}},
      {"a?a?aa", "aaa", {"aaa"}},
      {"a?+a", "aab", {"aa", "b"}},
      {"(?:ab|a)c", "acabc", {"ac", "abc"}},
      {"\\p{Lu}\\p{Ll}", "AbCD\xC3\x89\xC3\xA9", {"Ab", "CD", "\xC3\x89\xC3\xA9"}},
      {"\\P{L}(?=\\p{L})", "1a22b", {"1", "a2", "2", "b"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.regex);
    // Each part becomes one token if the model takes it whole: make every part a token.
    json file = with_split(split(c.regex));
    file["model"]["ignore_merges"] = true;
    json& vocab = file["model"]["vocab"];
    for (const std::string& part : c.parts) {
      std::string token;
      for (const char b : part) token += testing::alphabet(static_cast<uint8_t>(b));
      if (!vocab.contains(token)) vocab[token] = vocab.size();
    }
    file["added_tokens"] = json::array();
    const Compiled tokenizer(file.dump());
    std::vector<std::string> parts;
    for (const int32_t id : tokenizer.encode(c.text))
      parts.emplace_back(tokenizer->token_bytes(id));
    EXPECT_EQ(parts, c.parts);
  }
}

TEST(TokenizerJson, BehaviorsOfSplit) {
  const auto parts = [](const char* behavior, bool invert) {
    json file = with_split(split("-", behavior, invert));
    file["model"]["ignore_merges"] = true;
    json& vocab = file["model"]["vocab"];
    // All substrings, so that each part is one token.
    const std::string text = "a--b-c";
    for (size_t i = 0; i < text.size(); ++i) {
      for (size_t n = 1; n <= text.size() - i; ++n) {
        if (!vocab.contains(text.substr(i, n))) vocab[text.substr(i, n)] = vocab.size();
      }
    }
    file["added_tokens"] = json::array();
    const Compiled tokenizer(file.dump());
    std::string joined;
    for (const int32_t id : tokenizer.encode(text))
      joined += std::string(tokenizer->token_bytes(id)) + "|";
    return joined;
  };
  EXPECT_EQ(parts("Removed", false), "a|b|c|");
  EXPECT_EQ(parts("Isolated", false), "a|-|-|b|-|c|");
  EXPECT_EQ(parts("MergedWithPrevious", false), "a-|-|b-|c|");
  EXPECT_EQ(parts("MergedWithNext", false), "a|-|-b|-c|");
  EXPECT_EQ(parts("Contiguous", false), "a|--|b|-|c|");
  EXPECT_EQ(parts("Removed", true), "-|-|-|");
}

// ---- Special tokens

TEST(TokenizerJson, StartAndEndOfText) {
  convert::TokenizerFiles files;
  files.tokenizer_json = spm().dump();
  const auto ids = [&files] {
    const Compiled tokenizer(convert::compile_tokenizer(files));
    return std::pair(tokenizer->bos(), tokenizer->eos());
  };
  using Pair = std::pair<int32_t, int32_t>;
  EXPECT_EQ(ids(), Pair(-1, -1));
  files.config_bos = 5;
  files.config_eos = 1 << 20;  // not a token
  EXPECT_EQ(ids(), Pair(5, -1));
  files.generation_config_json = R"({"bos_token_id": 7, "eos_token_id": [8, 9], "other": NaN})";
  EXPECT_EQ(ids(), Pair(7, 8));
  files.special_tokens_map_json = R"({"eos_token": {"content": "</s>", "lstrip": false}})";
  EXPECT_EQ(ids(), Pair(7, 2));
  files.tokenizer_config_json = R"({"bos_token": "<s>", "eos_token": null})";
  EXPECT_EQ(ids(), Pair(1, 2));
  files.tokenizer_config_json = R"({"bos_token": 3})";
  EXPECT_THROW(convert::compile_tokenizer(files), convert::Error);

  convert::TokenizerFiles neox;
  const std::string folder = source_file("tests/data/tokenizer-small/neox-277/");
  neox.tokenizer_json = read_file(folder + "tokenizer.json");
  neox.tokenizer_config_json = read_file(folder + "tokenizer_config.json");
  const Compiled tokenizer(convert::compile_tokenizer(neox));
  EXPECT_EQ(tokenizer->bos(), 0);
  EXPECT_EQ(tokenizer->eos(), 0);
  EXPECT_TRUE(tokenizer->is_special(0));
  EXPECT_FALSE(tokenizer->is_special(2));
  EXPECT_EQ(tokenizer->n_tokens(), 277);
}

TEST(TokenizerJson, PostProcessors) {
  json file = spm();
  file["post_processor"] = {
      {"type", "RobertaProcessing"}, {"sep", {"</s>", 2}}, {"cls", {"<s>", 1}}};
  EXPECT_EQ(Compiled(file.dump()).encode(""), (Ids{1, 2}));
  const json again = file["post_processor"];
  file["post_processor"] = {{"type", "Sequence"}, {"processors", {again, {{"type", "ByteLevel"}}}}};
  EXPECT_EQ(Compiled(file.dump()).encode(""), (Ids{1, 2}));
  file["post_processor"]["processors"].push_back(again);
  expect_refused(file, {"second post_processor", "RobertaProcessing"});
  file = spm();
  file["post_processor"]["single"].push_back({{"Sequence", {{"id", "B"}}}});
  expect_refused(file, {"TemplateProcessing", "B"});
  file = spm();
  file["post_processor"]["special_tokens"] = json::object();
  expect_refused(file, {"TemplateProcessing", "special_tokens"});
}

TEST(TokenizerJson, IdsWithoutATokenGiveNoText) {
  json file = byte_level_json();
  file["model"]["vocab"]["Z1"] = 400;
  file["added_tokens"][0]["content"] = "Z1";  // known to the model, so the id is given
  file["added_tokens"][0]["id"] = 400;
  const Compiled tokenizer(file.dump());
  EXPECT_EQ(tokenizer->n_tokens(), 401);
  EXPECT_EQ(tokenizer.decode({'a', 300, 400}), "aZ1");
  EXPECT_EQ(tokenizer.decode({'a', 300, 400}, MAMBA_EDGE_SKIP_SPECIAL), "a");
}

}  // namespace
}  // namespace mamba_edge
