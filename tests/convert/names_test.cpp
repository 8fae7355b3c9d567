#include "convert/names.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "convert/error.h"
#include "convert/hf_config.h"
#include "tests/convert/checkpoint_builders.h"

namespace mamba_edge::convert {
namespace {

namespace fs = std::filesystem;
using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::safetensors;
using testing::TempFolder;

const fs::path kGolden = fs::path(MAMBA_EDGE_SHARED_DIR) / "golden";

// A checkpoint of zeros.
using Shapes = std::map<std::string, std::vector<int64_t>>;

class Names : public ::testing::Test {
 protected:
  std::unique_ptr<Checkpoint> checkpoint(const Shapes& shapes, char lm_head_fill = '\0') {
    std::string header = "{";
    std::string data;
    for (const auto& [name, shape] : shapes) {
      const size_t begin = data.size();
      data += std::string(static_cast<size_t>(count_elements(shape)) * 2,
                          name.ends_with("lm_head.weight") ? lm_head_fill : '\0');
      header += (begin > 0 ? ",\"" : "\"") + name + R"(":{"dtype":"BF16","shape":)" +
                shape_text(shape) + ",\"data_offsets\":[" + std::to_string(begin) + "," +
                std::to_string(data.size()) + "]}";
    }
    folder_.write("model.safetensors", safetensors(header + "}", data));
    return Checkpoint::open(folder_.path());
  }

