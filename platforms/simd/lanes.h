// Sixteen float lanes, the unit that every kernel is written in: one row block, channel block or
// cache line.
//
// Lanes<Arch> holds 16 / width batches of xsimd; Lanes<Generic> is a plain array. All rounding is
// IEEE single, nothing is contracted (the build passes -ffp-contract=off), so a kernel rounds the
// same wherever its work is cut.
//
// Only for the translation units that hold one kernel table each. Arch must be a type of the unit's
// own, in an anonymous namespace and derived from an xsimd architecture (ME_XSIMD_ARCH below): then
// every template that is instantiated with it has internal linkage, and no code that was compiled
// with wider -m flags can be shared with another unit. Everything here is in an anonymous namespace
// for the same reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#define ME_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define ME_UNROLL _Pragma("clang loop unroll(full)")
#else
#define ME_UNROLL _Pragma("GCC unroll 16")
#endif

namespace mamba_edge {
namespace {

constexpr int kLanes = 16;
constexpr float kSoftplusLinear = 20.0f;  // softplus(v) = v above this

// Adds sixteen values as a tree, the same in every table.
ME_INLINE float sum_tree(const float* v) {
  float a[8], b[4];
  ME_UNROLL
  for (int i = 0; i < 8; ++i) a[i] = v[i] + v[i + 8];
  ME_UNROLL
  for (int i = 0; i < 4; ++i) b[i] = a[i] + a[i + 4];
  return (b[0] + b[2]) + (b[1] + b[3]);
}

ME_INLINE float max_tree(const float* v) {
  float m = v[0];
  ME_UNROLL
  for (int i = 1; i < kLanes; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

ME_INLINE uint32_t float_bits(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof(bits));
  return bits;
}
ME_INLINE float bits_float(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, sizeof(v));
  return v;
}

// exp for any type of float lanes F: 2^n * e^r with n = round(x / ln 2), |r| <= ln(2) / 2. At
// most 1.5 ulp from the true value (2 where fma rounds twice); 0 below the logarithm of the
// smallest normal number, infinity above that of the largest finite one, NaN for NaN.
template <typename Math, typename F>
ME_INLINE F exp_lanes(const F& x) {
  constexpr float kLog2E = 0x1.715476p+0f;
  constexpr float kLn2High = 0x1.63p-1f, kLn2Low = -0x1.bd0106p-13f;  // n * kLn2High is exact
  constexpr float kRound = 0x1.8p23f;  // the sum's last bit is worth 1, so its low bits are n
  constexpr float kLowest = -0x1.5d589ep6f, kHighest = 0x1.62e42ep6f;
  const F shifted = Math::fma(x, F(kLog2E), F(kRound));
  const F n = shifted - F(kRound);
  const F r = Math::fma(n, F(-kLn2Low), Math::fma(n, F(-kLn2High), x));
  // (e^r - 1 - r) / r^2, interpolated at Chebyshev points; 2^-26 of e^r.
  F q = Math::fma(F(0x1.6d110ap-10f), r, F(0x1.120b6ep-7f));
  q = Math::fma(q, r, F(0x1.55551ap-5f));
  q = Math::fma(q, r, F(0x1.5554dcp-3f));
  q = Math::fma(q, r, F(0.5f));
  const F p = F(1.0f) + Math::fma(q, r * r, r);
  const F scaled = Math::add_exponent(p, shifted);
  return Math::less(x, F(kLowest), F(0.0f),
                    Math::less(F(kHighest), x, F(__builtin_inff()), scaled));
}

}  // namespace
}  // namespace mamba_edge

#ifndef MAMBA_EDGE_GENERIC_LANES

#include <xsimd/xsimd.hpp>

// Makes `Name`, a type in an anonymous namespace that derives from xsimd's architecture `Base`, an
// architecture too. To be used at global scope.
#define ME_XSIMD_ARCH(Name, ...)                                                      \
  namespace xsimd::types {                                                            \
  template <class T>                                                                  \
  struct simd_register<T, Name> : simd_register<T, __VA_ARGS__> {                     \
    using register_type = typename simd_register<T, __VA_ARGS__>::register_type;      \
    simd_register() = default;                                                        \
    simd_register(register_type reg) noexcept : simd_register<T, __VA_ARGS__>{reg} {} \
  };                                                                                  \
  template <class T>                                                                  \
  struct has_simd_register<T, Name> : has_simd_register<T, __VA_ARGS__> {};           \
  template <class T>                                                                  \
  struct get_bool_simd_register<T, Name> : get_bool_simd_register<T, __VA_ARGS__> {}; \
  }                                                                                   \
  static_assert(true)

