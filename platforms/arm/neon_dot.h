// Exact integer dot products of one group by widening multiplies, for every 64-bit Arm. Only for
// kernel units; see platforms/simd/lanes.h.
#pragma once

#include "platforms/arm/neon_isa.h"

namespace mamba_edge {
namespace {

struct NeonDot : NeonIsa {
  static constexpr int kIntTokens = 2;
  static constexpr int32_t kZero8 = 0;  // dot_i8 takes the zero off the weights themselves
  static constexpr int32_t kZero4 = 8;

  static ME_INLINE int8x16_t step(const int8_t* q) {
    int32_t v;
    std::memcpy(&v, q, sizeof(v));
    return vreinterpretq_s8_s32(vdupq_n_s32(v));
  }

  // Two steps at a time: two products of at most 128 * 127 fit in 16 bits. pairs[t][2 * r + half]
  // has per row the sums of its first and of its second two products.
  template <int T>
  static ME_INLINE void dot_i8(const uint8_t* w, size_t inputs, const int8_t* const* q, Ints* dot) {
    const uint8x16_t zero = vdupq_n_u8(128);
    int32x4_t pairs[T][8];
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      ME_UNROLL
      for (int k = 0; k < 8; ++k) pairs[t][k] = vdupq_n_s32(0);
    }
    for (size_t i = 0; i < inputs; i += 2 * kStepInputs, w += 2 * kTileRows * kStepInputs) {
      read_ahead(w);
      read_ahead(w + kLineBytes);
      ME_UNROLL
      for (int r = 0; r < 4; ++r) {
        const int8x16_t first = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(w + 16 * r), zero));
        const int8x16_t second = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(w + 64 + 16 * r), zero));
        ME_UNROLL
        for (int t = 0; t < T; ++t) {
          const int8x16_t a = step(q[t] + i), b = step(q[t] + i + 4);
          const int16x8_t low = vmlal_s8(vmull_s8(vget_low_s8(first), vget_low_s8(a)),
                                         vget_low_s8(second), vget_low_s8(b));
          const int16x8_t high = vmlal_high_s8(vmull_high_s8(first, a), second, b);
          pairs[t][2 * r] = vpadalq_s16(pairs[t][2 * r], low);
          pairs[t][2 * r + 1] = vpadalq_s16(pairs[t][2 * r + 1], high);
        }
      }
    }
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      ME_UNROLL
      for (int r = 0; r < 4; ++r) {
        dot[t].v[r] = vaddq_s32(dot[t].v[r], vpaddq_s32(pairs[t][2 * r], pairs[t][2 * r + 1]));
      }
    }
  }

  // Four steps at a time: eight products of at most 15 * 127 fit in 16 bits, so the sums of four
  // steps and of neighbours are made there, before they are widened once.
  template <int T>
  static ME_INLINE void dot_i4(const uint8_t* w, size_t inputs, const int8_t* const* q, Ints* dot) {
    const uint8x16_t low_nibble = vdupq_n_u8(15);
    int32x4_t acc[T][4];
    load_sums<T>(dot, acc);
    for (size_t i = 0; i < inputs; i += 4 * kStepInputs, w += 2 * kTileRows * kStepInputs) {
      read_ahead(w);
      read_ahead(w + kLineBytes);
      ME_UNROLL
      for (int r = 0; r < 4; ++r) {
        const uint8x16_t first = vld1q_u8(w + 16 * r), second = vld1q_u8(w + 64 + 16 * r);
        const int8x16_t steps[4] = {vreinterpretq_s8_u8(vandq_u8(first, low_nibble)),
                                    vreinterpretq_s8_u8(vshrq_n_u8(first, 4)),
                                    vreinterpretq_s8_u8(vandq_u8(second, low_nibble)),
                                    vreinterpretq_s8_u8(vshrq_n_u8(second, 4))};
        ME_UNROLL
        for (int t = 0; t < T; ++t) {
          const int8x16_t a = step(q[t] + i);
          int16x8_t low = vmull_s8(vget_low_s8(steps[0]), vget_low_s8(a));
          int16x8_t high = vmull_high_s8(steps[0], a);
          ME_UNROLL
          for (int k = 1; k < 4; ++k) {
            const int8x16_t b = step(q[t] + i + 4 * k);
            low = vmlal_s8(low, vget_low_s8(steps[k]), vget_low_s8(b));
            high = vmlal_high_s8(high, steps[k], b);
          }
          acc[t][r] = vpadalq_s16(acc[t][r], vpaddq_s16(low, high));
        }
      }
    }
    store_sums<T>(acc, dot);
  }
};

}  // namespace
}  // namespace mamba_edge
