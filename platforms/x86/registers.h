// Registers of bytes and their operations, for integer dot products on x86, one struct per width. load and
// store are of aligned data, load_inputs is of activations, which a group of 16 does not align. Only
// for kernel units; see platforms/simd/lanes.h.
#pragma once

#include <immintrin.h>

#include "platforms/simd/lanes.h"

namespace mamba_edge {
namespace {

// Fields of bytes (platforms/simd/planes.h). There are no shifts of bytes: what 16-bit shifts bring over
// from a neighbour is masked out.
template <typename R>
struct ByteFields {
  template <int kBits, int kAt, typename Reg>
  static ME_INLINE Reg field(Reg line) {
    return R::bit_and(move<kAt, 0>(line), mask<kBits, 0>());
  }
  template <int kLow, int kLowAt, int kHigh, int kHighAt, typename Reg>
  static ME_INLINE Reg join(Reg low, Reg high) {
    return R::or_and(field<kLow, kLowAt>(low), move<kHighAt, kLow>(high), mask<kHigh, kLow>());
  }
  template <int kLowAt, int kHighAt, typename Reg>
  static ME_INLINE void join_pair(Reg low, Reg high, Reg& first, Reg& second) {
    const Reg both = R::or_and(R::bit_and(move<kLowAt, 0>(low), R::set(0x33333333)),
                               move<kHighAt, 2>(high), R::set(0x44444444));
    first = field<4, 0>(both);
    second = field<4, 4>(both);
  }

 private:
  template <int kBits, int kAt>
  static ME_INLINE auto mask() {
    return R::set(((1 << kBits) - 1) * (0x01010101 << kAt));
  }
  template <int kFrom, int kTo, typename Reg>
  static ME_INLINE Reg move(Reg bits) {
    if constexpr (kFrom > kTo) return R::template shift_right<kFrom - kTo>(bits);
    if constexpr (kFrom < kTo) return R::template shift_left<kTo - kFrom>(bits);
    return bits;
  }
};

struct Sse2Registers : ByteFields<Sse2Registers> {
  using Reg = __m128i;
  static constexpr bool kByteMultiply = false;
  static ME_INLINE Reg load(const uint8_t* p) {
    return _mm_load_si128(reinterpret_cast<const Reg*>(p));
  }
  static ME_INLINE Reg load_inputs(const int8_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const Reg*>(p));
  }
  static ME_INLINE void store(void* p, Reg v) { _mm_store_si128(static_cast<Reg*>(p), v); }
  static ME_INLINE Reg set(int32_t v) { return _mm_set1_epi32(v); }
  static ME_INLINE Reg bit_and(Reg a, Reg b) { return _mm_and_si128(a, b); }
  static ME_INLINE Reg or_and(Reg a, Reg b, Reg c) { return _mm_or_si128(a, bit_and(b, c)); }
  template <int N>
  static ME_INLINE Reg shift_right(Reg a) {
    return _mm_srli_epi16(a, N);
  }
  template <int N>
  static ME_INLINE Reg shift_right_signed(Reg a) {
    return _mm_srai_epi16(a, N);
  }
  template <int N>
  static ME_INLINE Reg shift_left(Reg a) {
    return _mm_slli_epi16(a, N);
  }
  static ME_INLINE Reg madd(Reg a, Reg b) { return _mm_madd_epi16(a, b); }
  static ME_INLINE Reg madd_bytes(Reg a, Reg) { return a; }
  static ME_INLINE Reg add16(Reg a, Reg b) { return _mm_add_epi16(a, b); }
  static ME_INLINE Reg add32(Reg a, Reg b) { return _mm_add_epi32(a, b); }
  static ME_INLINE Reg subtract32(Reg a, Reg b) { return _mm_sub_epi32(a, b); }
  static ME_INLINE int32_t total32(Reg a) {
    a = add32(a, _mm_shuffle_epi32(a, 0x4e));
    return _mm_cvtsi128_si32(add32(a, _mm_shuffle_epi32(a, 0xb1)));
  }
};

#if defined(__AVX2__)
// The order of the instructions is fixed here: for intrinsics gcc 12 chooses one, and copies sums, which takes a
// sixth longer.

// sum + low * even + high * odd of numbers of 16 bits, two products in each int32.
template <typename Reg>
ME_INLINE Reg add_products(Reg sum, Reg low, Reg high, Reg even, Reg odd) {
  Reg products;
  __asm__(
      "vpmaddwd %4, %2, %1\n\tvpaddd %1, %0, %0\n\t"
      "vpmaddwd %5, %3, %1\n\tvpaddd %1, %0, %0"
      : "+&v"(sum), "=&v"(products)
      : "v"(low), "v"(high), "v"(even), "v"(odd));
  return sum;
}

// sum + (low + odd) * (high + even), that is, with low * high and even * odd on top.
template <typename Reg>
ME_INLINE Reg add_pairs(Reg sum, Reg low, Reg high, Reg even, Reg odd) {
  Reg first, second;
  __asm__(
      "vpaddw %6, %3, %1\n\tvpaddw %5, %4, %2\n\t"
      "vpmaddwd %1, %2, %1\n\tvpaddd %1, %0, %0"
      : "+v"(sum), "=&v"(first), "=&v"(second)
      : "v"(low), "v"(high), "v"(even), "v"(odd));
  return sum;
}

struct Avx2Registers : ByteFields<Avx2Registers> {
  using Reg = __m256i;
  static constexpr bool kByteMultiply = true;
  static ME_INLINE Reg load(const uint8_t* p) {
    return _mm256_load_si256(reinterpret_cast<const Reg*>(p));
  }
  static ME_INLINE Reg load_inputs(const int8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const Reg*>(p));
  }
  static ME_INLINE void store(void* p, Reg v) { _mm256_store_si256(static_cast<Reg*>(p), v); }
  static ME_INLINE Reg set(int32_t v) { return _mm256_set1_epi32(v); }
  static ME_INLINE Reg bit_and(Reg a, Reg b) { return _mm256_and_si256(a, b); }
  static ME_INLINE Reg or_and(Reg a, Reg b, Reg c) { return _mm256_or_si256(a, bit_and(b, c)); }
  template <int N>
  static ME_INLINE Reg shift_right(Reg a) {
    return _mm256_srli_epi16(a, N);
  }
  template <int N>
  static ME_INLINE Reg shift_right_signed(Reg a) {
    return _mm256_srai_epi16(a, N);
  }
  template <int N>
  static ME_INLINE Reg shift_left(Reg a) {
    return _mm256_slli_epi16(a, N);
  }
  static ME_INLINE Reg madd(Reg a, Reg b) { return _mm256_madd_epi16(a, b); }
  static ME_INLINE Reg madd_bytes(Reg a, Reg b) { return _mm256_maddubs_epi16(a, b); }
  static ME_INLINE Reg add16(Reg a, Reg b) { return _mm256_add_epi16(a, b); }
  static ME_INLINE Reg add32(Reg a, Reg b) { return _mm256_add_epi32(a, b); }
  static ME_INLINE Reg subtract32(Reg a, Reg b) { return _mm256_sub_epi32(a, b); }
  static ME_INLINE int32_t total32(Reg a) {
    return Sse2Registers::total32(
        _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1)));
  }
};
#endif

