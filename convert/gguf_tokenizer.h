// The tokenizer inside a GGUF file, and the way back: between tokenizer.json and the metadata
// "tokenizer.ggml.*".
//
// GGUF holds a vocabulary with a type per token, merges or scores, and a name for how text is split
// first; what that name stands for is in llama.cpp's source (src/llama-vocab.cpp) and, where the
// published tokenizer of that name also normalises its text, in that tokenizer. Two kinds are known
// here: "gpt2" (byte-level BPE; tokenizer.ggml.pre is one of kPreTokenizers) and "llama"
// (SentencePiece BPE with scores).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "convert/gguf.h"
#include "convert/tokenizer_json.h"

namespace mamba_edge::convert {

// tokenizer.ggml.token_type.
enum class GgufToken : int32_t {
  normal = 1,
  unknown = 2,
  control = 3,       // special
  user_defined = 4,  // looked for in the text like a special one, but shown
  unused = 5,
  byte = 6
};

// What compile_tokenizer() takes, with a tokenizer.json made from the metadata. Throws Error, naming
// the file and what it is, where there is no tokenizer or none that can be expressed.
TokenizerFiles gguf_to_tokenizer_json(const GgufMetadata& metadata);

struct GgufTokenizer {
  std::string model;                // "gpt2" or "llama"
  std::string pre;                  // tokenizer.ggml.pre; "default" for "llama"
  std::vector<std::string> tokens;  // [n_vocab], all different; "[PADn]" where there is none
  std::vector<GgufToken> types;     // [n_vocab]
  std::vector<std::string> merges;  // "gpt2": "left right"
  std::vector<float> scores;        // "llama": [n_vocab]
  std::optional<uint32_t> unknown;
  bool add_bos = false, add_eos = false;
};

// `files` compile (compile_tokenizer() takes them) to a tokenizer with these bos and eos (-1: none),
// and have at most n_vocab tokens. Throws Error where GGUF has no words for the tokenizer.
GgufTokenizer tokenizer_json_to_gguf(const TokenizerFiles& files, uint32_t n_vocab, int32_t bos,
                                     int32_t eos);

}  // namespace mamba_edge::convert
