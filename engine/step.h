// The forward pass of a chunk of tokens through the layers: what step and prefill share, and the
// place where mixers plug in.
//
// A layer runs as a few parallel phases. A phase is cut into pieces of whole row blocks and groups, by output
// rows or channels, never by the sums over inputs, and every kernel treats tokens one by one, so the
// bits are the same however the work is handed out and however a text is split into chunks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/session.h"

namespace mamba_edge {

struct Step {
  // `tokens` consecutive tokens of one text.
  Step(Session& session, size_t tokens);
  // One token for each of n texts, computed in the buffers and by the threads of `lead`.
  Step(Session& lead, Session* const* texts, size_t n);

  Session& session;       // whose buffers and threads these are
  Session* const* texts;  // [tokens], or NULL: all tokens are of `session`
  const Model& model;
  const KernelTable& kernels;
  const Layout& layout;
  Buffers& b;
  size_t tokens;

  // Calls f(text, first, n) for every text with its rows of activations: [first, first + n).
  template <typename F>
  void for_each_text(F&& f) const {
    if (texts == nullptr) {
      f(session, 0, tokens);
    } else {
      for (size_t i = 0; i < tokens; ++i) f(*texts[i], i, 1);
    }
  }

  static float* conv_state(const Session& text, uint32_t layer) { return text.conv_state(layer); }
  // Points a scan's arguments to a text's state of the channels from `first` on.
  template <typename ScanArgs>
  void set_state(const Session& text, uint32_t layer, size_t first, ScanArgs* args) const {
    uint8_t* state =
        text.ssm_state(layer) + first / kTileRows * text.state_layout().ssm_block_bytes;
    const StateType type = text.options_.state;
    args->state = type == StateType::f32 ? reinterpret_cast<float*>(state) : nullptr;
    args->half_state = type == StateType::f16 ? reinterpret_cast<uint16_t*>(state) : nullptr;
    args->int8_state = type == StateType::int8 ? state : nullptr;
    args->position = text.position_;
  }
  // A state, as a phase that takes `channels` at a time reads it.
  ThreadPool::Ahead state_ahead(uint32_t layer, size_t channels) const {
    return {session.ssm_state(layer), channels / kTileRows * session.state_layout().ssm_block_bytes,
            (layout.inner + channels - 1) / channels};
  }

  // Calls piece(i) for every i in [0, n), on the session's threads. `next`: what the phase after
  // this one will read.
  using Ahead = ThreadPool::Ahead;
  template <typename F>
  void parallel(size_t n, const Ahead& next, F&& piece) const {
    using Function = std::remove_reference_t<F>;
    run(
        n, next, [](void* f, size_t i) { (*static_cast<Function*>(f))(i); },
        const_cast<void*>(static_cast<const void*>(&piece)));
  }
  void run(size_t n, const Ahead& next, mamba_edge_task task, void* context) const;

  size_t threads() const;

  // Calls rows(first, last) for ranges of tokens that cover them all: for few tokens in one call, as it takes
  // longer to share them out.
  template <typename F>
  void parallel_tokens(const Ahead& next, F&& rows) const {
    constexpr size_t kPiece = 8;
    if (tokens <= kPiece) {
      rows(size_t{0}, tokens);
      return;
    }
    parallel((tokens + kPiece - 1) / kPiece, next,
             [&](size_t i) { rows(i * kPiece, std::min(tokens, (i + 1) * kPiece)); });
  }

  // The first rows of a projection, as the phase that computes it divides them.
  static Ahead ahead(const Matrix& w, size_t rows_per_piece);

  // While piece i of n in this phase computes, it can ask for `bytes` of what its thread will read in
  // the next, the projection w: where those lie, in the order of the thread's pieces. NULL: past the
  // thread's part.
  const uint8_t* next_weights(const Matrix& w, size_t rows_per_piece, size_t i, size_t n,
                              size_t bytes) const;

  // Columns [begin, end) of `in` are complete for all tokens: quantises them if `w` wants that.
  // begin and end are multiples of w's group, or end is the width of `in`; padding up to w's width
  // counts as complete with the last piece.
  void quantise(const Matrix& w, const Activations& in, size_t begin, size_t end) const;
  // The same for tokens [first, last).
  void quantise_tokens(const Matrix& w, const Activations& in, size_t begin, size_t end,
                       size_t first, size_t last) const;

  // Makes rows [tokens, 2 * tokens) of `in` what the quantised rows before them leave of the floats, and
  // quantises those. w is not rotated.
  void quantise_rest(const Matrix& w, const Activations& in) const;

  // out[t][row] for row blocks [begin, end) of w, all tokens.
  void matmul(const Matrix& w, const Activations& in, size_t begin, size_t end, float* out,
              size_t out_stride) const;

  // Channels that one piece covers, so that pieces end at the groups of the matrix that reads them.
  static size_t piece_channels(const Matrix& reader);

  // Whether products are better off with few large pieces.
  bool is_many() const { return tokens > kStreamTokens; }

  // All layers: token ids in, residual stream out.
  void run_layers(const int32_t* ids) const;

  // The head for the rows [first, first + n) of the residual stream. The head is read at most once per
  // token and computed for few of a prompt, so a quantised one takes activations of 16 bits: each row
  // twice, as int8 and as int8 of what that left over, as if they were two tokens.
  void project_head(size_t first, size_t n, float* logits, size_t stride) const;

  // One norm row per token, in [tokens][b.model_stride] -> out (floats and, for `reader`,
  // quantised).
  void norm_rows(const float* weight, const float* bias, const Matrix& reader, const float* in,
                 const Activations& out) const;

  // The last phase of every mixer: residual += out_proj(b.y) + bias.
  static constexpr size_t kOutRows = 32;  // of a piece, but for many tokens and rows
  void project_out(uint32_t layer) const;
};

// Mixers: residual stream in (through norm_rows), residual stream out (through project_out).
void run_mamba1(const Step& step, uint32_t layer);
void run_mamba2(const Step& step, uint32_t layer);

}  // namespace mamba_edge
