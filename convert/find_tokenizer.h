// Which tokenizer belongs to a checkpoint, compiled.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "convert/checkpoint.h"
#include "convert/tokenizer_json.h"
#include "engine/config.h"

namespace mamba_edge::convert {

struct FoundTokenizer {
  TokenizerFiles files;
  std::vector<uint8_t> blob;  // compile_tokenizer(files); empty where there is none
  std::string hint;           // then: why, and what to do about it
};

// `asked` is a tokenizer.json or its folder; empty means the one inside a GGUF file, or
// tokenizer.json beside any other checkpoint. Sets what the tokenizer knows better than the config:
// n_vocab_used, bos_token, eos_token. Throws Error where there is a tokenizer.json that cannot be used;
// a GGUF file's own tokenizer that cannot be used is only a reason for having none.
FoundTokenizer find_tokenizer(const Checkpoint& checkpoint, const std::filesystem::path& asked,
                              ModelConfig* config);

// The files that find_tokenizer may read.
std::vector<std::filesystem::path> tokenizer_inputs(const Checkpoint& checkpoint,
                                                    const std::filesystem::path& asked);

}  // namespace mamba_edge::convert
