// Exact integer dot products of one group for Arm cores with the 8-bit matrix instructions
// (FEAT_I8MM). Only for kernel units; see platforms/simd/lanes.h.
//
// One and two tokens use `usdot`. From four on, `usmmla` multiplies 2 rows x 8 inputs of weights
// with 2 tokens x 8 inputs of activations, twice the work of a `usdot`. Its operands are made by
// interleaving: of two steps' words for the weights, of two tokens' halves for the activations.
// That costs half an instruction per product with two tokens, and less with more.
#pragma once

#include "platforms/arm/lane_dot.h"

namespace mamba_edge {
namespace {

struct MatrixDot : LaneDot<Usdot> {
  static constexpr uint64_t kPeakProducts = 32;
  static ME_INLINE int32x4_t peak_step(int32x4_t sum, int32x4_t& w) {
    peak_opaque(w);
    return vusmmlaq_s32(sum, vreinterpretq_u8_s32(w), vreinterpretq_s8_s32(w));
  }

  static constexpr int kIntTokens = 8;
  static constexpr int kMatrixTokens = 4;  // from how many on `usmmla` is worth its operands

  // Sums of rows 2 * k and 2 * k + 1 and tokens 2 * p and 2 * p + 1, tokens fastest, for R registers
  // of four rows.
  template <int T, int R>
  using Sums = int32x4_t[T / 2][2 * R];

  // a[p][half] = eight inputs of tokens 2 * p and 2 * p + 1.
  template <int T>
  static ME_INLINE void load_pairs(const int8_t* const* q, size_t i, int8x16_t (&a)[T / 2][2]) {
    ME_UNROLL
    for (int p = 0; p < T / 2; ++p) {
      const int64x2_t first = vreinterpretq_s64_s8(vld1q_s8(q[2 * p] + i));
      const int64x2_t second = vreinterpretq_s64_s8(vld1q_s8(q[2 * p + 1] + i));
      a[p][0] = vreinterpretq_s8_s64(vzip1q_s64(first, second));
      a[p][1] = vreinterpretq_s8_s64(vzip2q_s64(first, second));
    }
  }

  // Adds four rows of two steps, times half `half` of the inputs in `a`.
  template <int T, int R>
  static ME_INLINE void add_pairs(uint8x16_t first, uint8x16_t second, int r, int half,
                                  const int8x16_t (&a)[T / 2][2], Sums<T, R>& sums) {
    const uint32x4_t f = vreinterpretq_u32_u8(first), s = vreinterpretq_u32_u8(second);
    const uint8x16_t low = vreinterpretq_u8_u32(vzip1q_u32(f, s));
    const uint8x16_t high = vreinterpretq_u8_u32(vzip2q_u32(f, s));
    ME_UNROLL
    for (int p = 0; p < T / 2; ++p) {
      sums[p][2 * r] = vusmmlaq_s32(sums[p][2 * r], low, a[p][half]);
      sums[p][2 * r + 1] = vusmmlaq_s32(sums[p][2 * r + 1], high, a[p][half]);
    }
  }

  // Registers kFirst to kFirst + R - 1 of 16 inputs of int8.
  template <int T, int kFirst, int R>
  static ME_INLINE void add_bytes(const uint8_t* w, const int8x16_t (&a)[T / 2][2],
                                  Sums<T, R>& sums) {
    ME_UNROLL
    for (int half = 0; half < 2; ++half, w += 2 * kLineBytes) {
      ME_UNROLL
      for (int r = 0; r < R; ++r) {
        const uint8_t* at = w + 16 * (kFirst + r);
        add_pairs<T, R>(vld1q_u8(at), vld1q_u8(at + kLineBytes), r, half, a, sums);
      }
    }
  }

  // The same of a part of another type.
  template <int T, int kFirst, int R, WeightType kType, int kPart>
  static ME_INLINE void add_part(const uint8_t* unit, const int8x16_t (&a)[T / 2][2],
                                 Sums<T, R>& sums) {
    ME_UNROLL
    for (int r = 0; r < R; ++r) {
      uint8x16_t steps[kPartSteps];
      unpack_part<NeonBytes, kType, kPart>(unit + 16 * (kFirst + r), steps);
      add_pairs<T, R>(steps[0], steps[1], r, 0, a, sums);
      add_pairs<T, R>(steps[2], steps[3], r, 1, a, sums);
    }
  }

  // Rows 4 * kFirst to 4 * (kFirst + R) - 1 of one group.
  template <int T, int kFirst, int R, WeightType kType>
  static ME_INLINE void rows(const uint8_t* w, size_t inputs, const int8_t* const* q, Ints* dot) {
    using Unit = Planes<kType>;
    Sums<T, R> sums;
    ME_UNROLL
    for (int p = 0; p < T / 2; ++p) {
      ME_UNROLL
      for (int k = 0; k < 2 * R; ++k) sums[p][k] = vdupq_n_s32(0);
    }
    for (size_t i = 0; i < inputs; i += Unit::kInputs, w += Unit::kBytes) {
      if (kFirst == 0) read_unit_ahead<kType>(w);
      int8x16_t a[T / 2][2];
      load_pairs<T>(q, i, a);
      if constexpr (kType == WeightType::int8) {
        add_bytes<T, kFirst, R>(w, a, sums);
      } else {
        add_part<T, kFirst, R, kType, 0>(w, a, sums);
      }
      if constexpr (Unit::kParts > 1) {
        load_pairs<T>(q, i + kGroupMultiple, a);
        add_part<T, kFirst, R, kType, 1>(w, a, sums);
      }
    }
    ME_UNROLL
    for (int p = 0; p < T / 2; ++p) {
      ME_UNROLL
      for (int r = 0; r < R; ++r) {
        const int32x4_t low = sums[p][2 * r], high = sums[p][2 * r + 1];
        auto& even = dot[2 * p].v[kFirst + r];
        auto& odd = dot[2 * p + 1].v[kFirst + r];
        even = vaddq_s32(even, vuzp1q_s32(low, high));
        odd = vaddq_s32(odd, vuzp2q_s32(low, high));
      }
    }
  }

  // Sixteen registers of sums leave room for the rest: all rows of four tokens, or half the rows of
  // eight, twice.
  template <int T, WeightType kType>
  static ME_INLINE void all_rows(const uint8_t* w, size_t inputs, const int8_t* const* q,
                                 Ints* dot) {
    if constexpr (T == kMatrixTokens) {
      rows<T, 0, 4, kType>(w, inputs, q, dot);
    } else {
      rows<T, 0, 2, kType>(w, inputs, q, dot);
      rows<T, 2, 2, kType>(w, inputs, q, dot);
    }
  }

  template <int T>
  static ME_INLINE void dot_i8(const uint8_t* w, size_t inputs, const int8_t* const* q, Ints* dot) {
    if constexpr (T < kMatrixTokens) {
      LaneDot::dot_i8<T>(w, inputs, q, dot);
    } else {
      all_rows<T, WeightType::int8>(w, inputs, q, dot);
    }
  }

  template <int T, WeightType kType>
  static ME_INLINE void dot_planes(const uint8_t* w, size_t inputs, const int8_t* const* q,
                                   Ints* dot) {
    if constexpr (T < kMatrixTokens) {
      LaneDot::dot_planes<T, kType>(w, inputs, q, dot);
    } else {
      all_rows<T, kType>(w, inputs, q, dot);
    }
  }
};

}  // namespace
}  // namespace mamba_edge
