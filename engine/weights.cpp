// Which field of the model holds which tensor.
#include <algorithm>

#include "engine/model.h"

namespace mamba_edge {
namespace {

void set(Matrix* field, const Matrix& matrix, InputLimits* input) {
  *field = matrix;
  input->cols = std::max<size_t>(input->cols, matrix.shape.cols);
  if (is_quantised(matrix.shape.type)) {
    input->groups = std::max<size_t>(input->groups, matrix.shape.groups());
  }
}

}  // namespace

void place_tensor(const TensorSpec& spec, const Matrix& matrix, Model* model) {
  Model& m = *model;
  Weights& w = m.weights;
  LayerWeights& layer = w.layers[spec.layer];
  const auto* floats = reinterpret_cast<const float*>(matrix.data);
  switch (spec.role) {
    case TensorRole::embedding:
      w.embedding = matrix;
      if (m.config.tied != 0) set(&w.head, matrix, &m.to_head);
      break;
    case TensorRole::head:
      set(&w.head, matrix, &m.to_head);
      break;
    case TensorRole::final_norm:
      w.final_norm = floats;
      break;
    case TensorRole::final_norm_bias:
      w.final_norm_bias = floats;
      break;
    case TensorRole::norm:
      layer.norm = floats;
      break;
    case TensorRole::norm_bias:
      layer.norm_bias = floats;
      break;
    case TensorRole::in_proj:
      set(&layer.in_proj, matrix, &m.to_in_proj);
      break;
    case TensorRole::in_proj_bias:
      layer.in_proj_bias = floats;
      break;
    case TensorRole::conv:
      layer.conv = floats;
      break;
    case TensorRole::conv_bias:
      layer.conv_bias = floats;
      break;
    case TensorRole::x_proj:
      set(&layer.x_proj, matrix, &m.to_x_proj);
      break;
    case TensorRole::dt_proj:
      set(&layer.dt_proj, matrix, &m.to_dt_proj);
      break;
    case TensorRole::dt_bias:
      layer.dt_bias = floats;
      break;
    case TensorRole::a:
      layer.a = floats;
      break;
    case TensorRole::d:
      layer.d = floats;
      break;
    case TensorRole::gate_norm:
      layer.gate_norm = floats;
      break;
    case TensorRole::init_states:
      layer.init_states = floats;
      break;
    case TensorRole::out_proj:
      set(&layer.out_proj, matrix, &m.to_out_proj);
      break;
    case TensorRole::out_proj_bias:
      layer.out_proj_bias = floats;
      break;
  }
}

}  // namespace mamba_edge
