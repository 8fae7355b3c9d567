#include "convert/packing.h"

#include "quant/blocks.h"

namespace mamba_edge::convert {
namespace {

class Map {
 public:
  explicit Map(const Layout& layout) : layout_(layout) {}

  // The next `count` published rows, padded to 16 as a whole.
  Map& section(int64_t count) {
    for (int64_t i = 0; i < count; ++i) rows_.push_back(next_++);
    pad();
    return *this;
  }
  // The next d_inner published rows, each segment padded to 16.
  Map& channels() {
    for (uint32_t s = 0; s < layout_.segments; ++s) {
      for (uint32_t i = 0; i < layout_.segment; ++i) rows_.push_back(next_++);
      pad();
    }
    return *this;
  }
  // Channels that take the value of their head.
  Map& heads_as_channels(uint32_t headdim) {
    channels();
    for (int64_t& row : rows_) {
      if (row != kPadding) row /= headdim;
    }
    return *this;
  }
  std::vector<int64_t> take() { return std::move(rows_); }

 private:
  void pad() {
    while (rows_.size() % kTileRows != 0) rows_.push_back(kPadding);
  }
  const Layout& layout_;
  std::vector<int64_t> rows_;
  int64_t next_ = 0;
};

std::vector<int64_t> identity(uint32_t n) {
  std::vector<int64_t> map(n);
  for (uint32_t i = 0; i < n; ++i) map[i] = i;
  return map;
}

}  // namespace

std::vector<int64_t> source_rows(const ModelConfig& config, const TensorSpec& spec) {
  const Layout layout(config);
  Map map(layout);
  const bool mamba2 = config.is_mamba2();
  const int64_t bc = mamba2 ? int64_t{config.mamba2.n_groups} * layout.d_state : layout.d_state;
  switch (spec.role) {
    case TensorRole::in_proj:
    case TensorRole::in_proj_bias:
      map.channels().channels();
      if (mamba2) map.section(bc).section(bc).section(config.mamba2.n_heads);
      return map.take();
    case TensorRole::conv:
    case TensorRole::conv_bias:
      map.channels();
      if (mamba2) map.section(bc).section(bc);
      return map.take();
    case TensorRole::x_proj:
      return map.section(config.mamba1.dt_rank).section(bc).section(bc).take();
    case TensorRole::a:
    case TensorRole::dt_bias:
      return mamba2 ? map.section(config.mamba2.n_heads).take() : map.channels().take();
    case TensorRole::d:
      if (mamba2 && config.mamba2.d_per_channel == 0) {
        return map.heads_as_channels(config.mamba2.headdim).take();
      }
      return map.channels().take();
    case TensorRole::dt_proj:
    case TensorRole::gate_norm:
    case TensorRole::init_states:
      return map.channels().take();
    default:
      return identity(spec.rows);
  }
}

std::vector<int64_t> source_cols(const ModelConfig& config, const TensorSpec& spec) {
  if (spec.role == TensorRole::x_proj || spec.role == TensorRole::out_proj) {
    const Layout layout(config);
    return Map(layout).channels().take();
  }
  return identity(spec.cols);
}

}  // namespace mamba_edge::convert
