#include "tools/common.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include "convert/output_file.h"

namespace mamba_edge::tools {

static_assert(std::endian::native == std::endian::little,
              "npy files are written as the machine has them");

namespace {

const char* g_program = "mamba-edge";
volatile std::sig_atomic_t g_signal = 0;

void note_signal(int number) {
  if (g_signal != 0) _exit(128 + number);  // asked twice
  g_signal = number;
}

std::string error_text(int error) { return std::strerror(error); }

// Returns 0 or the errno.
int write_all(int file, const char* data, size_t bytes) {
  while (bytes > 0) {
    const ssize_t n = ::write(file, data, std::min<size_t>(bytes, 1u << 30));
    if (n < 0) {
      if (errno == EINTR) continue;
      return errno;
    }
    data += n;
    bytes -= static_cast<size_t>(n);
  }
  return 0;
}

void print_message(const char* kind, const std::string& message) {
  write_stderr(std::string(g_program) + ": " + kind + ": " + message + "\n");
}

}  // namespace

// ---- errors and exit statuses

int run_program(const char* name, int (*body)(int argc, char** argv), int argc, char** argv) {
  g_program = name;
  // A closed standard descriptor would be given to the next file that is opened. Read-only, so that
  // results for a closed stdout are still an error.
  for (int file = 0; file <= 2; ++file) {
    if (fcntl(file, F_GETFD) == -1 && errno == EBADF && open("/dev/null", O_RDONLY) != file)
      return kExitFailure;
  }
  std::signal(SIGPIPE, SIG_IGN);  // write() reports it instead
  try {
    return body(argc, argv);
  } catch (const UsageError& error) {
    print_message("error", error.what());
    write_stderr("Run with --help for the options.\n");
    return kExitUsage;
  } catch (const ClosedOutput&) {
    return kExitClosedOutput;
  } catch (const Interrupted&) {
    return 128 + interrupt_signal();
  } catch (const std::bad_alloc&) {
    print_message("error", "out of memory");
  } catch (const std::exception& error) {
    print_message("error", error.what());
  }
  return kExitFailure;
}

void warn(const std::string& message) { print_message("warning", message); }

void check(mamba_edge_status status, const mamba_edge_error& error) {
  if (status == MAMBA_EDGE_OK) return;
  throw Error(error.message[0] != '\0' ? error.message : mamba_edge_status_name(status));
}

// ---- signals

void catch_interrupts() {
  struct sigaction action = {};
  action.sa_handler = note_signal;  // no SA_RESTART: a read from the terminal returns
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

int interrupt_signal() { return g_signal; }
void clear_interrupt() { g_signal = 0; }
void throw_if_interrupted() {
  if (g_signal != 0) throw Interrupted();
}

bool wait_for_input(int file) {
  // Between a look at the flag and a blocking read a signal would be noted, and the read would wait all the same.
  // So the signals are held back while we look, and ppoll lets them in.
  sigset_t held, usual;
  sigemptyset(&held);
  sigaddset(&held, SIGINT);
  sigaddset(&held, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &held, &usual);
  pollfd waiting = {file, POLLIN, 0};
  while (g_signal == 0 && ppoll(&waiting, 1, nullptr, &usual) < 0 && errno == EINTR) {
  }
  pthread_sigmask(SIG_SETMASK, &usual, nullptr);
  return g_signal == 0;
}

// ---- standard streams

void write_stdout(std::string_view text) {
  const int error = write_all(STDOUT_FILENO, text.data(), text.size());
  if (error == EPIPE) throw ClosedOutput();
  if (error != 0) throw Error("cannot write to standard output: " + error_text(error));
}

void write_stderr(std::string_view text) {
  (void)write_all(STDERR_FILENO, text.data(), text.size());
}

bool stdin_is_terminal() { return isatty(STDIN_FILENO) == 1; }

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Progress::Progress(const char* label, uint64_t total)
    : label_(label),
      total_(total),
      started_(now_seconds()),
      last_(started_),
      visible_(isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (drawn_) write_stderr("\r\033[K");
}

void Progress::update(uint64_t done) {
  if (!visible_ || total_ == 0) return;
  const double now = now_seconds();
  if (now - last_ < 0.1) return;  // also keeps short tasks from flickering
  last_ = now;
  drawn_ = true;
  constexpr size_t kWidth = 30;
  const double part = static_cast<double>(done) / static_cast<double>(total_);
  const size_t full = static_cast<size_t>(part * kWidth);
  char tail[96];
  const double left = done > 0 ? (now - started_) * (1 / part - 1) : 0;
  std::snprintf(tail, sizeof tail, "] %3.0f %%  %.0f s left", part * 100, left);
  write_stderr("\r\033[K" + label_ + " [" + std::string(full, '#') +
               std::string(kWidth - full, ' ') + tail);
}

namespace {
std::string with_prefix(uint64_t number, const char* unit) {
  static constexpr std::array<const char*, 5> kPrefixes = {"", "k", "M", "G", "T"};
  double value = static_cast<double>(number);
  size_t prefix = 0;
  while (value >= 999.95 && prefix + 1 < kPrefixes.size()) value /= 1000, ++prefix;
  char text[48];
  std::snprintf(text, sizeof text, prefix == 0 ? "%.0f %s%s" : "%.1f %s%s", value,
                kPrefixes[prefix], unit);
  std::string result = text;
  while (!result.empty() && result.back() == ' ') result.pop_back();
  return result;
}
}  // namespace

double percentile(const std::vector<double>& sorted, double share) {
  const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::clamp<size_t>(rank, 1, sorted.size()) - 1];
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
}

std::string format_bytes(uint64_t bytes) { return with_prefix(bytes, "B"); }
std::string format_count(uint64_t count) { return with_prefix(count, ""); }

uint64_t peak_resident_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    unsigned long long kilobytes = 0;
    if (std::sscanf(line.c_str(), "VmHWM: %llu kB", &kilobytes) == 1) return kilobytes * 1024;
  }
  return 0;
}

