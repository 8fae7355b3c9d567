#include "convert/gguf_tokenizer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string_view>
#include <tuple>
#include <unordered_map>

#include "convert/error.h"
#include "convert/json.h"
#include "engine/text/utf8.h"

namespace mamba_edge::convert {
namespace {

using nlohmann::json;

constexpr char kWordMark[] = "\xE2\x96\x81";  // U+2581, SentencePiece's space
constexpr size_t kMaxScoredBytes = 256;       // of a token that merges are made from
constexpr size_t kShownBytes = 100;

json byte_level(bool gpt2_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", gpt2_regex}};
}

json digits(bool individual) { return {{"type", "Digits"}, {"individual_digits", individual}}; }

json split(const char* regex) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", regex}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

json sequence(std::vector<json> steps) {
  return {{"type", "Sequence"}, {"pretokenizers", std::move(steps)}};
}

constexpr const char* kGpt2Regex =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kLlama3Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kTekkenRegex =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|)"
    R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// How text is normalised and split before BPE, by the names that tokenizer.ggml.pre can have.
struct PreTokenizer {
  std::vector<std::string_view> names;  // the first is the one that is written
  json normalizer, pre_tokenizer;       // as in tokenizer.json
  bool ignore_merges = false;
  bool add_bos = false;  // where tokenizer.ggml.add_bos_token does not say
};

const std::vector<PreTokenizer>& pre_tokenizers() {
  static const json nfc = {{"type", "NFC"}};
  static const json punctuation = {{"type", "Punctuation"}, {"behavior", "Contiguous"}};
  static const std::vector<PreTokenizer> known = {
      {{"gpt-2", "phi-2", "jais", "trillion", "exaone4"}, nullptr, byte_level(true)},
      // GPT-NeoX's: that of the state-spaces models.
      {{"mpt", "olmo"}, nfc, byte_level(true)},
      {{"falcon"},
       nullptr,
       sequence({punctuation, byte_level(true), digits(false), split("[0-9][0-9][0-9]")})},
      {{"starcoder", "refact", "smollm", "codeshell"},
       nullptr,
       sequence({digits(true), byte_level(true)})},
      {{"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral"},
       nullptr,
       sequence({split(kLlama3Regex), byte_level(false)}),
       true,
       true},
      {{"dbrx", "smaug-bpe"}, nullptr, sequence({split(kLlama3Regex), byte_level(false)})},
      {{"qwen2", "stablelm2", "deepseek-r1-qwen"},
       nfc,
       sequence({split(kQwen2Regex), byte_level(false)})},
      {{"tekken"}, nullptr, sequence({split(kTekkenRegex), byte_level(false)}), true, true},
      {{"default"},
       nullptr,
       sequence({split(R"([\p{P}\$\+<=>\^~\|]+)"), split(kGpt2Regex), split(R"(\p{N}+)"),
                 split("[0-9][0-9][0-9]"), byte_level(false)})},
  };
  return known;
}

std::string shown(std::string_view text) {
  return json(std::string(text.substr(0, kShownBytes)))
      .dump(-1, ' ', true, json::error_handler_t::replace);
}

size_t character_bytes(std::string_view text, size_t at) {
  const auto* const bytes = reinterpret_cast<const uint8_t*>(text.data());
  return decode_utf8(bytes + at, bytes + text.size()).bytes;
}

using Merge = std::pair<std::string, std::string>;
using Ids = std::unordered_map<std::string, uint32_t>;  // of tokens

// SentencePiece joins the two neighbours whose union has the highest score. As merges: for every
// token, from the highest score down, all pairs of tokens that it consists of. Among equal scores
// longer left parts come first, then longer right parts, as transformers orders them since 2024;
// before, it did not look at lengths.
std::vector<Merge> merges_of_scores(const std::vector<uint32_t>& words,  // ids, ascending
                                    const std::vector<std::string>& tokens,
                                    const std::vector<float>& scores, const Ids& ids,
                                    bool by_length) {
  struct Part {
    float score;
    size_t left_characters, right_characters;
    uint32_t left, right;
  };
  std::vector<Part> parts;
  for (const uint32_t id : words) {
    const std::string& token = tokens[id];
    std::vector<size_t> ends;  // of its characters
    for (size_t at = 0; at < token.size();) ends.push_back(at += character_bytes(token, at));
    const size_t first = parts.size();
    for (size_t n = 1; n < ends.size(); ++n) {
      const auto left = ids.find(token.substr(0, ends[n - 1]));
      const auto right = ids.find(token.substr(ends[n - 1]));
      if (left == ids.end() || right == ids.end()) continue;
      parts.push_back({scores[id], n, ends.size() - n, left->second, right->second});
    }
    std::sort(parts.begin() + static_cast<std::ptrdiff_t>(first), parts.end(),
              [](const Part& a, const Part& b) {
                return std::pair(a.left, a.right) < std::pair(b.left, b.right);
              });
  }
  std::stable_sort(parts.begin(), parts.end(), [by_length](const Part& a, const Part& b) {
    if (a.score != b.score || !by_length) return a.score > b.score;
    return std::pair(a.left_characters, a.right_characters) >
           std::pair(b.left_characters, b.right_characters);
  });
  std::vector<Merge> merges;
  for (const Part& part : parts) merges.emplace_back(tokens[part.left], tokens[part.right]);
  return merges;
}

// ---- from GGUF

class Importer {
 public:
  explicit Importer(const GgufMetadata& metadata)
      : metadata_(metadata), name_(metadata.file() + ": its tokenizer") {}

