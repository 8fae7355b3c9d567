// Kernels for Arm with the 8-bit matrix instructions (Cortex-A510, X2, Neoverse V1 and later).
#include "platforms/tables.h"

#if defined(__aarch64__) && defined(__ARM_FEATURE_MATMUL_INT8)
#include "platforms/arm/matrix_dot.h"
#include "platforms/simd/kernels_impl.h"

const mamba_edge::KernelTable* mamba_edge::i8mm_table() {
  static constexpr KernelTable table = Kernels<MatrixDot>::table("i8mm");
  return &table;
}

#else

const mamba_edge::KernelTable* mamba_edge::i8mm_table() { return nullptr; }

#endif
