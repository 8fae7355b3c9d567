// What a model is, in numbers: filled by the converter, stored in the container, read by the
// engine.
//
// Plain data of fixed size. Does not know where tensors lie or how they are packed: the canonical
// list of tensors (roles, names, packed shapes) that a config implies is in engine/tensors.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/status.h"

namespace mamba_edge {

// Numbers are part of the container format and never change.
enum class Architecture : uint32_t { mamba = 1, mamba2 = 2, falcon_mamba = 3 };
enum class NormKind : uint32_t { rms = 1, layer = 2 };

const char* architecture_name(Architecture architecture);  // "mamba", "mamba2", "falcon_mamba"

// Mamba-1's mixer (also Falcon-Mamba's).
struct Mamba1Config {
  uint32_t d_inner = 0;
  uint32_t d_state = 0;
  uint32_t d_conv = 0;
  uint32_t dt_rank = 0;
  uint32_t proj_bias = 0;  // in_proj and out_proj have biases
  uint32_t conv_bias = 0;
  uint32_t dt_bc_norm = 0;  // RMS norms without weights on dt, B and C (Falcon-Mamba)
  float dt_bc_eps = 0;
};

// Mamba-2's mixer. Channels are numbered group by group; head h belongs to group h / (n_heads /
// n_groups).
struct Mamba2Config {
  uint32_t d_inner = 0;  // n_heads * headdim
  uint32_t d_state = 0;
  uint32_t d_conv = 0;
  uint32_t headdim = 0;
  uint32_t n_heads = 0;
  uint32_t n_groups = 0;
  uint32_t proj_bias = 0;
  uint32_t conv_bias = 0;
  uint32_t gated_norm =
      0;  // 0: y * silu(z) only; 1: RMS norm per group; 2: RMS norm over all of d_inner
  uint32_t norm_before_gate = 0;  // norm(y) * silu(z) instead of norm(y * silu(z))
  uint32_t d_per_channel = 0;     // D is [d_inner] instead of [n_heads]
  uint32_t init_states = 0;       // learnable initial states [n_heads, headdim, d_state]
  float norm_eps = 0;             // of the gated norm
  float dt_low = 0;               // softplus(dt) is clamped to [dt_low, dt_high]
  float dt_high = 0;              // may be +infinity
};

struct ModelConfig {
  Architecture architecture = Architecture::mamba;
  uint32_t d_model = 0;
  uint32_t n_layer = 0;
  uint32_t n_vocab = 0;       // rows of the embedding and of the head, padding included
  uint32_t n_vocab_used = 0;  // tokens that text can contain, <= n_vocab
  NormKind norm = NormKind::rms;
  float norm_eps = 0;
  uint32_t residual_in_fp32 = 1;  // recorded; the engine always keeps the residual in float32
  uint32_t tied = 0;              // the head is the embedding
  int32_t bos_token = -1;
  int32_t eos_token = -1;
  Mamba1Config mamba1;  // of mamba and falcon_mamba
  Mamba2Config mamba2;  // of mamba2

  bool is_mamba2() const { return architecture == Architecture::mamba2; }
};

// Refuses values that are out of range or contradict each other, naming the field; afterwards no
// size that the engine derives from the config overflows 63 bits.
Status validate(const ModelConfig& config);

}  // namespace mamba_edge
