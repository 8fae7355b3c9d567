// mamba-quantize: a published checkpoint in, one container (or GGUF file) out.
#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "convert/gguf_export.h"
#include "convert/pipeline.h"
#include "tools/common.h"
#include "tools/common_forward.h"

namespace mamba_edge::tools {
namespace {

// "90MB", "1.2GB", "700000": decimal units, as file sizes are shown.
uint64_t parse_bytes(const std::string& flag, const std::string& value) {
  constexpr std::pair<std::string_view, double> kUnits[] = {
      {"", 1},     {"B", 1},   {"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6},
      {"GB", 1e9}, {"k", 1e3}, {"K", 1e3},  {"M", 1e6},  {"G", 1e9}};
  const char* const begin = value.data();
  const char* const end = begin + value.size();
  double number = 0;
  const auto [stop, error] = std::from_chars(begin, end, number);
  if (error == std::errc() && number > 0) {
    const std::string_view unit(stop, static_cast<size_t>(end - stop));
    for (const auto& [name, factor] : kUnits) {
      if (unit == name && number * factor >= 1 && number * factor < 1e15)
        return static_cast<uint64_t>(number * factor);
    }
  }
  throw UsageError(flag + " " + value + ": expected a size such as 700000, 90MB or 1.5GB");
}

std::string format(const char* pattern, auto... values) {
  char text[256];
  std::snprintf(text, sizeof text, pattern, values...);
  return text;
}

// The options that shape the numbers, in a fixed order: what is recorded in the file.
std::string recipe(const convert::Options& o) {
  std::string text = std::string("--type ") + (o.choose_types ? "auto" : type_name(o.type));
  if (o.group_size) text += format(" --group-size %u", *o.group_size);
  if (o.target_bytes) {
    text += format(" --target-size %llu", static_cast<unsigned long long>(*o.target_bytes));
  }
  if (o.target_bits) text += format(" --target-bpw %g", *o.target_bits);
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
      if (r.allocation && t.quantisable) entry["predicted_loss"] = t.predicted_loss;
      entry["max_abs_error"] = t.error.max_abs_error;
    }
    tensors.push_back(std::move(entry));
  }
  nlohmann::ordered_json json = {{"input", o.input.string()},
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
  if (r.allocation) {
    nlohmann::ordered_json curve = nlohmann::ordered_json::array();
    for (const convert::Allocation::Point& p : r.allocation->curve)
      curve.push_back({p.bytes, p.loss});
    json["allocation"] = {{"predicted_loss", r.allocation->chosen.loss},
                          {"measured", r.allocation->measured},
                          {"curve", std::move(curve)}};
  }
  return json;
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

// What was chosen for every matrix.
std::string choice_table(const convert::Report& r) {
  std::string text = format("  %-22s %-5s %6s %12s %16s\n", "matrix", "type", "group", "bytes",
                            r.allocation->measured ? "expected KL" : "guessed KL");
  for (const convert::TensorReport& t : r.tensors) {
    if (!t.quantisable) continue;
    text += format("  %-22s %-5s %6u %12llu %16.3g\n", t.name.c_str(), t.type.c_str(), t.group,
                   static_cast<unsigned long long>(t.stored_bytes), t.predicted_loss);
  }
  text += format("  %-22s %-5s %6s %12llu %16.3g\n", "the file", "", "",
                 static_cast<unsigned long long>(r.output_bytes), r.allocation->chosen.loss);
  return text;
}

// Expected loss, on a logarithmic scale, against size, and where the file lies.
void write_svg(const convert::Report& r, const std::string& path) {
  const convert::Allocation& a = *r.allocation;
  constexpr double kLeft = 80, kTop = 30, kWidth = 560, kHeight = 300;
  double low = a.chosen.bytes, high = a.chosen.bytes;
  double least = std::max(a.chosen.loss, 1e-9), most = least;
  for (const convert::Allocation::Point& p : a.curve) {
    low = std::min(low, p.bytes);
    high = std::max(high, p.bytes);
    least = std::min(least, std::max(p.loss, 1e-9));
    most = std::max(most, p.loss);
  }
  high = std::max(high, low + 1);
  const double bottom = std::floor(std::log10(least)), top = std::ceil(std::log10(most) + 1e-9);
  const auto x = [&](double bytes) { return kLeft + kWidth * (bytes - low) / (high - low); };
  const auto y = [&](double loss) {
    return kTop + kHeight * (top - std::log10(std::max(loss, 1e-9))) / std::max(top - bottom, 1.0);
  };
  std::string svg = format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
      kLeft + kWidth + 40, kTop + kHeight + 60);
  for (double decade = bottom; decade <= top; ++decade) {
    const double at = y(std::pow(10.0, decade));
    svg += format("<path d=\"M%.1f %.1fh%.1f\" stroke=\"#ddd\"/>", kLeft, at, kWidth);
    svg += format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">1e%.0f</text>\n", kLeft - 8,
                  at + 4, decade);
  }
  for (int i = 0; i <= 4; ++i) {
    const double bytes = low + (high - low) * i / 4;
    svg += format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n", x(bytes),
                  kTop + kHeight + 20, format_bytes(static_cast<uint64_t>(bytes)).c_str());
  }
  svg += "<polyline fill=\"none\" stroke=\"#36c\" stroke-width=\"2\" points=\"";
  for (const convert::Allocation::Point& p : a.curve)
    svg += format("%.1f,%.1f ", x(p.bytes), y(p.loss));
  svg += format("\"/>\n<circle cx=\"%.1f\" cy=\"%.1f\" r=\"5\" fill=\"#c33\"/>\n",
                x(a.chosen.bytes), y(a.chosen.loss));
  svg += format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">bytes%s</text>\n",
                kLeft + kWidth / 2, kTop + kHeight + 45,
                a.chosen.bytes < static_cast<double>(r.output_bytes) ? " of the matrices" : "");
  svg += format("<text x=\"%.1f\" y=\"18\">%s KL divergence, nats per token</text>\n</svg>\n",
                kLeft, a.measured ? "expected" : "guessed");
  OutputFile file(path);
  file.write(svg.data(), svg.size());
  file.commit();
}

