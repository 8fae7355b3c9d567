#include "quant/decode.h"

#include <algorithm>
#include <cstring>

#include "quant/half.h"

namespace mamba_edge {
namespace {

uint16_t load_u16(const uint8_t* p) {
  uint16_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

float load_f32(const uint8_t* p) {
  float value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

}  // namespace

void decode_row(const MatrixShape& shape, float scale, const uint8_t* data, uint32_t row,
                uint32_t n, float* out) {
  const uint8_t* block = data + size_t{row / kTileRows} * shape.row_block_bytes();
  const uint32_t lane = row % kTileRows;
  const uint8_t* weights = block + shape.scale_bytes();
  const auto group_scale = [&](uint32_t col) {
    return scale *
           half_to_float(load_u16(block + (size_t{col / shape.group} * kTileRows + lane) * 2));
  };
  if (is_quantised(shape.type)) {
    const TypeProperties& p = properties(shape.type);
    const uint32_t low_mask = (1u << p.low) - 1, high_mask = (1u << p.high) - 1;
    const uint8_t* unit = weights + size_t{lane} * kStepInputs;
    for (uint32_t c = 0; c < n; c += p.unit(), unit += p.unit_lines() * kLineBytes) {
      const float factor = group_scale(c);
      const uint32_t inputs = std::min(p.unit(), n - c);
      const uint8_t* high = unit + p.low_lines() * kLineBytes;
      for (uint32_t i = 0; i < inputs; ++i) {
        const uint32_t step = i / kStepInputs, bit = step * p.low;
        const uint32_t input = i % kStepInputs;
        uint32_t q = unit[bit / 8 * kLineBytes + input] >> bit % 8 & low_mask;
        if (p.high > 0) q |= (high[input] >> p.high_at(step) & high_mask) << p.low;
        out[c + i] = factor * static_cast<float>(static_cast<int32_t>(q) - p.zero());
      }
    }
    return;
  }
  switch (shape.type) {
    case WeightType::f32:
      for (uint32_t c = 0; c < n; ++c) {
        out[c] = scale * load_f32(block + (size_t{c} * kTileRows + lane) * 4);
      }
      return;
    case WeightType::f16:
      for (uint32_t c = 0; c < n; ++c) {
        out[c] = scale * half_to_float(load_u16(block + (size_t{c} * kTileRows + lane) * 2));
      }
      return;
    default:  // int16
      for (uint32_t c = 0; c < n; ++c) {
        const auto q = static_cast<int16_t>(load_u16(weights + (size_t{c} * kTileRows + lane) * 2));
        out[c] = group_scale(c) * static_cast<float>(q);
      }
      return;
  }
}

}  // namespace mamba_edge
