// The inner loops that decode spends its time in, one function each and one token, for scripts/mca: it compiles this
// file once per Arm table with the flags of that table's unit, takes the loop of each function from the assembly,
// and asks llvm-mca for its cycles. Not part of any build.
#include "platforms/simd/kernels_impl.h"

#if defined(__ARM_FEATURE_MATMUL_INT8)
#include "platforms/arm/matrix_dot.h"
using Isa = mamba_edge::MatrixDot;
#elif defined(__ARM_FEATURE_DOTPROD)
#include "platforms/arm/lane_dot.h"
using Isa = mamba_edge::LaneDot<mamba_edge::Sdot>;
#else
#include "platforms/arm/neon_dot.h"
using Isa = mamba_edge::NeonDot;
#endif

extern "C" {

void loop_int8(const uint8_t* w, size_t inputs, const int8_t* q, Isa::Ints* dot) {
  Isa::dot_i8<1>(w, inputs, &q, dot);
}

void loop_int6(const uint8_t* w, size_t inputs, const int8_t* q, Isa::Ints* dot) {
  Isa::dot_planes<1, mamba_edge::WeightType::int6>(w, inputs, &q, dot);
}

void loop_int5(const uint8_t* w, size_t inputs, const int8_t* q, Isa::Ints* dot) {
  Isa::dot_planes<1, mamba_edge::WeightType::int5>(w, inputs, &q, dot);
}

void loop_int4(const uint8_t* w, size_t inputs, const int8_t* q, Isa::Ints* dot) {
  Isa::dot_planes<1, mamba_edge::WeightType::int4>(w, inputs, &q, dot);
}

void loop_int3(const uint8_t* w, size_t inputs, const int8_t* q, Isa::Ints* dot) {
  Isa::dot_planes<1, mamba_edge::WeightType::int3>(w, inputs, &q, dot);
}

void loop_int2(const uint8_t* w, size_t inputs, const int8_t* q, Isa::Ints* dot) {
  Isa::dot_planes<1, mamba_edge::WeightType::int2>(w, inputs, &q, dot);
}

void loop_fp16(const uint8_t* w, size_t cols, const float* x, float* out) {
  mamba_edge::Kernels<Isa>::float_rows<1, true>(w, cols, x, cols, 1.0f, out, 16);
}

// The integer loop above inside the loop over groups of 64, with the groups' scales. Known to be 64, the inner loop
// is unrolled, so the loop that is left is the outer one.
void group_int8(const uint8_t* block, const mamba_edge::QuantisedRows* x, uint32_t groups,
                float* out) {
  const mamba_edge::MatrixShape shape{mamba_edge::WeightType::int8, 16, groups * 64, 64};
  mamba_edge::Kernels<Isa>::quantised_rows<1, 1, mamba_edge::WeightType::int8, false>(
      block, 0, nullptr, shape, *x, 0, 1.0f, out, 16);
}

void group_int4(const uint8_t* block, const mamba_edge::QuantisedRows* x, uint32_t groups,
                float* out) {
  const mamba_edge::MatrixShape shape{mamba_edge::WeightType::int4, 16, groups * 64, 64};
  mamba_edge::Kernels<Isa>::quantised_rows<1, 1, mamba_edge::WeightType::int4, false>(
      block, 0, nullptr, shape, *x, 0, 1.0f, out, 16);
}
}
