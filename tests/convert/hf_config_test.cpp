#include "convert/hf_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "convert/error.h"
#include "tests/convert/checkpoint_builders.h"

namespace mamba_edge::convert {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TempFolder;

const fs::path kGolden = fs::path(MAMBA_EDGE_SHARED_DIR) / "golden";
constexpr float kInfinity = std::numeric_limits<float>::infinity();

ModelConfig parse(const std::string& json) {
  return parse_published_config(json, "config.json").model;
}

std::string refusal(const std::string& json) {
  try {
    parse(json);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// {"d_model":48,"n_layer":2,"vocab_size":277, ...}
std::string state_spaces(const std::string& ssm_cfg, const std::string& more = "") {
  return R"({"d_model":48,"n_layer":2,"vocab_size":277,"ssm_cfg":{)" + ssm_cfg + "}" +
         (more.empty() ? "" : "," + more) + "}";
}

std::string transformers(const std::string& type, const std::string& more = "") {
  return R"({"model_type":")" + type +
         R"(","hidden_size":64,"num_hidden_layers":2,"vocab_size":280)" +
         (more.empty() ? "" : "," + more) + "}";
}

// ---- state-spaces ----

TEST(StateSpaces, DefaultsOfMamba1) {
  const ModelConfig c = parse(R"({"d_model":50,"n_layer":3,"vocab_size":277})");
  EXPECT_EQ(c.architecture, Architecture::mamba);
  EXPECT_EQ(c.d_model, 50u);
  EXPECT_EQ(c.n_layer, 3u);
  EXPECT_EQ(c.n_vocab, 280u);  // a multiple of 8
  EXPECT_EQ(c.n_vocab_used, 277u);
  EXPECT_EQ(c.norm, NormKind::rms);
  EXPECT_EQ(c.norm_eps, 1e-5f);
  EXPECT_EQ(c.residual_in_fp32, 1u);
  EXPECT_EQ(c.tied, 1u);
  EXPECT_EQ(c.bos_token, -1);
  EXPECT_EQ(c.eos_token, -1);
  EXPECT_EQ(c.mamba1.d_inner, 100u);
  EXPECT_EQ(c.mamba1.d_state, 16u);
  EXPECT_EQ(c.mamba1.d_conv, 4u);
  EXPECT_EQ(c.mamba1.dt_rank, 4u);  // ceil(50 / 16)
  EXPECT_EQ(c.mamba1.proj_bias, 0u);
  EXPECT_EQ(c.mamba1.conv_bias, 1u);
  EXPECT_EQ(c.mamba1.dt_bc_norm, 0u);
}

TEST(StateSpaces, KeysOfMamba1) {
  const ModelConfig c = parse(state_spaces(
      R"("layer":"Mamba1","d_state":8,"d_conv":3,"expand":3,"dt_rank":6,"bias":true,"conv_bias":false,)"
      R"("dt_min":0.5,"dt_init":"constant","use_fast_path":false)",
      R"("rms_norm":false,"residual_in_fp32":false,"pad_vocab_size_multiple":16,"tie_embeddings":false)"));
  EXPECT_EQ(c.mamba1.d_state, 8u);
  EXPECT_EQ(c.mamba1.d_conv, 3u);
  EXPECT_EQ(c.mamba1.d_inner, 144u);
  EXPECT_EQ(c.mamba1.dt_rank, 6u);
  EXPECT_EQ(c.mamba1.proj_bias, 1u);
  EXPECT_EQ(c.mamba1.conv_bias, 0u);
  EXPECT_EQ(c.norm, NormKind::layer);
  EXPECT_EQ(c.residual_in_fp32, 0u);
  EXPECT_EQ(c.n_vocab, 288u);
  EXPECT_EQ(c.tied, 0u);
  EXPECT_EQ(parse(state_spaces(R"("dt_rank":"auto")")).mamba1.dt_rank, 3u);
  EXPECT_EQ(parse(state_spaces("", R"("pad_vocab_size_multiple":1)")).n_vocab, 277u);
  EXPECT_EQ(parse(R"({"d_model":48,"n_layer":2,"vocab_size":280,"ssm_cfg":null})").n_vocab, 280u);
}

TEST(StateSpaces, DefaultsOfMamba2) {
  const ModelConfig c =
      parse(R"({"d_model":64,"n_layer":1,"vocab_size":300,"ssm_cfg":{"layer":"Mamba2"}})");
  const Mamba2Config& m = c.mamba2;
  EXPECT_EQ(c.architecture, Architecture::mamba2);
  EXPECT_EQ(m.d_inner, 128u);
  EXPECT_EQ(m.d_state, 128u);
  EXPECT_EQ(m.d_conv, 4u);
  EXPECT_EQ(m.headdim, 64u);
  EXPECT_EQ(m.n_heads, 2u);
  EXPECT_EQ(m.n_groups, 1u);
  EXPECT_EQ(m.proj_bias, 0u);
  EXPECT_EQ(m.conv_bias, 1u);
  EXPECT_EQ(m.gated_norm, 1u);
  EXPECT_EQ(m.norm_before_gate, 0u);
  EXPECT_EQ(m.d_per_channel, 0u);
  EXPECT_EQ(m.init_states, 0u);
  EXPECT_EQ(m.norm_eps, 1e-5f);
  EXPECT_EQ(m.dt_low, 0.0f);
  EXPECT_EQ(m.dt_high, kInfinity);
}

TEST(StateSpaces, KeysOfMamba2) {
  const ModelConfig c = parse(state_spaces(
      R"("layer":"Mamba2","d_state":32,"d_conv":3,"expand":3,"headdim":12,"d_ssm":144,"ngroups":2,)"
      R"("D_has_hdim":true,"rmsnorm":false,"norm_before_gate":true,"dt_limit":[0.02,0.2],"bias":true,)"
      R"("conv_bias":false,"activation":"swish","learnable_init_states":true,"chunk_size":16,)"
      R"("A_init_range":[1,2],"process_group":null,"sequence_parallel":true)",
      R"("d_intermediate":0,"attn_layer_idx":[],"attn_cfg":{"rotary":1},"fused_add_norm":true)"));
  const Mamba2Config& m = c.mamba2;
  EXPECT_EQ(m.d_inner, 144u);
  EXPECT_EQ(m.d_state, 32u);
  EXPECT_EQ(m.d_conv, 3u);
  EXPECT_EQ(m.headdim, 12u);
  EXPECT_EQ(m.n_heads, 12u);
  EXPECT_EQ(m.n_groups, 2u);
  EXPECT_EQ(m.gated_norm, 0u);
  EXPECT_EQ(m.norm_before_gate, 1u);
  EXPECT_EQ(m.d_per_channel, 1u);
  EXPECT_EQ(m.init_states, 1u);
  EXPECT_EQ(m.proj_bias, 1u);
  EXPECT_EQ(m.conv_bias, 0u);
  EXPECT_EQ(m.dt_low, 0.02f);
  EXPECT_EQ(m.dt_high, 0.2f);
  EXPECT_EQ(parse(state_spaces(R"("layer":"Mamba2","headdim":16,"dt_limit":[0.0,Infinity])"))
                .mamba2.dt_high,
            kInfinity);
}

TEST(StateSpaces, RefusesWhatItCannotCompute) {
  EXPECT_THAT(refusal(state_spaces(R"("layer":"Mamba3")")),
              HasSubstr("ssm_cfg.layer is \"Mamba3\""));
  EXPECT_THAT(refusal(state_spaces(R"("layer":"Mamba2","d_ssm":64,"headdim":16)")),
              HasSubstr("ssm_cfg.d_ssm is 64"));
  EXPECT_THAT(refusal(state_spaces("", R"("d_intermediate":96)")),
              HasSubstr("d_intermediate is 96"));
  EXPECT_THAT(refusal(state_spaces("", R"("attn_layer_idx":[1])")),
              HasSubstr("attn_layer_idx is [1]"));
  EXPECT_THAT(refusal(state_spaces("", R"("bidirectional":true)")),
              HasSubstr("bidirectional is true"));
  EXPECT_THAT(refusal(state_spaces("", R"("norm_epsilon":1e-6)")),
              HasSubstr("norm_epsilon is 1e-06"));
  EXPECT_THAT(refusal(state_spaces(R"("bimamba_type":"v2")")), HasSubstr("ssm_cfg.bimamba_type"));
  EXPECT_THAT(refusal(state_spaces(R"("headdim":64)")),
              HasSubstr("ssm_cfg.headdim"));  // not a key of Mamba1
  EXPECT_THAT(refusal(state_spaces(R"("layer":"Mamba2","headdim":16,"dt_rank":3)")),
              HasSubstr("ssm_cfg.dt_rank"));
  EXPECT_THAT(refusal(state_spaces(R"("layer":"Mamba2","headdim":16,"activation":"gelu")")),
              HasSubstr("ssm_cfg.activation is \"gelu\""));
  EXPECT_THAT(refusal(state_spaces(R"("layer":"Mamba2","headdim":64)")),
              HasSubstr("ssm_cfg.headdim is 64"));
  EXPECT_THAT(refusal(state_spaces(R"("layer":"Mamba2","headdim":0)")),
              HasSubstr("ssm_cfg.headdim is 0"));
  EXPECT_THAT(refusal(state_spaces(R"("layer":"Mamba2","headdim":16,"ngroups":4)")),
              HasSubstr("n_groups"));
  EXPECT_THAT(refusal(state_spaces(R"("layer":"Mamba2","headdim":16,"dt_limit":[0.2,0.1])")),
              HasSubstr("dt_limit"));
  EXPECT_THAT(refusal(state_spaces(R"("layer":"Mamba2","headdim":16,"dt_limit":[NaN,0.1])")),
              HasSubstr("dt_limit"));
  EXPECT_THAT(refusal(state_spaces(R"("layer":"Mamba2","headdim":16,"dt_limit":[0.1])")),
              HasSubstr("expected two numbers"));
}

// ---- transformers ----

TEST(Transformers, DefaultsOfMamba) {
  const ModelConfig c = parse(R"({"model_type":"mamba"})");
  EXPECT_EQ(c.architecture, Architecture::mamba);
  EXPECT_EQ(c.d_model, 768u);
  EXPECT_EQ(c.n_layer, 32u);
  EXPECT_EQ(c.n_vocab, 50280u);
  EXPECT_EQ(c.n_vocab_used, 50280u);
  EXPECT_EQ(c.norm_eps, 1e-5f);
  EXPECT_EQ(c.tied, 1u);
  EXPECT_EQ(c.mamba1.d_inner, 1536u);
  EXPECT_EQ(c.mamba1.d_state, 16u);
  EXPECT_EQ(c.mamba1.d_conv, 4u);
  EXPECT_EQ(c.mamba1.dt_rank, 48u);
  EXPECT_EQ(c.mamba1.proj_bias, 0u);
  EXPECT_EQ(c.mamba1.conv_bias, 1u);
}

TEST(Transformers, KeysOfMamba) {
  const ModelConfig c = parse(transformers(
      "mamba",
      R"("state_size":8,"conv_kernel":3,"expand":3,"time_step_rank":5,"use_bias":true,"use_conv_bias":false,)"
      R"("layer_norm_epsilon":1e-3,"tie_word_embeddings":false,"bos_token_id":1,"eos_token_id":[2,3],)"
      R"("residual_in_fp32":false,"time_step_min":0.5,"time_step_floor":1,"hidden_act":"silu")"));
  EXPECT_EQ(c.mamba1.d_inner, 192u);
  EXPECT_EQ(c.mamba1.d_state, 8u);
  EXPECT_EQ(c.mamba1.d_conv, 3u);
  EXPECT_EQ(c.mamba1.dt_rank, 5u);
  EXPECT_EQ(c.mamba1.proj_bias, 1u);
  EXPECT_EQ(c.mamba1.conv_bias, 0u);
  EXPECT_EQ(c.norm_eps, 1e-3f);
  EXPECT_EQ(c.tied, 0u);
  EXPECT_EQ(c.bos_token, 1);
  EXPECT_EQ(c.eos_token, 2);
  EXPECT_EQ(c.residual_in_fp32, 0u);
}

TEST(Transformers, OldKeysBesideNewOnesAreIgnored) {
  const ModelConfig c = parse(transformers(
      "mamba",
      R"("d_model":32,"d_inner":64,"n_layer":9,"ssm_cfg":{"x":1},"pad_vocab_size_multiple":7)"));
  EXPECT_EQ(c.d_model, 64u);
  EXPECT_EQ(c.n_layer, 2u);
  EXPECT_EQ(c.n_vocab, 280u);
}

TEST(Transformers, FalconMamba) {
  for (const char* type : {"falcon_mamba", "falcon-mamba"}) {
    const ModelConfig c = parse(
        transformers(type, R"("expand":16,"intermediate_size":128,"layer_norm_epsilon":1e-3)"));
    EXPECT_EQ(c.architecture, Architecture::falcon_mamba);
    EXPECT_EQ(c.mamba1.d_inner, 128u);
    EXPECT_EQ(c.mamba1.dt_bc_norm, 1u);
    EXPECT_EQ(c.mamba1.dt_bc_eps, 1e-6f);
    EXPECT_EQ(c.norm_eps, 1e-3f);
    EXPECT_EQ(c.tied, 1u);
  }
  const ModelConfig c =
      parse(transformers("falcon_mamba", R"("mixer_rms_eps":0.02,"tie_word_embeddings":false)"));
  EXPECT_EQ(c.mamba1.dt_bc_eps, 0.02f);
  EXPECT_EQ(c.mamba1.d_inner, 128u);
  EXPECT_EQ(c.tied, 0u);
}

TEST(Transformers, DefaultsOfMamba2) {
  const ModelConfig c = parse(R"({"model_type":"mamba2"})");
  const Mamba2Config& m = c.mamba2;
  EXPECT_EQ(c.architecture, Architecture::mamba2);
  EXPECT_EQ(c.d_model, 4096u);
  EXPECT_EQ(c.n_layer, 64u);
  EXPECT_EQ(c.n_vocab, 32768u);
  EXPECT_EQ(c.tied, 0u);
  EXPECT_EQ(m.d_inner, 8192u);
  EXPECT_EQ(m.n_heads, 128u);
  EXPECT_EQ(m.headdim, 64u);
  EXPECT_EQ(m.d_state, 128u);
  EXPECT_EQ(m.n_groups, 8u);
  EXPECT_EQ(m.d_conv, 4u);
  EXPECT_EQ(m.gated_norm, 1u);
  EXPECT_EQ(m.norm_eps, 1e-5f);
  EXPECT_EQ(m.dt_low, 0.0f);
  EXPECT_EQ(m.dt_high, kInfinity);
}

TEST(Transformers, KeysOfMamba2) {
  const std::string sizes =
      R"("num_heads":6,"head_dim":16,"expand":1.5,"n_groups":2,"state_size":32)";
  const ModelConfig c = parse(transformers(
      "mamba2",
      sizes + R"(,"layer_norm_epsilon":1e-4,"use_bias":true,"use_conv_bias":false,"conv_kernel":3,)"
              R"("norm_before_gate":true,"time_step_limit":[0.05,0.5],"time_step_min":9)"));
  const Mamba2Config& m = c.mamba2;
  EXPECT_EQ(m.d_inner, 96u);
  EXPECT_EQ(m.n_groups, 2u);
  EXPECT_EQ(m.norm_before_gate, 0u);  // no release of transformers acts upon it
  EXPECT_EQ(m.norm_eps, 1e-4f);
  EXPECT_EQ(c.norm_eps, 1e-4f);
  EXPECT_EQ(m.proj_bias, 1u);
  EXPECT_EQ(m.conv_bias, 0u);
  EXPECT_EQ(m.dt_low, 0.05f);
  EXPECT_EQ(m.dt_high, 0.5f);
  // Both spellings of infinity.
  for (const char* infinity : {"Infinity", R"({"__float__":"Infinity"})"}) {
    EXPECT_EQ(parse(transformers("mamba2", sizes + R"(,"time_step_limit":[0.0,)" + infinity + "]"))
                  .mamba2.dt_high,
              kInfinity);
  }
}

TEST(Transformers, RefusesWhatItCannotCompute) {
  EXPECT_THAT(refusal(transformers("mamba", R"("hidden_act":"gelu")")),
              HasSubstr("hidden_act is \"gelu\""));
  EXPECT_THAT(refusal(transformers("mamba2", R"("num_heads":8,"head_dim":32)")),
              HasSubstr("num_heads is 8"));
  EXPECT_THAT(refusal(transformers("mamba2", R"("head_dim":48)")), HasSubstr("head_dim is 48"));
  EXPECT_THAT(refusal(transformers("mamba2", R"("attention_layers_idx":[3])")),
              HasSubstr("attention_layers_idx is [3]"));
  EXPECT_THAT(refusal(transformers("mamba", R"("quantization_config":{"bits":4})")),
              HasSubstr("quantization_config"));
  EXPECT_THAT(refusal(transformers("mamba", R"("rms_norm":false)")),
              HasSubstr("rms_norm is false"));
  EXPECT_THAT(refusal(transformers("jamba")), HasSubstr("model_type is \"jamba\""));
  EXPECT_THAT(refusal(R"({"hidden_size":64})"), HasSubstr("model_type"));
  EXPECT_THAT(refusal(R"({"model_type":"llama"})"), HasSubstr("model_type is \"llama\""));
}

// ---- Mistral ----

TEST(Mistral, Params) {
  const ModelConfig c = parse(
      R"({"dim":4096,"n_layers":64,"vocab_size":32768,"n_groups":8,"rms_norm":true,"residual_in_fp32":true,)"
      R"("fused_add_norm":true,"pad_vocab_size_multiple":1,"tie_embeddings":false,"model_type":"mamba"})");
  EXPECT_EQ(c.architecture, Architecture::mamba2);
  EXPECT_EQ(c.d_model, 4096u);
  EXPECT_EQ(c.n_layer, 64u);
  EXPECT_EQ(c.n_vocab, 32768u);
  EXPECT_EQ(c.tied, 0u);
  EXPECT_EQ(c.norm_eps, 1e-5f);
  EXPECT_EQ(c.mamba2.n_groups, 8u);
  EXPECT_EQ(c.mamba2.d_state, 128u);
  EXPECT_EQ(c.mamba2.headdim, 64u);
  EXPECT_EQ(c.mamba2.n_heads, 128u);
  EXPECT_EQ(c.mamba2.gated_norm, 1u);
  EXPECT_EQ(parse(R"({"dim":64,"n_layers":1,"vocab_size":321})").n_vocab, 321u);
  EXPECT_EQ(parse(R"({"dim":64,"n_layers":1,"vocab_size":321})").tied, 0u);
  EXPECT_THAT(refusal(R"({"dim":64,"n_layers":1,"vocab_size":320,"n_heads":2})"),
              HasSubstr("n_heads is 2"));
  EXPECT_THAT(refusal(R"({"dim":64,"n_layers":1,"vocab_size":320,"model_type":"llama"})"),
              HasSubstr("model_type is \"llama\""));
}

// ---- JSON and types ----

TEST(Config, ValuesOfTheWrongTypeAreNamed) {
  EXPECT_THAT(refusal(R"({"d_model":"48","n_layer":2,"vocab_size":277})"),
              HasSubstr("d_model is \"48\""));
  EXPECT_THAT(refusal(R"({"d_model":48.5,"n_layer":2,"vocab_size":277})"),
              HasSubstr("d_model is 48.5"));
  EXPECT_THAT(refusal(R"({"d_model":-48,"n_layer":2,"vocab_size":277})"),
              HasSubstr("d_model is -48"));
  EXPECT_THAT(refusal(R"({"d_model":48,"n_layer":99999999999,"vocab_size":277})"),
              HasSubstr("n_layer"));
  EXPECT_THAT(refusal(R"({"d_model":48,"n_layer":NaN,"vocab_size":277})"), HasSubstr("n_layer"));
  EXPECT_THAT(refusal(R"({"d_model":48,"n_layer":0,"vocab_size":277})"), HasSubstr("n_layer is 0"));
  EXPECT_THAT(refusal(R"({"d_model":48,"n_layer":2})"), HasSubstr("vocab_size"));
  EXPECT_THAT(
      refusal(R"({"d_model":48,"n_layer":2,"vocab_size":4294967295,"pad_vocab_size_multiple":16})"),
      HasSubstr("pad_vocab_size_multiple"));
  EXPECT_THAT(refusal(state_spaces("", R"("pad_vocab_size_multiple":0)")),
              HasSubstr("pad_vocab_size_multiple"));
  EXPECT_THAT(refusal(state_spaces("", R"("rms_norm":1)")), HasSubstr("rms_norm is 1"));
  EXPECT_THAT(refusal(state_spaces(R"("expand":-1)")), HasSubstr("ssm_cfg.expand is -1"));
  EXPECT_THAT(refusal(state_spaces(R"("dt_rank":"all")")), HasSubstr("ssm_cfg.dt_rank is \"all\""));
  EXPECT_THAT(refusal(R"({"d_model":48,"n_layer":2,"vocab_size":277,"ssm_cfg":[]})"),
              HasSubstr("ssm_cfg"));
  EXPECT_THAT(refusal(transformers("mamba", R"("eos_token_id":"x")")), HasSubstr("eos_token_id"));
  EXPECT_THAT(refusal(transformers("mamba", R"("layer_norm_epsilon":NaN)")), HasSubstr("norm_eps"));
  EXPECT_THAT(refusal("{}"), HasSubstr("not the config of a Mamba model"));
  EXPECT_THAT(refusal("[]"), HasSubstr("not a JSON object"));
  EXPECT_THAT(refusal(""), HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal("{\"d_model\":1,\"d_model\":2}"), HasSubstr("appears twice"));
}

TEST(Config, PythonFloatsAreOnlyReplacedOutsideOfStrings) {
  const ModelConfig c = parse(transformers(
      "mamba",
      R"("_name_or_path":"a \" NaN, Infinity \\","x":[NaN,-Infinity,Infinity],"state_size":5)"));
  EXPECT_EQ(c.mamba1.d_state, 5u);
  EXPECT_THAT(refusal(transformers("mamba", R"("hidden_act":"Infinity")")),
              HasSubstr("hidden_act is \"Infinity\""));
}

TEST(Config, TokensOutsideTheVocabularyAreIgnoredWithAWarning) {
  const PublishedConfig config =
      parse_published_config(transformers("mamba", R"("bos_token_id":280,"eos_token_id":-1)"), "c");
  EXPECT_EQ(config.model.bos_token, -1);
  EXPECT_EQ(config.model.eos_token, -1);
  EXPECT_THAT(config.warnings, ElementsAre(HasSubstr("bos_token_id 280")));
}

TEST(Config, EveryTruncationIsRefused) {
  const std::string whole =
      state_spaces(R"("layer":"Mamba2","headdim":16,"dt_limit":[0.0,Infinity])");
  EXPECT_EQ(refusal(whole), "");
  for (size_t length = 0; length < whole.size(); ++length) {
    EXPECT_NE(refusal(whole.substr(0, length)), "") << length;
  }
}

TEST(Config, FolderNeedsOne) {
  const TempFolder folder;
  try {
    read_published_config(folder.path());
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("config.json"));
    EXPECT_THAT(error.what(), HasSubstr("params.json"));
  }
  folder.write("params.json", R"({"dim":64,"n_layers":1,"vocab_size":320})");
  EXPECT_EQ(read_published_config(folder.path()).path, folder.path() / "params.json");
  folder.write("config.json", transformers("mamba"));
  EXPECT_EQ(read_published_config(folder.path()).path, folder.path() / "config.json");
}

TEST(Config, EveryGoldenFolder) {
  if (!fs::exists(kGolden)) GTEST_SKIP() << "no reference data";
  int read = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(kGolden)) {
    const std::string name = entry.path().filename().string();
    if (!fs::exists(entry.path() / "config.json") && !fs::exists(entry.path() / "params.json"))
      continue;
    if (name.starts_with("mamba3") || name == "mamba2-ss-dssm") {
      EXPECT_THROW(read_published_config(entry.path()), Error) << name;
      continue;
    }
    const PublishedConfig config = read_published_config(entry.path());
    EXPECT_THAT(config.warnings, IsEmpty()) << name;
    ++read;
  }
  EXPECT_EQ(read, 36);
}

}  // namespace
}  // namespace mamba_edge::convert
