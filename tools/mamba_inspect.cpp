// mamba-inspect: what is in a model file, and what it needs to run.
#include <CLI/CLI.hpp>
#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>

#include "engine/container.h"
#include "engine/text/tokenizer.h"
#include "tools/common.h"

namespace mamba_edge::tools {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string file;
  bool list = false, json = false, verify = false;
};

void check(const Status& status) {
  if (!status.ok()) throw Error(status.message());
}

std::string hexadecimal(uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

// Names come from files, so a terminal gets them without control characters.
std::string printable(std::string_view text) {
  const bool utf8 = is_utf8(text);
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    const bool c1 =
        c == 0xC2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xA0;
    if (c >= 0x20 && c != 0x7F && !c1 && (utf8 || c < 0x80)) {
      result += text[i];
    } else {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\x%02x", c);
      result += escaped;
    }
  }
  return result;
}

// ---- what the file says, as JSON; the text is printed from the same object

Json float_value(float value) {
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";  // JSON has no such numbers
  // The shortest decimal that gives this float, not the double's.
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", static_cast<double>(value));
  for (int digits = 1; digits < 9; ++digits) {
    char shorter[32];
    std::snprintf(shorter, sizeof shorter, "%.*g", digits, static_cast<double>(value));
    if (std::strtof(shorter, nullptr) == value) return std::strtod(shorter, nullptr);
  }
  return std::strtod(text, nullptr);
}

Json config_json(const ModelConfig& config) {
  Json json;
  json["architecture"] = architecture_name(config.architecture);
  json["d_model"] = config.d_model;
  json["n_layer"] = config.n_layer;
  json["n_vocab"] = config.n_vocab;
  json["n_vocab_used"] = config.n_vocab_used;
  json["norm"] = config.norm == NormKind::rms ? "rms" : "layer";
  json["norm_eps"] = float_value(config.norm_eps);
  json["residual_in_fp32"] = config.residual_in_fp32 != 0;
  json["tied"] = config.tied != 0;
  json["bos_token"] = config.bos_token;
  json["eos_token"] = config.eos_token;
  if (config.is_mamba2()) {
    const Mamba2Config& mixer = config.mamba2;
    json["d_inner"] = mixer.d_inner;
    json["d_state"] = mixer.d_state;
    json["d_conv"] = mixer.d_conv;
    json["headdim"] = mixer.headdim;
    json["n_heads"] = mixer.n_heads;
    json["n_groups"] = mixer.n_groups;
    json["proj_bias"] = mixer.proj_bias != 0;
    json["conv_bias"] = mixer.conv_bias != 0;
    static constexpr std::array<const char*, 3> kGatedNorms = {"none", "group", "whole"};
    json["gated_norm"] =
        mixer.gated_norm < kGatedNorms.size() ? kGatedNorms[mixer.gated_norm] : "?";
    json["gated_norm_eps"] = float_value(mixer.norm_eps);
    json["norm_before_gate"] = mixer.norm_before_gate != 0;
    json["d_per_channel"] = mixer.d_per_channel != 0;
    json["init_states"] = mixer.init_states != 0;
    json["dt_limit"] = {float_value(mixer.dt_low), float_value(mixer.dt_high)};
  } else {
    const Mamba1Config& mixer = config.mamba1;
    json["d_inner"] = mixer.d_inner;
    json["d_state"] = mixer.d_state;
    json["d_conv"] = mixer.d_conv;
    json["dt_rank"] = mixer.dt_rank;
    json["proj_bias"] = mixer.proj_bias != 0;
    json["conv_bias"] = mixer.conv_bias != 0;
    json["dt_bc_norm"] = mixer.dt_bc_norm != 0;
    if (mixer.dt_bc_norm != 0) json["dt_bc_eps"] = float_value(mixer.dt_bc_eps);
  }
  return json;
}

std::vector<uint8_t> read_section(const Container& container, const char* id, const char* what) {
  Blob blob;
  if (!container.find_section(id, &blob)) return {};
  std::vector<uint8_t> bytes(static_cast<size_t>(blob.raw_bytes));
  check(container.read_blob(blob, bytes.data(), what));
  return bytes;
}

