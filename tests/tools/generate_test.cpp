// mamba-generate as a person or a script meets it: what it prints where, and how it ends.
#include <gtest/gtest.h>
#include <stdlib.h>

#include "tests/tools/programs.h"
#include "tools/common.h"

namespace mamba_edge::test {
namespace {

std::vector<std::string> generate(const std::vector<std::string>& options,
                                  const std::string& model) {
  std::vector<std::string> arguments = {"mamba-generate", "-m", model};
  arguments.insert(arguments.end(), options.begin(), options.end());
  return arguments;
}

Result run(const std::vector<std::string>& options, const std::string& input = {}) {
  return execute(generate(options, tiny("mamba1-tiny")), input);
}

std::string out_of(const std::vector<std::string>& options, const std::string& input = {}) {
  const Result result = run(options, input);
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.err, "");
  return result.out;
}

Json json_of(std::vector<std::string> options, const std::string& input = {}) {
  options.push_back("--json");
  const std::string out = out_of(options, input);
  EXPECT_EQ(std::count(out.begin(), out.end(), '\n'), 1);
  return Json::parse(out);
}

// The texts of lists of ids, by way of mamba-eval.
std::vector<std::string> decode(const std::vector<Json>& lists) {
  std::string input;
  for (const Json& ids : lists) input += Json({{"ids", ids}}).dump() + "\n";
  const Result result =
      execute({"mamba-eval", "tokenize", "-m", tiny("mamba1-tiny"), "--decode", "--json"}, input);
  EXPECT_EQ(result.status, 0) << result.err;
  std::vector<std::string> texts;
  std::istringstream lines(result.out);
  for (std::string line; std::getline(lines, line);) texts.push_back(Json::parse(line)["text"]);
  return texts;
}

const std::vector<std::string> kStory = {"--bos", "-p", "Once upon a time", "-s", "7"};

std::vector<std::string> story(std::vector<std::string> more) {
  more.insert(more.begin(), kStory.begin(), kStory.end());
  return more;
}

// models/results.json has what a reference implementation in float32 continues greedily. Rounding
// may turn a near-tie, so the first 200 bytes are compared, not all of them.
TEST(Generate, GreedyTextIsTheReferences) {
  const Json results = Json::parse(read_bytes(source("models/results.json")));
  for (const char* model : {"mamba1-tiny", "mamba2-tiny"}) {
    for (const char* prompt :
         {"Once upon a time there was a little girl", "The king said to his daughter,"}) {
      const Result result =
          execute(generate({"--bos", "-p", prompt, "-n", "60", "--greedy"}, tiny(model)));
      ASSERT_EQ(result.status, 0) << result.err;
      bool compared = false;
      for (const Json& sample : results[model]["greedy"]) {
        const std::string expected = sample.get<std::string>();
        if (!expected.starts_with(prompt)) continue;
        compared = true;
        EXPECT_EQ(result.out.substr(0, 200), expected.substr(0, 200));
      }
      EXPECT_TRUE(compared);
    }
  }
}

TEST(Generate, PrintsThePromptUnlessToldNotTo) {
  const std::string all = out_of(story({"-n", "20"}));
  const std::string continuation = out_of(story({"-n", "20", "--no-display-prompt"}));
  EXPECT_TRUE(all.starts_with("Once upon a time"));
  EXPECT_EQ(all, "Once upon a time" + continuation);
  EXPECT_EQ(all.back(), '\n');
  EXPECT_EQ(out_of(story({"-n", "0"})), "Once upon a time\n");
  EXPECT_EQ(out_of(story({"-n", "0", "--no-display-prompt"})), "");
}

TEST(Generate, ASeedFixesTheText) {
  const std::string text = out_of(story({"-n", "40"}));
  EXPECT_EQ(out_of(story({"-n", "40"})), text);
  const std::vector<std::string> other = {"--bos", "-p", "Once upon a time", "-s", "8", "-n", "40"};
  EXPECT_NE(out_of(other), text);
  // Without one, each run draws its own and says which.
  const Json first = json_of({"-p", "Once", "-n", "1"}),
             second = json_of({"-p", "Once", "-n", "1", "-s", "-1"});
  EXPECT_NE(first["seed"], second["seed"]);
}

TEST(Generate, ThreadsAndChunksDoNotChangeTheText) {
  const std::string text = out_of(story({"-n", "40", "-t", "1"}));
  for (const char* threads : {"2", "3"}) {
    for (const char* chunk : {"1", "3", "64"}) {
      EXPECT_EQ(out_of(story({"-n", "40", "-t", threads, "--chunk", chunk})), text)
          << threads << " " << chunk;
    }
  }
}

// Each of several continuations is the one that its seed gives alone; a stop string ends one and not
// the others.
TEST(Generate, ParallelContinuationsAreWhatEachWouldBeAlone) {
  for (const std::vector<std::string>& more :
       {std::vector<std::string>{"-n", "40"},
        std::vector<std::string>{"-n", "60", "--stop", ".", "--state", "fp16", "-t", "2"},
        std::vector<std::string>{"-n", "40", "--state", "int8", "-t", "2"}}) {
    std::vector<std::string> together = story({"--parallel", "3"});
    together.insert(together.end(), more.begin(), more.end());
    const Json all = json_of(together);
    ASSERT_EQ(all["continuations"].size(), 3u);
    std::string printed;
    for (int i = 0; i < 3; ++i) {
      std::vector<std::string> one = {"--bos", "-p", "Once upon a time", "-s",
                                      std::to_string(7 + i)};
      one.insert(one.end(), more.begin(), more.end());
      const Json alone = json_of(one);
      const Json& mine = all["continuations"][static_cast<size_t>(i)];
      for (const char* key : {"text", "tokens", "stop_reason"}) EXPECT_EQ(mine[key], alone[key]);
      printed += "==> " + std::to_string(i + 1) + " of 3, seed " + std::to_string(7 + i) + "\n" +
                 out_of(one);
    }
    EXPECT_EQ(out_of(together), printed);
  }
  EXPECT_EQ(run(story({"--parallel", "0"})).status, 2);
}

TEST(Generate, PromptsComeFromAFileOrAPipeToo) {
  const TemporaryFolder folder;
  const std::vector<std::string> rest = {"-n", "12", "-s", "7"};
  const auto with = [&](std::vector<std::string> first) {
    first.insert(first.end(), rest.begin(), rest.end());
    return first;
  };
  const std::string expected = out_of(with({"-p", "A king\nand a"}));
  for (const char* text : {"A king\nand a", "A king\nand a\n", "A king\nand a\r\n"}) {
    write_bytes(folder / "prompt", text);
    EXPECT_EQ(out_of(with({"-f", folder / "prompt"})), expected);
    EXPECT_EQ(out_of(with({"-f", "-"}), text), expected);
    EXPECT_EQ(out_of(with({}), text), expected);
  }
  EXPECT_NE(out_of(with({}), "A king\nand a\n\n"), expected);  // only one newline is dropped
}

TEST(Generate, AnEmptyPromptBeginsWithTheStartToken) {
  const std::vector<std::string> rest = {"-n", "12", "-s", "7"};
  Json expected = json_of({"--tokens", "0", "-n", "12", "-s", "7"});
  EXPECT_EQ(expected["prompt_tokens"], Json::array({0}));
  for (const std::vector<std::string>& options : std::vector<std::vector<std::string>>{
           {"-p", ""}, {"-p", "", "--bos"}, {"--tokens", ""}, {"-f", "/dev/null"}, {}}) {
    std::vector<std::string> all = options;
    all.insert(all.end(), rest.begin(), rest.end());
    const Json json = json_of(all);
    EXPECT_EQ(json["prompt_tokens"], Json::array({0}));
    EXPECT_EQ(json["tokens"], expected["tokens"]);
    EXPECT_EQ(json["prompt"], "");
  }
}

TEST(Generate, BosIsAddedOnceAndOnlyOnRequest) {
  const Json plain = json_of({"-p", "Once", "-n", "0"});
  const Json bos = json_of({"-p", "Once", "-n", "0", "--bos"});
  const Json written = json_of({"-p", "<|endoftext|>Once", "-n", "0", "--bos"});
  Json expected = plain["prompt_tokens"];
  EXPECT_NE(expected[0], 0);
  expected.insert(expected.begin(), 0);
  EXPECT_EQ(bos["prompt_tokens"], expected);
  EXPECT_EQ(written["prompt_tokens"], expected);
  EXPECT_EQ(out_of({"-p", "<|endoftext|>Once", "-n", "0"}), "Once\n");
  EXPECT_EQ(out_of({"-p", "<|endoftext|>Once", "-n", "0", "--special"}), "<|endoftext|>Once\n");
}

TEST(Generate, TokensInTokensOut) {
  const Json json = json_of(story({"-n", "10"}));
  const std::string prompt = comma_separated(json["prompt_tokens"]);
  const std::string continuation = comma_separated(json["tokens"]);
  const std::vector<std::string> options = {"--tokens", prompt, "-s", "7", "-n", "10"};
  EXPECT_EQ(out_of(options), prompt + "," + continuation + "\n");
  std::vector<std::string> quiet = options;
  quiet.push_back("--no-display-prompt");
  EXPECT_EQ(out_of(quiet), continuation + "\n");
  // The same without a tokenizer.
  const Result result = execute(generate(options, without_tokenizer()));
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.out, prompt + "," + continuation + "\n");
}

