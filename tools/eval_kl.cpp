// mamba-eval kl: how far a model's predictions are from a reference's.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>

#include "tools/eval.h"

namespace mamba_edge::tools {

// ---- distributions

bool Softmax::set(const float* logits) {
  logits_ = logits;
  best_ = 0;
  for (size_t i = 0; i < exps_.size(); ++i) {
    if (!std::isfinite(logits[i])) return false;
    if (logits[i] > logits[best_]) best_ = i;
  }
  largest_ = static_cast<double>(logits[best_]);
  sum_ = 0;
  for (size_t i = 0; i < exps_.size(); ++i) {
    exps_[i] = std::exp(static_cast<double>(logits[i]) - largest_);
    sum_ += exps_[i];
  }
  log_sum_ = std::log(sum_);
  return true;
}

// The sum of p log(p / q) - p + q. As p and q each sum to 1 this is the divergence, and it has two
// advantages over the sum of p log(p / q): no term is negative, so rounding of the sum is relative
// to the result (n u at most, with u = 2^-53); and an error of either softmax's sum, which moves all
// of its logarithms together, cancels to first order. What is left is the rounding of the terms
// themselves, exp's and log's last digit included: at most 8 u (p |log p| + p |log q| + p + q) for
// each, together 8 u (2 + entropy + cross entropy), which is less than 4e-14 for any vocabulary
// below a million and KL below 10. A result that is negative by so little is 0. Equal rows give
// p = q and log p = log q, and so exactly 0.
double kl_divergence(const Softmax& p, const Softmax& q) {
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double p_i = p.probability(i), q_i = q.probability(i);
    sum += p_i * (p.log_probability(i) - q.log_probability(i)) - p_i + q_i;
  }
  return std::max(sum, 0.0);
}

void throw_not_finite(const Model& model, const Text& text, const Chunk& chunk) {
  throw Error(file_label(model.path()) + " computed logits that are not finite within tokens " +
              std::to_string(chunk.first) + " to " +
              std::to_string(chunk.first + chunk.targets.size() - 1) + " of " +
              file_label(text.source));
}

// ---- two models

double Scores::ppl() const { return std::exp(nll / static_cast<double>(tokens)); }
double Scores::ppl_reference() const {
  return std::exp(nll_reference / static_cast<double>(tokens));
}

Divergence measure_divergence(const Model& model, Session& session, const Model& reference,
                              Session& reference_session, const Text& text, size_t segments,
                              const char* label) {
  const auto n_vocab = static_cast<size_t>(model.info().n_vocab);
  const size_t rows =
      std::min(logits_rows(model, session), logits_rows(reference, reference_session));
  std::vector<float> logits(rows * n_vocab), reference_logits(rows * n_vocab);
  Softmax p(n_vocab), q(n_vocab);
  const size_t n = text.n_scored();
  std::vector<double> kls;
  kls.reserve(n);
  Divergence result;
  result.segments.resize(segments);
  Progress progress(label, text.tokens.size());
  Chunk chunk;
  for (Walk walk(text, rows); walk.next(&chunk);) {
    throw_if_interrupted();
    if (chunk.fresh) {
      session.reset();
      reference_session.reset();
    }
    const size_t length = chunk.inputs.size();
    session.prefill(chunk.inputs.data(), length, chunk.scored ? logits.data() : nullptr);
    reference_session.prefill(chunk.inputs.data(), length,
                              chunk.scored ? reference_logits.data() : nullptr);
    progress.update(chunk.first + length);
    if (!chunk.scored) continue;
    for (size_t i = 0; i < length; ++i) {
      if (!p.set(reference_logits.data() + i * n_vocab)) throw_not_finite(reference, text, chunk);
      if (!q.set(logits.data() + i * n_vocab)) throw_not_finite(model, text, chunk);
      const double kl = kl_divergence(p, q);
      const auto target = static_cast<size_t>(chunk.targets[i]);
      for (Scores* scores : {&result.all, &result.segments[kls.size() * segments / n]}) {
        ++scores->tokens;
        scores->kl_sum += kl;
        scores->kl_max = std::max(scores->kl_max, kl);
        scores->nll -= q.log_probability(target);
        scores->nll_reference -= p.log_probability(target);
        scores->same_best += p.best() == q.best() ? 1 : 0;
      }
      kls.push_back(kl);
    }
  }
  std::sort(kls.begin(), kls.end());
  result.kl_p99 = percentile(kls, 0.99);
  result.kl_median = median(std::move(kls));
  return result;
}

void add_scores(Json& json, const Divergence& divergence) {
  const Scores& all = divergence.all;
  json["tokens"] = all.tokens;
  json["kl_mean"] = all.kl_mean();
  json["kl_median"] = divergence.kl_median;
  json["kl_p99"] = divergence.kl_p99;
  json["kl_max"] = all.kl_max;
  json["top1_agreement"] = all.top1_agreement();
  json["ppl"] = all.ppl();
  json["ppl_reference"] = all.ppl_reference();
}

