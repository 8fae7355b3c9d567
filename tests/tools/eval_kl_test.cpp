// mamba-eval kl and compare: against divergences computed here from the logits of both models.
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "tests/tools/eval_programs.h"

namespace mamba_edge::test {
namespace {

std::string int4_tiny() {
  return converted(source("models/mamba1-tiny"), "mamba1-tiny_int4", {"--type", "int4"});
}

// mamba1-tiny in int8 with a tokenizer that differs.
std::string with_tokenizer(const std::string& name, void (*edit)(Json& tokenizer)) {
  const TemporaryFolder folder;
  for (const char* file : {"config.json", "model.safetensors"}) {
    fs::copy_file(source(std::string("models/mamba1-tiny/") + file), folder / file);
  }
  Json tokenizer = Json::parse(read_bytes(source("models/mamba1-tiny/tokenizer.json")));
  edit(tokenizer);
  write_bytes(folder / "tokenizer.json", tokenizer.dump());
  return converted(folder / "", "mamba1-tiny_" + name, {"--type", "int8"});
}

// What kl and perplexity should say of a text, from the logits of the models.
struct Expected {
  std::vector<double> kl, nll, nll_reference;
  std::vector<bool> same_best;

  double mean(const std::vector<double>& values, size_t begin = 0, size_t n = SIZE_MAX) const {
    double sum = 0;
    n = std::min(n, values.size() - begin);
    for (size_t i = begin; i < begin + n; ++i) sum += values[i];
    return sum / static_cast<double>(n);
  }
};

std::vector<long double> log_softmax(const float* row, size_t n) {
  long double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += std::exp(static_cast<long double>(row[i]));
  std::vector<long double> logs(n);
  for (size_t i = 0; i < n; ++i) logs[i] = static_cast<long double>(row[i]) - std::log(sum);
  return logs;
}

// Adds a window: `inputs` are read from the zero state, targets[i] follows inputs[i], and the first
// `skip` are not counted. The plain sum of p log(p / q), in long double.
void add_window(Expected& expected, const std::string& model, const std::string& reference,
                const std::vector<int32_t>& inputs, const std::vector<int32_t>& targets,
                size_t skip) {
  const TemporaryFolder folder;
  std::array<Floats, 2> logits;
  for (size_t m = 0; m < 2; ++m) {
    out_of({"logits", "-m", m == 0 ? model : reference, "--tokens", comma_separated(inputs), "-o",
            folder / "logits.npy"});
    logits[m] = read_floats(folder / "logits.npy");
  }
  const size_t n = logits[0].shape.at(1);
  for (size_t t = skip; t < targets.size(); ++t) {
    const float *row = logits[0].values.data() + t * n, *other = logits[1].values.data() + t * n;
    const std::vector<long double> q = log_softmax(row, n), p = log_softmax(other, n);
    long double kl = 0;
    for (size_t i = 0; i < n; ++i) kl += std::exp(p[i]) * (p[i] - q[i]);
    expected.kl.push_back(static_cast<double>(kl));
    expected.nll.push_back(static_cast<double>(-q[static_cast<size_t>(targets[t])]));
    expected.nll_reference.push_back(static_cast<double>(-p[static_cast<size_t>(targets[t])]));
    expected.same_best.push_back(std::max_element(row, row + n) - row ==
                                 std::max_element(other, other + n) - other);
  }
}

// The first tokens of models/valid.txt.
std::vector<int32_t> some_tokens(size_t n) {
  const std::vector<int64_t> ids = tools::read_npy_ids(source("models/mamba1-tiny-prompt-ids.npy"));
  return {ids.begin() + 1, ids.begin() + 1 + static_cast<long>(n)};
}

// Figures are of double: those of kl are off by less than 4e-14 and 2048 u of their size, 0.2 at the
// most here, for each token (eval_kl.cpp); sums of some hundred numbers below 10 by 1e-14 of theirs.
constexpr double kTolerance = 1e-13;

void expect_scores(const Json& json, const Expected& expected) {
  std::vector<double> sorted = expected.kl;
  std::sort(sorted.begin(), sorted.end());
  const size_t n = sorted.size();
  EXPECT_EQ(json["tokens"], n);
  EXPECT_NEAR(json["kl_mean"], expected.mean(expected.kl), kTolerance);
  EXPECT_NEAR(json["kl_median"], (sorted[(n - 1) / 2] + sorted[n / 2]) / 2, kTolerance);
  EXPECT_NEAR(json["kl_p99"], sorted[(99 * n + 99) / 100 - 1], kTolerance);
  EXPECT_NEAR(json["kl_max"], sorted.back(), kTolerance);
  const auto same = std::count(expected.same_best.begin(), expected.same_best.end(), true);
  EXPECT_EQ(json["top1_agreement"], static_cast<double>(same) / static_cast<double>(n));
  const double ppl = std::exp(expected.mean(expected.nll));
  const double ppl_reference = std::exp(expected.mean(expected.nll_reference));
  EXPECT_NEAR(json["ppl"], ppl, kTolerance * ppl);
  EXPECT_NEAR(json["ppl_reference"], ppl_reference, kTolerance * ppl_reference);
}

Json kl_json(std::vector<std::string> more) {
  more.insert(more.begin(), {"kl", "--json"});
  return Json::parse(out_of(more));
}

// ---- kl

TEST(EvalKl, IsTheDivergenceOfTheLogits) {
  const TemporaryFolder folder;
  const std::vector<int32_t> ids = some_tokens(63);
  const std::string tokens = folder / "ids.npy", model = int4_tiny(), fp32 = tiny("mamba1-tiny");
  write_bytes(tokens, npy_ids(ids));
  std::vector<int32_t> inputs = {0};
  inputs.insert(inputs.end(), ids.begin(), ids.end() - 1);
  Expected expected;
  add_window(expected, model, fp32, inputs, ids, 0);

  const std::vector<std::string> arguments = {
      "-m", model, "--reference", fp32, "--tokens-file", tokens, "--segments", "4"};
  const Json json = kl_json(arguments);
  EXPECT_EQ(json["model"], model);
  EXPECT_EQ(json["reference"], fp32);
  EXPECT_EQ(json["text"], tokens);
  EXPECT_EQ(json["state"], "fp32");
  EXPECT_EQ(json["reference_state"], "fp32");
  expect_scores(json, expected);
  EXPECT_GT(json["kl_mean"], 0.001);  // so that the test is of something

  // 63 tokens in four parts: every token in one of them, in order.
  size_t first = 0;
  ASSERT_EQ(json["segments"].size(), 4u);
  for (const Json& segment : json["segments"]) {
    const size_t n = segment["tokens"];
    EXPECT_EQ(segment["first"], first);
    EXPECT_TRUE(n == 15 || n == 16) << n;
    EXPECT_NEAR(segment["kl_mean"], expected.mean(expected.kl, first, n), kTolerance);
    EXPECT_EQ(segment["kl_max"].get<double>() <= json["kl_max"].get<double>(), true);
    const double ppl = std::exp(expected.mean(expected.nll, first, n));
    EXPECT_NEAR(segment["ppl"], ppl, kTolerance * ppl);
    first += n;
  }
  EXPECT_EQ(first, 63u);

  // The same text as text, and however it is computed.
  Json from_text = kl_json({"-m", model, "--reference", fp32, "-f", source("models/valid.txt"),
                            "--max-tokens", "63", "--segments", "4"});
  from_text["text"] = tokens;
  EXPECT_EQ(from_text, json);
  for (const char* chunk : {"1", "7", "64"}) {
    std::vector<std::string> other = arguments;
    other.insert(other.end(), {"--chunk", chunk, "-t", "3"});
    EXPECT_EQ(kl_json(other), json) << chunk;
  }

  // For people: the same numbers.
  std::vector<std::string> plain = arguments;
  plain.insert(plain.begin(), "kl");
  const std::string text = out_of(plain);
  EXPECT_EQ(number_after(text, "tokens "), 63);
  EXPECT_NEAR(number_after(text, "kl_mean "), json["kl_mean"],
              1e-5 * json["kl_mean"].get<double>());
  EXPECT_NEAR(number_after(text, "ppl_reference "), json["ppl_reference"], 1e-6);
  EXPECT_NE(text.find("segment"), std::string::npos);
}

TEST(EvalKl, WindowsStartAfreshAndTheirBeginningsCanBeLeftOut) {
  const TemporaryFolder folder;
  const std::string model = int4_tiny(), fp32 = tiny("mamba1-tiny"), tokens = folder / "ids.npy";
  // Windows of 25, 25 and 13 tokens, and of 25, 25 and 10, the last of which is nothing but skipped.
  for (const size_t n : {size_t{63}, size_t{60}}) {
    const std::vector<int32_t> ids = some_tokens(n);
    write_bytes(tokens, npy_ids(ids));
    for (const bool start : {true, false}) {
      Expected expected;
      for (size_t begin = 0; begin + 10 < n; begin += 25) {
        const size_t end = std::min(begin + 25, n);
        const std::vector<int32_t> window(ids.begin() + static_cast<long>(begin),
                                          ids.begin() + static_cast<long>(end));
        if (start) {
          std::vector<int32_t> inputs = {0};
          inputs.insert(inputs.end(), window.begin(), window.end() - 1);
          add_window(expected, model, fp32, inputs, window, 10);
        } else {
          add_window(expected, model, fp32, {window.begin(), window.end() - 1},
                     {window.begin() + 1, window.end()}, 9);
        }
      }
      std::vector<std::string> arguments = {
          "-m",       model, "--reference", fp32, "--tokens-file", tokens,
          "--window", "25",  "--skip",      "10", "--chunk",       "4"};
      if (!start) arguments.emplace_back("--no-start");
      const Json json = kl_json(arguments);
      EXPECT_EQ(json["tokens"], n == 63 ? 33 : 30);
      expect_scores(json, expected);

      // perplexity scores the same positions.
      arguments = {"perplexity", "--json",   "-m", model,    "--tokens-file",
                   tokens,       "--window", "25", "--skip", "10"};
      if (!start) arguments.emplace_back("--no-start");
      const Json perplexity = Json::parse(out_of(arguments));
      EXPECT_EQ(perplexity["tokens"], json["tokens"]);
      EXPECT_NEAR(perplexity["ppl"], json["ppl"], kTolerance * json["ppl"].get<double>());
    }
  }
}

// Without a start token and with the first token of each window not scored: what results.json calls
// windows_512_all. The 218th window is the last whole one.
TEST(EvalKl, WindowsOf512GiveTheReferencesPerplexity) {
  if (kSlow) GTEST_SKIP() << "takes minutes here";
  const Json results = Json::parse(read_bytes(source("models/results.json")));
  const Json& expected = results["mamba2-tiny"]["windows_512_all"];
  const Json json = Json::parse(
      out_of({"perplexity", "--json", "-m", tiny("mamba2-tiny"), "-f", source("models/valid.txt"),
              "--limit", "111616", "--window", "512", "--no-start"}));
  EXPECT_EQ(json["tokens"], expected["tokens_scored"]);
  // Float32 rounding of logits, as in EvalPerplexity; most of it averages out.
  EXPECT_NEAR(json["nll"], expected["nats_per_token"], 1e-4);
}

TEST(EvalKl, OfAModelFromItselfIsExactlyZero) {
  const TemporaryFolder folder;
  const std::string copy = folder / "copy.mamba";
  fs::copy_file(int4_tiny(), copy);
  for (const std::string& reference : {int4_tiny(), copy}) {
    const Json json = kl_json({"-m", int4_tiny(), "--reference", reference, "-f",
                               source("models/valid.txt"), "--limit", "200"});
    EXPECT_EQ(json["tokens"], 200);
    for (const char* field : {"kl_mean", "kl_median", "kl_p99", "kl_max"})
      EXPECT_EQ(json[field], 0);
    EXPECT_EQ(json["top1_agreement"], 1);
    EXPECT_EQ(json["ppl"], json["ppl_reference"]);
  }
}

TEST(EvalKl, MeasuresTheStateType) {
  for (const std::string name : {"mamba1-tiny", "mamba2-tiny"}) {
    const std::vector<std::string> arguments = {"-m",       tiny(name), "--reference",
                                                tiny(name), "-f",       source("models/valid.txt"),
                                                "--limit",  "300"};
    double before = 0;
    for (const std::string type : {"fp16", "int8"}) {  // the coarser, the farther
      std::vector<std::string> one = arguments, both = arguments;
      one.insert(one.end(), {"--state", type});
      both.insert(both.end(), {"--state", type, "--reference-state", type});
      const Json json = kl_json(one);
      EXPECT_EQ(json["state"], type);
      EXPECT_EQ(json["reference_state"], "fp32");
      EXPECT_GT(json["kl_mean"].get<double>(), before);
      before = json["kl_mean"].get<double>();
      EXPECT_EQ(json["ppl_reference"], kl_json(arguments)["ppl"]);  // the reference stays as it was
      EXPECT_EQ(kl_json(both)["kl_max"], 0);
    }
  }
}

TEST(EvalKl, RefusesOtherVocabularies) {
  const TemporaryFolder folder;
  const std::string fp32 = tiny("mamba1-tiny"), text = source("models/valid.txt");
  const auto kl = [&](const std::string& model, const std::string& file) {
    const Result result = eval({"kl", "-m", model, "--reference", fp32, "-f", file});
    if (result.status != 0) {
      EXPECT_NE(result.err.find("'" + fp32 + "'"), std::string::npos) << result.err;
      EXPECT_NE(result.err.find("'" + model + "'"), std::string::npos) << result.err;
    }
    return result;
  };
  const std::string small = converted(source("tests/data/golden/mamba1-ss-dims"),
                                      "mamba1-ss-dims_eval", {"--type", "fp32"});
  expect_failure(kl(small, text), 1, "different vocabularies");
  expect_failure(kl(with_tokenizer("swapped",
                                   [](Json& tokenizer) {
                                     std::swap(tokenizer["model"]["vocab"]["A"],
                                               tokenizer["model"]["vocab"]["B"]);
                                   }),
                    text),
                 1, "token 33 is \"B\" and \"A\"");

  // The same tokens, but one of them takes the spaces after it: that matters to some texts only.
  const std::string strips = with_tokenizer(
      "strips", [](Json& tokenizer) { tokenizer["added_tokens"][0]["rstrip"] = true; });
  write_bytes(folder / "plain.txt", "Once upon a time");
  write_bytes(folder / "special.txt", "Once<|endoftext|>  upon a time");
  EXPECT_EQ(kl(strips, folder / "plain.txt").status, 0);
  expect_failure(kl(strips, folder / "special.txt"), 1, "different tokens, from number ");

  // Without a tokenizer only ids can be compared.
  const std::string none = without_tokenizer();
  expect_failure(eval({"kl", "-m", none, "--reference", fp32, "-f", text}), 1, "has no tokenizer");
  expect_failure(eval({"kl", "-m", fp32, "--reference", none, "-f", text}), 1, "has no tokenizer");
  write_bytes(folder / "ids.npy", npy_ids({5, 6, 7}));
  EXPECT_EQ(
      kl_json({"-m", none, "--reference", fp32, "--tokens-file", folder / "ids.npy"})["kl_max"], 0);
}

TEST(EvalKl, RefusesWhatCannotBeScored) {
  const TemporaryFolder folder;
  const std::string fp32 = tiny("mamba1-tiny"), one = folder / "one.npy";
  write_bytes(one, npy_ids({5}));
  const auto kl = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"kl", "-m", fp32, "--reference", fp32});
    return eval(more);
  };
  EXPECT_EQ(kl({"--tokens-file", one}).status, 0);
  expect_failure(kl({"--tokens-file", one, "--no-start"}), 1, "'" + one + "' is too short");
  expect_failure(kl({"--tokens-file", one, "--skip", "1"}), 1, "is too short to be scored");
  expect_failure(kl({"--tokens-file", one, "--segments", "2"}), 1, "has only 1 scored tokens");
  expect_failure(kl({"-f", "/dev/null"}), 1, "'/dev/null' has no tokens");
  expect_failure(kl({"-f", folder / "none.txt"}), 1, "none.txt");
  expect_failure(
      eval({"kl", "-m", folder / "none.mamba", "--reference", fp32, "--tokens-file", one}), 1,
      "none.mamba");
  expect_failure(
      eval({"kl", "-m", fp32, "--reference", folder / "none.mamba", "--tokens-file", one}), 1,
      "none.mamba");
  expect_failure(kl({}), 2, "-f or --tokens-file is required");
  expect_failure(kl({"-f", "x", "--window", "1"}), 2, "from 2 up, not '1'");
  expect_failure(kl({"-f", "x", "--window", "8", "--skip", "8"}), 2, "--skip 8 leaves nothing");
  expect_failure(kl({"-f", "x", "--segments", "0"}), 2, "--segments");
  expect_failure(kl({"-f", "x", "--start", "5", "--no-start"}), 2, "--no-start");
  expect_failure(kl({"-f", "x", "--reference-state", "fp8"}), 2, "--reference-state");
  expect_failure(eval({"kl", "-m", fp32, "-f", "x"}), 2, "--reference");
  expect_failure(eval({"perplexity", "-m", fp32, "-f", "x", "--window", "1"}), 2, "from 2 up");
  expect_failure(eval({"compare", fp32, "--reference", fp32, "-f", "x", "--window", "1"}), 2,
                 "from 2 up");
  expect_failure(eval({"perplexity", "-m", fp32, "-f", "x", "--window", "8", "--skip", "9"}), 2,
                 "--skip 9 leaves nothing");
}

