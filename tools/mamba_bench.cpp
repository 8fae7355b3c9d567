// mamba-bench: how fast a model runs here, set against how fast this machine can read its weights.
//
// In every round the program reads all the weights, with the same threads and from the same pages as
// the engine, and then runs the engine; so the limit and what is measured against it come from the
// same minutes.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <nlohmann/json.hpp>

#include "engine/model.h"
#include "engine/session.h"
#include "platforms/os/clock.h"
#include "platforms/os/memory.h"
#include "platforms/os/thread_pool.h"
#include "platforms/select.h"
#include "tools/common.h"
#include "tools/common_synthetic.h"

namespace mamba_edge::tools {
namespace {

using EngineModel = mamba_edge::Model;
using EngineSession = mamba_edge::Session;

struct Options {
  std::vector<std::string> files, synthetic, types = {"int8"}, states = {"fp32"}, isas = {"auto"};
  std::vector<int64_t> threads, batches = {1};
  int64_t prompt = 512, generate = 64, rounds = 5, chunk = kDefaultChunk, group = 0;
  std::string format = "table";
  bool same_bits = false;
};

struct Row {
  std::string model, type, isa, state, test;
  int threads = 1;
  uint64_t batch = 1;                            // texts that are stepped together
  uint64_t tokens = 0;                           // of each text in a round
  double mean_tps = 0, sd_tps = 0;               // over rounds
  double median_ms = 0, p95_ms = 0, p99_ms = 0;  // of a step (decode), of the prompt (prefill)
  double bytes_per_token = 0, bandwidth_gbps = 0, memory_limit_gbps = 0, fraction_of_limit = 0;
  // 10^9 operations a second of the matrix products, two for a weight; what the same threads reach with
  // int8 numbers in registers (0 where products are not of int8 numbers).
  double gops = 0, peak_gops = 0, fraction_of_peak = 0;
  uint64_t arena_bytes = 0, peak_rss_bytes = 0;
  double load_ms = 0;
};

// Where the weights lie that a step reads, in its order.
std::vector<std::pair<const uint8_t*, size_t>> weight_ranges(const EngineModel& model) {
  std::vector<std::pair<const uint8_t*, size_t>> ranges;
  const auto matrix = [&](const Matrix& m) {
    if (m.data != nullptr) ranges.emplace_back(m.data, m.shape.bytes());
  };
  const auto floats = [&](const float* data, size_t n) {
    n = round_up<size_t>(n, kTileRows);
    if (data != nullptr) ranges.emplace_back(reinterpret_cast<const uint8_t*>(data), n * 4);
  };
  const ModelConfig& config = model.config;
  const Layout& l = model.layout;
  const bool mamba2 = config.is_mamba2();
  for (uint32_t i = 0; i < config.n_layer; ++i) {
    const LayerWeights& w = model.weights.layers[i];
    floats(w.norm, config.d_model);
    floats(w.norm_bias, config.d_model);
    matrix(w.in_proj);
    floats(w.in_proj_bias, l.in_proj_rows);
    floats(w.conv, size_t{l.conv_rows} * l.d_conv);
    floats(w.conv_bias, l.conv_rows);
    matrix(w.x_proj);
    matrix(w.dt_proj);
    floats(w.dt_bias, mamba2 ? l.heads : l.inner);
    floats(w.a, mamba2 ? l.heads : size_t{l.inner} * l.d_state);
    floats(w.d, l.inner);
    floats(w.gate_norm, l.inner);
    matrix(w.out_proj);
    floats(w.out_proj_bias, config.d_model);
  }
  floats(model.weights.final_norm, config.d_model);
  floats(model.weights.final_norm_bias, config.d_model);
  matrix(model.weights.head);
  return ranges;
}

// Multiplications and additions of a token: the weights of all matrices but the head, and of the head.
struct Operations {
  double layers = 0, head = 0;
};
Operations operations(const EngineModel& model) {
  const auto of = [](const Matrix& m) {
    return m.data == nullptr ? 0.0 : 2.0 * m.shape.rows * m.shape.cols;
  };
  Operations n;
  for (uint32_t i = 0; i < model.config.n_layer; ++i) {
    const LayerWeights& w = model.weights.layers[i];
    n.layers += of(w.in_proj) + of(w.x_proj) + of(w.dt_proj) + of(w.out_proj);
  }
  n.head = of(model.weights.head);
  return n;
}

// Threads that read the weights, and multiply in registers.
class Reader {
 public:
  Reader(const EngineModel& model, int threads)
      : memory_(ThreadPool::required_bytes(threads) + 64),
        kernels_(*select_table(nullptr)),
        own_kernels_(*model.kernels) {
    constexpr size_t kPiece = size_t{256} << 10;
    for (const auto& [data, bytes] : weight_ranges(model)) {
      bytes_ += bytes;
      for (size_t at = 0; at < bytes; at += kPiece) {
        pieces_.emplace_back(data + at, std::min(kPiece, bytes - at));
      }
    }
    void* aligned = memory_.data();
    size_t space = memory_.size();
    std::align(64, ThreadPool::required_bytes(threads), aligned, space);
    if (ThreadPool::create(aligned, threads, &pool_) != 0) throw Error("cannot start threads");
  }
  ~Reader() { ThreadPool::destroy(pool_); }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  uint64_t bytes() const { return bytes_; }

