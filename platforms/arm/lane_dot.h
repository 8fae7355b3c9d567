// Exact integer dot products of one group for the Arm cores that have them as instructions, written
// once over the instruction. Only for kernel units; see platforms/simd/lanes.h.
//
// The instructions multiply four bytes of each of four rows with one lane of a register, and a
// register holds the activations of four steps: no broadcasts, no sums across lanes.
#pragma once

#include "platforms/arm/neon_isa.h"

namespace mamba_edge {
namespace {

#if defined(__ARM_FEATURE_DOTPROD)
// sdot: both factors are signed.
struct Sdot {
  static constexpr int32_t kZero8 = 0;  // weight() takes it off
  using Weight = int8x16_t;
  static ME_INLINE Weight weight(uint8x16_t bytes) {
    return vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(128)));
  }
  static ME_INLINE Weight small(uint8x16_t bytes) { return vreinterpretq_s8_u8(bytes); }
  template <int kLane>
  static ME_INLINE int32x4_t add(int32x4_t acc, Weight w, int8x16_t a) {
    return vdotq_laneq_s32(acc, w, a, kLane);
  }
};
#endif

#if defined(__ARM_FEATURE_MATMUL_INT8)
// usdot: weights are unsigned, activations signed, just as they are stored.
struct Usdot {
  static constexpr int32_t kZero8 = 128;
  using Weight = uint8x16_t;
  static ME_INLINE Weight weight(uint8x16_t bytes) { return bytes; }
  static ME_INLINE Weight small(uint8x16_t bytes) { return bytes; }
  template <int kLane>
  static ME_INLINE int32x4_t add(int32x4_t acc, Weight w, int8x16_t a) {
    return vusdotq_laneq_s32(acc, w, a, kLane);
  }
};
#endif

template <typename Op>
struct LaneDot : NeonIsa {
  using Weight = typename Op::Weight;
  static constexpr int kIntTokens = 4;
  static constexpr int32_t kZero8 = Op::kZero8;

  static constexpr uint64_t kPeakProducts = 16;
  static ME_INLINE int32x4_t peak_step(int32x4_t sum, int32x4_t& w) {
    peak_opaque(w);
    return Op::template add<0>(sum, Op::small(vreinterpretq_u8_s32(w)), vreinterpretq_s8_s32(w));
  }

  // Activations of four steps per token.
  template <int T>
  static ME_INLINE void load_tokens(const int8_t* const* q, size_t i, int8x16_t (&a)[T]) {
    ME_UNROLL
    for (int t = 0; t < T; ++t) a[t] = vld1q_s8(q[t] + i);
  }

  // Four rows times step kLane of those in `a`.
  template <int kLane, int T>
  static ME_INLINE void add(int r, Weight w, const int8x16_t (&a)[T], int32x4_t (&acc)[T][4]) {
    ME_UNROLL
    for (int t = 0; t < T; ++t) acc[t][r] = Op::template add<kLane>(acc[t][r], w, a[t]);
  }

  template <int kLane, int T>
  static ME_INLINE void byte_step(const uint8_t* w, const int8x16_t (&a)[T],
                                  int32x4_t (&acc)[T][4]) {
    read_ahead(w);
    const uint8x16_t bytes[4] = {vld1q_u8(w), vld1q_u8(w + 16), vld1q_u8(w + 32), vld1q_u8(w + 48)};
    ME_UNROLL
    for (int r = 0; r < 4; ++r) add<kLane>(r, Op::weight(bytes[r]), a, acc);
  }

  template <int T>
  static ME_INLINE void dot_i8(const uint8_t* w, size_t inputs, const int8_t* const* q, Ints* dot) {
    int32x4_t acc[T][4];
    load_sums<T>(dot, acc);
    for (size_t i = 0; i < inputs; i += 4 * kStepInputs, w += 4 * kTileRows * kStepInputs) {
      int8x16_t a[T];
      load_tokens<T>(q, i, a);
      byte_step<0>(w, a, acc);
      byte_step<1>(w + 64, a, acc);
      byte_step<2>(w + 128, a, acc);
      byte_step<3>(w + 192, a, acc);
    }
    store_sums<T>(acc, dot);
  }

  template <int T, WeightType kType, int kPart>
  static ME_INLINE void multiply_part(const uint8_t* unit, const int8_t* const* q, size_t i,
                                      int32x4_t (&acc)[T][4]) {
    int8x16_t a[T];
    load_tokens<T>(q, i, a);
    ME_UNROLL
    for (int r = 0; r < 4; ++r) {
      uint8x16_t steps[kPartSteps];
      unpack_part<NeonBytes, kType, kPart>(unit + 16 * r, steps);
      add<0>(r, Op::small(steps[0]), a, acc);
      add<1>(r, Op::small(steps[1]), a, acc);
      add<2>(r, Op::small(steps[2]), a, acc);
      add<3>(r, Op::small(steps[3]), a, acc);
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
      multiply_part<T, kType, 0>(w, q, i, acc);
      if constexpr (Unit::kParts > 1) multiply_part<T, kType, 1>(w, q, i + kGroupMultiple, acc);
    }
    store_sums<T>(acc, dot);
  }
};

}  // namespace
}  // namespace mamba_edge
