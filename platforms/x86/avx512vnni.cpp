// Kernels for x86 with AVX-512 F, BW, DQ, VL and VNNI.
#include "platforms/tables.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__) && defined(__AVX512VNNI__)
#include "platforms/x86/avx512.h"
#include "platforms/x86/vnni.h"

namespace mamba_edge {
namespace {

struct Vnni512Registers : Avx512Registers {
  // gcc 12 copies every sum before and after the intrinsic, which takes longer than the products.
  static ME_INLINE Reg dot(Reg sum, Reg w, Reg q) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(q));
    return sum;
  }
  static ME_INLINE Reg add(Reg a, Reg b) { return _mm512_add_epi32(a, b); }
  static ME_INLINE Reg and_not(Reg a, Reg b) { return _mm512_andnot_si512(a, b); }
  static ME_INLINE Reg sixteenth(Reg a) { return _mm512_srai_epi32(a, 4); }
};

struct Avx512VnniIsa : Avx512Lanes, VnniDot<Vnni512Registers, Avx512> {
  static constexpr int int_blocks(WeightType type) {
    return type == WeightType::int8 || type == WeightType::int4 ? 2 : 0;
  }
};

}  // namespace

const KernelTable* avx512vnni_table() {
  static constexpr KernelTable table = Kernels<Avx512VnniIsa>::table("avx512vnni");
  return &table;
}

}  // namespace mamba_edge

#else

const mamba_edge::KernelTable* mamba_edge::avx512vnni_table() { return nullptr; }

#endif
