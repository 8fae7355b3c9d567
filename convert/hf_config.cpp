#include "convert/hf_config.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <optional>
#include <system_error>

#include "convert/error.h"
#include "convert/file.h"
#include "convert/json.h"

namespace mamba_edge::convert {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxConfigBytes = uint64_t{16} << 20;
constexpr size_t kMaxShownBytes = 100;
constexpr float kOfficialEps = 1e-5f;  // the state-spaces code has no key for it

// One JSON object of a config. null counts as missing, as it does for most keys in Python.
class Section {
 public:
  Section(const json& object, std::string source, std::string prefix = {})
      : object_(object), source_(std::move(source)), prefix_(std::move(prefix)) {
    if (!object_.is_object()) throw Error(source_ + ": " + prefix_ + "is not a JSON object");
  }

  bool has(const char* key) const { return object_.contains(key) && !object_[key].is_null(); }
  const json& at(const char* key) const { return object_.at(key); }
  const json& object() const { return object_; }

  Error fail(const std::string& key, const std::string& why) const {
    const std::string value =
        object_.contains(key) ? " is " + object_[key].dump().substr(0, kMaxShownBytes) : "";
    return Error(source_ + ": " + prefix_ + key + value + "; " + why);
  }

  double number(const char* key, double otherwise) const {
    double value = otherwise;
    if (has(key) && !json_number(at(key), &value)) throw fail(key, "expected a number");
    return value;
  }

  uint32_t count(const char* key, uint32_t otherwise) const {
    if (!has(key)) return otherwise;
    const double value = number(key, 0);
    if (!(value >= 0 && value <= 4294967295.0) || value != std::floor(value)) {
      throw fail(key, "expected a whole number");
    }
    return static_cast<uint32_t>(value);
  }

  uint32_t required_count(const char* key) const {
    if (!has(key)) throw fail(key, "is missing");
    return count(key, 0);
  }

  bool flag(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!at(key).is_boolean()) throw fail(key, "expected true or false");
    return at(key).get<bool>();
  }

  // [low, high]
  void range(const char* key, float* low, float* high) const {
    if (!has(key)) return;
    double values[2] = {};
    const json& pair = at(key);
    if (!pair.is_array() || pair.size() != 2 || !json_number(pair[0], &values[0]) ||
        !json_number(pair[1], &values[1])) {
      throw fail(key, "expected two numbers");
    }
    *low = static_cast<float>(values[0]);
    *high = static_cast<float>(values[1]);
  }

  // An absent key, null, false, 0, "" or an empty list or object.
  bool is_off(const char* key) const {
    if (!has(key)) return true;
    const json& value = at(key);
    double number = 1;
    if (json_number(value, &number)) return number == 0;
    if (value.is_boolean()) return !value.get<bool>();
    if (value.is_string()) return value.get_ref<const std::string&>().empty();
    return value.empty();
  }

  void refuse_unless_off(const char* key, const char* why) const {
    if (!is_off(key)) throw fail(key, why);
  }

  void refuse_unless_silu(const char* key) const {
    if (has(key) && at(key) != "silu" && at(key) != "swish") throw fail(key, "only silu is known");
  }

  // Every key that is set must be on one of the lists.
  void refuse_unknown(std::initializer_list<const char*> known,
                      std::initializer_list<const char*> harmless) const {
    for (const auto& [key, value] : object_.items()) {
      const auto is_key = [&name = key](const char* other) { return name == other; };
      if (value.is_null() || std::any_of(known.begin(), known.end(), is_key) ||
          std::any_of(harmless.begin(), harmless.end(), is_key)) {
        continue;
      }
      throw fail(key, "this key is not known, and it may change what the model computes");
    }
  }

 private:
  const json& object_;
  std::string source_;
  std::string prefix_;
};

// int(expand * d_model), as Python computes it.
uint32_t inner_width(const Section& section, uint32_t d_model) {
  const double inner = std::floor(section.number("expand", 2) * d_model);
  if (!(inner >= 1 && inner <= 4294967295.0))
    throw section.fail("expand", "expected a factor above 0");
  return static_cast<uint32_t>(inner);
}

// "auto" is ceil(d_model / 16).
uint32_t dt_rank(const Section& section, const char* key, uint32_t d_model) {
  if (!section.has(key) || section.at(key) == "auto") return d_model / 16 + (d_model % 16 != 0);
  return section.count(key, 0);
}

