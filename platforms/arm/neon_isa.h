// What the tables for 64-bit Arm share: lanes, conversions and quantisation. Only for kernel units;
// see platforms/simd/lanes.h. Everything is in an anonymous namespace, so each unit has its own.
#pragma once

#include <arm_neon.h>

#include "platforms/simd/lanes.h"
#include "platforms/simd/planes.h"

namespace mamba_edge {
namespace {
struct Neon64 : xsimd::neon64 {
  static ME_INLINE float32x4_t fma(float32x4_t a, float32x4_t b, float32x4_t c) {
    return vfmaq_f32(c, a, b);
  }
  static ME_INLINE float32x4_t broadcast(float v) { return vdupq_n_f32(v); }
  static ME_INLINE int32x4_t broadcast(int32_t v) { return vdupq_n_s32(v); }
  static ME_INLINE int32x4_t bits(float32x4_t v) { return vreinterpretq_s32_f32(v); }
  static ME_INLINE float32x4_t of_bits(int32x4_t v) { return vreinterpretq_f32_s32(v); }
  static ME_INLINE float32x4_t div(float32x4_t a, float32x4_t b) { return vdivq_f32(a, b); }
};
}  // namespace
}  // namespace mamba_edge
ME_XSIMD_ARCH(mamba_edge::Neon64, xsimd::neon64);

namespace mamba_edge {
namespace {

// Sixteen bytes of weights (platforms/simd/planes.h). Shifts that insert save masks: `sri` puts the top
// of a byte under another, `sli` puts a byte above the low bits of another.
struct NeonBytes {
  using Reg = uint8x16_t;
  static ME_INLINE Reg load(const uint8_t* p) { return vld1q_u8(p); }

  template <int kBits, int kAt>
  static ME_INLINE Reg field(Reg line) {
    if constexpr (kAt > 0) line = vshrq_n_u8(line, kAt);
    return kAt + kBits < 8 ? vandq_u8(line, vdupq_n_u8((1 << kBits) - 1)) : line;
  }

  template <int kLow, int kLowAt, int kHigh, int kHighAt>
  static ME_INLINE Reg join(Reg low, Reg high) {
    // The bits above the high field, if there are any, are masked out at the end.
    constexpr bool kTop = kHighAt + kHigh == 8;
    Reg joined;
    if constexpr (kLowAt + kLow == 8) {
      joined = vsriq_n_u8(move<kHighAt, kLow>(high), low, kLowAt);
    } else {
      joined = vsliq_n_u8(move<kLowAt, 0>(low), move<kHighAt, 0>(high), kLow);
    }
    return kTop ? joined : vandq_u8(joined, vdupq_n_u8((1 << (kLow + kHigh)) - 1));
  }

  template <int kLowAt, int kHighAt>
  static ME_INLINE void join_pair(Reg low, Reg high, Reg& first, Reg& second) {
    // Bit 3 is anything, and so is bit 7 unless zeros have been shifted in there.
    const Reg both = vbslq_u8(vdupq_n_u8(0x44), move<kHighAt, 2>(high), move<kLowAt, 0>(low));
    first = vandq_u8(both, vdupq_n_u8(7));
    second = vshrq_n_u8(both, 4);
    if constexpr (kLowAt == 0) second = vandq_u8(second, vdupq_n_u8(7));
  }

 private:
  template <int kFrom, int kTo>
  static ME_INLINE Reg move(Reg bits) {
    if constexpr (kFrom > kTo) return vshrq_n_u8(bits, kFrom - kTo);
    if constexpr (kFrom < kTo) return vshlq_n_u8(bits, kTo - kFrom);
    return bits;
  }
};

// All that kernels_impl.h asks of an Isa but the integer dots.
struct NeonIsa {
  using Arch = Neon64;
  using V = Lanes<Arch>;
  using Ints = V::Ints;
  static constexpr int kFloatTokens = 4;

  static ME_INLINE Ints broadcast_int(int32_t value) { return Ints::broadcast(value); }

  using PeakReg = int32x4_t;
  static ME_INLINE PeakReg peak_fill(int32_t v) { return vdupq_n_s32(v); }
  static ME_INLINE void peak_opaque(PeakReg& v) { __asm__ volatile("" : "+w"(v)); }

  static ME_INLINE V from_f16(const uint16_t* p) {
    const float16x8_t a = vreinterpretq_f16_u16(vld1q_u16(p));
    const float16x8_t b = vreinterpretq_f16_u16(vld1q_u16(p + 8));
    V r;
    r.v[0] = vcvt_f32_f16(vget_low_f16(a));
    r.v[1] = vcvt_high_f32_f16(a);
    r.v[2] = vcvt_f32_f16(vget_low_f16(b));
    r.v[3] = vcvt_high_f32_f16(b);
    return r;
  }

  // Rounds to nearest, ties to even; what is too large becomes an infinity. p is 32-byte aligned.
  static ME_INLINE void to_f16(const V& x, uint16_t* p) {
    const float16x8_t a = vcvt_high_f16_f32(vcvt_f16_f32(x.v[0]), x.v[1]);
    const float16x8_t b = vcvt_high_f16_f32(vcvt_f16_f32(x.v[2]), x.v[3]);
    vst1q_u16(p, vreinterpretq_u16_f16(a));
    vst1q_u16(p + 8, vreinterpretq_u16_f16(b));
  }

  static ME_INLINE V widen(int16x8_t a, int16x8_t b) {
    V r;
    r.v[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(a)));
    r.v[1] = vcvtq_f32_s32(vmovl_high_s16(a));
    r.v[2] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(b)));
    r.v[3] = vcvtq_f32_s32(vmovl_high_s16(b));
    return r;
  }

  static ME_INLINE V from_i8(const int8_t* p) {
    const int8x16_t q = vld1q_s8(p);
    return widen(vmovl_s8(vget_low_s8(q)), vmovl_high_s8(q));
  }

  static ME_INLINE V from_i16(const int16_t* p) { return widen(vld1q_s16(p), vld1q_s16(p + 8)); }

  template <int S>
  static ME_INLINE V swap(const V& x) {
    return V::make([&](int i) -> float32x4_t {
      if constexpr (S == 1) {
        return vrev64q_f32(x.v[i]);
      } else if constexpr (S == 2) {
        return vextq_f32(x.v[i], x.v[i], 2);
      } else {
        return x.v[i ^ (S / 4)];
      }
    });
  }

  static ME_INLINE Ints quantise(const V& x, int8_t* q) {
    Ints r;
    ME_UNROLL
    for (int i = 0; i < 4; ++i) r.v[i] = vcvtnq_s32_f32(x.v[i]);
    const int16x8_t low = vcombine_s16(vqmovn_s32(r.v[0]), vqmovn_s32(r.v[1]));
    const int16x8_t high = vcombine_s16(vqmovn_s32(r.v[2]), vqmovn_s32(r.v[3]));
    vst1q_s8(q, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
    return r;
  }

  // acc[t][r] holds rows 4 * r to 4 * r + 3, as dot[t].v[r] does.
  template <int T>
  static ME_INLINE void load_sums(const Ints* dot, int32x4_t (&acc)[T][4]) {
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      ME_UNROLL
      for (int r = 0; r < 4; ++r) acc[t][r] = dot[t].v[r];
    }
  }
  template <int T>
  static ME_INLINE void store_sums(const int32x4_t (&acc)[T][4], Ints* dot) {
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      ME_UNROLL
      for (int r = 0; r < 4; ++r) dot[t].v[r] = acc[t][r];
    }
  }
};

}  // namespace
}  // namespace mamba_edge
