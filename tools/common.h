// What the programs share: errors and exit statuses, files, signals, options, and the C API as C++
// objects.
//
// Everything that fails throws Error, whose message names the file, the thing and what was
// expected; run_program turns it into one line on stderr and an exit status. Results go to stdout,
// everything else to stderr.
#pragma once

#include <csignal>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "engine/include/mamba_edge.h"
#include "quant/blocks.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace mamba_edge::tools {

// ---- errors and exit statuses

constexpr int kExitOk = 0;
constexpr int kExitFailure = 1;
constexpr int kExitUsage = 2;
constexpr int kExitClosedOutput =
    128 + SIGPIPE;  // as the shell reports a program that a closed pipe ended

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct UsageError : Error {
  using Error::Error;
};
struct ClosedOutput {};  // the reader of stdout has gone: nothing to say, nobody to say it to
struct Interrupted {};   // by SIGINT or SIGTERM

// Runs `body` as the program `name`: prints what it throws as "name: error: ...", returns the exit
// status. Also prepares the process: SIGPIPE is ignored, and closed standard descriptors are made
// harmless.
int run_program(const char* name, int (*body)(int argc, char** argv), int argc, char** argv);
void warn(const std::string& message);  // "name: warning: ..."

// Throws an Error with the message of `error` unless `status` is OK.
void check(mamba_edge_status status, const mamba_edge_error& error);

// ---- signals

// From here on SIGINT and SIGTERM are noted instead of ending the program; a second one ends it at
// once.
void catch_interrupts();
int interrupt_signal();  // the signal that came, or 0
void clear_interrupt();
void throw_if_interrupted();
// Waits until `file` can be read (or has ended); false: a signal came, before or while waiting.
bool wait_for_input(int file);

// ---- standard streams

// Writes all of `text`, at once. Throws ClosedOutput if the reader has gone, Error for anything
// else (a full disk).
void write_stdout(std::string_view text);
void write_stderr(std::string_view text);  // never throws
bool stdin_is_terminal();

// A line on stderr that says how far a long task is; silent unless stderr is a terminal.
class Progress {
 public:
  Progress(const char* label, uint64_t total);
  ~Progress();  // clears the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void update(uint64_t done);

 private:
  std::string label_;
  uint64_t total_;
  double started_, last_;
  bool visible_, drawn_ = false;
};

double now_seconds();                      // of a clock that never jumps
std::string format_bytes(uint64_t bytes);  // "3.1 MB"
std::string format_count(uint64_t count);  // "129.1 M"
uint64_t peak_resident_bytes();            // 0 where the system does not say
// The value below which a share of `sorted` lies (nearest rank); the middle one, or the mean of the
// two in the middle. Neither may be empty.
double percentile(const std::vector<double>& sorted, double share);
double median(std::vector<double> values);
int default_threads();  // physical cores that this process may use

// ---- files

std::string read_file(const std::string& path);  // "-" is stdin
std::string file_label(std::string_view path);   // 'path', or "standard input" for "-"

// A file that appears under its name only when it is complete: written beside it, synced and
// renamed by commit(). A path that names something other than a regular file (/dev/null, a pipe) is
// written directly, "-" is stdout.
class OutputFile {
 public:
  explicit OutputFile(std::string path);
  ~OutputFile();  // without commit(): removes what was written
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  void write(const void* data, size_t bytes);
  void commit();

 private:
  [[noreturn]] void fail(const char* what, int error) const;
  std::string path_, temporary_;
  int file_ = -1;
};

// Throws what writing `path` would, before hours of work, and Error where it is one of `others`.
void check_output(const std::string& path, const std::vector<std::string>& others);

// numpy's .npy. Reads versions 1.0 to 3.0, C order only; writes 1.0.
struct NpyArray {
  std::string dtype;  // as in the header: "<f4", "<i8", "|u1"
  std::vector<uint64_t> shape;
  std::string data;
};
NpyArray read_npy(const std::string& path);
std::vector<int64_t> read_npy_ids(const std::string& path);  // integers of any width, one dimension
std::string npy_header(const char* dtype, const std::vector<uint64_t>& shape);

// ---- text

bool is_utf8(std::string_view text);
// Ids written as "1,2,3", "1 2 3" or "[1, 2, 3]". `where` names the text in the error.
std::vector<int64_t> parse_ids(std::string_view text, const std::string& where);

