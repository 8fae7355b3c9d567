// Draws tokens from logits.
//
// The steps, in order: repeat penalty, temperature, top-k, top-p, min-p, a draw. Probabilities are
// counted in integers (the largest logit weighs 2^31; a logit that is less than 2^-31 times as
// probable counts as impossible), and the kept tokens are walked in the order of their ids, so the
// same seed and logits give the same tokens whatever the compiler, the instruction set or the C
// library. A tie goes to the lower id, in every step. NaN counts as -infinity, +infinity as the
// largest finite number. The generator is SplitMix64; greedy sampling does not advance it.
// Allocates nothing. Does not know about the end of a text, grammars or beams.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/include/mamba_edge.h"
#include "engine/status.h"
#include "platforms/kernels.h"

namespace mamba_edge {

class Sampler {
 public:
  // INVALID_ARGUMENT for values without a meaning: NaN or infinity anywhere, negative top_k or
  // penalty, top_p or min_p outside of [0, 1], repeat_last_n below -1 or above kMaxRecent. A
  // temperature below 0 is greedy, like 0.
  static Status check(const mamba_edge_sampler_options& options);

  // Bytes for a sampler of these options (which check() accepts) over ids [0, n_vocab_used).
  static size_t required_bytes(int32_t n_vocab_used, const mamba_edge_sampler_options& options);

  // Makes a sampler in `memory` (8-byte aligned, required_bytes long), which must outlive it.
  // INVALID_ARGUMENT, TOO_SMALL. Nothing needs to be destroyed.
  static Status init(const mamba_edge_sampler_options& options, const KernelTable& kernels,
                     int32_t n_vocab_used, std::span<std::byte> memory, Sampler** out);

  // Remembers a token for the repeat penalty; ids outside of [0, n_vocab_used) are ignored.
  void accept(int32_t token);

  // A token from logits [n_vocab_used], which is accepted. Always in [0, n_vocab_used).
  int32_t sample(const float* logits);

  static constexpr int32_t kMaxRecent = 1 << 20;
  static constexpr int32_t kDefaultRecent = 2048;  // for repeat_last_n -1

 private:
  struct Plan;  // where things lie behind the sampler

  Sampler() = default;
  int32_t largest(const float* values) const;
  int32_t draw(int32_t* ids, int32_t n, int32_t best);
  uint64_t uniform(uint64_t below);
  uint32_t weight(float value) const;
  bool before(int32_t a,
              int32_t b) const;  // the order of candidates: larger first, then the lower id
  void select_best(int32_t k);
  int32_t top_p_count(int32_t n, uint64_t total, float p);

  mamba_edge_sampler_options options_{};
  const KernelTable* kernels_ = nullptr;
  int32_t n_vocab_ = 0;
  int32_t n_recent_ = 0, recent_capacity_ = 0, recent_next_ = 0;
  uint64_t state_ = 0;
  float largest_ = 0;
  float* values_ = nullptr;    // [n_vocab] logits after the penalty; null if no step needs a copy
  int32_t* order_ = nullptr;   // [n_vocab] ids, partly sorted; null if no step sorts
  int32_t* recent_ = nullptr;  // [recent_capacity] ring of the last tokens
};

}  // namespace mamba_edge