  // Bytes per nanosecond, which is GB/s: the median of a few passes, after one that brings the caches
  // to where repeated reading leaves them, as decode finds them.
  double gigabytes_per_second() {
    constexpr int kPasses = 5;
    std::vector<double> rates;
    for (int i = 0; i <= kPasses; ++i) {
      const double rate = read_once();
      if (i > 0) rates.push_back(rate);
    }
    return median(rates);
  }

  // 10^9 operations a second that the model's own kernels reach with int8 numbers: the best of a few
  // passes of some milliseconds.
  double peak_gops() {
    constexpr int kPasses = 5;
    constexpr uint64_t kPieces = 64;
    constexpr double kPassNs = 4e6;
    double best = 0;
    for (int i = 0; i < kPasses; ++i) {
      products_ = 0;
      const uint64_t start = monotonic_ns();
      pool_->run(
          kPieces,
          [](void* self, size_t) {
            auto& reader = *static_cast<Reader*>(self);
            reader.products_ += reader.own_kernels_.peak_i8(reader.rounds_);
          },
          this);
      const auto took = static_cast<double>(monotonic_ns() - start);
      best = std::max(best, 2 * static_cast<double>(products_) / took);
      const double scale = kPassNs / std::max(took, 1.0);
      rounds_ = static_cast<size_t>(std::max(1.0, static_cast<double>(rounds_) * scale));
    }
    return best;
  }

 private:
  double read_once() {
    const uint64_t start = monotonic_ns();
    pool_->run(
        pieces_.size(),
        [](void* self, size_t i) {
          auto& reader = *static_cast<Reader*>(self);
          const auto& [data, bytes] = reader.pieces_[i];
          reader.sink_.fetch_add(reader.kernels_.read_words(data, bytes),
                                 std::memory_order_relaxed);
        },
        this);
    return static_cast<double>(bytes_) / static_cast<double>(monotonic_ns() - start);
  }

  std::vector<char> memory_;
  std::vector<std::pair<const uint8_t*, size_t>> pieces_;
  std::atomic<uint32_t> sink_{0};
  const KernelTable& kernels_;  // the fastest that this machine has
  const KernelTable& own_kernels_;
  ThreadPool* pool_ = nullptr;
  uint64_t bytes_ = 0;
  std::atomic<uint64_t> products_{0};
  size_t rounds_ = 16;
};

struct OpenSession {
  OpenSession(const EngineModel& model, const SessionOptions& options)
      : bytes(EngineSession::required_bytes(model, options)), arena(memory_allocate(bytes)) {
    if (arena == nullptr) throw Error("no memory for an arena of " + format_bytes(bytes));
    const Status status = EngineSession::create(model, options, arena, &session);
    if (!status.ok()) {
      memory_free(arena, bytes);
      throw Error(status.message());
    }
  }
  ~OpenSession() {
    session->destroy();
    memory_free(arena, bytes);
  }
  OpenSession(const OpenSession&) = delete;
  OpenSession& operator=(const OpenSession&) = delete;
  size_t bytes;
  void* arena;
  EngineSession* session = nullptr;
};

class Bench {
 public:
  explicit Bench(const Options& options) : o_(options) {}

