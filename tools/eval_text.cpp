// The text that is scored, the order in which it is, and whether two models read it alike.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <span>

#include "engine/container.h"
#include "engine/text/tokenizer.h"
#include "tools/eval.h"

namespace mamba_edge::tools {

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

size_t logits_rows(const Model& model, const Session& session) {
  const size_t row = static_cast<size_t>(model.info().n_vocab) * sizeof(float);
  return std::max<size_t>(1, std::min(session.chunk(), (size_t{64} << 20) / row));
}

// ---- options

void add_text_options(CLI::App& app, TextOptions& options) {
  auto* file =
      app.add_option("-f,--file", options.file,
                     "Text to score; special tokens written in it are recognised; - is stdin");
  auto* tokens = app.add_option("--tokens-file", options.tokens_file,
                                "Token ids to score instead: .npy, integers");
  file->type_name("FILE")->excludes(tokens->type_name("FILE"));
  add_integer(app, "--limit,--max-tokens", options.limit, 1, INT64_MAX,
              "Score the first N tokens only")
      ->default_str("");
  add_integer(app, "--window", options.window, 2, INT64_MAX,
              "Cut the text into windows of N tokens, each read from the start token on its own")
      ->default_str("");
  add_integer(app, "--skip", options.skip, 0, INT64_MAX,
              "Read the first N tokens of each window, or of the text, without scoring them")
      ->default_str("");
  auto* start = add_integer(app, "--start", options.start, 0, INT32_MAX,
                            "Token before the first (default: the model's start token)")
                    ->default_str("");
  app.add_flag("--no-start", options.no_start,
               "Put no token before the first, which is then not scored")
      ->excludes(start);
}

void check_text_options(const TextOptions& options) {
  if (!options.file && !options.tokens_file) throw UsageError("-f or --tokens-file is required");
  if (options.window > 0 && options.skip >= options.window) {
    throw UsageError("--skip " + std::to_string(options.skip) +
                     " leaves nothing of a --window of " + std::to_string(options.window) +
                     " tokens to score; less was expected");
  }
}

// ---- Text

size_t Text::unscored() const { return std::max<size_t>(skip, start ? 0 : 1); }

size_t Text::n_scored() const {
  const auto scored = [&](size_t n) { return n - std::min(n, unscored()); };
  return tokens.size() / window * scored(window) + scored(tokens.size() % window);
}

Text read_text(const TextOptions& options, const Model& model) {
  Text text;
  text.source = options.file ? *options.file : *options.tokens_file;
  if (options.file) {
    model.require_tokenizer("give ids with --tokens-file");
    text.raw = read_file(text.source);
    text.tokens = model.tokenize(*text.raw, MAMBA_EDGE_NO_TEMPLATE);
  } else {
    text.tokens = model.check_ids(read_npy_ids(text.source), "token");
  }
  if (options.limit > 0 && text.tokens.size() > static_cast<uint64_t>(options.limit)) {
    text.tokens.resize(static_cast<size_t>(options.limit));
  }
  if (text.tokens.empty()) throw Error(file_label(text.source) + " has no tokens to score");
  if (options.start >= 0) {
    text.start = model.check_ids({options.start}, "start token").front();
  } else if (!options.no_start) {
    if (model.info().bos_token < 0 && model.info().eos_token < 0) {
      throw Error(file_label(model.path()) +
                  " names no start token; give one with --start, or --no-start");
    }
    text.start = model.start_token();
  }
  text.window = options.window > 0 ? static_cast<size_t>(options.window) : text.tokens.size();
  text.skip = static_cast<size_t>(options.skip);
  if (text.n_scored() == 0) {
    throw Error(file_label(text.source) + " is too short to be scored: of " +
                std::to_string(text.tokens.size()) + " tokens the first " +
                std::to_string(text.unscored()) + " are not scored" +
                (options.skip > 0 ? " (--skip)" : " (--no-start)"));
  }
  return text;
}

// ---- Walk

bool Walk::next(Chunk* chunk) {
  chunk->fresh = at_ == end_;
  if (chunk->fresh) {
    begin_ = end_;
    end_ += std::min(text_.window, text_.tokens.size() - end_);
    at_ = begin_ + (text_.start ? 0 : 1);
    if (end_ - begin_ <= text_.unscored()) return false;
  }
  const size_t scored_from = begin_ + text_.unscored();  // within the window, by the line above
  chunk->scored = at_ >= scored_from;
  const size_t n = std::min(rows_, (chunk->scored ? end_ : scored_from) - at_);
  chunk->first = at_;
  chunk->targets.assign(text_.tokens.begin() + static_cast<std::ptrdiff_t>(at_),
                        text_.tokens.begin() + static_cast<std::ptrdiff_t>(at_ + n));
  chunk->inputs.resize(n);
  for (size_t i = 0; i < n; ++i)
    chunk->inputs[i] = at_ + i == begin_ ? *text_.start : text_.tokens[at_ + i - 1];
  at_ += n;
  return true;
}

// ---- two models

namespace {

// A model's tokenizer as its file has it.
class StoredTokenizer {
 public:
  explicit StoredTokenizer(const Model& model) {
    check(Container::open(model.path().c_str(), &container_));
    if (!container_.find_section("TOKN", &blob_))
      throw Error(file_label(model.path()) + " has no tokenizer");
  }
  bool same_bytes(const StoredTokenizer& other) const {
    return blob_.checksum == other.blob_.checksum && blob_.raw_bytes == other.blob_.raw_bytes;
  }
  // Valid while this is.
  Tokenizer open() {
    bytes_.resize(static_cast<size_t>(blob_.raw_bytes));
    check(container_.read_blob(blob_, bytes_.data(), "tokenizer"));
    Tokenizer tokenizer;
    check(Tokenizer::open(std::span<const uint8_t>(bytes_), &tokenizer));
    return tokenizer;
  }

