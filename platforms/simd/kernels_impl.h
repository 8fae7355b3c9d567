// Every kernel of platforms/kernels.h, written once over 16 lanes. Included by one translation unit
// per table.
//
// `Isa` supplies what differs:
//
//   Arch: what Lanes<Arch> is made of.
//   V from_f16(p), V from_i16(p), V from_i8(p): sixteen binary16 numbers (exact) or integers.
//   to_f16(v, p): rounds to nearest even; what is too large becomes infinity.
//   Ints quantise(x, q): sixteen values of magnitude <= 127, rounded, and stored as bytes.
//   V swap<S>(x): lane i takes that of lane i ^ S; S = 1, 2, 4, 8.
//   Ints broadcast_int(v).
//   dot_i8<T>(w, inputs, q, dot), dot_planes<T, kType>: adds to dot[t][row] the sum of weight *
//     q[t][i] over one group of inputs, where a stored number counts as its value plus the type's
//     zero (dot_i8: kZero8).
//   int_blocks(type), dot_blocks<T, R, kType, kPairs>(w, block_bytes, inputs, q, start, finish): optional, the same for kIntTokens tokens and R row blocks, int_blocks of them (0: not for this
//     type) or, for what is left, a smaller power of two. int8 has a zero of 128 here. Sums begin with
//     start(r, t), and finish(r, dot) takes a row block's.
//   pair_sums(w, inputs): optional, what start(r, t) has in it, too, with kPairs: in long enough groups, if there
//     is room.
//   PeakReg peak_fill(n), peak_opaque(reg), peak_step(sum, w): for peak_i8; a step multiplies
//     kPeakProducts bytes of w with others, and w looks as if it changed (peak_opaque), so that no
//     compiler leaves steps out.
//   kFloatTokens, kIntTokens: tokens that one reading of the weights serves, a power of two, by how
//     many sums fit in the registers.
//
// A token's result may not depend on T: the dots are exact integers, and what follows is one chain
// of float operations per row and token, so it does not.
#pragma once

#include <type_traits>

#include "platforms/kernels.h"
#include "platforms/simd/lanes.h"

namespace mamba_edge {
namespace {

// What is added to a state in int8 before it is rounded; see platforms/kernels.h.
constexpr size_t kDitherRows = 64;
struct Dither {
  alignas(64) float v[kDitherRows][kLanes];
};
constexpr Dither kDither = [] {
  Dither d{};
  for (size_t row = 0; row < kDitherRows; ++row) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      d.v[row][lane] = (static_cast<float>((row * 39 + lane * 4) % 64) + 0.5f) / 64 - 0.5f;
    }
  }
  return d;
}();

template <typename Isa>
struct Kernels {
  using V = Lanes<typename Isa::Arch>;
  using Ints = typename V::Ints;

  static ME_INLINE V silu(const V& x) {
    const V one = V::broadcast(1.0f);
    return x / (one + V::exp(V::broadcast(0.0f) - x));
  }

  // As a tree, the same in every table.
  static ME_INLINE float sum(V x) {
    x = x + Isa::template swap<8>(x);
    x = x + Isa::template swap<4>(x);
    x = x + Isa::template swap<2>(x);
    x = x + Isa::template swap<1>(x);
    alignas(64) float v[kLanes];
    x.store(v);
    return v[0];
  }

  // Calls f(N, i) for blocks of N tokens (or what else there are `count` of) from i on, as large as
  // they fit: kMax, then its halves. N is a constant.
  template <int kMax, typename F>
  static ME_INLINE void in_blocks(size_t count, const F& f, size_t i = 0) {
    for (; i + kMax <= count; i += kMax) f(std::integral_constant<int, kMax>{}, i);
    if constexpr (kMax > 1) in_blocks<kMax / 2>(count, f, i);
  }

  // ---- quantisation ----

  // Lanes i and i ^ S become their sum and their difference.
  template <int S>
  static ME_INLINE V butterfly(const V& x) {
    alignas(64) static constexpr float kSigns[kLanes] = {1,
                                                         S & 1 ? -1 : 1,
                                                         S & 2 ? -1 : 1,
                                                         S & 3 ? -1 : 1,
                                                         S & 4 ? -1 : 1,
                                                         S & 5 ? -1 : 1,
                                                         S & 6 ? -1 : 1,
                                                         S & 7 ? -1 : 1,
                                                         S & 8 ? -1 : 1,
                                                         S & 9 ? -1 : 1,
                                                         S & 10 ? -1 : 1,
                                                         S & 11 ? -1 : 1,
                                                         S & 12 ? -1 : 1,
                                                         S & 13 ? -1 : 1,
                                                         S & 14 ? -1 : 1,
                                                         S & 15 ? -1 : 1};
    return V::fma(x, V::load(kSigns), Isa::template swap<S>(x));
  }

