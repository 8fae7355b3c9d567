// mamba-eval: its numbers against references, its files, and what bad input gets.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "platforms/select.h"
#include "tests/tools/eval_programs.h"

namespace mamba_edge::test {
namespace {

// Largest difference in a row, as a part of the largest magnitude in that row of the reference.
double worst_row(const Floats& got, const Floats& expected) {
  EXPECT_EQ(got.shape, expected.shape);
  if (got.shape != expected.shape) return INFINITY;
  const size_t columns = expected.shape.back();
  double worst = 0;
  for (size_t row = 0; row < expected.values.size(); row += columns) {
    float largest = 0, difference = 0;
    for (size_t i = row; i < row + columns; ++i) {
      largest = std::max(largest, std::fabs(expected.values[i]));
      difference = std::max(difference, std::fabs(got.values[i] - expected.values[i]));
      if (!std::isfinite(got.values[i])) return INFINITY;
    }
    worst = std::max(
        worst, static_cast<double>(difference) / static_cast<double>(std::max(largest, 1e-30f)));
  }
  return worst;
}

// ---- logits

TEST(EvalLogits, AreTheReferences) {
  const TemporaryFolder folder;
  for (const std::string model : {"mamba1-tiny", "mamba2-tiny"}) {
    out_of({"logits", "-m", tiny(model), "--tokens-file",
            source("models/" + model + "-prompt-ids.npy"), "-o", folder / "logits.npy", "--state",
            "fp32"});
    // The project's bound for float32: 1e-4 of the row's largest magnitude, the scatter of float32
    // implementations.
    EXPECT_LT(worst_row(read_floats(folder / "logits.npy"),
                        read_floats(source("models/" + model + "-prompt-logits.npy"))),
              1e-4);
  }
}

TEST(EvalLogits, AreTheSameBytesHoweverTheyAreComputed) {
  const TemporaryFolder folder;
  std::vector<int64_t> ids = tools::read_npy_ids(source("models/mamba1-tiny-prompt-ids.npy"));
  const std::string list = comma_separated(ids);
  const std::string path = folder / "logits.npy";
  out_of({"logits", "-m", tiny("mamba1-tiny"), "--tokens", list, "-o", path});
  const std::string expected = read_bytes(path);
  EXPECT_EQ(expected.size(), 128 + ids.size() * 2048 * sizeof(float));
  for (const char* threads : {"1", "3"}) {
    for (const char* chunk : {"1", "5", "64"}) {
      out_of({"logits", "-m", tiny("mamba1-tiny"), "--tokens", list, "-o", path, "-t", threads,
              "--chunk", chunk});
      EXPECT_TRUE(read_bytes(path) == expected) << threads << " threads, chunks of " << chunk;
    }
  }
  EXPECT_TRUE(out_of({"logits", "-m", tiny("mamba1-tiny"), "--tokens", list, "-o", "-"}) ==
              expected);
}

// A block of 64 tokens of a quantised Mamba-2 model may be read in the dual form, if that is asked for.
TEST(EvalLogits, DualFormIsAChoice) {
  const TemporaryFolder folder;
  const std::string path = folder / "logits.npy";
  const std::string model =
      converted(source("models/mamba2-tiny"), "mamba2-tiny_int8", {"--type", "int8"});
  const auto logits = [&](const std::vector<std::string>& more) {
    std::vector<std::string> args = {
        "logits", "-m", model, "--tokens-file", source("models/mamba2-tiny-prompt-ids.npy"),
        "-o",     path};
    args.insert(args.end(), more.begin(), more.end());
    out_of(args);
    return read_bytes(path);
  };
  const std::string steps = logits({"--chunk", "1"});
  EXPECT_TRUE(logits({"--chunk", "64"}) == steps);
  EXPECT_TRUE(logits({"--chunk", "63", "--no-same-bits"}) == steps);
  EXPECT_EQ(logits({"--chunk", "64", "--no-same-bits"}) == steps,
            select_table(nullptr)->mamba2_dual == nullptr);
}

TEST(EvalLogits, StatesHaveTheirShapes) {
  const TemporaryFolder folder;
  const std::vector<std::pair<std::string, std::vector<uint64_t>>> cases = {
      {"mamba1-tiny", {6, 512, 16}},
      {"mamba2-tiny", {6, 8, 64, 64}},
  };
  for (const auto& [model, shape] : cases) {
    out_of({"logits", "-m", tiny(model), "--tokens", "0,100,200", "-o", folder / "logits.npy",
            "--final-conv-state", folder / "conv.npy", "--final-ssm-state", folder / "ssm.npy"});
    const Floats conv = read_floats(folder / "conv.npy"), ssm = read_floats(folder / "ssm.npy");
    ASSERT_EQ(conv.shape.size(), 3u);
    EXPECT_EQ(conv.shape[0], 6u);
    EXPECT_EQ(conv.shape[2], 4u);
    for (size_t i = 0; i < conv.values.size();
         ++i) {  // three tokens: the oldest of four columns is still empty
      ASSERT_EQ(conv.values[i] == 0, i % 4 == 0) << i;
    }
    EXPECT_EQ(ssm.shape.size(), shape.size());
    EXPECT_EQ(ssm.shape.front(), 6u);
    EXPECT_EQ(std::accumulate(ssm.shape.begin(), ssm.shape.end(), uint64_t{1}, std::multiplies<>()),
              ssm.values.size());
    EXPECT_EQ(ssm.shape, shape);
    EXPECT_GT(*std::max_element(ssm.values.begin(), ssm.values.end()), 0);
  }
}

// Where the golden data are at hand: the files as this program writes them against those of
// reference code.
TEST(EvalLogits, AgreeWithGoldenCasesFileByFile) {
  const std::string golden = std::string(MAMBA_EDGE_SHARED_DIR) + "/golden/";
  if (!fs::exists(golden)) GTEST_SKIP() << golden << " is not there";
  const TemporaryFolder folder;
  for (const std::string name :
       {"mamba1-ss-dims", "mamba2-ss-groups", "mamba2-seed-all1-long", "falcon-mamba-hf"}) {
    const std::string expect = golden + name + "/expect/";
    const std::string model = converted(golden + name, name + "_fp32", {"--type", "fp32"});
    out_of({"logits", "-m", model, "--tokens-file", expect + "tokens.npy", "-o",
            folder / "logits.npy", "--final-conv-state", folder / "conv.npy", "--final-ssm-state",
            folder / "ssm.npy"});
    EXPECT_LT(worst_row(read_floats(folder / "logits.npy"), read_floats(expect + "logits.npy")),
              1e-4)
        << name;
    // States: against the largest magnitude of the whole array, since single rows can be almost
    // zero.
    const auto whole = [](Floats floats) {
      floats.shape = {1, floats.values.size()};
      return floats;
    };
    EXPECT_EQ(read_floats(folder / "conv.npy").shape,
              read_floats(expect + "final_conv_state.npy").shape);
    EXPECT_EQ(read_floats(folder / "ssm.npy").shape,
              read_floats(expect + "final_ssm_state.npy").shape);
    EXPECT_LT(worst_row(whole(read_floats(folder / "conv.npy")),
                        whole(read_floats(expect + "final_conv_state.npy"))),
              1e-4)
        << name;
    EXPECT_LT(worst_row(whole(read_floats(folder / "ssm.npy")),
                        whole(read_floats(expect + "final_ssm_state.npy"))),
              1e-4)
        << name;
  }
}

TEST(EvalLogits, NothingPartialIsLeftBehind) {
  const TemporaryFolder folder;
  write_bytes(folder / "logits.npy", "old");
  // The states' folder is missing, which shows only after the logits' file was begun.
  expect_failure(eval({"logits", "-m", tiny("mamba1-tiny"), "--tokens", "1", "-o",
                       folder / "logits.npy", "--final-ssm-state", folder / "missing/ssm.npy"}),
                 1, "missing/ssm.npy");
  EXPECT_EQ(read_bytes(folder / "logits.npy"), "old");
  EXPECT_EQ(folder.files(), 1u);
  expect_failure(eval({"logits", "-m", tiny("mamba1-tiny"), "--tokens", "1", "-o", "/dev/full"}), 1,
                 "/dev/full");
}

TEST(EvalLogits, RefusesBadTokens) {
  const TemporaryFolder folder;
  const std::string output = folder / "logits.npy", ids = folder / "ids.npy";
  const auto logits = [&](const std::string& option, const std::string& value) {
    return eval({"logits", "-m", tiny("mamba1-tiny"), option, value, "-o", output});
  };
  expect_failure(logits("--tokens", "5,2048"), 1,
                 "token 2048 (number 2) is outside the vocabulary");
  expect_failure(logits("--tokens", "-5"), 1, "token -5 ");
  expect_failure(logits("--tokens", "five"), 2, "expected a token id");
  expect_failure(logits("--tokens", ""), 2, "at least one");
  expect_failure(logits("--tokens-file", folder / "none.npy"), 1, "none.npy");
  write_bytes(ids, npy_ids({1, -7}));
  expect_failure(logits("--tokens-file", ids), 1, "token -7 (number 2)");
  write_bytes(ids, npy_ids({}));
  expect_failure(logits("--tokens-file", ids), 1, "no token ids");
  write_bytes(ids, tools::npy_header("<f4", {1}) + std::string(4, '\0'));
  expect_failure(logits("--tokens-file", ids), 1, "'<f4'");
  write_bytes(ids, npy_ids({1, 2}).substr(0, 130));
  expect_failure(logits("--tokens-file", ids), 1, "has 2 bytes of data");
  fs::remove(ids);
  EXPECT_EQ(folder.files(), 0u);
}

TEST(EvalLogits, WrongUsageIsStatusTwo) {
  const std::vector<std::vector<std::string>> cases = {
      {},
      {"frobnicate"},
      {"logits"},
      {"logits", "-m", "x", "-o", "y"},
      {"logits", "-m", "x", "--tokens", "1"},
      {"logits", "-m", "x", "--tokens", "1", "--tokens-file", "z", "-o", "y"},
      {"logits", "-m", "x", "--tokens", "1", "-o", "y", "--state", "fp64"},
      {"perplexity", "-m", "x"},
      {"perplexity", "-m", "x", "-f", "y", "--limit", "0"},
      {"perplexity", "-m", "x", "-f", "y", "--window", "-1"},
      {"tokenize"},
      {"tokenize", "-m", "x", "--frobnicate"},
  };
  for (const std::vector<std::string>& arguments : cases) expect_failure(eval(arguments), 2, "");
  const std::string unknown =
      eval({"logits", "-m", "x", "--tokens", "1", "-o", "y", "--state", "fp64"}).err;
  for (const char* known : {"fp32", "fp16", "int8"})
    EXPECT_NE(unknown.find(known), std::string::npos) << unknown;
}

// ---- perplexity

// The ids of models/*-prompt-ids.npy are the start token and then the text, and row t of the
// reference's logits predicts token t + 1: so their negative log likelihood is known without a
// model.
TEST(EvalPerplexity, IsThatOfTheReferencesLogits) {
  const TemporaryFolder folder;
  for (const std::string model : {"mamba1-tiny", "mamba2-tiny"}) {
    const std::vector<int64_t> ids =
        tools::read_npy_ids(source("models/" + model + "-prompt-ids.npy"));
    ASSERT_EQ(ids.at(0), 0);
    const Floats logits = read_floats(source("models/" + model + "-prompt-logits.npy"));
    const size_t vocabulary = logits.shape.at(1);
    double expected = 0;
    for (size_t t = 0; t + 1 < ids.size(); ++t) {
      const float* row = logits.values.data() + t * vocabulary;
      double sum = 0;
      for (size_t i = 0; i < vocabulary; ++i) sum += std::exp(static_cast<double>(row[i]));
      expected += std::log(sum) - static_cast<double>(row[ids[t + 1]]);
    }
    expected /= static_cast<double>(ids.size() - 1);

    const std::vector<int32_t> text(ids.begin() + 1, ids.end());
    write_bytes(folder / "ids.npy", npy_ids(text));
    const Json json = Json::parse(
        out_of({"perplexity", "-m", tiny(model), "--tokens-file", folder / "ids.npy", "--json"}));
    EXPECT_EQ(json["tokens"], text.size());
    // Logits of magnitude up to about 20 within 1e-4 of it move a log likelihood by 4e-3 at the
    // very most.
    EXPECT_NEAR(json["nll"], expected, 4e-3);
    EXPECT_NEAR(json["ppl"].get<double>(), std::exp(json["nll"].get<double>()),
                1e-9 * json["ppl"].get<double>());

    // The same text as text.
    const Json from_text =
        Json::parse(out_of({"perplexity", "-m", tiny(model), "-f", source("models/valid.txt"),
                            "--limit", "63", "--json"}));
    EXPECT_EQ(from_text, json);
    const std::string plain = out_of(
        {"perplexity", "-m", tiny(model), "-f", source("models/valid.txt"), "--limit", "63"});
    EXPECT_EQ(number_after(plain, "tokens "), 63);
    EXPECT_NEAR(number_after(plain, "nll "), json["nll"], 1e-6);
    EXPECT_NEAR(number_after(plain, "ppl "), json["ppl"], 1e-6);
  }
}

TEST(EvalPerplexity, EqualsTheReferencesOver16384Tokens) {
  if (kSlow) GTEST_SKIP() << "takes minutes here; the short text above is checked instead";
  const Json results = Json::parse(read_bytes(source("models/results.json")));
  for (const char* model : {"mamba1-tiny", "mamba2-tiny"}) {
    const Json json =
        Json::parse(out_of({"perplexity", "-m", tiny(model), "-f", source("models/valid.txt"),
                            "--limit", "16384", "--json"}));
    EXPECT_EQ(json["tokens"], 16384);
    const double expected = results[model]["continuous_16384"]["perplexity"];
    EXPECT_NEAR(json["ppl"], expected, 0.001 * expected);
  }
}

TEST(EvalPerplexity, WindowsStandOnTheirOwn) {
  const TemporaryFolder folder;
  const std::vector<int64_t> ids = tools::read_npy_ids(source("models/mamba1-tiny-prompt-ids.npy"));
  const auto score = [&](size_t begin, size_t end, std::vector<std::string> more) {
    const std::vector<int32_t> part(ids.begin() + static_cast<long>(begin),
                                    ids.begin() + static_cast<long>(end));
    write_bytes(folder / "ids.npy", npy_ids(part));
    more.insert(more.begin(), {"perplexity", "-m", tiny("mamba1-tiny"), "--tokens-file",
                               folder / "ids.npy", "--json"});
    return Json::parse(out_of(more));
  };
  const Json first = score(1, 26, {}), second = score(26, 51, {}), rest = score(51, 61, {});
  const Json all =
      score(1, 61, {"--window", "25"});  // the last window is shorter, and is scored too
  const double sum = 25 * first["nll"].get<double>() + 25 * second["nll"].get<double>() +
                     10 * rest["nll"].get<double>();
  EXPECT_EQ(all["tokens"], 60);
  EXPECT_NEAR(all["nll"], sum / 60, 1e-12);
  const Json limited = score(1, 61, {"--window", "25", "--limit", "30", "--chunk", "7", "-t", "3"});
  EXPECT_EQ(limited["tokens"], 30);
  EXPECT_GT(score(1, 61, {"--start", "5"})["nll"],
            score(1, 61, {})["nll"]);  // a start that no text had
}

TEST(EvalPerplexity, RefusesATextWithoutTokens) {
  expect_failure(eval({"perplexity", "-m", tiny("mamba1-tiny"), "-f", "/dev/null"}), 1,
                 "'/dev/null' has no tokens");
  expect_failure(eval({"perplexity", "-m", tiny("mamba1-tiny"), "-f", "/nonexistent"}), 1,
                 "'/nonexistent'");
  expect_failure(eval({"perplexity", "-m", without_tokenizer(), "-f", source("models/valid.txt")}),
                 1, "has no tokenizer");
}

// ---- tokenize

TEST(EvalTokenize, GivesTheReferencesIds) {
  const Json ids = Json::parse(
      out_of({"tokenize", "-m", tiny("mamba1-tiny"), "-f", source("models/valid.txt")}));
  EXPECT_EQ(ids.size(), 111'871u);  // models/README.md
  const std::vector<int64_t> expected =
      tools::read_npy_ids(source("models/mamba1-tiny-prompt-ids.npy"));
  for (size_t i = 0; i + 1 < expected.size(); ++i) EXPECT_EQ(ids[i], expected[i + 1]) << i;
  EXPECT_EQ(out_of({"tokenize", "-m", tiny("mamba1-tiny"), "--decode"}, ids.dump()),
            read_bytes(source("models/valid.txt")));
}

TEST(EvalTokenize, SpecialTokensAreRecognisedUnlessToldNotTo) {
  const std::string model = tiny("mamba1-tiny"), text = "one<|endoftext|>two";
  const std::vector<int> ids = Json::parse(out_of({"tokenize", "-m", model}, text));
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 0), 1);
  const std::vector<int> plain =
      Json::parse(out_of({"tokenize", "-m", model, "--no-special"}, text));
  EXPECT_EQ(std::count(plain.begin(), plain.end(), 0), 0);
  EXPECT_EQ(out_of({"tokenize", "-m", model, "--decode"}, Json(ids).dump()), text);
  EXPECT_EQ(out_of({"tokenize", "-m", model, "--decode", "--no-special"}, Json(ids).dump()),
            "onetwo");
  EXPECT_EQ(out_of({"tokenize", "-m", model, "--decode"}, Json(plain).dump()), text);
}

TEST(EvalTokenize, TextIsTakenByteForByte) {
  const std::string model = tiny("mamba1-tiny");
  EXPECT_EQ(out_of({"tokenize", "-m", model}, ""), "[]\n");
  EXPECT_NE(out_of({"tokenize", "-m", model}, "a\n"), out_of({"tokenize", "-m", model}, "a"));
  // Bytes that are not UTF-8 have tokens of their own (but C0, C1 and F5 to FF, which no tokenizer
  // of this kind knows).
  const std::vector<int> bytes = Json::parse(out_of({"tokenize", "-m", model}, "\x80\xe2\x82"));
  EXPECT_EQ(bytes.size(), 3u);
  EXPECT_EQ(out_of({"tokenize", "-m", model, "--decode"}, Json(bytes).dump()), "\ufffd\ufffd");
  const std::string nul("a\0b", 3);
  const std::string ids = out_of({"tokenize", "-m", model}, nul);
  EXPECT_EQ(out_of({"tokenize", "-m", model, "--decode"}, ids), nul);
}

TEST(EvalTokenize, JsonLinesBothWays) {
  const std::string model = tiny("mamba1-tiny");
  const std::string texts =
      "{\"text\": \"The king\"}\n\n{\"ids\": 5, \"text\": "
      "\"\\u00e9<|endoftext|>\\n\"}\r\n{\"text\":\"\"}";
  const std::string ids = out_of({"tokenize", "-m", model, "--json"}, texts);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), '\n'), 3);
  std::istringstream lines(out_of({"tokenize", "-m", model, "--json", "--decode"}, ids));
  std::vector<Json> decoded;
  for (std::string line; std::getline(lines, line);) decoded.push_back(Json::parse(line));
  ASSERT_EQ(decoded.size(), 3u);
  EXPECT_EQ(decoded[0], Json({{"text", "The king"}, {"text_without_special", "The king"}}));
  EXPECT_EQ(decoded[1],
            Json({{"text", "\u00e9<|endoftext|>\n"}, {"text_without_special", "\u00e9\n"}}));
  EXPECT_EQ(decoded[2], Json({{"text", ""}, {"text_without_special", ""}}));
}