// Finds the first of several strings in a text that arrives in pieces, and holds back what may turn
// out to be the beginning of one. The string that is complete first wins, however the text is cut;
// of those that end together, the longest. Pieces and strings are whole UTF-8, so what is let
// through is too.
class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> stops) : stops_(std::move(stops)) {}
  std::string add(
      std::string_view piece);  // what may be shown now; nothing after a stop string was found
  std::string finish();         // what was held back, when the text has ended without one
  bool stopped() const { return stopped_; }
  const std::string& found() const { return found_; }  // the stop string
  void reset();                                        // for the next text

 private:
  std::vector<std::string> stops_;
  std::string held_, found_;
  bool stopped_ = false;
};

// ---- options (CLI11)

// Parses; false: --help or --version was asked for and has been printed. Throws UsageError.
bool parse_options(CLI::App& app, int argc, char** argv);
// Options whose values are checked: a whole decimal number or a finite real one, within [min, max].
CLI::Option* add_integer(CLI::App& app, const char* names, int64_t& value, int64_t min, int64_t max,
                         const char* help);
CLI::Option* add_real(CLI::App& app, const char* names, double& value, double min, double max,
                      const char* help);

constexpr int64_t kDefaultChunk = 256;  // the engine's

struct EngineOptions {
  std::string model;
  std::string isa;  // empty: MAMBA_EDGE_ISA from the environment, else the best that the CPU runs
  int64_t threads = 0;  // 0: default_threads()
  int64_t chunk = 0;    // 0: the engine's default
  int64_t batch = 0;    // texts that a session can step together
  std::string state = "fp32";
  bool same_bits = false;
};
// One of the types that mamba-quantize packs weights in; `flag` is for the UsageError.
WeightType parse_weight_type(const std::string& flag, const std::string& value);
std::string matrix_types();                     // those types: "int8, int6, ..."
const std::vector<std::string>& state_types();  // "fp32", "fp16", "int8"
// One of those; anything else is a UsageError.
mamba_edge_state_type parse_state_type(const std::string& name);
void add_engine_options(CLI::App& app, EngineOptions& options);  // -m and those that follow
// -t, --chunk, --state, --same-bits, --isa. What `options` holds is the default.
void add_compute_options(CLI::App& app, EngineOptions& options);

// ---- the C API

class Model {
 public:
  explicit Model(const EngineOptions& options);
  mamba_edge_model* get() const { return model_.get(); }
  const mamba_edge_model_info& info() const { return info_; }
  const std::string& path() const { return path_; }

  void require_tokenizer(
      const char* instead) const;  // `instead`: what works without one, for the message
  int32_t start_token() const;     // the token before a text's first
  std::vector<int32_t> tokenize(std::string_view text, unsigned flags) const;
  // Refuses ids outside the vocabulary; `what` names them: "prompt token".
  std::vector<int32_t> check_ids(const std::vector<int64_t>& ids, const char* what) const;

 private:
  struct Close {
    void operator()(mamba_edge_model* model) const { mamba_edge_model_close(model); }
  };
  std::string path_;
  std::unique_ptr<mamba_edge_model, Close> model_;
  mamba_edge_model_info info_ = {};
};

class Session {
 public:
  Session(const Model& model, const EngineOptions& options);
  mamba_edge_session* get() const { return session_.get(); }
  size_t bytes() const { return bytes_; }  // of its arena
  int n_threads() const { return n_threads_; }
  size_t chunk() const {
    return chunk_;
  }  // tokens that prefill takes through the weights at a time
  void reset() { mamba_edge_session_reset(session_.get()); }
  // `all_logits`: NULL or float [n, n_vocab].
  void prefill(const int32_t* tokens, size_t n, float* all_logits);
  void step(int32_t token);
  // One token for each of several sessions of the model, by this one's threads; at most `batch`.
  void step_batch(const std::vector<Session*>& sessions, const std::vector<int32_t>& tokens);
  void copy_state(const Session& from);
  float* logits() { return mamba_edge_logits(session_.get()); }  // float [n_vocab]

 private:
  struct Destroy {
    void operator()(mamba_edge_session* session) const { mamba_edge_session_destroy(session); }
  };
  std::unique_ptr<mamba_edge_session, Destroy> session_;
  size_t bytes_ = 0, chunk_ = 0;
  int n_threads_ = 1;
};

// Ids to text, whole characters only.
class TextDecoder {
 public:
  TextDecoder(const Model& model, unsigned flags);
  std::string_view add(
      int32_t token);         // the text that this token completes; valid until the next call
  std::string_view finish();  // what is left at the end

 private:
  mamba_edge_decoder decoder_;
  std::vector<char> buffer_;
};

}  // namespace mamba_edge::tools
