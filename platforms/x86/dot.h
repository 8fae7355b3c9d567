// Exact integer dot products of one group for the x86 tables without a dot product instruction,
// written once over the width of the registers. Only for kernel units; see platforms/simd/lanes.h.
//
// A register of weights has rows of four consecutive bytes. Its even and its odd bytes, widened to
// 16 bits by a mask and a shift, are multiplied by the even and the odd two of four activations,
// and `pmaddwd` adds the two products of a row: one int32 per row, no shuffles. (`pmaddubsw` would
// take the bytes as they are, but saturates: 2 * 255 * 127 does not fit in 16 bits. Numbers of six bits
// and less do, and use it where it exists.)
#pragma once

#include "platforms/simd/planes.h"
#include "platforms/x86/registers.h"

namespace mamba_edge {
namespace {

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

  static ME_INLINE Ints broadcast_int(int32_t value) { return Ints::broadcast(value); }

  using PeakReg = Reg;
  static constexpr uint64_t kPeakProducts = R::kByteMultiply ? kRegBytes : kRegBytes / 2;
  static ME_INLINE Reg peak_fill(int32_t v) { return R::set(v); }
  static ME_INLINE void peak_opaque(Reg& v) { __asm__ volatile("" : "+x"(v)); }
  static ME_INLINE Reg peak_step(Reg sum, Reg& w) {
    peak_opaque(w);
    const Reg pairs = R::kByteMultiply ? R::madd_bytes(w, w) : w;
    return R::add32(sum, R::madd(pairs, R::set(0x00010001)));
  }