TEST(Generate, TokensThatTheTokenizerLacks) {
  const std::string model =
      converted(source("models/mamba1-tiny"), "mamba1-tiny_small-tokenizer",
                {"--type", "fp32", "--tokenizer", source("tests/data/tokenizer-small/neox-277")});
  const std::vector<std::string> options = {"--tokens", "1,2047", "-n", "3", "--greedy"};
  const Result ids = execute(generate(options, model));
  EXPECT_EQ(ids.status, 0) << ids.err;
  EXPECT_EQ(ids.out.rfind("1,2047,", 0), 0u) << ids.out;
  std::vector<std::string> json = options;
  json.push_back("--json");
  const Json report = Json::parse(execute(generate(json, model)).out);
  EXPECT_EQ(report["prompt_tokens"], Json({1, 2047}));
  EXPECT_EQ("1,2047," + comma_separated(report["tokens"]) + "\n", ids.out);
}

TEST(Generate, AModelWithoutTokenizerRefusesTextAndSaysWhatToDo) {
  for (const std::vector<std::string>& options : std::vector<std::vector<std::string>>{
           {"-p", "Once"}, {"-p", ""}, {"--tokens", "1", "--stop", "x"}}) {
    const Result result = execute(generate(options, without_tokenizer()));
    EXPECT_EQ(result.status, 1);
    EXPECT_EQ(result.out, "");
    EXPECT_NE(result.err.find("has no tokenizer"), std::string::npos) << result.err;
    EXPECT_NE(result.err.find("--tokenizer"), std::string::npos) << result.err;
  }
  const Result json =
      execute(generate({"--tokens", "0", "-n", "3", "--json"}, without_tokenizer()));
  EXPECT_EQ(json.status, 0) << json.err;
  EXPECT_TRUE(Json::parse(json.out)["text"].is_null());
}

