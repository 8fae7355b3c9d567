// What the AVX-512 tables share: conversions and quantisation. Only for kernel units; see
// platforms/simd/lanes.h.
#pragma once

#include "platforms/simd/lanes.h"
#include "platforms/x86/dot.h"

namespace mamba_edge {
namespace {
struct Avx512 : xsimd::avx512bw {
  static ME_INLINE __m512 fma(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
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

  static ME_INLINE int32_t quantise(const V& x, int8_t* q) {
    const __m512i a = _mm512_cvtps_epi32(x.v[0]);
    return store_bytes(_mm512_castsi512_si128(a), _mm512_extracti32x4_epi32(a, 1),
                       _mm512_extracti32x4_epi32(a, 2), _mm512_extracti32x4_epi32(a, 3), q);
  }
};

}  // namespace
}  // namespace mamba_edge