TEST(EvalTokenize, RefusesBadLinesByNumber) {
  const std::string model = tiny("mamba1-tiny"), good = "{\"text\": \"a\"}\n";
  for (const char* line :
       {"{", "[]", "5", "{\"txt\": \"a\"}", "{\"text\": 5}", "{\"text\": \"\xff\"}"}) {
    expect_failure(eval({"tokenize", "-m", model, "--json"}, good + line + "\n" + good), 1,
                   "standard input line 2");
  }
  const std::string ids = "{\"ids\": [1]}\n";
  for (const char* line :
       {"{\"ids\": 1}", "{\"ids\": [1.5]}", "{\"ids\": [\"1\"]}", "{\"ids\": [2048]}",
        "{\"ids\": [-1]}", "{\"ids\": [18446744073709551615]}"}) {
    expect_failure(eval({"tokenize", "-m", model, "--json", "--decode"}, ids + line), 1,
                   "standard input line 2");
  }
  expect_failure(eval({"tokenize", "-m", model, "--decode"}, "1 2 x"), 1,
                 "standard input: expected a token id");
  expect_failure(eval({"tokenize", "-m", model, "--decode"}, "1 2048"), 1, "token 2048 (number 2)");
  expect_failure(eval({"tokenize", "-m", without_tokenizer()}, "a"), 1, "has no tokenizer");
}

