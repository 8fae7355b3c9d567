// Checkpoints to GGUF: what is written, what comes back from it, and what is refused.
#include "convert/gguf_export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "convert/checkpoint.h"
#include "convert/error.h"
#include "convert/ggml_blocks.h"
#include "convert/gguf_model.h"
#include "engine/container.h"
#include "quant/half.h"
#include "tests/convert/gguf_builder.h"

namespace mamba_edge::convert {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::ElementsAre;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::small_gguf;
using testing::TempFolder;

const fs::path kSource = MAMBA_EDGE_SOURCE_DIR;

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

Report to_gguf(const fs::path& input, const fs::path& output, DType type = DType::f32) {
  GgufOptions o;
  o.input = input;
  o.output = output;
  o.type = type;
  return export_gguf(o);
}

// Converts to a container in float32.
Container to_container(const fs::path& input, const fs::path& output) {
  Options o;
  o.input = input;
  o.output = output;
  o.type = WeightType::f32;
  convert_checkpoint(o);
  Container container;
  const Status status = Container::open(output.c_str(), &container);
  EXPECT_TRUE(status.ok()) << status.message();
  return container;
}

void expect_same_tensors(const Container& a, const Container& b) {
  ASSERT_EQ(a.n_tensors(), b.n_tensors());
  for (uint32_t i = 0; i < a.n_tensors(); ++i) {
    const TensorEntry x = a.tensor(i), y = b.tensor(i);
    EXPECT_EQ(x.name, y.name);
    EXPECT_EQ(x.shape.rows, y.shape.rows) << x.name;
    EXPECT_EQ(x.shape.cols, y.shape.cols) << x.name;
    EXPECT_EQ(x.scale, y.scale) << x.name;
    EXPECT_EQ(x.blob.raw_bytes, y.blob.raw_bytes) << x.name;
    EXPECT_EQ(x.blob.checksum, y.blob.checksum) << x.name;
  }
}

class RoundTrip : public ::testing::TestWithParam<const char*> {};

// By way of GGUF in float32, a container gets the same tensors, bit for bit, the same config and the
// same tokenizer.
TEST_P(RoundTrip, SameContainer) {
  const fs::path input = kSource / GetParam();
  const TempFolder folder;
  const Report report = to_gguf(input, folder.path() / "model.gguf");
  EXPECT_EQ(report.output_bytes, fs::file_size(folder.path() / "model.gguf"));
  const Container direct = to_container(input, folder.path() / "direct.mamba");
  const Container back = to_container(folder.path() / "model.gguf", folder.path() / "back.mamba");
  expect_same_tensors(direct, back);
  const ModelConfig &a = direct.config(), &b = back.config();
  EXPECT_EQ(a.architecture, b.architecture);
  EXPECT_EQ(a.n_vocab, b.n_vocab);
  EXPECT_EQ(a.norm_eps, b.norm_eps);
  EXPECT_EQ(a.tied, b.tied);
  EXPECT_EQ(a.mamba2.n_groups, b.mamba2.n_groups);
  EXPECT_EQ(a.mamba2.headdim, b.mamba2.headdim);
  EXPECT_EQ(a.mamba2.norm_eps, b.mamba2.norm_eps);
  EXPECT_EQ(a.mamba1.dt_bc_eps, b.mamba1.dt_bc_eps);
  EXPECT_EQ(report.has_tokenizer,
            fs::exists(input / "tokenizer.json") || fs::exists(input / "model.gguf"));
  if (report.has_tokenizer) {
    EXPECT_EQ(a.n_vocab_used, b.n_vocab_used);
  }
  EXPECT_EQ(a.bos_token, b.bos_token);
  EXPECT_EQ(a.eos_token, b.eos_token);
  // And once more: a GGUF file of a GGUF file.
  const Report again = to_gguf(folder.path() / "model.gguf", folder.path() / "again.gguf");
  expect_same_tensors(direct,
                      to_container(folder.path() / "again.gguf", folder.path() / "again.mamba"));
  EXPECT_EQ(again.has_tokenizer, report.has_tokenizer);
}

INSTANTIATE_TEST_SUITE_P(Models, RoundTrip,
                         ::testing::Values("models/mamba1-tiny", "models/mamba2-tiny",
                                           "tests/data/golden/mamba1-hf-short",
                                           "tests/data/golden/mamba1-ss-sharded-bin",
                                           "tests/data/golden/mamba2-hf-groups",
                                           "tests/data/golden/mamba2-mistral",
                                           "tests/data/golden/gguf-mamba1-f32",
                                           "tests/data/golden/gguf-mamba2-f32",
                                           "tests/data/golden/gguf-falcon-mamba-f32"));

TEST(GgufExport, SameFlagsSameBytes) {
  const TempFolder folder;
  for (const GgufOutputType& type : gguf_output_types()) {
    to_gguf(kSource / "models/mamba2-tiny", folder.path() / "a.gguf", type.dtype);
    to_gguf(kSource / "models/mamba2-tiny", folder.path() / "b.gguf", type.dtype);
    EXPECT_EQ(read_file(folder.path() / "a.gguf"), read_file(folder.path() / "b.gguf"))
        << type.name;
  }
}

// The layout that llama.cpp asks for: its converter's names, metadata and types.
TEST(GgufExport, WhatLlamaCppExpects) {
  const TempFolder folder;
  const fs::path path = folder.path() / "m.gguf";
  to_gguf(kSource / "models/mamba1-tiny", path, DType::q8_0);
  auto c = Checkpoint::open(path);
  const GgufMetadata* m = c->gguf();
  EXPECT_EQ(m->text("general.architecture"), "mamba");
  EXPECT_EQ(m->text("general.name"), "mamba1-tiny");
  EXPECT_EQ(m->count("general.file_type"), 7u);
  EXPECT_EQ(m->count("mamba.vocab_size"), 2048u);
  EXPECT_EQ(m->count("mamba.context_length"), 1048576u);
  EXPECT_EQ(m->count("mamba.feed_forward_length"), 0u);
  EXPECT_EQ(m->count("mamba.attention.head_count"), 0u);
  EXPECT_EQ(m->flag("mamba.ssm.dt_b_c_rms"), false);
  EXPECT_EQ(m->text("tokenizer.ggml.model"), "gpt2");
  EXPECT_EQ(m->text("tokenizer.ggml.pre"), "gpt-2");
  EXPECT_EQ(m->texts("tokenizer.ggml.tokens").size(), 2048u);
  EXPECT_EQ(m->integers("tokenizer.ggml.token_type").size(), 2048u);
  EXPECT_EQ(m->texts("tokenizer.ggml.merges").size(), 1791u);
  EXPECT_EQ(m->count("tokenizer.ggml.bos_token_id"), 0u);
  EXPECT_EQ(m->flag("tokenizer.ggml.add_bos_token"), false);
  const std::map<std::string, std::string> types = {{"token_embd.weight", "Q8_0"},
                                                    {"output_norm.weight", "F32"},
                                                    {"blk.5.attn_norm.weight", "F32"},
                                                    {"blk.5.ssm_in.weight", "Q8_0"},
                                                    {"blk.5.ssm_conv1d.weight", "F32"},
                                                    {"blk.5.ssm_conv1d.bias", "F32"},
                                                    {"blk.5.ssm_x.weight", "Q8_0"},
                                                    {"blk.5.ssm_dt.weight", "F16"},  // 16 columns
                                                    {"blk.5.ssm_dt.bias", "F32"},
                                                    {"blk.5.ssm_a", "F32"},
                                                    {"blk.5.ssm_d", "F32"},
                                                    {"blk.5.ssm_out.weight", "Q8_0"}};
  EXPECT_EQ(c->tensors().size(), 2 + 6 * (types.size() - 2));
  for (const auto& [name, type] : types) {
    ASSERT_NE(c->find(name), nullptr) << name;
    EXPECT_EQ(c->find(name)->dtype_name, type) << name;
  }
  EXPECT_EQ(c->find("blk.0.ssm_conv1d.weight")->shape, (std::vector<int64_t>{512, 4}));
  EXPECT_EQ(c->find("blk.0.ssm_a")->shape, (std::vector<int64_t>{512, 16}));
  for (const TensorInfo& tensor : c->tensors()) EXPECT_EQ(tensor.begin % 32, 0u);
  EXPECT_EQ(fs::file_size(path) % 32, 0u);

  to_gguf(kSource / "tests/data/golden/mamba2-hf-groups", path, DType::f16);
  c = Checkpoint::open(path);
  m = c->gguf();
  EXPECT_EQ(m->text("general.architecture"), "mamba2");
  EXPECT_EQ(m->count("general.file_type"), 1u);
  EXPECT_EQ(m->count("mamba2.ssm.group_count"), 4u);
  EXPECT_EQ(m->text("tokenizer.ggml.model"), "none");  // the folder has no tokenizer
  EXPECT_EQ(m->count("mamba2.vocab_size"), 320u);
  EXPECT_FALSE(m->has("mamba2.ssm.dt_b_c_rms"));
  const ModelConfig config = read_gguf_config(*c).model;
  EXPECT_EQ(c->find("blk.0.ssm_a")->shape, (std::vector<int64_t>{config.mamba2.n_heads, 1}));
  EXPECT_EQ(c->find("blk.0.ssm_d")->shape, (std::vector<int64_t>{config.mamba2.n_heads, 1}));
  EXPECT_EQ(c->find("blk.0.ssm_norm.weight")->shape,
            (std::vector<int64_t>{4, config.mamba2.d_inner / 4}));
  EXPECT_EQ(c->find("blk.0.ssm_norm.weight")->dtype_name, "F32");
  EXPECT_EQ(c->find("blk.0.ssm_in.weight")->dtype_name, "F16");
  EXPECT_EQ(c->find("output.weight") == nullptr, config.tied == 1);
}

// bfloat16 weights are exact in bf16 and fp32; the others round as their blocks do.
TEST(GgufExport, ValuesAreThoseOfTheCheckpoint) {
  const TempFolder folder;
  const fs::path input = kSource / "models/mamba1-tiny";
  const auto source = Checkpoint::open(input);
  const std::vector<float> expected =
      source->read(*source->find("backbone.layers.3.mixer.in_proj.weight"));
  for (const GgufOutputType& type : gguf_output_types()) {
    const Report report = to_gguf(input, folder.path() / "m.gguf", type.dtype);
    const auto c = Checkpoint::open(folder.path() / "m.gguf");
    const std::vector<float> got = c->read(*c->find("blk.3.ssm_in.weight"));
    ASSERT_EQ(got.size(), expected.size());
    double errors = 0, squares = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      if (type.dtype == DType::f32 || type.dtype == DType::bf16) {
        ASSERT_EQ(got[i], expected[i]);
      }
      if (type.dtype == DType::f16) {
        ASSERT_EQ(got[i], half_to_float(float_to_half(expected[i])));
      }
      errors += std::pow(double{got[i]} - double{expected[i]}, 2);
      squares += std::pow(double{expected[i]}, 2);
    }
    for (const TensorReport& t : report.tensors) {
      if (t.name != "blk.3.ssm_in.weight") continue;
      EXPECT_EQ(t.type, type.name);
      EXPECT_NEAR(t.error.relative_rms(), std::sqrt(errors / squares), 1e-9);
    }
  }
}

