// Kernels for x86 with AVX2, FMA, F16C and the 256-bit AVX-VNNI.
#include "platforms/tables.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && defined(__AVXVNNI__)
#include "platforms/x86/avx2.h"
#include "platforms/x86/vnni.h"

namespace mamba_edge {
namespace {

struct Vnni256Registers : Avx2Registers {
  // gcc 12 copies every sum before and after the intrinsic.
  static ME_INLINE Reg dot(Reg sum, Reg w, Reg q) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(w), "x"(q));
    return sum;
  }
  static ME_INLINE Reg add(Reg a, Reg b) { return _mm256_add_epi32(a, b); }
  static ME_INLINE Reg and_not(Reg a, Reg b) { return _mm256_andnot_si256(a, b); }
  static ME_INLINE Reg sixteenth(Reg a) { return _mm256_srai_epi32(a, 4); }
};

struct AvxVnniIsa : Avx2Lanes, VnniDot<Vnni256Registers, Avx2> {};

}  // namespace

const KernelTable* avxvnni_table() {
  static constexpr KernelTable table = Kernels<AvxVnniIsa>::table("avxvnni");
  return &table;
}

}  // namespace mamba_edge

#else

const mamba_edge::KernelTable* mamba_edge::avxvnni_table() { return nullptr; }

#endif