  void run() {
    for (const std::string& file : o_.files) {
      if (::access(file.c_str(), R_OK) != 0) {
        throw Error(file + ": cannot open: " + std::strerror(errno));
      }
    }
    for (const std::string& file : o_.files) {
      for (const std::string& isa : o_.isas) {
        const double started = now_seconds();
        EngineModel model;
        ModelOptions options;
        options.isa = isa.c_str();
        options.n_threads =
            static_cast<int>(*std::max_element(o_.threads.begin(), o_.threads.end()));
        const Status status = load_model(file.c_str(), options, &model);
        if (!status.ok()) throw Error(status.message());
        const Matrix& matrix = model.weights.layers[0].in_proj;
        measure(model, file, type_name(matrix.shape.type), 1e3 * (now_seconds() - started));
      }
    }
    for (const std::string& name : o_.synthetic) {
      const ModelConfig config = synthetic_config(name);
      for (const std::string& type : o_.types) {
        const double started = now_seconds();
        EngineModel model;
        make_synthetic_model(config, parse_weight_type("--type", type),
                             static_cast<uint32_t>(o_.group), o_.isas[0].c_str(), &model);
        const double load_ms = 1e3 * (now_seconds() - started);
        for (const std::string& isa : o_.isas) {
          model.kernels = select_table(isa.c_str());
          measure(model, name, type, load_ms);
        }
      }
    }
  }
  const std::vector<Row>& rows() const { return rows_; }

 private:
  void measure(const EngineModel& model, const std::string& name, const std::string& type,
               double load_ms) {
    for (const std::string& state : o_.states) {
      for (const int64_t threads : o_.threads) {
        SessionOptions options;
        options.n_threads = static_cast<int>(threads);
        options.chunk = static_cast<uint32_t>(o_.chunk);
        options.state = static_cast<StateType>(parse_state_type(state));
        options.same_bits = o_.same_bits;
        const int64_t largest = *std::max_element(o_.batches.begin(), o_.batches.end());
        options.batch = largest > 1 ? static_cast<uint32_t>(largest) : 0;
        OpenSession open(model, options);
        Reader reader(model, options.n_threads);
        Row row;
        row.model = name;
        row.type = type;
        row.isa = model.kernels->isa;
        row.state = state;
        row.threads = options.n_threads;
        row.load_ms = load_ms;
        row.arena_bytes = open.bytes;
        if (o_.prompt > 0) prefill(model, *open.session, reader, row);
        if (o_.generate == 0) continue;
        // The other texts of a batch: only their states are used.
        SessionOptions small = options;
        small.n_threads = 1;
        small.chunk = 1;
        small.batch = 0;
        std::vector<std::unique_ptr<OpenSession>> others;
        for (const int64_t batch : o_.batches) {
          while (others.size() + 1 < static_cast<size_t>(batch)) {
            others.push_back(std::make_unique<OpenSession>(model, small));
          }
          std::vector<EngineSession*> texts = {open.session};
          for (size_t i = 0; i + 1 < static_cast<size_t>(batch); ++i) {
            texts.push_back(others[i]->session);
          }
          decode(model, texts, reader, row);
        }
      }
    }
  }

  void prefill(const EngineModel& model, EngineSession& session, Reader& reader, Row row) {
    std::vector<int32_t> ids(static_cast<size_t>(o_.prompt));
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = token(model, i);
    std::vector<double> limits, peaks, ms;
    for (int64_t round = 0; round <= o_.rounds; ++round) {
      throw_if_interrupted();
      const double limit = reader.gigabytes_per_second();
      const double peak = reader.peak_gops();
      session.reset();
      const uint64_t start = monotonic_ns();
      session.take_tokens(ids.data(), ids.size(), nullptr);
      const double took = static_cast<double>(monotonic_ns() - start) * 1e-6;
      if (round == 0) continue;  // warms up
      limits.push_back(limit);
      peaks.push_back(peak);
      ms.push_back(took);
    }
    row.test = "prefill";
    row.tokens = ids.size();
    const int64_t chunks = (o_.prompt + o_.chunk - 1) / o_.chunk;
    row.bytes_per_token = static_cast<double>(chunks) *
                          static_cast<double>(step_bytes(session, reader)) /
                          static_cast<double>(ids.size());
    const Operations per_token = operations(model);
    const auto tokens = static_cast<double>(ids.size());
    const double total = per_token.layers * tokens + per_token.head;  // logits of the last one only
    finish(model, row, limits, peaks, ms, tokens, tokens, total / tokens);
  }

