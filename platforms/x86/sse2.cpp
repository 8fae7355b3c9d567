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

  // Sixteen bits in each 32-bit lane. Below 2^-14 the sum with 1/2 has a last bit worth 2^-24, as a
  // subnormal binary16 number has.
  static ME_INLINE __m128i narrow(__m128 v) {
    const __m128i bits = _mm_castps_si128(v);
    const __m128i magnitude = _mm_and_si128(bits, _mm_set1_epi32(0x7fffffff));
    const __m128i sign = _mm_srli_epi32(_mm_xor_si128(bits, magnitude), 16);
    const __m128i half = _mm_set1_epi32(0x3f000000);
    const __m128i subnormal = _mm_sub_epi32(
        _mm_castps_si128(_mm_add_ps(_mm_castsi128_ps(magnitude), _mm_castsi128_ps(half))), half);
    const __m128i odd = _mm_and_si128(_mm_srli_epi32(magnitude, 13), _mm_set1_epi32(1));
    const __m128i rounded = _mm_add_epi32(magnitude, _mm_add_epi32(odd, _mm_set1_epi32(0xfff)));
    const __m128i normal = _mm_srli_epi32(_mm_sub_epi32(rounded, _mm_set1_epi32(112 << 23)), 13);
    const __m128i is_small = _mm_cmplt_epi32(magnitude, _mm_set1_epi32(0x38800000));
    const __m128i is_large = _mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x477fefff));
    const __m128i is_nan = _mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x7f800000));
    __m128i r =
        _mm_or_si128(_mm_and_si128(is_small, subnormal), _mm_andnot_si128(is_small, normal));
    r = _mm_or_si128(_mm_and_si128(is_large, _mm_set1_epi32(0x7c00)),
                     _mm_andnot_si128(is_large, r));
    r = _mm_or_si128(_mm_or_si128(r, sign), _mm_and_si128(is_nan, _mm_set1_epi32(0x200)));
    return _mm_srai_epi32(_mm_slli_epi32(r, 16), 16);  // so that packing saturates nothing
  }

  static ME_INLINE void to_f16(const V& x, uint16_t* p) {
    _mm_store_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi32(narrow(x.v[0]), narrow(x.v[1])));
    _mm_store_si128(reinterpret_cast<__m128i*>(p + 8),
                    _mm_packs_epi32(narrow(x.v[2]), narrow(x.v[3])));
  }

  // 16-bit integers.
  static ME_INLINE V widen(__m128i a, __m128i b) {
    V r;
    r.v[0] = _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(a, a), 16));
    r.v[1] = _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpackhi_epi16(a, a), 16));
    r.v[2] = _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(b, b), 16));
    r.v[3] = _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpackhi_epi16(b, b), 16));
    return r;
  }

  static ME_INLINE V from_i8(const int8_t* p) {
    const __m128i q = _mm_load_si128(reinterpret_cast<const __m128i*>(p));
    return widen(_mm_srai_epi16(_mm_unpacklo_epi8(q, q), 8),
                 _mm_srai_epi16(_mm_unpackhi_epi8(q, q), 8));
  }

  static ME_INLINE V from_i16(const int16_t* p) {
    return widen(_mm_load_si128(reinterpret_cast<const __m128i*>(p)),
                 _mm_load_si128(reinterpret_cast<const __m128i*>(p + 8)));
  }

  template <int S>
  static ME_INLINE V swap(const V& x) {
    return V::make([&](int i) {
      if constexpr (S < 4) {
        const __m128 v = x.v[i];
        return _mm_shuffle_ps(v, v, S == 1 ? 0xb1 : 0x4e);
      } else {
        return x.v[i ^ (S / 4)];
      }
    });
  }

  static ME_INLINE V::Ints quantise(const V& x, int8_t* q) {
    V::Ints r;
    ME_UNROLL
    for (int i = 0; i < 4; ++i) r.v[i] = _mm_cvtps_epi32(x.v[i]);
    store_bytes(r.v[0], r.v[1], r.v[2], r.v[3], q);
    return r;
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