Json tokenizer_json(const Container& container) {
  const std::vector<uint8_t> blob = read_section(container, "TOKN", "tokenizer");
  if (blob.empty()) return nullptr;
  Tokenizer tokenizer;
  const Status opened = Tokenizer::open(std::span<const uint8_t>(blob), &tokenizer);
  if (!opened.ok()) throw Error(file_label(container.path()) + ": tokenizer: " + opened.message());
  uint32_t flags = 0;
  std::memcpy(&flags, blob.data() + 12, sizeof flags);  // open() has checked the header
  Json json;
  json["kind"] = (flags & tokenizer_format::kFlagByteLevel) != 0      ? "byte-level BPE"
                 : (flags & tokenizer_format::kFlagByteFallback) != 0 ? "BPE with byte fallback"
                                                                      : "BPE";
  json["tokens"] = tokenizer.n_tokens();
  json["bytes"] = blob.size();
  json["bos_token"] = tokenizer.bos();
  json["eos_token"] = tokenizer.eos();
  json["special"] = Json::array();
  for (int32_t id = 0; id < tokenizer.n_tokens(); ++id) {
    if (tokenizer.is_special(id))
      json["special"].push_back({{"id", id}, {"text", tokenizer.token_bytes(id)}});
  }
  return json;
}

Json provenance_json(const Container& container) {
  const std::vector<uint8_t> bytes = read_section(container, "PROV", "provenance");
  Json json = Json::array();
  const auto visit = [](void* user, std::string_view key, std::string_view value) {
    static_cast<Json*>(user)->push_back({{"key", key}, {"value", value}});
  };
  if (!bytes.empty())
    check(for_each_provenance(bytes.data(), bytes.size(), container.path(), visit, &json));
  return json;
}

std::string tensor_type(const TensorEntry& tensor) {
  return tensor.is_matrix ? type_name(tensor.shape.type) : "fp32";
}

// Packed bytes over stored ones.
double ratio(uint64_t packed, uint64_t stored) {
  return stored > 0 ? static_cast<double>(packed) / static_cast<double>(stored) : 1.0;
}

Json tensors_json(const Container& container) {
  Json json = Json::array();
  for (uint32_t i = 0; i < container.n_tensors(); ++i) {
    const TensorEntry tensor = container.tensor(i);
    const uint64_t stored = container.stored_bytes(tensor.blob);
    Json entry;
    entry["name"] = tensor.name;
    entry["type"] = tensor_type(tensor);
    if (tensor.is_matrix && is_quantised(tensor.shape.type))
      entry["group_size"] = tensor.shape.group;
    entry["shape"] =
        tensor.is_matrix ? Json{tensor.shape.rows, tensor.logical_cols} : Json{tensor.shape.rows};
    entry["bytes"] = tensor.blob.raw_bytes;
    entry["stored_bytes"] = stored;
    entry["ratio"] = ratio(tensor.blob.raw_bytes, stored);
    static constexpr std::array<const char*, 3> kEncodings = {"raw", "zstd", "sorted"};
    entry["encoding"] = kEncodings.at(static_cast<size_t>(tensor.blob.encoding));
    entry["frames"] = tensor.blob.n_frames;
    entry["checksum"] = hexadecimal(tensor.blob.checksum);
    json.push_back(entry);
  }
  return json;
}

// What compression makes of each weight type: sums over its tensors.
Json types_json(const Json& tensors) {
  std::map<std::string, Json> types;
  for (const Json& tensor : tensors) {
    Json& sum = types[tensor["type"].get<std::string>()];
    if (sum.is_null())
      sum = {{"tensors", 0u}, {"bytes", uint64_t{0}}, {"stored_bytes", uint64_t{0}}};
    sum["tensors"] = sum["tensors"].get<uint64_t>() + 1;
    for (const char* key : {"bytes", "stored_bytes"})
      sum[key] = sum[key].get<uint64_t>() + tensor[key].get<uint64_t>();
  }
  Json json = Json::object();
  for (auto& [type, sum] : types) {
    sum["ratio"] = ratio(sum["bytes"].get<uint64_t>(), sum["stored_bytes"].get<uint64_t>());
    json[type] = sum;
  }
  return json;
}

// Reads every section and tensor; returns a message for each that is damaged.
std::vector<std::string> damage(const Container& container) {
  std::vector<std::string> damaged;
  std::vector<uint8_t> bytes;
  const auto verify = [&](const Blob& blob, std::string_view what) {
    if (bytes.size() < blob.raw_bytes) bytes.resize(static_cast<size_t>(blob.raw_bytes));
    const Status status = container.read_blob(blob, bytes.data(), what);
    if (!status.ok()) damaged.emplace_back(status.message());
  };
  for (const auto& [id, what] :
       {std::pair{"CONF", "config"}, {"TOKN", "tokenizer"}, {"PROV", "provenance"}}) {
    Blob blob;
    if (container.find_section(id, &blob)) verify(blob, what);
  }
  Progress progress("verifying", container.n_tensors());
  for (uint32_t i = 0; i < container.n_tensors(); ++i) {
    const TensorEntry tensor = container.tensor(i);
    verify(tensor.blob, tensor.name);
    progress.update(i + 1);
  }
  return damaged;
}