// ---- compare

// The elements of an XML text, in order, as "name" with the attributes; checks that it is well-formed:
// tags that match, quoted attributes, and no & that is not one of the named five.
struct Element {
  std::string name;
  std::map<std::string, std::string> attributes;
  std::string text;  // up to the next tag
};

void expect_references(const std::string& text) {
  for (size_t at = text.find('&'); at != std::string::npos; at = text.find('&', at + 1)) {
    bool known = false;
    for (const char* name : {"&amp;", "&lt;", "&gt;", "&quot;", "&apos;"})
      known = known || text.compare(at, std::strlen(name), name) == 0;
    EXPECT_TRUE(known) << text;
  }
  for (const char c : text) EXPECT_TRUE(static_cast<unsigned char>(c) >= 0x20 || c == '\n') << text;
}

std::vector<Element> parse_xml(const std::string& xml) {
  std::vector<Element> elements;
  std::vector<std::string> open;
  EXPECT_TRUE(tools::is_utf8(xml));
  size_t at = 0;
  while (at < xml.size()) {
    if (xml[at] != '<') {
      const size_t end = std::min(xml.find('<', at), xml.size());
      const std::string text = xml.substr(at, end - at);
      expect_references(text);
      if (open.empty()) {
        EXPECT_EQ(text, "\n");
      } else {
        elements.back().text += text;
      }
      at = end;
      continue;
    }
    const size_t end = xml.find('>', at);
    if (end == std::string::npos) {
      ADD_FAILURE() << "a tag that does not end";
      break;
    }
    std::string tag = xml.substr(at + 1, end - at - 1);
    at = end + 1;
    if (tag.starts_with('/')) {
      if (open.empty() || open.back() != tag.substr(1)) {
        ADD_FAILURE() << "</" << tag.substr(1) << "> ends nothing";
        break;
      }
      open.pop_back();
      continue;
    }
    const bool empty = tag.ends_with('/');
    if (empty) tag.pop_back();
    Element element;
    size_t p = tag.find(' ');
    element.name = tag.substr(0, p);
    while (p < tag.size()) {
      const size_t equals = tag.find("=\"", p), close = tag.find('"', equals + 2);
      if (equals == std::string::npos || close == std::string::npos) {
        ADD_FAILURE() << "an attribute without quotes: " << tag;
        break;
      }
      const std::string value = tag.substr(equals + 2, close - equals - 2);
      expect_references(value);
      EXPECT_TRUE(element.attributes.emplace(tag.substr(p + 1, equals - p - 1), value).second)
          << tag;
      p = close + 1;
    }
    elements.push_back(element);
    if (!empty) open.push_back(element.name);
  }
  EXPECT_TRUE(open.empty());
  return elements;
}

