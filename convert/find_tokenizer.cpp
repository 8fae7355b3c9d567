#include "convert/find_tokenizer.h"

#include "convert/error.h"
#include "convert/file.h"
#include "convert/gguf_tokenizer.h"
#include "engine/text/tokenizer.h"

namespace mamba_edge::convert {
namespace {

namespace fs = std::filesystem;

constexpr const char* kWithout = "; without it the model takes and gives token ids";

constexpr const char* kTokenizerConfig = "tokenizer_config.json";
constexpr const char* kSpecialTokens = "special_tokens_map.json";
constexpr const char* kGenerationConfig = "generation_config.json";

fs::path tokenizer_path(const Checkpoint& checkpoint, const fs::path& asked) {
  const fs::path path = asked.empty() ? checkpoint.folder() / "tokenizer.json" : asked;
  return fs::is_directory(path) ? path / "tokenizer.json" : path;
}

TokenizerFiles read_files(const fs::path& path, const ModelConfig& config) {
  const auto read = [&](const char* name) {
    const fs::path file = path.parent_path() / name;
    if (!fs::exists(file)) return std::string();
    const File f(file);
    return f.read_string(0, f.size());
  };
  TokenizerFiles files;
  files.name = path.string();
  const File file(path);
  files.tokenizer_json = file.read_string(0, file.size());
  files.tokenizer_config_json = read(kTokenizerConfig);
  files.special_tokens_map_json = read(kSpecialTokens);
  files.generation_config_json = read(kGenerationConfig);
  files.config_bos = config.bos_token;
  files.config_eos = config.eos_token;
  return files;
}

// Compiles found->files.
void compile(FoundTokenizer* found, ModelConfig* config) {
  const std::string& name = found->files.name;
  std::vector<uint8_t> blob = compile_tokenizer(found->files);
  Tokenizer tokenizer;
  const Status opened = Tokenizer::open(blob, &tokenizer);
  if (!opened.ok()) throw Error(name + ": " + opened.message());
  const auto n_tokens = static_cast<uint32_t>(tokenizer.n_tokens());
  if (n_tokens == 0 || n_tokens > config->n_vocab) {
    throw Error(name + ": has " + std::to_string(n_tokens) +
                " tokens, but the model's vocabulary has " + std::to_string(config->n_vocab));
  }
  found->blob = std::move(blob);
  config->n_vocab_used = n_tokens;
  config->bos_token = tokenizer.bos();
  config->eos_token = tokenizer.eos();
  // A tokenizer that names only an end starts texts with it: the GPT-NeoX family has a single
  // such token.
  if (config->bos_token < 0) config->bos_token = config->eos_token;
}

}  // namespace

FoundTokenizer find_tokenizer(const Checkpoint& checkpoint, const fs::path& asked,
                              ModelConfig* config) {
  FoundTokenizer found;
  if (asked.empty() && checkpoint.gguf() != nullptr) {
    try {
      found.files = gguf_to_tokenizer_json(*checkpoint.gguf());
      compile(&found, config);
    } catch (const Error& error) {
      found.hint = std::string("no tokenizer: ") + error.what() +
                   "; give the model's tokenizer.json with --tokenizer PATH" + kWithout;
    }
    return found;
  }
  const fs::path path = tokenizer_path(checkpoint, asked);
  if (!fs::exists(path)) {
    if (!asked.empty()) throw Error(path.string() + ": no such tokenizer file");
    found.hint =
        "no tokenizer: add " + path.string() + ", or give one with --tokenizer PATH" + kWithout;
    return found;
  }
  found.files = read_files(path, *config);
  compile(&found, config);
  return found;
}

std::vector<fs::path> tokenizer_inputs(const Checkpoint& checkpoint, const fs::path& asked) {
  const fs::path path = tokenizer_path(checkpoint, asked), folder = path.parent_path();
  return {path, folder / kTokenizerConfig, folder / kSpecialTokens, folder / kGenerationConfig};
}

}  // namespace mamba_edge::convert
