// Weights that are cut in planes, back to the bytes of their steps (quant/blocks.h), written once over
// what a register is. Only for kernel units; see platforms/simd/lanes.h.
//
// R supplies:
//   Reg load(p)
//   field<kBits, kAt>(line): bits kAt to kAt + kBits - 1 of every byte, shifted down.
//   join<kLow, kLowAt, kHigh, kHighAt>(low, high): the field of `low`, and above it that of `high`.
//   join_pair<kLowAt, kHighAt>(low, high, first, second): the same twice, of two bits and one, and of
//     those four bits further on; kLowAt is 0 or 2, kHighAt 0 to 3.
#pragma once

#include "platforms/simd/lanes.h"
#include "quant/blocks.h"

namespace mamba_edge {
namespace {

template <WeightType kType>
struct Planes {
  static constexpr TypeProperties kProperties = properties(kType);
  static constexpr size_t kInputs = kProperties.unit();  // of a unit
  static constexpr size_t kLines = kProperties.unit_lines();
  static constexpr size_t kBytes = kLines * kLineBytes;
  static constexpr size_t kParts = kInputs / kGroupMultiple;
};
constexpr int kPartSteps = kGroupMultiple / kStepInputs;

template <WeightType kType>
ME_INLINE void read_unit_ahead(const uint8_t* unit) {
  ME_UNROLL
  for (size_t i = 0; i < Planes<kType>::kLines; ++i) read_ahead(unit + i * kLineBytes);
}

// Step kStep of a part, from its lines.
template <typename R, WeightType kType, int kPart, int kStep>
ME_INLINE typename R::Reg plane_step(const typename R::Reg* low, typename R::Reg high) {
  constexpr int kLow = Planes<kType>::kProperties.low, kHigh = Planes<kType>::kProperties.high;
  constexpr int kBit = kStep * kLow;
  if constexpr (kLow == 8) {
    return low[kStep];
  } else if constexpr (kHigh == 0) {
    return R::template field<kLow, kBit % 8>(low[kBit / 8]);
  } else {
    constexpr int kHighAt = Planes<kType>::kProperties.high_at(kPart * kPartSteps + kStep);
    return R::template join<kLow, kBit % 8, kHigh, kHighAt>(low[kBit / 8], high);
  }
}

// The steps of 16 inputs, part kPart of a unit, as far as they are in one register; `at` is where
// that register is in the first line of the unit.
template <typename R, WeightType kType, int kPart>
ME_INLINE void unpack_part(const uint8_t* at, typename R::Reg (&steps)[kPartSteps]) {
  constexpr TypeProperties kProperties = Planes<kType>::kProperties;
  constexpr size_t kLowLines = kPartSteps * kProperties.low / 8;
  typename R::Reg low[kLowLines];
  ME_UNROLL
  for (size_t i = 0; i < kLowLines; ++i) {
    low[i] = R::load(at + (kPart * kLowLines + i) * kLineBytes);
  }
  typename R::Reg high = low[0];
  if constexpr (kProperties.high > 0) high = R::load(at + kProperties.low_lines() * kLineBytes);
  if constexpr (kType == WeightType::int3) {
    R::template join_pair<0, kProperties.high_at(kPart * 4)>(low[0], high, steps[0], steps[2]);
    R::template join_pair<2, kProperties.high_at(kPart * 4 + 1)>(low[0], high, steps[1], steps[3]);
  } else {
    steps[0] = plane_step<R, kType, kPart, 0>(low, high);
    steps[1] = plane_step<R, kType, kPart, 1>(low, high);
    steps[2] = plane_step<R, kType, kPart, 2>(low, high);
    steps[3] = plane_step<R, kType, kPart, 3>(low, high);
  }
}

}  // namespace
}  // namespace mamba_edge