TEST(Generate, JsonSaysWhatHappened) {
  const Json json = json_of(story({"-n", "20", "-t", "2"}));
  EXPECT_EQ(json["prompt"], "Once upon a time");
  EXPECT_EQ("Once upon a time" + json["text"].get<std::string>() + "\n",
            out_of(story({"-n", "20"})));
  EXPECT_EQ(json["tokens"].size(), 20u);
  EXPECT_EQ(decode({json["tokens"]}), std::vector<std::string>{json["text"]});
  EXPECT_EQ(json["stop_reason"], "length");
  EXPECT_EQ(json["seed"], 7);
  EXPECT_EQ(json["threads"], 2);
  EXPECT_EQ(json["architecture"], "mamba");
  for (const char* key : {"load_seconds", "prompt_seconds", "decode_seconds",
                          "prompt_tokens_per_second", "decode_tokens_per_second"}) {
    EXPECT_GT(json["timings"][key].get<double>(), 0) << key;
  }
  for (const char* key : {"weight_bytes", "session_bytes", "state_bytes", "peak_resident_bytes"}) {
    EXPECT_GT(json["memory"][key].get<uint64_t>(), 0u) << key;
  }
}

TEST(Generate, StatsGoToStderr) {
  const Result result = run(story({"-n", "5", "--stats"}));
  EXPECT_EQ(result.status, 0);
  EXPECT_EQ(result.out, out_of(story({"-n", "5"})));
  for (const char* part :
       {"loaded in", "prompt ", "decode   5 tokens", "tokens/s", "memory ", "seed     7"}) {
    EXPECT_NE(result.err.find(part), std::string::npos) << part << " in\n" << result.err;
  }
}

