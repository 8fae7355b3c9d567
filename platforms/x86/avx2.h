// What the 256-bit tables share: conversions and quantisation. Only for kernel units; see
// platforms/simd/lanes.h.
#pragma once

#include "platforms/simd/lanes.h"
#include "platforms/x86/dot.h"

namespace mamba_edge {
namespace {
// The bits of 2^(i / 8), less i << 20.
alignas(32) constexpr int32_t kPowers[8] = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,
                                            0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};

struct Avx2 : xsimd::fma3<xsimd::avx2> {
  static ME_INLINE __m256 fma(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }

  // As decay_lanes in platforms/simd/lanes.h, with a power of 2^(1/8) from a table that is looked up in a
  // register, which leaves a polynomial of three terms.
  static ME_INLINE __m256 decay(__m256 x, __m256 a) {
    const __m256 round = _mm256_set1_ps(0x1.8p20f);  // a sum with it has a last bit worth 1/8
    const __m256 shifted = _mm256_fmadd_ps(x, a, round);
    const __m256 f = _mm256_fmadd_ps(x, a, _mm256_sub_ps(round, shifted));  // |f| <= 1/16
    // Three bits of the sum choose the power, and the ones above are an exponent; the table has taken
    // off what the three add to the power's own bits.
    const __m256i bits = _mm256_castps_si256(shifted);
    const __m256i power =
        _mm256_add_epi32(_mm256_permutevar8x32_epi32(
                             _mm256_load_si256(reinterpret_cast<const __m256i*>(kPowers)), bits),
                         _mm256_slli_epi32(bits, 20));
    const __m256 normal = _mm256_cmp_ps(shifted, _mm256_set1_ps(0x1.8p20f - 125.5f), _CMP_NLT_US);
    const __m256 s = _mm256_and_ps(_mm256_castsi256_ps(power), normal);
    // (2^f - 1) / f, the smallest largest error; less than 2^-25 of 2^f off.
    __m256 q = _mm256_fmadd_ps(_mm256_set1_ps(0x1.c6a004p-5f), f, _mm256_set1_ps(0x1.ec0c32p-3f));
    q = _mm256_fmadd_ps(q, f, _mm256_set1_ps(0x1.62e432p-1f));
    return _mm256_fmadd_ps(_mm256_mul_ps(s, f), q, s);
  }
};
}  // namespace
}  // namespace mamba_edge
ME_XSIMD_ARCH(mamba_edge::Avx2, xsimd::fma3<xsimd::avx2>);

#include "platforms/simd/kernels_impl.h"

namespace mamba_edge {
namespace {

struct Avx2Lanes {
  using Arch = Avx2;
  using V = Lanes<Arch>;
  static constexpr int kFloatTokens = 4;
  static constexpr int kIntTokens = 4;

  static ME_INLINE V from_f16(const uint16_t* p) {
    V r;
    r.v[0] = _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
    r.v[1] = _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(p + 8)));
    return r;
  }

  static ME_INLINE void to_f16(const V& x, uint16_t* p) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    _mm_store_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.v[0], kNearest));
    _mm_store_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.v[1], kNearest));
  }

  static ME_INLINE V from_i8(const int8_t* p) {
    const __m128i a = _mm_load_si128(reinterpret_cast<const __m128i*>(p));
    V r;
    r.v[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(a));
    r.v[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(a, 8)));
    return r;
  }

  static ME_INLINE V from_i16(const int16_t* p) {
    const __m128i a = _mm_load_si128(reinterpret_cast<const __m128i*>(p));
    const __m128i b = _mm_load_si128(reinterpret_cast<const __m128i*>(p + 8));
    V r;
    r.v[0] = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(a));
    r.v[1] = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(b));
    return r;
  }

  template <int S>
  static ME_INLINE V swap(const V& x) {
    return V::make([&](int i) {
      const __m256 v = x.v[i];
      if constexpr (S < 4) {
        return _mm256_permute_ps(v, S == 1 ? 0xb1 : 0x4e);
      } else if constexpr (S == 4) {
        return _mm256_permute2f128_ps(v, v, 1);
      } else {
        return x.v[i ^ 1];
      }
    });
  }

  static ME_INLINE V::Ints quantise(const V& x, int8_t* q) {
    const __m256i a = _mm256_cvtps_epi32(x.v[0]);
    const __m256i b = _mm256_cvtps_epi32(x.v[1]);
    store_bytes(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1),
                _mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1), q);
    return {{a, b}};
  }
};

}  // namespace
}  // namespace mamba_edge
