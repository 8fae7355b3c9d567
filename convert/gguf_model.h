// Mamba models in GGUF, as llama.cpp writes and runs them: which metadata says what the model is,
// and what its tensors are called.
//
// llama.cpp knows two architectures, "mamba" (Falcon-Mamba is one with mamba.ssm.dt_b_c_rms) and
// "mamba2", both with RMS norms, a convolution with a bias, and no other biases. Its converter folds
// A_log into -exp(A_log).
// Source: https://github.com/ggml-org/llama.cpp, src/models/mamba.cpp, mamba2.cpp, mamba-base.cpp and
// conversion/mamba.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "convert/checkpoint.h"
#include "convert/hf_config.h"
#include "convert/names.h"
#include "engine/config.h"
#include "engine/tensors.h"

namespace mamba_edge::convert {

// The metadata keys behind "mamba." or "mamba2."; "general.architecture" says which.
namespace gguf_key {
inline constexpr const char* kArchitecture = "general.architecture";
inline constexpr const char* kLayers = "block_count";
inline constexpr const char* kWidth = "embedding_length";
inline constexpr const char* kEps = "attention.layer_norm_rms_epsilon";
inline constexpr const char* kConv = "ssm.conv_kernel";
inline constexpr const char* kInner = "ssm.inner_size";
inline constexpr const char* kState = "ssm.state_size";
inline constexpr const char* kRank = "ssm.time_step_rank";  // Mamba-2: the number of heads
inline constexpr const char* kGroups = "ssm.group_count";
inline constexpr const char* kDtBcNorm = "ssm.dt_b_c_rms";
inline constexpr const char* kVocabulary = "vocab_size";
inline constexpr const char* kBos = "tokenizer.ggml.bos_token_id";
inline constexpr const char* kEos = "tokenizer.ggml.eos_token_id";
}  // namespace gguf_key

// "blk.3.ssm_in.weight"; empty for what no such model has (biases of projections, initial states).
std::string gguf_tensor_name(TensorRole role, uint32_t layer);

// Row-major, as llama.cpp expects it: [d_inner, d_conv], Mamba-2's A and D [n_heads, 1] and its norm
// [n_groups, d_inner / n_groups]; otherwise source_shape(config, role).
std::vector<int64_t> gguf_shape(const ModelConfig& config, TensorRole role);

// checkpoint.gguf() is not null. Throws Error where a key is missing or the engine cannot run such a
// model.
PublishedConfig read_gguf_config(const Checkpoint& checkpoint);

// name_tensors() for a GGUF file. Dimensions of size 1 may be there or not. Tensors that the model
// does not use are refused, as llama.cpp refuses them.
NamedTensors name_gguf_tensors(const Checkpoint& checkpoint, const ModelConfig& config);

}  // namespace mamba_edge::convert
