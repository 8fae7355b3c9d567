#include "engine/tensors.h"

#include <cstdio>

#include "quant/blocks.h"

namespace mamba_edge {
namespace {

constexpr const char* kNames[kTensorRoles] = {"embedding",
                                              "head",
                                              "final_norm",
                                              "final_norm_bias",
                                              "norm",
                                              "norm_bias",
                                              "in_proj",
                                              "in_proj_bias",
                                              "conv",
                                              "conv_bias",
                                              "x_proj",
                                              "dt_proj",
                                              "dt_bias",
                                              "a",
                                              "d",
                                              "gate_norm",
                                              "init_states",
                                              "out_proj",
                                              "out_proj_bias"};

constexpr TensorRole kFirstLayerRole = TensorRole::norm;

bool in_layers(TensorRole role) { return role >= kFirstLayerRole; }

// Whether a model has tensors of this role.
bool has_role(const ModelConfig& config, TensorRole role) {
  const bool mamba2 = config.is_mamba2();
  const uint32_t proj_bias = mamba2 ? config.mamba2.proj_bias : config.mamba1.proj_bias;
  const uint32_t conv_bias = mamba2 ? config.mamba2.conv_bias : config.mamba1.conv_bias;
  switch (role) {
    case TensorRole::head:
      return config.tied == 0;
    case TensorRole::final_norm_bias:
    case TensorRole::norm_bias:
      return config.norm == NormKind::layer;
    case TensorRole::in_proj_bias:
    case TensorRole::out_proj_bias:
      return proj_bias != 0;
    case TensorRole::conv_bias:
      return conv_bias != 0;
    case TensorRole::x_proj:
    case TensorRole::dt_proj:
      return !mamba2;
    case TensorRole::gate_norm:
      return mamba2 && config.mamba2.gated_norm != 0;
    case TensorRole::init_states:
      return mamba2 && config.mamba2.init_states != 0;
    default:
      return true;
  }
}

TensorSpec spec_of(const ModelConfig& config, TensorRole role, uint32_t layer) {
  const Layout layout(config);
  const auto matrix = [&](uint32_t rows, uint32_t cols, bool quantisable) {
    return TensorSpec{role, layer, true, quantisable, rows, cols};
  };
  const auto vector = [&](uint32_t rows) { return TensorSpec{role, layer, false, false, rows, 1}; };
  switch (role) {
    case TensorRole::embedding:
    case TensorRole::head:
      return matrix(config.n_vocab, config.d_model, true);
    case TensorRole::in_proj:
      return matrix(layout.in_proj_rows, config.d_model, true);
    case TensorRole::conv:
      return matrix(layout.conv_rows, layout.d_conv, false);
    case TensorRole::x_proj:
      return matrix(layout.x_proj_rows, layout.inner, true);
    case TensorRole::dt_proj:
      return matrix(layout.inner, config.mamba1.dt_rank, true);
    case TensorRole::out_proj:
      return matrix(config.d_model, layout.inner, true);
    case TensorRole::init_states:
      return matrix(layout.inner, layout.d_state, false);
    case TensorRole::a:
      return config.is_mamba2() ? vector(layout.heads)
                                : matrix(layout.inner, layout.d_state, false);
    case TensorRole::dt_bias:
      return vector(config.is_mamba2() ? layout.heads : layout.inner);
    case TensorRole::in_proj_bias:
      return vector(layout.in_proj_rows);
    case TensorRole::conv_bias:
      return vector(layout.conv_rows);
    case TensorRole::d:
    case TensorRole::gate_norm:
      return vector(layout.inner);
    case TensorRole::final_norm:
    case TensorRole::final_norm_bias:
    case TensorRole::norm:
    case TensorRole::norm_bias:
    case TensorRole::out_proj_bias:
      return vector(config.d_model);
  }
  return vector(0);
}

}  // namespace

void tensor_name(TensorRole role, uint32_t layer, char name[40]) {
  const char* base = kNames[static_cast<uint32_t>(role)];
  if (in_layers(role)) {
    std::snprintf(name, 40, "layers.%u.%s", layer, base);
  } else {
    std::snprintf(name, 40, "%s", base);
  }
}

Layout::Layout(const ModelConfig& config) {
  const auto pad = [](uint32_t n) { return round_up(n, kTileRows); };
  if (config.is_mamba2()) {
    const Mamba2Config& m = config.mamba2;
    segments = m.n_groups;
    segment = m.d_inner / m.n_groups;
    d_state = m.d_state;
    d_conv = m.d_conv;
    bc = pad(m.n_groups * m.d_state);
    heads = pad(m.n_heads);
    dt_rank = 0;
  } else {
    const Mamba1Config& m = config.mamba1;
    segments = 1;
    segment = m.d_inner;
    d_state = m.d_state;
    d_conv = m.d_conv;
    bc = pad(m.d_state);
    heads = 0;
    dt_rank = pad(m.dt_rank);
  }
  segment_padded = pad(segment);
  inner = segments * segment_padded;
  if (config.is_mamba2()) {
    in_z = 0;
    in_x = inner;
    in_b = 2 * inner;
    in_c = in_b + bc;
    in_dt = in_c + bc;
    in_proj_rows = in_dt + heads;
    conv_rows = inner + 2 * bc;
    x_proj_rows = 0;
  } else {
    in_x = 0;
    in_z = inner;
    in_b = in_c = in_dt = 0;
    in_proj_rows = 2 * inner;
    conv_rows = inner;
    x_proj_rows = dt_rank + 2 * bc;
  }
}

int64_t published_elements(const ModelConfig& config, const TensorSpec& spec) {
  const bool mamba2 = config.is_mamba2();
  const int64_t inner = mamba2 ? config.mamba2.d_inner : config.mamba1.d_inner;
  const int64_t heads = mamba2 ? config.mamba2.n_heads : 0;
  const int64_t bc = mamba2 ? int64_t{config.mamba2.n_groups} * config.mamba2.d_state : 0;
  switch (spec.role) {
    case TensorRole::in_proj:
    case TensorRole::in_proj_bias:
      return (2 * inner + 2 * bc + heads) * spec.cols;
    case TensorRole::conv:
    case TensorRole::conv_bias:
      return (inner + 2 * bc) * spec.cols;
    case TensorRole::x_proj:
      return (int64_t{config.mamba1.dt_rank} + 2 * config.mamba1.d_state) * inner;
    case TensorRole::out_proj:
      return spec.rows * inner;
    case TensorRole::d:
      return mamba2 && config.mamba2.d_per_channel == 0 ? heads : inner;
    case TensorRole::a:
    case TensorRole::dt_bias:
      return mamba2 ? heads : inner * spec.cols;
    case TensorRole::dt_proj:
    case TensorRole::gate_norm:
    case TensorRole::init_states:
      return inner * spec.cols;
    default:
      return static_cast<int64_t>(spec.rows) * spec.cols;
  }
}

uint32_t tensor_count(const ModelConfig& config) {
  uint32_t outside = 0, per_layer = 0;
  for (uint32_t r = 0; r < kTensorRoles; ++r) {
    const auto role = static_cast<TensorRole>(r);
    if (has_role(config, role)) ++(in_layers(role) ? per_layer : outside);
  }
  return outside + per_layer * config.n_layer;
}

TensorSpec tensor_spec(const ModelConfig& config, uint32_t index) {
  TensorRole layer_roles[kTensorRoles];
  uint32_t per_layer = 0, outside = 0;
  for (uint32_t r = 0; r < kTensorRoles; ++r) {
    const auto role = static_cast<TensorRole>(r);
    if (!has_role(config, role)) continue;
    if (in_layers(role)) {
      layer_roles[per_layer++] = role;
    } else if (outside++ == index) {
      return spec_of(config, role, 0);
    }
  }
  const uint32_t in_layer = index - outside;
  return spec_of(config, layer_roles[in_layer % per_layer], in_layer / per_layer);
}

}  // namespace mamba_edge
