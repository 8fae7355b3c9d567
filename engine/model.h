// A loaded model: config, weights where the kernels want them, tokenizer. Immutable once opened;
// shared by sessions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/container.h"
#include "engine/tensors.h"
#include "engine/text/tokenizer.h"
#include "platforms/kernels.h"
#include "platforms/os/file_map.h"

namespace mamba_edge {

// Pointers into the weights' memory; NULL (or an empty Matrix) where the model has no such tensor.
// Shapes are those of engine/tensors.h.
struct LayerWeights {
  const float* norm = nullptr;           // [d_model]
  const float* norm_bias = nullptr;      // [d_model]
  Matrix in_proj;                        // [in_proj_rows, d_model]
  const float* in_proj_bias = nullptr;   // [in_proj_rows]
  const float* conv = nullptr;           // [conv_rows / 16][d_conv][16]
  const float* conv_bias = nullptr;      // [conv_rows]
  Matrix x_proj;                         // Mamba-1: [x_proj_rows, inner]
  Matrix dt_proj;                        // Mamba-1: [inner, dt_rank]
  const float* dt_bias = nullptr;        // [inner] or [heads]
  const float* a = nullptr;              // Mamba-1: [inner / 16][d_state][16]; Mamba-2: [heads]
  const float* d = nullptr;              // [inner]
  const float* gate_norm = nullptr;      // Mamba-2: [inner]
  const float* init_states = nullptr;    // Mamba-2: [inner / 16][d_state][16]
  Matrix out_proj;                       // [d_model, inner]
  const float* out_proj_bias = nullptr;  // [d_model]
};

struct Weights {
  Matrix embedding, head;                  // [n_vocab, d_model]; the same data where tied
  const float* final_norm = nullptr;       // [d_model]
  const float* final_norm_bias = nullptr;  // [d_model]
  LayerWeights* layers = nullptr;          // [n_layer]
};

// The widest input and the most groups of the matrices that read the same activations: sizes of
// buffers.
struct InputLimits {
  size_t cols = 0;    // of one row, padded to groups
  size_t groups = 0;  // 0 where no such matrix is quantised
};

struct Model {
  Container container;
  ModelConfig config;
  Layout layout{ModelConfig{}};
  const KernelTable* kernels = nullptr;
  Weights weights;
  InputLimits to_in_proj, to_x_proj, to_dt_proj, to_out_proj, to_head;
  Tokenizer tokenizer;
  bool has_tokenizer = false;
  int64_t n_parameters = 0;
  uint64_t weight_bytes = 0;
  uint64_t mapped_bytes = 0;

  // Memory that the above points into.
  uint8_t* memory = nullptr;  // inflated tensors
  size_t memory_bytes = 0;
  Mapping mapping;  // the file, where tensors are stored raw
  uint8_t* tokenizer_blob = nullptr;

  Model() = default;
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const char* path() const { return container.path(); }
};

struct ModelOptions {
  const char* isa = nullptr;  // NULL: best
  int n_threads = 1;          // that inflate
  bool verify = false;        // check the checksums of mapped tensors too
};

// Hands a tensor of the canonical list, at its final place, to the field that the engine reads.
// `matrix` of a vector: its data is float [rows]. model->config and weights.layers are set.
void place_tensor(const TensorSpec& spec, const Matrix& matrix, Model* model);

// Opens, checks and loads a container into *model (freshly constructed). On failure the model may
// be destroyed and nothing else.
Status load_model(const char* path, const ModelOptions& options, Model* model);

}  // namespace mamba_edge
