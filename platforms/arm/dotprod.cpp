// Kernels for Arm with the dot product instructions (Cortex-A55, A75 and later).
#include "platforms/tables.h"

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#include "platforms/arm/lane_dot.h"
#include "platforms/simd/kernels_impl.h"

const mamba_edge::KernelTable* mamba_edge::dotprod_table() {
  static constexpr KernelTable table = Kernels<LaneDot<Sdot>>::table("dotprod");
  return &table;
}

#else

const mamba_edge::KernelTable* mamba_edge::dotprod_table() { return nullptr; }

#endif