TEST(GgufExport, TypesOfEmbeddingAndHead) {
  const TempFolder folder;
  GgufOptions o;
  o.input = kSource / "tests/data/golden/gguf-mamba2-f32";  // not tied
  o.output = folder.path() / "m.gguf";
  o.type = DType::q4_0;
  o.embedding_type = DType::f16;
  o.head_type = DType::q8_0;
  export_gguf(o);
  const auto c = Checkpoint::open(o.output);
  EXPECT_EQ(c->find("token_embd.weight")->dtype_name, "F16");
  EXPECT_EQ(c->find("output.weight")->dtype_name, "Q8_0");
  EXPECT_EQ(c->find("blk.0.ssm_in.weight")->dtype_name, "Q4_0");
  o.input = kSource / "models/mamba1-tiny";  // tied
  try {
    export_gguf(o);
    FAIL() << "one matrix in two types";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("--embedding-type fp16 and --head-type q8_0"));
  }
  o.embedding_type.reset();
  export_gguf(o);
  EXPECT_EQ(Checkpoint::open(o.output)->find("token_embd.weight")->dtype_name, "Q8_0");
}

// ---- values that a type cannot hold

// A GGUF file with one value of ssm_in replaced.
fs::path with_value(const TempFolder& folder, float value) {
  GgufBuilder b = small_gguf();
  std::memcpy(b.find("blk.0.ssm_in.weight").bytes.data() + 40, &value, 4);
  return folder.write("in.gguf", b.bytes());
}

