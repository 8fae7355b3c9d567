// mamba-eval compare: several models beside a reference.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>

#include "engine/container.h"
#include "engine/tensors.h"
#include "tools/eval.h"

namespace mamba_edge::tools {

void add_compare(CLI::App& app, CompareOptions& options) {
  options.engine.chunk = kScoringChunk;
  options.engine.same_bits = true;  // what is measured is what generation does
  app.add_option("MODELS", options.files, "Model files, as mamba-quantize writes them")->required();
  add_reference_options(app, options.reference, options.reference_state);
  add_compute_options(app, options.engine);
  add_text_options(app, options.text);
  app.add_flag(
      "--speed", options.speed,
      "Also measure generation, in tokens per second (a short run; mamba-bench says more)");
  auto* others =
      app.add_option(
             "--others", options.others,
             "Figures from elsewhere to set beside these: CSV with the columns name,bytes,kl, or "
             "a JSON array of objects with these keys")
          ->type_name("FILE");
  app.add_option("--others-name", options.others_name,
                 "What they are, for the picture (default: the name of their file)")
      ->type_name("TEXT")
      ->needs(others);
  app.add_option("--svg", options.svg,
                 "Draw KL against file size; - is stdout, instead of the table")
      ->type_name("FILE");
  app.add_option("--title", options.title, "The picture's title")->type_name("TEXT");
  app.add_flag("--json", options.json, "Print a JSON object");
  app.footer(
      "The columns are those of mamba-eval kl, and the change of the perplexity from the "
      "reference's; the smallest file comes\n"
      "first. One model at a time is open beside the reference.");
}

namespace {

struct Row {
  std::string name, path;  // path: empty for a figure from elsewhere
  uint64_t bytes = 0;
  double bits_per_weight = 0, tokens_per_second = 0;
  double kl = 0;
  Divergence divergence;
};

// Packed bits of the matrices whose type is the user's choice over their elements, as mamba-quantize
// reports them.
double bits_per_weight(const Container& container) {
  const ModelConfig& config = container.config();
  double bits = 0, elements = 0;
  for (uint32_t i = 0; i < tensor_count(config); ++i) {
    const TensorSpec spec = tensor_spec(config, i);
    if (!spec.quantisable) continue;
    char name[40];
    tensor_name(spec.role, spec.layer, name);
    TensorEntry tensor;
    if (!container.find_tensor(name, &tensor))
      throw Error(file_label(container.path()) + " has no tensor " + name);
    bits += 8 * static_cast<double>(tensor.shape.bytes());
    elements += static_cast<double>(published_elements(config, spec));
  }
  return bits / elements;
}

// Steps through the text after a few to warm up; from the median time of one.
double decode_speed(Session& session, const Text& text) {
  constexpr size_t kWarmUp = 16, kTimed = 64;
  session.reset();
  std::vector<double> seconds;
  for (size_t i = 0; i < kWarmUp + kTimed; ++i) {
    throw_if_interrupted();
    const double started = now_seconds();
    session.step(text.tokens[i % text.tokens.size()]);
    if (i >= kWarmUp) seconds.push_back(now_seconds() - started);
  }
  return 1 / std::max(median(std::move(seconds)), 1e-9);
}

// ---- figures from elsewhere

[[noreturn]] void bad_entry(const std::string& where, const char* expected) {
  throw Error(where + ": expected " + expected);
}

Row make_other(const std::string& where, std::string name, double bytes, double kl) {
  if (name.empty()) bad_entry(where, "a name");
  if (!(bytes >= 1 && bytes <= 1e18)) bad_entry(where, "bytes as a number from 1 up");
  if (!(kl >= 0 && std::isfinite(kl))) bad_entry(where, "kl as a number from 0 up");
  Row row;
  row.name = std::move(name);
  row.bytes = static_cast<uint64_t>(bytes);
  row.kl = kl;
  return row;
}

std::vector<Row> others_of_json(const std::string& text, const std::string& label) {
  Json json;
  try {
    json = Json::parse(text);
  } catch (const Json::exception& error) {
    throw Error(label + " is not JSON: " + error.what());
  }
  std::vector<Row> rows;
  for (const Json& entry : json) {
    const std::string where = label + " entry " + std::to_string(rows.size() + 1);
    if (!entry.is_object()) bad_entry(where, "an object with name, bytes and kl");
    const auto name = entry.find("name"), bytes = entry.find("bytes"), kl = entry.find("kl");
    if (name == entry.end() || !name->is_string()) bad_entry(where, "a string as \"name\"");
    if (bytes == entry.end() || !bytes->is_number()) bad_entry(where, "a number as \"bytes\"");
    if (kl == entry.end() || !kl->is_number()) bad_entry(where, "a number as \"kl\"");
    rows.push_back(
        make_other(where, name->get<std::string>(), bytes->get<double>(), kl->get<double>()));
  }
  return rows;
}

// The fields of a line of CSV: those in double quotes may hold commas, and quotes doubled.
std::vector<std::string> csv_fields(const std::string& line, const std::string& where) {
  std::vector<std::string> fields(1);
  bool quoted = false;
  for (size_t i = 0; i < line.size(); ++i) {
    if (line[i] == '"') {
      if (quoted && i + 1 < line.size() && line[i + 1] == '"') {
        fields.back() += line[++i];
      } else {
        quoted = !quoted;
      }
    } else if (line[i] == ',' && !quoted) {
      fields.emplace_back();
    } else {
      fields.back() += line[i];
    }
  }
  if (quoted) bad_entry(where, "a closing quote");
  for (std::string& field : fields) {
    field.erase(0, std::min(field.find_first_not_of(" \t"), field.size()));
    field.erase(field.find_last_not_of(" \t\r") + 1);
  }
  return fields;
}

double csv_number(const std::string& text, const std::string& where) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, value);
  if (result.ec != std::errc() || result.ptr != end)
    throw Error(where + ": expected a number, not '" + text + "'");
  return value;
}

