// mamba-bench: that its report has the promised columns, that the numbers in a row agree with each
// other and with the model, and that wrong usage is refused before anything is measured.
#include <gtest/gtest.h>

#include <cmath>

#include "engine/session.h"
#include "engine/tensors.h"
#include "quant/encode.h"
#include "tests/tools/programs.h"
#include "tools/common_synthetic.h"

namespace mamba_edge::test {
namespace {

const std::vector<std::string> kColumns = {"model",
                                           "type",
                                           "isa",
                                           "state",
                                           "threads",
                                           "batch",
                                           "test",
                                           "tokens",
                                           "mean_tps",
                                           "sd_tps",
                                           "median_ms",
                                           "p95_ms",
                                           "p99_ms",
                                           "bytes_per_token",
                                           "bandwidth_gbps",
                                           "memory_limit_gbps",
                                           "fraction_of_limit",
                                           "gops",
                                           "peak_gops",
                                           "fraction_of_peak",
                                           "arena_bytes",
                                           "peak_rss_bytes",
                                           "load_ms"};

std::string tiny_int8(const std::string& name) {
  return converted(source("models/" + name), name + "_int8", {"--type", "int8"});
}

Result bench(std::vector<std::string> arguments, const std::string& isa_of_environment = "") {
  Invocation run;
  run.arguments = std::move(arguments);
  run.arguments.insert(run.arguments.begin(), "mamba-bench");
  run.environment["MAMBA_EDGE_ISA"] = isa_of_environment;
  return execute(run);
}

Json rows_of(std::vector<std::string> arguments, const std::string& isa_of_environment = "") {
  arguments.insert(arguments.end(), {"-o", "json"});
  const Result result = bench(std::move(arguments), isa_of_environment);
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.err, "");
  return Json::parse(result.out, nullptr, false);
}

size_t lines(const std::string& text) {
  return static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
}

// The cells of a line, without the blanks around them.
std::vector<std::string> cells(const std::string& line, char separator) {
  std::vector<std::string> found;
  std::istringstream stream(line);
  for (std::string cell; std::getline(stream, cell, separator);) {
    const size_t begin = cell.find_first_not_of(' '), end = cell.find_last_not_of(' ');
    found.push_back(begin == std::string::npos ? "" : cell.substr(begin, end - begin + 1));
  }
  return found;
}

// Bytes of the recurrent state: the convolution's windows, always in float, and the SSM's.
double state_bytes(const ModelConfig& config, StateType type) {
  const Layout layout(config);
  const double conv = 4.0 * layout.conv_rows * layout.d_conv;
  // int8: a float scale for up to 64 states, which is all of them here.
  const double channel = type == StateType::f32   ? 4.0 * layout.d_state
                         : type == StateType::f16 ? 2.0 * layout.d_state
                                                  : 4.0 + layout.d_state;
  const double ssm = channel * layout.inner;
  return config.n_layer * (conv + ssm);
}

ModelConfig config_of(const std::string& model) {
  Container container;
  const Status opened = Container::open(model.c_str(), &container);
  EXPECT_TRUE(opened.ok()) << opened.message();
  return container.config();
}

double weight_bytes(const std::string& model) {
  const Result result = execute({"mamba-inspect", model, "--json"});
  return Json::parse(result.out)["memory"]["weight_bytes"].get<double>();
}

// What holds in every row. Numbers are printed with a fixed number of decimals, so a relation
// between them holds within half a unit of each last one.
void expect_sane(const Json& row) {
  SCOPED_TRACE(row.dump());
  const auto number = [&](const char* name) { return row.at(name).get<double>(); };
  const double tokens = row["test"] == "prefill" ? number("tokens") : 1;
  const double bytes = number("bytes_per_token") * tokens;
  const double median = number("median_ms"), bandwidth = number("bandwidth_gbps");
  ASSERT_GT(median, 0.0005);
  // 0.5 for bytes_per_token, which is whole only for decode.
  EXPECT_LE(bandwidth, (bytes + 0.5 * tokens) * 1e-6 / (median - 0.0005) + 0.005);
  EXPECT_GE(bandwidth, (bytes - 0.5 * tokens) * 1e-6 / (median + 0.0005) - 0.005);
  const double limit = number("memory_limit_gbps");
  ASSERT_GT(limit, 0.005);
  EXPECT_LE(number("fraction_of_limit"), (bandwidth + 0.005) / (limit - 0.005) + 0.0005);
  EXPECT_GE(number("fraction_of_limit"), (bandwidth - 0.005) / (limit + 0.005) - 0.0005);
  ASSERT_GT(number("gops"), 0);
  if (number("peak_gops") > 0) {  // products are of int8 numbers
    EXPECT_NEAR(
        number("fraction_of_peak"), number("gops") / number("peak_gops"),
        0.0005 + (0.05 + 0.05 * number("gops") / number("peak_gops")) / number("peak_gops"));
  } else {
    EXPECT_EQ(number("fraction_of_peak"), 0);
  }
  EXPECT_LE(median, number("p95_ms"));
  EXPECT_LE(number("p95_ms"), number("p99_ms"));
  EXPECT_GT(number("mean_tps"), 0);
  EXPECT_GE(number("sd_tps"), 0);
  EXPECT_GT(number("load_ms"), 0);
  EXPECT_GT(number("arena_bytes"), 0);
  EXPECT_GT(number("peak_rss_bytes"), number("arena_bytes"));
}

TEST(Bench, JsonHasTheColumnsAndNoOthers) {
  const Json rows =
      rows_of({"-m", tiny_int8("mamba1-tiny"), "-p", "40", "-n", "3", "-r", "2", "-t", "1"});
  ASSERT_EQ(rows.size(), 2u) << rows.dump();
  for (const Json& row : rows) {
    std::vector<std::string> names, expected = kColumns;
    for (const auto& [name, value] : row.items()) names.push_back(name);  // sorted by this Json
    std::sort(expected.begin(), expected.end());
    EXPECT_EQ(names, expected);
    EXPECT_EQ(row["model"], tiny_int8("mamba1-tiny"));
    EXPECT_EQ(row["type"], "int8");
    EXPECT_EQ(row["state"], "fp32");
    EXPECT_EQ(row["threads"], 1);
    expect_sane(row);
  }
  EXPECT_EQ(rows[0]["test"], "prefill");
  EXPECT_EQ(rows[0]["tokens"], 40);
  EXPECT_EQ(rows[1]["test"], "decode");
  EXPECT_EQ(rows[1]["tokens"], 3);
  // 40 tokens are one chunk of at most 128.
  const double once = rows[1]["bytes_per_token"].get<double>();
  EXPECT_EQ(rows[0]["bytes_per_token"], std::round(once / 40));
}

TEST(Bench, OneRoundOfOneTokenHasOneSpeed) {
  const Json rows =
      rows_of({"-m", tiny_int8("mamba1-tiny"), "-p", "0", "-n", "1", "-r", "1", "-t", "1"});
  ASSERT_EQ(rows.size(), 1u) << rows.dump();
  const Json& row = rows[0];
  const double median = row["median_ms"], mean = row["mean_tps"];
  EXPECT_EQ(row["sd_tps"], 0);
  EXPECT_EQ(row["p95_ms"], median);
  EXPECT_EQ(row["p99_ms"], median);
  EXPECT_LE(mean, 1e3 / (median - 0.0005) + 0.005);
  EXPECT_GE(mean, 1e3 / (median + 0.0005) - 0.005);
}

TEST(Bench, AStepReadsTheWeightsAndTheStateTwice) {
  for (const char* name : {"mamba1-tiny", "mamba2-tiny"}) {
    for (const std::string& model : {tiny(name), tiny_int8(name)}) {
      const Json rows = rows_of(
          {"-m", model, "-p", "0", "-n", "1", "-r", "1", "-t", "1", "--state", "fp32,fp16,int8"});
      ASSERT_EQ(rows.size(), 3u) << rows.dump();
      const ModelConfig config = config_of(model);
      const double weights = weight_bytes(model);
      EXPECT_EQ(rows[0]["state"], "fp32");
      EXPECT_EQ(rows[0]["bytes_per_token"], weights + 2 * state_bytes(config, StateType::f32))
          << model;
      EXPECT_EQ(rows[1]["state"], "fp16");
      EXPECT_EQ(rows[1]["bytes_per_token"], weights + 2 * state_bytes(config, StateType::f16))
          << model;
      EXPECT_EQ(rows[2]["state"], "int8");
      EXPECT_EQ(rows[2]["bytes_per_token"], weights + 2 * state_bytes(config, StateType::int8))
          << model;
      EXPECT_LT(rows[1]["arena_bytes"], rows[0]["arena_bytes"]);
      EXPECT_LT(rows[2]["arena_bytes"], rows[1]["arena_bytes"]);
    }
  }
}

// Columns, separators and rows of the other formats, and the order of the combinations.
// A batch has a row of its own, in which the weights are shared by its texts.
TEST(Bench, BatchesShareTheWeights) {
  const Json rows = rows_of(
      {"-m", tiny_int8("mamba2-tiny"), "-p", "0", "-n", "2", "-r", "1", "-t", "1", "-b", "1,4"});
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0]["batch"], 1);
  EXPECT_EQ(rows[1]["batch"], 4);
  // bytes = weights / batch + state, for both.
  const double one = rows[0]["bytes_per_token"], four = rows[1]["bytes_per_token"];
  const double weights = (one - four) / (1 - 0.25);
  EXPECT_GT(weights, 0);
  EXPECT_LT(weights, one);
  EXPECT_GT(four, 0.25 * weights);
}