 private:
  static void check(const Status& status) {
    if (!status.ok()) throw Error(status.message());
  }
  Container container_;
  Blob blob_;
  std::vector<uint8_t> bytes_;
};

std::string quoted(std::string_view bytes) { return dump(Json(std::string(bytes))); }

}  // namespace

void require_same_vocabulary(const Model& model, const Model& reference, const Text& text) {
  const std::string both =
      file_label(model.path()) + " and the reference " + file_label(reference.path());
  if (model.info().n_vocab != reference.info().n_vocab) {
    throw Error(both + " have different vocabularies: " + std::to_string(model.info().n_vocab) +
                " and " + std::to_string(reference.info().n_vocab) + " logits per token");
  }
  if (!text.raw) return;  // ids
  model.require_tokenizer("give ids with --tokens-file");
  StoredTokenizer a(model), b(reference);
  if (a.same_bytes(b)) return;
  // The same vocabulary may come from another kind of file, with other details around it.
  const Tokenizer ours = a.open(), theirs = b.open();
  if (ours.n_tokens() != theirs.n_tokens()) {
    throw Error(both + " have different tokenizers: of " + std::to_string(ours.n_tokens()) +
                " and " + std::to_string(theirs.n_tokens()) + " tokens");
  }
  for (int32_t id = 0; id < ours.n_tokens(); ++id) {
    if (ours.token_bytes(id) != theirs.token_bytes(id)) {
      throw Error(both + " have different tokenizers: token " + std::to_string(id) + " is " +
                  quoted(ours.token_bytes(id)) + " and " + quoted(theirs.token_bytes(id)));
    }
  }
  const std::vector<int32_t> ids = model.tokenize(*text.raw, MAMBA_EDGE_NO_TEMPLATE);
  for (size_t i = 0; i < text.tokens.size(); ++i) {
    if (i >= ids.size() || ids[i] != text.tokens[i]) {
      throw Error(both + " have different tokenizers: they cut " + file_label(text.source) +
                  " into different tokens, from number " + std::to_string(i + 1) + " on");
    }
  }
}

}  // namespace mamba_edge::tools
