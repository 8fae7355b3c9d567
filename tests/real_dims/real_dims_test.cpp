// Models of the published sizes, with random weights: they convert, and they generate. Prints what
// that costs.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/tools/programs.h"

namespace mamba_edge::test {
namespace {

// Writes a safetensors file of binary16 tensors, values made as they are written.
class HalfCheckpoint {
 public:
  enum Fill : uint16_t { kRandom = 0, kOne = 0x3C00, kMinusFour = 0xC400 };  // bits of 1.0 and -4.0

  void add(const std::string& name, const std::vector<int64_t>& shape, Fill fill = kRandom) {
    uint64_t n = 1;
    for (const int64_t d : shape) n *= static_cast<uint64_t>(d);
    header_[name] = {
        {"dtype", "F16"}, {"shape", shape}, {"data_offsets", {offset_, offset_ + 2 * n}}};
    offset_ += 2 * n;
    fills_.push_back({n, fill});
    parameters_ += n;
  }

  void write(const std::string& path) const {
    std::ofstream file(path, std::ios::binary);
    const std::string header = header_.dump();
    const uint64_t n = header.size();
    file.write(reinterpret_cast<const char*>(&n), 8);
    file.write(header.data(), static_cast<std::streamsize>(n));
    std::vector<uint16_t> block(1 << 16);
    uint64_t state = 0x9E3779B97F4A7C15u;
    for (const auto& [count, fill] : fills_) {
      for (uint64_t done = 0; done < count; done += block.size()) {
        for (uint16_t& half : block) {
          state = state * 6364136223846793005u + 1442695040888963407u;
          // A sign, and a magnitude of 2^-8 to 2^-5.
          const auto bits = static_cast<uint32_t>(state >> 40);
          half = fill != kRandom ? static_cast<uint16_t>(fill)
                                 : static_cast<uint16_t>((bits & 0x8000) | (0x1C00 + bits % 0xC00));
        }
        const uint64_t now = std::min<uint64_t>(block.size(), count - done);
        file.write(reinterpret_cast<const char*>(block.data()),
                   static_cast<std::streamsize>(2 * now));
      }
    }
    ASSERT_TRUE(file.flush().good()) << path;
  }

  uint64_t parameters() const { return parameters_; }

 private:
  nlohmann::ordered_json header_;
  std::vector<std::pair<uint64_t, Fill>> fills_;
  uint64_t offset_ = 0, parameters_ = 0;
};

// state-spaces/mamba-130m.
HalfCheckpoint mamba_130m(std::string* config) {
  *config = R"({"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {}, "rms_norm": true,
                "residual_in_fp32": true, "fused_add_norm": true, "pad_vocab_size_multiple": 8})";
  HalfCheckpoint c;
  const int64_t d = 768, inner = 2 * d, rank = 48, state = 16;
  c.add("backbone.embedding.weight", {50280, d});
  for (int layer = 0; layer < 24; ++layer) {
    const std::string stem = "backbone.layers." + std::to_string(layer) + ".";
    c.add(stem + "mixer.D", {inner}, HalfCheckpoint::kOne);
    c.add(stem + "mixer.in_proj.weight", {2 * inner, d});
    c.add(stem + "mixer.conv1d.weight", {inner, 1, 4});
    c.add(stem + "mixer.conv1d.bias", {inner});
    c.add(stem + "mixer.x_proj.weight", {rank + 2 * state, inner});
    c.add(stem + "mixer.dt_proj.weight", {inner, rank});
    c.add(stem + "mixer.dt_proj.bias", {inner}, HalfCheckpoint::kMinusFour);
    c.add(stem + "mixer.A_log", {inner, state}, HalfCheckpoint::kOne);
    c.add(stem + "mixer.out_proj.weight", {d, inner});
    c.add(stem + "norm.weight", {d}, HalfCheckpoint::kOne);
  }
  c.add("backbone.norm_f.weight", {d}, HalfCheckpoint::kOne);
  return c;
}

