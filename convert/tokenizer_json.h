// tokenizer.json (Hugging Face's format) to the engine's tokenizer, whose layout stands in
// engine/text/tokenizer.h.
//
// Supported: BPE models without dropout, prefixes and suffixes of subwords; merges as "a b" or
// ["a", "b"];
//   normalizers NFC, Prepend, Replace (of a string), Strip, Sequence;
//   pre-tokenizers ByteLevel, Split (a string, or a regular expression of the kind below),
//   Punctuation, Digits, Whitespace, WhitespaceSplit, CharDelimiterSplit, Metaspace, Sequence;
//   post-processors ByteLevel, TemplateProcessing, RobertaProcessing, BertProcessing, Sequence;
//   decoders ByteLevel, and Replace, ByteFallback, Fuse, Strip (at the start) or Metaspace,
//   ByteFallback, Fuse.
// Regular expressions: alternatives of characters, classes ([...], \p{L} and the other general
// categories, \s, \d,
//   their negations), with greedy or possessive quantifiers, groups that are not repeated,
//   (?i:...), and a look-ahead at one character; of these, the ones that match in time proportional
//   to the text (GPT-2's, GPT-4's, Llama-3's, Qwen's and Tekken's are).
// Everything else is refused by its name and value. "truncation" and "padding" are what a training
// script left behind; a text is neither cut nor padded, as with transformers' AutoTokenizer.
//
// Where ids can still differ from the Rust library's (0.22.2, asked about every code point up to
// U+1FFFF): it splits by Unicode 16, composes and orders marks by a table of 2016; we do both by
// Unicode 15.0 (engine/text/unicode.h). So: characters that Unicode 15.1 and 16 added, and several
// marks in a row if one of them came after 2016.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "convert/error.h"

namespace mamba_edge::convert {

struct TokenizerFiles {
  std::string name = "tokenizer.json";  // for messages
  std::string tokenizer_json;         // the texts of the files; empty where a checkpoint lacks one
  std::string tokenizer_config_json;  // bos_token and eos_token, looked at first
  std::string special_tokens_map_json;  // the same, second
  std::string generation_config_json;   // bos_token_id and eos_token_id, third
  int32_t config_bos = -1;              // from the model's config, last; -1: it names none
  int32_t config_eos = -1;
};

// The same files give the same bytes. Throws Error.
std::vector<uint8_t> compile_tokenizer(const TokenizerFiles& files);

}  // namespace mamba_edge::convert
