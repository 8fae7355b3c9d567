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
    return make([&](int i) { return xsimd::fma(a.v[i], b.v[i], c.v[i]); });
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
    return make([&](int i) { return xsimd::exp(a.v[i]); });
  }
  static ME_INLINE Lanes softplus(const Lanes& a) {
    const Batch limit(kSoftplusLinear);
    return make([&](int i) {
      const Batch small = xsimd::log1p(xsimd::exp(xsimd::min(a.v[i], limit)));
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
    return make([&](int i) { return __builtin_expf(a.v[i]); });
  }
  static ME_INLINE Lanes softplus(const Lanes& a) {
    return make([&](int i) {
      return a.v[i] > kSoftplusLinear ? a.v[i] : __builtin_log1pf(__builtin_expf(a.v[i]));
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
