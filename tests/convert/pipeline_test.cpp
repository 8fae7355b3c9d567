// A checkpoint into a container: what is refused, and what is left on disk when anything goes wrong
// at any moment.
#include "convert/pipeline.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <bit>
#include <chrono>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "convert/error.h"
#include "engine/container.h"
#include "engine/model.h"
#include "quant/decode.h"
#include "quant/half.h"
#include "tests/convert/checkpoint_builders.h"
#include "tests/convert/no_tmpfile.h"
#include "tests/engine/model_builder.h"
#include "tests/golden/temporary_folder.h"

namespace mamba_edge::convert {
namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<uint8_t>;
using Json = nlohmann::ordered_json;

struct Tensor {
  std::vector<int64_t> shape;
  std::vector<float> values;
};
using Tensors = std::map<std::string, Tensor>;

// A checkpoint in the state-spaces layout, of sizes that need padding.
struct Published {
  Json config = {{"d_model", 24},
                 {"n_layer", 2},
                 {"vocab_size", 37},
                 {"ssm_cfg", Json::object()},
                 {"rms_norm", true},
                 {"residual_in_fp32", true},
                 {"pad_vocab_size_multiple", 8}};
  Tensors tensors;

  explicit Published(int64_t d = 24, int64_t vocab = 40) {
    config["d_model"] = d;
    config["vocab_size"] = vocab == 40 ? 37 : vocab;  // 37 is padded to 40
    const int64_t inner = 2 * d, rank = (d + 15) / 16, state = 16;
    add("backbone.embedding.weight", {vocab, d});
    for (int layer = 0; layer < 2; ++layer) {
      const std::string stem = "backbone.layers." + std::to_string(layer) + ".";
      add(stem + "norm.weight", {d});
      add(stem + "mixer.in_proj.weight", {2 * inner, d});
      add(stem + "mixer.conv1d.weight", {inner, 1, 4});
      add(stem + "mixer.conv1d.bias", {inner});
      add(stem + "mixer.x_proj.weight", {rank + 2 * state, inner});
      add(stem + "mixer.dt_proj.weight", {inner, rank});
      add(stem + "mixer.dt_proj.bias", {inner});
      add(stem + "mixer.A_log", {inner, state});
      add(stem + "mixer.D", {inner});
      add(stem + "mixer.out_proj.weight", {d, inner});
    }
    add("backbone.norm_f.weight", {d});
  }

  void add(const std::string& name, std::vector<int64_t> shape) {
    size_t n = 1;
    for (const int64_t extent : shape) n *= static_cast<size_t>(extent);
    std::mt19937 random(static_cast<uint32_t>(std::hash<std::string>()(name)));
    std::uniform_real_distribution<float> uniform(-0.5f, 0.5f);
    Tensor t{std::move(shape), std::vector<float>(n)};
    for (float& v : t.values) v = uniform(random);
    tensors[name] = std::move(t);
  }

  void write(const fs::path& folder) const {
    fs::create_directories(folder);
    Json header;
    std::string data;
    for (const auto& [name, t] : tensors) {
      const size_t begin = data.size();
      data += testing::bytes_of(t.values);
      header[name] = {{"dtype", "F32"}, {"shape", t.shape}, {"data_offsets", {begin, data.size()}}};
    }
    std::ofstream(folder / "config.json") << config.dump();
    std::ofstream(folder / "model.safetensors", std::ios::binary)
        << testing::safetensors(header.dump(), data);
  }
};

class Pipeline : public ::testing::Test {
 protected:
  Pipeline() {
    options_.input = folder_.path / "checkpoint";
    options_.output = folder_.path / "out" / "model.mamba";
    fs::create_directory(folder_.path / "out");
  }
  size_t files_out() const {
    return static_cast<size_t>(
        std::distance(fs::directory_iterator(folder_.path / "out"), fs::directory_iterator()));
  }
  Report convert(const Published& p) {
    p.write(options_.input);
    return convert_checkpoint(options_);
  }
  // The message of a conversion that must fail, leaving nothing new behind.
  std::string refusal() {
    const size_t before = files_out();
    try {
      convert_checkpoint(options_);
    } catch (const Error& error) {
      EXPECT_EQ(files_out(), before);
      return error.what();
    }
    ADD_FAILURE() << "it was converted";
    return {};
  }
  std::string refusal(const Published& p) {
    p.write(options_.input);
    return refusal();
  }