std::vector<Row> others_of_csv(const std::string& text, const std::string& label) {
  std::vector<Row> rows;
  std::vector<std::string> header;
  size_t name = 0, bytes = 0, kl = 0, number = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    const std::string where = label + " line " + std::to_string(++number);
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::vector<std::string> fields = csv_fields(line, where);
    if (header.empty()) {
      header = fields;
      const auto column = [&](const char* title) {
        const auto found = std::find(header.begin(), header.end(), title);
        if (found == header.end()) throw Error(where + " names no column " + title);
        return static_cast<size_t>(found - header.begin());
      };
      name = column("name");
      bytes = column("bytes");
      kl = column("kl");
      continue;
    }
    if (fields.size() != header.size()) {
      throw Error(where + " has " + std::to_string(fields.size()) + " fields; " +
                  std::to_string(header.size()) + " were expected");
    }
    rows.push_back(make_other(where, fields[name], csv_number(fields[bytes], where),
                              csv_number(fields[kl], where)));
  }
  return rows;
}

std::vector<Row> read_others(const std::string& path) {
  const std::string text = read_file(path), label = file_label(path);
  const size_t first = text.find_first_not_of(" \t\r\n");
  const bool json = first != std::string::npos && text[first] == '[';
  std::vector<Row> rows = json ? others_of_json(text, label) : others_of_csv(text, label);
  if (rows.empty()) throw Error(label + " has no figures: name, bytes and kl were expected");
  return rows;
}

// ---- output

double ppl_change(const Scores& scores) {
  return 100 * (scores.ppl() / scores.ppl_reference() - 1);
}

std::string format_table(const std::vector<Row>& rows, bool speed) {
  size_t width = 4;
  for (const Row& row : rows) width = std::max(width, row.name.size());
  char line[320];
  std::string text = "name";
  text.resize(width, ' ');
  std::snprintf(line, sizeof line, " %12s %7s %10s %10s %10s %10s %7s %9s %8s", "bytes", "bits/w",
                "kl_mean", "kl_median", "kl_p99", "kl_max", "top1", "ppl", "ppl_%");
  text += line;
  text += speed ? " tokens/s\n" : "\n";
  for (const Row& row : rows) {
    std::string name = row.name;
    name.resize(width, ' ');
    text += name;
    if (row.path.empty()) {
      std::snprintf(line, sizeof line, " %12llu %7s %10.4g",
                    static_cast<unsigned long long>(row.bytes), "", row.kl);
      text += line;
    } else {
      const Scores& all = row.divergence.all;
      std::snprintf(line, sizeof line,
                    " %12llu %7.2f %10.4g %10.4g %10.4g %10.4g %7.4f %9.4f %+8.3f",
                    static_cast<unsigned long long>(row.bytes), row.bits_per_weight, all.kl_mean(),
                    row.divergence.kl_median, row.divergence.kl_p99, all.kl_max,
                    all.top1_agreement(), all.ppl(), ppl_change(all));
      text += line;
      if (speed) {
        std::snprintf(line, sizeof line, " %8.1f", row.tokens_per_second);
        text += line;
      }
    }
    text += '\n';
  }
  return text;
}