TEST(EvalCompare, IsATableOfWhatKlSays) {
  const TemporaryFolder folder;
  const std::string fp32 = tiny("mamba1-tiny"), int4 = int4_tiny(),
                    text = source("models/valid.txt");
  const std::vector<std::string> what = {"-f",       text,  "--limit", "200",
                                         "--window", "100", "--skip",  "50"};
  std::vector<std::string> arguments = {"compare", fp32,     int4,     "--reference",
                                        fp32,      "--json", "--speed"};
  arguments.insert(arguments.end(), what.begin(), what.end());
  const Json json = Json::parse(out_of(arguments));
  EXPECT_EQ(json["reference"], fp32);
  EXPECT_EQ(json["text"], text);
  EXPECT_EQ(json["tokens"], 100);
  ASSERT_EQ(json["models"].size(), 2u);  // the smaller file first
  EXPECT_EQ(json["models"][0]["model"], int4);
  EXPECT_EQ(json["models"][0]["name"], fs::path(int4).stem().string());
  EXPECT_EQ(json["models"][1]["model"], fp32);
  EXPECT_EQ(json["models"][1]["kl_max"], 0);
  EXPECT_EQ(json["models"][1]["ppl_change_percent"], 0);
  EXPECT_EQ(json["models"][1]["bits_per_weight"], 32);
  for (const Json& model : json["models"]) {
    const std::string file = model["model"];
    std::vector<std::string> one = {"-m", file, "--reference", fp32};
    one.insert(one.end(), what.begin(), what.end());
    const Json kl = kl_json(one);
    for (const char* field : {"tokens", "kl_mean", "kl_median", "kl_p99", "kl_max",
                              "top1_agreement", "ppl", "ppl_reference"})
      EXPECT_EQ(model[field], kl[field]) << field;
    EXPECT_EQ(json["ppl_reference"], kl["ppl_reference"]);
    EXPECT_NEAR(model["ppl_change_percent"],
                100 * (kl["ppl"].get<double>() / kl["ppl_reference"].get<double>() - 1), 1e-9);
    EXPECT_EQ(model["bytes"], fs::file_size(file));
    EXPECT_GT(model["tokens_per_second"], 0);
  }
  // Bits per weight as the converter counts them.
  const Result quantised = execute({"mamba-quantize", source("models/mamba1-tiny"), "-o",
                                    folder / "int4.mamba", "--type", "int4", "--json"});
  EXPECT_NEAR(json["models"][0]["bits_per_weight"],
              Json::parse(quantised.out)["bits_per_weight"].get<double>(), 1e-12);

  // For people: a line each, with the same KL.
  arguments.erase(std::find(arguments.begin(), arguments.end(), "--json"));
  const std::string table = out_of(arguments);
  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 5);
  EXPECT_LT(table.find(fs::path(int4).stem().string() + " "),
            table.find(fs::path(fp32).stem().string() + " "));
  EXPECT_NE(table.find("tokens/s"), std::string::npos);
}