void read_tokens(const Section& section, PublishedConfig* config) {
  const auto read = [&](const char* key, int32_t* token) {
    if (!section.has(key)) return;
    json value = section.at(key);
    if (value.is_array() && !value.empty()) value = json(value[0]);  // several: the first one stops
    if (!value.is_number_integer()) throw section.fail(key, "expected a token id");
    const auto id = value.get<int64_t>();
    if (id >= 0 && id < config->model.n_vocab) {
      *token = static_cast<int32_t>(id);
    } else if (id != -1) {
      config->warnings.push_back(std::string(key) + " " + std::to_string(id) +
                                 " is outside the vocabulary and ignored");
    }
  };
  read("bos_token_id", &config->model.bos_token);
  read("eos_token_id", &config->model.eos_token);
}

// Rows of the embedding: `used` rounded up to a multiple.
uint32_t padded_vocabulary(const Section& section, uint32_t used, uint32_t default_multiple) {
  const uint32_t multiple = section.count("pad_vocab_size_multiple", default_multiple);
  if (multiple == 0) throw section.fail("pad_vocab_size_multiple", "expected at least 1");
  const uint64_t padded = (uint64_t{used} + multiple - 1) / multiple * multiple;
  if (padded > std::numeric_limits<uint32_t>::max()) {
    throw section.fail("pad_vocab_size_multiple", "is too large");
  }
  return static_cast<uint32_t>(padded);
}

void set_heads(const Section& section, const char* key, Mamba2Config* mixer) {
  if (mixer->headdim == 0 || mixer->d_inner % mixer->headdim != 0) {
    throw section.fail(key,
                       "expected a divisor of the inner width " + std::to_string(mixer->d_inner));
  }
  mixer->n_heads = mixer->d_inner / mixer->headdim;
}

// ---- state-spaces ----

void read_ssm_cfg_mamba1(const Section& cfg, ModelConfig* model) {
  cfg.refuse_unknown({"layer", "d_state", "d_conv", "expand", "dt_rank", "bias", "conv_bias"},
                     {"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path",
                      "layer_idx", "device", "dtype"});
  model->architecture = Architecture::mamba;
  Mamba1Config& mixer = model->mamba1;
  mixer.d_inner = inner_width(cfg, model->d_model);
  mixer.d_state = cfg.count("d_state", 16);
  mixer.d_conv = cfg.count("d_conv", 4);
  mixer.dt_rank = dt_rank(cfg, "dt_rank", model->d_model);
  mixer.proj_bias = cfg.flag("bias", false);
  mixer.conv_bias = cfg.flag("conv_bias", true);
}

void read_ssm_cfg_mamba2(const Section& cfg, ModelConfig* model) {
  cfg.refuse_unknown(
      {"layer", "d_state", "d_conv", "expand", "headdim", "d_ssm", "ngroups", "D_has_hdim",
       "rmsnorm", "norm_before_gate", "dt_limit", "bias", "conv_bias", "activation",
       "learnable_init_states"},
      {"dt_min", "dt_max", "dt_init_floor", "A_init_range", "conv_init", "chunk_size",
       "use_mem_eff_path", "layer_idx", "process_group", "sequence_parallel", "device", "dtype"});
  model->architecture = Architecture::mamba2;
  Mamba2Config& mixer = model->mamba2;
  mixer.d_inner = inner_width(cfg, model->d_model);
  if (cfg.count("d_ssm", mixer.d_inner) != mixer.d_inner) {
    throw cfg.fail("d_ssm", "a gated MLP beside the state space is not supported, it must be " +
                                std::to_string(mixer.d_inner));
  }
  cfg.refuse_unless_silu("activation");
  mixer.d_state = cfg.count("d_state", 128);
  mixer.d_conv = cfg.count("d_conv", 4);
  mixer.headdim = cfg.count("headdim", 64);
  set_heads(cfg, "headdim", &mixer);
  mixer.n_groups = cfg.count("ngroups", 1);
  mixer.proj_bias = cfg.flag("bias", false);
  mixer.conv_bias = cfg.flag("conv_bias", true);
  mixer.gated_norm = cfg.flag("rmsnorm", true);
  mixer.norm_before_gate = cfg.flag("norm_before_gate", false);
  mixer.d_per_channel = cfg.flag("D_has_hdim", false);
  mixer.init_states = cfg.flag("learnable_init_states", false);
  mixer.norm_eps = kOfficialEps;
  mixer.dt_high = std::numeric_limits<float>::infinity();
  cfg.range("dt_limit", &mixer.dt_low, &mixer.dt_high);
}

