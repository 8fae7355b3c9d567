// Which tensor of a checkpoint is which tensor of the model.
//
// Knows the names of every layout: the stem "backbone." or none, prefixes that wrappers add
// ("model.", "module.",
// "_orig_mod."), "embedding" or "embeddings". Checks that checkpoint and config describe the same
// model. Reads tensor data only to compare an embedding with a head that should be the same.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "convert/checkpoint.h"
#include "engine/config.h"
#include "engine/tensors.h"

namespace mamba_edge::convert {

struct NamedTensor {
  TensorRole role;
  uint32_t layer;            // 0 for tensors outside the layers
  const TensorInfo* source;  // of the checkpoint, or one of `views`; readable, and of
                             // source_shape(config, role)
};

struct NamedTensors {
  std::vector<NamedTensor> tensors;   // [tensor_count(config)], in the order of tensor_spec()
  std::vector<std::string> warnings;  // a tied head that differs, tensors that nothing uses
  bool a_is_folded = false;           // `a` holds -exp(A_log), not A_log
  std::deque<TensorInfo> views;       // GGUF: the same bytes in the published shape; see `source`
};

// The shape that published checkpoints of this model give a tensor: no padding, conv [channels, 1,
// d_conv], Mamba-2's initial states [n_heads, headdim, d_state].
std::vector<int64_t> source_shape(const ModelConfig& config, TensorRole role);

// `config` is validated. Throws Error, naming the tensor and what was expected, when one is
// missing, has another shape or no float type, or when the checkpoint has a tensor that the config
// says does not exist (a bias, a norm, another layer, a bias of the head). A tied model may lack
// either the head or the embedding; where it has both and they differ, the head is ignored, as
// transformers does, with a warning. Tensors of a GGUF file go to name_gguf_tensors().
NamedTensors name_tensors(const Checkpoint& checkpoint, const ModelConfig& config);

}  // namespace mamba_edge::convert