TEST(EvalCompare, DrawsWhatItMeasuredBesideOtherFigures) {
  const TemporaryFolder folder;
  const std::string fp32 = tiny("mamba1-tiny"), csv = folder / "elsewhere.csv",
                    json = folder / "elsewhere.json", svg = folder / "picture.svg";
  write_bytes(
      csv, "note,name,kl,bytes\r\n\n,\"Q<4>, \"\"&\"\"\",0.5,2000000\n x , Q8 \x01\xff,1e-4,4e6\n");
  write_bytes(json,
              "[{\"name\": \"Q<4>, \\\"&\\\"\", \"kl\": 0.5, \"bytes\": 2000000},"
              " {\"name\": \"Q8\", \"kl\": 0.0001, \"bytes\": 4000000}]");
  const std::vector<std::string> common = {
      "compare", fp32, int4_tiny(), "--reference", fp32, "-f", source("models/valid.txt"),
      "--limit", "100"};
  for (const std::string& others : {csv, json}) {
    std::vector<std::string> arguments = common;
    arguments.insert(arguments.end(),
                     {"--others", others, "--svg", svg, "--json", "--title", "A & B"});
    const Json result = Json::parse(out_of(arguments));
    EXPECT_EQ(result["models"].size(), 2u);
    ASSERT_EQ(result["others"].size(), 2u);
    EXPECT_EQ(result["others"][0],
              Json({{"name", "Q<4>, \"&\""}, {"bytes", 2'000'000}, {"kl", 0.5}}));
    EXPECT_EQ(result["others"][1]["kl"], 1e-4);

    const std::string picture = read_bytes(svg);
    const std::vector<Element> elements = parse_xml(picture);
    ASSERT_FALSE(elements.empty());
    EXPECT_EQ(elements[0].name, "svg");
    for (const char* outside : {"href", "url(", "<script", "<image", "@import"})
      EXPECT_EQ(picture.find(outside), std::string::npos) << outside;
    const auto number = [](const Element& element, const char* name) {
      return std::strtod(element.attributes.at(name).c_str(), nullptr);
    };
    // A mark for each figure but the fp32 one, whose KL is 0; one of each kind is the legend's.
    std::vector<std::pair<double, double>> circles, squares;
    std::string words;
    for (const Element& e : elements) {
      if (e.name == "circle") circles.emplace_back(number(e, "cx"), number(e, "cy"));
      if (e.name == "rect" && number(e, "x") > 0)
        squares.emplace_back(number(e, "x"), number(e, "y"));
      words += e.text + "\n";
    }
    ASSERT_EQ(circles.size(), 2u);
    ASSERT_EQ(squares.size(), 3u);
    // 2 MB and 4 MB, 0.5 and 0.0001: the larger file is to the right, the larger KL above.
    EXPECT_LT(squares[1].first, squares[2].first);
    EXPECT_LT(squares[1].second, squares[2].second);
    for (const char* word : {"A &amp; B", "Q&lt;4&gt;, \"&amp;\"", "mamba-edge", "elsewhere", "Q8",
                             "0.001", "2.5 MB", "KL 0, which this axis has no place for"})
      EXPECT_NE(words.find(word), std::string::npos) << word;
  }
  std::vector<std::string> arguments = common;
  arguments.insert(arguments.end(), {"--svg", "-", "--others", csv, "--others-name", "a peer"});
  const std::string picture = out_of(arguments);
  EXPECT_EQ(parse_xml(picture).at(0).name, "svg");
  EXPECT_NE(picture.find(">a peer<"), std::string::npos);
  EXPECT_EQ(picture.find("elsewhere"), std::string::npos);
}

