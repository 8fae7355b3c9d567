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

// Asks for what a stream will read soon: far ahead into the second cache, which has many more
// requests in flight than the first, and then a short way ahead into the first. The hardware's own
// prefetcher stops at every page of 4 KiB and leaves a third of the memory's speed unused (measured
// on Emerald Rapids: 2 to 16 KiB and 0.5 to 2 KiB are alike, one distance alone loses 5 to 10 %; on
// Zen 4, 2 KiB instead of 1 gain a fifth in int8).
constexpr size_t kFarAhead = 8192;
constexpr size_t kNearAhead = 2048;
ME_INLINE void read_ahead(const void* line) {
  __builtin_prefetch(static_cast<const char*>(line) + kFarAhead, 0, 2);
  __builtin_prefetch(static_cast<const char*>(line) + kNearAhead, 0, 3);
}

ME_INLINE float max_tree(const float* v) {
  float a[8], b[4];
  const auto larger = [](float x, float y) { return x > y ? x : y; };
  ME_UNROLL
  for (int i = 0; i < 8; ++i) a[i] = larger(v[i], v[i + 8]);
  ME_UNROLL
  for (int i = 0; i < 4; ++i) b[i] = larger(a[i], a[i + 4]);
  return larger(larger(b[0], b[2]), larger(b[1], b[3]));
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

constexpr float kLn2High = 0x1.63p-1f;  // times a small integer: exact
constexpr float kLn2Low = -0x1.bd0106p-13f;

constexpr float kExpRound =
    0x1.8p23f;  // a sum with it has a last bit worth 1, so its low bits are n

// Written once for what Math::F is: a float or a batch of them. e^x = p * 2^n with n = round(x / ln 2), in
// the low bits of `shifted`, and p = e^r, |r| <= ln(2) / 2, within 1.5 ulp.
template <typename Math, typename F>
ME_INLINE F exp_fraction(const F& x, F* shifted) {
  const auto number = [](float v) { return Math::number(v); };
  const F round = number(kExpRound);
  *shifted = Math::fma(x, number(0x1.715476p+0f), round);
  const F n = *shifted - round;
  const F r = Math::fma(n, number(-kLn2Low), Math::fma(n, number(-kLn2High), x));
  // (e^r - 1 - r) / r^2, interpolated at Chebyshev points; less than 2^-26 of e^r off.
  F q = Math::fma(number(0x1.6d110ap-10f), r, number(0x1.120b6ep-7f));
  q = Math::fma(q, r, number(0x1.55551ap-5f));
  q = Math::fma(q, r, number(0x1.5554dcp-3f));
  q = Math::fma(q, r, number(0.5f));
  return number(1.0f) + Math::fma(q, r * r, r);
}

// 0 below the logarithm of the smallest normal number, infinity above that of the largest finite one, NaN
// for NaN.
template <typename Math, typename F>
ME_INLINE F exp_lanes(const F& x) {
  const auto number = [](float v) { return Math::number(v); };
  F shifted;
  const F p = exp_fraction<Math>(x, &shifted);
  const F scaled = Math::of_bits(Math::bits(p) + (Math::bits(shifted) << 23));
  const F finite = Math::if_less(number(0x1.62e42ep6f), x, number(__builtin_inff()), scaled);
  return Math::if_less(x, number(-0x1.5d589ep6f), number(0.0f), finite);
}

constexpr float kLog2E = 0x1.715476p+0f;

// 2^(x * a) for x * a <= 0, a third cheaper than exp: the product enters the fraction unrounded, and
// nothing overflows. Within 1.5 ulp of the power of the exact product (2 in AVX-512's own form); 0 below
// 2^-125.5, NaN for NaN.
template <typename Math, typename F>
ME_INLINE F decay_lanes(const F& x, const F& a) {
  const auto number = [](float v) { return Math::number(v); };
  const F shifted = Math::fma(x, a, number(kExpRound));
  const F f = Math::fma(x, a, number(kExpRound) - shifted);  // |f| <= 1/2
  // (2^f - 1) / f, interpolated at Chebyshev points; less than 2^-26 of 2^f off.
  F q = Math::fma(number(0x1.44138ap-13f), f, number(0x1.5f0890p-10f));
  q = Math::fma(q, f, number(0x1.3b2a54p-7f));
  q = Math::fma(q, f, number(0x1.c6af6cp-5f));
  q = Math::fma(q, f, number(0x1.ebfbe0p-3f));
  q = Math::fma(q, f, number(0x1.62e430p-1f));
  const F p = Math::fma(q, f, number(1.0f));
  return Math::raise_or_zero(p, shifted, kExpRound - 125.0f);
}

// log(1 + e^x) = max(x, 0) + log(1 + y) with y = e^-|x|, 0 below -87, and log(1 + y) = 2 artanh(s) with s = y
// / (2 + y). Above 20 it is x, as log(1 + y) is less than half a unit in the last place of 20.
template <typename Math, typename F>
ME_INLINE F softplus_lanes(const F& x) {
  const auto number = [](float v) { return Math::number(v); };
  F shifted;
  const F p = exp_fraction<Math>(Math::minus_abs(x), &shifted);
  const F y = Math::raise_or_zero(p, shifted, kExpRound - 125.0f);
  const F s = Math::div(y, number(2.0f) + y);
  const F z = s * s;  // at most 1 / 9
  // 2 (artanh(s) - s) / (s z), interpolated at Chebyshev points; less than 2^-25 of log(1 + y) off.
  F q = Math::fma(number(0x1.12f598p-2f), z, number(0x1.21249ap-2f));
  q = Math::fma(q, z, number(0x1.99ad6cp-2f));
  q = Math::fma(q, z, number(0x1.55554cp-1f));
  return Math::if_less(number(0.0f), x, x, number(0.0f)) + Math::fma(s * z, q, s + s);
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

// What xsimd lacks comes from Arch, on registers: fma(a, b, c), because xsimd's is not fused on
// all; on AVX-512 raise_or_zero and decay, because they take fewer instructions, and div, which is within
// 2 ulp for normal divisors, because the exact one takes four times as long. On NEON also what xsimd has, but
// not for a derived architecture (broadcast), only as an estimate (div), or only through tables of
// functions that would be shared with other units (bits, of_bits).
template <typename Batch, typename T>
ME_INLINE Batch splat(T value) {
  using Arch = typename Batch::arch_type;
  if constexpr (requires { Arch::broadcast(value); }) {
    return Arch::broadcast(value);
  } else {
    return Batch(value);
  }
}

template <typename Arch>
struct BatchMath {
  using F = xsimd::batch<float, Arch>;
  using I = xsimd::batch<int32_t, Arch>;
  static ME_INLINE F number(float v) { return splat<F>(v); }
  static ME_INLINE I integer(int32_t v) { return splat<I>(v); }
  static ME_INLINE I bits(const F& v) {
    if constexpr (requires { Arch::bits(v); }) {
      return Arch::bits(v);
    } else {
      return xsimd::bitwise_cast<I>(v);
    }
  }
  static ME_INLINE F of_bits(const I& v) {
    if constexpr (requires { Arch::of_bits(v); }) {
      return Arch::of_bits(v);
    } else {
      return xsimd::bitwise_cast<F>(v);
    }
  }
  static ME_INLINE F div(const F& a, const F& b) {
    if constexpr (requires { Arch::div(a, b); }) {
      return Arch::div(a, b);
    } else {
      return a / b;
    }
  }
  static ME_INLINE F minus_abs(const F& v) { return of_bits(bits(v) | integer(INT32_MIN)); }
  static ME_INLINE F fma(const F& a, const F& b, const F& c) { return Arch::fma(a, b, c); }
  static ME_INLINE F if_less(const F& a, const F& b, const F& yes, const F& no) {
    return xsimd::select(a < b, yes, no);
  }
  // p times two to the power of the low bits of `shifted`; 0 where shifted < least.
  static ME_INLINE F raise_or_zero(const F& p, const F& shifted, float least) {
    if constexpr (requires { Arch::raise_or_zero(p, shifted, least); }) {
      return Arch::raise_or_zero(p, shifted, least);
    } else {
      return if_less(shifted, number(least), number(0.0f),
                     of_bits(bits(p) + (bits(shifted) << 23)));
    }
  }
  static ME_INLINE F larger_bits(const F& a, const F& b) {
    return of_bits(xsimd::max(bits(a), bits(b)));
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
    for (int i = 0; i < kCount; ++i) r.v[i] = splat<Batch>(value);
    return r;
  }
  ME_INLINE void add_from(const int32_t* p) {  // 64-byte aligned; wraps
    ME_UNROLL
    for (int i = 0; i < kCount; ++i) v[i] = v[i] + Batch::load_aligned(p + i * kLanes / kCount);
  }
  ME_INLINE void add(const IntLanes& b) {
    ME_UNROLL
    for (int i = 0; i < kCount; ++i) v[i] = v[i] + b.v[i];
  }
  ME_INLINE void store(int32_t* p) const {
    ME_UNROLL
    for (int i = 0; i < kCount; ++i) v[i].store_aligned(p + i * kLanes / kCount);
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
    const Batch b = splat<Batch>(value);
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
    return make([&](int i) { return Math::div(a.v[i], b.v[i]); });
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
  // The larger one of two that are not negative, compared as integers: NaN is above infinity.
  static ME_INLINE Lanes larger_bits(const Lanes& a, const Lanes& b) {
    return make([&](int i) { return Math::larger_bits(a.v[i], b.v[i]); });
  }
  // a >= 0 rounded to a significand that is `bits` bits shorter, ties up.
  static ME_INLINE Lanes shorten(const Lanes& a, int bits) {
    return make([&](int i) {
      return Math::of_bits(((Math::bits(a.v[i]) + Math::integer(1 << (bits - 1))) >> bits) << bits);
    });
  }
  static ME_INLINE Lanes exp(const Lanes& a) {
    return make([&](int i) { return exp_lanes<Math>(a.v[i]); });
  }
  static ME_INLINE Lanes decay(const Lanes& x, const Lanes& a) {
    return make([&](int i) -> Batch {
      if constexpr (requires { Arch::decay(x.v[i], a.v[i]); }) {
        return Arch::decay(x.v[i], a.v[i]);
      } else {
        return decay_lanes<Math>(x.v[i], a.v[i]);
      }
    });
  }
  static ME_INLINE Lanes softplus(const Lanes& a) {
    return make([&](int i) { return softplus_lanes<Math>(a.v[i]); });
  }
  ME_INLINE void store_unaligned(float* p) const {
    ME_UNROLL
    for (int i = 0; i < kCount; ++i) v[i].store_unaligned(p + i * kWidth);
  }
  ME_INLINE bool all_equal(const Lanes& b) const {
    auto equal = v[0] == b.v[0];
    ME_UNROLL
    for (int i = 1; i < kCount; ++i) equal = equal & (v[i] == b.v[i]);
    return xsimd::all(equal);
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
  static ME_INLINE float number(float v) { return v; }
  static ME_INLINE uint32_t integer(uint32_t v) { return v; }
  static ME_INLINE uint32_t bits(float v) { return float_bits(v); }
  static ME_INLINE float of_bits(uint32_t v) { return bits_float(v); }
  static ME_INLINE float minus_abs(float v) { return of_bits(bits(v) | 0x80000000u); }
  static ME_INLINE float fma(float a, float b, float c) { return a * b + c; }
  static ME_INLINE float div(float a, float b) { return a / b; }
  static ME_INLINE float if_less(float a, float b, float yes, float no) { return a < b ? yes : no; }
  static ME_INLINE float raise_or_zero(float p, float shifted, float least) {
    return shifted < least ? 0.0f : of_bits(bits(p) + (bits(shifted) << 23));
  }
  static ME_INLINE float larger_bits(float a, float b) { return bits(a) > bits(b) ? a : b; }
};

template <typename Arch>
struct IntLanes {
  static constexpr int kCount = kLanes;
  int32_t v[kLanes];

  ME_INLINE void add_from(const int32_t* p) {
    for (int i = 0; i < kLanes; ++i) {
      v[i] = static_cast<int32_t>(static_cast<uint32_t>(v[i]) + static_cast<uint32_t>(p[i]));
    }
  }
  ME_INLINE void add(const IntLanes& b) {
    for (int i = 0; i < kLanes; ++i) v[i] += b.v[i];
  }
  ME_INLINE void store(int32_t* p) const {
    for (int i = 0; i < kLanes; ++i) p[i] = v[i];
  }
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
  static ME_INLINE Lanes larger_bits(const Lanes& a, const Lanes& b) {
    return make([&](int i) { return FloatMath::larger_bits(a.v[i], b.v[i]); });
  }
  static ME_INLINE Lanes shorten(const Lanes& a, int bits) {
    return make([&](int i) {
      return bits_float((float_bits(a.v[i]) + (1u << (bits - 1))) >> bits << bits);
    });
  }
  static ME_INLINE Lanes exp(const Lanes& a) {
    return make([&](int i) { return exp_lanes<FloatMath>(a.v[i]); });
  }
  static ME_INLINE Lanes decay(const Lanes& x, const Lanes& a) {
    return make([&](int i) { return decay_lanes<FloatMath>(x.v[i], a.v[i]); });
  }
  static ME_INLINE Lanes softplus(const Lanes& a) {
    return make([&](int i) { return softplus_lanes<FloatMath>(a.v[i]); });
  }
  ME_INLINE void store_unaligned(float* p) const { store(p); }
  ME_INLINE bool all_equal(const Lanes& b) const {
    bool equal = true;
    for (int i = 0; i < kLanes; ++i) equal &= v[i] == b.v[i];
    return equal;
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