  TemporaryFolder folder_;
  Options options_;
};

#define EXPECT_SAYS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

const char kVictim[] = "backbone.layers.1.mixer.in_proj.weight";

TEST_F(Pipeline, SameBytesForAnyNumberOfThreads) {
  const Published p(200, 400);  // several panels? one per tensor, and frames of a megabyte
  for (const WeightType type :
       {WeightType::f32, WeightType::f16, WeightType::int8, WeightType::int6, WeightType::int5,
        WeightType::int4, WeightType::int3, WeightType::int2}) {
    for (const bool store : {false, true}) {
      options_.type = type;
      options_.store = store;
      Bytes first;
      for (const int threads : {1, 2, 3, 4}) {
        options_.threads = threads;
        convert(p);
        const Bytes bytes = test::read_file(options_.output);
        if (first.empty()) first = bytes;
        EXPECT_EQ(bytes, first) << type_name(type) << " " << threads;
      }
    }
  }
}

// Matrices of many panels and frames, whose panels several threads make in any order.
TEST_F(Pipeline, SameBytesForAnyNumberOfThreadsOverManyPanels) {
  const Published p(1040, 4000);  // the embedding has 4 panels, in_proj 5
  Bytes first;
  for (const int threads : {1, 4}) {
    options_.threads = threads;
    options_.zstd_level = 1;
    convert(p);
    const Bytes bytes = test::read_file(options_.output);
    if (first.empty()) first = bytes;
    EXPECT_EQ(bytes, first);
  }
}

TEST_F(Pipeline, ReportAddsUp) {
  const Published p;
  options_.type = WeightType::int8;
  double progress = 0;
  options_.progress = [&](const char*, double done) {
    EXPECT_GE(done, progress);
    progress = done;
  };
  const Report r = convert(p);
  EXPECT_NEAR(progress, 1.0, 0.1);
  EXPECT_EQ(r.output_bytes, fs::file_size(options_.output));
  EXPECT_EQ(r.input_bytes, fs::file_size(options_.input / "model.safetensors"));
  EXPECT_EQ(r.tensors.size(), p.tensors.size());
  int64_t parameters = 0;
  for (const auto& [name, t] : p.tensors) parameters += static_cast<int64_t>(t.values.size());
  EXPECT_EQ(r.n_parameters, parameters);
  uint64_t packed = 0, stored = 0;
  for (const TensorReport& t : r.tensors) {
    packed += t.raw_bytes;
    stored += t.stored_bytes;
    // A step of max / 127 has an error of step / sqrt(12), so (max / rms) / 440 of the values. Uniform
    // values have max / rms = 1.7, and 2 to 3.5 where groups of up to 128 are rotated, which makes them
    // normal; less where a group is so short that its largest weight, nearly exact, is much of it.
    if (t.type == "int8") {
      EXPECT_LT(t.error.relative_rms(), 3.5 / 440) << t.name;
      EXPECT_GT(t.error.relative_rms(), 0.4 / 440) << t.name;
    }
    if (t.type == "fp32") {
      EXPECT_EQ(t.error.relative_rms(), 0) << t.name;
    }
  }
  EXPECT_EQ(r.packed_bytes, packed);
  EXPECT_LT(stored, r.output_bytes);
  EXPECT_GT(r.bits_per_weight, 8);
  EXPECT_FALSE(r.has_tokenizer);
  EXPECT_SAYS(r.tokenizer_hint, "tokenizer.json");
  EXPECT_SAYS(r.tokenizer_hint, "--tokenizer");
}

// What was published comes back from the container, value by value, in the order that
// engine/tensors.h words.
TEST_F(Pipeline, ValuesArriveWhereTheyBelong) {
  options_.type = WeightType::f32;
  const Published p;
  convert(p);
  Model model;
  const Status status = load_model(options_.output.c_str(), {}, &model);
  ASSERT_TRUE(status.ok()) << status.message();
  const auto element = [](const Matrix& m, size_t r, size_t c) {
    float v;
    std::memcpy(&v, m.data + r / 16 * m.shape.cols * 64 + (c * 16 + r % 16) * 4, 4);
    return v;
  };
  const auto& in_proj = p.tensors.at("backbone.layers.1.mixer.in_proj.weight").values;
  for (size_t r = 0; r < 96; ++r) {
    for (size_t c = 0; c < 24; ++c) {
      ASSERT_EQ(element(model.weights.layers[1].in_proj, r, c), in_proj[r * 24 + c]);
    }
  }
  // x_proj: dt (2 rows), B and C (16 rows each) become sections of 16.
  const auto& x_proj = p.tensors.at("backbone.layers.0.mixer.x_proj.weight").values;
  for (size_t r = 0; r < 48; ++r) {
    for (size_t c = 0; c < 48; ++c) {
      const float expected = r < 2 ? x_proj[r * 48 + c] : r < 16 ? 0.0f : x_proj[(r - 14) * 48 + c];
      ASSERT_EQ(element(model.weights.layers[0].x_proj, r, c), expected) << r;
    }
  }
  const auto& a_log = p.tensors.at("backbone.layers.0.mixer.A_log").values;
  for (size_t r = 0; r < 48; ++r) {
    for (size_t c = 0; c < 16; ++c) {
      ASSERT_EQ(model.weights.layers[0].a[r / 16 * 256 + c * 16 + r % 16],
                -std::exp(a_log[r * 16 + c]));
    }
  }
}

TEST_F(Pipeline, NanAndInfinityAreRefusedByName) {
  for (const auto& [name, tensor] : Published().tensors) {
    for (const float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
      Published p;
      p.tensors[name].values.back() = bad;
      // A of minus infinity is a decay of exactly 0: -exp(-inf) = -0 is finite and a fair weight.
      if (name.ends_with("A_log") && bad == -INFINITY) continue;
      const std::string message = refusal(p);
      EXPECT_SAYS(message, "model.safetensors");
      EXPECT_SAYS(message, name);
      EXPECT_SAYS(message, std::isnan(bad) ? "NaN" : "infinity");
      EXPECT_SAYS(message, "--allow-nonfinite");
    }
  }
}

// w from w H / B, by its definition: H H = B.
std::vector<float> unrotated(const std::vector<float>& row, uint32_t rotation) {
  std::vector<float> out(row.size());
  for (size_t i = 0; i < row.size(); ++i) {
    const size_t begin = i / rotation * rotation;
    for (size_t j = begin; j < std::min(begin + rotation, row.size()); ++j) {
      const bool minus = (std::popcount((i - begin) & (j - begin)) & 1) != 0;
      out[i] += minus ? -row[j] : row[j];
    }
  }
  return out;
}

TEST_F(Pipeline, NanAndInfinityWhenAllowed) {
  Published p;
  std::vector<float>& values = p.tensors[kVictim].values;
  values[24 * 3 + 5] = NAN;
  values[24 * 4 + 6] = -INFINITY;
  options_.allow_nonfinite = true;
  for (const WeightType type : {WeightType::f32, WeightType::f16, WeightType::int8,
                                WeightType::int6, WeightType::int5, WeightType::int4}) {
    options_.type = type;
    const Report r = convert(p);
    const bool quantised = is_quantised(type);
    bool warned = false;
    for (const std::string& w : r.warnings) warned |= w.find(kVictim) != std::string::npos;
    EXPECT_EQ(warned, quantised) << type_name(type);
    Model model;
    ASSERT_TRUE(load_model(options_.output.c_str(), {}, &model).ok());
    const Matrix& m = model.weights.layers[1].in_proj;
    std::vector<float> row3(m.shape.cols), row4(m.shape.cols);
    decode_row(m.shape, m.scale, m.data, 3, m.shape.cols, row3.data());
    decode_row(m.shape, m.scale, m.data, 4, m.shape.cols, row4.data());
    for (std::vector<float>* row : {&row3, &row4}) {
      if (m.shape.rotation != 0) *row = unrotated(*row, m.shape.rotation);
    }
    if (quantised) {
      EXPECT_NEAR(row3[5], 0.0f, 0.075f);  // within the error of the rest
      EXPECT_NEAR(row4[6], 0.0f, 0.075f);
    } else {
      EXPECT_TRUE(std::isnan(row3[5]));
      EXPECT_EQ(row4[6], -INFINITY);
    }
    // The rest is as exact as ever: int4's steps of 1/7 of 0.5 and less.
    for (size_t c = 0; c < 24; ++c) {
      if (c != 5) {
        EXPECT_NEAR(row3[c], values[24 * 3 + c], 0.075f) << type_name(type);
      }
    }
  }
}

TEST_F(Pipeline, MissingTensors) {
  for (const auto& [name, tensor] : Published().tensors) {
    Published p;
    p.tensors.erase(name);
    const std::string message = refusal(p);
    EXPECT_SAYS(message, "model.safetensors");
    EXPECT_SAYS(message, name);
  }
}

TEST_F(Pipeline, WrongShapes) {
  for (const auto& [name, tensor] : Published().tensors) {
    Published p;
    Tensor& t = p.tensors[name];
    t.shape[0] += 1;
    t.values.resize(t.values.size() / static_cast<size_t>(t.shape[0] - 1) *
                    static_cast<size_t>(t.shape[0]));
    const std::string message = refusal(p);
    EXPECT_SAYS(message, "model.safetensors: tensor " + name);
    EXPECT_SAYS(message, "[" + std::to_string(t.shape[0]));
    EXPECT_SAYS(message, "[" + std::to_string(t.shape[0] - 1));
  }
}

TEST_F(Pipeline, ConfigThatContradictsTheTensors) {
  for (const auto& [key, value] : std::vector<std::pair<std::string, Json>>{
           {"d_model", 25}, {"n_layer", 3}, {"vocab_size", 50}, {"ssm_cfg", {{"d_state", 17}}}}) {
    Published p;
    p.config[key] = value;
    EXPECT_SAYS(refusal(p), "tensor");
  }
  Published p;
  p.config["n_layer"] = 1;  // tensors of a layer that should not be
  p.write(options_.input);
  try {
    const Report r = convert_checkpoint(options_);
    bool named = false;
    for (const std::string& w : r.warnings) named |= w.find("layers.1") != std::string::npos;
    EXPECT_TRUE(named);
  } catch (const Error& error) {
    EXPECT_SAYS(std::string(error.what()), "layers.1");
  }
}

TEST_F(Pipeline, ExtraTensorsAreWarnedAbout) {
  Published p;
  p.add("backbone.layers.0.mixer.surprise", {3});
  const Report r = convert(p);
  ASSERT_EQ(r.warnings.size(), 1u);
  EXPECT_SAYS(r.warnings[0], "backbone.layers.0.mixer.surprise");
}

TEST_F(Pipeline, TiedHeadAndEmbeddingAreOneMatrix) {
  const Published p;
  options_.embedding_type = WeightType::f16;
  options_.head_type = WeightType::int8;
  const std::string message = refusal(p);
  EXPECT_SAYS(message, "tied");
  EXPECT_SAYS(message, "--embedding-type fp16");
  EXPECT_SAYS(message, "--head-type int8");
  options_.head_type.reset();
  EXPECT_EQ(convert(p).tensors[0].type, "int16");  // float32 values at 16 bits
  options_.embedding_type.reset();
  options_.head_type = WeightType::int4;
  EXPECT_EQ(convert(p).tensors[0].type, "int4");
  options_.embedding_type = WeightType::int4;
  EXPECT_EQ(convert(p).tensors[0].type, "int4");
}

TEST_F(Pipeline, UntiedOnesMayDiffer) {
  Published p;
  p.config["tie_embeddings"] = false;
  p.add("lm_head.weight", {40, 24});
  options_.embedding_type = WeightType::f32;
  options_.head_type = WeightType::int4;
  const Report r = convert(p);
  EXPECT_EQ(r.tensors[0].name, "embedding");
  EXPECT_EQ(r.tensors[0].type, "fp32");
  EXPECT_EQ(r.tensors[1].name, "head");
  EXPECT_EQ(r.tensors[1].type, "int4");
}

TEST_F(Pipeline, SixteenBitsAreExactWhereTheyCanBe) {
  Published p;
  for (float& v : p.tensors[kVictim].values) v = half_to_float(float_to_half(v));
  options_.type = WeightType::f16;
  const Report r = convert(p);
  for (const TensorReport& t : r.tensors) {
    if (t.name == "layers.1.in_proj") {
      EXPECT_EQ(t.type, "fp16");
      EXPECT_EQ(t.error.max_abs_error, 0);
    } else if (t.name == "layers.0.in_proj") {
      EXPECT_EQ(t.type, "int16");
      EXPECT_GT(t.error.max_abs_error, 0);
      // At most half a step of 0.5 / 32767, rounded up by 2^-10.
      EXPECT_LE(t.error.max_abs_error, 0.5 / 32767 / 2 * 1.01);
    }
  }
}

TEST_F(Pipeline, GatedNormIsForMamba2) {
  options_.gated_norm_whole = true;
  EXPECT_SAYS(refusal(Published()), "--gated-norm whole");
}

TEST_F(Pipeline, TokenizersThatDoNotFit) {
  const Published p;
  options_.tokenizer = folder_.path / "nowhere.json";
  EXPECT_SAYS(refusal(p), "nowhere.json: no such tokenizer file");
  options_.tokenizer =
      MAMBA_EDGE_SOURCE_DIR "/models/mamba1-tiny/tokenizer.json";  // thousands of tokens
  EXPECT_SAYS(refusal(p), "the model's vocabulary has 40");
  options_.tokenizer = MAMBA_EDGE_SOURCE_DIR "/models/mamba1-tiny";  // its folder
  EXPECT_SAYS(refusal(p), "mamba1-tiny/tokenizer.json");
  std::ofstream(folder_.path / "broken.json") << "{\"model\":";
  options_.tokenizer = folder_.path / "broken.json";
  EXPECT_SAYS(refusal(p), "broken.json");
}

TEST_F(Pipeline, InputsThatCannotBeRead) {
  options_.input = folder_.path / "absent";
  EXPECT_SAYS(refusal(), "absent");
  fs::create_directory(folder_.path / "empty");
  options_.input = folder_.path / "empty";
  EXPECT_SAYS(refusal(), "empty");
  options_.input = folder_.path / "checkpoint";
  const Published p;
  p.write(options_.input);
  fs::remove(options_.input / "config.json");
  EXPECT_SAYS(refusal(), "config.json");
  p.write(options_.input);
  const uint64_t size = fs::file_size(options_.input / "model.safetensors");
  for (const uint64_t n :
       {uint64_t{0}, uint64_t{7}, uint64_t{8}, uint64_t{100}, size / 2, size - 1}) {
    fs::resize_file(options_.input / "model.safetensors", n);
    EXPECT_SAYS(refusal(), "model.safetensors");
    p.write(options_.input);
  }
  if (geteuid() != 0) {
    fs::permissions(options_.input / "model.safetensors", fs::perms::none);
    EXPECT_SAYS(refusal(), "Permission denied");
  }
  fs::remove(options_.input / "model.safetensors");
  fs::create_directory(options_.input / "model.safetensors");
  EXPECT_SAYS(refusal(), "model.safetensors");
}

TEST_F(Pipeline, OutputsThatCannotBe) {
  const Published p;
  options_.output = folder_.path / "out";
  EXPECT_SAYS(refusal(p), "directory");
  options_.output = folder_.path / "absent" / "model.mamba";
  EXPECT_SAYS(refusal(p), "there is no folder");
  EXPECT_FALSE(fs::exists(folder_.path / "absent"));
  // What is being read must not be replaced.
  for (const char* name : {"model.safetensors", "config.json"}) {
    options_.output = options_.input / name;
    const Bytes before = test::read_file(options_.output);
    EXPECT_SAYS(refusal(p), "it is read for this conversion");
    EXPECT_EQ(test::read_file(options_.output), before);
  }
}

// ---- failing and dying on the way

// Runs `body` in a child; its exit status, or 1000 + the signal.
template <typename F>
int in_child(F&& body) {
  const pid_t child = fork();
  EXPECT_GE(child, 0);
  if (child == 0) {
    try {
      _exit(body());
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
      _exit(99);
    }
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

// A limit on the size of files stands for a full disk: at every size the old file stays and nothing
// else is left.
TEST_F(Pipeline, FullDisk) {
  const Published p(64, 200);
  convert(p);
  const uint64_t whole = fs::file_size(options_.output);
  const Bytes old(777, 3);
  for (const bool nameless : {true, false}) {
    for (const double part : {0.0, 0.001, 0.3, 0.9, 0.999}) {
      test::write_file(options_.output, old);
      const int status = in_child([&] {
        if (!nameless && !test::refuse_nameless_files()) return 77;
        const rlim_t limit = static_cast<rlim_t>(part * static_cast<double>(whole));
        const rlimit size = {limit, limit};
        signal(SIGXFSZ, SIG_IGN);
        if (setrlimit(RLIMIT_FSIZE, &size) != 0) return 2;
        try {
          convert_checkpoint(options_);
        } catch (const Error& error) {
          const std::string message = error.what();
          const bool named = message.find(options_.output.string() + ": cannot write") == 0;
          return named ? 1 : 3;
        }
        return 0;
      });
      if (status == 77) break;  // no filters here; the nameless way was tested
      EXPECT_EQ(status, 1) << part;
      EXPECT_EQ(files_out(), 1u);
      EXPECT_EQ(test::read_file(options_.output), old);
    }
  }
}

TEST_F(Pipeline, FullTmpfs) {
  const Published p(256, 400);
  p.write(options_.input);
  const fs::path disk = folder_.path / "disk";
  fs::create_directory(disk);
  if (mount("none", disk.c_str(), "tmpfs", 0, "size=64k") != 0)
    GTEST_SKIP() << "mounting needs root";
  options_.output = disk / "model.mamba";
  std::string message;
  try {
    convert_checkpoint(options_);
  } catch (const Error& error) {
    message = error.what();
  }
  const bool empty = fs::is_empty(disk);
  umount(disk.c_str());
  EXPECT_SAYS(message, "No space left on device");
  EXPECT_SAYS(message, (disk / "model.mamba").string());
  EXPECT_TRUE(empty);
}

// Killed at any moment: the old file, or the new one whole.
TEST_F(Pipeline, KilledAtAnyMoment) {
  const Published p(256, 2000);
  p.write(options_.input);
  options_.threads = 2;
  const auto timed = [&] {
    const auto start = std::chrono::steady_clock::now();
    EXPECT_EQ(in_child([&] {
                convert_checkpoint(options_);
                return 0;
              }),
              0);
    return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() -
                                                                 start)
        .count();
  };
  const auto whole = std::max<long>(1000, static_cast<long>(timed()));
  const Bytes complete = test::read_file(options_.output), old(1234, 5);
  std::mt19937 random(1);
  int killed = 0;
  bool filters = true;
  for (int round = 0; round < 40; ++round) {
    const bool nameless = round % 4 != 0 || !filters;
    const bool replace = round % 2 == 0;
    fs::remove(options_.output);
    if (replace) test::write_file(options_.output, old);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      if (!nameless && !test::refuse_nameless_files()) _exit(77);
      try {
        convert_checkpoint(options_);
      } catch (const std::exception&) {
        _exit(99);
      }
      _exit(0);
    }
    usleep(static_cast<useconds_t>(random() % static_cast<unsigned long>(whole)));
    kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) filters = false;
    EXPECT_FALSE(WIFEXITED(status) && WEXITSTATUS(status) == 99);
    killed += WIFSIGNALED(status);
    if (fs::exists(options_.output)) {
      const Bytes now = test::read_file(options_.output);
      EXPECT_TRUE(now == complete || (replace && now == old))
          << "round " << round << ", " << now.size();
    } else {
      EXPECT_FALSE(replace) << "round " << round;
    }
    // Nothing else is left, except where the file system cannot do without a temporary name.
    for (const auto& entry : fs::directory_iterator(folder_.path / "out")) {
      if (entry.path() == options_.output) continue;
      EXPECT_EQ(entry.path().filename().string().rfind(".mamba-edge-partial-", 0), 0u);
      EXPECT_FALSE(nameless && !replace) << "round " << round << ": " << entry.path();
      fs::remove(entry.path());
    }
  }
  EXPECT_GT(killed, 10);
  convert_checkpoint(options_);  // and the next run is not disturbed
  EXPECT_EQ(test::read_file(options_.output), complete);
}

// The system gives few threads: the conversion is slower, not over.
TEST_F(Pipeline, TooFewThreads) {
  const Published p(1040, 4000);
  p.write(options_.input);
  convert_checkpoint(options_);
  const Bytes expected = test::read_file(options_.output);
  const int status = in_child([&] {
    // Each thread wants 64 MiB of stack: after a few the address space is used up.
    rlimit stack = {};
    getrlimit(RLIMIT_STACK, &stack);
    unsigned long pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, size_t{64} << 20);
    if (pthread_setattr_default_np(&attributes) != 0) return 77;
    const rlim_t limit =
        static_cast<rlim_t>(pages) * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + (600u << 20);
    const rlimit space = {limit, limit};
    if (setrlimit(RLIMIT_AS, &space) != 0) return 77;
    options_.threads = 16;
    try {
      convert_checkpoint(options_);
    } catch (const std::bad_alloc&) {
      return 3;
    }
    return 0;
  });
  if (status == 77) GTEST_SKIP() << "limits cannot be set here";
  EXPECT_EQ(status, 0);
  EXPECT_EQ(test::read_file(options_.output), expected);
}

}  // namespace
}  // namespace mamba_edge::convert