  TokenizerFiles run() {
    const std::string model = metadata_.text("tokenizer.ggml.model").value_or("none");
    if (model == "none" || model == "no_vocab")
      throw Error(metadata_.file() + ": holds no tokenizer");
    if (model != "gpt2" && model != "llama") {
      throw Error(name_ + " is of kind " + shown(model) +
                  " (tokenizer.ggml.model); gpt2 and llama can be read");
    }
    read_tokens();
    json root = model == "gpt2" ? from_merges() : sentence_piece();
    root["version"] = "1.0";
    root["added_tokens"] = std::move(added_);
    TokenizerFiles files;
    files.name = name_;
    files.config_bos = bos_;
    files.config_eos = eos_;
    try {
      files.tokenizer_json = root.dump();
    } catch (const json::exception&) {
      throw Error(name_ + " has a token or merge that is not valid UTF-8");
    }
    return files;
  }

 private:
  void read_tokens() {
    tokens_ = metadata_.texts("tokenizer.ggml.tokens");
    if (tokens_.empty()) throw Error(name_ + " has no tokens");
    const std::vector<int64_t> types = metadata_.integers("tokenizer.ggml.token_type");
    if (!types.empty() && types.size() != tokens_.size()) {
      throw Error(name_ + " has " + std::to_string(tokens_.size()) + " tokens and " +
                  std::to_string(types.size()) + " token types");
    }
    for (size_t id = 0; id < tokens_.size(); ++id) {
      types_.push_back(types.empty()
                           ? GgufToken::normal
                           : static_cast<GgufToken>(std::clamp<int64_t>(types[id], 0, 7)));
      const GgufToken type = types_.back();
      if (type == GgufToken::unused || tokens_[id].empty()) continue;
      if (!ids_.emplace(tokens_[id], static_cast<uint32_t>(id)).second) {
        throw Error(name_ + " has the token " + shown(tokens_[id]) + " twice");
      }
      const bool special = type == GgufToken::control || type == GgufToken::unknown;
      if (special || type == GgufToken::user_defined) {
        added_.push_back({{"id", id},
                          {"content", tokens_[id]},
                          {"single_word", false},
                          {"lstrip", false},
                          {"rstrip", false},
                          {"normalized", false},
                          {"special", special}});
      }
    }
  }

  std::optional<uint32_t> special_id(const char* key, std::optional<uint32_t> otherwise) const {
    const auto id = metadata_.count(key);
    if (id && *id < tokens_.size()) return static_cast<uint32_t>(*id);
    return !id && otherwise && *otherwise < tokens_.size() ? otherwise : std::nullopt;
  }

  json vocabulary() const {
    json vocab = json::object();
    for (const auto& [token, id] : ids_) vocab[token] = id;
    return vocab;
  }

