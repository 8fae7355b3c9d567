#include "engine/config.h"

#include <cmath>

#include "quant/blocks.h"

namespace mamba_edge {
namespace {

Status in_range(const char* field, uint64_t value, uint64_t low, uint64_t high) {
  if (value >= low && value <= high) return {};
  return Status::error(MAMBA_EDGE_UNSUPPORTED, "%s is %llu; expected %llu to %llu", field,
                       static_cast<unsigned long long>(value), static_cast<unsigned long long>(low),
                       static_cast<unsigned long long>(high));
}

// Generous bounds; with them no product that the engine forms exceeds 2^62.
constexpr uint32_t kMaxWidth = 1u << 20;  // d_model, d_inner
constexpr uint32_t kMaxState = 1u << 12;

Status validate_epsilon(const char* field, float eps) {
  if (std::isfinite(eps) && eps >= 0) return {};
  return Status::error(MAMBA_EDGE_UNSUPPORTED, "%s is %g; expected a finite number >= 0", field,
                       static_cast<double>(eps));
}

Status validate_mamba1(const Mamba1Config& m) {
  ME_TRY(in_range("d_inner", m.d_inner, 1, kMaxWidth));
  ME_TRY(in_range("d_state", m.d_state, 1, kMaxState));
  ME_TRY(in_range("d_conv", m.d_conv, 1, 64));
  ME_TRY(in_range("dt_rank", m.dt_rank, 1, kMaxWidth));
  if (m.dt_bc_norm) ME_TRY(validate_epsilon("mixer_rms_eps", m.dt_bc_eps));
  return {};
}

Status validate_mamba2(const Mamba2Config& m) {
  ME_TRY(in_range("d_inner", m.d_inner, 1, kMaxWidth));
  ME_TRY(in_range("d_state", m.d_state, 1, kMaxState));
  ME_TRY(in_range("d_conv", m.d_conv, 1, 64));
  ME_TRY(in_range("headdim", m.headdim, 1, kMaxWidth));
  ME_TRY(in_range("n_heads", m.n_heads, 1, kMaxWidth));
  ME_TRY(in_range("n_groups", m.n_groups, 1, m.n_heads));
  ME_TRY(in_range("n_groups * d_state", uint64_t{m.n_groups} * m.d_state, 1, kMaxWidth));
  ME_TRY(in_range("gated_norm", m.gated_norm, 0, 2));
  if (uint64_t{m.n_heads} * m.headdim != m.d_inner) {
    return Status::error(MAMBA_EDGE_UNSUPPORTED, "n_heads %u times headdim %u is not d_inner %u",
                         m.n_heads, m.headdim, m.d_inner);
  }
  if (m.n_heads % m.n_groups != 0) {
    return Status::error(MAMBA_EDGE_UNSUPPORTED, "n_heads %u is not a multiple of n_groups %u",
                         m.n_heads, m.n_groups);
  }
  // Each group is padded to 16 channels.
  ME_TRY(in_range("d_inner padded by groups",
                  uint64_t{m.n_groups} * round_up<uint64_t>(m.d_inner / m.n_groups, kTileRows), 1,
                  kMaxWidth * 4));
  if (std::isnan(m.dt_low) || std::isnan(m.dt_high) || m.dt_low > m.dt_high) {
    return Status::error(MAMBA_EDGE_UNSUPPORTED, "dt_limit is [%g, %g]; expected low <= high",
                         static_cast<double>(m.dt_low), static_cast<double>(m.dt_high));
  }
  if (m.gated_norm) ME_TRY(validate_epsilon("eps of the gated norm", m.norm_eps));
  return {};
}

Status validate_token(const char* field, int32_t token, uint32_t n_vocab) {
  if (token >= -1 && token < static_cast<int64_t>(n_vocab)) return {};
  return Status::error(MAMBA_EDGE_UNSUPPORTED, "%s %d is outside the vocabulary of %u", field,
                       token, n_vocab);
}

}  // namespace

const char* architecture_name(Architecture architecture) {
  switch (architecture) {
    case Architecture::mamba:
      return "mamba";
    case Architecture::mamba2:
      return "mamba2";
    case Architecture::falcon_mamba:
      return "falcon_mamba";
  }
  return "?";
}

Status validate(const ModelConfig& config) {
  ME_TRY(in_range("architecture", static_cast<uint32_t>(config.architecture), 1, 3));
  ME_TRY(in_range("norm", static_cast<uint32_t>(config.norm), 1, 2));
  ME_TRY(in_range("d_model", config.d_model, 1, kMaxWidth));
  ME_TRY(in_range("n_layer", config.n_layer, 1, 4096));
  ME_TRY(in_range("n_vocab", config.n_vocab, 1, 1u << 24));
  ME_TRY(in_range("n_vocab_used", config.n_vocab_used, 1, config.n_vocab));
  ME_TRY(validate_epsilon("norm_eps", config.norm_eps));
  ME_TRY(validate_token("bos_token", config.bos_token, config.n_vocab));
  ME_TRY(validate_token("eos_token", config.eos_token, config.n_vocab));
  return config.is_mamba2() ? validate_mamba2(config.mamba2) : validate_mamba1(config.mamba1);
}

}  // namespace mamba_edge
