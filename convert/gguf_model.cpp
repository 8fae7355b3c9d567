#include "convert/gguf_model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_set>

#include "convert/error.h"

namespace mamba_edge::convert {
namespace {

// Behind "blk.N." for tensors of a layer.
const char* short_name(TensorRole role) {
  switch (role) {
    case TensorRole::embedding:
      return "token_embd.weight";
    case TensorRole::head:
      return "output.weight";
    case TensorRole::final_norm:
      return "output_norm.weight";
    case TensorRole::norm:
      return "attn_norm.weight";
    case TensorRole::in_proj:
      return "ssm_in.weight";
    case TensorRole::conv:
      return "ssm_conv1d.weight";
    case TensorRole::conv_bias:
      return "ssm_conv1d.bias";
    case TensorRole::x_proj:
      return "ssm_x.weight";
    case TensorRole::dt_proj:
      return "ssm_dt.weight";
    case TensorRole::dt_bias:
      return "ssm_dt.bias";
    case TensorRole::a:
      return "ssm_a";
    case TensorRole::d:
      return "ssm_d";
    case TensorRole::gate_norm:
      return "ssm_norm.weight";
    case TensorRole::out_proj:
      return "ssm_out.weight";
    case TensorRole::final_norm_bias:
    case TensorRole::norm_bias:
    case TensorRole::in_proj_bias:
    case TensorRole::init_states:
    case TensorRole::out_proj_bias:
      break;
  }
  return "";
}

bool in_layers(TensorRole role) {
  return role != TensorRole::embedding && role != TensorRole::head &&
         role != TensorRole::final_norm;
}

std::vector<int64_t> without_ones(std::vector<int64_t> shape) {
  std::erase(shape, 1);
  return shape;
}

// The metadata of one architecture.
class Keys {
 public:
  Keys(const GgufMetadata& metadata, std::string architecture)
      : metadata_(metadata), prefix_(std::move(architecture) + ".") {}

  uint32_t count(const char* key) const {
    const auto value = metadata_.count(prefix_ + key);
    if (!value) throw missing(key);
    if (*value > std::numeric_limits<uint32_t>::max()) {
      throw Error(metadata_.file() + ": metadata " + prefix_ + key + " is " +
                  std::to_string(*value) + ", which is too large");
    }
    return static_cast<uint32_t>(*value);
  }
  float number(const char* key) const {
    const auto value = metadata_.number(prefix_ + key);
    if (!value) throw missing(key);
    return static_cast<float>(*value);
  }
  bool flag(const char* key) const { return metadata_.flag(prefix_ + key).value_or(false); }

 private:
  Error missing(const char* key) const {
    return Error(metadata_.file() + ": lacks metadata " + prefix_ + key);
  }