int default_threads() {
  int threads = static_cast<int>(std::thread::hardware_concurrency());
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    // CPUs that share a core have the same list of siblings.
    std::set<std::string> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &allowed)) continue;
      std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                         "/topology/thread_siblings_list");
      std::string siblings;
      if (!std::getline(file, siblings) || siblings.empty()) siblings = "cpu" + std::to_string(cpu);
      cores.insert(siblings);
    }
    if (!cores.empty()) threads = static_cast<int>(cores.size());
  }
  std::ifstream quota_file(
      "/sys/fs/cgroup/cpu.max");  // "max 100000" or "150000 100000": a container's share
  double quota = 0, period = 0;
  if (quota_file >> quota >> period && quota > 0 && period > 0) {
    threads = std::min(threads, static_cast<int>(std::ceil(std::min(quota / period, 4096.0))));
  }
  return std::clamp(threads, 1, 64);
}

// ---- files

std::string file_label(std::string_view path) {
  return path == "-" ? std::string("standard input") : "'" + std::string(path) + "'";
}

std::string read_file(const std::string& path) {
  const bool standard = path == "-";
  const int file = standard ? STDIN_FILENO : open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw Error("cannot open " + file_label(path) + ": " + error_text(errno));
  std::string text;
  int error = 0;
  struct stat status = {};
  if (fstat(file, &status) == 0 && S_ISREG(status.st_mode) && status.st_size > 0) {
    text.reserve(static_cast<size_t>(status.st_size) + 1);
  }
  std::vector<char> buffer(1u << 16);
  while (wait_for_input(file)) {
    const ssize_t n = ::read(file, buffer.data(), buffer.size());
    if (n == 0) break;
    if (n < 0) {
      if (errno == EINTR) continue;
      error = errno;
      break;
    }
    text.append(buffer.data(), static_cast<size_t>(n));
  }
  if (!standard) close(file);
  throw_if_interrupted();
  if (error != 0) throw Error("cannot read " + file_label(path) + ": " + error_text(error));
  return text;
}