TEST(Generate, StopStringsAreFoundAcrossTokensAndNotPrinted) {
  const Json json = json_of(story({"-n", "40"}));
  const std::string text = json["text"];
  std::vector<Json> tokens;
  for (const Json& id : json["tokens"]) tokens.push_back(Json::array({id}));
  const std::vector<std::string> pieces = decode(tokens);
  std::vector<size_t> ends;  // of the tokens, in the text
  size_t end = 0;
  for (const std::string& piece : pieces) ends.push_back(end += piece.size());
  ASSERT_EQ(end, text.size());
  // Strings that span the border between two and three tokens.
  size_t tried = 0;
  for (size_t i = 10; i + 2 < pieces.size(); i += 9) {
    for (const size_t length : {size_t{2}, pieces[i + 1].size() + 2}) {
      const std::string stop = text.substr(ends[i] - 1, length);
      const Json stopped =
          json_of(story({"-n", "40", "--stop", "never in a tale", "--stop", stop}));
      EXPECT_EQ(stopped["text"], text.substr(0, text.find(stop))) << stop;
      EXPECT_EQ(stopped["stop_reason"], "stop");
      EXPECT_EQ(stopped["stop_string"], stop);
      EXPECT_LE(stopped["tokens"].size(), json["tokens"].size());
      const std::string before = text.substr(0, text.find(stop));
      const std::string printed =
          out_of(story({"-n", "40", "--stop", stop, "--no-display-prompt"}));
      EXPECT_EQ(printed, before.empty() || before.ends_with('\n') ? before : before + "\n");
      ++tried;
    }
  }
  EXPECT_GE(tried, 4u);
  // One that only begins at the end is printed after all.
  const std::string last = text.substr(text.size() - 3) + "\x01";
  EXPECT_EQ(json_of(story({"-n", "40", "--stop", last}))["text"], text);
}

// A hot model writes any bytes; whatever arrives at the reader at a time must be whole characters.
TEST(Generate, WritesWholeCharacters) {
  Invocation hot;
  hot.arguments = generate({"-p", "\u00e9\u20ac", "-n", "200", "-s", "3", "--temp", "50", "--top-k",
                            "0", "--top-p", "1", "--min-p", "0", "--ignore-eos"},
                           tiny("mamba1-tiny"));
  size_t reads = 0;
  hot.on_output = [&](const std::string& out, pid_t) {
    ++reads;
    EXPECT_TRUE(tools::is_utf8(out));
  };
  const Result result = execute(hot);
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_GT(reads, 1u);
  EXPECT_NE(result.out.find("\u00e9\u20ac"), std::string::npos);
  EXPECT_NE(result.out.find("\ufffd"), std::string::npos)
      << "the test no longer meets broken characters";
}

TEST(Generate, BytesThatAreNotTextAreAPromptToo) {
  const std::string bytes = "a\xff\xfe\xc3 b\x80";
  const Json json = json_of({"-p", bytes, "-n", "5", "-s", "1"});
  EXPECT_TRUE(tools::is_utf8(json["prompt"].get<std::string>()));
  const Json piped = json_of({"-n", "5", "-s", "1"}, bytes);
  EXPECT_EQ(piped["prompt_tokens"], json["prompt_tokens"]);
}

