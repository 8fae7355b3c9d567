// Exact integer dot products of one group by widening multiplies, for every 64-bit Arm. Only for
// kernel units; see platforms/simd/lanes.h.
#pragma once

#include "platforms/arm/neon_isa.h"

namespace mamba_edge {
namespace {

struct NeonDot : NeonIsa {
  static constexpr int kIntTokens = 2;
  static constexpr int32_t kZero8 = 0;  // dot_i8 takes the zero off the weights themselves

  static constexpr uint64_t kPeakProducts = 16;
  static ME_INLINE PeakReg peak_step(PeakReg sum, PeakReg& w) {
    peak_opaque(w);
    const int8x16_t v = vreinterpretq_s8_s32(w);
    return vpadalq_s16(sum, vmlal_high_s8(vmull_s8(vget_low_s8(v), vget_low_s8(v)), v, v));
  }

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

  // Four steps at a time: of up to five bits eight products of at most 31 * 127 fit in 16 bits, so the
  // sums of four steps and of neighbours are made there, before they are widened once. Of six bits
  // only four do (4 * 63 * 127 = 32004), and neighbours are added while they are widened.
  template <int T, WeightType kType, int kPart>
  static ME_INLINE void multiply_part(const uint8_t* unit, int r, const int8_t* const* q, size_t i,
                                      int32x4_t (&acc)[T][4]) {
    uint8x16_t bytes[kPartSteps];
    unpack_part<NeonBytes, kType, kPart>(unit + 16 * r, bytes);
    int8x16_t steps[kPartSteps];
    ME_UNROLL
    for (size_t k = 0; k < kPartSteps; ++k) steps[k] = vreinterpretq_s8_u8(bytes[k]);
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      const int8x16_t a = step(q[t] + i);
      int16x8_t low = vmull_s8(vget_low_s8(steps[0]), vget_low_s8(a));
      int16x8_t high = vmull_high_s8(steps[0], a);
      ME_UNROLL
      for (size_t k = 1; k < kPartSteps; ++k) {
        const int8x16_t b = step(q[t] + i + kStepInputs * k);
        low = vmlal_s8(low, vget_low_s8(steps[k]), vget_low_s8(b));
        high = vmlal_high_s8(high, steps[k], b);
      }
      if constexpr (properties(kType).bits <= 5) {
        acc[t][r] = vpadalq_s16(acc[t][r], vpaddq_s16(low, high));
      } else {
        acc[t][r] = vaddq_s32(acc[t][r], vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
      }
    }
  }

  template <int T, WeightType kType>
  static ME_INLINE void dot_planes(const uint8_t* w, size_t inputs, const int8_t* const* q,
                                   Ints* dot) {
    using Unit = Planes<kType>;
    int32x4_t acc[T][4];
    load_sums<T>(dot, acc);
    for (size_t i = 0; i < inputs; i += Unit::kInputs, w += Unit::kBytes) {
      read_unit_ahead<kType>(w);
      ME_UNROLL
      for (int r = 0; r < 4; ++r) {
        multiply_part<T, kType, 0>(w, r, q, i, acc);
        if constexpr (Unit::kParts > 1)
          multiply_part<T, kType, 1>(w, r, q, i + kGroupMultiple, acc);
      }
    }
    store_sums<T>(acc, dot);
  }
};

}  // namespace
}  // namespace mamba_edge