OutputFile::OutputFile(std::string path) : path_(std::move(path)) {
  if (path_ == "-") {
    file_ = STDOUT_FILENO;
    return;
  }
  struct stat status = {};
  if (stat(path_.c_str(), &status) == 0) {
    if (!S_ISREG(status.st_mode)) {
      file_ = open(path_.c_str(), O_WRONLY | O_CLOEXEC);
      if (file_ < 0) fail("open", errno);
      return;
    }
  }
  std::error_code error;
  path_ = convert::follow_links(path_, error).string();
  if (error) fail("create", error.value());
  const std::string temporary = path_ + ".tmp-" + std::to_string(getpid());
  file_ = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (file_ < 0) fail("create", errno);
  temporary_ = temporary;
}

OutputFile::~OutputFile() {
  if (file_ > STDERR_FILENO) close(file_);
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

void OutputFile::fail(const char* what, int error) const {
  const std::string name = path_ == "-" ? "standard output" : "'" + path_ + "'";
  throw Error(std::string("cannot ") + what + " " + name + ": " + error_text(error));
}

void OutputFile::write(const void* data, size_t bytes) {
  const int error = write_all(file_, static_cast<const char*>(data), bytes);
  if (error == EPIPE) throw ClosedOutput();
  if (error != 0) fail("write", error);
}

void OutputFile::commit() {
  if (file_ == STDOUT_FILENO) return;
  if (!temporary_.empty() && fsync(file_) != 0) fail("write", errno);
  const int file = file_;
  file_ = -1;
  if (close(file) != 0) fail("write", errno);
  if (temporary_.empty()) return;
  if (rename(temporary_.c_str(), path_.c_str()) != 0) fail("rename the finished file to", errno);
  temporary_.clear();
}

void check_output(const std::string& path, const std::vector<std::string>& others) {
  std::error_code ignored;
  for (const std::string& other : others) {
    if (path == "-" && other == "-") throw Error("cannot write two files to standard output");
    if (path == other || std::filesystem::equivalent(path, other, ignored)) {
      throw Error("cannot write '" + path + "': it is also " + file_label(other));
    }
  }
  const std::filesystem::file_status status = std::filesystem::status(path, ignored);
  if (std::filesystem::is_directory(status)) {
    throw Error("cannot write '" + path + "': it is a folder");
  }
  // A pipe's reader would notice.
  if (path != "-" &&
      (!std::filesystem::exists(status) || std::filesystem::is_regular_file(status))) {
    const OutputFile probe(path);
  }
}

// ---- npy

namespace {

constexpr char kNpyMagic[] = "\x93NUMPY";
constexpr size_t kNpyMagicBytes = 6;

// The header is a Python dict literal with three keys; this reads such a dict and nothing more.
class NpyHeader {
 public:
  NpyHeader(std::string_view text, const std::string& path) : text_(text), path_(path) {}

  void parse(NpyArray& array) {
    bool has_descr = false, has_order = false, has_shape = false;
    expect('{');
    while (!accept('}')) {
      const std::string key = string();
      expect(':');
      if (key == "descr" && !has_descr) {
        has_descr = true;
        if (peek() == '[') fail("it holds records; a plain array was expected");
        array.dtype = string();
      } else if (key == "fortran_order" && !has_order) {
        has_order = true;
        if (word() != "False")
          fail("it is in Fortran order; C order was expected (numpy.ascontiguousarray)");
      } else if (key == "shape" && !has_shape) {
        has_shape = true;
        expect('(');
        while (!accept(')')) {
          array.shape.push_back(number());
          if (array.shape.size() > 32) fail("its shape has more than 32 dimensions");
          if (peek() != ')') expect(',');
        }
      } else {
        fail("its header has the unexpected or repeated key '" + key + "'");
      }
      if (peek() != '}') expect(',');
    }
    skip();
    if (at_ != text_.size()) fail("its header does not end after the dict");
    if (!has_descr || !has_order || !has_shape)
      fail("its header lacks descr, fortran_order or shape");
  }

 private:
  [[noreturn]] void fail(const std::string& why) const {
    throw Error(file_label(path_) + " is not an array that can be read: " + why);
  }
  void skip() {
    while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_]) != nullptr &&
           text_[at_] != '\0')
      ++at_;
  }
  char peek() {
    skip();
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool accept(char c) {
    if (peek() != c || at_ >= text_.size()) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!accept(c))
      fail(std::string("its header is not the dict that numpy writes ('") + c + "' was expected)");
  }
  std::string string() {
    const char quote = peek() == '"' ? '"' : '\'';
    expect(quote);
    const size_t end = text_.find(quote, at_);
    if (end == std::string_view::npos) fail("its header has an unfinished string");
    std::string result(text_.substr(at_, end - at_));
    at_ = end + 1;
    return result;
  }
  std::string word() {
    skip();
    const size_t begin = at_;
    while (at_ < text_.size() && std::isalpha(static_cast<unsigned char>(text_[at_])) != 0) ++at_;
    return std::string(text_.substr(begin, at_ - begin));
  }
  uint64_t number() {
    skip();
    uint64_t value = 0;
    const auto [end, error] =
        std::from_chars(text_.data() + at_, text_.data() + text_.size(), value);
    if (error != std::errc()) fail("its header has a shape that is not made of whole numbers");
    at_ = static_cast<size_t>(end - text_.data());
    return value;
  }

  std::string_view text_;
  const std::string& path_;
  size_t at_ = 0;
};