TEST(Generate, EndOfTextEndsItUnlessIgnored) {
  // These models end their tales; with these settings this one does within the limit.
  const std::vector<std::string> tale = {
      "--bos", "-p", "And they lived happily ever after.", "-n", "2000", "-s", "1"};
  const Json json = json_of(tale);
  ASSERT_EQ(json["stop_reason"], "eos");
  const std::vector<int> tokens = json["tokens"];
  EXPECT_EQ(std::count(tokens.begin(), tokens.end(), 0), 0);
  std::vector<std::string> longer = tale;
  longer[4] = std::to_string(tokens.size() + 5);
  longer.push_back("--ignore-eos");
  const Json ignored = json_of(longer);
  EXPECT_EQ(ignored["stop_reason"], "length");
  ASSERT_EQ(ignored["tokens"].size(), tokens.size() + 5);
  EXPECT_EQ(ignored["tokens"][tokens.size()], 0);  // it went on past it
  EXPECT_EQ(std::vector<int>(ignored["tokens"].begin(),
                             ignored["tokens"].begin() + static_cast<long>(tokens.size())),
            tokens);
}

TEST(Generate, TheKernelsCanBeChosen) {
  EXPECT_EQ(json_of({"-p", "x", "-n", "1", "--isa", "generic"})["isa"], "generic");
  Invocation from_environment;
  from_environment.arguments = generate({"-p", "x", "-n", "1", "--json"}, tiny("mamba1-tiny"));
  from_environment.environment["MAMBA_EDGE_ISA"] = "generic";
  EXPECT_EQ(Json::parse(execute(from_environment).out)["isa"], "generic");
  const Result unknown = run({"-p", "x", "--isa", "vax"});
  EXPECT_EQ(unknown.status, 2);
  EXPECT_NE(unknown.err.find("vax"), std::string::npos) << unknown.err;
}

TEST(Generate, WrongUsageIsStatusTwo) {
  const std::vector<std::vector<std::string>> cases = {
      {"-p", "x", "--frobnicate"},
      {"-p", "x", "extra"},
      {"-p"},
      {"-p", "x", "-n", "many"},
      {"-p", "x", "-n", "-2"},
      {"-p", "x", "-n", "1.5"},
      {"-p", "x", "-t", "0"},
      {"-p", "x", "-t", "1000"},
      {"-p", "x", "--temp", "-1"},
      {"-p", "x", "--temp", "nan"},
      {"-p", "x", "--top-p", "2"},
      {"-p", "x", "--min-p", "inf"},
      {"-p", "x", "--top-k", "-1"},
      {"-p", "x", "--stop", ""},
      {"-p", "x", "--stop", "\xff"},
      {"-p", "x", "-s", "abc"},
      {"-p", "x", "-s", "-2"},
      {"-p", "x", "-f", "y"},
      {"--tokens", "1,x"},
      {"--tokens", "1,"},
      {"-p", "x", "--tokens", "1"},
      {"-p", "x", "--chunk", "0"},
      {"-p", "x", "--repeat-last-n", "-2"},
      {"-p", "x", "-s", "18446744073709551616"},
  };
  for (const std::vector<std::string>& options : cases) {
    const Result result = execute(generate(options, "no-model-is-opened"));
    EXPECT_EQ(result.status, 2) << Json(options).dump(-1, ' ', false,
                                                      Json::error_handler_t::replace);
    EXPECT_EQ(result.out, "");
    EXPECT_TRUE(result.err.starts_with("mamba-generate: error: ")) << result.err;
  }
  const Result missing = execute({"mamba-generate", "-p", "x"});
  EXPECT_EQ(missing.status, 2);
  EXPECT_NE(missing.err.find("--model"), std::string::npos) << missing.err;
}

TEST(Generate, HelpAndVersion) {
  for (const char* option : {"--help", "-h", "--version"}) {
    const Result result = execute({"mamba-generate", option});
    EXPECT_EQ(result.status, 0);
    EXPECT_EQ(result.err, "");
    EXPECT_NE(result.out, "");
  }
}

void expect_refused(const std::string& model, const std::string& what) {
  const Result result = execute(generate({"-p", "x", "-n", "1"}, model));
  EXPECT_EQ(result.status, 1) << what;
  EXPECT_EQ(result.out, "") << what;
  EXPECT_TRUE(result.err.starts_with("mamba-generate: error: ")) << result.err;
  EXPECT_NE(result.err.find(model), std::string::npos) << result.err;
}