void read_state_spaces(const Section& section, PublishedConfig* config) {
  section.refuse_unknown(
      {"d_model", "d_intermediate", "n_layer", "vocab_size", "ssm_cfg", "attn_layer_idx",
       "attn_cfg", "rms_norm", "residual_in_fp32", "pad_vocab_size_multiple", "tie_embeddings",
       "bidirectional", "bos_token_id", "eos_token_id"},
      {"fused_add_norm", "initializer_cfg", "initializer_range", "model_type", "architectures",
       "torch_dtype", "dtype", "transformers_version", "_name_or_path", "auto_map", "pad_token_id",
       "use_cache"});
  section.refuse_unless_off("d_intermediate", "MLP blocks are not supported");
  section.refuse_unless_off("attn_layer_idx", "attention layers are not supported");
  section.refuse_unless_off("bidirectional", "only left-to-right models are supported");

  ModelConfig& model = config->model;
  model.d_model = section.required_count("d_model");
  model.n_layer = section.required_count("n_layer");
  model.n_vocab_used = section.required_count("vocab_size");
  model.n_vocab = padded_vocabulary(section, model.n_vocab_used, 8);
  model.norm = section.flag("rms_norm", true) ? NormKind::rms : NormKind::layer;
  model.norm_eps = kOfficialEps;
  model.residual_in_fp32 = section.flag("residual_in_fp32", true);
  model.tied = section.flag("tie_embeddings", true);
  read_tokens(section, config);

  const json empty = json::object();
  const Section cfg(section.has("ssm_cfg") ? section.at("ssm_cfg") : empty, config->path.string(),
                    "ssm_cfg.");
  const json layer = cfg.has("layer") ? cfg.at("layer") : json("Mamba1");
  if (layer == "Mamba1") {
    read_ssm_cfg_mamba1(cfg, &model);
  } else if (layer == "Mamba2") {
    read_ssm_cfg_mamba2(cfg, &model);
  } else {
    throw cfg.fail("layer", "Mamba1 and Mamba2 are supported");
  }
}

// ---- Mistral ----

// The code that publishes it builds the state-spaces model from these keys and leaves the rest at
// its defaults.
void read_mistral(const Section& section, PublishedConfig* config) {
  section.refuse_unknown({"dim", "n_layers", "vocab_size", "n_groups", "rms_norm",
                          "residual_in_fp32", "pad_vocab_size_multiple", "tie_embeddings"},
                         {"fused_add_norm", "model_type", "max_batch_size", "max_seq_len"});
  if (section.has("model_type") && section.at("model_type") != "mamba") {
    throw section.fail("model_type", "expected mamba");
  }
  ModelConfig& model = config->model;
  model.d_model = section.required_count("dim");
  model.n_layer = section.required_count("n_layers");
  model.n_vocab_used = section.required_count("vocab_size");
  model.n_vocab = padded_vocabulary(section, model.n_vocab_used, 1);
  model.norm = section.flag("rms_norm", true) ? NormKind::rms : NormKind::layer;
  model.norm_eps = kOfficialEps;
  model.residual_in_fp32 = section.flag("residual_in_fp32", true);
  model.tied = section.flag("tie_embeddings", false);

  const json defaults = json::object();
  read_ssm_cfg_mamba2(Section(defaults, config->path.string()), &model);
  model.mamba2.n_groups = section.count("n_groups", 1);
}

// ---- transformers ----

void read_transformers_mamba1(const Section& section, bool falcon, ModelConfig* model) {
  model->architecture = falcon ? Architecture::falcon_mamba : Architecture::mamba;
  model->d_model = section.count("hidden_size", 768);
  model->n_layer = section.count("num_hidden_layers", 32);
  model->n_vocab = section.count("vocab_size", 50280);
  model->tied = section.flag("tie_word_embeddings", true);
  Mamba1Config& mixer = model->mamba1;
  // The class computes intermediate_size from expand, then lets the file overwrite it.
  mixer.d_inner = section.has("intermediate_size") ? section.count("intermediate_size", 0)
                                                   : inner_width(section, model->d_model);
  mixer.d_state = section.count("state_size", 16);
  mixer.d_conv = section.count("conv_kernel", 4);
  mixer.dt_rank = dt_rank(section, "time_step_rank", model->d_model);
  mixer.proj_bias = section.flag("use_bias", false);
  mixer.conv_bias = section.flag("use_conv_bias", true);
  if (falcon) {
    mixer.dt_bc_norm = 1;
    mixer.dt_bc_eps = static_cast<float>(section.number("mixer_rms_eps", 1e-6));
  }
}

