// Text to ids and back, with the tokenizer of mamba1-tiny and the text that it was not trained on.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <fstream>
#include <iterator>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "convert/tokenizer_json.h"
#include "engine/text/tokenizer.h"

namespace mamba_edge {
namespace {

std::string read(const std::string& name) {
  const std::string path = MAMBA_EDGE_SOURCE_DIR "/models/" + name;
  std::ifstream file(path, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(file), {}};
  if (bytes.empty()) throw std::runtime_error("cannot read " + path);
  return bytes;
}

struct Text {
  std::string text = read("valid.txt");
  std::vector<uint8_t> blob;
  Tokenizer tokenizer;
  std::vector<std::byte> scratch;
  std::vector<int32_t> ids;

  Text() {
    convert::TokenizerFiles files;
    files.tokenizer_json = read("mamba1-tiny/tokenizer.json");
    blob = convert::compile_tokenizer(files);
    if (!Tokenizer::open(blob, &tokenizer).ok()) throw std::runtime_error("tokenizer");
    scratch.resize(tokenizer.scratch_bytes(text.size()));
    ids.resize(text.size() + 1);
    ids.resize(encode(text));
  }

  // Returns how many ids there are.
  size_t encode(std::string_view piece) {
    size_t n = 0;
    const Status status = tokenizer.encode(piece, 0, scratch, ids.data(), ids.size(), &n);
    if (!status.ok()) throw std::runtime_error(status.message());
    return n;
  }
};

Text& text() {
  static Text text;
  return text;
}

void set_speed(benchmark::State& state, size_t bytes, size_t tokens) {
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * static_cast<int64_t>(bytes));
  state.counters["tokens/s"] = benchmark::Counter(static_cast<double>(tokens),
                                                  benchmark::Counter::kIsIterationInvariantRate);
}

void encode(benchmark::State& state) {
  Text& t = text();
  size_t tokens = 0;
  for (auto _ : state) tokens = t.encode(t.text);
  set_speed(state, t.text.size(), tokens);
}
BENCHMARK(encode)->Unit(benchmark::kMillisecond);

// A line at a time, as prompts come.
void encode_lines(benchmark::State& state) {
  Text own;  // encoding a line overwrites the ids
  std::vector<std::string_view> lines;
  for (std::string_view rest = own.text; !rest.empty();) {
    const size_t end = std::min(rest.find('\n'), rest.size() - 1) + 1;
    lines.push_back(rest.substr(0, end));
    rest.remove_prefix(end);
  }
  size_t tokens = 0;
  for (auto _ : state) {
    tokens = 0;
    for (const std::string_view line : lines) tokens += own.encode(line);
  }
  set_speed(state, own.text.size(), tokens);
}
BENCHMARK(encode_lines)->Unit(benchmark::kMillisecond);

void decode(benchmark::State& state) {
  Text& t = text();
  std::vector<char> piece(t.tokenizer.max_piece_bytes());
  std::string decoded;
  decoded.reserve(t.text.size());
  for (auto _ : state) {
    decoded.clear();
    mamba_edge_decoder decoder;
    Status status = t.tokenizer.decoder_init(&decoder, 0);
    size_t n = 0;
    for (const int32_t id : t.ids) {
      if (status.ok()) status = t.tokenizer.decode(&decoder, id, piece.data(), piece.size(), &n);
      decoded.append(piece.data(), n);
    }
    if (status.ok()) status = t.tokenizer.decode_finish(&decoder, piece.data(), piece.size(), &n);
    decoded.append(piece.data(), n);
    if (!status.ok()) state.SkipWithError(status.message());
  }
  if (decoded != t.text) state.SkipWithError("the text did not come back");
  set_speed(state, t.text.size(), t.ids.size());
}
BENCHMARK(decode)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace mamba_edge