// Bytes of one element, 0 if the dtype is none of byte order, kind and size.
uint64_t element_bytes(const std::string& dtype) {
  if (dtype.size() < 3 || std::strchr("<>|=", dtype[0]) == nullptr) return 0;
  if (std::strchr("iufcb", dtype[1]) == nullptr) return 0;
  const std::string size = dtype.substr(2);
  for (const char* known : {"1", "2", "4", "8", "16"}) {
    if (size == known) return static_cast<uint64_t>(std::atoi(known));
  }
  return 0;
}

}  // namespace

NpyArray read_npy(const std::string& path) {
  std::string bytes = read_file(path);
  const std::string not_npy = file_label(path) + " is not a .npy file: ";
  if (bytes.size() < kNpyMagicBytes + 4 ||
      std::memcmp(bytes.data(), kNpyMagic, kNpyMagicBytes) != 0) {
    throw Error(not_npy + "it does not start with \\x93NUMPY");
  }
  const auto byte = [&](size_t at) {
    return static_cast<size_t>(static_cast<unsigned char>(bytes[at]));
  };
  const size_t version = byte(6);
  if (version < 1 || version > 3) {
    throw Error(file_label(path) + " is a .npy file of version " + std::to_string(version) +
                "; 1 to 3 were expected");
  }
  const size_t begin = version == 1 ? 10 : 12;
  if (bytes.size() < begin) throw Error(not_npy + "it ends within its header");
  size_t header_bytes = byte(8) | byte(9) << 8;
  if (version > 1) header_bytes |= byte(10) << 16 | byte(11) << 24;
  if (header_bytes > bytes.size() - begin) throw Error(not_npy + "it ends within its header");

  NpyArray array;
  NpyHeader(std::string_view(bytes).substr(begin, header_bytes), path).parse(array);
  const uint64_t element = element_bytes(array.dtype);
  if (element == 0)
    throw Error(file_label(path) + " has elements of the unknown type '" + array.dtype + "'");
  const uint64_t have = bytes.size() - begin - header_bytes;
  uint64_t need = element;
  bool empty = false, too_large = false;
  for (const uint64_t n : array.shape) {
    empty = empty || n == 0;
    too_large = too_large || __builtin_mul_overflow(need, std::max<uint64_t>(n, 1), &need);
  }
  if (empty) need = 0, too_large = false;
  if (too_large || need != have) {
    throw Error(file_label(path) + " has " + std::to_string(have) +
                " bytes of data, its header announces " +
                (too_large ? std::string("more than 64 bits can count") : std::to_string(need)));
  }
  bytes.erase(0, begin + header_bytes);
  array.data = std::move(bytes);
  return array;
}