TEST(GgufExport, LargeValuesBecomeFloat32WithAWarning) {
  // The largest numbers that 16 bits, and 127 or 8 steps of a binary16 scale, can express, and more.
  const struct {
    DType type;
    float fits, too_large;
  } cases[] = {{DType::f16, 65504, 65520},
               {DType::bf16, 3.3895e38f, 3.4e38f},
               {DType::q8_0, 65000.0f * 127, 66000.0f * 127},
               {DType::q4_0, 65000.0f * 8, 66000.0f * 8},
               {DType::f32, 3.4e38f, 0}};
  for (const auto& c : cases) {
    for (const bool large : {false, true}) {
      if (large && c.too_large == 0) continue;
      const TempFolder folder;
      const fs::path input = with_value(folder, large ? -c.too_large : c.fits);
      const Report report = to_gguf(input, folder.path() / "out.gguf", c.type);
      const auto out = Checkpoint::open(folder.path() / "out.gguf");
      const TensorInfo& tensor = *out->find("blk.0.ssm_in.weight");
      EXPECT_EQ(tensor.dtype == DType::f32, large || c.type == DType::f32);
      for (const float v : out->read(tensor)) EXPECT_TRUE(std::isfinite(v));
      EXPECT_EQ(report.warnings.size(), large ? 1u : 0u);
      if (large) {
        EXPECT_THAT(report.warnings[0], HasSubstr("blk.0.ssm_in.weight"));
      }
    }
  }
}