namespace mamba_edge {
namespace {

// Arch has a member fma(a, b, c) on its registers: xsimd's is not fused for all of them.
template <typename Arch>
struct BatchMath {
  using F = xsimd::batch<float, Arch>;
  using I = xsimd::batch<int32_t, Arch>;
  static ME_INLINE F fma(const F& a, const F& b, const F& c) { return Arch::fma(a, b, c); }
  // Adds the integer in the low bits of `n` to the exponent of p.
  static ME_INLINE F add_exponent(const F& p, const F& n) {
    return xsimd::bitwise_cast<F>(xsimd::bitwise_cast<I>(p) + (xsimd::bitwise_cast<I>(n) << 23));
  }
  static ME_INLINE F less(const F& a, const F& b, const F& yes, const F& no) {
    return xsimd::select(a < b, yes, no);
  }
};

template <typename Arch>
struct IntLanes {
  using Batch = xsimd::batch<int32_t, Arch>;
  static constexpr int kCount = kLanes / static_cast<int>(Batch::size);
  Batch v[kCount];

  static ME_INLINE IntLanes broadcast(int32_t value) {
    IntLanes r;
    ME_UNROLL
    for (int i = 0; i < kCount; ++i) r.v[i] = Batch(value);
    return r;
  }
};

template <typename Arch>
struct Lanes {
  using Batch = xsimd::batch<float, Arch>;
  using Ints = IntLanes<Arch>;
  using Math = BatchMath<Arch>;
  static constexpr int kWidth = static_cast<int>(Batch::size);
  static constexpr int kCount = kLanes / kWidth;
  Batch v[kCount];

  template <typename F>
  static ME_INLINE Lanes make(F f) {
    Lanes r;
    ME_UNROLL
    for (int i = 0; i < kCount; ++i) r.v[i] = f(i);
    return r;
  }

  static ME_INLINE Lanes broadcast(float value) {
    const Batch b(value);
    return make([&](int) { return b; });
  }
  static ME_INLINE Lanes load(const float* p) {  // 64-byte aligned
    return make([&](int i) { return Batch::load_aligned(p + i * kWidth); });
  }
  static ME_INLINE Lanes load_unaligned(const float* p) {
    return make([&](int i) { return Batch::load_unaligned(p + i * kWidth); });
  }
  static ME_INLINE Lanes from_int(const Ints& x) {
    return make([&](int i) { return xsimd::to_float(x.v[i]); });
  }
  ME_INLINE void store(float* p) const {
    ME_UNROLL
    for (int i = 0; i < kCount; ++i) v[i].store_aligned(p + i * kWidth);
  }

  friend ME_INLINE Lanes operator+(const Lanes& a, const Lanes& b) {
    return make([&](int i) { return a.v[i] + b.v[i]; });
  }
  friend ME_INLINE Lanes operator-(const Lanes& a, const Lanes& b) {
    return make([&](int i) { return a.v[i] - b.v[i]; });
  }
  friend ME_INLINE Lanes operator*(const Lanes& a, const Lanes& b) {
    return make([&](int i) { return a.v[i] * b.v[i]; });
  }
  friend ME_INLINE Lanes operator/(const Lanes& a, const Lanes& b) {
    return make([&](int i) { return a.v[i] / b.v[i]; });
  }

  // a * b + c, rounded once where the architecture has a fused multiply-add.
  static ME_INLINE Lanes fma(const Lanes& a, const Lanes& b, const Lanes& c) {
    return make([&](int i) { return Math::fma(a.v[i], b.v[i], c.v[i]); });
  }
  static ME_INLINE Lanes min(const Lanes& a, const Lanes& b) {
    return make([&](int i) { return xsimd::min(a.v[i], b.v[i]); });
  }
  static ME_INLINE Lanes max(const Lanes& a, const Lanes& b) {
    return make([&](int i) { return xsimd::max(a.v[i], b.v[i]); });
  }
  // a > b ? a : b, where b stays if either is NaN.
  static ME_INLINE Lanes greater_or(const Lanes& a, const Lanes& b) {
    return make([&](int i) { return xsimd::select(a.v[i] > b.v[i], a.v[i], b.v[i]); });
  }
  static ME_INLINE Lanes abs(const Lanes& a) {
    return make([&](int i) { return xsimd::abs(a.v[i]); });
  }
  static ME_INLINE Lanes exp(const Lanes& a) {
    return make([&](int i) { return exp_lanes<Math>(a.v[i]); });
  }
  static ME_INLINE Lanes softplus(const Lanes& a) {
    const Batch limit(kSoftplusLinear);
    return make([&](int i) {
      const Batch small = xsimd::log1p(exp_lanes<Math>(xsimd::min(a.v[i], limit)));
      return xsimd::select(a.v[i] > limit, a.v[i], small);
    });
  }
  ME_INLINE bool any_equal(const Lanes& b) const {
    auto equal = v[0] == b.v[0];
    ME_UNROLL
    for (int i = 1; i < kCount; ++i) equal = equal | (v[i] == b.v[i]);
    return xsimd::any(equal);
  }
};

}  // namespace
}  // namespace mamba_edge