// Calibration is for types that round.
void check_calibration(const convert::Options& o, const CLI::App& app) {
  const auto rounds = [](WeightType type) { return is_quantised(type); };
  const bool used = o.choose_types || rounds(o.type) || rounds(o.embedding_type.value_or(o.type)) ||
                    rounds(o.head_type.value_or(o.type));
  const char* option = o.calibration.empty() ? "--importance" : "--calibration";
  if (!used) {
    throw UsageError(std::string(option) + " is of no use with --type " + type_name(o.type) +
                     ": only int8 and narrower types are rounded by it");
  }
  if (o.calibration.empty() && app.count("--calibration-tokens") > 0) {
    throw UsageError("--calibration-tokens needs the text: --calibration FILE");
  }
}

// --type, which may also be auto.
WeightType parse_matrix_type(const std::string& value) {
  try {
    return parse_weight_type("--type", value);
  } catch (const UsageError& error) {
    throw UsageError(std::string(error.what()) + ", auto");
  }
}

void show(const convert::Options& o, const convert::Report& report, bool json, bool verbose) {
  for (const std::string& warning : report.warnings) warn(warning);
  if (!report.tokenizer_hint.empty()) warn(report.tokenizer_hint);
  if (json) return write_stdout(to_json(o, report).dump(2) + "\n");
  std::string text = o.choose_types ? choice_table(report) : error_table(report, verbose);
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
                             tokenizer, to = "container", calibration, importance, target_size,
                             report_svg;
  double target_bpw = 0;
  auto calibration_tokens = static_cast<int64_t>(convert::kCalibrationTokens);
  int64_t group_size = 0, vocabulary_group_size = 0, zstd_level = 3, threads = default_threads();
  bool store = false, json = false, allow_nonfinite = false, verbose = false;
  app.add_option("INPUT", input,
                 "a folder with config.json (or params.json) and weights, or one weights file in "
                 "such a folder, or a GGUF file")
      ->required();
  app.add_option("-o,--output", output, "the file to write")->required();
  app.add_option("--to", to, "container (default), or gguf, for llama.cpp");
  app.add_option(
      "--type", type,
      "of the matrices: " + matrix_types() +
          ", auto (default int8); auto chooses for each what loses least within "
          "--target-size or --target-bpw; with --to gguf q8_0 (default), q4_0, bf16, fp16, "
          "fp32");
  app.add_option("--embedding-type", embedding_type, "of the embedding, if it differs");
  app.add_option("--head-type", head_type, "of the output head, if it differs");
  add_integer(app, "--group-size", group_size, 16, 256,
              "inputs that share a scale: a multiple of 16 (default 64, in int8 128 for in_proj "
              "and x_proj), of 32 for "
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
  auto* by_size = app.add_option("--target-size", target_size,
                                 "with --type auto: bytes of the file at most, as 700000 or 90MB");
  by_size->type_name("SIZE");
  add_real(app, "--target-bpw", target_bpw, 1, 32,
           "with --type auto: bits per weight of the matrices at most, as 4.5")
      ->excludes(by_size);
  app.add_option(
         "--calibration", calibration,
         "a text like those that the model will see: weights are rounded by what it makes of "
         "their inputs, and --type auto measures what matters")
      ->type_name("FILE");
  add_integer(app, "--calibration-tokens", calibration_tokens,
              static_cast<int64_t>(convert::kFewestCalibrationTokens), 1 << 24,
              "of that text, in windows spread over it (default 16384)");
  app.add_option(
         "--importance", importance,
         "keeps what calibration learned in this file; if it is there, uses it, and goes on "
         "with it where it is incomplete")
      ->type_name("FILE");
  app.add_option("--report-svg", report_svg,
                 "with --type auto: a plot of expected loss against size")
      ->type_name("FILE");
  add_integer(app, "--zstd-level", zstd_level, 1, 22,
              "compression of the file, 1 to 22 (default 3)");
  app.add_flag("--store", store,
               "keep tensors raw in the file: it is mapped and starts at once, but is larger");
  add_integer(app, "-t,--threads", threads, 1, 256, "threads (default: the physical cores)");
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
  if (output == "-") throw UsageError("-o -: the file needs a name");
  convert::Options o;
  o.input = input;
  o.output = output;
  o.tokenizer = tokenizer;
  o.allow_nonfinite = allow_nonfinite;
  convert::Report report;
  // Where the file system has no files without a name, an unfinished one would be left behind.
  catch_interrupts();
  if (to == "gguf") {
    for (const char* option : {"--calibration", "--calibration-tokens", "--importance",
                               "--target-size", "--target-bpw", "--report-svg"}) {
      if (app.count(option) > 0) {
        throw UsageError(std::string(option) + " is for containers, not for --to gguf");
      }
    }
    convert::GgufOptions gguf = gguf_options(app, o, &o.recipe);
    {
      Progress progress("converting", 1000);
      gguf.progress = [&](double done) {
        throw_if_interrupted();
        progress.update(static_cast<uint64_t>(done * 1000));
      };
      report = convert::export_gguf(gguf);
    }
    show(o, report, json, verbose);
    return kExitOk;
  }
  o.choose_types = type == "auto";
  if (!o.choose_types) o.type = parse_matrix_type(type);
  if (app.count("--target-size") > 0) o.target_bytes = parse_bytes("--target-size", target_size);
  if (app.count("--target-bpw") > 0) o.target_bits = target_bpw;
  const bool budget = o.target_bytes || o.target_bits;
  if (o.choose_types && !budget) {
    throw UsageError("--type auto needs a budget: --target-size SIZE or --target-bpw BITS");
  }
  if (!o.choose_types && budget) {
    throw UsageError("--target-size and --target-bpw are for --type auto");
  }
  if (!o.choose_types && app.count("--report-svg") > 0) {
    throw UsageError("--report-svg is for --type auto");
  }
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
  o.calibration = calibration;
  o.importance = importance;
  o.calibration_tokens = static_cast<size_t>(calibration_tokens);
  o.make_forward = make_forward;
  if (!calibration.empty() || !importance.empty()) {
    check_calibration(o, app);
  } else if (app.count("--calibration-tokens") > 0) {
    throw UsageError("--calibration-tokens needs the text: --calibration FILE");
  }
  o.recipe = recipe(o);
  o.also_written = report_svg;
  if (!report_svg.empty()) check_output(report_svg, {});
  {
    std::optional<Progress> progress;
    std::string stage;
    o.progress = [&](const char* what, double done) {
      throw_if_interrupted();
      if (stage != what) progress.emplace(what, 1000);
      stage = what;
      progress->update(static_cast<uint64_t>(done * 1000));
    };
    report = convert::convert_checkpoint(o);
  }
  show(o, report, json, verbose);
  if (!report_svg.empty()) write_svg(report, report_svg);
  return kExitOk;
}

}  // namespace
}  // namespace mamba_edge::tools

int main(int argc, char** argv) {
  return mamba_edge::tools::run_program("mamba-quantize", mamba_edge::tools::run, argc, argv);
}