TEST(EvalTokenize, GoldenCasesAgree) {
  const std::string golden = std::string(MAMBA_EDGE_SHARED_DIR) + "/golden/";
  if (!fs::exists(golden)) GTEST_SKIP() << golden << " is not there";
  // Any checkpoint carries any tokenizer whose ids its vocabulary holds; text.json's prompts are
  // enough here.
  for (const std::string name : {"mamba1-hf-tied", "mamba2-hf", "falcon-mamba-hf-eps"}) {
    const std::string model = converted(golden + name, name + "_fp32", {"--type", "fp32"});
    for (const Json& one : Json::parse(read_bytes(golden + name + "/text.json"))) {
      const std::string line = Json({{"text", one["prompt"]}}).dump();
      EXPECT_EQ(Json::parse(out_of({"tokenize", "-m", model, "--json"}, line))["ids"],
                one["prompt_ids"])
          << name;
      const Result result =
          execute({"mamba-generate", "-m", model, "-p", one["prompt"], "-n",
                   std::to_string(one["greedy_ids"].size()), "--greedy", "--ignore-eos", "--json"});
      ASSERT_EQ(result.status, 0) << result.err;
      EXPECT_EQ(Json::parse(result.out)["tokens"], one["greedy_ids"]) << name;
    }
  }
}

}  // namespace
}  // namespace mamba_edge::test