TEST(GgufExport, NanAndInfinity) {
  for (const float value : {std::nanf(""), -INFINITY}) {
    const TempFolder folder;
    GgufOptions o;
    o.input = with_value(folder, value);
    o.output = folder.path() / "out.gguf";
    try {
      export_gguf(o);
      FAIL() << value << " was converted";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("in.gguf: tensor blk.0.ssm_in.weight"));
      EXPECT_THAT(error.what(), HasSubstr("--allow-nonfinite"));
    }
    EXPECT_FALSE(fs::exists(o.output));
    o.allow_nonfinite = true;
    export_gguf(o);
    const auto out = Checkpoint::open(o.output);
    EXPECT_EQ(out->find("blk.0.ssm_in.weight")->dtype, DType::f32);
    const float back = out->read(*out->find("blk.0.ssm_in.weight"))[10];
    EXPECT_TRUE(std::isnan(value) ? std::isnan(back) : back == value);
  }
}

// ---- models that llama.cpp does not have

// The message with which a checkpoint of `config` and no tensors but the final norm is refused.
std::string refusal(const json& config) {
  const TempFolder folder;
  fs::create_directory(folder.path() / "in");
  std::ofstream(folder.path() / "in/config.json") << config.dump();
  std::ofstream(folder.path() / "in/model.safetensors", std::ios::binary) << testing::safetensors(
      R"({"backbone.norm_f.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "1234");
  try {
    to_gguf(folder.path() / "in", folder.path() / "out.gguf");
  } catch (const Error& error) {
    EXPECT_FALSE(fs::exists(folder.path() / "out.gguf"));
    return error.what();
  }
  return "";
}

TEST(GgufExport, WhatLlamaCppCannotRunIsRefusedByName) {
  const auto ss = [](json cfg, json more = json::object()) {
    json config = {
        {"d_model", 64}, {"n_layer", 1}, {"vocab_size", 40}, {"ssm_cfg", std::move(cfg)}};
    config.update(more);
    return config;
  };
  const auto ss2 = [&](json cfg) {
    cfg["layer"] = "Mamba2";
    cfg["headdim"] = 16;
    return ss(std::move(cfg));
  };
  EXPECT_THAT(refusal(ss(json::object(), {{"rms_norm", false}})), HasSubstr("config.json: cannot"));
  EXPECT_THAT(refusal(ss(json::object(), {{"rms_norm", false}})), HasSubstr("LayerNorm"));
  EXPECT_THAT(refusal(ss({{"bias", true}})), HasSubstr("biases"));
  EXPECT_THAT(refusal(ss({{"conv_bias", false}})), HasSubstr("convolution"));
  EXPECT_THAT(refusal(ss({{"expand", 3}})), HasSubstr("192 and 64"));
  EXPECT_THAT(refusal(ss2({{"bias", true}})), HasSubstr("biases"));
  EXPECT_THAT(refusal(ss2({{"conv_bias", false}})), HasSubstr("convolution"));
  EXPECT_THAT(refusal(ss2({{"rmsnorm", false}})), HasSubstr("rmsnorm"));
  EXPECT_THAT(refusal(ss2({{"norm_before_gate", true}})), HasSubstr("norm_before_gate"));
  EXPECT_THAT(refusal(ss2({{"D_has_hdim", true}})), HasSubstr("D_has_hdim"));
  EXPECT_THAT(refusal(ss2({{"learnable_init_states", true}})), HasSubstr("initial states"));
  EXPECT_THAT(refusal(ss2({{"dt_limit", {0.001, 0.1}}})), HasSubstr("limits of dt"));
  EXPECT_THAT(refusal(ss2({{"dt_limit", {0.0, 100.0}}})), HasSubstr("limits of dt"));
  // Without any of this, what is missing is the tensors.
  EXPECT_THAT(refusal(ss(json::object())), HasSubstr("lacks tensor"));
  EXPECT_THAT(refusal(ss2(json::object())), HasSubstr("lacks tensor"));
}