// What one session on one thread needs; opens the model, since its weights' types decide.
Json memory_json(const std::string& path) {
  EngineOptions options;
  options.model = path;
  options.isa = "auto";  // what a file is does not depend on MAMBA_EDGE_ISA
  const Model model(options);
  options.threads = 1;
  const Session session(model, options);
  const mamba_edge_model_info& info = model.info();
  Json json;
  json["parameters"] = info.n_parameters;
  json["weight_bytes"] = info.weight_bytes;
  json["mapped_bytes"] = info.mapped_bytes;
  json["arena_bytes"] = session.bytes();
  json["arena_threads"] = session.n_threads();
  json["arena_chunk"] = session.chunk();
  json["state_bytes"] = mamba_edge_state_bytes(model.get());
  return json;
}

// ---- as text

std::string line(const char* label, const std::string& value) {
  std::string text = label;
  text.resize(std::max<size_t>(text.size() + 1, 12), ' ');
  return text + value + "\n";
}

// Items with commas between them, on as many lines as it takes.
std::string list_lines(const char* label, const std::vector<std::string>& items) {
  constexpr size_t kWidth = 84;
  std::string text, row;
  for (size_t i = 0; i < items.size(); ++i) {
    row += items[i];
    const bool last = i + 1 == items.size();
    row += last ? "" : ", ";
    if (!last && row.size() + items[i + 1].size() < kWidth) continue;
    if (row.ends_with(' ')) row.pop_back();
    text += line(text.empty() ? label : "", row);
    row.clear();
  }
  return text;
}

std::string plain(const Json& value) {
  if (value.is_string()) return printable(value.get<std::string>());
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (!value.is_array()) return value.dump();
  std::string text = "[";
  for (const Json& element : value) text += (text.size() > 1 ? ", " : "") + plain(element);
  return text + "]";
}

std::string token_text(const Json& tokenizer, const Json& id) {
  for (const Json& special : tokenizer["special"]) {
    if (special["id"] == id) return id.dump() + " " + plain(special["text"]);
  }
  return id.dump();
}

std::string compression(uint64_t tensors, uint64_t bytes, uint64_t stored_bytes) {
  char text[128];
  std::snprintf(text, sizeof text, "%llu, %s, stored as %s (ratio %.3f)",
                static_cast<unsigned long long>(tensors), format_bytes(bytes).c_str(),
                format_bytes(stored_bytes).c_str(), ratio(bytes, stored_bytes));
  return text;
}