TEST(Bench, CsvAndMarkdownHaveARowForEachCombination) {
  const std::string model = tiny_int8("mamba1-tiny");
  std::vector<std::string> arguments = {"-m",    model,          "-p",      "2",        "-n",
                                        "2",     "-r",           "1",       "-t",       "1,2",
                                        "--isa", "generic,auto", "--state", "fp32,fp16"};
  const std::string best =
      rows_of({"-m", model, "-p", "0", "-n", "1", "-r", "1", "-t", "1"})[0]["isa"];
  std::vector<std::vector<std::string>> expected;  // isa, state, threads, test
  for (const std::string& isa : {std::string("generic"), best})
    for (const char* state : {"fp32", "fp16"})
      for (const char* threads : {"1", "2"})
        for (const char* test : {"prefill", "decode"})
          expected.push_back({isa, state, threads, test});

  for (const std::string format : {"csv", "md"}) {
    std::vector<std::string> all = arguments;
    all.insert(all.end(), {"-o", format});
    const Result result = bench(all);
    ASSERT_EQ(result.status, 0) << result.err;
    std::istringstream text(result.out);
    std::vector<std::vector<std::string>> rows;
    for (std::string line; std::getline(text, line);) {
      if (format == "md") {
        ASSERT_TRUE(line.starts_with("|") && line.ends_with("|")) << line;
        line = line.substr(1, line.size() - 2);
      }
      rows.push_back(cells(line, format == "md" ? '|' : ','));
      ASSERT_EQ(rows.back().size(), kColumns.size()) << line;
    }
    ASSERT_FALSE(rows.empty());
    EXPECT_EQ(rows[0], kColumns);
    if (format == "md") {
      ASSERT_GE(rows.size(), 2u);
      for (const std::string& rule : rows[1])
        EXPECT_EQ(rule.find_first_not_of("-:"), std::string::npos) << rule;
      rows.erase(rows.begin() + 1);
    }
    ASSERT_EQ(rows.size(), 1 + expected.size()) << result.out;
    for (size_t i = 0; i < expected.size(); ++i) {
      const std::vector<std::string>& row = rows[i + 1];
      EXPECT_EQ(row[0], model);
      EXPECT_EQ((std::vector<std::string>{row[2], row[3], row[4], row[6]}), expected[i]) << i;
    }
  }
  const Result table = bench(arguments);  // the default
  EXPECT_EQ(table.status, 0) << table.err;
  EXPECT_EQ(lines(table.out), 1 + expected.size()) << table.out;
}