// norm_before_gate is a key of the first release that no release ever acted upon.
void read_transformers_mamba2(const Section& section, ModelConfig* model) {
  for (const char* key : {"mamba2_head_dim", "mamba2_conv_kernel", "use_mamba2_bias"}) {
    section.refuse_unless_off(key, "this spelling was never released");
  }
  model->architecture = Architecture::mamba2;
  model->d_model = section.count("hidden_size", 4096);
  model->n_layer = section.count("num_hidden_layers", 64);
  model->n_vocab = section.count("vocab_size", 32768);
  model->tied = section.flag("tie_word_embeddings", false);
  Mamba2Config& mixer = model->mamba2;
  mixer.d_inner = inner_width(section, model->d_model);
  mixer.d_state = section.count("state_size", 128);
  mixer.d_conv = section.count("conv_kernel", 4);
  mixer.headdim = section.count("head_dim", 64);
  set_heads(section, "head_dim", &mixer);
  if (section.count("num_heads", 128) != mixer.n_heads) {
    throw section.fail(
        "num_heads", "expected expand x hidden_size / head_dim = " + std::to_string(mixer.n_heads));
  }
  mixer.n_groups = section.count("n_groups", 8);
  mixer.proj_bias = section.flag("use_bias", false);
  mixer.conv_bias = section.flag("use_conv_bias", true);
  mixer.gated_norm =
      1;  // per group; transformers norms over all groups, the models' own code does not
  mixer.norm_eps = model->norm_eps;
  mixer.dt_high = std::numeric_limits<float>::infinity();
  section.range("time_step_limit", &mixer.dt_low, &mixer.dt_high);
}

void read_transformers(const Section& section, const std::string& model_type,
                       PublishedConfig* config) {
  section.refuse_unless_silu("hidden_act");
  section.refuse_unless_off("quantization_config", "packed weights cannot be read");
  section.refuse_unless_off("attention_layers_idx", "attention layers are not supported");
  section.refuse_unless_off("attn_layer_idx", "attention layers are not supported");
  section.refuse_unless_off("mlp_intermediate_size", "MLP blocks are not supported");
  section.refuse_unless_off("d_intermediate", "MLP blocks are not supported");
  section.refuse_unless_off("bidirectional", "only left-to-right models are supported");
  if (!section.flag("rms_norm", true)) {
    throw section.fail("rms_norm", "transformers computes RMS norms only");
  }
  ModelConfig& model = config->model;
  model.norm = NormKind::rms;
  model.norm_eps = static_cast<float>(section.number("layer_norm_epsilon", 1e-5));
  model.residual_in_fp32 = section.flag("residual_in_fp32", true);
  if (model_type == "mamba2") {
    read_transformers_mamba2(section, &model);
  } else {
    read_transformers_mamba1(section, model_type == "falcon_mamba", &model);
  }
  model.n_vocab_used = model.n_vocab;
  read_tokens(section, config);
}

// The model_type that transformers would act upon; empty where there is none.
std::string model_type_of(const Section& section) {
  std::string type;
  if (section.has("model_type") && section.at("model_type").is_string()) {
    type = section.at("model_type").get<std::string>();
  }
  std::replace(type.begin(), type.end(), '-', '_');
  return type;
}

}  // namespace

PublishedConfig parse_published_config(std::string_view text, const std::string& source) {
  const json parsed = parse_python_json(text, source);
  const Section section(parsed, source);
  PublishedConfig config;
  config.path = source;
  const std::string type = model_type_of(section);
  const bool known_type = type == "mamba" || type == "mamba2" || type == "falcon_mamba";
  // Converted models carry their old keys (d_model) beside the new ones (hidden_size), so the new
  // ones decide.
  if (section.has("hidden_size") ||
      (known_type && !section.has("d_model") && !section.has("dim"))) {
    if (!known_type) {
      throw section.fail("model_type", "mamba, mamba2 and falcon_mamba are supported");
    }
    read_transformers(section, type, &config);
  } else if (section.has("dim")) {
    read_mistral(section, &config);
  } else if (section.has("d_model")) {
    read_state_spaces(section, &config);
  } else {
    throw section.fail("model_type", "this is not the config of a Mamba model that is supported");
  }
  const Status status = validate(config.model);
  if (!status.ok()) throw Error(source + ": " + status.message());
  return config;
}

PublishedConfig read_published_config(const std::filesystem::path& folder) {
  for (const char* name : {"config.json", "params.json"}) {
    std::error_code error;
    if (!std::filesystem::exists(folder / name, error)) continue;
    const File file(folder / name);
    if (file.size() > kMaxConfigBytes) throw Error(file.name() + ": is too large for a config");
    return parse_published_config(file.read_string(0, file.size()), file.name());
  }
  throw Error(
      folder.string() +
      ": holds neither config.json nor params.json (Mistral); put the one that was published "
      "with the model beside its weights");
}

}  // namespace mamba_edge::convert
