// mamba-quantize: a published checkpoint in, one container (or GGUF file) out.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>

#include "convert/gguf_export.h"
#include "convert/pipeline.h"
#include "tools/common.h"

namespace mamba_edge::tools {
namespace {

std::string format(const char* pattern, auto... values) {
  char text[256];
  std::snprintf(text, sizeof text, pattern, values...);
  return text;
}

// The options that shape the numbers, in a fixed order: what is recorded in the file.
std::string recipe(const convert::Options& o) {
  std::string text = std::string("--type ") + type_name(o.type);
  if (o.group_size) text += format(" --group-size %u", *o.group_size);
  if (o.embedding_type) text += std::string(" --embedding-type ") + type_name(*o.embedding_type);
  if (o.head_type) text += std::string(" --head-type ") + type_name(*o.head_type);
  if (o.vocabulary_group_size) {
    text += format(" --vocabulary-group-size %u", *o.vocabulary_group_size);
  }
  if (o.gated_norm_whole) text += " --gated-norm whole";
  if (o.allow_nonfinite) text += " --allow-nonfinite";
  return text;
}

// Options that a GGUF file has no place for.
constexpr const char* kContainerOnly[] = {"--group-size", "--vocabulary-group-size", "--gated-norm",
                                          "--zstd-level", "--store"};

convert::DType parse_gguf_type(const std::string& flag, const std::string& value) {
  std::string known;
  for (const convert::GgufOutputType& type : convert::gguf_output_types()) {
    if (value == type.name) return type.dtype;
    known += (known.empty() ? "" : ", ") + std::string(type.name);
  }
  throw UsageError(flag + " " + value + ": a GGUF file can have " + known);
}

// `common` holds the options that both outputs have; `recipe` becomes the ones that shape the
// numbers.
convert::GgufOptions gguf_options(const CLI::App& app, const convert::Options& common,
                                  std::string* recipe) {
  for (const char* option : kContainerOnly) {
    if (app.count(option) > 0) throw UsageError(std::string(option) + ": not with --to gguf");
  }
  convert::GgufOptions o;
  o.input = common.input;
  o.output = common.output;
  o.tokenizer = common.tokenizer;
  o.allow_nonfinite = common.allow_nonfinite;
  *recipe = "--to gguf";
  const auto read = [&](const char* option) -> std::optional<convert::DType> {
    if (app.count(option) == 0) return std::nullopt;
    const auto value = app[option]->as<std::string>();
    const convert::DType type = parse_gguf_type(option, value);
    *recipe += std::string(" ") + option + " " + value;
    return type;
  };
  o.type = read("--type").value_or(o.type);
  o.embedding_type = read("--embedding-type");
  o.head_type = read("--head-type");
  return o;
}

nlohmann::ordered_json to_json(const convert::Options& o, const convert::Report& r) {
  nlohmann::ordered_json tensors = nlohmann::ordered_json::array();
  for (const convert::TensorReport& t : r.tensors) {
    nlohmann::ordered_json entry = {{"name", t.name},
                                    {"type", t.type},
                                    {"rows", t.rows},
                                    {"cols", t.cols},
                                    {"group", t.group},
                                    {"raw_bytes", t.raw_bytes},
                                    {"stored_bytes", t.stored_bytes}};
    if (t.type != "fp32") {
      entry["relative_rms_error"] = t.error.relative_rms();
      entry["max_abs_error"] = t.error.max_abs_error;
    }
    tensors.push_back(std::move(entry));
  }
  return {{"input", o.input.string()},
          {"output", o.output.string()},
          {"architecture", architecture_name(r.config.architecture)},
          {"config", r.config_file.string()},
          {"recipe", o.recipe},
          {"parameters", r.n_parameters},
          {"input_bytes", r.input_bytes},
          {"output_bytes", r.output_bytes},
          {"packed_bytes", r.packed_bytes},
          {"bits_per_weight", r.bits_per_weight},
          {"seconds", r.seconds},
          {"tokenizer", r.has_tokenizer},
          {"warnings", r.warnings},
          {"tensors", std::move(tensors)}};
}

// Errors by kind of tensor over all layers, the largest first: the per-tensor list is for --json
// and --verbose.
std::string error_table(const convert::Report& r, bool every_tensor) {
  std::map<std::string, EncodeError> by_kind;
  std::map<std::string, std::string> types;
  for (const convert::TensorReport& t : r.tensors) {
    if (t.type == "fp32") continue;
    std::string kind = t.name;
    for (const std::string layer : {"layers.", "blk."}) {
      if (!every_tensor && kind.rfind(layer, 0) == 0)
        kind = layer + "*" + kind.substr(kind.find('.', layer.size()));
    }
    by_kind[kind].add(t.error);
    types[kind] = t.type;
  }
  if (by_kind.empty()) return {};
  std::string text =
      format("  %-22s %-5s %14s %14s\n", "matrix", "type", "rms error", "largest error");
  for (const auto& [kind, error] : by_kind) {
    text += format("  %-22s %-5s %13.4f%% %14.3g\n", kind.c_str(), types[kind].c_str(),
                   100 * error.relative_rms(), error.max_abs_error);
  }
  return text;
}

void show(const convert::Options& o, const convert::Report& report, bool json, bool verbose) {
  for (const std::string& warning : report.warnings) warn(warning);
  if (!report.tokenizer_hint.empty()) warn(report.tokenizer_hint);
  if (json) return write_stdout(to_json(o, report).dump(2) + "\n");
  std::string text = error_table(report, verbose);
  text += format("%s: %s, %s parameters, %u layers, d_model %u\n", o.output.c_str(),
                 architecture_name(report.config.architecture),
                 format_count(static_cast<uint64_t>(report.n_parameters)).c_str(),
                 report.config.n_layer, report.config.d_model);
  text +=
      format("  %s -> %s (%s in memory), %.2f bits per weight, %.1f s, peak memory %s\n",
             format_bytes(report.input_bytes).c_str(), format_bytes(report.output_bytes).c_str(),
             format_bytes(report.packed_bytes).c_str(), report.bits_per_weight, report.seconds,
             format_bytes(peak_resident_bytes()).c_str());
  write_stdout(text);
}

int run(int argc, char** argv) {
  CLI::App app{
      "Converts a Mamba checkpoint, as published or in GGUF, into one file that mamba-edge runs, "
      "or into GGUF for llama.cpp.",
      "mamba-quantize"};
  std::string input, output, type = "int8", embedding_type, head_type, gated_norm = "auto",
                             tokenizer, to = "container";
  int64_t group_size = 0, vocabulary_group_size = 0, zstd_level = 3, threads = default_threads();
  bool store = false, json = false, allow_nonfinite = false, verbose = false;
  app.add_option("INPUT", input,
                 "a folder with config.json (or params.json) and weights, or one weights file in "
                 "such a folder, or a GGUF file")
      ->required();
  app.add_option("-o,--output", output, "the file to write")->required();
  app.add_option("--to", to, "container (default), or gguf, for llama.cpp");
  app.add_option("--type", type,
                 "of the matrices: " + matrix_types() +
                     " (default int8); with --to gguf: fp32, fp16, bf16, q8_0, q4_0 (default q8_0)");
  app.add_option("--embedding-type", embedding_type, "of the embedding, if it differs");
  app.add_option("--head-type", head_type, "of the output head, if it differs");
  add_integer(
      app, "--group-size", group_size, 16, 256,
      "inputs that share a scale: a multiple of 16 (default 128 for int8, else 64), of 32 for "
      "int5 and int3, which round up");
  add_integer(app, "--vocabulary-group-size", vocabulary_group_size, 16, 256,
              "the same for embedding and head (default 16 for int8, else 64)");
  app.add_option("--gated-norm", gated_norm,
                 "Mamba-2 with several groups: 'auto' normalises each group, as the authors' code "
                 "does; 'whole' all of "
                 "d_inner, for checkpoints trained with transformers or mamba2-minimal");
  app.add_option(
      "--tokenizer", tokenizer,
      "tokenizer.json, or its folder, if it is not beside the checkpoint or inside the GGUF "
      "file");
  add_integer(app, "--zstd-level", zstd_level, 1, 22,
              "compression of the file, 1 to 22 (default 3)");
  app.add_flag("--store", store,
               "keep tensors raw in the file: it is mapped and starts at once, but is larger");
  add_integer(app, "-t,--threads", threads, 1, 256, "threads (default: all cores)");
  app.add_flag("--allow-nonfinite", allow_nonfinite, "accept NaN and infinities in weights");
  app.add_flag("--json", json, "print the report as JSON on stdout");
  app.add_flag("-v,--verbose", verbose, "show the error of every tensor");
  if (!parse_options(app, argc, argv)) return kExitOk;

  if (to != "container" && to != "gguf") {
    throw UsageError("--to " + to + ": expected container or gguf");
  }
  if (app.count("--tokenizer") > 0 && tokenizer.empty()) {
    throw UsageError("--tokenizer: expected a path");
  }
  convert::Options o;
  o.input = input;
  o.output = output;
  o.tokenizer = tokenizer;
  o.allow_nonfinite = allow_nonfinite;
  convert::Report report;
  if (to == "gguf") {
    convert::GgufOptions gguf = gguf_options(app, o, &o.recipe);
    {
      Progress progress("converting", 1000);
      gguf.progress = [&](double done) { progress.update(static_cast<uint64_t>(done * 1000)); };
      report = convert::export_gguf(gguf);
    }
    show(o, report, json, verbose);
    return kExitOk;
  }
  o.type = parse_weight_type("--type", type);
  if (app.count("--embedding-type") > 0)
    o.embedding_type = parse_weight_type("--embedding-type", embedding_type);
  if (app.count("--head-type") > 0) o.head_type = parse_weight_type("--head-type", head_type);
  const auto group = [](const char* option, int64_t size) {
    if (size % kGroupMultiple == 0) return static_cast<uint32_t>(size);
    throw UsageError(std::string(option) + " " + std::to_string(size) +
                     ": expected a multiple of 16 from 16 to 256");
  };
  if (app.count("--group-size") > 0) o.group_size = group("--group-size", group_size);
  if (app.count("--vocabulary-group-size") > 0) {
    o.vocabulary_group_size = group("--vocabulary-group-size", vocabulary_group_size);
  }
  if (gated_norm != "auto" && gated_norm != "whole") {
    throw UsageError("--gated-norm " + gated_norm + ": expected auto or whole");
  }
  o.gated_norm_whole = gated_norm == "whole";
  o.zstd_level = static_cast<int>(zstd_level);
  o.store = store;
  o.threads = static_cast<int>(threads);
  o.recipe = recipe(o);
  {
    Progress progress("converting", 1000);
    o.progress = [&](double done) { progress.update(static_cast<uint64_t>(done * 1000)); };
    report = convert::convert_checkpoint(o);
  }
  show(o, report, json, verbose);
  return kExitOk;
}

}  // namespace
}  // namespace mamba_edge::tools

int main(int argc, char** argv) {
  return mamba_edge::tools::run_program("mamba-quantize", mamba_edge::tools::run, argc, argv);
}