std::string report_text(const Json& report, bool list) {
  const auto bytes = [](const Json& value) { return format_bytes(value.get<uint64_t>()); };
  std::string text = line("file", printable(report["file"].get<std::string>()) + ", " +
                                      bytes(report["file_bytes"]) + ", fingerprint " +
                                      report["fingerprint"].get<std::string>());
  text +=
      line("model", plain(report["config"]["architecture"]) +
                        (report["memory"].is_null()
                             ? ""
                             : ", " + format_count(report["memory"]["parameters"].get<uint64_t>()) +
                                   " parameters"));
  std::vector<std::string> config;
  for (const auto& [key, value] : report["config"].items()) {
    if (key != "architecture") config.push_back(key + " " + plain(value));
  }
  text += list_lines("config", config);

  const Json& tokenizer = report["tokenizer"];
  if (tokenizer.is_null()) {
    text += line("tokenizer", "none: the model takes token ids only");
  } else {
    constexpr size_t kShown = 8;
    std::string special;
    for (const Json& token : tokenizer["special"]) {
      if (&token - &tokenizer["special"][0] == kShown) {
        special += ", ...";
        break;
      }
      special += (special.empty() ? "" : ", ") + plain(token["text"]);
    }
    text += line("tokenizer", plain(tokenizer["kind"]) + ", " + plain(tokenizer["tokens"]) +
                                  " tokens, " + bytes(tokenizer["bytes"]) + "; " +
                                  std::to_string(tokenizer["special"].size()) + " special" +
                                  (special.empty() ? "" : ": " + special));
    text += line("", "a text starts with " + token_text(tokenizer, report["config"]["bos_token"]) +
                         " and ends with " + token_text(tokenizer, report["config"]["eos_token"]));
  }

  const char* label = "made from";
  for (const Json& entry : report["provenance"]) {
    text += line(label, plain(entry["key"]) + ": " + plain(entry["value"]));
    label = "";
  }

  uint64_t n = 0, packed = 0, stored = 0;
  std::string types;
  for (const auto& [type, sum] : report["types"].items()) {
    types += line("", type + ": " + compression(sum["tensors"], sum["bytes"], sum["stored_bytes"]));
    n += sum["tensors"].get<uint64_t>();
    packed += sum["bytes"].get<uint64_t>();
    stored += sum["stored_bytes"].get<uint64_t>();
  }
  text += line("tensors", compression(n, packed, stored)) + types;

  const Json& memory = report["memory"];
  if (!memory.is_null()) {
    text += line("memory", "weights " + bytes(memory["weight_bytes"]) + " (" +
                               bytes(memory["mapped_bytes"]) + " of them mapped), arena " +
                               bytes(memory["arena_bytes"]) + " (1 thread, chunks of " +
                               plain(memory["arena_chunk"]) + "), state " +
                               bytes(memory["state_bytes"]));
  }
  if (list) {
    size_t widest = 6;
    for (const Json& tensor : report["tensors"])
      widest = std::max(widest, plain(tensor["name"]).size());
    char row[512];
    std::snprintf(row, sizeof row, "\n%-*s  %-8s %-16s %12s %12s %6s  %s\n",
                  static_cast<int>(widest), "tensor", "type", "shape", "bytes", "stored", "ratio",
                  "checksum");
    text += row;
    for (const Json& tensor : report["tensors"]) {
      std::string type = plain(tensor["type"]);
      if (tensor.contains("group_size")) type += "/" + plain(tensor["group_size"]);
      std::snprintf(row, sizeof row, "%-*s  %-8s %-16s %12s %12s %6.3f  %s\n",
                    static_cast<int>(widest), plain(tensor["name"]).c_str(), type.c_str(),
                    plain(tensor["shape"]).c_str(), tensor["bytes"].dump().c_str(),
                    tensor["stored_bytes"].dump().c_str(), tensor["ratio"].get<double>(),
                    plain(tensor["checksum"]).c_str());
      text += row;
    }
  }
  return text;
}

int run(int argc, char** argv) {
  CLI::App app("Shows what is in a model file and what it needs to run.", "mamba-inspect");
  app.footer("Exit status: 0; 1 if the file cannot be read or is damaged; 2 for wrong usage.");
  Options options;
  app.add_option("FILE", options.file, "Model file, as mamba-quantize writes it")->required();
  app.add_flag("-l,--list", options.list, "List the tensors (--json always does)");
  app.add_flag("--json", options.json, "Print a JSON object");
  app.add_flag("--verify", options.verify, "Read everything and check every checksum");
  if (!parse_options(app, argc, argv)) return kExitOk;

  Container container;
  check(Container::open(options.file.c_str(), &container));
  Json report;
  report["file"] = options.file;
  report["file_bytes"] = container.file_bytes();
  report["format_version"] = format::kVersion;
  report["fingerprint"] = hexadecimal(container.fingerprint());
  std::vector<std::string> problems;
  if (options.verify) {
    problems = damage(container);
    if (!problems.empty()) {
      for (size_t i = 0; i + 1 < problems.size(); ++i)
        write_stderr("mamba-inspect: error: " + problems[i] + "\n");
      throw Error(problems.back());
    }
    report["verified"] = true;
  }
  report["config"] = config_json(container.config());
  report["tokenizer"] = tokenizer_json(container);
  report["provenance"] = provenance_json(container);
  report["tensors"] = tensors_json(container);
  report["types"] = types_json(report["tensors"]);
  // A model that cannot be loaded (damaged, or too large for this machine) can still be shown.
  std::optional<std::string> unloadable;
  report["memory"] = nullptr;
  try {
    report["memory"] = memory_json(options.file);
  } catch (const Error& error) {
    unloadable = error.what();
  }
  if (options.json) {
    write_stdout(report.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  } else {
    write_stdout(report_text(report, options.list));
    if (options.verify) {
      write_stdout(line(
          "verified", std::to_string(container.n_tensors()) + " tensors: every checksum matches"));
    }
  }
  if (unloadable) throw Error(*unloadable);
  return kExitOk;
}

}  // namespace
}  // namespace mamba_edge::tools

int main(int argc, char** argv) {
  return mamba_edge::tools::run_program("mamba-inspect", mamba_edge::tools::run, argc, argv);
}
