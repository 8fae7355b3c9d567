// Runs the programs as a user's shell would, and converts the models that the tests need.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "tests/build_kind.h"

namespace mamba_edge::test {

using Json = nlohmann::json;
namespace fs = std::filesystem;

struct Result {
  int status = -1;  // exit status; 1000 + number for a signal
  std::string out, err;
};

struct Invocation {
  std::vector<std::string> arguments;  // the program first, by name
  std::string input;
  std::map<std::string, std::string> environment;
  std::string stdout_path;          // a file instead of a pipe
  bool close_stdout_early = false;  // after the first bytes
  std::function<void(const std::string& out, pid_t process)>
      on_output;  // after every read of stdout
};

inline std::vector<std::string> command(const std::vector<std::string>& arguments) {
  std::vector<std::string> words;
  std::istringstream emulator(MAMBA_EDGE_EMULATOR);
  for (std::string word; emulator >> word;) words.push_back(word);
  words.push_back(std::string(MAMBA_EDGE_TOOLS_DIR) + "/" + arguments.at(0));
  words.insert(words.end(), arguments.begin() + 1, arguments.end());
  return words;
}

[[noreturn]] inline void become(const Invocation& run) {
  for (const auto& [key, value] : run.environment) setenv(key.c_str(), value.c_str(), 1);
  std::vector<std::string> words = command(run.arguments);
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  execvp(pointers[0], pointers.data());
  _exit(127);
}

inline int exit_status(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

inline Result execute(const Invocation& run) {
  int in[2], out[2], err[2];
  if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0)
    std::abort();
  const pid_t process = fork();
  if (process == 0) {
    dup2(in[0], 0);
    dup2(out[1], 1);
    dup2(err[1], 2);
    if (!run.stdout_path.empty()) dup2(open(run.stdout_path.c_str(), O_WRONLY), 1);
    std::signal(SIGPIPE, SIG_DFL);
    std::signal(SIGINT, SIG_DFL);
    become(run);
  }
  close(in[0]);
  close(out[1]);
  close(err[1]);
  std::signal(SIGPIPE, SIG_IGN);
  Result result;
  size_t written = 0;
  int input = in[1], output = out[0], errors = err[0];
  fcntl(input, F_SETFL, O_NONBLOCK);
  while (output >= 0 || errors >= 0) {
    if (input >= 0 && written == run.input.size()) {
      close(input);
      input = -1;
    }
    pollfd files[3] = {{input, POLLOUT, 0}, {output, POLLIN, 0}, {errors, POLLIN, 0}};
    if (poll(files, 3, 300'000) <= 0) {
      ADD_FAILURE() << run.arguments[0] << " was silent for five minutes";
      kill(process, SIGKILL);
      break;
    }
    if (input >= 0 && files[0].revents != 0) {
      const ssize_t n = write(input, run.input.data() + written, run.input.size() - written);
      written = n >= 0            ? written + static_cast<size_t>(n)
                : errno == EAGAIN ? written
                                  : run.input.size();
    }
    const auto drain = [&](int& file, short events, std::string& text) {
      if (file < 0 || events == 0) return false;
      char bytes[1 << 16];
      const ssize_t n = read(file, bytes, sizeof bytes);
      if (n > 0) {
        text.append(bytes, static_cast<size_t>(n));
        return true;
      }
      close(file);
      file = -1;
      return false;
    };
    if (drain(output, files[1].revents, result.out)) {
      if (run.on_output) run.on_output(result.out, process);
      if (run.close_stdout_early) {
        close(output);
        output = -1;
      }
    }
    drain(errors, files[2].revents, result.err);
  }
  for (int file : {input, output, errors}) {
    if (file >= 0) close(file);
  }
  int status = 0;
  waitpid(process, &status, 0);
  result.status = exit_status(status);
  return result;
}

inline Result execute(std::vector<std::string> arguments, std::string input = {}) {
  Invocation run;
  run.arguments = std::move(arguments);
  run.input = std::move(input);
  return execute(run);
}

// A fresh folder that is removed at the end of the test.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string path = ::testing::TempDir() + "mamba-edge-XXXXXX";
    if (mkdtemp(path.data()) == nullptr) std::abort();
    path_ = path;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  size_t files() const {
    return static_cast<size_t>(
        std::distance(fs::directory_iterator(path_), fs::directory_iterator()));
  }

 private:
  fs::path path_;
};

inline std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_bytes(const std::string& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

// Ids as "1,2,3".
template <typename Ids>
std::string comma_separated(const Ids& ids) {
  std::string text;
  for (const auto& id : ids) {
    if (!text.empty()) text += ',';
    text += Json(id).dump();
  }
  return text;
}

inline std::string source(const std::string& path) {
  return std::string(MAMBA_EDGE_SOURCE_DIR) + "/" + path;
}

// Converts the checkpoint in `input` and returns the model file, made once per build: every test is
// a process of its own, so the files are kept beside the programs, under the converter's time
// stamp, and a lock keeps two tests from making the same one.
inline std::string converted(const std::string& input, const std::string& name,
                             const std::vector<std::string>& options) {
  struct stat converter = {};
  const std::string program = std::string(MAMBA_EDGE_TOOLS_DIR) + "/mamba-quantize";
  if (stat(program.c_str(), &converter) != 0) ADD_FAILURE() << program << " is missing";
  const fs::path folder = fs::path(MAMBA_EDGE_TOOLS_DIR).parent_path() / "test-models";
  fs::create_directories(folder);
  const std::string path = (folder / (name + "-" + std::to_string(converter.st_mtim.tv_sec) + "." +
                                      std::to_string(converter.st_mtim.tv_nsec) + ".mamba"))
                               .string();
  const int lock = open((folder / (name + ".lock")).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  flock(lock, LOCK_EX);
  if (!fs::exists(path)) {
    for (const auto& old : fs::directory_iterator(folder)) {
      const std::string file = old.path().filename().string();
      if (file.starts_with(name + "-") && file.ends_with(".mamba")) fs::remove(old.path());
    }
    std::vector<std::string> arguments = {"mamba-quantize", input, "-o", path};
    arguments.insert(arguments.end(), options.begin(), options.end());
    const Result result = execute(arguments);
    EXPECT_EQ(result.status, 0) << result.err;
  }
  close(lock);
  return path;
}

// "mamba1-tiny" or "mamba2-tiny" in float32.
inline std::string tiny(const std::string& name) {
  return converted(source("models/" + name), name + "_fp32", {"--type", "fp32"});
}

// The first of them without a tokenizer.
inline std::string without_tokenizer() {
  const TemporaryFolder folder;
  for (const char* file : {"config.json", "model.safetensors"}) {
    fs::copy_file(source(std::string("models/mamba1-tiny/") + file), folder / file);
  }
  return converted(folder / "", "mamba1-tiny_no-tokenizer", {"--type", "fp32"});
}

}  // namespace mamba_edge::test