void add_reference_options(CLI::App& app, std::string& file, std::string& state) {
  app.add_option("--reference", file,
                 "Model file to compare with, the same model in fp32 as a rule")
      ->required()
      ->type_name("FILE");
  app.add_option("--reference-state", state,
                 "Number format of the reference's recurrent state: fp32, fp16 or int8")
      ->type_name("TYPE")
      ->check(CLI::IsMember(state_types()))
      ->capture_default_str();
}

EngineOptions reference_options(const EngineOptions& options, const std::string& file,
                                const std::string& state) {
  EngineOptions reference = options;
  reference.model = file;
  reference.state = state;
  return reference;
}

// ---- the command

void add_kl(CLI::App& app, KlOptions& options) {
  options.engine.chunk = kScoringChunk;
  options.engine.same_bits = true;  // what is measured is what generation does
  add_engine_options(app, options.engine);
  add_reference_options(app, options.reference, options.reference_state);
  add_text_options(app, options.text);
  add_integer(app, "--segments", options.segments, 1, 1'000'000,
              "Also print the figures of each of N equal parts of the text")
      ->default_str("");
  app.add_flag("--json", options.json, "Print a JSON object");
  app.footer(
      "KL(reference || model) of the predictions of each token, in nats, over the whole "
      "vocabulary. "
      "The two files need the\n"
      "same vocabulary; --state is for the model alone, so a file can be compared with itself. "
      "llama.cpp's figures are of\n"
      "the second halves of windows of 512 tokens: --window 512 --skip 256.");
}

namespace {

std::string format_scores(const Divergence& divergence) {
  const Scores& all = divergence.all;
  char text[512];
  std::snprintf(text, sizeof text,
                "tokens         %zu\n"
                "kl_mean        %.6g\n"
                "kl_median      %.6g\n"
                "kl_p99         %.6g\n"
                "kl_max         %.6g\n"
                "top1_agreement %.6f\n"
                "ppl            %.6f\n"
                "ppl_reference  %.6f\n",
                all.tokens, all.kl_mean(), divergence.kl_median, divergence.kl_p99, all.kl_max,
                all.top1_agreement(), all.ppl(), all.ppl_reference());
  return text;
}

std::string format_segments(const std::vector<Scores>& segments) {
  char line[256];
  std::snprintf(line, sizeof line, "\n%-8s %10s %10s %12s %12s %8s %12s %14s\n", "segment", "first",
                "tokens", "kl_mean", "kl_max", "top1", "ppl", "ppl_reference");
  std::string text = line;
  size_t first = 0;
  for (size_t i = 0; i < segments.size(); ++i) {
    const Scores& s = segments[i];
    std::snprintf(line, sizeof line, "%-8zu %10zu %10zu %12.6g %12.6g %8.4f %12.6f %14.6f\n", i + 1,
                  first, s.tokens, s.kl_mean(), s.kl_max, s.top1_agreement(), s.ppl(),
                  s.ppl_reference());
    text += line;
    first += s.tokens;
  }
  return text;
}

Json segments_json(const std::vector<Scores>& segments) {
  Json json = Json::array();
  size_t first = 0;
  for (const Scores& s : segments) {
    json.push_back({{"first", first},
                    {"tokens", s.tokens},
                    {"kl_mean", s.kl_mean()},
                    {"kl_max", s.kl_max},
                    {"top1_agreement", s.top1_agreement()},
                    {"ppl", s.ppl()},
                    {"ppl_reference", s.ppl_reference()}});
    first += s.tokens;
  }
  return json;
}

}  // namespace

int run_kl(const KlOptions& options) {
  check_text_options(options.text);
  const EngineOptions of_reference =
      reference_options(options.engine, options.reference, options.reference_state);
  const Model reference(of_reference);
  std::optional<Model> other;  // a file that is its own reference is opened once
  const bool same = options.engine.model == options.reference;
  const Model& model = same ? reference : other.emplace(options.engine);
  const Text text = read_text(options.text, reference);
  require_same_vocabulary(model, reference, text);
  const size_t n = text.n_scored();
  if (static_cast<uint64_t>(options.segments) > n) {
    throw Error("--segments " + std::to_string(options.segments) + ": " + file_label(text.source) +
                " has only " + std::to_string(n) + " scored tokens");
  }
  Session session(model, options.engine), reference_session(reference, of_reference);

  catch_interrupts();
  const Divergence divergence =
      measure_divergence(model, session, reference, reference_session, text,
                         std::max<size_t>(1, static_cast<size_t>(options.segments)), "kl");
  if (options.json) {
    Json json = {{"model", model.path()},
                 {"reference", reference.path()},
                 {"text", text.source},
                 {"state", options.engine.state},
                 {"reference_state", options.reference_state}};
    add_scores(json, divergence);
    if (options.segments > 0) json["segments"] = segments_json(divergence.segments);
    write_stdout(dump(json) + "\n");
  } else {
    write_stdout(format_scores(divergence) +
                 (options.segments > 0 ? format_segments(divergence.segments) : ""));
  }
  return kExitOk;
}

}  // namespace mamba_edge::tools
