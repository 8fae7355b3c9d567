// Exact integer dot products of one group for the x86 tables that have `vpdpbusd`: four products of
// an unsigned and a signed byte, summed into an int32, for every row of a step in one instruction.
// Written once over the width of the registers. Only for kernel units; see platforms/simd/lanes.h.
//
// A step of int8 weights is taken as it lies, other types are unpacked. Only of int4, for few tokens,
// the low nibbles are masked out and the high ones left where they are, as bytes sixteen times too
// large, with a sum of their own that is shifted right at the end of the group. (With the four and
// more sums that this takes for two planes, the ends of the groups would take longer than the shifts.)
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "platforms/simd/planes.h"

namespace mamba_edge {
namespace {

// R: a register and its operations; Arch: what IntLanes is made of, of the same width.
template <typename R, typename Arch>
struct VnniDot {
  using Reg = typename R::Reg;
  using Ints = IntLanes<Arch>;
  static constexpr int kRegs = Ints::kCount;
  static constexpr int kRegBytes = static_cast<int>(sizeof(Reg));
  static constexpr int32_t kZero8 = 128;

  static ME_INLINE Ints broadcast_int(int32_t value) { return Ints::broadcast(value); }

  using PeakReg = Reg;
  static constexpr uint64_t kPeakProducts = kRegBytes;
  static ME_INLINE Reg peak_fill(int32_t v) { return R::set(v); }
  static ME_INLINE void peak_opaque(Reg& v) { __asm__ volatile("" : "+x"(v)); }
  static ME_INLINE Reg peak_step(Reg sum, Reg& w) {
    peak_opaque(w);
    return R::dot(sum, w, w);
  }

  static ME_INLINE Reg inputs_of(const int8_t* q) {
    int32_t v;
    std::memcpy(&v, q, sizeof(v));
    return R::set(v);
  }

  // Many tokens: N row blocks share the broadcasts of the inputs, without which the loads would take
  // longer than the products. High nibbles are shifted down, which is little for so many products, and
  // leaves registers for more of them.
  template <int T, int N, WeightType kType, bool kPairs, typename Start, typename Finish>
  static ME_INLINE void dot_blocks(const uint8_t* w, size_t block_bytes, size_t inputs,
                                   const int8_t* const* q, const Start& start,
                                   const Finish& finish) {
    static_assert(!kPairs);
    constexpr int kBits = properties(kType).bits;
    constexpr size_t kSteps = 8 / kBits;  // in 64 bytes: 1 or 2
    Reg acc[N][T][kRegs];
    ME_UNROLL
    for (size_t t = 0; t < T; ++t) {
      const Ints first = start(0, t);  // the same for all row blocks
      ME_UNROLL
      for (int r = 0; r < N; ++r) {
        ME_UNROLL
        for (int k = 0; k < kRegs; ++k) acc[r][t][k] = first.v[k];
      }
    }
    for (size_t i = 0; i < inputs; i += kSteps * kStepInputs, w += kLineBytes) {
      ME_UNROLL
      for (int k = 0; k < kRegs; ++k) {
        Reg weights[N][kSteps];
        ME_UNROLL
        for (size_t r = 0; r < N; ++r) {
          const uint8_t* line = w + r * block_bytes;
          if (k == 0) read_ahead(line);
          const Reg bytes = R::load(line + k * kRegBytes);
          if constexpr (kSteps > 1) {
            weights[r][0] = R::template field<kBits, 0>(bytes);
            weights[r][1] = R::template field<kBits, kBits>(bytes);
          } else {
            weights[r][0] = bytes;
          }
        }
        ME_UNROLL
        for (size_t step = 0; step < kSteps; ++step) {
          ME_UNROLL
          for (int t = 0; t < T; ++t) {
            const Reg a = inputs_of(q[t] + i + step * kStepInputs);
            ME_UNROLL
            for (int r = 0; r < N; ++r) acc[r][t][k] = R::dot(acc[r][t][k], weights[r][step], a);
          }
        }
      }
    }
    ME_UNROLL
    for (size_t r = 0; r < N; ++r) {
      Ints dot[T];
      ME_UNROLL
      for (int t = 0; t < T; ++t) {
        ME_UNROLL
        for (int k = 0; k < kRegs; ++k) dot[t].v[k] = acc[r][t][k];
      }
      finish(r, dot);
    }
  }

  // One sum or two, which are added at the end. Steps alternate between two where only one token
  // leaves the registers idle.
  template <int kSums, int T>
  static ME_INLINE void load_sums(const Ints* dot, Reg (&acc)[kSums][T][kRegs]) {
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      ME_UNROLL
      for (int r = 0; r < kRegs; ++r) {
        acc[0][t][r] = dot[t].v[r];
        if constexpr (kSums > 1) acc[1][t][r] = R::set(0);
      }
    }
  }
  template <int kSums, int T>
  static ME_INLINE void store_sums(const Reg (&acc)[kSums][T][kRegs], Ints* dot) {
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      ME_UNROLL
      for (int r = 0; r < kRegs; ++r) {
        dot[t].v[r] = kSums > 1 ? R::add(acc[0][t][r], acc[kSums - 1][t][r]) : acc[0][t][r];
      }
    }
  }

