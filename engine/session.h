// One text in progress: the recurrent state, the activations of a chunk of tokens, and the threads
// that compute.
//
// Everything lives in one arena whose size follows from the model and the options. take_tokens()
// allocates nothing. Does not sample and knows nothing of text.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/arena.h"
#include "engine/model.h"
#include "platforms/os/thread_pool.h"

namespace mamba_edge {

enum class StateType : uint32_t { f32 = 0, f16 = 1, int8 = 2 };  // as in mamba_edge_state_type

struct SessionOptions {
  int n_threads = 1;
  uint32_t chunk = 256;    // most tokens that pass through the weights together
  uint32_t batch = 0;      // most texts that step_batch() takes with this session in the lead
  bool same_bits = false;  // prompts are computed as decode is: see mamba_edge.h
  StateType state = StateType::f32;                // how the SSM's state is kept between tokens
  mamba_edge_parallel_for parallel_for = nullptr;  // NULL: the session's own threads
  void* parallel_for_user = nullptr;
};

constexpr uint32_t kLogitRows = 8;  // of Buffers::logits, at most

// Activations that some matrix reads: as floats, and quantised where that matrix is quantised.
struct Activations {
  float* x = nullptr;  // [chunk][stride], padding zero
  size_t stride = 0;
  QuantisedRows q;  // [chunk][...]; unused for float matrices
};

// Buffers of one chunk (or of one batch, if that is larger). Rows are tokens; strides are in elements and multiples of 16.
struct Buffers {
  float* residual = nullptr;  // [chunk][model_stride]
  float* product = nullptr;   // [chunk][model_stride], out_proj's output
  size_t model_stride = 0;
  Activations normed;     // input of in_proj, [d_model]
  float* proj = nullptr;  // [chunk][proj_stride], in_proj_rows of them
  size_t proj_stride = 0;
  Activations conv;      // Mamba-1: input of x_proj, [inner]; may lie in proj, as may y
  float* dbc = nullptr;  // Mamba-1: [chunk][dbc_stride], x_proj_rows of them
  size_t dbc_stride = 0;
  Activations dt_low;   // Mamba-1: input of dt_proj, [dt_rank]
  float* dt = nullptr;  // Mamba-1: [chunk][dt_stride], inner of them
  size_t dt_stride = 0;
  float* head_decay = nullptr;  // Mamba-2: [chunk][heads]
  float* gate_sums = nullptr;   // Mamba-2: [chunk][inner / 16]
  // Mamba-2, where prompts may be read in the dual form, else NULL: [chunk / kDualTokens][n_groups] of
  // dual_group_floats(d_state)
  float* dual_groups = nullptr;
  Activations y;            // input of out_proj, [inner]
  Activations final;        // input of the head, [d_model]; rows are [logit_rows], twice as many
                            // where the head is quantised: see Step::project_head
  float* logits = nullptr;  // [logit_rows][logit_stride]
  size_t logit_stride = 0;
  float* batch_logits = nullptr;  // [logit_rows][logit_stride]; only where there is a batch
  uint32_t logit_rows = 0;        // rows computed together when all are asked for
};

class Session {
 public:
  // Bytes of arena for these options (checked by the caller with check_options).
  static size_t required_bytes(const Model& model, const SessionOptions& options);
  static Status check_options(const SessionOptions& options);

  // Makes a fresh session at the start of `arena`.
  static Status create(const Model& model, const SessionOptions& options, void* arena,
                       Session** out);
  void destroy();

  void reset();
  uint64_t position() const { return position_; }
  const Model& model() const { return *model_; }
  void* owned_arena = nullptr;  // freed by mamba_edge_session_destroy when the library allocated it
  size_t owned_bytes = 0;

  // Takes n tokens (all valid). all_logits: NULL or [n][n_vocab].
  void take_tokens(const int32_t* tokens, size_t n, float* all_logits);
  // Takes one token for each of n different texts of this model, n <= options.batch, reading every
  // weight once. Each ends as if it had been alone; this session need not be among them.
  void step_batch(Session* const* texts, const int32_t* tokens, size_t n);
  uint32_t max_batch() const { return options_.batch; }
  float* logits() { return position_ == 0 ? nullptr : buffers_.logits; }

  // Bytes of state that a step reads, and writes as many.
  uint64_t step_state_bytes() const { return state_layout().total_bytes; }

  // A saved state holds floats, whatever the session keeps, so that it fits any session.
  static size_t state_bytes(const Model& model);
  void save_state(uint8_t* out) const;
  Status load_state(const uint8_t* in);
  void copy_state(const Session& from);
  // One layer in the reference implementations' order; see mamba_edge_state_export.
  void export_state(uint32_t layer, float* conv, size_t* n_conv, float* ssm, size_t* n_ssm) const;

 private:
  friend struct Step;

  // Elements of one layer's states, and bytes of a block, a layer and of all.
  struct StateLayout {
    StateLayout(const Model& model, StateType type);
    size_t conv, ssm, ssm_block_bytes, layer_bytes, total_bytes;  // block: 16 channels of the SSM
    size_t floats(const Model& model) const { return (conv + ssm) * model.config.n_layer; }
  };
  static Session* place(const Model& model, const SessionOptions& options, Arena& arena);

  StateLayout state_layout() const { return {*model_, options_.state}; }
  float* conv_state(uint32_t layer) const;
  // float or binary16 [inner / 16][d_state][16], or int8: see quant/blocks.h
  uint8_t* ssm_state(uint32_t layer) const;
  // Part of a layer's SSM state: up to kStateGroup states of a block of channels. A group of an int8
  // state, and as much of another.
  struct StatePart {
    size_t block, first, states;
    uint8_t* at;  // where this session keeps it
    size_t bytes() const { return states * kTileRows * sizeof(float); }  // as floats
  };
  static constexpr size_t kPartFloats = kStateGroup * kTileRows;  // at most
  size_t ssm_parts() const;                                       // of a layer
  StatePart ssm_part(uint32_t layer, size_t i) const;
  // A part as the bytes of floats, unaligned: [states][16].
  void read_part(const StatePart& part, uint8_t* out) const;
  void write_part(const StatePart& part, const uint8_t* in);
  // The same of a whole layer: [inner / 16][d_state][16].
  void read_ssm(uint32_t layer, uint8_t* out) const;
  void write_ssm(uint32_t layer, const uint8_t* in);

  const Model* model_ = nullptr;
  SessionOptions options_;
  uint8_t* state_ = nullptr;
  uint64_t position_ = 0;
  Buffers buffers_;
  ThreadPool* pool_ = nullptr;
};

}  // namespace mamba_edge