std::vector<int64_t> read_npy_ids(const std::string& path) {
  const NpyArray array = read_npy(path);
  const char kind = array.dtype[1];
  if ((kind != 'i' && kind != 'u') || array.dtype.size() > 3) {
    throw Error(file_label(path) + " has elements of type '" + array.dtype +
                "'; token ids are integers ('<i4')");
  }
  if (array.shape.size() != 1 && !(array.shape.size() == 2 && array.shape[0] == 1)) {
    throw Error(file_label(path) + " has " + std::to_string(array.shape.size()) +
                " dimensions; token ids were expected, which have one");
  }
  const size_t width = static_cast<size_t>(element_bytes(array.dtype));
  const bool big_endian = array.dtype[0] == '>';
  std::vector<int64_t> ids(array.data.size() / width);
  for (size_t i = 0; i < ids.size(); ++i) {
    uint64_t value = 0;
    for (size_t k = 0; k < width; ++k) {
      const size_t at = i * width + (big_endian ? k : width - 1 - k);
      value = value << 8 | static_cast<unsigned char>(array.data[at]);
    }
    if (kind == 'i' && width < 8 && (value >> (8 * width - 1)) != 0)
      value -= uint64_t{1} << (8 * width);
    if (kind == 'u' && value > static_cast<uint64_t>(INT64_MAX))
      value = INT64_MAX;  // outside any vocabulary
    ids[i] = static_cast<int64_t>(value);
  }
  return ids;
}

std::string npy_header(const char* dtype, const std::vector<uint64_t>& shape) {
  std::string dict = std::string("{'descr': '") + dtype + "', 'fortran_order': False, 'shape': (";
  for (size_t i = 0; i < shape.size(); ++i)
    dict += (i > 0 ? " " : "") + std::to_string(shape[i]) + ",";
  if (shape.size() > 1) dict.pop_back();
  dict += "), }";
  constexpr size_t kFixed = kNpyMagicBytes + 4;
  const size_t total =
      (kFixed + dict.size() + 1 + 63) / 64 * 64;  // the data start at a multiple of 64
  dict.append(total - kFixed - dict.size() - 1, ' ');
  dict += '\n';
  std::string header(kNpyMagic, kNpyMagicBytes);
  header += '\1';
  header += '\0';
  header += static_cast<char>(dict.size() & 0xFF);
  header += static_cast<char>(dict.size() >> 8);
  return header + dict;
}

// ---- text

bool is_utf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const auto byte = [&](size_t k) {
      return static_cast<unsigned>(static_cast<unsigned char>(text[k]));
    };
    const unsigned lead = byte(i);
    const size_t length = lead < 0x80       ? 1
                          : lead >> 5 == 6  ? 2
                          : lead >> 4 == 14 ? 3
                          : lead >> 3 == 30 ? 4
                                            : 0;
    if (length == 0 || length > text.size() - i) return false;
    unsigned code = length == 1 ? lead : lead & (0x7Fu >> length);
    for (size_t k = 1; k < length; ++k) {
      if (byte(i + k) >> 6 != 2) return false;
      code = code << 6 | (byte(i + k) & 0x3F);
    }
    static constexpr std::array<unsigned, 5> kSmallest = {0, 0, 0x80, 0x800, 0x10000};
    if (code < kSmallest[length] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
      return false;
    i += length;
  }
  return true;
}

std::vector<int64_t> parse_ids(std::string_view text, const std::string& where) {
  size_t at = 0;
  const auto skip = [&] {
    while (at < text.size() && std::isspace(static_cast<unsigned char>(text[at])) != 0) ++at;
  };
  const auto fail = [&](const char* expected) {
    std::string found = at < text.size() ? "'" + std::string(text.substr(at, 20)) + "'" : "the end";
    throw Error(where + ": expected " + expected + ", found " + found);
  };
  std::vector<int64_t> ids;
  skip();
  const bool bracket = at < text.size() && text[at] == '[';
  if (bracket) ++at, skip();
  bool comma = false;
  while (at < text.size() && text[at] != ']') {
    int64_t id = 0;
    const auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), id);
    if (error == std::errc::invalid_argument) fail("a token id");
    if (error == std::errc::result_out_of_range) id = text[at] == '-' ? INT64_MIN : INT64_MAX;
    at = static_cast<size_t>(end - text.data());
    const size_t after = at;
    skip();
    comma = at < text.size() && text[at] == ',';
    if (comma) {
      ++at;
      skip();
    } else if (at == after && at < text.size() && text[at] != ']') {
      at = after;
      fail("a comma or a space after a token id");
    }
    ids.push_back(id);
  }
  if (comma) fail("a token id after the comma");
  if (bracket) {
    if (at >= text.size()) fail("a closing ]");
    ++at;
    skip();
  }
  if (at != text.size()) fail("nothing more");
  return ids;
}

