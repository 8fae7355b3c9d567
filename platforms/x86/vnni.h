// Exact integer dot products of one group for the x86 tables that have `vpdpbusd`: four products of
// an unsigned and a signed byte, summed into an int32, for every row of a step in one instruction.
// Written once over the width of the registers. Only for kernel units; see platforms/simd/lanes.h.
//
// A step of int8 weights is taken as it lies. Of int4, for few tokens, the low nibbles are masked out
// and the high ones left where they are, as bytes sixteen times too large, with a sum of their own that
// is shifted right at the end of the group.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "platforms/simd/lanes.h"

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
  static constexpr int32_t kZero4 = 8;

  static ME_INLINE Ints broadcast_int(int32_t value) { return Ints::broadcast(value); }

  static ME_INLINE Reg inputs_of(const int8_t* q) {
    int32_t v;
    std::memcpy(&v, q, sizeof(v));
    return R::set(v);
  }

  // Many tokens, dot[N][T]: N row blocks share the broadcasts of the inputs, without which the loads
  // would take longer than the products. High nibbles are shifted down, which is little for so many
  // products, and leaves registers for more of them.
  template <int T, int N, bool kInt4>
  static ME_INLINE void dot_blocks(const uint8_t* w, size_t block_bytes, size_t inputs,
                                   const int8_t* const* q, Ints* dot) {
    const Reg low_nibble = R::set(0x0f0f0f0f);
    constexpr size_t kSteps = kInt4 ? 2 : 1;  // in 64 bytes
    Reg acc[N][T][kRegs];
    ME_UNROLL
    for (int r = 0; r < N; ++r) {
      ME_UNROLL
      for (int t = 0; t < T; ++t) {
        ME_UNROLL
        for (int k = 0; k < kRegs; ++k) acc[r][t][k] = dot[r * T + t].v[k];
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
          if constexpr (kInt4) {
            weights[r][0] = R::bit_and(bytes, low_nibble);
            weights[r][kSteps - 1] = R::bit_and(R::sixteenth(bytes), low_nibble);
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
    for (int r = 0; r < N; ++r) {
      ME_UNROLL
      for (int t = 0; t < T; ++t) {
        ME_UNROLL
        for (int k = 0; k < kRegs; ++k) dot[r * T + t].v[k] = acc[r][t][k];
      }
    }
  }

  // Steps alternate between two sums where only one token leaves the registers idle.
  template <int T>
  static ME_INLINE void dot_i8(const uint8_t* w, size_t inputs, const int8_t* const* q, Ints* dot) {
    constexpr int kSums = T == 1 ? 2 : 1;
    Reg acc[kSums][T][kRegs];
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      ME_UNROLL
      for (int r = 0; r < kRegs; ++r) {
        acc[0][t][r] = dot[t].v[r];
        if constexpr (kSums > 1) acc[1][t][r] = R::set(0);
      }
    }
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
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      ME_UNROLL
      for (int r = 0; r < kRegs; ++r) {
        dot[t].v[r] = kSums > 1 ? R::add(acc[0][t][r], acc[kSums - 1][t][r]) : acc[0][t][r];
      }
    }
  }

  template <int T>
  static ME_INLINE void dot_i4(const uint8_t* w, size_t inputs, const int8_t* const* q, Ints* dot) {
    if constexpr (T >= 4) {
      dot_blocks<T, 1, true>(w, 0, inputs, q, dot);
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
