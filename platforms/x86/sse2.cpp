// Kernels for every x86-64: SSE2.
#include "platforms/tables.h"

#if defined(__SSE2__)
#include "platforms/simd/lanes.h"
#include "platforms/x86/dot.h"

namespace mamba_edge {
namespace {
struct Sse2 : xsimd::sse2 {
  static ME_INLINE __m128 fma(__m128 a, __m128 b, __m128 c) {
    return _mm_add_ps(_mm_mul_ps(a, b), c);
  }
};
}  // namespace
}  // namespace mamba_edge
ME_XSIMD_ARCH(mamba_edge::Sse2, xsimd::sse2);

#include "platforms/simd/kernels_impl.h"

namespace mamba_edge {
namespace {

struct Sse2Isa : X86Dot<Sse2Registers, Sse2> {
  using Arch = Sse2;
  using V = Lanes<Arch>;
  static constexpr int kFloatTokens = 2;
  static constexpr int kIntTokens = 2;

  // Rebiases the exponent; subnormals go through a subtraction that makes them normal, and is
  // exact.
  static ME_INLINE __m128 widen(__m128i h) {  // eight bytes of binary16, zero-extended to 32 bits
    const __m128i rebias = _mm_set1_epi32(112 << 23);
    const __m128i exponent_mask = _mm_set1_epi32(0x0f800000);
    const __m128i sign = _mm_slli_epi32(_mm_and_si128(h, _mm_set1_epi32(0x8000)), 16);
    const __m128i bits = _mm_slli_epi32(_mm_and_si128(h, _mm_set1_epi32(0x7fff)), 13);
    const __m128i exponent = _mm_and_si128(bits, exponent_mask);
    const __m128i special = _mm_cmpeq_epi32(exponent, exponent_mask);
    const __m128i small = _mm_cmpeq_epi32(exponent, _mm_setzero_si128());
    const __m128i normal =
        _mm_add_epi32(_mm_add_epi32(bits, rebias), _mm_and_si128(special, rebias));
    const __m128i base = _mm_set1_epi32(113 << 23);
    const __m128 subnormal =
        _mm_sub_ps(_mm_castsi128_ps(_mm_add_epi32(bits, base)), _mm_castsi128_ps(base));
    const __m128i magnitude = _mm_or_si128(_mm_and_si128(small, _mm_castps_si128(subnormal)),
                                           _mm_andnot_si128(small, normal));
    return _mm_castsi128_ps(_mm_or_si128(magnitude, sign));
  }

  static ME_INLINE V from_f16(const uint16_t* p) {
    const __m128i zero = _mm_setzero_si128();
    const __m128i a = _mm_load_si128(reinterpret_cast<const __m128i*>(p));
    const __m128i b = _mm_load_si128(reinterpret_cast<const __m128i*>(p + 8));
    V r;
    r.v[0] = widen(_mm_unpacklo_epi16(a, zero));
    r.v[1] = widen(_mm_unpackhi_epi16(a, zero));
    r.v[2] = widen(_mm_unpacklo_epi16(b, zero));
    r.v[3] = widen(_mm_unpackhi_epi16(b, zero));
    return r;
  }

  static ME_INLINE V from_i16(const int16_t* p) {
    const __m128i a = _mm_load_si128(reinterpret_cast<const __m128i*>(p));
    const __m128i b = _mm_load_si128(reinterpret_cast<const __m128i*>(p + 8));
    V r;
    r.v[0] = _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(a, a), 16));
    r.v[1] = _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpackhi_epi16(a, a), 16));
    r.v[2] = _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(b, b), 16));
    r.v[3] = _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpackhi_epi16(b, b), 16));
    return r;
  }

  static ME_INLINE int32_t quantise(const V& x, int8_t* q) {
    return store_bytes(_mm_cvtps_epi32(x.v[0]), _mm_cvtps_epi32(x.v[1]), _mm_cvtps_epi32(x.v[2]),
                       _mm_cvtps_epi32(x.v[3]), q);
  }
};

}  // namespace

const KernelTable* sse2_table() {
  static constexpr KernelTable table = Kernels<Sse2Isa>::table("sse2");
  return &table;
}

}  // namespace mamba_edge

#else

const mamba_edge::KernelTable* mamba_edge::sse2_table() { return nullptr; }

#endif