std::string StopFilter::add(std::string_view piece) {
  if (stopped_) return {};
  const size_t seen = held_.size();
  held_ += piece;
  for (size_t end = seen + 1; end <= held_.size(); ++end) {
    const std::string_view text = std::string_view(held_).substr(0, end);
    for (const std::string& stop : stops_) {
      if (text.ends_with(stop) && (!stopped_ || stop.size() > found_.size())) {
        stopped_ = true;
        found_ = stop;
      }
    }
    if (stopped_) {
      std::string shown = held_.substr(0, end - found_.size());
      held_.clear();
      return shown;
    }
  }
  size_t keep = 0;  // the longest end of the text that begins a stop string
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n) {
      if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) keep = n;
    }
  }
  std::string shown = held_.substr(0, held_.size() - keep);
  held_.erase(0, shown.size());
  return shown;
}

std::string StopFilter::finish() {
  std::string shown;
  shown.swap(held_);
  return shown;
}

void StopFilter::reset() {
  held_.clear();
  found_.clear();
  stopped_ = false;
}

// ---- options

bool parse_options(CLI::App& app, int argc, char** argv) {
  app.set_version_flag("--version", std::string(mamba_edge_version()));
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    write_stdout(app.help());
    return false;
  } catch (const CLI::CallForVersion& version) {
    write_stdout(std::string(version.what()) + "\n");
    return false;
  } catch (const CLI::ParseError& error) {
    throw UsageError(error.what());
  }
  return true;
}

CLI::Option* add_integer(CLI::App& app, const char* names, int64_t& value, int64_t min, int64_t max,
                         const char* help) {
  const std::string name = names;
  const auto parse = [&value, min, max, name](const std::string& text) {
    int64_t parsed = 0;
    const char* end = text.data() + text.size();
    const auto result = std::from_chars(text.data(), end, parsed);
    if (result.ec != std::errc() || result.ptr != end || parsed < min || parsed > max) {
      std::string range = "from " + std::to_string(min);
      range = max == INT64_MAX ? range + " up" : range + " to " + std::to_string(max);
      throw CLI::ValidationError(name, "expected a whole number " + range + ", not '" + text + "'");
    }
    value = parsed;
  };
  return app.add_option_function<std::string>(names, parse, help)
      ->type_name("N")
      ->default_str(value < min || value > max ? "" : std::to_string(value));
}

CLI::Option* add_real(CLI::App& app, const char* names, double& value, double min, double max,
                      const char* help) {
  const std::string name = names;
  const auto shown = [](double number) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", number);
    return std::string(text);
  };
  const auto parse = [&value, min, max, name, shown](const std::string& text) {
    double parsed = 0;
    const char* end = text.data() + text.size();
    const auto result = std::from_chars(text.data(), end, parsed);
    if (result.ec != std::errc() || result.ptr != end || !(parsed >= min && parsed <= max)) {
      throw CLI::ValidationError(name, "expected a number from " + shown(min) + " to " +
                                           shown(max) + ", not '" + text + "'");
    }
    value = parsed;
  };
  return app.add_option_function<std::string>(names, parse, help)
      ->type_name("X")
      ->default_str(value < min || value > max ? "" : shown(value));
}

constexpr std::array kMatrixTypes = {WeightType::int8, WeightType::int6, WeightType::int5,
                                     WeightType::int4, WeightType::int3, WeightType::int2,
                                     WeightType::f16,  WeightType::f32};

WeightType parse_weight_type(const std::string& flag, const std::string& value) {
  for (const WeightType type : kMatrixTypes) {
    if (value == type_name(type)) return type;
  }
  throw UsageError(flag + " " + value + ": expected one of " + matrix_types());
}