  // Finds bos and eos, and says which of them the tokenizer adds to a text.
  json post_processor(std::optional<uint32_t> bos, std::optional<uint32_t> eos, bool add_bos) {
    bos = special_id("tokenizer.ggml.bos_token_id", bos);
    eos = special_id("tokenizer.ggml.eos_token_id", eos);
    if (bos) bos_ = static_cast<int32_t>(*bos);
    if (eos) eos_ = static_cast<int32_t>(*eos);
    add_bos = metadata_.flag("tokenizer.ggml.add_bos_token").value_or(add_bos) && bos;
    const bool add_eos = metadata_.flag("tokenizer.ggml.add_eos_token").value_or(false) && eos;
    if (!add_bos && !add_eos) return nullptr;
    json single = json::array();
    json special = json::object();
    const auto add = [&](uint32_t id) {
      single.push_back({{"SpecialToken", {{"id", tokens_[id]}, {"type_id", 0}}}});
      special[tokens_[id]] = {{"id", tokens_[id]}, {"ids", {id}}, {"tokens", {tokens_[id]}}};
    };
    if (add_bos) add(*bos);
    single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
    if (add_eos) add(*eos);
    return {{"type", "TemplateProcessing"}, {"single", single}, {"special_tokens", special}};
  }

  json from_merges() {
    const std::string pre = metadata_.text("tokenizer.ggml.pre").value_or("default");
    const auto& all = pre_tokenizers();
    const auto known = std::find_if(all.begin(), all.end(), [&](const PreTokenizer& p) {
      return std::find(p.names.begin(), p.names.end(), pre) != p.names.end();
    });
    if (known == all.end()) {
      throw Error(name_ + " splits text in a way called " + shown(pre) +
                  " (tokenizer.ggml.pre), which is not known");
    }
    json model = {{"type", "BPE"},
                  {"vocab", vocabulary()},
                  {"merges", metadata_.texts("tokenizer.ggml.merges")},
                  {"ignore_merges", known->ignore_merges}};
    return {{"normalizer", known->normalizer},
            {"pre_tokenizer", known->pre_tokenizer},
            {"decoder", {{"type", "ByteLevel"}}},
            {"post_processor", post_processor(std::nullopt, std::nullopt, known->add_bos)},
            {"model", std::move(model)}};
  }

  json sentence_piece() {
    const bool prefix = metadata_.flag("tokenizer.ggml.add_space_prefix").value_or(true);
    json normalizers = json::array();
    if (prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", kWordMark}});
    normalizers.push_back(
        {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kWordMark}});
    json decoders = {{{"type", "Replace"}, {"pattern", {{"String", kWordMark}}}, {"content", " "}},
                     {{"type", "ByteFallback"}},
                     {{"type", "Fuse"}}};
    if (prefix) {
      decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    }
    const auto unknown = special_id("tokenizer.ggml.unknown_token_id", 0);
    json model = {{"type", "BPE"},
                  {"vocab", vocabulary()},
                  {"merges", read_scores()},
                  {"fuse_unk", true},
                  {"byte_fallback",
                   std::find(types_.begin(), types_.end(), GgufToken::byte) != types_.end()}};
    if (unknown && ids_.contains(tokens_[*unknown])) model["unk_token"] = tokens_[*unknown];
    return {{"normalizer", {{"type", "Sequence"}, {"normalizers", normalizers}}},
            {"pre_tokenizer", nullptr},
            {"decoder", {{"type", "Sequence"}, {"decoders", decoders}}},
            {"post_processor", post_processor(1, 2, true)},
            {"model", std::move(model)}};
  }

  std::vector<Merge> read_scores() const {
    const std::vector<float> scores = metadata_.floats("tokenizer.ggml.scores");
    if (scores.size() != tokens_.size()) {
      throw Error(name_ + " has " + std::to_string(tokens_.size()) + " tokens and " +
                  std::to_string(scores.size()) + " scores");
    }
    std::vector<uint32_t> words;
    for (uint32_t id = 0; id < tokens_.size(); ++id) {
      if (types_[id] != GgufToken::normal || tokens_[id].empty()) continue;
      if (!std::isfinite(scores[id])) throw Error(name_ + " has a score that is not finite");
      if (tokens_[id].size() > kMaxScoredBytes) {
        throw Error(name_ + " has the token " + shown(tokens_[id]) + "... of " +
                    std::to_string(tokens_[id].size()) + " bytes, the limit is " +
                    std::to_string(kMaxScoredBytes));
      }
      words.push_back(id);
    }
    return merges_of_scores(words, tokens_, scores, ids_, /*by_length=*/true);
  }