TEST(Generate, RefusesFilesThatAreNotModels) {
  const TemporaryFolder folder;
  expect_refused(folder / "missing.mamba", "missing");
  expect_refused(source("models/mamba1-tiny"), "a folder");
  expect_refused(source("models/mamba1-tiny/model.safetensors"), "a checkpoint");
  expect_refused("/dev/null", "a device");
  const std::string good = read_bytes(tiny("mamba1-tiny"));
  const std::string path = folder / "bad.mamba";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"empty", ""},
      {"one byte", good.substr(0, 1)},
      {"only a header", good.substr(0, 128)},
      {"half", good.substr(0, good.size() / 2)},
      {"one byte short", good.substr(0, good.size() - 1)},
      {"zeros", std::string(4096, '\0')},
  };
  for (const auto& [what, bytes] : cases) {
    write_bytes(path, bytes);
    expect_refused(path, what);
  }
  for (const size_t at :
       {size_t{0}, size_t{9}, size_t{40}, good.size() / 3, good.size() / 2, good.size() - 40}) {
    // Four bytes, since zstd's entropy tables have bits that change nothing.
    std::string damaged = good;
    for (size_t k = 0; k < 4; ++k) damaged[at + k] = static_cast<char>(~damaged[at + k]);
    write_bytes(path, damaged);
    expect_refused(path, "damage at " + std::to_string(at));
  }
}

TEST(Generate, RefusesATokenOutsideTheVocabulary) {
  for (const char* ids : {"1,2048", "1,-1", "1,99999999999999999999"}) {
    const Result result = run({"--tokens", ids});
    EXPECT_EQ(result.status, 1);
    EXPECT_EQ(result.out, "");
    EXPECT_NE(result.err.find("outside the vocabulary"), std::string::npos) << result.err;
    EXPECT_NE(result.err.find("(number 2)"), std::string::npos) << result.err;
  }
  EXPECT_NE(run({"--tokens", "2048"}).err.find("prompt token 2048 "), std::string::npos);
}

TEST(Generate, AMissingPromptFileIsNamed) {
  const Result result = run({"-f", "/nonexistent/prompt"});
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.err.find("'/nonexistent/prompt'"), std::string::npos) << result.err;
}

TEST(Generate, AFullDiskIsReported) {
  for (const char* mode : {"--stats", "--json"}) {
    Invocation full;
    full.arguments = generate({"-p", "x", "-n", "3", mode}, tiny("mamba1-tiny"));
    full.stdout_path = "/dev/full";
    const Result result = execute(full);
    EXPECT_EQ(result.status, 1);
    EXPECT_NE(result.err.find("standard output: No space left"), std::string::npos) << result.err;
  }
}

TEST(Generate, AReaderThatGoesAwayEndsItQuietly) {
  Invocation endless;
  endless.arguments = generate({"-p", "x", "-n", "-1", "--ignore-eos"}, tiny("mamba1-tiny"));
  endless.close_stdout_early = true;
  const Result result = execute(endless);
  EXPECT_EQ(result.status, 141);
  EXPECT_EQ(result.err, "");
}

TEST(Generate, CtrlCEndsTheTextCleanly) {
  Invocation endless;
  endless.arguments =
      generate({"-p", "Once", "-n", "-1", "--ignore-eos", "--stats"}, tiny("mamba1-tiny"));
  bool sent = false;
  endless.on_output = [&](const std::string& out, pid_t process) {
    if (!sent && out.size() > 200) sent = kill(process, SIGINT) == 0;
  };
  const Result result = execute(endless);
  EXPECT_EQ(result.status, 130) << result.err;
  EXPECT_TRUE(tools::is_utf8(result.out));
  EXPECT_TRUE(result.out.ends_with('\n'));
  EXPECT_NE(result.err.find("ended by interrupted"), std::string::npos) << result.err;
}

// A terminal with the program in it.
class Terminal {
 public:
  explicit Terminal(const Invocation& run) {
    master_ = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (master_ < 0 || grantpt(master_) != 0 || unlockpt(master_) != 0) std::abort();
    const std::string name = ptsname(master_);
    process_ = fork();
    if (process_ == 0) {
      setsid();
      const int terminal =
          open(name.c_str(), O_RDWR);  // becomes the controlling terminal, so Ctrl-C works
      for (int file = 0; file <= 2; ++file) dup2(terminal, file);
      std::signal(SIGINT, SIG_DFL);
      become(run);
    }
  }
  ~Terminal() {
    if (process_ > 0) {
      kill(process_, SIGKILL);
      waitpid(process_, nullptr, 0);
    }
    close(master_);
  }