std::string matrix_types() {
  std::string names;
  for (const WeightType type : kMatrixTypes) {
    names += (names.empty() ? "" : ", ") + std::string(type_name(type));
  }
  return names;
}

const std::vector<std::string>& state_types() {
  static const std::vector<std::string> names = {"fp32", "fp16", "int8"};
  return names;
}

mamba_edge_state_type parse_state_type(const std::string& name) {
  if (name == "fp32") return MAMBA_EDGE_STATE_FP32;
  if (name == "fp16") return MAMBA_EDGE_STATE_FP16;
  if (name == "int8") return MAMBA_EDGE_STATE_INT8;
  throw UsageError("--state: fp32, fp16 or int8 was expected, not '" + name + "'");
}

void add_engine_options(CLI::App& app, EngineOptions& options) {
  app.add_option("-m,--model", options.model, "Model file, as mamba-quantize writes it")
      ->required()
      ->type_name("FILE");
  add_compute_options(app, options);
}

void add_compute_options(CLI::App& app, EngineOptions& options) {
  add_integer(app, "-t,--threads", options.threads, 1, 256,
              "Threads that compute (default: the physical cores)")
      ->default_str("");
  const std::string chunk =
      "Tokens of a prompt that are taken through the weights at a time (default: " +
      std::to_string(options.chunk > 0 ? options.chunk : kDefaultChunk) + ")";
  add_integer(app, "--chunk", options.chunk, 1, 4096, chunk.c_str())->default_str("");
  app.add_option(
         "--state", options.state,
         "Number format of the recurrent state: fp32, fp16, which is half as large, or int8, a "
         "little more than a quarter")
      ->type_name("TYPE")
      ->check(CLI::IsMember(state_types()))
      ->capture_default_str();
  const std::string same_bits = std::string(
                                    "Read prompts with exactly the arithmetic of generation, "
                                    "however they are cut: slower for Mamba-2 on "
                                    "CPUs with AMX, nothing else (default: ") +
                                (options.same_bits ? "on)" : "off)");
  app.add_flag("--same-bits,!--no-same-bits", options.same_bits, same_bits)->default_str("");
  app.add_option("--isa", options.isa,
                 "Kernels to use, as generic or avx2 (default: MAMBA_EDGE_ISA from the "
                 "environment, else the best "
                 "that the CPU runs)")
      ->type_name("NAME");
}

// ---- the C API