// llama.cpp has one epsilon; its own converter does not even say so.
TEST(GgufExport, FalconMambaWithAnEpsilonOfItsOwnIsAWarning) {
  const TempFolder folder;
  const std::map<std::string, std::pair<std::string, std::vector<int64_t>>> names = {
      {"token_embd.weight", {"embeddings.weight", {40, 32}}},
      {"output_norm.weight", {"norm_f.weight", {32}}},
      {"blk.0.attn_norm.weight", {"layers.0.norm.weight", {32}}},
      {"blk.0.ssm_in.weight", {"layers.0.mixer.in_proj.weight", {128, 32}}},
      {"blk.0.ssm_conv1d.weight", {"layers.0.mixer.conv1d.weight", {64, 1, 4}}},
      {"blk.0.ssm_conv1d.bias", {"layers.0.mixer.conv1d.bias", {64}}},
      {"blk.0.ssm_x.weight", {"layers.0.mixer.x_proj.weight", {10, 64}}},
      {"blk.0.ssm_dt.weight", {"layers.0.mixer.dt_proj.weight", {64, 2}}},
      {"blk.0.ssm_dt.bias", {"layers.0.mixer.dt_proj.bias", {64}}},
      {"blk.0.ssm_a", {"layers.0.mixer.A_log", {64, 4}}},
      {"blk.0.ssm_d", {"layers.0.mixer.D", {64}}},
      {"blk.0.ssm_out.weight", {"layers.0.mixer.out_proj.weight", {32, 64}}}};
  json header;
  std::string data;
  for (const GgufBuilder::Tensor& t : small_gguf().tensors) {
    const auto& [name, shape] = names.at(t.name);
    header["backbone." + name] = {{"dtype", "F32"},
                                  {"shape", shape},
                                  {"data_offsets", {data.size(), data.size() + t.bytes.size()}}};
    data += t.bytes;
  }
  folder.write("model.safetensors", testing::safetensors(header.dump(), data));
  for (const double eps : {1e-5, 1e-6}) {
    folder.write("config.json", json({{"model_type", "falcon_mamba"},
                                      {"hidden_size", 32},
                                      {"intermediate_size", 64},
                                      {"num_hidden_layers", 1},
                                      {"state_size", 4},
                                      {"time_step_rank", 2},
                                      {"vocab_size", 40},
                                      {"layer_norm_epsilon", 1e-5},
                                      {"mixer_rms_eps", eps}})
                                    .dump());
    const Report report = to_gguf(folder.path(), folder.path() / "out.gguf");
    EXPECT_EQ(report.warnings.size(), eps == 1e-5 ? 0u : 1u);
    if (eps != 1e-5) {
      EXPECT_THAT(report.warnings[0], HasSubstr("mixer_rms_eps 1e-06"));
    }
    EXPECT_EQ(Checkpoint::open(folder.path() / "out.gguf")->gguf()->flag("mamba.ssm.dt_b_c_rms"),
              true);
    fs::remove(folder.path() / "out.gguf");
  }
}

TEST(GgufExport, TheInputIsSpared) {
  const TempFolder folder;
  const fs::path input = folder.write("m.gguf", small_gguf().bytes());
  const std::string before = read_file(input);
  try {
    to_gguf(input, input);
    FAIL() << "the input was replaced";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("it is read for this conversion"));
  }
  EXPECT_EQ(read_file(input), before);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);
}

}  // namespace
}  // namespace mamba_edge::convert
