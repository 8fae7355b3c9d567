// Kernels for x86 with AVX-512 F, BW, DQ and VL.
#include "platforms/tables.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "platforms/x86/avx512.h"

namespace mamba_edge {
namespace {

struct Avx512Isa : Avx512Lanes, X86Dot<Avx512Registers, Avx512> {
  static constexpr int int_blocks(WeightType type) { return type == WeightType::int8 ? 4 : 0; }
};

}  // namespace

const KernelTable* avx512_table() {
  static constexpr KernelTable table = Kernels<Avx512Isa>::table("avx512");
  return &table;
}

}  // namespace mamba_edge

#else

const mamba_edge::KernelTable* mamba_edge::avx512_table() { return nullptr; }

#endif
