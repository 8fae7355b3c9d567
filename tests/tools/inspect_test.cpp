// mamba-inspect: what it says of a good file, and that it names what is damaged in a bad one.
#include <gtest/gtest.h>

#include <map>

#include "engine/container.h"
#include "tests/tools/programs.h"

namespace mamba_edge::test {
namespace {

Result inspect(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "mamba-inspect");
  return execute(arguments);
}

Json json_of(const std::string& model, std::vector<std::string> more = {}) {
  more.insert(more.begin(), {model, "--json"});
  const Result result = inspect(more);
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.err, "");
  return Json::parse(result.out);
}

TEST(Inspect, TellsTheConfig) {
  const Json one = json_of(tiny("mamba1-tiny")), two = json_of(tiny("mamba2-tiny"));
  const Json first = one["config"], second = two["config"];
  EXPECT_EQ(first["architecture"], "mamba");
  EXPECT_EQ(second["architecture"], "mamba2");
  for (const Json& config : {first, second}) {
    EXPECT_EQ(config["d_model"], 256);
    EXPECT_EQ(config["n_layer"], 6);
    EXPECT_EQ(config["n_vocab"], 2048);
    EXPECT_EQ(config["tied"], true);
    EXPECT_EQ(config["norm"], "rms");
    EXPECT_EQ(config["norm_eps"], 1e-5);
    EXPECT_EQ(config["eos_token"], 0);
    EXPECT_EQ(config["d_inner"], 512);
    EXPECT_EQ(config["d_conv"], 4);
  }
  EXPECT_EQ(first["dt_rank"], 16);
  EXPECT_EQ(second["n_heads"], 8);
  EXPECT_EQ(second["headdim"], 64);
  EXPECT_EQ(second["dt_limit"], Json({0.0, "inf"}));
  EXPECT_EQ(one["file_bytes"], fs::file_size(tiny("mamba1-tiny")));
}

TEST(Inspect, TellsTokenizerAndProvenance) {
  const Json json = json_of(tiny("mamba1-tiny"));
  EXPECT_EQ(json["tokenizer"]["kind"], "byte-level BPE");
  EXPECT_EQ(json["tokenizer"]["tokens"], 2048);
  EXPECT_EQ(json["tokenizer"]["special"][0], Json({{"id", 0}, {"text", "<|endoftext|>"}}));
  EXPECT_FALSE(json["provenance"].empty());
  std::string all;
  for (const Json& entry : json["provenance"])
    all += entry["key"].get<std::string>() + "=" + entry["value"].get<std::string>() + "\n";
  EXPECT_NE(all.find("model.safetensors"), std::string::npos) << all;
  EXPECT_TRUE(json_of(without_tokenizer())["tokenizer"].is_null());
  const Result text = inspect({without_tokenizer()});
  EXPECT_NE(text.out.find("token ids only"), std::string::npos) << text.out;
}

TEST(Inspect, ListsTheTensors) {
  const std::string path = tiny("mamba1-tiny");
  const Json json = json_of(path);
  Container container;
  ASSERT_TRUE(Container::open(path.c_str(), &container).ok());
  ASSERT_EQ(json["tensors"].size(), container.n_tensors());
  const Result plain = inspect({path}), list = inspect({path, "-l"});
  EXPECT_EQ(list.status, 0);
  EXPECT_TRUE(list.out.starts_with(plain.out));
  for (const Json& tensor : json["tensors"]) {
    const std::string name = tensor["name"], checksum = tensor["checksum"];
    TensorEntry entry;
    ASSERT_TRUE(container.find_tensor(name, &entry)) << name;
    EXPECT_EQ(tensor["bytes"], entry.blob.raw_bytes);
    EXPECT_EQ(tensor["stored_bytes"], container.stored_bytes(entry.blob));
    EXPECT_EQ(std::stoull(checksum, nullptr, 16), entry.blob.checksum);
    EXPECT_EQ(tensor["type"], "fp32");
    const size_t line = list.out.find("\n" + name + " ");
    ASSERT_NE(line, std::string::npos) << name;
    EXPECT_NE(list.out.substr(line + 1, list.out.find('\n', line + 1) - line).find(checksum),
              std::string::npos);
  }
}

TEST(Inspect, TellsWhatCompressionGains) {
  for (const bool store : {false, true}) {
    const std::string path = converted(source("models/mamba1-tiny"),
                                       store ? "mamba1-tiny_int5-store" : "mamba1-tiny_int5",
                                       store ? std::vector<std::string>{"--type", "int5", "--store"}
                                             : std::vector<std::string>{"--type", "int5"});
    const Json json = json_of(path);
    struct Sum {
      uint64_t tensors = 0, bytes = 0, stored = 0;
    };
    std::map<std::string, Sum> sums;
    for (const Json& tensor : json["tensors"]) {
      Sum& sum = sums[tensor["type"].get<std::string>()];
      sum.tensors += 1;
      sum.bytes += tensor["bytes"].get<uint64_t>();
      sum.stored += tensor["stored_bytes"].get<uint64_t>();
      EXPECT_EQ(tensor["encoding"] == "raw", store) << tensor;
    }
    ASSERT_EQ(sums.size(), 3u);  // int5, int6 for the embedding, fp32
    ASSERT_EQ(json["types"].size(), sums.size());
    const Result text = inspect({path});
    for (const auto& [type, sum] : sums) {
      const Json& told = json["types"][type];
      EXPECT_EQ(told["tensors"], sum.tensors);
      EXPECT_EQ(told["bytes"], sum.bytes);
      EXPECT_EQ(told["stored_bytes"], sum.stored);
      const double ratio = told["ratio"];
      EXPECT_EQ(ratio, static_cast<double>(sum.bytes) / static_cast<double>(sum.stored));
      // 5 bits of normal weights in groups have 4.6 bits of entropy, 6 bits 5.6.
      if (store) {
        EXPECT_EQ(ratio, 1.0);
      } else {
        EXPECT_GT(ratio, 1.05) << type;
      }
      char line[64];
      std::snprintf(line, sizeof line, "%s: %u, ", type.c_str(),
                    static_cast<unsigned>(sum.tensors));
      const size_t at = text.out.find(line);
      ASSERT_NE(at, std::string::npos) << text.out;
      std::snprintf(line, sizeof line, "(ratio %.3f)\n", ratio);
      EXPECT_NE(text.out.substr(at, text.out.find('\n', at) + 1 - at).find(line), std::string::npos)
          << text.out;
    }
  }
}

