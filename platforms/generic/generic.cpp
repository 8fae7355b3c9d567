// Kernels in plain C++: for any machine, and the yardstick of the others.
#define MAMBA_EDGE_GENERIC_LANES
#include "platforms/simd/kernels_impl.h"
#include "platforms/simd/planes.h"
#include "platforms/tables.h"

namespace mamba_edge {
namespace {

// A line of weights; see platforms/simd/planes.h.
struct Bytes {
  struct Reg {
    uint8_t v[kLineBytes];
  };
  static ME_INLINE Reg load(const uint8_t* p) {
    Reg r;
    std::memcpy(r.v, p, sizeof(r.v));
    return r;
  }
  template <int kBits, int kAt>
  static ME_INLINE Reg field(const Reg& line) {
    Reg r;
    for (size_t i = 0; i < kLineBytes; ++i) {
      r.v[i] = static_cast<uint8_t>(line.v[i] >> kAt & ((1 << kBits) - 1));
    }
    return r;
  }
  template <int kLow, int kLowAt, int kHigh, int kHighAt>
  static ME_INLINE Reg join(const Reg& low, const Reg& high) {
    Reg r;
    for (size_t i = 0; i < kLineBytes; ++i) {
      r.v[i] = static_cast<uint8_t>((low.v[i] >> kLowAt & ((1 << kLow) - 1)) |
                                    (high.v[i] >> kHighAt & ((1 << kHigh) - 1)) << kLow);
    }
    return r;
  }
  template <int kLowAt, int kHighAt>
  static ME_INLINE void join_pair(const Reg& low, const Reg& high, Reg& first, Reg& second) {
    first = join<2, kLowAt, 1, kHighAt>(low, high);
    second = join<2, kLowAt + 4, 1, kHighAt + 4>(low, high);
  }
};

struct GenericIsa {
  using Arch = Generic;
  using V = Lanes<Arch>;
  using Ints = V::Ints;
  static constexpr int kFloatTokens = 4;
  static constexpr int kIntTokens = 4;
  static constexpr int32_t kZero8 = 128;

  static ME_INLINE Ints broadcast_int(int32_t value) {
    Ints r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = value;
    return r;
  }

  using PeakReg = Ints;
  static constexpr uint64_t kPeakProducts = kLanes;
  static ME_INLINE Ints peak_fill(int32_t v) { return broadcast_int(v); }
  static ME_INLINE void peak_opaque(Ints& v) { __asm__ volatile("" : "+m"(v)); }
  static ME_INLINE Ints peak_step(Ints sum, Ints& w) {
    peak_opaque(w);
    for (int i = 0; i < kLanes; ++i) {
      const int product = static_cast<int8_t>(w.v[i]) * static_cast<int8_t>(w.v[i] >> 8);
      sum.v[i] =
          static_cast<int32_t>(static_cast<uint32_t>(sum.v[i]) + static_cast<uint32_t>(product));
    }
    return sum;
  }

  // Rebiases the exponent; subnormals go through a subtraction that makes them normal, and is
  // exact.
  static ME_INLINE V from_f16(const uint16_t* p) {
    constexpr uint32_t kRebias = 112u << 23, kExponent = 0x0f800000u, kImplicit = 1u << 23;
    return V::make([&](int i) {
      const uint32_t h = p[i];
      const uint32_t sign = (h & 0x8000u) << 16;
      uint32_t bits = (h & 0x7fffu) << 13;
      const uint32_t exponent = bits & kExponent;
      bits += kRebias + (exponent == kExponent ? kRebias : 0u);  // infinity, NaN
      const float subnormal = bits_float(bits + kImplicit) - bits_float(kRebias + kImplicit);
      return bits_float((exponent == 0 ? float_bits(subnormal) : bits) | sign);
    });
  }