TEST(Bench, TakesTheKernelsFromTheEnvironmentUnlessToldOtherwise) {
  const std::vector<std::string> arguments = {
      "-m", tiny_int8("mamba1-tiny"), "-p", "0", "-n", "1", "-r", "1", "-t", "1"};
  EXPECT_EQ(rows_of(arguments, "generic").at(0)["isa"], "generic");
  std::vector<std::string> told = arguments;
  told.insert(told.end(), {"--isa", "generic"});
  EXPECT_EQ(rows_of(told, "abacus").at(0)["isa"], "generic");
  const Result unknown = bench(arguments, "abacus");
  EXPECT_EQ(unknown.status, 2);
  EXPECT_NE(unknown.err.find("MAMBA_EDGE_ISA"), std::string::npos) << unknown.err;
  EXPECT_NE(unknown.err.find("'abacus'"), std::string::npos) << unknown.err;
}

// Against what the checkpoints' publishers say, or the total_size of their index, by two bytes each.
TEST(Bench, SyntheticModelsHaveThePublishedSizes) {
  const auto parameters = [](const char* name) {
    const ModelConfig config = tools::synthetic_config(name);
    int64_t n = 0;
    for (uint32_t i = 0; i < tensor_count(config); ++i) {
      n += published_elements(config, tensor_spec(config, i));
    }
    return n;
  };
  EXPECT_EQ(parameters("mamba-130m"), 129135360);
  EXPECT_EQ(parameters("mamba-2.8b"), 2768345600);
  EXPECT_EQ(parameters("falcon-mamba-7b"), 7272665088);
  EXPECT_EQ(parameters("mamba-codestral-7b"), 7285403648);
}