// state-spaces/mamba2-130m.
HalfCheckpoint mamba2_130m(std::string* config) {
  *config = R"({"d_model": 768, "d_intermediate": 0, "n_layer": 24, "vocab_size": 50277,
                "ssm_cfg": {"layer": "Mamba2"}, "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": true,
                "residual_in_fp32": true, "fused_add_norm": true, "pad_vocab_size_multiple": 16,
                "tie_embeddings": true})";
  HalfCheckpoint c;
  const int64_t d = 768, inner = 2 * d, heads = inner / 64, conv = inner + 2 * 128;
  c.add("backbone.embedding.weight", {50288, d});
  for (int layer = 0; layer < 24; ++layer) {
    const std::string stem = "backbone.layers." + std::to_string(layer) + ".";
    c.add(stem + "mixer.dt_bias", {heads}, HalfCheckpoint::kMinusFour);
    c.add(stem + "mixer.A_log", {heads}, HalfCheckpoint::kOne);
    c.add(stem + "mixer.D", {heads}, HalfCheckpoint::kOne);
    c.add(stem + "mixer.in_proj.weight", {inner + conv + heads, d});
    c.add(stem + "mixer.conv1d.weight", {conv, 1, 4});
    c.add(stem + "mixer.conv1d.bias", {conv});
    c.add(stem + "mixer.norm.weight", {inner}, HalfCheckpoint::kOne);
    c.add(stem + "mixer.out_proj.weight", {d, inner});
    c.add(stem + "norm.weight", {d}, HalfCheckpoint::kOne);
  }
  c.add("backbone.norm_f.weight", {d}, HalfCheckpoint::kOne);
  return c;
}

struct Cost {
  double seconds = 0;
  double peak_mb = 0;
  std::string out;
};

// Runs a program to its end, its stdout to a file, and asks the system what it took.
Cost run(const std::vector<std::string>& arguments, const std::string& out) {
  const auto start = std::chrono::steady_clock::now();
  Cost cost;
  const pid_t child = fork();
  if (child == 0) {
    const int file = open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || dup2(file, 1) < 0) _exit(126);
    Invocation invocation;
    invocation.arguments = arguments;
    become(invocation);
  }
  int status = 0;
  rusage usage = {};
  EXPECT_EQ(wait4(child, &status, 0, &usage), child);
  EXPECT_EQ(exit_status(status), 0) << arguments[0];
  cost.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  cost.peak_mb = static_cast<double>(usage.ru_maxrss) / 1024;
  cost.out = read_bytes(out);
  return cost;
}

void converts_and_generates(const char* name, HalfCheckpoint (*make)(std::string*),
                            uint64_t parameters) {
  if (kEmulated) GTEST_SKIP() << "130 million parameters take minutes under an emulator";
  if (kSanitized)
    GTEST_SKIP() << "130 million parameters take minutes under sanitizers, and memory is theirs";
  const TemporaryFolder folder;
  std::string config;
  const HalfCheckpoint checkpoint = make(&config);
  EXPECT_EQ(checkpoint.parameters(), parameters);
  fs::create_directory(folder / "checkpoint");
  write_bytes(folder / "checkpoint/config.json", config);
  checkpoint.write(folder / "checkpoint/model.safetensors");
  if (testing::Test::HasFatalFailure()) return;

  const std::string model = folder / "model.mamba";
  const Cost convert = run({"mamba-quantize", folder / "checkpoint", "-o", model, "--type", "int8"},
                           folder / "report");
  const uint64_t bytes = fs::file_size(model);
  const Cost generate = run({"mamba-generate", "-m", model, "--tokens", "1,2,3", "-n", "16",
                             "--greedy", "--ignore-eos", "--json", "-t", "2"},
                            folder / "ids");
  const Json report = Json::parse(generate.out);
  std::printf(
      "%s: %.1f million parameters, %.1f MB in binary16\n"
      "  conversion to int8: %.1f s, peak memory %.0f MiB, file %.1f MB\n"
      "  generation: %.1f tokens/s, peak memory %.0f MiB, %.2f s from start to end\n",
      name, static_cast<double>(parameters) / 1e6, static_cast<double>(parameters) / 5e5,
      convert.seconds, convert.peak_mb, static_cast<double>(bytes) / 1e6,
      report.at("timings").at("decode_tokens_per_second").get<double>(), generate.peak_mb,
      generate.seconds);
  EXPECT_EQ(report.at("tokens").size(), 16u);
  for (const Json& token : report.at("tokens")) {
    EXPECT_GE(token.get<int>(), 0);
    EXPECT_LT(token.get<int>(), 50277);  // never a row of padding
  }

  // One byte and 2/64 of a scale for a weight, the small tensors in float32 on top (6 % at most);
  // incompressible nearly.
  EXPECT_LT(static_cast<double>(bytes), 1.12 * static_cast<double>(parameters));
  EXPECT_GT(static_cast<double>(bytes), 0.5 * static_cast<double>(parameters));
  // Converting holds panels, not the checkpoint (260 MB); running holds the packed weights and
  // little else.
  EXPECT_LT(convert.peak_mb, 150);
  EXPECT_LT(generate.peak_mb, 1.12 * static_cast<double>(parameters) / (1 << 20) + 40);
}

TEST(RealDimensions, Mamba130m) { converts_and_generates("mamba-130m", mamba_130m, 129135360); }

TEST(RealDimensions, Mamba2130m) { converts_and_generates("mamba2-130m", mamba2_130m, 128989632); }

}  // namespace
}  // namespace mamba_edge::test