  void type(const std::string& keys) {
    ASSERT_EQ(write(master_, keys.data(), keys.size()), static_cast<ssize_t>(keys.size()));
  }

  // Everything up to and including `text`, which must come.
  std::string until(const std::string& text) {
    while (true) {
      const size_t at = seen_.find(text);
      if (at != std::string::npos) {
        const std::string result = seen_.substr(0, at + text.size());
        seen_.erase(0, at + text.size());
        return result;
      }
      if (!more()) {
        ADD_FAILURE() << "'" << text << "' did not come; instead: " << seen_;
        return {};
      }
    }
  }

  // Its exit status; a program that does not end is killed.
  int wait() {
    while (more()) {
    }
    int status = 0;
    pid_t ended = 0;
    for (int i = 0; i < 1000 && ended == 0; ++i) {
      ended = waitpid(process_, &status, WNOHANG);
      if (ended == 0) usleep(10'000);
    }
    if (ended == 0) {
      ADD_FAILURE() << "it did not end; the last that it said: " << seen_;
      kill(process_, SIGKILL);
      waitpid(process_, &status, 0);
    }
    process_ = -1;
    return exit_status(status);
  }

 private:
  bool more() {
    pollfd file = {master_, POLLIN, 0};
    if (poll(&file, 1, 120'000) <= 0) return false;
    char bytes[4096];
    const ssize_t n = read(master_, bytes, sizeof bytes);
    if (n <= 0) return false;
    seen_.append(bytes, static_cast<size_t>(n));
    return true;
  }

  int master_ = -1;
  pid_t process_ = -1;
  std::string seen_;
};

Invocation interactive(const std::vector<std::string>& options) {
  Invocation invocation;
  invocation.arguments = generate(options, tiny("mamba1-tiny"));
  return invocation;
}

TEST(GenerateInteractive, ContinuesLineAfterLine) {
  Terminal terminal(interactive({"-n", "8", "--greedy", "--bos"}));
  terminal.until("> ");
  terminal.type("Once upon a time\n");
  const std::string first = terminal.until("\r\n> ");
  const std::string expected =
      out_of({"--bos", "-p", "Once upon a time", "-n", "8", "--greedy", "--no-display-prompt"});
  EXPECT_EQ(first, "Once upon a time\r\n" + expected.substr(0, expected.size() - 1) + "\r\n> ");
  terminal.type("\n");  // more of the same
  const std::string second = terminal.until("\r\n> ");
  const std::string longer =
      out_of({"--bos", "-p", "Once upon a time", "-n", "16", "--greedy", "--no-display-prompt"});
  EXPECT_EQ(second, "\r\n" + longer.substr(expected.size() - 1, longer.size() - expected.size()) +
                        "\r\n> ");
  terminal.type("/reset\n");
  terminal.until("> ");
  terminal.type("Once upon a time\n");
  EXPECT_EQ(terminal.until("\r\n> "), first);
  terminal.type("/help\n");
  terminal.until("/quit");
  terminal.until("> ");
  terminal.type("/nonsense\n");
  terminal.until("no command /nonsense");
  terminal.until("> ");
  terminal.type("/quit\n");
  EXPECT_EQ(terminal.wait(), 0);
}

TEST(GenerateInteractive, CtrlDLeaves) {
  Terminal terminal(interactive({}));
  terminal.until("> ");
  terminal.type("\x04");
  EXPECT_EQ(terminal.wait(), 0);
}

TEST(GenerateInteractive, CtrlCStopsTheTextAndThenTheProgram) {
  Terminal terminal(interactive({"-n", "-1", "--ignore-eos"}));
  terminal.until("> ");
  terminal.type("Once upon a time\n");
  terminal.until("time\r\n");
  terminal.until(" ");    // it writes
  terminal.type("\x03");  // the terminal itself drops what was not read yet
  terminal.until("> ");
  terminal.type("\x03");
  EXPECT_EQ(terminal.wait(), 130);
}

}  // namespace
}  // namespace mamba_edge::test
