// The canonical list of a model's tensors: what the converter writes and the loader expects, in
// file order.
//
// Channels (d_inner) are stored in segments, one per B/C group, each padded to 16, so that a block
// of 16 channels never crosses a group and no kernel handles tails. Padding has the value zero
// everywhere.
//   in_proj rows               Mamba-1: x, z      Mamba-2: z, x, B, C, dt
//   conv rows                  Mamba-1: x         Mamba-2: x, B, C
//   x_proj rows                dt, B, C
//   columns of x_proj, out_proj  x
// z and x are segmented; B, C and dt are padded to 16 as a whole.
// Knows nothing of checkpoints or of how a tensor is packed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/config.h"
#include "quant/blocks.h"

namespace mamba_edge {

enum class TensorRole : uint32_t {
  embedding,        // matrix [n_vocab, d_model]
  head,             // matrix [n_vocab, d_model]; absent when tied
  final_norm,       // vector [d_model]
  final_norm_bias,  // vector [d_model]; LayerNorm only
  norm,             // vector [d_model]
  norm_bias,        // vector [d_model]; LayerNorm only
  in_proj,          // matrix [in_proj_rows, d_model]
  in_proj_bias,     // vector [in_proj_rows]
  conv,             // fp32 matrix [conv_rows, d_conv]
  conv_bias,        // vector [conv_rows]
  x_proj,           // Mamba-1: matrix [x_proj_rows, inner]
  dt_proj,          // Mamba-1: matrix [inner, dt_rank]
  dt_bias,          // vector [inner] (Mamba-1) or [n_heads] (Mamba-2)
  a,            // -exp(A_log): fp32 matrix [inner, d_state] (Mamba-1), vector [n_heads] (Mamba-2)
  d,            // vector [inner]; one value per channel, also where the checkpoint has one per head
  gate_norm,    // Mamba-2 with gated norm: vector [inner]
  init_states,  // Mamba-2, where learned: fp32 matrix [inner, d_state]
  out_proj,     // matrix [d_model, inner]
  out_proj_bias,  // vector [d_model]
};
constexpr uint32_t kTensorRoles = 19;

// "embedding", "layers.3.in_proj", ...; needs 40 bytes.
void tensor_name(TensorRole role, uint32_t layer, char name[40]);

// Sizes that follow from a validated config, all in channels or rows, padding included.
struct Layout {
  explicit Layout(const ModelConfig& config);

  uint32_t segments;        // B/C groups
  uint32_t segment;         // channels of a segment, padding excluded
  uint32_t segment_padded;  // ... included
  uint32_t inner;           // segments * segment_padded
  uint32_t d_state, d_conv;
  uint32_t bc;  // rows of B (and of C), padded: n_groups * d_state for Mamba-2, d_state for Mamba-1
  uint32_t heads;    // n_heads padded to 16 (Mamba-2)
  uint32_t dt_rank;  // padded to 16 (Mamba-1)
  uint32_t in_proj_rows, conv_rows, x_proj_rows;
  uint32_t in_z, in_x, in_b, in_c, in_dt;  // first row of each section of in_proj
};

struct TensorSpec {
  TensorRole role;
  uint32_t layer;  // 0 for tensors outside the layers
  bool is_matrix;  // packed as quant/blocks.h says; otherwise float [rows], padded with zeros to 16
  bool quantisable;  // the weight type is the user's choice; otherwise float32
  uint32_t rows;     // padding by segments and sections included
  uint32_t cols;     // 1 for vectors
};

// The embedding and the head, which are one matrix in a tied model.
constexpr bool is_vocabulary(TensorRole role) {
  return role == TensorRole::embedding || role == TensorRole::head;
}

// Inputs that share a scale in a quantised matrix, where a user asks for nothing else. At 8 bits
// embedding and head have the largest error, which half a bit more halves; in_proj and x_proj can do
// with long groups, which are faster on matrix units; docs/decisions/0008-rotation.md has the figures.
constexpr uint32_t default_group(WeightType type, TensorRole role) {
  if (type != WeightType::int8) return 64;
  if (is_vocabulary(role)) return 16;
  return role == TensorRole::in_proj || role == TensorRole::x_proj ? 128 : 64;
}

// The type of embedding and head where the other matrices have `type` and a user asks for nothing
// else. They lose most, and below 6 bits one step up the ladder for them buys more than the same bytes
// spent on anything else (docs/quantization.md).
constexpr WeightType vocabulary_type(WeightType type) {
  switch (type) {
    case WeightType::int5:
      return WeightType::int6;
    case WeightType::int4:
      return WeightType::int5;
    case WeightType::int3:
      return WeightType::int4;
    case WeightType::int2:
      return WeightType::int3;
    default:
      return type;
  }
}

// Elements of the published tensor: without padding, D as the checkpoint has it.
int64_t published_elements(const ModelConfig& config, const TensorSpec& spec);

// The tensors of a model by index, 0 <= index < tensor_count(config), in file order.
uint32_t tensor_count(const ModelConfig& config);
TensorSpec tensor_spec(const ModelConfig& config, uint32_t index);

}  // namespace mamba_edge
