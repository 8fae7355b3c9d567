// mamba-eval: what a model computes, in numbers. Here: logits and token ids.
#include <CLI/CLI.hpp>
#include <optional>

#include "engine/container.h"
#include "tools/eval.h"

namespace mamba_edge::tools {
namespace {

// ---- logits

struct LogitsOptions {
  EngineOptions engine;
  std::optional<std::string> tokens, tokens_file, conv_file, ssm_file;
  std::string output;
};

void add_logits(CLI::App& app, LogitsOptions& options) {
  options.engine.same_bits = true;  // as in the commands that score
  add_engine_options(app, options.engine);
  auto* tokens =
      app.add_option("--tokens", options.tokens, "Token ids, as 1,2,3")->type_name("IDS");
  auto* file = app.add_option("--tokens-file", options.tokens_file,
                              "Token ids as a .npy file of integers, one dimension");
  tokens->excludes(file->type_name("FILE"));
  app.add_option("-o,--output", options.output,
                 "Where the logits go: .npy, float32 [tokens, vocabulary]; - is stdout")
      ->required()
      ->type_name("FILE");
  app.add_option("--final-conv-state", options.conv_file,
                 "Also write the last inputs of the convolutions: float32 [layers, channels, "
                 "d_conv], newest last")
      ->type_name("FILE");
  app.add_option("--final-ssm-state", options.ssm_file,
                 "Also write the recurrent state: float32 [layers, d_inner, d_state], for Mamba-2 "
                 "[layers, heads, "
                 "headdim, d_state]")
      ->type_name("FILE");
}

// The two arrays of state of every layer, behind headers with their shapes.
void write_states(const Model& model, const Session& session, OutputFile* conv_file,
                  OutputFile* ssm_file) {
  Container container;
  const Status opened = Container::open(model.path().c_str(), &container);
  if (!opened.ok()) throw Error(opened.message());
  const ModelConfig& config = container.config();
  size_t n_conv = 0, n_ssm = 0;
  mamba_edge_error error = {};
  check(mamba_edge_state_export(session.get(), 0, nullptr, &n_conv, nullptr, &n_ssm, &error),
        error);
  const uint64_t d_conv = config.is_mamba2() ? config.mamba2.d_conv : config.mamba1.d_conv;
  if (conv_file != nullptr) {
    const std::string header = npy_header("<f4", {config.n_layer, n_conv / d_conv, d_conv});
    conv_file->write(header.data(), header.size());
  }
  if (ssm_file != nullptr) {
    const Mamba2Config& mamba2 = config.mamba2;
    const std::string header =
        config.is_mamba2()
            ? npy_header("<f4", {config.n_layer, mamba2.n_heads, mamba2.headdim, mamba2.d_state})
            : npy_header("<f4", {config.n_layer, config.mamba1.d_inner, config.mamba1.d_state});
    ssm_file->write(header.data(), header.size());
  }
  std::vector<float> conv(n_conv), ssm(n_ssm);
  for (int layer = 0; layer < static_cast<int>(config.n_layer); ++layer) {
    check(mamba_edge_state_export(session.get(), layer, conv.data(), &n_conv, ssm.data(), &n_ssm,
                                  &error),
          error);
    if (n_conv != conv.size() || n_ssm != ssm.size())
      throw Error("layers with states of different sizes");
    if (conv_file != nullptr) conv_file->write(conv.data(), n_conv * sizeof(float));
    if (ssm_file != nullptr) ssm_file->write(ssm.data(), n_ssm * sizeof(float));
  }
}

int run_logits(const LogitsOptions& options) {
  if (!options.tokens && !options.tokens_file)
    throw UsageError("--tokens or --tokens-file is required");
  std::vector<int64_t> ids;
  if (options.tokens) {
    try {
      ids = parse_ids(*options.tokens, "--tokens");
    } catch (const Error& error) {
      throw UsageError(error.what());
    }
    if (ids.empty()) throw UsageError("--tokens: expected at least one token id");
  } else {
    ids = read_npy_ids(*options.tokens_file);
    if (ids.empty())
      throw Error(file_label(*options.tokens_file) +
                  " has no token ids; at least one was expected");
  }
  std::vector<std::string> files = {options.engine.model};
  if (options.tokens_file && *options.tokens_file != "-") files.push_back(*options.tokens_file);
  for (const std::optional<std::string>& output :
       {std::optional(options.output), options.conv_file, options.ssm_file}) {
    if (!output) continue;
    check_output(*output, files);
    files.push_back(*output);
  }
  const Model model(options.engine);
  const std::vector<int32_t> tokens = model.check_ids(ids, "token");
  Session session(model, options.engine);

  catch_interrupts();
  const size_t n_vocab = static_cast<size_t>(model.info().n_vocab);
  const size_t rows = logits_rows(model, session);
  std::vector<float> logits(std::min(rows, tokens.size()) * n_vocab);
  OutputFile output(options.output);
  std::optional<OutputFile> conv_file, ssm_file;
  if (options.conv_file) conv_file.emplace(*options.conv_file);
  if (options.ssm_file) ssm_file.emplace(*options.ssm_file);
  const std::string header = npy_header("<f4", {tokens.size(), n_vocab});
  output.write(header.data(), header.size());
  Progress progress("logits", tokens.size());
  for (size_t at = 0; at < tokens.size(); at += rows) {
    throw_if_interrupted();
    const size_t n = std::min(rows, tokens.size() - at);
    session.prefill(tokens.data() + at, n, logits.data());
    output.write(logits.data(), n * n_vocab * sizeof(float));
    progress.update(at + n);
  }
  if (conv_file || ssm_file) {
    write_states(model, session, conv_file ? &*conv_file : nullptr,
                 ssm_file ? &*ssm_file : nullptr);
  }
  throw_if_interrupted();
  output.commit();
  if (conv_file) conv_file->commit();
  if (ssm_file) ssm_file->commit();
  return kExitOk;
}

// ---- tokenize

struct TokenizeOptions {
  EngineOptions engine;
  std::string file = "-";
  bool json = false, decode = false, no_special = false, no_template = false;
};

void add_tokenize(CLI::App& app, TokenizeOptions& options) {
  app.add_option("-m,--model", options.engine.model, "Model file, as mamba-quantize writes it")
      ->required()
      ->type_name("FILE");
  app.add_option("-f,--file", options.file, "Input; - is stdin")
      ->type_name("FILE")
      ->capture_default_str();
  app.add_flag("--json", options.json,
               "Input is JSON lines of {\"text\": ...}, output JSON lines of {\"ids\": [...]}; "
               "with --decode the other way");
  app.add_flag("--decode", options.decode, "From ids (1,2,3 or 1 2 3 or [1,2,3]) to text");
  app.add_flag("--no-special", options.no_special,
               "Special tokens written in the text are ordinary text; with --decode: leave special "
               "tokens out");
  app.add_flag("--no-template", options.no_template,
               "Leave out what the tokenizer adds around a text, as a start token");
  app.footer(
      "Without --json the whole input is one text: it gives one JSON array of ids, on a line. Text "
      "is taken byte for\n"
      "byte, the last newline too, and --decode adds none.");
}

std::string decode(const Model& model, const std::vector<int32_t>& ids, unsigned flags) {
  TextDecoder decoder(model, flags);
  std::string text;
  for (const int32_t id : ids) text += decoder.add(id);
  text += decoder.finish();
  return text;
}

// One line of input, `where` it stands, to one line of output.
std::string convert_line(const Model& model, const TokenizeOptions& options, unsigned flags,
                         const std::string& line, const std::string& where) {
  Json json;
  try {
    json = Json::parse(line);
  } catch (const Json::exception& error) {
    throw Error(where + " is not JSON: " + error.what());
  }
  const char* key = options.decode ? "ids" : "text";
  if (!json.is_object() || !json.contains(key)) {
    throw Error(where + ": expected a JSON object with the key \"" + key + "\"");
  }
  const Json& value = json[key];
  if (!options.decode) {
    if (!value.is_string()) throw Error(where + ": expected a string as \"text\"");
    return dump(Json{{"ids", model.tokenize(value.get_ref<const std::string&>(), flags)}}) + "\n";
  }
  if (!value.is_array()) throw Error(where + ": expected an array of token ids as \"ids\"");
  std::vector<int64_t> ids;
  for (const Json& id : value) {
    if (!id.is_number_integer()) throw Error(where + ": expected token ids, found " + dump(id));
    ids.push_back(id.is_number_unsigned() && id.get<uint64_t>() > INT64_MAX ? INT64_MAX
                                                                            : id.get<int64_t>());
  }
  const std::vector<int32_t> checked = model.check_ids(ids, (where + ": token").c_str());
  return dump(Json{{"text", decode(model, checked, 0)},
                   {"text_without_special", decode(model, checked, MAMBA_EDGE_SKIP_SPECIAL)}}) +
         "\n";
}

int run_tokenize(const TokenizeOptions& options) {
  const Model model(options.engine);
  model.require_tokenizer("there is nothing that it could turn into ids or text");
  const std::string input = read_file(options.file);
  unsigned flags = 0;
  if (options.no_special) flags |= MAMBA_EDGE_PLAIN_TEXT;
  if (options.no_template) flags |= MAMBA_EDGE_NO_TEMPLATE;
  std::string output;  // printed only when all of the input was good
  if (options.json) {
    size_t number = 0;
    for (size_t at = 0; at < input.size();) {
      const size_t end = std::min(input.find('\n', at), input.size());
      const std::string line = input.substr(at, end - at);
      at = end + 1;
      ++number;
      if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
      output += convert_line(model, options, flags, line,
                             file_label(options.file) + " line " + std::to_string(number));
    }
  } else if (options.decode) {
    const std::vector<int32_t> ids =
        model.check_ids(parse_ids(input, file_label(options.file)), "token");
    output = decode(model, ids, options.no_special ? unsigned{MAMBA_EDGE_SKIP_SPECIAL} : 0u);
  } else {
    output = dump(Json(model.tokenize(input, flags))) + "\n";
  }
  write_stdout(output);
  return kExitOk;
}

int run(int argc, char** argv) {
  CLI::App app("What a model computes, in numbers.", "mamba-eval");
  app.require_subcommand(1);
  LogitsOptions logits_options;
  PerplexityOptions perplexity_options;
  KlOptions kl_options;
  CompareOptions compare_options;
  TokenizeOptions tokenize_options;
  CLI::App* logits = app.add_subcommand("logits", "Logits after every token, as a numpy array");
  CLI::App* perplexity = app.add_subcommand("perplexity", "How well a model predicts a text");
  CLI::App* kl = app.add_subcommand("kl", "How far a model's predictions are from a reference's");
  CLI::App* compare =
      app.add_subcommand("compare", "Several models beside a reference: a table and a picture");
  CLI::App* tokenize = app.add_subcommand("tokenize", "Text to token ids and back");
  add_logits(*logits, logits_options);
  add_perplexity(*perplexity, perplexity_options);
  add_kl(*kl, kl_options);
  add_compare(*compare, compare_options);
  add_tokenize(*tokenize, tokenize_options);
  if (!parse_options(app, argc, argv)) return kExitOk;
  if (logits->parsed()) return run_logits(logits_options);
  if (perplexity->parsed()) return run_perplexity(perplexity_options);
  if (kl->parsed()) return run_kl(kl_options);
  if (compare->parsed()) return run_compare(compare_options);
  return run_tokenize(tokenize_options);
}

}  // namespace
}  // namespace mamba_edge::tools

int main(int argc, char** argv) {
  return mamba_edge::tools::run_program("mamba-eval", mamba_edge::tools::run, argc, argv);
}
