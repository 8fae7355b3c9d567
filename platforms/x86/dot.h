// Exact integer dot products of one group for the x86 tables without a dot product instruction,
// written once over the width of the registers. Only for kernel units; see platforms/simd/lanes.h.
//
// A register of weights has rows of four consecutive bytes. Its even and its odd bytes, widened to
// 16 bits by a mask and a shift, are multiplied by the even and the odd two of four activations,
// and `pmaddwd` adds the two products of a row: one int32 per row, no shuffles. (`pmaddubsw` would
// take the bytes as they are, but saturates: 2 * 255 * 127 does not fit in 16 bits. Nibbles do fit,
// and use it where it exists.)
#pragma once

#include <immintrin.h>

#include "platforms/simd/lanes.h"

namespace mamba_edge {
namespace {

struct Sse2Registers {
  using Reg = __m128i;
  static constexpr bool kByteMultiply = false;
  static ME_INLINE Reg load(const uint8_t* p) {
    return _mm_load_si128(reinterpret_cast<const Reg*>(p));
  }
  static ME_INLINE Reg set(int32_t v) { return _mm_set1_epi32(v); }
  static ME_INLINE Reg bit_and(Reg a, Reg b) { return _mm_and_si128(a, b); }
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
};

#if defined(__AVX2__)
struct Avx2Registers {
  using Reg = __m256i;
  static constexpr bool kByteMultiply = true;
  static ME_INLINE Reg load(const uint8_t* p) {
    return _mm256_load_si256(reinterpret_cast<const Reg*>(p));
  }
  static ME_INLINE Reg set(int32_t v) { return _mm256_set1_epi32(v); }
  static ME_INLINE Reg bit_and(Reg a, Reg b) { return _mm256_and_si256(a, b); }
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
};
#endif

#if defined(__AVX512BW__)
struct Avx512Registers {
  using Reg = __m512i;
  static constexpr bool kByteMultiply = true;
  static ME_INLINE Reg load(const uint8_t* p) { return _mm512_load_si512(p); }
  static ME_INLINE Reg set(int32_t v) { return _mm512_set1_epi32(v); }
  static ME_INLINE Reg bit_and(Reg a, Reg b) { return _mm512_and_si512(a, b); }
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
};
#endif

ME_INLINE int32_t load_step(const int8_t* q) {
  int32_t v;
  std::memcpy(&v, q, sizeof(v));
  return v;
}

// What kernels_impl.h asks of an Isa, for registers R and IntLanes<Arch> of the same width.
template <typename R, typename Arch>
struct X86Dot {
  using Reg = typename R::Reg;
  using Ints = IntLanes<Arch>;
  static constexpr int kRegs = Ints::kCount;
  static constexpr int kRegBytes = static_cast<int>(sizeof(Reg));
  static constexpr int32_t kZero8 = 128;
  static constexpr int32_t kZero4 = 8;

  static ME_INLINE Ints broadcast_int(int32_t value) { return Ints::broadcast(value); }

  template <int T>
  static ME_INLINE void dot_i8(const uint8_t* w, size_t inputs, const int8_t* const* q, Ints* dot) {
    const Reg low_byte = R::set(0x00ff00ff);
    Reg acc[T][kRegs];
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      ME_UNROLL
      for (int r = 0; r < kRegs; ++r) acc[t][r] = dot[t].v[r];
    }
    for (size_t i = 0; i < inputs; i += kStepInputs, w += kTileRows * kStepInputs) {
      read_ahead(w);
      Reg even[kRegs], odd[kRegs];
      ME_UNROLL
      for (int r = 0; r < kRegs; ++r) {
        const Reg bytes = R::load(w + r * kRegBytes);
        even[r] = R::bit_and(bytes, low_byte);
        odd[r] = R::template shift_right<8>(bytes);
      }
      ME_UNROLL
      for (int t = 0; t < T; ++t) {
        const Reg a = R::set(load_step(q[t] + i));
        const Reg a_even = R::template shift_right_signed<8>(R::template shift_left<8>(a));
        const Reg a_odd = R::template shift_right_signed<8>(a);
        ME_UNROLL
        for (int r = 0; r < kRegs; ++r) {
          acc[t][r] =
              R::add32(acc[t][r], R::add32(R::madd(even[r], a_even), R::madd(odd[r], a_odd)));
        }
      }
    }
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      ME_UNROLL
      for (int r = 0; r < kRegs; ++r) dot[t].v[r] = acc[t][r];
    }
  }

  template <int T>
  static ME_INLINE void dot_i4(const uint8_t* w, size_t inputs, const int8_t* const* q, Ints* dot) {
    const Reg low_nibble = R::set(0x0f0f0f0f);
    const Reg low_byte = R::set(0x00ff00ff);
    const Reg ones = R::set(0x00010001);
    Reg acc[T][kRegs];
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      ME_UNROLL
      for (int r = 0; r < kRegs; ++r) acc[t][r] = dot[t].v[r];
    }
    // Sixteen inputs are two registers' worth of nibbles; their products stay below 4 * 2 * 15 *
    // 127 = 15240 in 16 bits.
    for (size_t i = 0; i < inputs; i += kGroupMultiple, w += kTileRows * kGroupMultiple / 2) {
      read_ahead(w);
      read_ahead(w + kLineBytes);
      ME_UNROLL
      for (int r = 0; r < kRegs; ++r) {
        const Reg first = R::load(w + r * kRegBytes);
        const Reg second = R::load(w + kTileRows * kStepInputs + r * kRegBytes);
        const Reg steps[4] = {R::bit_and(first, low_nibble),
                              R::bit_and(R::template shift_right<4>(first), low_nibble),
                              R::bit_and(second, low_nibble),
                              R::bit_and(R::template shift_right<4>(second), low_nibble)};
        ME_UNROLL
        for (int t = 0; t < T; ++t) {
          if constexpr (R::kByteMultiply) {
            Reg s[4];
            ME_UNROLL
            for (int k = 0; k < 4; ++k)
              s[k] = R::madd_bytes(steps[k], R::set(load_step(q[t] + i + 4 * k)));
            const Reg pairs = R::add16(R::add16(s[0], s[1]), R::add16(s[2], s[3]));
            acc[t][r] = R::add32(acc[t][r], R::madd(pairs, ones));
          } else {
            ME_UNROLL
            for (int k = 0; k < 4; ++k) {
              const Reg a = R::set(load_step(q[t] + i + 4 * k));
              const Reg a_even = R::template shift_right_signed<8>(R::template shift_left<8>(a));
              const Reg a_odd = R::template shift_right_signed<8>(a);
              const Reg even = R::madd(R::bit_and(steps[k], low_byte), a_even);
              const Reg odd = R::madd(R::template shift_right<8>(steps[k]), a_odd);
              acc[t][r] = R::add32(acc[t][r], R::add32(even, odd));
            }
          }
        }
      }
    }
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      ME_UNROLL
      for (int r = 0; r < kRegs; ++r) dot[t].v[r] = acc[t][r];
    }
  }
};

// Stores four registers' worth of int32 in [-128, 127] as sixteen bytes and returns their sum.
ME_INLINE int32_t store_bytes(__m128i a, __m128i b, __m128i c, __m128i d, int8_t* q) {
  _mm_store_si128(reinterpret_cast<__m128i*>(q),
                  _mm_packs_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d)));
  __m128i sum = _mm_add_epi32(_mm_add_epi32(a, b), _mm_add_epi32(c, d));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
  return _mm_cvtsi128_si32(sum);
}

}  // namespace
}  // namespace mamba_edge
