// Kernels for x86 with AVX2, FMA and F16C.
#include "platforms/tables.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "platforms/x86/avx2.h"

namespace mamba_edge {
namespace {

struct Avx2Isa : Avx2Lanes, X86Dot<Avx2Registers, Avx2> {
  static constexpr int int_blocks(WeightType type) { return type == WeightType::int8 ? 4 : 0; }
  static constexpr int32_t kZero8 = 0;  // dot_i8 takes the zero off the weights itself

  // `vpmaddubsw` on |activation| and weight * sign(activation): the sum of two products is at most
  // 2 * 127 * 127 and never saturates.
  template <int T>
  static ME_INLINE void dot_i8(const uint8_t* w, size_t inputs, const int8_t* const* q, Ints* dot) {
    const __m256i zero = _mm256_set1_epi8(-128), ones = _mm256_set1_epi16(1);
    __m256i acc[T][2];
    load_sums(dot, acc);
    for (size_t i = 0; i < inputs; i += kStepInputs, w += kTileRows * kStepInputs) {
      read_ahead(w);
      __m256i weights[2];
      ME_UNROLL
      for (int r = 0; r < 2; ++r) {
        weights[r] = _mm256_xor_si256(Avx2Registers::load(w + 32 * r), zero);
      }
      ME_UNROLL
      for (int t = 0; t < T; ++t) {
        const __m256i a = Avx2Registers::set(load_step(q[t] + i));
        const __m256i magnitude = _mm256_abs_epi8(a);
        ME_UNROLL
        for (int r = 0; r < 2; ++r) {
          const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(weights[r], a));
          acc[t][r] = _mm256_add_epi32(acc[t][r], _mm256_madd_epi16(pairs, ones));
        }
      }
    }
    store_sums(acc, dot);
  }
};

}  // namespace

const KernelTable* avx2_table() {
  static constexpr KernelTable table = Kernels<Avx2Isa>::table("avx2");
  return &table;
}

}  // namespace mamba_edge

#else

const mamba_edge::KernelTable* mamba_edge::avx2_table() { return nullptr; }

#endif