  template <int T>
  static ME_INLINE void load_sums(const Ints* dot, Reg (&acc)[T][kRegs]) {
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      ME_UNROLL
      for (int r = 0; r < kRegs; ++r) acc[t][r] = dot[t].v[r];
    }
  }
  template <int T>
  static ME_INLINE void store_sums(const Reg (&acc)[T][kRegs], Ints* dot) {
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      ME_UNROLL
      for (int r = 0; r < kRegs; ++r) dot[t].v[r] = acc[t][r];
    }
  }

  template <int T>
  static ME_INLINE void dot_i8(const uint8_t* w, size_t inputs, const int8_t* const* q, Ints* dot) {
    const Reg low_byte = R::set(0x00ff00ff);
    Reg acc[T][kRegs];
    load_sums(dot, acc);
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
    store_sums(acc, dot);
  }

  // Many tokens: the activations of a group are widened once for N row blocks and the weights once for T
  // tokens. That leaves two multiplications and two additions for kRegBytes products or, with kPairs, one
  // and three, which is faster on ports of which only some multiply (Winograd 1968, "A new algorithm
  // for inner product"): with w and x of inputs 2k (even) and 2k + 1 (odd),
  //   sum w_e x_e + w_o x_o = sum (w_e + x_o) (w_o + x_e) - sum w_e w_o - sum x_e x_o.
  // The second sum is the row's, and start(r, t) has it taken off (pair_sums); the third is the token's.
  template <int T, int N, WeightType kType, bool kPairs, typename Start, typename Finish>
  static ME_INLINE void dot_blocks(const uint8_t* w, size_t block_bytes, size_t inputs,
                                   const int8_t* const* q, const Start& start,
                                   const Finish& finish) {
    static_assert(kType == WeightType::int8);
    alignas(64) int32_t even[T][kMaxGroup / kStepInputs], odd[T][kMaxGroup / kStepInputs];
    Ints own[T];  // minus the third sum
    for (int t = 0; t < T; ++t) {
      Reg sum = R::set(0);
      __m128i rest = _mm_setzero_si128();
      size_t i = 0;
      for (; i + kRegBytes <= inputs; i += kRegBytes) sum = widen<R>(q[t], i, even[t], odd[t], sum);
      for (; i < inputs; i += kGroupMultiple) {
        rest = widen<Sse2Registers>(q[t], i, even[t], odd[t], rest);
      }
      if constexpr (kPairs) {
        own[t] = broadcast_int(-R::total32(sum) - Sse2Registers::total32(rest));
      }
    }
    // The weights of a group lie together, and the next block's somewhere else.
    const auto group_bytes = static_cast<ptrdiff_t>(inputs * kTileRows);
    const auto block = static_cast<ptrdiff_t>(block_bytes);
    for (size_t r = 0; r < N; ++r, w += block) {
      Ints dot[T];
      ME_UNROLL
      for (size_t t = 0; t < T; ++t) {
        dot[t] = start(r, t);
        if constexpr (kPairs) dot[t].add(own[t]);
      }
      dot_wide<T, kPairs>(w, r + 1 < N ? block : group_bytes - (N - 1) * block, inputs, even, odd,
                          dot);
      finish(r, dot);
    }
  }

  // kRegBytes inputs of H, from i on, as pairs of 16 bits, and their products added to `sum`.
  template <typename H>
  static ME_INLINE typename H::Reg widen(const int8_t* q, size_t i, int32_t* even, int32_t* odd,
                                         typename H::Reg sum) {
    const typename H::Reg a = H::load_inputs(q + i);
    const auto e = H::template shift_right_signed<8>(H::template shift_left<8>(a));
    const auto o = H::template shift_right_signed<8>(a);
    H::store(even + i / kStepInputs, e);
    H::store(odd + i / kStepInputs, o);
    return H::add32(sum, H::madd(e, o));
  }

  // A step of weights as numbers of 16 bits.
  static ME_INLINE void widen_weights(const uint8_t* w, Reg (&low)[kRegs], Reg (&high)[kRegs]) {
    ME_UNROLL
    for (int r = 0; r < kRegs; ++r) {
      const Reg bytes = R::load(w + r * kRegBytes);
      low[r] = R::bit_and(bytes, R::set(0x00ff00ff));
      high[r] = R::template shift_right<8>(bytes);
    }
  }

  // Minus the sum of the rows' w_e w_o over a group of stored numbers.
  static ME_INLINE Ints pair_sums(const uint8_t* w, size_t inputs) {
    Ints sums = broadcast_int(0);
    for (size_t i = 0; i < inputs; i += kStepInputs, w += kLineBytes) {
      read_ahead(w);
      Reg low[kRegs], high[kRegs];
      widen_weights(w, low, high);
      ME_UNROLL
      for (int r = 0; r < kRegs; ++r)
        sums.v[r] = R::subtract32(sums.v[r], R::madd(low[r], high[r]));
    }
    return sums;
  }

  // A group of one row block. `next`: from here to what will be read then.
  template <int T, bool kPairs>
  static ME_INLINE void dot_wide(const uint8_t* w, ptrdiff_t next, size_t inputs,
                                 const int32_t (*even)[kMaxGroup / kStepInputs],
                                 const int32_t (*odd)[kMaxGroup / kStepInputs], Ints* dot) {
    Reg acc[T][kRegs];
    load_sums(dot, acc);
    for (size_t i = 0; i < inputs / kStepInputs; ++i, w += kLineBytes) {
      if constexpr (!kPairs) __builtin_prefetch(w + kFarAhead, 0, 2);
      __builtin_prefetch(w + next, 0, 3);
      Reg low[kRegs], high[kRegs];
      widen_weights(w, low, high);
      ME_UNROLL
      for (int t = 0; t < T; ++t) {
        const Reg a = R::set(even[t][i]), b = R::set(odd[t][i]);
        ME_UNROLL
        for (int r = 0; r < kRegs; ++r) {
          acc[t][r] = kPairs ? add_pairs(acc[t][r], low[r], high[r], a, b)
                             : add_products(acc[t][r], low[r], high[r], a, b);
        }
      }
    }
    store_sums(acc, dot);
  }

  // Four steps of one register times T tokens.
  template <int T, uint32_t kBits>
  static ME_INLINE void multiply_steps(const Reg (&steps)[kPartSteps], int r,
                                       const int8_t* const* q, size_t i, Reg (&acc)[T][kRegs]) {
    // Sums of two products each, in 16 bits. Of up to five bits four such sums may be added there
    // (4 * 2 * 31 * 127 = 31496), of six bits two.
    const Reg low_byte = R::set(0x00ff00ff);
    const Reg ones = R::set(0x00010001);
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      if constexpr (R::kByteMultiply) {
        Reg s[kPartSteps];
        ME_UNROLL
        for (size_t k = 0; k < kPartSteps; ++k)
          s[k] = R::madd_bytes(steps[k], R::set(load_step(q[t] + i + kStepInputs * k)));
        const Reg first = R::add16(s[0], s[1]), second = R::add16(s[2], s[3]);
        if constexpr (kBits <= 5) {
          acc[t][r] = R::add32(acc[t][r], R::madd(R::add16(first, second), ones));
        } else {
          acc[t][r] = R::add32(acc[t][r], R::add32(R::madd(first, ones), R::madd(second, ones)));
        }
      } else {
        ME_UNROLL
        for (size_t k = 0; k < kPartSteps; ++k) {
          const Reg a = R::set(load_step(q[t] + i + kStepInputs * k));
          const Reg a_even = R::template shift_right_signed<8>(R::template shift_left<8>(a));
          const Reg a_odd = R::template shift_right_signed<8>(a);
          const Reg even = R::madd(R::bit_and(steps[k], low_byte), a_even);
          const Reg odd = R::madd(R::template shift_right<8>(steps[k]), a_odd);
          acc[t][r] = R::add32(acc[t][r], R::add32(even, odd));
        }
      }
    }
  }

  template <int T, WeightType kType, int kPart>
  static ME_INLINE void multiply_part(const uint8_t* unit, const int8_t* const* q, size_t i,
                                      Reg (&acc)[T][kRegs]) {
    ME_UNROLL
    for (int r = 0; r < kRegs; ++r) {
      Reg steps[kPartSteps];
      unpack_part<R, kType, kPart>(unit + r * kRegBytes, steps);
      multiply_steps<T, properties(kType).bits>(steps, r, q, i, acc);
    }
  }

  template <int T, WeightType kType>
  static ME_INLINE void dot_planes(const uint8_t* w, size_t inputs, const int8_t* const* q,
                                   Ints* dot) {
    using Unit = Planes<kType>;
    Reg acc[T][kRegs];
    load_sums(dot, acc);
    for (size_t i = 0; i < inputs; i += Unit::kInputs, w += Unit::kBytes) {
      read_unit_ahead<kType>(w);
      multiply_part<T, kType, 0>(w, q, i, acc);
      if constexpr (Unit::kParts > 1) multiply_part<T, kType, 1>(w, q, i + kGroupMultiple, acc);
    }
    store_sums(acc, dot);
  }
};

// Stores four registers' worth of int32 in [-128, 127] as sixteen bytes.
ME_INLINE void store_bytes(__m128i a, __m128i b, __m128i c, __m128i d, int8_t* q) {
  _mm_store_si128(reinterpret_cast<__m128i*>(q),
                  _mm_packs_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d)));
}

}  // namespace
}  // namespace mamba_edge