TEST(Inspect, TellsWhatASessionNeeds) {
  const std::string path = tiny("mamba2-tiny");
  const Json memory = json_of(path)["memory"];
  EXPECT_EQ(json_of(tiny("mamba1-tiny"))["memory"]["parameters"], 3'152'640);  // models/README.md
  const Result result =
      execute({"mamba-generate", "-m", path, "-p", "x", "-n", "1", "-t", "1", "--json"});
  const Json used = Json::parse(result.out)["memory"];
  EXPECT_EQ(memory["arena_bytes"], used["session_bytes"]);
  EXPECT_EQ(memory["state_bytes"], used["state_bytes"]);
  EXPECT_EQ(memory["weight_bytes"], used["weight_bytes"]);
  EXPECT_EQ(memory["arena_threads"], 1);
  EXPECT_EQ(memory["arena_chunk"], 256);
  Invocation run;  // what is in a file does not depend on what should run it
  run.arguments = {"mamba-inspect", path, "--json"};
  run.environment["MAMBA_EDGE_ISA"] = "absent";
  EXPECT_EQ(Json::parse(execute(run).out)["memory"], memory);
}

TEST(Inspect, VerifyPassesAGoodFile) {
  const Result result = inspect({tiny("mamba1-tiny"), "--verify"});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.out.find("every checksum matches"), std::string::npos) << result.out;
  EXPECT_EQ(json_of(tiny("mamba1-tiny"), {"--verify"})["verified"], true);
}

// Damage to one tensor at a time, in files of both encodings. Several bytes, since zstd's entropy
// tables have bits that change nothing.
TEST(Inspect, VerifyNamesTheDamagedTensor) {
  const TemporaryFolder folder;
  const std::string stored = converted(source("models/mamba1-tiny"), "mamba1-tiny_int8-store",
                                       {"--type", "int8", "--store"});
  for (const std::string& good_path : {tiny("mamba1-tiny"), stored}) {
    const std::string good = read_bytes(good_path);
    Container container;
    ASSERT_TRUE(Container::open(good_path.c_str(), &container).ok());
    const std::string bad_path = folder / "bad.mamba";
    for (uint32_t i = 0; i < container.n_tensors(); i += 7) {
      const TensorEntry tensor = container.tensor(i);
      const FrameEntry frame = container.frame(tensor.blob.first_frame + tensor.blob.n_frames - 1);
      std::string bad = good;
      const size_t at = frame.offset + frame.stored_bytes / 2;
      for (size_t k = 0; k < 4; ++k) bad[at + k] = static_cast<char>(~bad[at + k]);
      write_bytes(bad_path, bad);
      const Result result = inspect({bad_path, "--verify"});
      EXPECT_EQ(result.status, 1);
      EXPECT_EQ(result.out, "");
      EXPECT_TRUE(result.err.starts_with("mamba-inspect: error: ")) << result.err;
      EXPECT_NE(result.err.find(bad_path), std::string::npos) << result.err;
      EXPECT_NE(result.err.find(tensor.name), std::string::npos)
          << tensor.name << " in " << result.err;
      EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    }
  }
}

TEST(Inspect, RefusesFilesThatAreNotModels) {
  const TemporaryFolder folder;
  const std::string good = read_bytes(tiny("mamba1-tiny"));
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"empty", ""},
      {"text", "hello, this is not a model"},
      {"half", good.substr(0, good.size() / 2)}};
  for (const auto& [name, bytes] : cases) {
    write_bytes(folder / name, bytes);
    for (const char* option : {"-l", "--json", "--verify"}) {
      const Result result = inspect({folder / name, option});
      EXPECT_EQ(result.status, 1);
      EXPECT_EQ(result.out, "");
      EXPECT_TRUE(result.err.starts_with("mamba-inspect: error: ")) << result.err;
      EXPECT_NE(result.err.find(folder / name), std::string::npos) << result.err;
    }
  }
  EXPECT_EQ(inspect({folder / "missing"}).status, 1);
  EXPECT_EQ(inspect({"/tmp"}).status, 1);
  EXPECT_EQ(inspect({}).status, 2);
  EXPECT_EQ(inspect({"a", "b"}).status, 2);
  EXPECT_EQ(inspect({"a", "--frobnicate"}).status, 2);
}

}  // namespace
}  // namespace mamba_edge::test
