// Opening a model file: mamba1-tiny, compressed and stored raw, and the file that the environment
// variable MAMBA_EDGE_BENCH_MODEL names, if it does.
//
//   MAMBA_EDGE_BENCH_MODEL=370m.mamba load_bench
//
// The file is in the page cache, as after a first run; bytes per second count the weights as they
// lie in memory. Of a stored file only tables and tokenizer are read: the weights are mapped.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>

#include "convert/pipeline.h"
#include "engine/model.h"

namespace mamba_edge {
namespace {

namespace fs = std::filesystem;

// A file made by the converter when it is first asked for, and removed at the end.
class Converted {
 public:
  explicit Converted(bool store) : store_(store) {}
  ~Converted() {
    std::error_code ignored;
    if (!folder_.empty()) fs::remove_all(folder_, ignored);
  }
  Converted(const Converted&) = delete;
  Converted& operator=(const Converted&) = delete;

  std::string path() {
    const fs::path file = "model.mamba";
    if (folder_.empty()) {
      std::string name = (fs::temp_directory_path() / "load_bench-XXXXXX").string();
      if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot make " + name);
      folder_ = name;
      convert::Options options;
      options.input = MAMBA_EDGE_SOURCE_DIR "/models/mamba1-tiny";
      options.output = folder_ / file;
      options.store = store_;
      convert::convert_checkpoint(options);
    }
    return (folder_ / file).string();
  }

 private:
  bool store_;
  fs::path folder_;
};

void load(benchmark::State& state, const std::string& path, int threads) {
  ModelOptions options;
  options.n_threads = threads;
  uint64_t bytes = 0;
  for (auto _ : state) {
    Model model;
    const Status status = load_model(path.c_str(), options, &model);
    if (!status.ok()) {
      state.SkipWithError(status.message());
      return;
    }
    bytes = model.weight_bytes;
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * static_cast<int64_t>(bytes));
  state.counters["file_bytes"] = static_cast<double>(fs::file_size(path));
}

void load_tiny(benchmark::State& state, Converted* file, int threads) {
  load(state, file->path(), threads);
}

Converted compressed(false), stored(true);

const bool registered = [] {
  const char* path = std::getenv("MAMBA_EDGE_BENCH_MODEL");
  for (const int threads : {1, 2}) {
    const std::string end = "/threads:" + std::to_string(threads);
    const auto add = [&](const std::string& name, auto* function, auto argument) {
      benchmark::RegisterBenchmark((name + end).c_str(), function, argument, threads)
          ->Unit(benchmark::kMicrosecond)
          ->UseRealTime();
    };
    add("load/mamba1-tiny/compressed", load_tiny, &compressed);
    add("load/mamba1-tiny/stored", load_tiny, &stored);
    if (path != nullptr && *path != '\0') {
      add("load/" + fs::path(path).filename().string(), load, std::string(path));
    }
  }
  return true;
}();

}  // namespace
}  // namespace mamba_edge