// Names never cover each other or a mark, even of figures that are almost the same.
TEST(EvalCompare, NamesInThePictureCanBeRead) {
  const TemporaryFolder folder;
  std::string others = "name,bytes,kl\n";
  for (int i = 0; i < 12; ++i)
    others += "figure " + std::to_string(i) + "," + std::to_string(2'000'000 + 3000 * i) + ",0.0" +
              std::to_string(20 + i / 4) + "\n";
  write_bytes(folder / "others.csv", others);
  const std::vector<Element> elements = parse_xml(out_of(
      {"compare", int4_tiny(), "--reference", tiny("mamba1-tiny"), "-f", source("models/valid.txt"),
       "--limit", "50", "--others", folder / "others.csv", "--svg", "-"}));
  struct Box {
    double x, y, width, height;
    std::string what;
  };
  std::vector<Box> boxes;
  for (const Element& e : elements) {
    const auto number = [&](const char* name) {
      return std::strtod(e.attributes.at(name).c_str(), nullptr);
    };
    // 0.5 of the size is narrower than the letters of the fonts in question.
    if (e.name == "text" && e.text.starts_with("figure")) {
      boxes.push_back({number("x"), number("y") - 9,
                       0.5 * 12.5 * static_cast<double>(e.text.size()), 9, e.text});
    } else if (e.name == "rect" && number("x") > 0) {
      boxes.push_back({number("x"), number("y"), 0.0, number("height"), "mark"});
    }
  }
  size_t names = 0;
  for (size_t i = 0; i < boxes.size(); ++i) {
    names += boxes[i].what == "mark" ? 0 : 1;
    for (size_t j = 0; j < i; ++j) {
      const Box &a = boxes[i], &b = boxes[j];
      if (a.what == b.what) continue;  // marks may
      EXPECT_FALSE(a.x <= b.x + b.width && b.x <= a.x + a.width && a.y < b.y + b.height &&
                   b.y < a.y + a.height)
          << a.what << " and " << b.what;
    }
  }
  EXPECT_EQ(names, 12u);
}

