// mamba-generate: continues a text with a model.
//
// Text goes to stdout as it is made, in whole UTF-8 characters; statistics, prompts of the
// interactive mode and messages go to stderr.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <charconv>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>

#include "tools/common.h"

namespace mamba_edge::tools {
namespace {

struct Options {
  EngineOptions engine;
  std::optional<std::string> prompt, file, tokens;
  int64_t n_predict = 128;
  uint64_t seed = 0;
  double temperature = 0.8, top_p = 0.95, min_p = 0.05, repeat_penalty = 1.0;
  int64_t top_k = 40, repeat_last_n = 64, parallel = 1;
  std::vector<std::string> stop;
  bool bos = false, display_prompt = true, ignore_eos = false, special = false, json = false,
       stats = false;
};

enum class StopReason { length, end_of_text, stop_string, interrupted };

const char* name(StopReason reason) {
  switch (reason) {
    case StopReason::length:
      return "length";
    case StopReason::end_of_text:
      return "eos";
    case StopReason::stop_string:
      return "stop";
    case StopReason::interrupted:
      return "interrupted";
  }
  return "";
}

// One prompt and what came of it.
struct Reply {
  std::vector<int32_t> prompt_tokens, tokens;  // without the token that ended the text
  std::string prompt_text, text;
  StopReason reason = StopReason::length;
  std::string stop_string;
  double prompt_seconds = 0, decode_seconds = 0;
  uint64_t steps = 0;  // of the model, in decode_seconds

  double prompt_rate() const {
    return rate(static_cast<double>(prompt_tokens.size()), prompt_seconds);
  }
  static double rate(double n, double seconds) { return seconds > 0 ? n / seconds : 0; }
};

class Sampler {
 public:
  Sampler(const Model& model, const Options& options, uint64_t seed) {
    mamba_edge_sampler_options sampler_options = {};
    sampler_options.seed = seed;
    sampler_options.temperature = static_cast<float>(options.temperature);
    sampler_options.top_k = static_cast<int32_t>(options.top_k);
    sampler_options.top_p = static_cast<float>(options.top_p);
    sampler_options.min_p = static_cast<float>(options.min_p);
    sampler_options.repeat_penalty = static_cast<float>(options.repeat_penalty);
    sampler_options.repeat_last_n = static_cast<int32_t>(options.repeat_last_n);
    const size_t bytes = mamba_edge_sampler_required_bytes(model.get(), &sampler_options);
    memory_.resize((bytes + sizeof(uint64_t) - 1) / sizeof(uint64_t));
    mamba_edge_error error = {};
    check(mamba_edge_sampler_init(model.get(), &sampler_options, memory_.data(), bytes, &sampler_,
                                  &error),
          error);
  }
  void accept(int32_t token) { mamba_edge_sampler_accept(sampler_, token); }
  int32_t sample(const float* logits) { return mamba_edge_sample(sampler_, logits); }

 private:
  std::vector<uint64_t> memory_;  // 8-byte aligned
  mamba_edge_sampler* sampler_ = nullptr;
};

// Where a reply goes as it is made: stdout, as text or as ids; or nowhere (--json prints it when it
// is complete).
class Output {
 public:
  explicit Output(bool silent) : silent_(silent) {}

  void text(std::string_view text) {
    if (silent_ || text.empty()) return;
    write_stdout(text);
    last_ = text.back();
  }
  void id(int32_t id) {
    if (silent_) return;
    write_stdout((last_ == '\n' ? "" : ",") + std::to_string(id));
    last_ = '0';
  }
  // Ends a line that was begun; false if none was.
  bool end_line() {
    if (last_ == '\n') return false;
    text("\n");
    return true;
  }

 private:
  bool silent_;
  char last_ = '\n';
};

// A text in progress: the session and everything that must keep pace with it.
class Writer {
 public:
  // The `number`th of several continuations: its seed is that much larger.
  Writer(const Model& model, const Options& options, const EngineOptions& engine, bool ids,
         Output& output, uint64_t number = 0)
      : model_(model),
        options_(options),
        ids_(ids),
        output_(output),
        session_(model, engine),
        sampler_(model, options, options.seed + number),
        filter_(options.stop) {
    make_decoder();
  }

  Session& session() { return session_; }
  bool fresh() const { return mamba_edge_session_position(session_.get()) == 0; }
  bool ends_in_newline() const { return newline_; }
  bool ended() const { return pending_ && *pending_ == model_.info().eos_token; }