  void decode(const EngineModel& model, const std::vector<EngineSession*>& texts, Reader& reader,
              Row row) {
    std::vector<double> limits, peaks, ms;
    EngineSession& lead = *texts[0];
    for (EngineSession* text : texts) text->reset();
    std::vector<int32_t> ids(texts.size());
    for (int64_t round = 0; round <= o_.rounds; ++round) {
      const double limit = reader.gigabytes_per_second(), peak = reader.peak_gops();
      if (round > 0) {
        limits.push_back(limit);
        peaks.push_back(peak);
      }
      for (int64_t i = 0; i < o_.generate; ++i) {
        throw_if_interrupted();
        for (size_t t = 0; t < ids.size(); ++t) {
          ids[t] = token(model, static_cast<size_t>(i) + 1000 * t);
        }
        const uint64_t start = monotonic_ns();
        if (texts.size() == 1) {
          lead.take_tokens(ids.data(), 1, nullptr);
        } else {
          lead.step_batch(texts.data(), ids.data(), ids.size());
        }
        const double took = static_cast<double>(monotonic_ns() - start) * 1e-6;
        if (round > 0) ms.push_back(took);
      }
    }
    row.test = "decode";
    row.batch = texts.size();
    row.tokens = static_cast<uint64_t>(o_.generate);
    const auto batch = static_cast<double>(texts.size());
    row.bytes_per_token = static_cast<double>(reader.bytes()) / batch +
                          2 * static_cast<double>(lead.step_state_bytes());
    const Operations per_token = operations(model);
    finish(model, row, limits, peaks, ms, static_cast<double>(o_.generate) * batch, batch,
           per_token.layers + per_token.head);
  }

  // `ms`: times of `tokens_each` tokens each, `per_round` tokens in a round.
  void finish(const EngineModel& model, Row row, const std::vector<double>& limits,
              const std::vector<double>& peaks, std::vector<double> ms, double per_round,
              double tokens_each, double operations_per_token) {
    const auto in_round = static_cast<size_t>(per_round / tokens_each);
    std::vector<double> rates;
    for (size_t at = 0; at < ms.size(); at += in_round) {
      double total = 0;
      for (size_t i = at; i < at + in_round; ++i) total += ms[i];
      rates.push_back(1e3 * per_round / total);
    }
    double sum = 0, squares = 0;
    for (const double rate : rates) sum += rate;
    const auto n = static_cast<double>(rates.size());
    row.mean_tps = sum / n;
    for (const double rate : rates) squares += (rate - row.mean_tps) * (rate - row.mean_tps);
    row.sd_tps = n > 1 ? std::sqrt(squares / (n - 1)) : 0;
    std::sort(ms.begin(), ms.end());
    row.median_ms = median(ms);
    row.p95_ms = percentile(ms, 0.95);
    row.p99_ms = percentile(ms, 0.99);
    row.bandwidth_gbps = row.bytes_per_token * tokens_each / row.median_ms * 1e-6;
    row.memory_limit_gbps = median(limits);
    row.fraction_of_limit = row.bandwidth_gbps / row.memory_limit_gbps;
    row.gops = operations_per_token * tokens_each / row.median_ms * 1e-6;
    if (is_quantised(model.weights.layers[0].in_proj.shape.type)) {
      row.peak_gops = median(peaks);
      row.fraction_of_peak = row.gops / row.peak_gops;
    }
    row.peak_rss_bytes = peak_resident_bytes();
    rows_.push_back(std::move(row));
  }

  static int32_t token(const EngineModel& model, size_t i) {
    return static_cast<int32_t>((i * 7919 + 11) % model.config.n_vocab);
  }
  // Weights read once, the state read and written once.
  static uint64_t step_bytes(const EngineSession& session, const Reader& reader) {
    return reader.bytes() + 2 * session.step_state_bytes();
  }