TEST(EvalCompare, RefusesBadInput) {
  const TemporaryFolder folder;
  const std::string fp32 = tiny("mamba1-tiny"), others = folder / "others",
                    text = source("models/valid.txt");
  const auto compare = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"compare", fp32, "--reference", fp32, "-f", text, "--limit", "5"});
    return eval(more);
  };
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "has no figures"},
      {"name,bytes,kl\n", "has no figures"},
      {"name,bytes\nQ8,5", "line 1 names no column kl"},
      {"name,bytes,kl\nQ8,5", "line 2 has 2 fields; 3 were expected"},
      {"name,bytes,kl\nQ8,five,1", "line 2: expected a number, not 'five'"},
      {"name,bytes,kl\n\nQ8,0,1", "line 3: expected bytes"},
      {"name,bytes,kl\nQ8,5,-1", "line 2: expected kl"},
      {"name,bytes,kl\nQ8,5,nan", "line 2: expected kl"},
      {"name,bytes,kl\n,5,1", "line 2: expected a name"},
      {"name,bytes,kl\n\"Q8,5,1", "line 2: expected a closing quote"},
      {"[", "is not JSON"},
      {"[5]", "entry 1: expected an object"},
      {"[{\"name\": \"a\", \"bytes\": 1, \"kl\": 1}, {\"bytes\": 1, \"kl\": 1}]",
       "entry 2: expected a string as \"name\""},
      {"[{\"name\": \"a\", \"bytes\": \"1\", \"kl\": 1}]",
       "entry 1: expected a number as \"bytes\""},
      {"[{\"name\": \"a\", \"bytes\": 1}]", "entry 1: expected a number as \"kl\""},
  };
  for (const auto& [content, message] : cases) {
    write_bytes(others, content);
    const Result result = compare({"--others", others});
    expect_failure(result, 1, message);
    EXPECT_NE(result.err.find("'" + others + "'"), std::string::npos) << result.err;
  }
  expect_failure(compare({"--others", folder / "none"}), 1, "none");
  expect_failure(compare({"--svg", folder / "missing/picture.svg"}), 1, "missing/picture.svg");
  expect_failure(compare({"--others-name", "a peer"}), 2, "--others");
  expect_failure(compare({"--svg", "-", "--json"}), 2, "both need stdout");
  const std::string model = folder / "model.mamba", bytes = read_bytes(tiny("mamba1-tiny"));
  write_bytes(model, bytes);
  expect_failure(execute({"mamba-eval", "compare", model, "--reference", tiny("mamba1-tiny"), "-f",
                          text, "--limit", "5", "--svg", model}),
                 1, "cannot write '" + model + "'");
  for (const char* output : {"-o", "--final-conv-state", "--final-ssm-state"}) {
    std::vector<std::string> arguments = {"mamba-eval", "logits", "-m", model, "--tokens", "1"};
    if (output != std::string("-o")) arguments.insert(arguments.end(), {"-o", folder / "x.npy"});
    arguments.insert(arguments.end(), {output, model});
    expect_failure(execute(arguments), 1, "cannot write '" + model + "'");
  }
  expect_failure(execute({"mamba-eval", "logits", "-m", model, "--tokens", "1", "-o", "-",
                          "--final-conv-state", "-"}),
                 1, "two files to standard output");
  EXPECT_TRUE(read_bytes(model) == bytes);
  // A file that is not there is noticed before the others are measured.
  const auto two = [&](const std::string& file) {
    return eval({"compare", fp32, file, "--reference", fp32, "-f", text});
  };
  expect_failure(two(folder / "none.mamba"), 1, "none.mamba");
  const std::string small = converted(source("tests/data/golden/mamba1-ss-dims"),
                                      "mamba1-ss-dims_eval", {"--type", "fp32"});
  expect_failure(eval({"compare", small, "--reference", fp32, "-f", text}), 1,
                 "different vocabularies");
  expect_failure(eval({"compare", "--reference", fp32, "-f", text}), 2, "MODELS");
}

}  // namespace
}  // namespace mamba_edge::test