  // to = H from for runs of N * 16 floats.
  template <int N>
  static ME_INLINE void rotate_runs(const float* from, size_t n, float* to) {
    for (size_t i = 0; i < n; i += N * kLanes) {
      V v[N];
      ME_UNROLL
      for (int k = 0; k < N; ++k) v[k] = V::load(from + i + k * kLanes);
      ME_UNROLL
      for (int span = 1; span < N; span *= 2) {
        ME_UNROLL
        for (int k = 0; k < N; ++k) {
          if ((k & span) != 0) continue;
          const V a = v[k], b = v[k + span];
          v[k] = a + b;
          v[k + span] = a - b;
        }
      }
      ME_UNROLL
      for (int k = 0; k < N; ++k) {
        butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(v[k])))).store(to + i + k * kLanes);
      }
    }
  }

  static ME_INLINE void rotate(const float* from, size_t n, size_t rotation, float* to) {
    if (rotation == 8 * kLanes) {
      rotate_runs<8>(from, n, to);
    } else if (rotation == 4 * kLanes) {
      rotate_runs<4>(from, n, to);
    } else if (rotation == 2 * kLanes) {
      rotate_runs<2>(from, n, to);
    } else {
      rotate_runs<1>(from, n, to);
    }
  }

  static void quantise_i8(const float* row, size_t n, size_t group, size_t rotation, int8_t* q,
                          float* scale, int32_t* sum) {
    alignas(64) float rotated[kMaxGroup];
    for (size_t g = 0; g * group < n; ++g, q += group) {
      const float* x = row + g * group;
      if (rotation != 0) {
        rotate(x, group, rotation, rotated);
        x = rotated;
      }
      V largest = V::broadcast(0.0f);
      for (size_t i = 0; i < group; i += kLanes) {
        largest = V::larger_bits(largest, V::abs(V::load(x + i)));
      }
      largest = V::larger_bits(largest, Isa::template swap<8>(largest));
      largest = V::larger_bits(largest, Isa::template swap<4>(largest));
      largest = V::larger_bits(largest, Isa::template swap<2>(largest));
      largest = V::larger_bits(largest, Isa::template swap<1>(largest));
      alignas(64) float v[kLanes];
      largest.store(v);
      const float top = v[0];
      if (!(top >= kTinyActivation && top < __builtin_inff())) {
        std::memset(q, 0, group);
        scale[g] = top < kTinyActivation ? 0.0f : __builtin_nanf("");
        sum[g] = 0;
        continue;
      }
      const V inverse = V::broadcast(127.0f / top);
      Ints total = Isa::broadcast_int(0);
      for (size_t i = 0; i < group; i += kLanes) {
        total.add(Isa::quantise(V::load(x + i) * inverse, q + i));
      }
      scale[g] = top / 127.0f;
      alignas(64) int32_t sums[kLanes];
      total.store(sums);
      int32_t all = 0;
      for (int i = 0; i < kLanes; ++i) all += sums[i];
      sum[g] = all;
    }
  }

  // ---- matrices ----

  template <int T, bool kHalf>
  static ME_INLINE void float_rows(const uint8_t* block, size_t cols, const float* x,
                                   size_t x_stride, float scale, float* out, size_t out_stride) {
    V acc[T];
    ME_UNROLL
    for (int t = 0; t < T; ++t) acc[t] = V::broadcast(0.0f);
    for (size_t c = 0; c < cols; ++c) {
      read_ahead(block + c * kLanes * (kHalf ? 2 : 4));
      const V w = kHalf ? Isa::from_f16(reinterpret_cast<const uint16_t*>(block) + c * kLanes)
                        : V::load(reinterpret_cast<const float*>(block) + c * kLanes);
      ME_UNROLL
      for (int t = 0; t < T; ++t) {
        acc[t] = V::fma(w, V::broadcast(x[static_cast<size_t>(t) * x_stride + c]), acc[t]);
      }
    }
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      (acc[t] * V::broadcast(scale)).store(out + static_cast<size_t>(t) * out_stride);
    }
  }

  template <bool kHalf>
  static ME_INLINE void matmul_float(const Matrix& w, size_t begin, size_t end, const float* x,
                                     size_t x_stride, size_t tokens, float* out,
                                     size_t out_stride) {
    const size_t cols = w.shape.cols;
    for (size_t r = begin; r < end; ++r) {
      const uint8_t* block = w.data + r * w.row_block_bytes;
      float* o = out + r * kTileRows;
      in_blocks<Isa::kFloatTokens>(tokens, [&](auto n, size_t t) {
        float_rows<n(), kHalf>(block, cols, x + t * x_stride, x_stride, w.scale, o + t * out_stride,
                               out_stride);
      });
    }
  }

  static void matmul_f32_f32(const Matrix& w, size_t begin, size_t end, const float* x,
                             size_t x_stride, size_t tokens, float* out, size_t out_stride) {
    matmul_float<false>(w, begin, end, x, x_stride, tokens, out, out_stride);
  }

  static void matmul_f16_f32(const Matrix& w, size_t begin, size_t end, const float* x,
                             size_t x_stride, size_t tokens, float* out, size_t out_stride) {
    matmul_float<true>(w, begin, end, x, x_stride, tokens, out, out_stride);
  }

  // A row block's scales lie before its weights and are used group by group. The hardware's prefetcher stops
  // at a gap in the lines that are asked for, so they are asked for in their turn.
  static ME_INLINE void walk(const uint8_t* begin, const uint8_t* end) {
    for (; begin < end; begin += kLineBytes) {
      read_ahead(begin);
      __builtin_prefetch(begin, 0, 3);
    }
  }

  // int16 weights: a sum per group, then times the group's scales.
  template <int T>
  static ME_INLINE void int16_rows(const uint8_t* block, const MatrixShape& shape, const float* x,
                                   size_t x_stride, float scale, float* out, size_t out_stride) {
    const uint16_t* weight_scale = reinterpret_cast<const uint16_t*>(block);
    const uint8_t* weights = block + shape.group_scale_bytes();
    walk(block, weights);
    const int16_t* w = reinterpret_cast<const int16_t*>(weights);
    V acc[T];
    ME_UNROLL
    for (int t = 0; t < T; ++t) acc[t] = V::broadcast(0.0f);
    for (size_t g = 0; g < shape.groups(); ++g) {
      V sum[T];
      ME_UNROLL
      for (int t = 0; t < T; ++t) sum[t] = V::broadcast(0.0f);
      for (size_t c = g * shape.group; c < (g + 1) * shape.group; ++c, w += kLanes) {
        read_ahead(w);
        const V values = Isa::from_i16(w);
        ME_UNROLL
        for (int t = 0; t < T; ++t) {
          sum[t] = V::fma(values, V::broadcast(x[static_cast<size_t>(t) * x_stride + c]), sum[t]);
        }
      }
      const V ws = Isa::from_f16(weight_scale + g * kTileRows);
      ME_UNROLL
      for (int t = 0; t < T; ++t) acc[t] = V::fma(ws, sum[t], acc[t]);
    }
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      (acc[t] * V::broadcast(scale)).store(out + static_cast<size_t>(t) * out_stride);
    }
  }

  static void matmul_i16_f32(const Matrix& w, size_t begin, size_t end, const float* x,
                             size_t x_stride, size_t tokens, float* out, size_t out_stride) {
    for (size_t r = begin; r < end; ++r) {
      const uint8_t* block = w.data + r * w.row_block_bytes;
      float* o = out + r * kTileRows;
      in_blocks<Isa::kFloatTokens>(tokens, [&](auto n, size_t t) {
        int16_rows<n()>(block, w.shape, x + t * x_stride, x_stride, w.scale, o + t * out_stride,
                        out_stride);
      });
    }
  }

  // The types that are used most take as many tokens and row blocks together as there are registers
  // for. The others, to compile less, take four tokens, and one row block.
  static constexpr bool is_common(WeightType type) {
    return type == WeightType::int8 || type == WeightType::int4;
  }
  template <WeightType kType>
  static constexpr int kTokens = [] {
    int n = Isa::kIntTokens;
    if (!is_common(kType) && n > 4) n = 4;
    return n;
  }();

  // Row blocks that are taken together with the largest number of tokens; 0: dot_blocks is not for them.
  template <WeightType kType>
  static constexpr int kBlocks = [] {
    if constexpr (requires { Isa::int_blocks(kType); }) {
      return Isa::int_blocks(kType);
    } else {
      return 0;
    }
  }();
  template <int T, WeightType kType>
  static constexpr bool kInBlocks = kBlocks<kType> > 0 && T == kTokens<kType>;
  // Whether dot_blocks takes sums over pairs of weights, how many groups of row blocks have room for theirs, on
  // the stack, and from how many inputs in a group on they gain more than they cost.
  template <WeightType kType>
  static constexpr bool kHasPairs = kBlocks<kType> > 0 && requires {
    &Isa::pair_sums;
  };
  static constexpr size_t kMaxPairs = 512;
  static constexpr size_t kLeastPairGroup = 64;

  // R row blocks, `block_bytes` apart, times T tokens, the first of which is `t0`. `pairs`: [R][groups] if
  // kPairs.
  template <int T, int R, WeightType kType, bool kPairs>
  static ME_INLINE void quantised_rows(const uint8_t* block, size_t block_bytes, const Ints* pairs,
                                       const MatrixShape& shape, const QuantisedRows& x, size_t t0,
                                       float scale, float* out, size_t out_stride) {
    const uint8_t* w = block + shape.group_scale_bytes();
    const size_t group = shape.group;
    const size_t groups = shape.groups();
    const size_t group_bytes = group * properties(kType).bits * kTileRows / 8;
    constexpr int32_t kZero = kType != WeightType::int8 ? properties(kType).zero()
                              : kInBlocks<T, kType>     ? 128
                                                        : Isa::kZero8;

    V acc[R][T];
    const int8_t* q[T];
    ME_UNROLL
    for (int t = 0; t < T; ++t) {
      ME_UNROLL
      for (size_t r = 0; r < R; ++r) {
        acc[r][t] = V::broadcast(0.0f);
        // Many tokens' results are more than the caches hold.
        if constexpr (T > 1) {
          __builtin_prefetch(out + r * kTileRows + (t0 + static_cast<size_t>(t)) * out_stride, 1);
        }
      }
      q[t] = x.q + (t0 + static_cast<size_t>(t)) * x.stride;
    }
    for (size_t g = 0; g < groups; ++g) {
      const auto start = [&](size_t r, size_t t) {
        Ints sum = Isa::broadcast_int(-kZero * x.sum[(t0 + t) * x.group_stride + g]);
        if constexpr (kPairs) sum.add(pairs[r * groups + g]);
        return sum;
      };
      const auto finish = [&](size_t r, const Ints(&dot)[T]) {
        const V ws = Isa::from_f16(reinterpret_cast<const uint16_t*>(block + r * block_bytes) +
                                   g * kTileRows);
        ME_UNROLL
        for (int t = 0; t < T; ++t) {
          const size_t at = (t0 + static_cast<size_t>(t)) * x.group_stride + g;
          acc[r][t] = V::fma(ws * V::broadcast(x.scale[at]), V::from_int(dot[t]), acc[r][t]);
        }
      };
      if constexpr (kInBlocks<T, kType>) {
        Isa::template dot_blocks<T, R, kType, kPairs>(w, block_bytes, group, q, start, finish);
      } else {
        Ints dot[T];
        ME_UNROLL
        for (int t = 0; t < T; ++t) dot[t] = start(0, static_cast<size_t>(t));
        if constexpr (kType == WeightType::int8) {
          Isa::template dot_i8<T>(w, group, q, dot);
        } else {
          Isa::template dot_planes<T, kType>(w, group, q, dot);
        }
        finish(0, dot);
      }
      ME_UNROLL
      for (int t = 0; t < T; ++t) q[t] += group;
      w += group_bytes;
    }
    ME_UNROLL
    for (size_t r = 0; r < R; ++r) {
      ME_UNROLL
      for (int t = 0; t < T; ++t) {
        (acc[r][t] * V::broadcast(scale))
            .store(out + r * kTileRows + (t0 + static_cast<size_t>(t)) * out_stride);
      }
    }
  }

  // R row blocks times all tokens.
  template <int R, WeightType kType, bool kPairs>
  static ME_INLINE void quantised_blocks(const Matrix& w, size_t r, const QuantisedRows& x,
                                         size_t tokens, float* out, size_t out_stride) {
    constexpr int kMax = kTokens<kType>;
    const size_t groups = w.shape.groups();
    if constexpr (R == 1) {
      const uint8_t* block = w.data + r * w.row_block_bytes;
      walk(block, block + w.shape.group_scale_bytes());
    }
    Ints pairs[kPairs ? kMaxPairs : 1];
    if constexpr (kPairs) {
      for (size_t k = 0; k < R; ++k) {
        const uint8_t* weights = w.data + (r + k) * w.row_block_bytes + w.shape.group_scale_bytes();
        for (size_t g = 0; g < groups; ++g, weights += w.shape.group * kTileRows) {
          pairs[k * groups + g] = Isa::pair_sums(weights, w.shape.group);
        }
      }
    }
    in_blocks<kMax>(tokens, [&](auto n, size_t t) {
      constexpr bool kLargest = n() == kMax;
      constexpr int kTogether = 1 + static_cast<int>(kLargest) * (R - 1);
      for (size_t k = r; k < r + R; k += kTogether) {
        quantised_rows<n(), kTogether, kType, kPairs && kLargest>(
            w.data + k * w.row_block_bytes, w.row_block_bytes, pairs, w.shape, x, t, w.scale,
            out + k * kTileRows, out_stride);
      }
    });
  }

  // Row blocks [r, end), R at a time, and what is left by halves of R.
  template <int R, WeightType kType, bool kPairs>
  static ME_INLINE void quantised_range(const Matrix& w, size_t r, size_t end,
                                        const QuantisedRows& x, size_t tokens, float* out,
                                        size_t out_stride) {
    for (; r + R <= end; r += R) {
      quantised_blocks<R, kType, kPairs>(w, r, x, tokens, out, out_stride);
    }
    if constexpr (R > 1) {
      quantised_range<R / 2, kType, kPairs>(w, r, end, x, tokens, out, out_stride);
    }
  }

  template <WeightType kType>
  static void matmul_quantised(const Matrix& w, size_t begin, size_t end, const QuantisedRows& x,
                               size_t tokens, float* out, size_t out_stride) {
    constexpr int kTogether = kBlocks < kType >> 1 ? kBlocks<kType> : 1;
    if (tokens <= kStreamTokens) {
      quantised_range<1, kType, false>(w, begin, end, x, tokens, out, out_stride);
      return;
    }
    if constexpr (kHasPairs<kType>) {
      if (w.shape.group >= kLeastPairGroup && kTogether * w.shape.groups() <= kMaxPairs) {
        quantised_range<kTogether, kType, true>(w, begin, end, x, tokens, out, out_stride);
        return;
      }
    }
    quantised_range<kTogether, kType, false>(w, begin, end, x, tokens, out, out_stride);
  }

  // As kernels.inc calls them.
  static constexpr auto matmul_i8_i8 = matmul_quantised<WeightType::int8>;
  static constexpr auto matmul_i6_i8 = matmul_quantised<WeightType::int6>;
  static constexpr auto matmul_i5_i8 = matmul_quantised<WeightType::int5>;
  static constexpr auto matmul_i4_i8 = matmul_quantised<WeightType::int4>;
  static constexpr auto matmul_i3_i8 = matmul_quantised<WeightType::int3>;
  static constexpr auto matmul_i2_i8 = matmul_quantised<WeightType::int2>;

  // ---- norms ----

  static void rms_norm(const float* x, const float* weight, size_t n, float eps, float* out) {
    V squares = V::broadcast(0.0f);
    for (size_t i = 0; i < n; i += kLanes) {
      const V v = V::load(x + i);
      squares = V::fma(v, v, squares);
    }
    const float mean = sum(squares) / static_cast<float>(n);
    const V factor = V::broadcast(1.0f / __builtin_sqrtf(mean + eps));
    for (size_t i = 0; i < n; i += kLanes) {
      V v = V::load(x + i) * factor;
      if (weight != nullptr) v = v * V::load(weight + i);
      v.store(out + i);
    }
  }

  static void layer_norm(const float* x, const float* weight, const float* bias, size_t n,
                         float eps, float* out) {
    V total = V::broadcast(0.0f);
    for (size_t i = 0; i < n; i += kLanes) total = total + V::load(x + i);
    const V mean = V::broadcast(sum(total) / static_cast<float>(n));
    V squares = V::broadcast(0.0f);
    const size_t whole = n / kLanes * kLanes;
    for (size_t i = 0; i < whole; i += kLanes) {
      const V v = V::load(x + i) - mean;
      squares = V::fma(v, v, squares);
    }
    if (whole < n) {  // the padding is not at distance 0 from the mean, but does not count
      alignas(64) float mask[kLanes];
      for (size_t i = 0; i < kLanes; ++i) mask[i] = whole + i < n ? 1.0f : 0.0f;
      const V v = (V::load(x + whole) - mean) * V::load(mask);
      squares = V::fma(v, v, squares);
    }
    const float variance = sum(squares) / static_cast<float>(n);
    const V factor = V::broadcast(1.0f / __builtin_sqrtf(variance + eps));
    for (size_t i = 0; i < n; i += kLanes) {
      V v = (V::load(x + i) - mean) * factor * V::load(weight + i);
      if (bias != nullptr) v = v + V::load(bias + i);
      v.store(out + i);
    }
  }

  // ---- elementwise ----

  static void add_rows(float* y, const float* x, const float* bias, size_t n) {
    for (size_t i = 0; i < n; i += kLanes) {
      V v = V::load(y + i) + V::load(x + i);
      if (bias != nullptr) v = v + V::load(bias + i);
      v.store(y + i);
    }
  }

  static void scale(float* x, float factor, size_t n) {
    const V f = V::broadcast(factor);
    for (size_t i = 0; i < n; i += kLanes) (V::load(x + i) * f).store(x + i);
  }

  static void dt_decay(float* dt, const float* bias, const float* a, float low, float high,
                       size_t n, float* decay) {
    const V lo = V::broadcast(low);
    const V hi = V::broadcast(high);
    for (size_t i = 0; i < n; i += kLanes) {
      const V v = V::min(V::max(V::softplus(V::load(dt + i) + V::load(bias + i)), lo), hi);
      v.store(dt + i);
      V::exp(v * V::load(a + i)).store(decay + i);
    }
  }

  static float gate_norm(const float* y, const float* z, const float* weight, bool norm_first,
                         size_t n, float* out) {
    V squares = V::broadcast(0.0f);
    for (size_t i = 0; i < n; i += kLanes) {
      const V gate = silu(V::load(z + i));
      V v = V::load(y + i);
      if (!norm_first) v = v * gate;
      squares = V::fma(v, v, squares);
      if (weight != nullptr) v = v * V::load(weight + i);
      if (norm_first) v = v * gate;
      v.store(out + i);
    }
    return sum(squares);
  }

  static size_t arg_max(const float* x, size_t n) {
    float top = -__builtin_inff();
    const size_t whole = n / kLanes * kLanes;
    if (whole > 0) {
      V largest = V::broadcast(top);
      for (size_t i = 0; i < whole; i += kLanes)
        largest = V::greater_or(V::load_unaligned(x + i), largest);
      alignas(64) float v[kLanes];
      largest.store(v);
      top = max_tree(v);
    }
    for (size_t i = whole; i < n; ++i) top = x[i] > top ? x[i] : top;
    // The first one that equals the largest; there is none only if all are NaN.
    const V wanted = V::broadcast(top);
    size_t i = 0;
    while (i < whole && !V::load_unaligned(x + i).any_equal(wanted)) i += kLanes;
    for (; i < n; ++i) {
      if (x[i] == top) return i;
    }
    return 0;
  }

  static size_t find_above(const float* x, size_t from, size_t n, float floor) {
    constexpr size_t kSpan = 4 * kLanes;
    const V limit = V::broadcast(floor);
    size_t i = from;
    for (; i + kSpan <= n; i += kSpan) {
      V largest = limit;
      ME_UNROLL
      for (size_t k = 0; k < kSpan; k += kLanes) {
        largest = V::greater_or(V::load_unaligned(x + i + k), largest);
      }
      if (!largest.all_equal(limit)) break;
    }
    for (; i < n; ++i) {
      if (x[i] > floor) return i;
    }
    return n;
  }

  static void copy_finite(const float* x, size_t n, float* out) {
    constexpr float kMax = __FLT_MAX__;
    const V high = V::broadcast(kMax), low = V::broadcast(-kMax);
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      // greater_or keeps its second operand where the first is NaN.
      const V above = V::greater_or(V::load_unaligned(x + i), low);
      V::min(above, high).store_unaligned(out + i);
    }
    for (; i < n; ++i) {
      const float above = x[i] > -kMax ? x[i] : -kMax;
      out[i] = above < kMax ? above : kMax;
    }
  }

  static uint32_t read_words(const uint8_t* data, size_t n) {
    Ints sum[2] = {Isa::broadcast_int(0), Isa::broadcast_int(0)};
    size_t i = 0;
    for (; i + 2 * kLineBytes <= n; i += 2 * kLineBytes) {
      read_ahead(data + i);
      read_ahead(data + i + kLineBytes);
      sum[0].add_from(reinterpret_cast<const int32_t*>(data + i));
      sum[1].add_from(reinterpret_cast<const int32_t*>(data + i + kLineBytes));
    }
    if (i < n) sum[0].add_from(reinterpret_cast<const int32_t*>(data + i));
    alignas(64) int32_t v[2][kLanes];
    sum[0].store(v[0]);
    sum[1].store(v[1]);
    uint32_t total = 0;
    for (int k = 0; k < kLanes; ++k) {
      total += static_cast<uint32_t>(v[0][k]) + static_cast<uint32_t>(v[1][k]);
    }
    return total;
  }

  static uint64_t peak_i8(size_t rounds) {
    constexpr int kSums = 12;  // their latencies overlap
    typename Isa::PeakReg sum[kSums], w = Isa::peak_fill(0x01020304);
    ME_UNROLL
    for (int i = 0; i < kSums; ++i) sum[i] = Isa::peak_fill(0);
    for (size_t round = 0; round < rounds; ++round) {
      ME_UNROLL
      for (int i = 0; i < kSums; ++i) sum[i] = Isa::peak_step(sum[i], w);
    }
    ME_UNROLL
    for (int i = 0; i < kSums; ++i) Isa::peak_opaque(sum[i]);
    return rounds * kSums * Isa::kPeakProducts;
  }

  // ---- recurrences ----

  template <size_t K>
  static ME_INLINE void conv_block(const ConvArgs& args, size_t block) {
    float* window = args.window + block * K * kLanes;
    const float* weight = args.weight + block * K * kLanes;
    const V bias = args.bias != nullptr ? V::load(args.bias + block * kLanes) : V::broadcast(0.0f);
    V w[K], k[K];
    ME_UNROLL
    for (size_t i = 0; i < K; ++i) {
      read_ahead(window + i * kLanes);
      read_ahead(weight + i * kLanes);
      w[i] = V::load(window + i * kLanes);
      k[i] = V::load(weight + i * kLanes);
    }
    const float* x = args.in + block * kLanes;
    float* out = args.out + block * kLanes;
    for (size_t t = 0; t < args.tokens; ++t, x += args.in_stride, out += args.out_stride) {
      ME_UNROLL
      for (size_t i = 0; i + 1 < K; ++i) w[i] = w[i + 1];
      w[K - 1] = V::load(x);
      V acc = bias;
      ME_UNROLL
      for (size_t i = 0; i < K; ++i) acc = V::fma(k[i], w[i], acc);
      silu(acc).store(out);
    }
    ME_UNROLL
    for (size_t i = 0; i < K; ++i) w[i].store(window + i * kLanes);
  }

  static ME_INLINE void conv_block_any(const ConvArgs& args, size_t block) {
    const size_t taps = args.d_conv;
    float* window = args.window + block * taps * kLanes;
    const float* weight = args.weight + block * taps * kLanes;
    const V bias = args.bias != nullptr ? V::load(args.bias + block * kLanes) : V::broadcast(0.0f);
    const float* x = args.in + block * kLanes;
    float* out = args.out + block * kLanes;
    for (size_t t = 0; t < args.tokens; ++t, x += args.in_stride, out += args.out_stride) {
      V acc = bias;
      for (size_t i = 0; i < taps; ++i) {
        const V v = i + 1 < taps ? V::load(window + (i + 1) * kLanes) : V::load(x);
        v.store(window + i * kLanes);
        acc = V::fma(V::load(weight + i * kLanes), v, acc);
      }
      silu(acc).store(out);
    }
  }

  static void conv_silu(const ConvArgs& args) {
    for (size_t block = 0; block < args.blocks; ++block) {
      switch (args.d_conv) {
        case 2:
          conv_block<2>(args, block);
          break;
        case 3:
          conv_block<3>(args, block);
          break;
        case 4:
          conv_block<4>(args, block);
          break;
        default:
          conv_block_any(args, block);
          break;
      }
    }
  }

  // A recurrent state in memory: float or binary16.
  static ME_INLINE V load_state(const float* p) { return V::load(p); }
  static ME_INLINE V load_state(const uint16_t* p) { return Isa::from_f16(p); }
  static ME_INLINE void store_state(const V& v, float* p) { v.store(p); }
  static ME_INLINE void store_state(const V& v, uint16_t* p) { Isa::to_f16(v, p); }

  static constexpr int kScanBlocks = V::kCount < 4 ? 4 / V::kCount : 1;
  static constexpr int kScanTokens = 2;  // of Mamba-2

  // How much earlier Mamba-1's scan asks for a token's rows of activations, which are too far apart for the
  // hardware to foresee them.
  static constexpr size_t kTokensAhead = 4;

  // dt = softplus(dt + bias) of B blocks and some tokens, to[token][B][16]. Softplus is one long chain of
  // operations; only several side by side do not wait for one another.
  static constexpr size_t kDtTokens = 16;
  template <int B>
  static ME_INLINE void mamba1_dt(const Mamba1ScanArgs& args, size_t at, size_t t, size_t tokens,
                                  float* to) {
    for (size_t k = 0; k < tokens; ++k) {
      const float* dt = args.dt + (t + k) * args.dt_stride + at;
      for (size_t i = 0; i < B; ++i, dt += kLanes, to += kLanes) {
        V::softplus(V::load(dt) + V::load(args.dt_bias + at + i * kLanes)).store(to);
      }
    }
  }

  // B blocks of channels: the chains of operations behind dt are long, and one block alone would wait
  // for them. `first`: the state is not in the cache yet.
  template <int B, typename State>
  static ME_INLINE void mamba1_token(const Mamba1ScanArgs& args, State* state, const float* a,
                                     const uint8_t* ahead, const float* steps, size_t at, size_t t,
                                     bool first) {
    const size_t n_state = args.d_state;
    V dt[B], dt_x[B], y[B];
    ME_UNROLL
    for (size_t i = 0; i < B; ++i) {
      const size_t lane = at + i * kLanes;
      const V x = V::load(args.x + t * args.x_stride + lane);
      const V step = V::load(steps + i * kLanes);
      dt[i] = step * V::broadcast(kLog2E);  // exp(step * a) = 2^(dt * a)
      dt_x[i] = step * x;
      y[i] = V::load(args.d + lane) * x;
    }
    const float* b = args.b + t * args.bc_stride;
    const float* c = args.c + t * args.bc_stride;
    if (t + kTokensAhead < args.tokens) {
      const size_t later = t + kTokensAhead;
      for (size_t i = 0; i < B; ++i) {
        __builtin_prefetch(args.x + later * args.x_stride + at + i * kLanes);
        __builtin_prefetch(args.z + later * args.z_stride + at + i * kLanes);
      }
    }
    const auto add = [&](size_t n, auto with_ahead) {
      const V b_n = V::broadcast(b[n]), c_n = V::broadcast(c[n]);
      ME_UNROLL
      for (size_t i = 0; i < B; ++i) {
        const size_t offset = (i * n_state + n) * kLanes;
        if constexpr (with_ahead()) {
          read_ahead(state + offset);
          read_ahead(a + offset);
          if (ahead != nullptr) {
            __builtin_prefetch(ahead, 0, 2);
            __builtin_prefetch(ahead + kLineBytes, 0, 2);
            ahead += kScanAhead;
          }
        }
        const V decay = V::decay(dt[i], V::load(a + offset));
        const V h = V::fma(decay, load_state(state + offset), dt_x[i] * b_n);
        store_state(h, state + offset);
        y[i] = V::fma(c_n, h, y[i]);
      }
    };
    if (first) {
      for (size_t n = 0; n < n_state; ++n) add(n, std::true_type{});
    } else {
      for (size_t n = 0; n < n_state; ++n) add(n, std::false_type{});
    }
    ME_UNROLL
    for (size_t i = 0; i < B; ++i) {
      const size_t lane = at + i * kLanes;
      const V gate = silu(V::load(args.z + t * args.z_stride + lane));
      (y[i] * gate).store(args.y + t * args.y_stride + lane);
    }
  }

  template <typename State>
  static ME_INLINE void mamba1_scan_as(const Mamba1ScanArgs& args, State* states) {
    const bool has_ahead = args.ahead != nullptr && args.tokens == 1;
    in_blocks<kScanBlocks>(args.blocks, [&](auto n, size_t block) {
      const size_t states_before = block * args.d_state;
      const uint8_t* ahead = has_ahead ? args.ahead + states_before * kScanAhead : nullptr;
      const size_t at = block * kLanes;
      alignas(64) float steps[kDtTokens * n() * kLanes];
      for (size_t t = 0; t < args.tokens; ++t) {
        const size_t k = t % kDtTokens, left = args.tokens - t;
        if (k == 0) mamba1_dt<n()>(args, at, t, left < kDtTokens ? left : kDtTokens, steps);
        mamba1_token<n()>(args, states + states_before * kLanes, args.a + states_before * kLanes,
                          ahead, steps + k * n() * kLanes, at, t, t == 0);
      }
    });
  }

  // ---- recurrences with a state in int8 ----

  // The new values of one group of states of a block, on their way to int8.
  struct StateGroup {
    V top = V::broadcast(0.0f);    // largest magnitude of each lane
    V probe = V::broadcast(0.0f);  // stays zero unless a value is NaN or infinite
    alignas(64) float h[kStateGroup * kLanes];

    ME_INLINE void put(size_t n, const V& value) {
      value.store(h + n * kLanes);
      top = V::max(top, V::abs(value));
      probe = V::fma(value, V::broadcast(0.0f), probe);
    }
    // Rounds `states` values; `row` is that of the first one's dither.
    ME_INLINE void round_to(uint8_t* group, size_t states, size_t row) const {
      const V step = V::max(top * V::broadcast(1.0f / 127.0f), V::broadcast(kLeastStateScale));
      const V scale = V::shorten(step, 7) + probe;
      const V inverse = V::broadcast(1.0f) / scale;
      scale.store(reinterpret_cast<float*>(group));
      auto* q = reinterpret_cast<int8_t*>(group) + kLanes * sizeof(float);
      for (size_t n = 0; n < states; ++n) {
        const V dither = V::load(kDither.v[(row + n) % kDitherRows]);
        Isa::quantise(V::fma(V::load(h + n * kLanes), inverse, dither), q + n * kLanes);
      }
    }
  };

  // Calls f(first state, states, group) for the groups of a block.
  template <typename F>
  static ME_INLINE void state_groups(uint8_t* state, size_t n_state, bool in_cache, const F& f) {
    for (size_t n = 0; n < n_state; n += kStateGroup) {
      const size_t left = n_state - n, states = left < kStateGroup ? left : kStateGroup;
      const size_t bytes = int8_state_group_bytes(states);
      if (!in_cache) {
        for (size_t i = 0; i < bytes; i += kLineBytes) read_ahead(state + i);
      }
      f(n, states, state);
      state += bytes;
    }
  }

  static ME_INLINE V load_state(const V& scale, const uint8_t* group, size_t n) {
    const auto* q = reinterpret_cast<const int8_t*>(group) + kLanes * sizeof(float);
    return scale * Isa::from_i8(q + n * kLanes);
  }

  static ME_INLINE void mamba1_token_int8(const Mamba1ScanArgs& args, uint8_t* state,
                                          const float* a, const uint8_t* ahead, const float* steps,
                                          size_t at, size_t t) {
    const V x = V::load(args.x + t * args.x_stride + at);
    const V step = V::load(steps);
    const V dt = step * V::broadcast(kLog2E), dt_x = step * x;  // exp(step * a) = 2^(dt * a)
    V y = V::load(args.d + at) * x;
    const float* b = args.b + t * args.bc_stride;
    const float* c = args.c + t * args.bc_stride;
    state_groups(state, args.d_state, t > 0, [&](size_t first, size_t states, uint8_t* group) {
      const V scale = V::load(reinterpret_cast<const float*>(group));
      StateGroup next;
      for (size_t k = 0; k < states; ++k) {
        const size_t n = first + k;
        if (t == 0) {
          read_ahead(a + n * kLanes);
          if (ahead != nullptr) {
            __builtin_prefetch(ahead + n * kScanAhead, 0, 2);
            __builtin_prefetch(ahead + n * kScanAhead + kLineBytes, 0, 2);
          }
        }
        const V decay = V::decay(dt, V::load(a + n * kLanes));
        const V h = V::fma(decay, load_state(scale, group, k), dt_x * V::broadcast(b[n]));
        next.put(k, h);
        y = V::fma(V::broadcast(c[n]), h, y);
      }
      next.round_to(group, states, static_cast<size_t>(args.position) + t + first);
    });
    const V gate = silu(V::load(args.z + t * args.z_stride + at));
    (y * gate).store(args.y + t * args.y_stride + at);
  }

  static void mamba1_scan_int8(const Mamba1ScanArgs& args) {
    const size_t block_bytes = int8_state_bytes(args.d_state);
    const bool has_ahead = args.ahead != nullptr && args.tokens == 1;
    in_blocks<kScanBlocks>(args.blocks, [&](auto n, size_t block) {
      alignas(64) float steps[kDtTokens * n() * kLanes];
      for (size_t t = 0; t < args.tokens; ++t) {
        const size_t k = t % kDtTokens, left = args.tokens - t;
        if (k == 0) {
          mamba1_dt<n()>(args, block * kLanes, t, left < kDtTokens ? left : kDtTokens, steps);
        }
        for (size_t i = 0; i < n(); ++i) {
          const size_t states_before = (block + i) * args.d_state;
          mamba1_token_int8(args, args.int8_state + (block + i) * block_bytes,
                            args.a + states_before * kLanes,
                            has_ahead ? args.ahead + states_before * kScanAhead : nullptr,
                            steps + (k * n() + i) * kLanes, (block + i) * kLanes, t);
        }
      }
    });
  }

  static ME_INLINE void mamba2_token_int8(const Mamba2ScanArgs& args, uint8_t* state, size_t at,
                                          size_t t) {
    const V decay = V::load(args.decay + t * args.dt_stride + at);
    const V x = V::load(args.x + t * args.x_stride + at);
    const V dt_x = V::load(args.dt + t * args.dt_stride + at) * x;
    V y = V::load(args.d + at) * x;
    const float* b = args.b + t * args.bc_stride;
    const float* c = args.c + t * args.bc_stride;
    state_groups(state, args.d_state, t > 0, [&](size_t first, size_t states, uint8_t* group) {
      const V scale = V::load(reinterpret_cast<const float*>(group));
      StateGroup next;
      for (size_t k = 0; k < states; ++k) {
        const size_t n = first + k;
        const V h = V::fma(decay, load_state(scale, group, k), dt_x * V::broadcast(b[n]));
        next.put(k, h);
        y = V::fma(V::broadcast(c[n]), h, y);
      }
      next.round_to(group, states, static_cast<size_t>(args.position) + t + first);
    });
    y.store(args.y + t * args.y_stride + at);
  }

  static void mamba2_scan_int8(const Mamba2ScanArgs& args) {
    const size_t block_bytes = int8_state_bytes(args.d_state);
    for (size_t block = 0; block < args.blocks; ++block) {
      for (size_t t = 0; t < args.tokens; ++t) {
        mamba2_token_int8(args, args.int8_state + block * block_bytes, block * kLanes, t);
      }
    }
  }

  static void mamba1_scan(const Mamba1ScanArgs& args) {
    if (args.int8_state != nullptr) {
      mamba1_scan_int8(args);
    } else if (args.half_state != nullptr) {
      mamba1_scan_as(args, args.half_state);
    } else {
      mamba1_scan_as(args, args.state);
    }
  }

  // B blocks of channels, T tokens. Their sums over the state are chains that do not wait for one another,
  // blocks share the broadcasts of b and c, and tokens a reading of the state. `first`: the state is not
  // in the cache yet.
  template <int B, int T, typename State>
  static ME_INLINE void mamba2_tokens(const Mamba2ScanArgs& args, State* state, size_t at, size_t t,
                                      bool first) {
    const size_t n_state = args.d_state;
    V decay[T][B], dt_x[T][B], y[T][B];
    const float* b[T];
    const float* c[T];
    ME_UNROLL
    for (size_t k = 0; k < T; ++k) {
      ME_UNROLL
      for (size_t i = 0; i < B; ++i) {
        const size_t lane = at + i * kLanes;
        decay[k][i] = V::load(args.decay + (t + k) * args.dt_stride + lane);
        const V x = V::load(args.x + (t + k) * args.x_stride + lane);
        dt_x[k][i] = V::load(args.dt + (t + k) * args.dt_stride + lane) * x;
        y[k][i] = V::load(args.d + lane) * x;
      }
      b[k] = args.b + (t + k) * args.bc_stride;
      c[k] = args.c + (t + k) * args.bc_stride;
    }
    const auto add = [&](size_t n, auto with_ahead) {
      V h[B];
      ME_UNROLL
      for (size_t i = 0; i < B; ++i) {
        State* p = state + (i * n_state + n) * kLanes;
        if constexpr (with_ahead()) read_ahead(p);
        h[i] = load_state(p);
      }
      ME_UNROLL
      for (size_t k = 0; k < T; ++k) {
        const V b_n = V::broadcast(b[k][n]), c_n = V::broadcast(c[k][n]);
        ME_UNROLL
        for (size_t i = 0; i < B; ++i) {
          h[i] = V::fma(decay[k][i], h[i], dt_x[k][i] * b_n);
          y[k][i] = V::fma(c_n, h[i], y[k][i]);
        }
      }
      ME_UNROLL
      for (size_t i = 0; i < B; ++i) store_state(h[i], state + (i * n_state + n) * kLanes);
    };
    if (first) {
      for (size_t n = 0; n < n_state; ++n) add(n, std::true_type{});
    } else {
      for (size_t n = 0; n < n_state; ++n) add(n, std::false_type{});
    }
    ME_UNROLL
    for (size_t k = 0; k < T; ++k) {
      ME_UNROLL
      for (size_t i = 0; i < B; ++i) {
        y[k][i].store(args.y + (t + k) * args.y_stride + at + i * kLanes);
      }
    }
  }

  template <typename State>
  static ME_INLINE void mamba2_scan_as(const Mamba2ScanArgs& args, State* states) {
    // A state in binary16 is rounded after every token.
    constexpr int kTokens = std::is_same_v<State, float> ? kScanTokens : 1;
    in_blocks<kScanBlocks>(args.blocks, [&](auto n, size_t block) {
      State* state = states + block * args.d_state * kLanes;
      in_blocks<kTokens>(args.tokens, [&](auto tokens, size_t t) {
        mamba2_tokens<n(), tokens()>(args, state, block * kLanes, t, t == 0);
      });
    });
  }

  static void mamba2_scan(const Mamba2ScanArgs& args) {
    if (args.int8_state != nullptr) {
      mamba2_scan_int8(args);
    } else if (args.half_state != nullptr) {
      mamba2_scan_as(args, args.half_state);
    } else {
      mamba2_scan_as(args, args.state);
    }
  }

  // Only tables with tiles have these.
  static constexpr Mamba2DualPrepare* mamba2_dual_prepare = nullptr;
  static constexpr Mamba2Dual* mamba2_dual = nullptr;

  static constexpr KernelTable table(const char* isa) {
    return KernelTable{
        isa,
#define ME_KERNEL(Type, name) name,
#include "platforms/kernels.inc"
#undef ME_KERNEL
    };
  }
};

}  // namespace
}  // namespace mamba_edge
