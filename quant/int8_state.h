// A group of a recurrent state in int8 (quant/blocks.h) to and from float32: for states that are
// loaded, saved or copied. Kernels round their own, with a dither (platforms/kernels.h).
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "quant/blocks.h"

namespace mamba_edge {

// The scale of a lane whose largest magnitude is `top`: a 127th of it, rounded to 17 significant bits
// so that no product with an int8 is rounded, and at least kLeastStateScale.
inline float int8_state_scale(float top) {
  const float step = top / 127.0f;
  const float least = step < kLeastStateScale ? kLeastStateScale : step;
  return std::bit_cast<float>((std::bit_cast<uint32_t>(least) + 0x40u) & 0xFFFFFF80u);
}

// group: as int8_state_group_bytes(states) has room for; values: float [states][16], unaligned. Exact.
inline void decode_int8_state(const uint8_t* group, size_t states, uint8_t* values) {
  float scale[kTileRows];
  std::memcpy(scale, group, sizeof(scale));
  const auto* q = reinterpret_cast<const int8_t*>(group + sizeof(scale));
  for (size_t i = 0; i < states * kTileRows; ++i) {
    const float value = scale[i % kTileRows] * static_cast<float>(q[i]);
    std::memcpy(values + i * sizeof(float), &value, sizeof(float));
  }
}

// The other way, rounded to nearest: off by at most (0.5 + 2^-15) * scale. What came from
// decode_int8_state goes back unchanged. A lane with a NaN or an infinity becomes all NaN.
inline void encode_int8_state(const uint8_t* values, size_t states, uint8_t* group) {
  auto* q = reinterpret_cast<int8_t*>(group + kTileRows * sizeof(float));
  for (size_t lane = 0; lane < kTileRows; ++lane) {
    const auto value = [&](size_t n) {
      float v;
      std::memcpy(&v, values + (n * kTileRows + lane) * sizeof(float), sizeof(float));
      return v;
    };
    float top = 0.0f;
    bool finite = true;
    for (size_t n = 0; n < states; ++n) {
      const float size = std::fabs(value(n));
      finite = finite && std::isfinite(size);
      if (size > top) top = size;
    }
    const float scale = finite ? int8_state_scale(top) : std::bit_cast<float>(0x7FC00000u);
    std::memcpy(group + lane * sizeof(float), &scale, sizeof(float));
    for (size_t n = 0; n < states; ++n) {
      q[n * kTileRows + lane] =
          finite ? static_cast<int8_t>(std::nearbyint(value(n) / scale)) : int8_t{0};
    }
  }
}

}  // namespace mamba_edge