Model::Model(const EngineOptions& options) : path_(options.model) {
  struct stat status = {};
  if (stat(path_.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) {
    throw Error(file_label(path_) +
                " is a folder; a model file was expected (mamba-quantize makes one from a "
                "checkpoint's folder)");
  }
  const char* environment = std::getenv("MAMBA_EDGE_ISA");
  std::string isa = options.isa;
  if (isa.empty() && environment != nullptr) isa = environment;
  mamba_edge_model_options model_options = {};
  model_options.isa = isa.empty() ? nullptr : isa.c_str();
  model_options.n_threads =
      options.threads > 0 ? static_cast<int>(options.threads) : default_threads();
  mamba_edge_model* model = nullptr;
  mamba_edge_error error = {};
  const mamba_edge_status result =
      mamba_edge_model_open(path_.c_str(), &model_options, &model, &error);
  if (result == MAMBA_EDGE_INVALID_ARGUMENT && !isa.empty()) {
    throw UsageError(std::string(options.isa.empty() ? "MAMBA_EDGE_ISA: " : "--isa: ") +
                     error.message);
  }
  check(result, error);
  model_.reset(model);
  mamba_edge_model_get_info(model, &info_);
}

void Model::require_tokenizer(const char* instead) const {
  if (info_.has_tokenizer != 0) return;
  throw Error(file_label(path_) + " has no tokenizer, so it cannot take text: " + instead +
              ", or convert the checkpoint again with mamba-quantize --tokenizer tokenizer.json");
}

int32_t Model::start_token() const {
  if (info_.bos_token >= 0) return info_.bos_token;
  if (info_.eos_token >= 0) return info_.eos_token;
  throw Error(file_label(path_) +
              " names no token that starts or ends a text, so nothing can start from it");
}

std::vector<int32_t> Model::tokenize(std::string_view text, unsigned flags) const {
  std::vector<int32_t> ids(text.size() + 16);  // a token rarely stands for less than a byte
  mamba_edge_error error = {};
  size_t n = 0;
  auto status = mamba_edge_tokenize(get(), text.data(), text.size(), flags, ids.data(), ids.size(),
                                    &n, &error);
  if (status == MAMBA_EDGE_TOO_SMALL) {
    ids.resize(n);
    status = mamba_edge_tokenize(get(), text.data(), text.size(), flags, ids.data(), ids.size(), &n,
                                 &error);
  }
  check(status, error);
  ids.resize(n);
  ids.shrink_to_fit();
  return ids;
}

std::vector<int32_t> Model::check_ids(const std::vector<int64_t>& ids, const char* what) const {
  std::vector<int32_t> checked;
  checked.reserve(ids.size());
  for (const int64_t id : ids) {
    if (id < 0 || id >= info_.n_vocab) {
      throw Error(std::string(what) + " " + std::to_string(id) + " (number " +
                  std::to_string(checked.size() + 1) + ") is outside the vocabulary of " +
                  file_label(path_) + ": 0 to " + std::to_string(info_.n_vocab - 1) +
                  " were expected");
    }
    checked.push_back(static_cast<int32_t>(id));
  }
  return checked;
}

Session::Session(const Model& model, const EngineOptions& options) {
  mamba_edge_session_options session_options = {};
  session_options.n_threads =
      options.threads > 0 ? static_cast<int>(options.threads) : default_threads();
  session_options.chunk = static_cast<int>(options.chunk);
  session_options.batch = static_cast<int>(options.batch);
  session_options.state_type = parse_state_type(options.state);
  session_options.same_bits = options.same_bits ? 1 : 0;
  n_threads_ = session_options.n_threads;
  chunk_ = static_cast<size_t>(options.chunk > 0 ? options.chunk : kDefaultChunk);
  mamba_edge_error error = {};
  check(mamba_edge_session_required_bytes(model.get(), &session_options, &bytes_, &error), error);
  mamba_edge_session* session = nullptr;
  check(mamba_edge_session_create(model.get(), &session_options, nullptr, 0, &session, &error),
        error);
  session_.reset(session);
}

void Session::prefill(const int32_t* tokens, size_t n, float* all_logits) {
  mamba_edge_error error = {};
  check(mamba_edge_prefill(get(), tokens, n, all_logits, &error), error);
}

void Session::step(int32_t token) {
  mamba_edge_error error = {};
  check(mamba_edge_step(get(), token, &error), error);
}

void Session::step_batch(const std::vector<Session*>& sessions,
                         const std::vector<int32_t>& tokens) {
  std::vector<mamba_edge_session*> handles;
  for (const Session* session : sessions) handles.push_back(session->get());
  mamba_edge_error error = {};
  check(mamba_edge_step_batch(get(), handles.data(), tokens.data(), handles.size(), &error), error);
}

void Session::copy_state(const Session& from) {
  mamba_edge_error error = {};
  check(mamba_edge_state_copy(get(), from.get(), &error), error);
}

TextDecoder::TextDecoder(const Model& model, unsigned flags)
    : buffer_(mamba_edge_max_piece_bytes(model.get()) + 1) {
  mamba_edge_error error = {};
  check(mamba_edge_decoder_init(&decoder_, model.get(), flags, &error), error);
}

std::string_view TextDecoder::add(int32_t token) {
  mamba_edge_error error = {};
  size_t n = 0;
  check(mamba_edge_decode(&decoder_, token, buffer_.data(), buffer_.size(), &n, &error), error);
  return {buffer_.data(), n};
}

std::string_view TextDecoder::finish() {
  mamba_edge_error error = {};
  size_t n = 0;
  check(mamba_edge_decode_finish(&decoder_, buffer_.data(), buffer_.size(), &n, &error), error);
  return {buffer_.data(), n};
}

}  // namespace mamba_edge::tools