#if defined(__AVX512BW__)
struct Avx512Registers : ByteFields<Avx512Registers> {
  using Reg = __m512i;
  static constexpr bool kByteMultiply = true;
  static ME_INLINE Reg load(const uint8_t* p) { return _mm512_load_si512(p); }
  static ME_INLINE Reg load_inputs(const int8_t* p) { return _mm512_loadu_si512(p); }
  static ME_INLINE void store(void* p, Reg v) { _mm512_store_si512(p, v); }
  static ME_INLINE Reg set(int32_t v) { return _mm512_set1_epi32(v); }
  static ME_INLINE Reg bit_and(Reg a, Reg b) { return _mm512_and_si512(a, b); }
  static ME_INLINE Reg or_and(Reg a, Reg b, Reg c) {
    return _mm512_ternarylogic_epi32(a, b, c, 0xf8);
  }
  template <int N>
  static ME_INLINE Reg shift_right(Reg a) {
    return _mm512_srli_epi16(a, N);
  }
  template <int N>
  static ME_INLINE Reg shift_right_signed(Reg a) {
    return _mm512_srai_epi16(a, N);
  }
  template <int N>
  static ME_INLINE Reg shift_left(Reg a) {
    return _mm512_slli_epi16(a, N);
  }
  static ME_INLINE Reg madd(Reg a, Reg b) { return _mm512_madd_epi16(a, b); }
  static ME_INLINE Reg madd_bytes(Reg a, Reg b) { return _mm512_maddubs_epi16(a, b); }
  static ME_INLINE Reg add16(Reg a, Reg b) { return _mm512_add_epi16(a, b); }
  static ME_INLINE Reg add32(Reg a, Reg b) { return _mm512_add_epi32(a, b); }
  static ME_INLINE Reg subtract32(Reg a, Reg b) { return _mm512_sub_epi32(a, b); }
  static ME_INLINE int32_t total32(Reg a) {
    return Avx2Registers::total32(
        _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1)));
  }
};
#endif

}  // namespace
}  // namespace mamba_edge
