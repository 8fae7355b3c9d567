// Tokenizers for tests: compiling, encoding and stream decoding without ceremony, and small
// hand-made files.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "convert/tokenizer_json.h"
#include "engine/text/tokenizer.h"

namespace mamba_edge::testing {

inline std::string source_file(const std::string& path) {
  return std::string(MAMBA_EDGE_SOURCE_DIR) + "/" + path;
}
inline std::string shared_file(const std::string& path) {
  return std::string(MAMBA_EDGE_SHARED_DIR) + "/" + path;
}

// Empty if there is no such file.
inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline std::vector<uint8_t> compile(const std::string& json) {
  convert::TokenizerFiles files;
  files.tokenizer_json = json;
  return convert::compile_tokenizer(files);
}

// A tokenizer with its bytes.
class Compiled {
 public:
  explicit Compiled(const std::string& json) : Compiled(compile(json)) {}
  explicit Compiled(std::vector<uint8_t> blob) : blob_(std::move(blob)) {
    const Status status = Tokenizer::open(blob_, &tokenizer_);
    EXPECT_TRUE(status.ok()) << status.message();
  }
  Compiled(const Compiled&) = delete;
  Compiled& operator=(const Compiled&) = delete;

  const Tokenizer& operator*() const { return tokenizer_; }
  const Tokenizer* operator->() const { return &tokenizer_; }
  const std::vector<uint8_t>& blob() const { return blob_; }

  std::vector<int32_t> encode(std::string_view text, unsigned flags = 0) const {
    std::vector<std::byte> scratch(tokenizer_.scratch_bytes(text.size()));
    std::vector<int32_t> ids(text.size() * 4 + 16);
    size_t n = 0;
    const Status status = tokenizer_.encode(text, flags, scratch, ids.data(), ids.size(), &n);
    EXPECT_TRUE(status.ok()) << status.message();
    ids.resize(n);
    return ids;
  }

  std::string decode(const std::vector<int32_t>& ids, unsigned flags = 0) const {
    mamba_edge_decoder decoder = {};
    EXPECT_TRUE(tokenizer_.decoder_init(&decoder, flags).ok());
    std::vector<char> piece(tokenizer_.max_piece_bytes());
    std::string text;
    size_t n = 0;
    for (const int32_t id : ids) {
      const Status status = tokenizer_.decode(&decoder, id, piece.data(), piece.size(), &n);
      EXPECT_TRUE(status.ok()) << status.message();
      text.append(piece.data(), n);
    }
    EXPECT_TRUE(tokenizer_.decode_finish(&decoder, piece.data(), piece.size(), &n).ok());
    text.append(piece.data(), n);
    return text;
  }

  // The bytes of the tokens, which for byte-level BPE are the bytes of the text.
  std::string bytes(const std::vector<int32_t>& ids) const {
    std::string all;
    for (const int32_t id : ids) all += tokenizer_.token_bytes(id);
    return all;
  }

 private:
  std::vector<uint8_t> blob_;
  Tokenizer tokenizer_;
};

// A character of the GPT-2 alphabet in UTF-8.
inline std::string alphabet(uint8_t byte) {
  const uint32_t code = tokenizer_format::byte_to_character(byte);
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
}

// Byte-level BPE with all 256 bytes (id = byte), then "th", "the", " the", "aa", "aaaa", "12", and
// <eot> (262).
inline nlohmann::json byte_level_json() {
  nlohmann::json vocab, merges = nlohmann::json::array();
  for (int b = 0; b < 256; ++b) vocab[alphabet(static_cast<uint8_t>(b))] = b;
  const std::string space = alphabet(' ');
  for (const auto& [left, right] : std::vector<std::pair<std::string, std::string>>{
           {"t", "h"}, {"th", "e"}, {space, "the"}, {"a", "a"}, {"aa", "aa"}, {"1", "2"}}) {
    vocab[left + right] = vocab.size();
    merges.push_back(left + " " + right);
  }
  return {
      {"version", "1.0"},
      {"added_tokens",
       {{{"id", 262},
         {"content", "<eot>"},
         {"single_word", false},
         {"lstrip", false},
         {"rstrip", false},
         {"normalized", false},
         {"special", true}}}},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}};
}

}  // namespace mamba_edge::testing
