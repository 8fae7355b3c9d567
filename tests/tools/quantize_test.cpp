// mamba-quantize as a user runs it: exit statuses, what goes where, what is left on disk, and how
// much memory it takes.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/convert/no_tmpfile.h"
#include "tests/tools/programs.h"

namespace mamba_edge::test {
namespace {

const std::string kTiny = source("models/mamba1-tiny");
const std::string kSmall = source("tests/data/golden/mamba1-ss-dims");  // tied, without a tokenizer

Result quantize(const std::string& input, const std::string& output,
                std::vector<std::string> options = {}) {
  std::vector<std::string> arguments = {"mamba-quantize", input, "-o", output};
  arguments.insert(arguments.end(), options.begin(), options.end());
  return execute(arguments);
}

#define EXPECT_SAYS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

TEST(Quantize, SummarySaysWhatHappened) {
  const TemporaryFolder folder;
  const Result r = quantize(kSmall, folder / "model.mamba");
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_SAYS(r.out, "model.mamba");
  EXPECT_SAYS(r.out, "bits per weight");
  EXPECT_SAYS(r.out, "in_proj");  // errors by kind of tensor
  EXPECT_SAYS(r.out, "rms error");
  EXPECT_SAYS(r.out, "peak memory");
  EXPECT_SAYS(r.err, "--tokenizer");               // which file to add
  EXPECT_EQ(r.err.find('\r'), std::string::npos);  // no progress bar where there is no terminal
  EXPECT_EQ(folder.files(), 1u);
}

TEST(Quantize, JsonReport) {
  const TemporaryFolder folder;
  const Result r =
      quantize(kSmall, folder / "model.mamba", {"--json", "--type", "int4", "--group-size", "32"});
  ASSERT_EQ(r.status, 0) << r.err;
  const Json report = Json::parse(r.out);  // and nothing else on stdout
  EXPECT_EQ(report.at("output_bytes"), fs::file_size(folder / "model.mamba"));
  EXPECT_EQ(report.at("recipe"), "--type int4 --group-size 32");
  EXPECT_GT(report.at("parameters").get<int64_t>(), 0);
  uint64_t packed = 0;
  int quantised = 0;
  for (const Json& t : report.at("tensors")) {
    packed += t.at("raw_bytes").get<uint64_t>();
    if (t.at("type") != "int4") continue;
    ++quantised;
    // Steps of 1/8 of the largest weight and errors of 1/sqrt(12) of that; normal weights have a
    // peak of 2 to 3 of their root mean square in groups of 32: 7 to 11 %, less what the search for
    // the step finds.
    EXPECT_GT(t.at("relative_rms_error").get<double>(), 0.02);
    EXPECT_LT(t.at("relative_rms_error").get<double>(), 0.15);
  }
  EXPECT_GT(quantised, 0);
  EXPECT_EQ(report.at("packed_bytes"), packed);
}

TEST(Quantize, VerboseNamesEveryTensor) {
  const TemporaryFolder folder;
  const Result r = quantize(kSmall, folder / "model.mamba", {"-v"});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_SAYS(r.out, "layers.0.in_proj");
  EXPECT_SAYS(r.out, "layers.1.out_proj");
}

TEST(Quantize, SameFlagsSameBytes) {
  const TemporaryFolder folder;
  for (const std::vector<std::string>& flags :
       std::vector<std::vector<std::string>>{{},
                                             {"--store"},
                                             {"--type", "fp16"},
                                             {"--type", "int4", "--zstd-level", "9"},
                                             {"--type", "int3"}}) {
    std::string first;
    for (const char* threads : {"1", "2", "3"}) {
      std::vector<std::string> options = flags;
      options.insert(options.end(), {"-t", threads});
      ASSERT_EQ(quantize(kSmall, folder / "model.mamba", options).status, 0);
      const std::string bytes = read_bytes(folder / "model.mamba");
      if (first.empty()) first = bytes;
      EXPECT_EQ(bytes, first) << threads;
    }
  }
}

TEST(Quantize, WrongUsageIsStatus2) {
  const TemporaryFolder folder;
  const std::string out = folder / "model.mamba";
  for (const std::vector<std::string>& wrong : std::vector<std::vector<std::string>>{
           {"mamba-quantize"},
           {"mamba-quantize", kSmall},
           {"mamba-quantize", kSmall, "-o"},
           {"mamba-quantize", "-o", out},
           {"mamba-quantize", kSmall, "more", "-o", out},
           {"mamba-quantize", kSmall, "-o", out, "--type", "int7"},
           {"mamba-quantize", kSmall, "-o", out, "--embedding-type", "q8"},
           {"mamba-quantize", kSmall, "-o", out, "--head-type", ""},
           {"mamba-quantize", kSmall, "-o", out, "--group-size", "40"},
           {"mamba-quantize", kSmall, "-o", out, "--group-size", "0"},
           {"mamba-quantize", kSmall, "-o", out, "--group-size", "512"},
           {"mamba-quantize", kSmall, "-o", out, "--group-size", "64x"},
           {"mamba-quantize", kSmall, "-o", out, "--zstd-level", "23"},
           {"mamba-quantize", kSmall, "-o", out, "--zstd-level", "-1"},
           {"mamba-quantize", kSmall, "-o", out, "-t", "0"},
           {"mamba-quantize", kSmall, "-o", out, "-t", "99999999999999999999"},
           {"mamba-quantize", kSmall, "-o", out, "--gated-norm", "half"},
           {"mamba-quantize", kSmall, "-o", out, "--tokenizer", ""},
           {"mamba-quantize", kSmall, "-o", out, "--to", "ggml"},
           {"mamba-quantize", kSmall, "-o", out, "--type", "q8_0"},
           {"mamba-quantize", kTiny, "-o", out, "--to", "gguf", "--type", "int8"},
           {"mamba-quantize", kTiny, "-o", out, "--to", "gguf", "--type", "q9_0"},
           {"mamba-quantize", kTiny, "-o", out, "--to", "gguf", "--embedding-type", "int4"},
           {"mamba-quantize", kTiny, "-o", out, "--to", "gguf", "--head-type", ""},
           {"mamba-quantize", kTiny, "-o", out, "--to", "gguf", "--store"},
           {"mamba-quantize", kTiny, "-o", out, "--to", "gguf", "--group-size", "32"},
           {"mamba-quantize", kTiny, "-o", out, "--to", "gguf", "--vocabulary-group-size", "32"},
           {"mamba-quantize", kTiny, "-o", out, "--to", "gguf", "--zstd-level", "3"},
           {"mamba-quantize", kTiny, "-o", out, "--to", "gguf", "--gated-norm", "whole"},
           {"mamba-quantize", kSmall, "-o", "-"},
           {"mamba-quantize", kSmall, "-o", out, "--calibration-tokens", "1000"},
           {"mamba-quantize", kSmall, "-o", out, "--nonsense"}}) {
    const Result r = execute(wrong);
    EXPECT_EQ(r.status, 2) << comma_separated(wrong) << "\n" << r.err;
    EXPECT_EQ(r.out, "");
    EXPECT_NE(r.err, "");
    EXPECT_EQ(folder.files(), 0u) << comma_separated(wrong);
  }
}

TEST(Quantize, FailuresAreStatus1AndLeaveNothing) {
  const TemporaryFolder folder;
  const auto refused = [&](const std::string& input, const std::string& output,
                           const std::string& says, std::vector<std::string> options = {}) {
    const size_t before = folder.files();
    const Result r = quantize(input, output, std::move(options));
    EXPECT_EQ(r.status, 1) << r.err;
    EXPECT_EQ(r.out, "");
    EXPECT_EQ(r.err.rfind("mamba-quantize: error: ", 0), 0u) << r.err;
    EXPECT_SAYS(r.err, says);
    EXPECT_EQ(folder.files(), before) << r.err;
  };
  const std::string out = folder / "model.mamba";
  refused(folder / "absent", out, "absent");
  refused(kSmall, folder / "absent/model.mamba", "there is no folder");
  refused(kSmall, folder / "", "directory");
  refused(kSmall, "", "empty");
  refused(kSmall, "/dev/null", "not a regular file");
  refused(kSmall, out, "tokenizer", {"--tokenizer", folder / "absent.json"});
  refused(kSmall, out, "--gated-norm whole", {"--gated-norm", "whole"});
  refused(source("tests/data/refused/mamba2-ss-dssm"), out, "config.json");
  refused(source("tests/data/refused/mamba3-ss-siso"), out, "config.json");
  refused(source("models/valid.txt"), out, "valid.txt");
  refused(source("models/mamba1-tiny/config.json"), out, "give the folder");
  ASSERT_EQ(quantize(kSmall, folder / "converted.mamba").status, 0);
  refused(folder / "converted.mamba", out, "is converted already");
  fs::remove(folder / "converted.mamba");
  refused(kSmall, "/dev/stdout", "not a regular file");
  fs::create_symlink("circle", folder / "circle");
  refused(kSmall, folder / "circle", "cannot write");
  fs::remove(folder / "circle");
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  refused(folder / "pipe", out, "not a regular file");
  fs::remove(folder / "pipe");
  // The input in the output's place.
  fs::create_directory(folder / "checkpoint");
  for (const auto& file : fs::directory_iterator(kSmall)) {
    if (file.is_regular_file())
      fs::copy_file(file.path(), folder / ("checkpoint/" + file.path().filename().string()));
  }
  const std::string weights = folder / "checkpoint/pytorch_model.bin", before = read_bytes(weights);
  ASSERT_NE(before, "");
  refused(folder / "checkpoint", weights, "it is read for this conversion");
  EXPECT_EQ(read_bytes(weights), before);
  // What stands beside the tokenizer is read, too; and a file cannot be two things.
  const std::string beside = folder / "checkpoint/generation_config.json";
  write_bytes(beside, "{}");
  refused(folder / "checkpoint", beside, "it is read for this conversion");
  EXPECT_EQ(read_bytes(beside), "{}");
  refused(kSmall, out, "it is read for this conversion",
          {"--type", "int4", "--importance", out, "--calibration", source("models/valid.txt")});
  const auto with_report = [](const std::string& path) {
    return std::vector<std::string>{"--type", "auto", "--target-bpw", "6", "--report-svg", path};
  };
  refused(kSmall, out, "it is the output", with_report(out));
  fs::create_symlink("model.mamba", folder / "to-out");  // neither is there yet
  refused(kSmall, folder / "to-out", "it is the output", with_report(out));
  refused(kSmall, out, "it is the output", with_report(folder / "to-out"));
  fs::remove(folder / "to-out");
  refused(folder / "checkpoint", out, "it is read for this conversion", with_report(weights));
  EXPECT_EQ(read_bytes(weights), before);
  refused(kSmall, out, "absent/plot.svg", with_report(folder / "absent/plot.svg"));
  refused(kSmall, out, "it is a folder", with_report(folder / ""));
}

// Where every file has a name from the start, an interrupted conversion takes its own away.
TEST(Quantize, AnInterruptionLeavesNothing) {
  const TemporaryFolder folder;
  Invocation run;
  run.arguments = {"mamba-quantize",
                   source("models/mamba2-tiny"),
                   "-o",
                   folder / "model.mamba",
                   "--type",
                   "fp32",
                   "--zstd-level",
                   "22",
                   "-t",
                   "1"};
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (!refuse_nameless_files()) _exit(77);
    become(run);
  }
  bool sent = false;
  int status = 0;
  while (waitpid(child, &status, WNOHANG) == 0) {
    if (!sent && folder.files() > 0) sent = kill(child, SIGINT) == 0;
    usleep(1000);
  }
  if (exit_status(status) == 77) GTEST_SKIP() << "the system takes no filters";
  ASSERT_TRUE(sent);
  EXPECT_EQ(exit_status(status), 130);
  EXPECT_EQ(folder.files(), 0U);
}

TEST(Quantize, KeepsModesAndLinks) {
  const TemporaryFolder folder;
  const std::string out = folder / "model.mamba", link = folder / "link.mamba";
  const mode_t mask = umask(027);
  const Result first = quantize(kSmall, out);
  umask(mask);
  ASSERT_EQ(first.status, 0) << first.err;
  EXPECT_EQ(fs::status(out).permissions(), static_cast<fs::perms>(0640));
  fs::permissions(out, static_cast<fs::perms>(0600));
  fs::create_symlink("model.mamba", link);
  const std::string before = read_bytes(out);
  ASSERT_EQ(quantize(kSmall, link, {"--type", "int4"}).status, 0);
  EXPECT_TRUE(fs::is_symlink(link));
  EXPECT_NE(read_bytes(out), before);
  EXPECT_EQ(fs::status(out).permissions(), static_cast<fs::perms>(0600));
  // A link to a file that is not there yet, by way of another.
  fs::create_directory(folder / "sub");
  fs::create_symlink("sub/new.mamba", folder / "to");
  fs::create_symlink("to", folder / "to-to");
  ASSERT_EQ(quantize(kSmall, folder / "to-to").status, 0);
  EXPECT_TRUE(fs::is_symlink(folder / "to-to") && fs::is_symlink(folder / "to"));
  EXPECT_TRUE(fs::is_regular_file(folder / "sub/new.mamba"));
}

TEST(Quantize, ATokenizerThatIsTooSmallIsAWarning) {
  const TemporaryFolder folder;
  const Result r = quantize(source("models/mamba1-tiny"), folder / "model.mamba",
                            {"--tokenizer", source("tests/data/tokenizer-small/neox-277")});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_SAYS(r.err, "warning: the tokenizer has");
  EXPECT_EQ(quantize(source("models/mamba1-tiny"), folder / "model.mamba").err, "");
}

// A report that nobody can take is no success, but the file is complete.
TEST(Quantize, StdoutThatIsFull) {
  const TemporaryFolder folder;
  Invocation run;
  run.arguments = {"mamba-quantize", kSmall, "-o", folder / "model.mamba", "--json"};
  run.stdout_path = "/dev/full";
  const Result r = execute(run);
  EXPECT_NE(r.status, 0);
  EXPECT_LT(r.status, 1000);
}

TEST(Quantize, ResultRuns) {
  const TemporaryFolder folder;
  ASSERT_EQ(quantize(kTiny, folder / "model.mamba").status, 0);
  const Result r = execute(
      {"mamba-generate", "-m", folder / "model.mamba", "-p", "Once upon", "-n", "4", "--greedy"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(r.out.rfind("Once upon", 0), 0u) << r.out;
  EXPECT_GT(r.out.size(), std::string("Once upon").size());
}

// ---- GGUF

TEST(QuantizeGguf, UsageErrorsNameWhatIsPossible) {
  const TemporaryFolder folder;
  const std::string out = folder / "out";
  EXPECT_SAYS(quantize(kTiny, out, {"--to", "onnx"}).err, "--to onnx: expected container or gguf");
  EXPECT_SAYS(quantize(kTiny, out, {"--to", "gguf", "--type", "int8"}).err,
              "--type int8: a GGUF file can have fp32, fp16, bf16, q8_0, q4_0");
  EXPECT_SAYS(quantize(kTiny, out, {"--to", "gguf", "--store"}).err, "--store: not with --to gguf");
}

TEST(QuantizeGguf, ExportSaysWhatHappened) {
  const TemporaryFolder folder;
  const std::string out = folder / "model.gguf";
  const Result text = quantize(kTiny, out, {"--to", "gguf"});
  ASSERT_EQ(text.status, 0) << text.err;
  EXPECT_SAYS(text.out, "blk.*.ssm_in.weight");
  EXPECT_SAYS(text.out, "q8_0");
  EXPECT_SAYS(text.out, "model.gguf: mamba");
  EXPECT_EQ(text.err, "");
  const Result r = quantize(
      kTiny, out, {"--to", "gguf", "--type", "q4_0", "--embedding-type", "q8_0", "--json"});
  ASSERT_EQ(r.status, 0) << r.err;
  const Json report = Json::parse(r.out);
  EXPECT_EQ(report.at("recipe"), "--to gguf --type q4_0 --embedding-type q8_0");
  EXPECT_EQ(report.at("output_bytes"), fs::file_size(out));
  EXPECT_EQ(report.at("tokenizer"), true);
  std::map<std::string, std::string> types;
  for (const Json& t : report.at("tensors")) types[t.at("name")] = t.at("type");
  EXPECT_EQ(types.at("token_embd.weight"), "q8_0");
  EXPECT_EQ(types.at("blk.2.ssm_in.weight"), "q4_0");
  EXPECT_EQ(types.at("blk.2.ssm_dt.weight"), "fp16");  // 16 columns are no block of 32
  EXPECT_EQ(types.at("blk.2.ssm_a"), "fp32");
  EXPECT_EQ(folder.files(), 1u);
}

// Weights and tokenizer come back from a GGUF file: the same text, token by token.
TEST(QuantizeGguf, ThereAndBackSaysTheSame) {
  const TemporaryFolder folder;
  ASSERT_EQ(quantize(kTiny, folder / "direct.mamba", {"--type", "fp32"}).status, 0);
  ASSERT_EQ(quantize(kTiny, folder / "model.gguf", {"--to", "gguf", "--type", "fp32"}).status, 0);
  const Result back = quantize(folder / "model.gguf", folder / "back.mamba", {"--type", "fp32"});
  ASSERT_EQ(back.status, 0) << back.err;
  EXPECT_EQ(back.err, "");
  const auto say = [&](const char* model) {
    return execute({"mamba-generate", "-m", folder / model, "-p", "Once upon a time", "-n", "24",
                    "--greedy", "-t", "1"})
        .out;
  };
  EXPECT_EQ(say("back.mamba"), say("direct.mamba"));
  EXPECT_GT(say("back.mamba").size(), 40u);
}

TEST(QuantizeGguf, ATokenizerThatCannotBeReadIsAWarning) {
  const TemporaryFolder folder;
  ASSERT_EQ(quantize(kTiny, folder / "model.gguf", {"--to", "gguf"}).status, 0);
  std::string bytes = read_bytes(folder / "model.gguf");
  const size_t at = bytes.find("gpt-2");
  ASSERT_NE(at, std::string::npos);
  bytes.replace(at, 5, "gpt-9");
  write_bytes(folder / "odd.gguf", bytes);
  const Result r = quantize(folder / "odd.gguf", folder / "odd.mamba");
  EXPECT_EQ(r.status, 0);
  EXPECT_SAYS(r.err, "odd.gguf: its tokenizer");
  EXPECT_SAYS(r.err, "\"gpt-9\"");
  EXPECT_SAYS(r.err, "--tokenizer");
  const Result with = quantize(folder / "odd.gguf", folder / "odd.mamba",
                               {"--tokenizer", kTiny + "/tokenizer.json"});
  EXPECT_EQ(with.status, 0);
  EXPECT_EQ(with.err, "");
}

TEST(QuantizeGguf, FailuresLeaveNothing) {
  const TemporaryFolder folder;
  const std::string whole = read_bytes(source("tests/data/golden/gguf-mamba2-f32/model.gguf"));
  ASSERT_GT(whole.size(), 100'000u);
  write_bytes(folder / "cut.gguf", whole.substr(0, whole.size() / 2));
  for (const std::vector<std::string>& options :
       std::vector<std::vector<std::string>>{{}, {"--to", "gguf"}}) {
    const Result r = quantize(folder / "cut.gguf", folder / "out", options);
    EXPECT_EQ(r.status, 1);
    EXPECT_SAYS(r.err, "cut.gguf: tensor ");
    EXPECT_EQ(folder.files(), 1u);
  }
  const Result refused =
      quantize(source("tests/data/golden/mamba1-ss-layernorm"), folder / "out", {"--to", "gguf"});
  EXPECT_EQ(refused.status, 1);
  EXPECT_SAYS(refused.err, "LayerNorm");
  EXPECT_EQ(folder.files(), 1u);
}

// A checkpoint of 320 MB of zeros, most of which the file system does not even store: memory does
// not follow its size.
TEST(Quantize, MemoryDoesNotFollowTheCheckpoint) {
  if (kEmulated) GTEST_SKIP() << "an emulator's own memory would be measured";
  if (kSanitized) GTEST_SKIP() << "a sanitizer's own memory would be measured";
  const TemporaryFolder folder;
  fs::create_directory(folder / "checkpoint");
  const int64_t d = 1024, inner = 2048, rank = 64, vocab = 50000, layers = 4;
  write_bytes(
      folder / "checkpoint/config.json",
      R"({"d_model": 1024, "n_layer": 4, "vocab_size": 50000, "ssm_cfg": {}, "rms_norm": true})");
  nlohmann::ordered_json header;
  uint64_t bytes = 0;
  const auto add = [&](const std::string& name, const std::vector<int64_t>& shape) {
    uint64_t n = 4;
    for (const int64_t extent : shape) n *= static_cast<uint64_t>(extent);
    header[name] = {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {bytes, bytes + n}}};
    bytes += n;
  };
  add("backbone.embedding.weight", {vocab, d});
  for (int64_t layer = 0; layer < layers; ++layer) {
    const std::string stem = "backbone.layers." + std::to_string(layer) + ".";
    add(stem + "norm.weight", {d});
    add(stem + "mixer.in_proj.weight", {2 * inner, d});
    add(stem + "mixer.conv1d.weight", {inner, 1, 4});
    add(stem + "mixer.conv1d.bias", {inner});
    add(stem + "mixer.x_proj.weight", {rank + 32, inner});
    add(stem + "mixer.dt_proj.weight", {inner, rank});
    add(stem + "mixer.dt_proj.bias", {inner});
    add(stem + "mixer.A_log", {inner, 16});
    add(stem + "mixer.D", {inner});
    add(stem + "mixer.out_proj.weight", {d, inner});
  }
  add("backbone.norm_f.weight", {d});
  const std::string text = header.dump();
  std::string head(8, '\0');
  const uint64_t n = text.size();
  std::memcpy(head.data(), &n, 8);
  const std::string weights = folder / "checkpoint/model.safetensors";
  write_bytes(weights, head + text);
  fs::resize_file(weights, 8 + n + bytes);
  ASSERT_GT(bytes, 300'000'000u);

  // To a container, to GGUF, and from the GGUF file that this makes.
  const std::vector<std::vector<std::string>> runs = {
      {folder / "checkpoint", folder / "model.mamba", "--type", "int8"},
      {folder / "checkpoint", folder / "model.mamba", "--type", "fp32"},
      {folder / "checkpoint", folder / "q8_0.gguf", "--type", "q8_0", "--to", "gguf"},
      {folder / "q8_0.gguf", folder / "model.mamba", "--type", "int8"}};
  for (const std::vector<std::string>& words : runs) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      const int quiet = open("/dev/null", O_WRONLY);
      dup2(quiet, 1);
      dup2(quiet, 2);
      Invocation run;
      run.arguments = {"mamba-quantize", words[0], "-o", words[1], "-t", "2"};
      run.arguments.insert(run.arguments.end(), words.begin() + 2, words.end());
      if (words.back() != "gguf") {
        run.arguments.insert(run.arguments.end(), {"--zstd-level", "1"});
      }
      become(run);
    }
    int status = 0;
    rusage usage = {};
    ASSERT_EQ(wait4(child, &status, 0, &usage), child);
    EXPECT_EQ(exit_status(status), 0);
    // A panel is 4 MiB as it is read, as much packed and compressed at worst; 2 threads have 4 of
    // them in flight.
    EXPECT_LT(usage.ru_maxrss, 100L << 10) << comma_separated(words);
    std::printf("%s: peak memory %.1f MiB\n", comma_separated(words).c_str(),
                static_cast<double>(usage.ru_maxrss) / 1024);
  }
}

}  // namespace
}  // namespace mamba_edge::test