  const GgufMetadata& metadata_;
  std::string name_;
  std::vector<std::string> tokens_;
  std::vector<GgufToken> types_;
  Ids ids_;  // of tokens that are used
  json added_ = json::array();
  int32_t bos_ = -1, eos_ = -1;
};

// ---- to GGUF

// Missing and null are false, as for compile_tokenizer().
bool is_set(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && *found == true;
}

// The steps of a normalizer or pre_tokenizer without what makes no difference.
json steps_of(const json& node, const char* list) {
  json steps = json::array();
  if (node.is_null()) return steps;
  if (node["type"] == "Sequence") {
    for (const json& step : node[list]) {
      for (json& inner : steps_of(step, list)) steps.push_back(std::move(inner));
    }
    return steps;
  }
  json step = node;
  step.erase("trim_offsets");
  if (step["type"] == "ByteLevel" && !step.contains("use_regex")) step["use_regex"] = true;
  steps.push_back(std::move(step));
  return steps;
}

class Exporter {
 public:
  Exporter(const TokenizerFiles& files, uint32_t n_vocab)
      : name_(files.name), n_vocab_(n_vocab), root_(parse_json(files.tokenizer_json, files.name)) {}

  GgufTokenizer run(int32_t bos, int32_t eos) {
    const json& model = root_["model"];
    read_tokens(model);
    const json pre = steps_of(root_.value("pre_tokenizer", json()), "pretokenizers");
    const bool byte_level = std::any_of(
        pre.begin(), pre.end(), [](const json& step) { return step["type"] == "ByteLevel"; });
    if (byte_level) {
      out_.model = "gpt2";
      name_splitting(pre, is_set(model, "ignore_merges"));
      for (const auto& [left, right] : merges()) {
        if (left.find(' ') != std::string::npos || right.find(' ') != std::string::npos) {
          throw Error(name_ + ": the merge of " + shown(left) + " and " + shown(right) +
                      " has a space, which GGUF cannot express");
        }
        out_.merges.push_back(left + " " + right);
      }
    } else {
      out_.model = "llama";
      out_.pre = "default";
      check_sentence_piece(pre, model);
      score_tokens();
    }
    const json unknown = model.value("unk_token", json());
    if (unknown.is_string()) {
      const auto found = ids_.find(unknown.get<std::string>());
      if (found != ids_.end()) out_.unknown = found->second;
    }
    if (out_.unknown && !byte_level) out_.types[*out_.unknown] = GgufToken::unknown;
    read_template(bos, eos);
    return std::move(out_);
  }

 private:
  void read_tokens(const json& model) {
    std::vector<bool> taken(n_vocab_, false);
    out_.tokens.resize(n_vocab_);
    out_.types.assign(n_vocab_, GgufToken::unused);
    for (const auto& [token, id] : model["vocab"].items()) {
      const auto number = id.get<uint32_t>();
      out_.tokens[number] = token;
      out_.types[number] = GgufToken::normal;
      ids_[token] = number;
      taken[number] = true;
    }
    for (const json& added : root_.value("added_tokens", json::array())) {
      const auto token = added["content"].get<std::string>();
      if (token.empty()) continue;
      const auto number = added["id"].get<uint32_t>();
      out_.tokens[number] = token;
      out_.types[number] =
          added["special"].get<bool>() ? GgufToken::control : GgufToken::user_defined;
      ids_[token] = number;
      taken[number] = true;
    }
    for (uint32_t id = 0; id < n_vocab_; ++id) {
      if (taken[id]) continue;
      // llama.cpp gives up where two tokens are the same.
      std::string& token = out_.tokens[id];
      token = "[PAD" + std::to_string(id) + "]";
      while (!ids_.emplace(token, id).second) token += "_";
    }
  }

  std::vector<Merge> merges() const {
    std::vector<Merge> list;
    for (const json& merge : root_["model"]["merges"]) {
      if (merge.is_array()) {
        list.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
        continue;
      }
      const auto text = merge.get<std::string>();
      if (text.starts_with("#version")) continue;
      const size_t space = text.find(' ');
      list.emplace_back(text.substr(0, space), text.substr(space + 1));
    }
    return list;
  }

  void name_splitting(const json& pre, bool ignore_merges) {
    const json normalizers = steps_of(root_.value("normalizer", json()), "normalizers");
    for (const PreTokenizer& known : pre_tokenizers()) {
      if (known.ignore_merges == ignore_merges &&
          normalizers == steps_of(known.normalizer, "normalizers") &&
          pre == steps_of(known.pre_tokenizer, "pretokenizers")) {
        out_.pre = known.names[0];
        return;
      }
    }
    throw Error(name_ + ": llama.cpp has no name for its way of splitting text (normalizer " +
                normalizers.dump().substr(0, kShownBytes) + ", pre_tokenizer " +
                pre.dump().substr(0, kShownBytes) + ")");
  }