Json rows_json(const std::vector<Row>& rows, bool speed) {
  Json models = Json::array(), others = Json::array();
  for (const Row& row : rows) {
    if (row.path.empty()) {
      others.push_back({{"name", row.name}, {"bytes", row.bytes}, {"kl", row.kl}});
      continue;
    }
    Json json = {{"name", row.name},
                 {"model", row.path},
                 {"bytes", row.bytes},
                 {"bits_per_weight", row.bits_per_weight}};
    add_scores(json, row.divergence);
    json["ppl_change_percent"] = ppl_change(row.divergence.all);
    if (speed) json["tokens_per_second"] = row.tokens_per_second;
    models.push_back(std::move(json));
  }
  Json json;
  json["models"] = std::move(models);
  if (!others.empty()) json["others"] = std::move(others);
  return json;
}

// A file's name without folder and ending, or all of its path where another file has the same name.
std::string short_name(const std::string& path, const std::vector<std::string>& files) {
  const auto stem = [](const std::string& file) {
    return std::filesystem::path(file).stem().string();
  };
  const auto same = std::count_if(files.begin(), files.end(), [&](const std::string& file) {
    return file != path && stem(file) == stem(path);
  });
  return same > 0 ? path : stem(path);
}

// What a file says of itself; all are asked before the first is measured.
Row describe(const std::string& file, const std::vector<std::string>& files) {
  Container container;
  const Status opened = Container::open(file.c_str(), &container);
  if (!opened.ok()) throw Error(opened.message());
  Row row;
  row.path = file;
  row.name = short_name(file, files);
  row.bytes = container.file_bytes();
  row.bits_per_weight = bits_per_weight(container);
  return row;
}

}  // namespace

int run_compare(const CompareOptions& options) {
  check_text_options(options.text);
  if (options.json && options.svg == "-") throw UsageError("--json and --svg - both need stdout");
  if (options.svg) {
    std::vector<std::string> inputs = options.files;
    inputs.push_back(options.reference);
    if (options.others && *options.others != "-") inputs.push_back(*options.others);
    check_output(*options.svg, inputs);
  }
  std::vector<Row> rows;
  if (options.others) rows = read_others(*options.others);
  for (const std::string& file : options.files) rows.push_back(describe(file, options.files));
  const EngineOptions of_reference =
      reference_options(options.engine, options.reference, options.reference_state);
  const Model reference(of_reference);
  const Text text = read_text(options.text, reference);
  Session reference_session(reference, of_reference);

  catch_interrupts();
  double ppl_reference = 0;
  for (Row& row : rows) {
    if (row.path.empty()) continue;
    EngineOptions engine = options.engine;
    engine.model = row.path;
    std::optional<Model> other;  // a file that is its own reference is opened once
    const Model& model = row.path == options.reference ? reference : other.emplace(engine);
    require_same_vocabulary(model, reference, text);
    Session session(model, engine);
    row.divergence =
        measure_divergence(model, session, reference, reference_session, text, 1, row.name.c_str());
    row.kl = row.divergence.all.kl_mean();
    if (options.speed) row.tokens_per_second = decode_speed(session, text);
    ppl_reference = row.divergence.all.ppl_reference();
  }
  std::stable_sort(rows.begin(), rows.end(),
                   [](const Row& a, const Row& b) { return a.bytes < b.bytes; });

  if (options.json) {
    Json json = {{"reference", reference.path()}, {"text", text.source},
                 {"state", options.engine.state}, {"reference_state", options.reference_state},
                 {"tokens", text.n_scored()},     {"ppl_reference", ppl_reference}};
    json.update(rows_json(rows, options.speed));
    write_stdout(dump(json) + "\n");
  } else if (options.svg != "-") {
    char line[160];
    std::snprintf(line, sizeof line, "%zu tokens, perplexity of the reference %.6f\n\n",
                  text.n_scored(), ppl_reference);
    write_stdout(line + format_table(rows, options.speed));
  }
  if (options.svg) {
    std::vector<Point> points;
    for (const Row& row : rows) points.push_back({row.name, row.bytes, row.kl, row.path.empty()});
    const std::string reference_name = short_name(options.reference, {});
    PlotWords words;
    words.title =
        options.title.empty() ? "What quantisation costs: " + reference_name : options.title;
    words.subtitle = "mean KL divergence from " + reference_name + " over " +
                     std::to_string(text.n_scored()) + " tokens, in nats";
    if (options.others) {
      words.others = options.others_name ? *options.others_name : short_name(*options.others, {});
    }
    const std::string svg = plot_svg(points, words);
    OutputFile output(*options.svg);
    output.write(svg.data(), svg.size());
    output.commit();
  }
  return kExitOk;
}

}  // namespace mamba_edge::tools
