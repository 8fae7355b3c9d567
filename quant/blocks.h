// Byte layouts of packed weights. Includes nothing of ours; holds no code that computes values.
//
// Every matrix is stored as row blocks of 16 output rows, and every kernel works on 16 rows at
// once, so no kernel reduces across lanes. Rows are padded to 16 and inputs (columns) to whole
// groups; padding has the value zero. A row block starts at a multiple of 64 bytes and is
// contiguous. Row block r, G = group, n = cols / G:
//
//   f32    float    [cols][16]                    element (row, col) at [col][row % 16]; no groups
//   f16    binary16 [cols][16]                    the same
//   int8   binary16 scale [n][16], padded to 64   value = scale * (u8 - 128), u8 in 1..255
//          u8 [n][G / 4][16][4]                   a step: 16 rows x 4 consecutive inputs = 64 bytes
//   int4   binary16 scale [n][16], padded to 64   value = scale * (nibble - 8), nibble in 0..15
//          u8 [n][G / 8][16][4]                   low nibbles: step 2s, high nibbles: step 2s + 1
//   int16  binary16 scale [n][16], padded to 64   value = scale * i16; float activations
//          int16 [cols][16]                       16 bits for weights that are not exact in binary16
//
// Rotation: where a matrix has one, B = 16, 32 or 64 inputs, each run of B inputs of a row is stored
// as its Walsh-Hadamard transform, w' = w H / B with H[i][j] = (-1)^popcount(i & j), and multiplies
// activations transformed likewise, x' = H x; H H = B, so w' x' = w x. It spreads outliers over
// their group, which the few bits of a group's integers then resolve better.
//
// All values are also multiplied by the matrix's own float `scale`, a power of two that keeps the
// binary16 numbers in their normal range. A step is one AVX-512 `vpdpbusd`, two AVX2 halves or four
// NEON `sdot` by lane against a broadcast of 4 activations, and 16 steps (G = 64) are one AMX B
// tile, so decode and prefill share one copy.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mamba_edge {

constexpr uint32_t kTileRows = 16;       // rows of a row block, lanes of a kernel
constexpr uint32_t kStepInputs = 4;      // consecutive inputs of a row in one step
constexpr uint32_t kGroupMultiple = 16;  // a group is a multiple of this
constexpr uint32_t kMaxGroup = 256;      // 256 * 255 * 127 * 2 stays far inside int32
constexpr uint32_t kBlockAlign = 64;
constexpr uint32_t kMaxRotation = 128;  // inputs; a rotation is 0 (none) or a power of two from 16

// Numbers are part of the container format and never change.
enum class WeightType : uint32_t { f32 = 1, f16 = 2, int8 = 3, int4 = 4, int16 = 5 };

constexpr bool is_known(WeightType type) {
  return type >= WeightType::f32 && type <= WeightType::int16;
}
// Whether weights of this type multiply activations that are quantised to int8 in groups.
constexpr bool is_quantised(WeightType type) {
  return type == WeightType::int8 || type == WeightType::int4;
}
// Whether groups of weights share a scale.
constexpr bool is_grouped(WeightType type) {
  return is_quantised(type) || type == WeightType::int16;
}
constexpr const char* type_name(WeightType type) {
  switch (type) {
    case WeightType::f32:
      return "fp32";
    case WeightType::f16:
      return "fp16";
    case WeightType::int8:
      return "int8";
    case WeightType::int4:
      return "int4";
    case WeightType::int16:
      return "int16";
  }
  return "?";
}

template <typename T>
constexpr T round_up(T value, T multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// The longest rotation for groups of this many inputs.
constexpr uint32_t rotation_of(uint32_t group) {
  const uint32_t largest = group & ~(group - 1);  // power of two that divides it
  return largest < kMaxRotation ? largest : kMaxRotation;
}

// Layout of one matrix. `cols` counts the padded inputs; group is 1 for types without groups.
struct MatrixShape {
  WeightType type = WeightType::f32;
  uint32_t rows = 0;      // logical
  uint32_t cols = 0;      // padded to a multiple of group
  uint32_t group = 1;     // inputs that share a scale
  uint32_t rotation = 0;  // inputs that are rotated together, a divisor of group; 0: none

  constexpr uint32_t row_blocks() const { return (rows + kTileRows - 1) / kTileRows; }
  constexpr uint32_t groups() const { return cols / group; }
  // Bytes from the start of a row block to its first weight.
  constexpr size_t scale_bytes() const {
    return is_grouped(type) ? round_up<size_t>(size_t{groups()} * kTileRows * 2, kBlockAlign) : 0;
  }
  constexpr size_t weight_bytes() const {
    const size_t elements = size_t{cols} * kTileRows;
    switch (type) {
      case WeightType::f32:
        return elements * 4;
      case WeightType::f16:
      case WeightType::int16:
        return elements * 2;
      case WeightType::int8:
        return elements;
      case WeightType::int4:
        return elements / 2;
    }
    return 0;
  }
  constexpr size_t row_block_bytes() const {
    return round_up<size_t>(scale_bytes() + weight_bytes(), kBlockAlign);
  }
  constexpr size_t bytes() const { return row_block_bytes() * row_blocks(); }
};

static_assert(MatrixShape{WeightType::int8, 16, 64, 64}.row_block_bytes() == 64 + 1024);
static_assert(MatrixShape{WeightType::int8, 16, 128, 64}.row_block_bytes() == 64 + 2048);
static_assert(MatrixShape{WeightType::int4, 17, 128, 64}.bytes() == 2 * (64 + 1024));
static_assert(MatrixShape{WeightType::f16, 16, 10, 1}.row_block_bytes() == 320);

}  // namespace mamba_edge