  const GgufMetadata& metadata_;
  std::string prefix_;
};

void read_token(const GgufMetadata& metadata, const char* key, int32_t* token,
                PublishedConfig* config) {
  const auto value = metadata.count(key);
  if (!value) return;
  if (*value < config->model.n_vocab) {
    *token = static_cast<int32_t>(*value);
  } else if (*value != std::numeric_limits<uint32_t>::max()) {  // -1: none
    config->warnings.push_back(std::string(key) + " " + std::to_string(*value) +
                               " is outside the vocabulary and ignored");
  }
}

}  // namespace

std::string gguf_tensor_name(TensorRole role, uint32_t layer) {
  const std::string name = short_name(role);
  return name.empty() || !in_layers(role) ? name : "blk." + std::to_string(layer) + "." + name;
}

std::vector<int64_t> gguf_shape(const ModelConfig& config, TensorRole role) {
  std::vector<int64_t> shape = source_shape(config, role);
  if (role == TensorRole::conv) return {shape[0], shape[2]};
  if (!config.is_mamba2()) return shape;
  if (role == TensorRole::a || role == TensorRole::d) return {shape[0], 1};
  if (role == TensorRole::gate_norm) {
    return {config.mamba2.n_groups, shape[0] / config.mamba2.n_groups};
  }
  return shape;
}

PublishedConfig read_gguf_config(const Checkpoint& checkpoint) {
  const GgufMetadata& metadata = *checkpoint.gguf();
  PublishedConfig config;
  config.path = metadata.file();
  const std::string architecture = metadata.text(gguf_key::kArchitecture).value_or("");
  const bool mamba2 = architecture == "mamba2";
  const bool falcon = architecture == "falcon-mamba";  // a name that llama.cpp itself does not use
  if (architecture != "mamba" && !mamba2 && !falcon) {
    throw Error(metadata.file() + ": general.architecture is " +
                (architecture.empty() ? "missing" : architecture) +
                "; mamba, mamba2 and falcon-mamba can be converted");
  }
  const Keys keys(metadata, architecture);
  ModelConfig& model = config.model;
  model.d_model = keys.count(gguf_key::kWidth);
  model.n_layer = keys.count(gguf_key::kLayers);
  model.norm = NormKind::rms;
  model.norm_eps = keys.number(gguf_key::kEps);
  const std::string embedding = gguf_tensor_name(TensorRole::embedding, 0);
  const TensorInfo* const rows = checkpoint.find(embedding);
  if (rows == nullptr) throw Error(metadata.file() + ": lacks tensor " + embedding);
  if (rows->rows() > std::numeric_limits<uint32_t>::max()) {
    throw Error(metadata.file() + ": tensor " + embedding + " has too many rows");
  }
  model.n_vocab = model.n_vocab_used = static_cast<uint32_t>(rows->rows());
  model.tied = checkpoint.find(gguf_tensor_name(TensorRole::head, 0)) == nullptr;
  if (mamba2) {
    model.architecture = Architecture::mamba2;
    Mamba2Config& mixer = model.mamba2;
    mixer.d_inner = keys.count(gguf_key::kInner);
    mixer.d_state = keys.count(gguf_key::kState);
    mixer.d_conv = keys.count(gguf_key::kConv);
    mixer.n_heads = keys.count(gguf_key::kRank);
    mixer.n_groups = keys.count(gguf_key::kGroups);
    mixer.headdim = mixer.n_heads == 0 ? 0 : mixer.d_inner / mixer.n_heads;
    mixer.conv_bias = 1;
    mixer.gated_norm = 1;
    mixer.norm_eps = model.norm_eps;
    mixer.dt_high = std::numeric_limits<float>::infinity();
  } else {
    Mamba1Config& mixer = model.mamba1;
    mixer.d_inner = keys.count(gguf_key::kInner);
    mixer.d_state = keys.count(gguf_key::kState);
    mixer.d_conv = keys.count(gguf_key::kConv);
    mixer.dt_rank = keys.count(gguf_key::kRank);
    mixer.conv_bias = 1;
    mixer.dt_bc_norm = falcon || keys.flag(gguf_key::kDtBcNorm);
    if (mixer.dt_bc_norm) mixer.dt_bc_eps = model.norm_eps;  // llama.cpp has one for all norms
    model.architecture = mixer.dt_bc_norm ? Architecture::falcon_mamba : Architecture::mamba;
  }
  read_token(metadata, gguf_key::kBos, &model.bos_token, &config);
  read_token(metadata, gguf_key::kEos, &model.eos_token, &config);
  const Status status = validate(model);
  if (!status.ok()) throw Error(metadata.file() + ": " + status.message());
  return config;
}

NamedTensors name_gguf_tensors(const Checkpoint& checkpoint, const ModelConfig& config) {
  const std::string file = checkpoint.gguf()->file();
  NamedTensors named;
  named.a_is_folded = true;
  std::unordered_set<const TensorInfo*> used;
  for (uint32_t index = 0; index < tensor_count(config); ++index) {
    const TensorSpec spec = tensor_spec(config, index);
    const std::string name = gguf_tensor_name(spec.role, spec.layer);
    const std::vector<int64_t> expected = gguf_shape(config, spec.role);
    const TensorInfo* const tensor = checkpoint.find(name);
    if (tensor == nullptr) {
      throw Error(file + ": lacks tensor " + name + " of shape " + shape_text(expected));
    }
    const std::vector<int64_t> published = source_shape(config, spec.role);
    const std::vector<int64_t> actual = without_ones(tensor->shape);
    if (actual != without_ones(expected) && actual != without_ones(published)) {
      throw Error(file + ": tensor " + name + " has shape " + shape_text(tensor->shape) +
                  ", the metadata says " + shape_text(expected));
    }
    if (!tensor->readable_as_float) {
      throw Error(file + ": tensor " + name + " holds " + tensor->dtype_name +
                  ", which cannot be read; requantise the file to a type such as Q8_0");
    }
    used.insert(tensor);
    TensorInfo& view = named.views.emplace_back(*tensor);
    view.shape = published;
    view.strides = contiguous_strides(published);
    named.tensors.push_back({spec.role, spec.layer, &view});
  }
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    if (!used.contains(&tensor)) {
      throw Error(file + ": has tensor " + tensor.name + ", which the model has no use for");
    }
  }
  return named;
}

}  // namespace mamba_edge::convert
