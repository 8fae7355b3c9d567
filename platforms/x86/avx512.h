// What the AVX-512 tables share: conversions and quantisation. Only for kernel units; see
// platforms/simd/lanes.h.
#pragma once

#include "platforms/simd/lanes.h"
#include "platforms/x86/dot.h"

namespace mamba_edge {
namespace {
// 2^(i / 32).
alignas(64) constexpr float kPowers[32] = {
    0x1.000000p+0f, 0x1.059b0ep+0f, 0x1.0b5586p+0f, 0x1.11301ep+0f, 0x1.172b84p+0f, 0x1.1d4874p+0f,
    0x1.2387a6p+0f, 0x1.29e9e0p+0f, 0x1.306fe0p+0f, 0x1.371a74p+0f, 0x1.3dea64p+0f, 0x1.44e086p+0f,
    0x1.4bfdaep+0f, 0x1.5342b6p+0f, 0x1.5ab07ep+0f, 0x1.6247ecp+0f, 0x1.6a09e6p+0f, 0x1.71f75ep+0f,
    0x1.7a1148p+0f, 0x1.82589ap+0f, 0x1.8ace54p+0f, 0x1.93737cp+0f, 0x1.9c4918p+0f, 0x1.a5503cp+0f,
    0x1.ae89fap+0f, 0x1.b7f770p+0f, 0x1.c199bep+0f, 0x1.cb720ep+0f, 0x1.d5818ep+0f, 0x1.dfc974p+0f,
    0x1.ea4afap+0f, 0x1.f50766p+0f};

struct Avx512 : xsimd::avx512bw {
  static ME_INLINE __m512 fma(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
  static ME_INLINE __m512 raise_or_zero(__m512 p, __m512 shifted, float least) {
    const __mmask16 large = _mm512_cmp_ps_mask(shifted, _mm512_set1_ps(least), _CMP_NLT_US);
    const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_maskz_add_epi32(large, _mm512_castps_si512(p), power));
  }
  // As decay_lanes in platforms/simd/lanes.h, with a power of 2^(1/32) from a table that is looked up in
  // registers, which leaves a polynomial of two terms.
  static ME_INLINE __m512 decay(__m512 x, __m512 a) {
    const __m512 round = _mm512_set1_ps(0x1.8p18f);  // a sum with it has a last bit worth 1/32
    const __m512 shifted = _mm512_fmadd_ps(x, a, round);
    const __m512 n = _mm512_sub_ps(shifted, round);
    const __m512 f = _mm512_fmsub_ps(x, a, n);  // |f| <= 1/64
    const __m512 power = _mm512_permutex2var_ps(
        _mm512_load_ps(kPowers), _mm512_castps_si512(shifted), _mm512_load_ps(kPowers + kLanes));
    // (2^f - 1) / f, interpolated at Chebyshev points; less than 2^-24 of 2^f off.
    const __m512 q =
        _mm512_fmadd_ps(_mm512_set1_ps(0x1.ebfcccp-3f), f, _mm512_set1_ps(0x1.62e584p-1f));
    const __m512 p = _mm512_fmadd_ps(_mm512_mul_ps(power, f), q, power);
    const __mmask16 normal = _mm512_cmp_ps_mask(n, _mm512_set1_ps(-125.5f), _CMP_NLT_US);
    return _mm512_maskz_scalef_ps(normal, p, n);  // p * 2^floor(n)
  }
  // a / b for normal b > 0, within 2 ulp, by an estimate of 1 / b and one Newton step; 0 for b from 2^126 on,
  // whose inverse is no normal number.
  static ME_INLINE __m512 div(__m512 a, __m512 b) {
    const __mmask16 normal = _mm512_cmp_ps_mask(b, _mm512_set1_ps(0x1p126f), _CMP_NGE_UQ);
    const __m512 estimate = _mm512_rcp14_ps(b);
    const __m512 off = _mm512_fnmadd_ps(b, estimate, _mm512_set1_ps(1.0f));
    return _mm512_maskz_mul_ps(normal, a, _mm512_fmadd_ps(off, estimate, estimate));
  }
};
}  // namespace
}  // namespace mamba_edge
ME_XSIMD_ARCH(mamba_edge::Avx512, xsimd::avx512bw);

#include "platforms/simd/kernels_impl.h"

namespace mamba_edge {
namespace {

struct Avx512Lanes {
  using Arch = Avx512;
  using V = Lanes<Arch>;
  static constexpr int kFloatTokens = 8;
  static constexpr int kIntTokens = 8;

  static ME_INLINE V from_f16(const uint16_t* p) {
    V r;
    r.v[0] = _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(p)));
    return r;
  }

  static ME_INLINE void to_f16(const V& x, uint16_t* p) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(p),
                       _mm512_cvtps_ph(x.v[0], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  static ME_INLINE V from_i8(const int8_t* p) {
    V r;
    r.v[0] = _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(p))));
    return r;
  }

  static ME_INLINE V from_i16(const int16_t* p) {
    const __m256i a = _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
    V r;
    r.v[0] = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(a));
    return r;
  }

  template <int S>
  static ME_INLINE V swap(const V& x) {
    V r;
    if constexpr (S < 4) {
      r.v[0] = _mm512_permute_ps(x.v[0], S == 1 ? 0xb1 : 0x4e);
    } else {
      r.v[0] = _mm512_shuffle_f32x4(x.v[0], x.v[0], S == 4 ? 0xb1 : 0x4e);
    }
    return r;
  }

  static ME_INLINE V::Ints quantise(const V& x, int8_t* q) {
    V::Ints r;
    r.v[0] = _mm512_cvtps_epi32(x.v[0]);
    _mm_store_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtsepi32_epi8(r.v[0]));
    return r;
  }
};

}  // namespace
}  // namespace mamba_edge