  // What llama.cpp does with a "llama" tokenizer, and nothing else.
  void check_sentence_piece(const json& pre, const json& model) const {
    const json expected = {
        {{"type", "Prepend"}, {"prepend", kWordMark}},
        {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kWordMark}}};
    if (!pre.empty() || steps_of(root_.value("normalizer", json()), "normalizers") != expected ||
        !is_set(model, "byte_fallback")) {
      throw Error(name_ +
                  ": is neither a byte-level tokenizer nor one of SentencePiece's kind "
                  "(spaces become U+2581, one in front, byte fallback), so GGUF cannot express it");
    }
  }

  // Scores that give the order of the merges: 0, -1, -2, ... in the order in which tokens are first
  // made, the same for tokens whose merges take turns. With scores, all pairs that make a token are
  // merges; a tokenizer that lacks some has to be refused.
  void score_tokens() {
    constexpr float kNever = -1e9f;
    out_.scores.assign(n_vocab_, kNever);
    const std::vector<Merge> list = merges();
    std::unordered_map<std::string, size_t> last;  // the last merge that makes a token
    for (size_t i = 0; i < list.size(); ++i) last[list[i].first + list[i].second] = i;
    float score = 0;
    size_t turn_ends = 0;
    std::vector<uint32_t> words;
    for (size_t i = 0; i < list.size(); ++i) {
      const std::string token = list[i].first + list[i].second;
      if (i > turn_ends) --score;
      turn_ends = std::max(turn_ends, last[token]);
      float& own = out_.scores[ids_.at(token)];
      if (own == kNever) words.push_back(ids_.at(token));
      own = score;
    }
    std::sort(words.begin(), words.end());
    if (list != merges_of_scores(words, out_.tokens, out_.scores, ids_, true) &&
        list != merges_of_scores(words, out_.tokens, out_.scores, ids_, false)) {
      throw Error(name_ +
                  ": its merges are not those of a SentencePiece model, so that scores "
                  "cannot express them");
    }
    for (uint32_t id = 0; id < n_vocab_; ++id) {
      const std::string& token = out_.tokens[id];
      if (out_.types[id] == GgufToken::normal && token.size() == 6 && token.starts_with("<0x") &&
          token.ends_with(">") && token.find_first_not_of("0123456789ABCDEF", 3) == 5) {
        out_.types[id] = GgufToken::byte;
        out_.scores[id] = 0;
      } else if (out_.types[id] != GgufToken::normal) {
        out_.scores[id] = 0;
      }
    }
  }

  // GGUF can say: bos in front, eos behind.
  void read_template(int32_t bos, int32_t eos) {
    for (const json& step : steps_of(root_.value("post_processor", json()), "processors")) {
      if (step["type"] == "ByteLevel") continue;  // changes offsets only
      std::vector<int64_t> before, after;
      if (step["type"] == "TemplateProcessing") {
        std::vector<int64_t>* side = &before;
        for (const json& piece : step["single"]) {
          if (piece.contains("Sequence")) {
            side = &after;
            continue;
          }
          const auto token = piece["SpecialToken"]["id"].get<std::string>();
          for (const json& id : step["special_tokens"][token]["ids"])
            side->push_back(id.get<int64_t>());
        }
      } else {  // RobertaProcessing, BertProcessing
        before.push_back(step["cls"][1].get<int64_t>());
        after.push_back(step["sep"][1].get<int64_t>());
      }
      out_.add_bos = before == std::vector<int64_t>{bos};
      out_.add_eos = after == std::vector<int64_t>{eos};
      if ((!before.empty() && !out_.add_bos) || (!after.empty() && !out_.add_eos)) {
        throw Error(name_ +
                    ": its post_processor adds other tokens than the start and the end of text, "
                    "which GGUF cannot express");
      }
    }
  }

  const std::string& name_;
  uint32_t n_vocab_;
  json root_;
  Ids ids_;
  GgufTokenizer out_;
};

}  // namespace

TokenizerFiles gguf_to_tokenizer_json(const GgufMetadata& metadata) {
  return Importer(metadata).run();
}

GgufTokenizer tokenizer_json_to_gguf(const TokenizerFiles& files, uint32_t n_vocab, int32_t bos,
                                     int32_t eos) {
  return Exporter(files, n_vocab).run(bos, eos);
}

}  // namespace mamba_edge::convert
