// What the 256-bit tables share: conversions and quantisation. Only for kernel units; see
// platforms/simd/lanes.h.
#pragma once

#include "platforms/simd/lanes.h"
#include "platforms/x86/dot.h"

namespace mamba_edge {
namespace {
struct Avx2 : xsimd::fma3<xsimd::avx2> {
  static ME_INLINE __m256 fma(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
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