  const Options& o_;
  std::vector<Row> rows_;
};

// ---- output

struct Column {
  const char* name;
  std::string (*value)(const Row& row);
  bool text = false;
};

std::string number(const char* format, double value) {
  char text[48];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

const Column kColumns[] = {
    {"model", [](const Row& r) { return r.model; }, true},
    {"type", [](const Row& r) { return r.type; }, true},
    {"isa", [](const Row& r) { return r.isa; }, true},
    {"state", [](const Row& r) { return r.state; }, true},
    {"threads", [](const Row& r) { return std::to_string(r.threads); }},
    {"batch", [](const Row& r) { return std::to_string(r.batch); }},
    {"test", [](const Row& r) { return r.test; }, true},
    {"tokens", [](const Row& r) { return std::to_string(r.tokens); }},
    {"mean_tps", [](const Row& r) { return number("%.2f", r.mean_tps); }},
    {"sd_tps", [](const Row& r) { return number("%.2f", r.sd_tps); }},
    {"median_ms", [](const Row& r) { return number("%.3f", r.median_ms); }},
    {"p95_ms", [](const Row& r) { return number("%.3f", r.p95_ms); }},
    {"p99_ms", [](const Row& r) { return number("%.3f", r.p99_ms); }},
    {"bytes_per_token", [](const Row& r) { return number("%.0f", r.bytes_per_token); }},
    {"bandwidth_gbps", [](const Row& r) { return number("%.2f", r.bandwidth_gbps); }},
    {"memory_limit_gbps", [](const Row& r) { return number("%.2f", r.memory_limit_gbps); }},
    {"fraction_of_limit", [](const Row& r) { return number("%.3f", r.fraction_of_limit); }},
    {"gops", [](const Row& r) { return number("%.1f", r.gops); }},
    {"peak_gops", [](const Row& r) { return number("%.1f", r.peak_gops); }},
    {"fraction_of_peak", [](const Row& r) { return number("%.3f", r.fraction_of_peak); }},
    {"arena_bytes", [](const Row& r) { return std::to_string(r.arena_bytes); }},
    {"peak_rss_bytes", [](const Row& r) { return std::to_string(r.peak_rss_bytes); }},
    {"load_ms", [](const Row& r) { return number("%.1f", r.load_ms); }},
};

std::string csv_field(const std::string& value) {
  if (value.find_first_of(",\"\n") == std::string::npos) return value;
  std::string quoted = "\"";
  for (const char c : value) {
    quoted += c;
    if (c == '"') quoted += c;
  }
  return quoted + "\"";
}

std::string as_csv(const std::vector<Row>& rows) {
  std::string text;
  for (const Column& column : kColumns) {
    text += (&column == kColumns ? "" : ",") + std::string(column.name);
  }
  text += "\n";
  for (const Row& row : rows) {
    for (const Column& column : kColumns) {
      text += (&column == kColumns ? "" : ",") + csv_field(column.value(row));
    }
    text += "\n";
  }
  return text;
}

// Aligned columns, with bars between them for Markdown.
std::string as_table(const std::vector<Row>& rows, bool markdown) {
  std::vector<std::string> lines(rows.size() + 1 + (markdown ? 1 : 0));
  for (const Column& column : kColumns) {
    size_t width = std::strlen(column.name);
    for (const Row& row : rows) width = std::max(width, column.value(row).size());
    const auto cell = [&](std::string value) {
      value.insert(column.text ? value.size() : 0, width - value.size(), ' ');
      return markdown ? "| " + value + " " : value + "  ";
    };
    size_t line = 0;
    lines[line++] += cell(column.name);
    if (markdown) lines[line++] += "| " + std::string(width - 1, '-') + (column.text ? "- " : ": ");
    for (const Row& row : rows) lines[line++] += cell(column.value(row));
  }
  std::string text;
  for (std::string& line : lines) {
    if (markdown) line += "|";
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::string as_json(const std::vector<Row>& rows) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Row& row : rows) {
    nlohmann::ordered_json entry;
    for (const Column& column : kColumns) {
      const std::string value = column.value(row);
      if (column.text) {
        entry[column.name] = value;
      } else {
        entry[column.name] = nlohmann::ordered_json::parse(value);
      }
    }
    list.push_back(std::move(entry));
  }
  return list.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

int run(int argc, char** argv) {
  CLI::App app{
      "Measures prefill and decode, and how fast this machine reads the same weights with the same "
      "threads: that is the limit of decode.",
      "mamba-bench"};
  Options options;
  app.add_option("-m,--model", options.files, "Model files, as mamba-quantize writes them")
      ->type_name("FILE")
      ->delimiter(',');
  app.add_option("--synthetic", options.synthetic,
                 "Models of random weights in published dimensions, made in memory: mamba-130m, "
                 "370m, 790m, 1.4b, 2.8b, mamba2-130m, 370m, 780m, 1.3b, 2.7b, falcon-mamba-7b, "
                 "mamba-codestral-7b")
      ->type_name("NAME")
      ->delimiter(',');
  app.add_option("--type", options.types, "Weight types of --synthetic: " + matrix_types())
      ->type_name("TYPE")
      ->delimiter(',')
      ->capture_default_str();
  add_integer(app, "--group-size", options.group, 16, kMaxGroup,
              "Inputs that share a scale, for --synthetic; a multiple of 16");
  add_integer(app, "-p,--prompt", options.prompt, 0, 1 << 20,
              "Tokens of the prompt; 0: no prefill");
  add_integer(app, "-n,--generate", options.generate, 0, 1 << 20,
              "Tokens to decode in a round; 0: no decode");
  add_integer(app, "-r,--rounds", options.rounds, 1, 10000,
              "Rounds that are counted, after one that is not");
  app.add_option("-t,--threads", options.threads,
                 "Threads that compute, as 1,2 (default: the physical cores)")
      ->type_name("N")
      ->delimiter(',')
      ->check(CLI::Range(1, 256));
  app.add_option("-b,--batch", options.batches,
                 "Texts that decode together, as 1,2,4,8: each weight is read once for all")
      ->type_name("N")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  add_integer(app, "--chunk", options.chunk, 1, 4096,
              "Tokens of a prompt that are taken through the weights at a time");
  app.add_option("--state", options.states,
                 "Number formats of the recurrent state: fp32, fp16, int8")
      ->type_name("TYPE")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--isa", options.isas,
                 "Kernels, as generic or avx2; auto: MAMBA_EDGE_ISA from the environment, else the "
                 "best that the CPU runs")
      ->type_name("NAME")
      ->delimiter(',')
      ->capture_default_str();
  app.add_flag("--same-bits", options.same_bits,
               "Read prompts with exactly the arithmetic of generation: slower for Mamba-2 on CPUs "
               "with AMX");
  app.add_option("-o,--output", options.format, "table, md, csv or json")
      ->check(CLI::IsMember({"table", "md", "csv", "json"}))
      ->capture_default_str();
  if (!parse_options(app, argc, argv)) return kExitOk;
  if (options.files.empty() == options.synthetic.empty()) {
    throw UsageError("expected either -m FILE or --synthetic NAME");
  }
  for (const char* option : {"--type", "--group-size"}) {
    if (!options.files.empty() && app.count(option) > 0) {
      throw UsageError(std::string(option) + " is for --synthetic; a file has its own");
    }
  }
  if (options.prompt == 0 && options.generate == 0) {
    throw UsageError("-p 0 and -n 0: nothing to measure");
  }
  if (options.group % kGroupMultiple != 0) {
    throw UsageError("--group-size: expected a multiple of 16, not " +
                     std::to_string(options.group));
  }
  if (options.threads.empty()) options.threads = {default_threads()};
  // All words are checked before anything is measured.
  const char* environment = std::getenv("MAMBA_EDGE_ISA");
  for (std::string& isa : options.isas) {
    const bool by_environment = isa == "auto" && environment != nullptr && *environment != '\0';
    if (by_environment) isa = environment;
    if (select_table(isa.c_str()) == nullptr) {
      throw UsageError(std::string(by_environment ? "MAMBA_EDGE_ISA" : "--isa") +
                       ": instruction set '" + isa +
                       "' is none that this machine runs: " + available_isas());
    }
  }
  for (const std::string& state : options.states) parse_state_type(state);
  for (const std::string& type : options.types) parse_weight_type("--type", type);
  for (const std::string& name : options.synthetic) synthetic_config(name);
  catch_interrupts();

  Bench bench(options);
  std::exception_ptr failure;
  try {
    bench.run();
  } catch (...) {
    if (bench.rows().empty()) throw;
    failure = std::current_exception();  // what was measured until then is shown nevertheless
  }
  if (options.format == "json") {
    write_stdout(as_json(bench.rows()));
  } else if (options.format == "csv") {
    write_stdout(as_csv(bench.rows()));
  } else {
    write_stdout(as_table(bench.rows(), options.format == "md"));
  }
  if (failure != nullptr) std::rethrow_exception(failure);
  return kExitOk;
}

}  // namespace
}  // namespace mamba_edge::tools

int main(int argc, char** argv) {
  return mamba_edge::tools::run_program("mamba-bench", mamba_edge::tools::run, argc, argv);
}