  // Below 2^-14 the sum with 1/2 has a last bit worth 2^-24, as a subnormal binary16 number has.
  static ME_INLINE void to_f16(const V& x, uint16_t* p) {
    for (int i = 0; i < kLanes; ++i) {
      const uint32_t bits = float_bits(x.v[i]);
      const uint32_t magnitude = bits & 0x7fffffffu;
      const uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
      const uint32_t odd = (magnitude >> 13) & 1u;
      uint32_t half = (magnitude - (112u << 23) + 0xfffu + odd) >> 13;
      half = magnitude < 0x38800000u ? subnormal : half;
      half = magnitude >= 0x477ff000u ? 0x7c00u : half;
      half = magnitude > 0x7f800000u ? 0x7e00u : half;
      p[i] = static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u));
    }
  }

  static ME_INLINE V from_i8(const int8_t* p) {
    return V::make([&](int i) { return static_cast<float>(p[i]); });
  }

  static ME_INLINE V from_i16(const int16_t* p) {
    return V::make([&](int i) { return static_cast<float>(p[i]); });
  }

  static ME_INLINE Ints quantise(const V& x, int8_t* q) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: the sum's last bit is worth 1
    Ints r;
    for (int i = 0; i < kLanes; ++i) {
      const uint32_t bits = float_bits(x.v[i] + kRound) - float_bits(kRound);
      q[i] = static_cast<int8_t>(bits & 0xffu);
      r.v[i] = q[i];
    }
    return r;
  }

  template <int S>
  static ME_INLINE V swap(const V& x) {
    return V::make([&](int i) { return x.v[i ^ S]; });
  }

  template <int T>
  static ME_INLINE void dot_i8(const uint8_t* w, size_t inputs, const int8_t* const* q, Ints* dot) {
    for (size_t i = 0; i < inputs; i += kStepInputs, w += kTileRows * kStepInputs) {
      for (int t = 0; t < T; ++t) {
        const int8_t* a = q[t] + i;
        const int a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3];
        for (int r = 0; r < kLanes; ++r) {
          dot[t].v[r] += w[4 * r] * a0 + w[4 * r + 1] * a1 + w[4 * r + 2] * a2 + w[4 * r + 3] * a3;
        }
      }
    }
  }

  template <int T, WeightType kType, int kPart>
  static ME_INLINE void multiply_part(const uint8_t* unit, size_t i, const int8_t* const* q,
                                      Ints* dot) {
    Bytes::Reg steps[kPartSteps];
    unpack_part<Bytes, kType, kPart>(unit, steps);
    for (size_t k = 0; k < kPartSteps; k += 2, i += 2 * kStepInputs) {
      const uint8_t *low = steps[k].v, *high = steps[k + 1].v;
      for (int t = 0; t < T; ++t) {
        const int8_t* a = q[t] + i;
        const int a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3];
        const int b0 = a[4], b1 = a[5], b2 = a[6], b3 = a[7];
        for (int r = 0; r < kLanes; ++r) {
          dot[t].v[r] += low[4 * r] * a0 + low[4 * r + 1] * a1 + low[4 * r + 2] * a2 +
                         low[4 * r + 3] * a3 + high[4 * r] * b0 + high[4 * r + 1] * b1 +
                         high[4 * r + 2] * b2 + high[4 * r + 3] * b3;
        }
      }
    }
  }

  template <int T, WeightType kType>
  static ME_INLINE void dot_planes(const uint8_t* w, size_t inputs, const int8_t* const* q,
                                   Ints* dot) {
    using Unit = Planes<kType>;
    for (size_t i = 0; i < inputs; i += Unit::kInputs, w += Unit::kBytes) {
      multiply_part<T, kType, 0>(w, i, q, dot);
      if constexpr (Unit::kParts > 1) multiply_part<T, kType, 1>(w, i + kGroupMultiple, q, dot);
    }
  }
};

}  // namespace

const KernelTable* generic_table() {
  static constexpr KernelTable table = Kernels<GenericIsa>::table("generic");
  return &table;
}

}  // namespace mamba_edge