  void reset() {
    session_.reset();
    pending_.reset();
    newline_ = true;
    sampler_ = Sampler(model_, options_, options_.seed + ++resets_);
    make_decoder();
  }

  // Takes `prompt` (possibly empty, but not for a fresh session) and continues it.
  Reply run(std::vector<int32_t> prompt, bool display_prompt) {
    Reply reply;
    if (!begin(std::move(prompt), display_prompt, reply)) return reply;
    const double started = now_seconds();
    while (wants_more(reply)) {
      if (pending_) {
        session_.step(*pending_);
        stepped(reply);
      }
      if (!draw(reply)) break;
    }
    reply.decode_seconds = now_seconds() - started;
    end(reply);
    return reply;
  }

  // The parts of run(), for texts that are continued together.

  // Takes the prompt; false: interrupted.
  bool begin(std::vector<int32_t> prompt, bool display_prompt, Reply& reply) {
    filter_.reset();
    reply.prompt_tokens = std::move(prompt);
    if (take_prompt(reply, display_prompt)) return true;
    reply.reason = StopReason::interrupted;
    return false;
  }

  // Goes on from where another one has taken its prompt.
  void fork(const Writer& from, const Reply& with_prompt, Reply& reply) {
    reply = with_prompt;
    session_.copy_state(from.session_);
    for (const int32_t token : reply.prompt_tokens) sampler_.accept(token);
    decoder_ = from.decoder_;
  }

  // False, with the reason in `reply`: interrupted, or long enough.
  bool wants_more(Reply& reply) const {
    reply.reason = interrupt_signal() != 0 ? StopReason::interrupted : StopReason::length;
    return reply.reason == StopReason::length &&
           (options_.n_predict < 0 ||
            reply.tokens.size() < static_cast<uint64_t>(options_.n_predict));
  }

  const std::optional<int32_t>& pending() const { return pending_; }
  void stepped(Reply& reply) {  // the model has taken pending()
    pending_.reset();
    ++reply.steps;
  }

  // The next token; false, with the reason in `reply`: the text ends with it.
  bool draw(Reply& reply) {
    const int32_t token = sampler_.sample(session_.logits());
    pending_ = token;
    if (token == model_.info().eos_token && !options_.ignore_eos) {
      reply.reason = StopReason::end_of_text;
      return false;
    }
    reply.tokens.push_back(token);
    if (ids_) output_.id(token);
    if (decoder_) show(reply, filter_.add(decoder_->add(token)));
    if (!filter_.stopped()) return true;
    reply.reason = StopReason::stop_string;
    reply.stop_string = filter_.found();
    return false;
  }

  void end(Reply& reply) {
    if (!decoder_ || filter_.stopped()) return;
    if (!keep_open_) show(reply, filter_.add(decoder_->finish()));
    if (!filter_.stopped()) show(reply, filter_.finish());
  }

  // The text goes on after this reply, so a character that is not complete yet may become so.
  void keep_open() { keep_open_ = true; }

 private:
  void make_decoder() {
    if (model_.info().has_tokenizer == 0) return;
    decoder_.emplace(model_, options_.special ? 0u : unsigned{MAMBA_EDGE_SKIP_SPECIAL});
  }

  void show(Reply& reply, const std::string& text) {
    reply.text += text;
    if (!text.empty()) newline_ = text.back() == '\n';
    if (!ids_) output_.text(text);
  }

  // False: interrupted.
  bool take_prompt(Reply& reply, bool display) {
    const double started = now_seconds();
    for (const int32_t token : reply.prompt_tokens) {
      sampler_.accept(token);
      // Rows of the vocabulary that its tokenizer does not know may be given as --tokens.
      if (decoder_ && token < model_.info().n_vocab_used) {
        const std::string_view text = decoder_->add(token);
        reply.prompt_text += text;
        if (!text.empty()) newline_ = text.back() == '\n';
      }
      if (display && ids_) output_.id(token);
    }
    if (display && !ids_) output_.text(reply.prompt_text);

    std::vector<int32_t> tokens;
    if (pending_ && !reply.prompt_tokens.empty()) {
      tokens.push_back(*pending_);
      pending_.reset();
    }
    tokens.insert(tokens.end(), reply.prompt_tokens.begin(), reply.prompt_tokens.end());
    const size_t slice = 4 * session_.chunk();  // between slices, Ctrl-C is looked for
    Progress progress("reading the prompt", tokens.size());
    for (size_t at = 0; at < tokens.size(); at += slice) {
      if (interrupt_signal() != 0) return false;
      if (at > 0 && (options_.json || !display))
        progress.update(at);  // not into a prompt that is shown
      session_.prefill(tokens.data() + at, std::min(slice, tokens.size() - at), nullptr);
    }
    reply.prompt_seconds = now_seconds() - started;
    return true;
  }