#else  // MAMBA_EDGE_GENERIC_LANES

namespace mamba_edge {
namespace {

struct Generic {};

struct FloatMath {
  static ME_INLINE float fma(float a, float b, float c) { return a * b + c; }
  static ME_INLINE float add_exponent(float p, float n) {
    return bits_float(float_bits(p) + (float_bits(n) << 23));
  }
  static ME_INLINE float less(float a, float b, float yes, float no) { return a < b ? yes : no; }
};

template <typename Arch>
struct IntLanes {
  static constexpr int kCount = kLanes;
  int32_t v[kLanes];
};

template <typename Arch>
struct Lanes {
  using Ints = IntLanes<Arch>;
  static constexpr int kCount = kLanes;
  float v[kLanes];

  template <typename F>
  static ME_INLINE Lanes make(F f) {
    Lanes r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = f(i);
    return r;
  }

  static ME_INLINE Lanes broadcast(float value) {
    return make([&](int) { return value; });
  }
  static ME_INLINE Lanes load(const float* p) {
    return make([&](int i) { return p[i]; });
  }
  static ME_INLINE Lanes load_unaligned(const float* p) { return load(p); }
  static ME_INLINE Lanes from_int(const Ints& x) {
    return make([&](int i) { return static_cast<float>(x.v[i]); });
  }
  ME_INLINE void store(float* p) const {
    for (int i = 0; i < kLanes; ++i) p[i] = v[i];
  }

  friend ME_INLINE Lanes operator+(const Lanes& a, const Lanes& b) {
    return make([&](int i) { return a.v[i] + b.v[i]; });
  }
  friend ME_INLINE Lanes operator-(const Lanes& a, const Lanes& b) {
    return make([&](int i) { return a.v[i] - b.v[i]; });
  }
  friend ME_INLINE Lanes operator*(const Lanes& a, const Lanes& b) {
    return make([&](int i) { return a.v[i] * b.v[i]; });
  }
  friend ME_INLINE Lanes operator/(const Lanes& a, const Lanes& b) {
    return make([&](int i) { return a.v[i] / b.v[i]; });
  }

  static ME_INLINE Lanes fma(const Lanes& a, const Lanes& b, const Lanes& c) {
    return make([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static ME_INLINE Lanes min(const Lanes& a, const Lanes& b) {
    return make([&](int i) { return b.v[i] < a.v[i] ? b.v[i] : a.v[i]; });
  }
  static ME_INLINE Lanes max(const Lanes& a, const Lanes& b) {
    return make([&](int i) { return b.v[i] > a.v[i] ? b.v[i] : a.v[i]; });
  }
  static ME_INLINE Lanes greater_or(const Lanes& a, const Lanes& b) {
    return make([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static ME_INLINE Lanes abs(const Lanes& a) {
    return make([&](int i) { return __builtin_fabsf(a.v[i]); });
  }
  static ME_INLINE Lanes exp(const Lanes& a) {
    return make([&](int i) { return exp_lanes<FloatMath>(a.v[i]); });
  }
  static ME_INLINE Lanes softplus(const Lanes& a) {
    return make([&](int i) {
      return a.v[i] > kSoftplusLinear ? a.v[i] : __builtin_log1pf(exp_lanes<FloatMath>(a.v[i]));
    });
  }
  ME_INLINE bool any_equal(const Lanes& b) const {
    bool equal = false;
    for (int i = 0; i < kLanes; ++i) equal |= v[i] == b.v[i];
    return equal;
  }
};

}  // namespace
}  // namespace mamba_edge

#endif
