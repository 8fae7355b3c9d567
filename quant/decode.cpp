#include "quant/decode.h"

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
    case WeightType::int16:
      for (uint32_t c = 0; c < n; ++c) {
        const auto q = static_cast<int16_t>(load_u16(weights + (size_t{c} * kTileRows + lane) * 2));
        out[c] = group_scale(c) * static_cast<float>(q);
      }
      return;
    case WeightType::int8:
      for (uint32_t c = 0; c < n; ++c) {
        const uint8_t q =
            weights[size_t{c / kStepInputs} * 64 + lane * kStepInputs + c % kStepInputs];
        out[c] = group_scale(c) * static_cast<float>(q - 128);
      }
      return;
    case WeightType::int4:
      for (uint32_t c = 0; c < n; ++c) {
        const uint32_t step = c / kStepInputs;
        const uint8_t pair = weights[size_t{step / 2} * 64 + lane * kStepInputs + c % kStepInputs];
        const int q = step % 2 == 0 ? pair & 15 : pair >> 4;
        out[c] = group_scale(c) * static_cast<float>(q - 8);
      }
      return;
  }
}

}  // namespace mamba_edge