  const Model& model_;
  const Options& options_;
  const bool ids_;
  Output& output_;
  Session session_;
  Sampler sampler_;
  StopFilter filter_;
  std::optional<TextDecoder> decoder_;
  std::optional<int32_t> pending_;  // drawn, but the model has not taken it yet
  bool newline_ = true;
  bool keep_open_ = false;
  uint64_t resets_ = 0;
};

// Times, speeds and memory, of one reply or of several that were made together: the first has the
// times.
void print_stats(const Model& model, Session& session, const Options& options,
                 const std::vector<Reply>& replies, size_t session_bytes, double load_seconds) {
  const mamba_edge_model_info& info = model.info();
  const Reply& first = replies.front();
  size_t tokens = 0, steps = 0;
  for (const Reply& reply : replies) {
    tokens += reply.tokens.size();
    steps += reply.steps;
  }
  const std::string ended = replies.size() == 1
                                ? std::string("ended by ") + name(first.reason)
                                : "in " + std::to_string(replies.size()) + " continuations";
  char text[640];
  std::snprintf(
      text, sizeof text,
      "model    %s, %s parameters, kernels %s, %d thread%s, loaded in %.3f s\n"
      "prompt   %zu tokens in %.3f s, %.1f tokens/s\n"
      "decode   %zu tokens in %.3f s, %.1f tokens/s, %s\n"
      "memory   weights %s (%s of them mapped), session %s, saved state %s, peak resident %s\n"
      "seed     %llu\n",
      info.architecture, format_count(static_cast<uint64_t>(info.n_parameters)).c_str(), info.isa,
      session.n_threads(), session.n_threads() == 1 ? "" : "s", load_seconds,
      first.prompt_tokens.size(), first.prompt_seconds, first.prompt_rate(), tokens,
      first.decode_seconds, Reply::rate(static_cast<double>(steps), first.decode_seconds),
      ended.c_str(), format_bytes(info.weight_bytes).c_str(),
      format_bytes(info.mapped_bytes).c_str(), format_bytes(session_bytes).c_str(),
      format_bytes(mamba_edge_state_bytes(model.get())).c_str(),
      format_bytes(peak_resident_bytes()).c_str(), static_cast<unsigned long long>(options.seed));
  write_stderr(text);
}

nlohmann::ordered_json continuation_json(const Reply& reply, bool has_text) {
  nlohmann::ordered_json json;
  json["text"] = has_text ? nlohmann::ordered_json(reply.text) : nlohmann::ordered_json();
  json["tokens"] = reply.tokens;
  json["stop_reason"] = name(reply.reason);
  if (reply.reason == StopReason::stop_string) json["stop_string"] = reply.stop_string;
  return json;
}

void print_json(const Model& model, Session& session, const Options& options,
                const std::vector<Reply>& replies, size_t session_bytes, double load_seconds) {
  const mamba_edge_model_info& info = model.info();
  const Reply& reply = replies.front();
  nlohmann::ordered_json json;
  json["model"] = model.path();
  json["architecture"] = info.architecture;
  json["isa"] = info.isa;
  json["threads"] = session.n_threads();
  json["seed"] = options.seed;
  const bool has_text = info.has_tokenizer != 0;
  json["prompt"] = has_text ? nlohmann::ordered_json(reply.prompt_text) : nlohmann::ordered_json();
  json["prompt_tokens"] = reply.prompt_tokens;
  size_t steps = 0;
  for (const Reply& each : replies) steps += each.steps;
  if (options.parallel == 1) {
    json.update(continuation_json(reply, has_text));
  } else {
    for (const Reply& each : replies) {
      json["continuations"].push_back(continuation_json(each, has_text));
    }
  }
  json["timings"] = {
      {"load_seconds", load_seconds},
      {"prompt_seconds", reply.prompt_seconds},
      {"prompt_tokens_per_second", reply.prompt_rate()},
      {"decode_seconds", reply.decode_seconds},
      {"decode_tokens_per_second", Reply::rate(static_cast<double>(steps), reply.decode_seconds)}};
  json["memory"] = {{"weight_bytes", info.weight_bytes},
                    {"mapped_bytes", info.mapped_bytes},
                    {"session_bytes", session_bytes},
                    {"state_bytes", mamba_edge_state_bytes(model.get())},
                    {"peak_resident_bytes", peak_resident_bytes()}};
  // A path need not be UTF-8.
  write_stdout(json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

// The ids of a prompt, with the rules for its start.
std::vector<int32_t> start_of_text(const Model& model, const Options& options,
                                   std::vector<int32_t> ids) {
  if (ids.empty() || (options.bos && ids.front() != model.start_token()))
    ids.insert(ids.begin(), model.start_token());
  return ids;
}

// A file or a pipe ends in a newline that nobody means to be part of the prompt.
std::string without_last_newline(std::string text) {
  if (text.ends_with('\n')) text.pop_back();
  if (text.ends_with('\r')) text.pop_back();
  return text;
}

// ---- interactive

constexpr char kInteractiveHelp[] =
    "Each line is added to the text on a line of its own, and the model continues it.\n"
    "  Enter alone   continue without adding anything\n"
    "  /reset        start a new text\n"
    "  /quit         leave (also Ctrl-D, and Ctrl-C at the prompt)\n"
    "  //...         a line that begins with a slash\n"
    "Ctrl-C while the model writes stops it there.\n";

// A line without its newline; nothing at the end of the input or when a signal came.
std::optional<std::string> read_line() {
  static std::string buffer;
  while (true) {
    const size_t end = buffer.find('\n');
    if (end != std::string::npos) {
      std::string line = buffer.substr(0, end);
      buffer.erase(0, end + 1);
      return line;
    }
    char bytes[4096];
    if (!wait_for_input(STDIN_FILENO)) return std::nullopt;
    const ssize_t n = ::read(STDIN_FILENO, bytes, sizeof bytes);
    if (n > 0) {
      buffer.append(bytes, static_cast<size_t>(n));
    } else if (n == 0 || errno != EINTR) {
      return std::nullopt;
    }
  }
}

int converse(const Model& model, const Options& options, double load_seconds) {
  Output output(false);
  Writer writer(model, options, options.engine, false, output);
  writer.keep_open();
  write_stderr("Type the beginning of a text; /help tells more.\n");
  while (true) {
    write_stderr("> ");
    std::optional<std::string> line = read_line();
    if (!line) {
      write_stderr("\n");
      throw_if_interrupted();
      return kExitOk;
    }
    if (line->starts_with("//")) {
      line->erase(0, 1);
    } else if (line->starts_with('/')) {
      if (*line == "/quit" || *line == "/exit") return kExitOk;
      if (*line == "/reset") {
        writer.reset();
      } else if (*line == "/help") {
        write_stderr(kInteractiveHelp);
      } else {
        write_stderr("There is no command " + *line + "; /help lists those that there are.\n");
      }
      continue;
    }
    std::vector<int32_t> ids;
    if (writer.fresh()) {
      ids = start_of_text(model, options, model.tokenize(*line, 0));
    } else if (!line->empty()) {
      const bool join = !writer.ends_in_newline() && !writer.ended();
      ids = model.tokenize((join ? "\n" : "") + *line, MAMBA_EDGE_NO_TEMPLATE);
    }
    const Reply reply = writer.run(std::move(ids), false);
    if (!output.end_line() && reply.reason == StopReason::interrupted)
      write_stderr("\n");  // after the echoed ^C
    if (options.stats) {
      print_stats(model, writer.session(), options, {reply}, writer.session().bytes(),
                  load_seconds);
    }
    if (interrupt_signal() == SIGTERM) throw Interrupted();
    clear_interrupt();
  }
}

// ---- one prompt

void finish(const Model& model, Session& session, const Options& options,
            const std::vector<Reply>& replies, size_t session_bytes, double load_seconds) {
  if (options.json) print_json(model, session, options, replies, session_bytes, load_seconds);
  if (options.stats) print_stats(model, session, options, replies, session_bytes, load_seconds);
  throw_if_interrupted();
}

int generate_once(const Model& model, const Options& options, std::vector<int32_t> prompt,
                  double load_seconds) {
  Output output(options.json);
  Writer writer(model, options, options.engine, options.tokens.has_value(), output);
  const Reply reply = writer.run(std::move(prompt), options.display_prompt);
  output.end_line();
  finish(model, writer.session(), options, {reply}, writer.session().bytes(), load_seconds);
  return kExitOk;
}

// Several continuations of one prompt, which is read once. Each is what it would be alone, with the
// seed that much larger; they are printed when all are complete.
int generate_parallel(const Model& model, const Options& options, std::vector<int32_t> prompt,
                      double load_seconds) {
  const auto n = static_cast<size_t>(options.parallel);
  Output silent(true);
  EngineOptions lead = options.engine, follower = options.engine;
  lead.batch = options.parallel;
  follower.threads = follower.chunk = 1;  // only their states are used
  std::vector<std::unique_ptr<Writer>> writers;
  std::vector<Reply> replies(n);
  size_t session_bytes = 0;
  for (size_t i = 0; i < n; ++i) {
    writers.push_back(std::make_unique<Writer>(model, options, i == 0 ? lead : follower,
                                               options.tokens.has_value(), silent, i));
    session_bytes += writers[i]->session().bytes();
  }
  const bool begun = writers[0]->begin(std::move(prompt), false, replies[0]);
  const Reply taken = replies[0];
  for (size_t i = 1; i < n; ++i) writers[i]->fork(*writers[0], taken, replies[i]);

  std::vector<size_t> active;
  for (size_t i = 0; begun && i < n; ++i) active.push_back(i);
  const double started = now_seconds();
  Progress progress("writing", static_cast<uint64_t>(std::max<int64_t>(options.n_predict, 0)));
  for (uint64_t made = 0; !active.empty(); ++made) {
    std::vector<Session*> sessions;
    std::vector<int32_t> tokens;
    std::erase_if(active, [&](size_t i) { return !writers[i]->wants_more(replies[i]); });
    for (const size_t i : active) {
      if (!writers[i]->pending()) continue;
      sessions.push_back(&writers[i]->session());
      tokens.push_back(*writers[i]->pending());
    }
    if (!sessions.empty()) writers[0]->session().step_batch(sessions, tokens);
    std::erase_if(active, [&](size_t i) {
      if (writers[i]->pending()) writers[i]->stepped(replies[i]);
      return !writers[i]->draw(replies[i]);
    });
    if (options.n_predict > 0) progress.update(made);
  }
  replies[0].decode_seconds = now_seconds() - started;
  for (size_t i = 0; i < n; ++i) writers[i]->end(replies[i]);

  Output output(options.json);
  for (size_t i = 0; i < n; ++i) {
    output.text("==> " + std::to_string(i + 1) + " of " + std::to_string(n) + ", seed " +
                std::to_string(options.seed + i) + "\n");
    if (options.tokens) {
      if (options.display_prompt) {
        for (const int32_t id : taken.prompt_tokens) output.id(id);
      }
      for (const int32_t id : replies[i].tokens) output.id(id);
    } else {
      if (options.display_prompt) output.text(taken.prompt_text);
      output.text(replies[i].text);
    }
    output.end_line();
  }
  finish(model, writers[0]->session(), options, replies, session_bytes, load_seconds);
  return kExitOk;
}

int run(int argc, char** argv) {
  CLI::App app("Continues a text with a Mamba model.", "mamba-generate");
  app.footer(
      "Where the prompt comes from: -p, -f or --tokens; else stdin, if it is not a terminal; else "
      "you are asked for it\n"
      "(Ctrl-C stops a text, /help tells more). One newline at the end of a file or pipe is not "
      "part of the prompt.\n\n"
      "How it begins: its tokens are those that the model's tokenizer gives, with the start token "
      "only where the\n"
      "tokenizer adds one; --bos adds it in any case, which suits models that were trained with it "
      "before every\n"
      "document. An empty prompt begins with the start token. Special tokens written in a prompt "
      "are recognised.\n\n"
      "What is printed: the prompt, then its continuation, on stdout as it is made; everything "
      "else on stderr.\n"
      "Exit status: 0; 1 for a failure; 2 for wrong usage; 130 when Ctrl-C ended it; 141 when the "
      "reader went away.");
  Options options;
  add_engine_options(app, options.engine);
  auto* prompt =
      app.add_option("-p,--prompt", options.prompt, "Text to continue")->type_name("TEXT");
  auto* file =
      app.add_option("-f,--file", options.file, "File with the text to continue; - is stdin")
          ->type_name("FILE");
  auto* tokens =
      app.add_option(
             "--tokens", options.tokens,
             "Prompt as token ids, as 1,2,3; ids are printed too, so this needs no tokenizer")
          ->type_name("IDS");
  prompt->excludes(file)->excludes(tokens);
  file->excludes(tokens);
  app.add_flag("--bos", options.bos, "Begin the prompt with the start token");
  app.add_flag_callback(
      "--no-display-prompt", [&] { options.display_prompt = false; },
      "Print only the continuation");
  auto* parallel = add_integer(app, "--parallel", options.parallel, 1, 4096,
                               "Continue the prompt N times at once, with seeds that follow each "
                               "other; printed when all are complete");
  add_integer(app, "-n,--n-predict", options.n_predict, -1, INT64_MAX,
              "Tokens to make at most; -1: until the text ends");
  std::optional<std::string> seed;
  app.add_option("-s,--seed", seed,
                 "Seed of the random numbers (default, and -1: a new one each time)")
      ->type_name("N");
  add_real(app, "--temp", options.temperature, 0, 1e6,
           "Temperature; 0: always the likeliest token");
  bool greedy = false;
  app.add_flag("--greedy", greedy, "The same as --temp 0");
  add_integer(app, "--top-k", options.top_k, 0, INT32_MAX,
              "Draw from the K likeliest tokens; 0: from all");
  add_real(app, "--top-p", options.top_p, 1e-6, 1,
           "Draw from the likeliest tokens that together reach P; 1: from all");
  add_real(app, "--min-p", options.min_p, 0, 1,
           "Drop tokens less than P times as likely as the likeliest; 0: none");
  add_real(app, "--repeat-penalty", options.repeat_penalty, 0.01, 100,
           "Make recent tokens less likely; 1: off");
  add_integer(app, "--repeat-last-n", options.repeat_last_n, -1, 1 << 20,
              "How many recent tokens that concerns; 0: none, -1: 2048");
  app.add_option("--stop", options.stop,
                 "Text that ends the output, itself left out; may be given several times")
      ->type_name("TEXT")
      ->expected(1)
      ->take_all()
      ->allow_extra_args(false);
  app.add_flag("--ignore-eos", options.ignore_eos,
               "Go on after the end-of-text token instead of stopping at it");
  app.add_flag("--special", options.special, "Print special tokens too");
  app.add_flag("--json", options.json,
               "Print one JSON object when done: text, tokens, stop reason, timings, memory");
  app.add_flag("--stats", options.stats,
               "Print times, speeds, memory and the seed to stderr when done");
  if (!parse_options(app, argc, argv)) return kExitOk;

  if (greedy) options.temperature = 0;
  for (const std::string& stop : options.stop) {
    if (stop.empty()) throw UsageError("--stop: the text is empty");
    if (!is_utf8(stop))
      throw UsageError("--stop: the text is not valid UTF-8, so it could never be found");
  }
  if (seed && *seed != "-1") {
    const char* end = seed->data() + seed->size();
    const auto result = std::from_chars(seed->data(), end, options.seed);
    if (result.ec != std::errc() || result.ptr != end) {
      throw UsageError(
          "--seed: expected a whole number from 0 to 18446744073709551615 or -1, not '" + *seed +
          "'");
    }
  } else {
    options.seed = std::random_device()();  // 32 bits: short enough to type again
  }
  std::vector<int64_t> ids;
  if (options.tokens) {
    try {
      ids = parse_ids(*options.tokens, "--tokens");
    } catch (const Error& error) {
      throw UsageError(error.what());
    }
  }
  const bool interactive =
      !options.prompt && !options.file && !options.tokens && stdin_is_terminal();
  if (interactive && options.json)
    throw UsageError("--json needs a prompt: -p, -f, --tokens or a pipe");
  if (interactive && parallel->count() > 0)
    throw UsageError("--parallel needs a prompt: -p, -f, --tokens or a pipe");

  const double started = now_seconds();
  const Model model(options.engine);
  const double load_seconds = now_seconds() - started;
  if (!options.tokens) model.require_tokenizer("give the prompt as ids with --tokens 1,2,3");
  if (!options.stop.empty()) model.require_tokenizer("leave out --stop");

  if (interactive) {
    catch_interrupts();
    return converse(model, options, load_seconds);
  }
  std::vector<int32_t> start;
  if (options.tokens) {
    start = model.check_ids(ids, "prompt token");
  } else {
    const std::string text = options.prompt
                                 ? *options.prompt
                                 : without_last_newline(read_file(options.file.value_or("-")));
    start = model.tokenize(text, 0);
  }
  catch_interrupts();
  return (options.parallel == 1 ? generate_once : generate_parallel)(
      model, options, start_of_text(model, options, std::move(start)), load_seconds);
}

}  // namespace
}  // namespace mamba_edge::tools

int main(int argc, char** argv) {
  return mamba_edge::tools::run_program("mamba-generate", mamba_edge::tools::run, argc, argv);
}
