// mamba-eval perplexity.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>

#include "tools/eval.h"

namespace mamba_edge::tools {

void add_perplexity(CLI::App& app, PerplexityOptions& options) {
  options.engine.chunk = kScoringChunk;
  options.engine.same_bits = true;  // what is measured is what generation does
  add_engine_options(app, options.engine);
  add_text_options(app, options.text);
  app.add_flag("--json", options.json, "Print a JSON object: tokens, nll (nats per token), ppl");
}

int run_perplexity(const PerplexityOptions& options) {
  check_text_options(options.text);
  const Model model(options.engine);
  const Text text = read_text(options.text, model);
  Session session(model, options.engine);

  catch_interrupts();
  const double started = now_seconds();
  const auto n_vocab = static_cast<size_t>(model.info().n_vocab);
  const size_t rows = logits_rows(model, session);
  std::vector<float> logits(rows * n_vocab);
  Softmax softmax(n_vocab);
  double nll = 0;
  size_t scored = 0;
  Progress progress("perplexity", text.tokens.size());
  Chunk chunk;
  for (Walk walk(text, rows); walk.next(&chunk);) {
    throw_if_interrupted();
    if (chunk.fresh) session.reset();
    session.prefill(chunk.inputs.data(), chunk.inputs.size(),
                    chunk.scored ? logits.data() : nullptr);
    progress.update(chunk.first + chunk.inputs.size());
    if (!chunk.scored) continue;
    for (size_t i = 0; i < chunk.targets.size(); ++i) {
      if (!softmax.set(logits.data() + i * n_vocab)) throw_not_finite(model, text, chunk);
      nll -= softmax.log_probability(static_cast<size_t>(chunk.targets[i]));
    }
    scored += chunk.targets.size();
  }
  const double seconds = now_seconds() - started;
  nll /= static_cast<double>(scored);
  const double ppl = std::exp(nll);
  char line[160];
  std::snprintf(line, sizeof line, "%zu tokens in %.3f s, %.1f tokens/s\n", scored, seconds,
                static_cast<double>(scored) / std::max(seconds, 1e-9));
  write_stderr(line);
  if (options.json) {
    write_stdout(dump(Json{{"tokens", scored}, {"nll", nll}, {"ppl", ppl}}) + "\n");
  } else {
    std::snprintf(line, sizeof line, "tokens %zu\nnll    %.6f\nppl    %.6f\n", scored, nll, ppl);
    write_stdout(line);
  }
  return kExitOk;
}

}  // namespace mamba_edge::tools