  std::string refusal(const Shapes& shapes, const ModelConfig& config) {
    try {
      name_tensors(*checkpoint(shapes), config);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  TempFolder folder_;
};

ModelConfig mamba1_config(const std::string& more = "") {
  return parse_published_config(
             R"({"d_model":8,"n_layer":1,"vocab_size":16,"ssm_cfg":{"d_state":4)" + more + "}}",
             "config")
      .model;
}

Shapes mamba1_shapes(const std::string& stem = "backbone.",
                     const std::string& embedding = "embedding") {
  const std::string mixer = stem + "layers.0.mixer.";
  return {{stem + embedding + ".weight", {16, 8}},
          {stem + "norm_f.weight", {8}},
          {stem + "layers.0.norm.weight", {8}},
          {mixer + "in_proj.weight", {32, 8}},
          {mixer + "conv1d.weight", {16, 1, 4}},
          {mixer + "conv1d.bias", {16}},
          {mixer + "x_proj.weight", {9, 16}},
          {mixer + "dt_proj.weight", {16, 1}},
          {mixer + "dt_proj.bias", {16}},
          {mixer + "A_log", {16, 4}},
          {mixer + "D", {16}},
          {mixer + "out_proj.weight", {8, 16}}};
}

ModelConfig mamba2_config(const std::string& more = "") {
  return parse_published_config(
             R"({"d_model":8,"n_layer":1,"vocab_size":16,"tie_embeddings":false,)"
             R"("ssm_cfg":{"layer":"Mamba2","d_state":4,"headdim":4,"ngroups":2)" +
                 more + "}}",
             "config")
      .model;
}

Shapes mamba2_shapes() {
  const std::string mixer = "backbone.layers.0.mixer.";
  return {{"backbone.embedding.weight", {16, 8}},
          {"backbone.norm_f.weight", {8}},
          {"backbone.layers.0.norm.weight", {8}},
          {mixer + "in_proj.weight", {52, 8}},
          {mixer + "conv1d.weight", {32, 1, 4}},
          {mixer + "conv1d.bias", {32}},
          {mixer + "dt_bias", {4}},
          {mixer + "A_log", {4}},
          {mixer + "D", {4}},
          {mixer + "norm.weight", {16}},
          {mixer + "out_proj.weight", {8, 16}},
          {"lm_head.weight", {16, 8}}};
}

TEST_F(Names, FollowTheCanonicalOrder) {
  const ModelConfig config = mamba2_config();
  const auto file = checkpoint(mamba2_shapes());
  const NamedTensors named = name_tensors(*file, config);
  ASSERT_EQ(named.tensors.size(), tensor_count(config));
  for (uint32_t i = 0; i < tensor_count(config); ++i) {
    EXPECT_EQ(named.tensors[i].role, tensor_spec(config, i).role);
    EXPECT_EQ(named.tensors[i].layer, tensor_spec(config, i).layer);
    if (named.tensors[i].role == TensorRole::a) {
      EXPECT_EQ(named.tensors[i].source->name, "backbone.layers.0.mixer.A_log");
    }
  }
  EXPECT_THAT(named.warnings, IsEmpty());
}

TEST_F(Names, EveryLayoutAndWrapper) {
  for (const char* stem : {"backbone.", "model.backbone.", "module.backbone.",
                           "module.model.backbone.", "_orig_mod.backbone.", "", "model."}) {
    for (const char* embedding : {"embedding", "embeddings"}) {
      Shapes shapes = mamba1_shapes(stem, embedding);
      const auto file = checkpoint(shapes);
      EXPECT_THAT(name_tensors(*file, mamba1_config()).warnings, IsEmpty()) << stem;
    }
  }
  Shapes shapes = mamba1_shapes("transformer.backbone.");
  EXPECT_THAT(refusal(shapes, mamba1_config()), HasSubstr("not a Mamba model"));
  shapes = mamba1_shapes();
  shapes.merge(mamba1_shapes("module.backbone."));
  EXPECT_THAT(refusal(shapes, mamba1_config()), HasSubstr("two models"));
}

TEST_F(Names, HeadBesideAWrappedBackbone) {
  ModelConfig config = mamba1_config();
  config.tied = 0;
  for (const char* head : {"model.lm_head.weight", "lm_head.weight"}) {
    Shapes shapes = mamba1_shapes("model.backbone.");
    shapes[head] = {16, 8};
    const auto file = checkpoint(shapes);
    EXPECT_THAT(name_tensors(*file, config).warnings, IsEmpty());
  }
}

TEST_F(Names, EveryMissingTensorIsNamedWithItsShape) {
  for (const bool mamba2 : {false, true}) {
    const Shapes all = mamba2 ? mamba2_shapes() : mamba1_shapes();
    const ModelConfig config = mamba2 ? mamba2_config() : mamba1_config();
    for (const auto& [name, shape] : all) {
      Shapes shapes = all;
      shapes.erase(name);
      const std::string message = refusal(shapes, config);
      EXPECT_THAT(message, HasSubstr(name));
      if (name != "backbone.norm_f.weight") {
        EXPECT_THAT(message, HasSubstr(shape_text(shape))) << name;
      }
    }
  }
}

TEST_F(Names, EveryWrongShapeIsNamedWithBoth) {
  for (const bool mamba2 : {false, true}) {
    const Shapes all = mamba2 ? mamba2_shapes() : mamba1_shapes();
    const ModelConfig config = mamba2 ? mamba2_config() : mamba1_config();
    for (const auto& [name, shape] : all) {
      Shapes shapes = all;
      shapes[name].back() += 1;
      const std::string message = refusal(shapes, config);
      EXPECT_THAT(message, HasSubstr(name));
      EXPECT_THAT(message, HasSubstr(shape_text(shape)));
      EXPECT_THAT(message, HasSubstr(shape_text(shapes[name])));
    }
  }
}

TEST_F(Names, ContradictionsBetweenConfigAndTensors) {
  const auto with = [&](const std::string& name, const std::vector<int64_t>& shape) {
    Shapes shapes = mamba1_shapes();
    shapes[name] = shape;
    return refusal(shapes, mamba1_config());
  };
  EXPECT_THAT(with("backbone.layers.0.mixer.in_proj.bias", {32}), HasSubstr("in_proj.bias"));
  EXPECT_THAT(with("backbone.layers.0.mixer.out_proj.bias", {8}), HasSubstr("out_proj.bias"));
  EXPECT_THAT(with("backbone.layers.0.norm.bias", {8}), HasSubstr("norm.bias"));
  EXPECT_THAT(with("backbone.norm_f.bias", {8}), HasSubstr("norm_f.bias"));
  EXPECT_THAT(with("backbone.layers.0.mixer.norm.weight", {16}), HasSubstr("mixer.norm.weight"));
  EXPECT_THAT(with("backbone.layers.0.mixer.init_states", {4, 4, 4}), HasSubstr("init_states"));
  EXPECT_THAT(with("backbone.layers.1.norm.weight", {8}), HasSubstr("there are 1 layers"));
  EXPECT_THAT(with("lm_head.bias", {16}), HasSubstr("lm_head.bias"));
  Shapes shapes = mamba1_shapes();
  EXPECT_THAT(refusal(shapes, mamba1_config(R"(,"conv_bias":false)")), HasSubstr("conv1d.bias"));
  EXPECT_THAT(refusal(shapes, mamba1_config(R"(,"bias":true)")), HasSubstr("lacks"));
  shapes = mamba2_shapes();
  EXPECT_THAT(refusal(shapes, mamba2_config(R"(,"rmsnorm":false)")),
              HasSubstr("mixer.norm.weight"));
  EXPECT_THAT(refusal(shapes, mamba2_config(R"(,"learnable_init_states":true)")),
              HasSubstr("init_states of shape [4, 4, 4]"));
  EXPECT_THAT(refusal(shapes, mamba2_config(R"(,"D_has_hdim":true)")), HasSubstr("[16]"));
}

TEST_F(Names, UnknownTensorsAreWarnings) {
  Shapes shapes = mamba1_shapes();
  shapes["backbone.layers.0.mixer.unknown"] = {1};
  shapes["backbone.layers.x.norm.weight"] = {1};
  shapes["rotary.inv_freq"] = {2};
  const auto file = checkpoint(shapes);
  EXPECT_THAT(name_tensors(*file, mamba1_config()).warnings,
              ElementsAre(AllOf(HasSubstr("3 of"), HasSubstr("mixer.unknown"),
                                HasSubstr("rotary.inv_freq"))));
}

TEST_F(Names, UnreadableTypesAreRefused) {
  Shapes shapes = mamba1_shapes();
  const auto as_float = checkpoint(shapes);
  std::string header =
      File(folder_.path() / "model.safetensors").read_string(8, as_float->files()[0].size - 8);
  for (size_t at = header.find("BF16"); at != std::string::npos; at = header.find("BF16", at)) {
    header.replace(at, 4, "I16 ").erase(at + 3, 1);
  }
  const size_t end = header.rfind('}') + 1;
  folder_.write("model.safetensors", safetensors(header.substr(0, end), header.substr(end)));
  const auto as_int = Checkpoint::open(folder_.path());
  try {
    name_tensors(*as_int, mamba1_config());
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("holds I16"));
  }
}

TEST_F(Names, TiedModels) {
  const ModelConfig config = mamba1_config();
  Shapes shapes = mamba1_shapes();
  shapes["lm_head.weight"] = {16, 8};
  const auto same = checkpoint(shapes);
  EXPECT_THAT(name_tensors(*same, config).warnings, IsEmpty());
  const auto differs = checkpoint(shapes, '\x11');
  const NamedTensors named = name_tensors(*differs, config);
  EXPECT_THAT(named.warnings, ElementsAre(HasSubstr("lm_head.weight differs")));
  EXPECT_EQ(named.tensors[0].source->name, "backbone.embedding.weight");
  // Programs that drop duplicates may keep the head.
  shapes.erase("backbone.embedding.weight");
  const auto head_only = checkpoint(shapes);
  EXPECT_EQ(name_tensors(*head_only, config).tensors[0].source->name, "lm_head.weight");
}

TEST_F(Names, UntiedModelsNeedAHead) {
  Shapes shapes = mamba2_shapes();
  shapes.erase("lm_head.weight");
  EXPECT_THAT(refusal(shapes, mamba2_config()),
              AllOf(HasSubstr("lm_head.weight of shape [16, 8]"), HasSubstr("not tied")));
}

TEST(GoldenNames, EveryTensorOfEveryFolderHasItsPlace) {
  if (!fs::exists(kGolden)) GTEST_SKIP() << "no reference data";
  int folders = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(kGolden)) {
    const std::string name = entry.path().filename().string();
    if (!fs::exists(entry.path() / "config.json") && !fs::exists(entry.path() / "params.json"))
      continue;
    if (name.starts_with("mamba3") || name == "mamba2-ss-dssm") continue;
    const ModelConfig config = read_published_config(entry.path()).model;
    const auto checkpoint = Checkpoint::open(entry.path());
    const NamedTensors named = name_tensors(*checkpoint, config);
    EXPECT_EQ(named.tensors.size(), tensor_count(config)) << name;
    EXPECT_THAT(named.warnings, IsEmpty()) << name;
    ++folders;
  }
  EXPECT_EQ(folders, 36);
}

// The published weights of another width are read with the same config code; a config of one model
// beside the tensors of another is refused.
TEST(GoldenNames, AnotherModelsConfigIsRefused) {
  if (!fs::exists(kGolden)) GTEST_SKIP() << "no reference data";
  const auto checkpoint = Checkpoint::open(kGolden / "mamba1-ss-fp32");
  for (const char* other : {"mamba1-ss-dims", "mamba1-ss-layernorm", "mamba2-ss-fp32",
                            "falcon-mamba-hf", "mamba1-hf-tied", "mamba2-hf"}) {
    const ModelConfig config = read_published_config(kGolden / other).model;
    EXPECT_THROW(name_tensors(*checkpoint, config), Error) << other;
  }
}

}  // namespace
}  // namespace mamba_edge::convert
