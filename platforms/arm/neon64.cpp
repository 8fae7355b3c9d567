// Kernels for every 64-bit Arm: NEON.
#include "platforms/tables.h"

#if defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>

#include "platforms/simd/lanes.h"

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

#include "platforms/simd/kernels_impl.h"

namespace mamba_edge {
namespace {

struct Neon64Isa {
  using Arch = Neon64;
  using V = Lanes<Arch>;
  using Ints = V::Ints;
  static constexpr int kFloatTokens = 4;
  static constexpr int kIntTokens = 2;
  static constexpr int32_t kZero8 = 0;  // the dots below take the zero off the weights themselves
  static constexpr int32_t kZero4 = 0;

  static ME_INLINE Ints broadcast_int(int32_t value) { return Ints::broadcast(value); }

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

  static ME_INLINE V from_i16(const int16_t* p) {
    const int16x8_t a = vld1q_s16(p), b = vld1q_s16(p + 8);
    V r;
    r.v[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(a)));
    r.v[1] = vcvtq_f32_s32(vmovl_high_s16(a));
    r.v[2] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(b)));
    r.v[3] = vcvtq_f32_s32(vmovl_high_s16(b));
    return r;
  }

  static ME_INLINE int32_t quantise(const V& x, int8_t* q) {
    const int32x4_t a = vcvtnq_s32_f32(x.v[0]), b = vcvtnq_s32_f32(x.v[1]);
    const int32x4_t c = vcvtnq_s32_f32(x.v[2]), d = vcvtnq_s32_f32(x.v[3]);
    const int16x8_t low = vcombine_s16(vqmovn_s32(a), vqmovn_s32(b));
    const int16x8_t high = vcombine_s16(vqmovn_s32(c), vqmovn_s32(d));
    vst1q_s8(q, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
    return vaddvq_s32(vaddq_s32(vaddq_s32(a, b), vaddq_s32(c, d)));
  }

  static ME_INLINE int8x16_t step(const int8_t* q) {
    int32_t v;
    std::memcpy(&v, q, sizeof(v));
    return vreinterpretq_s8_s32(vdupq_n_s32(v));
  }

  // pairs[t][2 * r + half]: per row the sums of its first and of its second two products.
  template <int T>
  static ME_INLINE void finish(const int32x4_t (&pairs)[T][8], Ints* dot) {
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      ME_UNROLL
      for (int r = 0; r < 4; ++r) {
        dot[t].v[r] = vaddq_s32(dot[t].v[r], vpaddq_s32(pairs[t][2 * r], pairs[t][2 * r + 1]));
      }
    }
  }

  // Two steps at a time: two products of at most 128 * 127 fit in 16 bits.
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
    finish<T>(pairs, dot);
  }

  template <int T>
  static ME_INLINE void dot_i4(const uint8_t* w, size_t inputs, const int8_t* const* q, Ints* dot) {
    const uint8x16_t low_nibble = vdupq_n_u8(15);
    const int8x16_t zero = vdupq_n_s8(8);
    int32x4_t pairs[T][8];
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      ME_UNROLL
      for (int k = 0; k < 8; ++k) pairs[t][k] = vdupq_n_s32(0);
    }
    for (size_t i = 0; i < inputs; i += 2 * kStepInputs, w += kTileRows * kStepInputs) {
      ME_UNROLL
      for (int r = 0; r < 4; ++r) {
        const uint8x16_t bytes = vld1q_u8(w + 16 * r);
        const int8x16_t first = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(bytes, low_nibble)), zero);
        const int8x16_t second = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4)), zero);
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
    finish<T>(pairs, dot);
  }
};

}  // namespace

const KernelTable* neon_table() {
  static constexpr KernelTable table = Kernels<Neon64Isa>::table("neon");
  return &table;
}

}  // namespace mamba_edge

#else

const mamba_edge::KernelTable* mamba_edge::neon_table() { return nullptr; }

#endif
