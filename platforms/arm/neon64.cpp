// Kernels for every 64-bit Arm: NEON.
#include "platforms/tables.h"

#if defined(__aarch64__) && defined(__ARM_NEON)
#include "platforms/arm/neon_dot.h"
#include "platforms/simd/kernels_impl.h"

const mamba_edge::KernelTable* mamba_edge::neon_table() {
  static constexpr KernelTable table = Kernels<NeonDot>::table("neon");
  return &table;
}

#else

const mamba_edge::KernelTable* mamba_edge::neon_table() { return nullptr; }

#endif
