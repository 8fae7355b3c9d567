#include "quant/sorted.h"

#include <cstring>
#include <type_traits>
#include <utility>

namespace mamba_edge {
namespace {

// Each primitive goes both ways: kSort from row blocks to runs, otherwise back.
template <bool kSort>
using Blocks = std::conditional_t<kSort, const uint8_t*, uint8_t*>;
template <bool kSort>
using Runs = std::conditional_t<kSort, uint8_t*, const uint8_t*>;

// n numbers of kBytes bytes in a row block; byte k of each, counted from the most significant, in
// a run that starts at k * stride.
template <bool kSort, size_t kBytes>
void move_bytes(Blocks<kSort> block, Runs<kSort> runs, size_t stride, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    for (size_t k = 0; k < kBytes; ++k) {
      auto& in_block = block[i * kBytes + kBytes - 1 - k];
      auto& in_run = runs[k * stride + i];
      if constexpr (kSort) {
        in_run = in_block;
      } else {
        in_block = in_run;
      }
    }
  }
}

template <bool kSort>
void move(Blocks<kSort> block, Runs<kSort> run, size_t n) {
  if constexpr (kSort) {
    std::memcpy(run, block, n);
  } else {
    std::memcpy(block, run, n);
  }
}

// Inverts the low bits of a step's numbers where their high bit is 0, so that small magnitudes are
// small numbers for both signs. low: lines of a unit's low plane; high: the line of its high plane.
template <uint32_t kLow, uint32_t kStep>
void invert_negative(uint8_t* low, const uint8_t* high) {
  constexpr uint32_t shift = kStep * kLow % 8, mask = ((1u << kLow) - 1) << shift;
  constexpr uint32_t bit = properties(WeightType::int5).high_at(kStep);  // the same for int3
  uint8_t* line = low + kStep * kLow / 8 * kLineBytes;
  for (size_t k = 0; k < kLineBytes; ++k) {
    line[k] = static_cast<uint8_t>(line[k] ^ (((high[k] >> bit & 1) - 1) & mask));
  }
}

template <uint32_t kLow, uint32_t... kSteps>
void invert_negative(uint8_t* low, const uint8_t* high,
                     std::integer_sequence<uint32_t, kSteps...>) {
  (invert_negative<kLow, kSteps>(low, high), ...);
}

void invert_negative(WeightType type, uint8_t* low, const uint8_t* high) {
  constexpr std::make_integer_sequence<uint32_t, 8> steps;
  if (type == WeightType::int5) invert_negative<4>(low, high, steps);
  if (type == WeightType::int3) invert_negative<2>(low, high, steps);
}

// The weights of a row block of a type with two planes.
template <bool kSort>
void move_planes(const MatrixShape& shape, Blocks<kSort> block, Runs<kSort> low, Runs<kSort> high) {
  const TypeProperties& p = properties(shape.type);
  const size_t low_bytes = p.low_lines() * kLineBytes;
  for (uint32_t c = 0; c < shape.cols; c += p.unit()) {
    move<kSort>(block, low, low_bytes);
    move<kSort>(block + low_bytes, high, kLineBytes);
    if constexpr (kSort) {
      invert_negative(shape.type, low, high);
    } else {
      invert_negative(shape.type, block, high);
    }
    block += low_bytes + kLineBytes;
    low += low_bytes;
    high += kLineBytes;
  }
}

template <bool kSort>
void move_row_blocks(const MatrixShape& shape, size_t n, Blocks<kSort> block, Runs<kSort> runs) {
  const size_t block_bytes = shape.row_block_bytes(), scale_bytes = shape.scale_bytes();
  const size_t weight_bytes = block_bytes - scale_bytes;
  const TypeProperties& p = properties(shape.type);
  const size_t low_bytes =
      p.high > 0 ? weight_bytes / p.unit_lines() * p.low_lines() : weight_bytes;
  Runs<kSort> weights = runs + n * scale_bytes;
  for (size_t b = 0; b < n; ++b, block += block_bytes) {
    move_bytes<kSort, 2>(block, runs + b * (scale_bytes / 2), n * (scale_bytes / 2),
                         scale_bytes / 2);
    Blocks<kSort> w = block + scale_bytes;
    switch (shape.type) {
      case WeightType::f32:
        move_bytes<kSort, 4>(w, weights + b * (weight_bytes / 4), n * (weight_bytes / 4),
                             weight_bytes / 4);
        break;
      case WeightType::f16:
      case WeightType::int16:
        move_bytes<kSort, 2>(w, weights + b * (weight_bytes / 2), n * (weight_bytes / 2),
                             weight_bytes / 2);
        break;
      case WeightType::int6:
      case WeightType::int5:
      case WeightType::int3:
        move_planes<kSort>(shape, w, weights + b * low_bytes,
                           weights + n * low_bytes + b * (weight_bytes - low_bytes));
        break;
      default:
        move<kSort>(w, weights + b * weight_bytes, weight_bytes);
    }
  }
}

}  // namespace

void sort_row_blocks(const MatrixShape& shape, size_t n, const uint8_t* from, uint8_t* to) {
  move_row_blocks<true>(shape, n, from, to);
}

void unsort_row_blocks(const MatrixShape& shape, size_t n, const uint8_t* from, uint8_t* to) {
  move_row_blocks<false>(shape, n, to, from);
}

size_t sorted_runs(const MatrixShape& shape, size_t n, size_t bytes[kMostRuns]) {
  size_t runs = 0;
  const auto add = [&](size_t run_bytes, size_t count) {
    for (size_t i = 0; i < count; ++i) bytes[runs++] = n * run_bytes;
  };
  const size_t scale_bytes = shape.scale_bytes();
  const size_t weight_bytes = shape.row_block_bytes() - scale_bytes;
  const TypeProperties& p = properties(shape.type);
  if (scale_bytes > 0) add(scale_bytes / 2, 2);
  if (!is_quantised(shape.type)) {
    add(weight_bytes * 8 / p.bits, p.bits / 8);
  } else if (p.high > 0) {
    add(weight_bytes / p.unit_lines() * p.low_lines(), 1);
    add(weight_bytes / p.unit_lines(), 1);
  } else {
    add(weight_bytes, 1);
  }
  return runs;
}

}  // namespace mamba_edge