  template <int T>
  static ME_INLINE void dot_i8(const uint8_t* w, size_t inputs, const int8_t* const* q, Ints* dot) {
    constexpr int kSums = T == 1 ? 2 : 1;
    Reg acc[kSums][T][kRegs];
    load_sums(dot, acc);
    for (size_t i = 0; i < inputs; i += 2 * kStepInputs, w += 2 * kTileRows * kStepInputs) {
      read_ahead(w);
      read_ahead(w + kLineBytes);
      ME_UNROLL
      for (int step = 0; step < 2; ++step) {
        ME_UNROLL
        for (int r = 0; r < kRegs; ++r) {
          const Reg bytes = R::load(w + step * 64 + r * kRegBytes);
          ME_UNROLL
          for (int t = 0; t < T; ++t) {
            Reg& sum = acc[step % kSums][t][r];
            sum = R::dot(sum, bytes, inputs_of(q[t] + i + 4 * step));
          }
        }
      }
    }
    store_sums(acc, dot);
  }

  // Four steps times T tokens.
  template <int T, WeightType kType, int kPart, int kSums>
  static ME_INLINE void multiply_part(const uint8_t* unit, const int8_t* const* q, size_t i,
                                      Reg (&acc)[kSums][T][kRegs]) {
    ME_UNROLL
    for (int r = 0; r < kRegs; ++r) {
      Reg steps[kPartSteps];
      unpack_part<R, kType, kPart>(unit + r * kRegBytes, steps);
      ME_UNROLL
      for (size_t step = 0; step < kPartSteps; ++step) {
        ME_UNROLL
        for (int t = 0; t < T; ++t) {
          Reg& sum = acc[step % kSums][t][r];
          sum = R::dot(sum, steps[step], inputs_of(q[t] + i + step * kStepInputs));
        }
      }
    }
  }

  template <int T, WeightType kType>
  static ME_INLINE void dot_planes(const uint8_t* w, size_t inputs, const int8_t* const* q,
                                   Ints* dot) {
    if constexpr (kType == WeightType::int4) {
      dot_i4<T>(w, inputs, q, dot);
      return;
    }
    using Unit = Planes<kType>;
    constexpr int kSums = T == 1 ? 2 : 1;
    Reg acc[kSums][T][kRegs];
    load_sums(dot, acc);
    for (size_t i = 0; i < inputs; i += Unit::kInputs, w += Unit::kBytes) {
      read_unit_ahead<kType>(w);
      multiply_part<T, kType, 0>(w, q, i, acc);
      if constexpr (Unit::kParts > 1) multiply_part<T, kType, 1>(w, q, i + kGroupMultiple, acc);
    }
    store_sums(acc, dot);
  }

  template <int T>
  static ME_INLINE void dot_i4(const uint8_t* w, size_t inputs, const int8_t* const* q, Ints* dot) {
    if constexpr (T >= 4) {
      dot_blocks<T, 1, WeightType::int4, false>(
          w, 0, inputs, q, [&](size_t, size_t t) { return dot[t]; },
          [&](size_t, const Ints(&sums)[T]) { std::copy_n(sums, T, dot); });
      return;
    }
    const Reg low_nibble = R::set(0x0f0f0f0f);
    Reg low[T][kRegs], high[T][kRegs];
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      ME_UNROLL
      for (int r = 0; r < kRegs; ++r) {
        low[t][r] = dot[t].v[r];
        high[t][r] = R::set(0);
      }
    }
    for (size_t i = 0; i < inputs; i += 4 * kStepInputs, w += 2 * kTileRows * kStepInputs) {
      read_ahead(w);
      read_ahead(w + kLineBytes);
      ME_UNROLL
      for (int step = 0; step < 2; ++step) {
        ME_UNROLL
        for (int r = 0; r < kRegs; ++r) {
          const Reg bytes = R::load(w + step * 64 + r * kRegBytes);
          const Reg first = R::bit_and(bytes, low_nibble), second = R::and_not(low_nibble, bytes);
          ME_UNROLL
          for (int t = 0; t < T; ++t) {
            low[t][r] = R::dot(low[t][r], first, inputs_of(q[t] + i + 8 * step));
            high[t][r] = R::dot(high[t][r], second, inputs_of(q[t] + i + 8 * step + 4));
          }
        }
      }
    }
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      ME_UNROLL
      for (int r = 0; r < kRegs; ++r) dot[t].v[r] = R::add(low[t][r], R::sixteenth(high[t][r]));
    }
  }
};

}  // namespace
}  // namespace mamba_edge