TEST(Bench, WrongUsageNamesTheFlag) {
  const std::string model = tiny_int8("mamba1-tiny");
  struct Case {
    std::vector<std::string> arguments;
    std::vector<std::string> named;
  };
  const Case cases[] = {
      {{"--synthetic", "mamba-7b"}, {"--synthetic", "'mamba-7b'", "mamba2-2.7b"}},
      {{"--synthetic", "mamba-130m", "--type", "int7"}, {"--type", "int7", "int4"}},
      {{"--synthetic", "mamba-130m", "--group-size", "20"}, {"--group-size", "20", "16"}},
      {{"--synthetic", "mamba-130m", "--group-size", "512"}, {"--group-size", "512"}},
      {{"-m", model, "--type", "int4"}, {"--type", "--synthetic"}},
      {{"-m", model, "--group-size", "32"}, {"--group-size", "--synthetic"}},
      {{"-m", model, "--isa", "abacus"}, {"--isa", "'abacus'", "generic"}},
      {{"-m", model, "--isa", "generic,abacus"}, {"--isa", "'abacus'"}},
      {{"-m", model, "--state", "fp8"}, {"--state", "fp8", "fp32, fp16 or int8"}},
      {{"-m", model, "-o", "yaml"}, {"--output", "yaml", "csv"}},
      {{"-m", model, "-p", "0", "-n", "0"}, {"-p", "-n"}},
      {{"-m", model, "-p", "-1"}, {"-p", "-1"}},
      {{"-m", model, "-r", "0"}, {"-r", "0"}},
      {{"-m", model, "-t", "0"}, {"--threads", "0"}},
      {{"-m", model, "--chunk", "0"}, {"--chunk", "0"}},
      {{"-m", model, "--fast"}, {"--fast"}},
      {{}, {"-m", "--synthetic"}},
      {{"-m", model, "--synthetic", "mamba-130m"}, {"-m", "--synthetic"}},
  };
  for (const Case& c : cases) {
    const Result result = bench(c.arguments);
    const std::string told = ::testing::PrintToString(c.arguments) + ": " + result.err;
    EXPECT_EQ(result.status, 2) << told;
    EXPECT_EQ(result.out, "");
    EXPECT_TRUE(result.err.starts_with("mamba-bench: error: ")) << told;
    // The first line: the second points to --help.
    const std::string line = result.err.substr(0, result.err.find('\n'));
    for (const std::string& word : c.named) EXPECT_NE(line.find(word), std::string::npos) << told;
  }
}

TEST(Bench, FilesThatCannotBeReadAreNamed) {
  const TemporaryFolder folder;
  write_bytes(folder / "text", "hello, this is not a model");
  for (const std::string& path : {folder / "missing.mamba", folder / "text"}) {
    const Result result = bench({"-m", path, "-p", "0", "-n", "1"});
    EXPECT_EQ(result.status, 1);
    EXPECT_EQ(result.out, "");
    EXPECT_NE(result.err.find(path), std::string::npos) << result.err;
    EXPECT_EQ(lines(result.err), 1u) << result.err;
  }
  // Before the files that can be are measured.
  const Result result = bench({"-m", tiny_int8("mamba1-tiny") + "," + (folder / "missing.mamba"),
                               "-p", "0", "-n", "1", "-r", "10000"});
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.err.find("missing.mamba: cannot open"), std::string::npos) << result.err;
}

TEST(Bench, ShowsWhatItMeasuredBeforeAFailure) {
  const TemporaryFolder folder;
  write_bytes(folder / "text", "hello, this is not a model");
  const std::string model = tiny_int8("mamba1-tiny");
  const Result result = bench({"-m", model + "," + (folder / "text"), "-p", "0", "-n", "1", "-r",
                               "1", "-t", "1", "-o", "csv"});
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.err.find(folder / "text"), std::string::npos) << result.err;
  EXPECT_EQ(lines(result.out), 2u) << result.out;  // names of columns, one row
  EXPECT_NE(result.out.find("\n" + model + ",int8,"), std::string::npos) << result.out;
}

TEST(Bench, MakesModelsOfPublishedSizes) {
  if (kSlow) GTEST_SKIP() << "130 million weights take long here";
  const Json rows = rows_of(
      {"--synthetic", "mamba-130m", "--type", "int8", "-p", "0", "-n", "1", "-r", "1", "-t", "1"});
  ASSERT_EQ(rows.size(), 1u) << rows.dump();
  EXPECT_EQ(rows[0]["model"], "mamba-130m");
  EXPECT_EQ(rows[0]["type"], "int8");
  expect_sane(rows[0]);
  const ModelConfig config = tools::synthetic_config("mamba-130m");
  double bytes = 2 * state_bytes(config, StateType::f32);
  for (uint32_t i = 0; i < tensor_count(config); ++i) {
    const TensorSpec spec = tensor_spec(config, i);
    const WeightType type = spec.quantisable ? WeightType::int8 : WeightType::f32;
    const uint32_t group = default_group(type, spec.role);
    bytes += static_cast<double>(matrix_shape(type, spec.rows, spec.cols, group).bytes());
  }
  EXPECT_EQ(rows[0]["bytes_per_token"], bytes);
}

}  // namespace
}  // namespace mamba_edge::test
