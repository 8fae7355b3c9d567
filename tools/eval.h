// What the parts of mamba-eval share: the text that is scored and the order in which it is, softmax
// in double, and how far one model is from another.
//
// Commands: logits and tokenize in mamba_eval.cpp, perplexity, kl and compare in files of their
// names, and eval_plot.cpp draws.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "tools/common.h"

namespace mamba_edge::tools {

using Json = nlohmann::ordered_json;
std::string dump(const Json& json);  // one line; text that is not UTF-8 with U+FFFD in it

// Tokens that commands which score texts take through the weights at a time, unless --chunk says
// otherwise: each weight is then read once for so many that reading hardly counts beside the
// arithmetic, for a few megabytes of arena.
constexpr int64_t kScoringChunk = 128;
// Tokens whose logits are held at a time: the session's chunk, within 64 MB.
size_t logits_rows(const Model& model, const Session& session);

// ---- the text

struct TextOptions {
  std::optional<std::string> file, tokens_file;
  int64_t limit = 0, window = 0, skip = 0, start = -1;  // 0: none; start -1: the model's
  bool no_start = false;
};
void add_text_options(CLI::App& app, TextOptions& options);
void check_text_options(const TextOptions& options);  // UsageError for what does not go together

// A text as it is scored: in windows of `window` tokens, each read from the zero state on its own.
// `start` is read before a window's first token and predicts it; without one the first token is not
// predicted. The first `skip` tokens of a window are read, but what predicts them is not scored.
struct Text {
  std::string source;              // its file, or "-"
  std::optional<std::string> raw;  // what `tokens` were made of, if it was text
  std::vector<int32_t> tokens;
  std::optional<int32_t> start;
  size_t window = 0, skip = 0;

  size_t unscored() const;  // tokens at the beginning of a window that are not scored
  size_t n_scored() const;  // in all windows; at least 1 of a text from read_text
};
// Reads it and turns it into ids of `model`. Throws if nothing of it would be scored.
Text read_text(const TextOptions& options, const Model& model);

// Some tokens of a window, in order.
struct Chunk {
  bool fresh = false;                    // begins a window
  bool scored = false;                   // all of them are, or none
  size_t first = 0;                      // the place in the text of targets[0]
  std::vector<int32_t> inputs, targets;  // the model reads inputs[i] and should predict targets[i]
};

// Goes through a text in chunks of at most `rows`. A window at the end that is too short to be scored
// is left out.
class Walk {
 public:
  Walk(const Text& text, size_t rows) : text_(text), rows_(rows) {}
  bool next(Chunk* chunk);  // false: that was all

 private:
  const Text& text_;
  size_t rows_, begin_ = 0, end_ = 0, at_ = 0;  // the window [begin_, end_), the next target
};

// ---- distributions

// The softmax of a row of logits, in double.
class Softmax {
 public:
  explicit Softmax(size_t n) : exps_(n) {}
  // `logits`: float [n], which stays valid while this is used. False: one of them is not finite.
  bool set(const float* logits);
  double log_probability(size_t i) const {
    return static_cast<double>(logits_[i]) - largest_ - log_sum_;
  }
  double probability(size_t i) const { return exps_[i] / sum_; }
  size_t size() const { return exps_.size(); }
  size_t best() const { return best_; }  // the likeliest; the lowest of several

 private:
  std::vector<double> exps_;
  const float* logits_ = nullptr;
  double largest_ = 0, sum_ = 0, log_sum_ = 0;
  size_t best_ = 0;
};

// KL(p || q) in nats, never negative, 0 for equal rows of logits.
double kl_divergence(const Softmax& p, const Softmax& q);

[[noreturn]] void throw_not_finite(const Model& model, const Text& text, const Chunk& chunk);

// ---- two models

// Throws, naming both files, unless they have the same rows of logits and the same tokens, and turn
// `text` into the same ids.
void require_same_vocabulary(const Model& model, const Model& reference, const Text& text);

struct Scores {
  size_t tokens = 0;
  double kl_sum = 0, kl_max = 0, nll = 0, nll_reference = 0;  // nll: sums too
  size_t same_best = 0;

  double kl_mean() const { return kl_sum / static_cast<double>(tokens); }
  double top1_agreement() const {
    return static_cast<double>(same_best) / static_cast<double>(tokens);
  }
  double ppl() const;
  double ppl_reference() const;
};

struct Divergence {
  Scores all;
  double kl_median = 0, kl_p99 = 0;
  std::vector<Scores> segments;  // of the scored tokens, in order, as equal as can be
};
// Runs both over the text side by side. Holds the logits of a chunk, and a double per scored token.
// `segments`: from 1 to the text's scored tokens.
Divergence measure_divergence(const Model& model, Session& session, const Model& reference,
                              Session& reference_session, const Text& text, size_t segments,
                              const char* label);

// `tokens kl_mean kl_median kl_p99 kl_max top1_agreement ppl ppl_reference`, added to `json`.
void add_scores(Json& json, const Divergence& divergence);

// --reference and --reference-state.
void add_reference_options(CLI::App& app, std::string& file, std::string& state);
// The engine options of the reference: those of the model under test but for the file and the state.
EngineOptions reference_options(const EngineOptions& options, const std::string& file,
                                const std::string& state);

// ---- pictures

struct Point {
  std::string name;
  uint64_t bytes = 0;  // at least 1
  double kl = 0;       // at least 0
  bool other = false;  // measured elsewhere
};
struct PlotWords {
  std::string title, subtitle, others;  // others: what the points measured elsewhere are
};
// KL, on a logarithmic axis, against file size, as SVG.
std::string plot_svg(const std::vector<Point>& points, const PlotWords& words);

// ---- commands

struct PerplexityOptions {
  EngineOptions engine;
  TextOptions text;
  bool json = false;
};
void add_perplexity(CLI::App& app, PerplexityOptions& options);
int run_perplexity(const PerplexityOptions& options);

struct KlOptions {
  EngineOptions engine;
  TextOptions text;
  std::string reference, reference_state = "fp32";
  int64_t segments = 0;  // 0: no table of them
  bool json = false;
};
void add_kl(CLI::App& app, KlOptions& options);
int run_kl(const KlOptions& options);

struct CompareOptions {
  EngineOptions engine;  // its model is set for each of `files`
  TextOptions text;
  std::vector<std::string> files;
  std::string reference, reference_state = "fp32", title;
  std::optional<std::string> svg, others, others_name;
  bool json = false, speed = false;
};
void add_compare(CLI::App& app, CompareOptions& options);
int run_compare(const CompareOptions& options);

}  // namespace mamba_edge::tools
