// Byte layouts of packed weights. Includes nothing of ours; holds no code that computes values.
//
// Every matrix is stored as row blocks of 16 output rows, and every kernel works on 16 rows at
// once, so no kernel reduces across lanes. Rows are padded to 16 and inputs (columns) to whole
// groups; padding has the value zero. A row block starts at a multiple of 64 bytes and is
// contiguous. Row block r, G = group, n = cols / G:
//
//   f32    float    [cols][16]                    element (row, col) at [col][row % 16]; no groups
//   f16    binary16 [cols][16]                    the same
//   int16  binary16 scale [n][16], padded to 64   value = scale * i16; float activations
//          int16 [cols][16]                       16 bits for weights that are not exact in binary16
//   int8, int6, int5, int4, int3, int2
//          binary16 scale [n][16], padded to 64   value = scale * (u - 2^(bits - 1)), u in
//          units of planes [cols / unit]          0..2^bits - 1 (int8: 1..255); scales may be negative
//
// A step is 16 rows x 4 consecutive inputs: 64 numbers, number 4 * (row % 16) + col % 4. A plane holds
// the same few bits of the numbers of some steps in lines of 64 bytes: byte k of a line has number k
// of each of its steps, the first step in the lowest bits. A unit is as many inputs as whole lines of
// all planes hold, and a group is whole units. Per unit, the lines of the low plane, then that of the
// high one:
//
//   type   unit   low plane                                  high plane: the bits above
//   int8   16     4 lines: bits 0-7 of one step each
//   int6   16     2 lines: bits 0-3 of two steps each        1 line: bits 4-5 of four steps
//   int5   32     4 lines: bits 0-3 of two steps each        1 line: bit 4 of eight steps *
//   int4   16     2 lines: bits 0-3 of two steps each
//   int3   32     2 lines: bits 0-1 of four steps each       1 line: bit 2 of eight steps *
//   int2   16     1 line:  bits 0-1 of four steps
//
// * Of steps 0 to 7 in this order, lowest bit first: 0, 1, 4, 5, 2, 3, 6, 7. So two steps that are four
// bits apart in a line of the low plane are four bits apart here, too, and are unpacked together.
//
// Rotation: where a matrix has one, B = 16, 32, 64 or 128 inputs, each run of B inputs of a row is stored
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
constexpr uint32_t kGroupMultiple = 16;  // a group is a multiple of this, of some types of 32
constexpr uint32_t kMaxGroup = 256;      // 256 * 255 * 127 * 2 stays far inside int32
constexpr uint32_t kBlockAlign = 64;
constexpr uint32_t kMaxRotation = 128;  // inputs; a rotation is 0 (none) or a power of two from 16
constexpr size_t kLineBytes = 64;  // of weights: a cache line, one byte for each number of a step

// Numbers are part of the container format and never change.
enum class WeightType : uint32_t {
  f32 = 1,
  f16 = 2,
  int8 = 3,
  int4 = 4,
  int16 = 5,
  int6 = 6,
  int5 = 7,
  int3 = 8,
  int2 = 9
};

struct TypeProperties {
  const char* name;
  uint32_t bits;       // of a weight
  bool is_grouped;     // groups of weights share a scale
  uint32_t low, high;  // bits in each plane; none where activations are float
  constexpr uint32_t unit() const { return high == 1 ? 32 : kGroupMultiple; }  // inputs
  constexpr uint32_t unit_lines() const { return unit() * bits / 32; }
  constexpr uint32_t low_lines() const { return unit() * low / 32; }
  // The lowest bit of a step of the unit in the line of the high plane.
  constexpr uint32_t high_at(uint32_t step) const {
    return high == 1 ? (step & 1) | (step & 2) << 1 | (step & 4) >> 1 : step * high;
  }
  constexpr int32_t zero() const { return 1 << (bits - 1); }  // of a weight in planes
};

// By number. Internal to each unit, as a kernel unit may share nothing.
constexpr TypeProperties kTypes[] = {
    {"?", 0, false, 0, 0},   {"fp32", 32, false, 0, 0}, {"fp16", 16, false, 0, 0},
    {"int8", 8, true, 8, 0}, {"int4", 4, true, 4, 0},   {"int16", 16, true, 0, 0},
    {"int6", 6, true, 4, 2}, {"int5", 5, true, 4, 1},   {"int3", 3, true, 2, 1},
    {"int2", 2, true, 2, 0},
};
constexpr uint32_t kTypeCount = sizeof(kTypes) / sizeof(kTypes[0]);

constexpr bool is_known(WeightType type) {
  return type >= WeightType::f32 && static_cast<uint32_t>(type) < kTypeCount;
}
// Of an unknown type: those of one that has no bits.
constexpr const TypeProperties& properties(WeightType type) {
  return kTypes[is_known(type) ? static_cast<uint32_t>(type) : 0];
}
// Whether weights of this type multiply activations that are quantised to int8 in groups.
constexpr bool is_quantised(WeightType type) { return properties(type).low > 0; }
// Whether groups of weights share a scale.
constexpr bool is_grouped(WeightType type) { return properties(type).is_grouped; }
constexpr const char* type_name(WeightType type) { return properties(type).name; }
// Of the types whose weights multiply quantised activations, widest first.
constexpr WeightType kQuantisedTypes[] = {WeightType::int8, WeightType::int6, WeightType::int5,
                                          WeightType::int4, WeightType::int3, WeightType::int2};

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
  // Bytes from the start of a row block to its first weight; and the same, known that there are groups.
  constexpr size_t scale_bytes() const { return is_grouped(type) ? group_scale_bytes() : 0; }
  constexpr size_t group_scale_bytes() const {
    return round_up<size_t>(size_t{groups()} * kTileRows * 2, kBlockAlign);
  }
  constexpr size_t weight_bytes() const {
    return size_t{cols} * kTileRows * properties(type).bits / 8;
  }
  constexpr size_t row_block_bytes() const {
    return round_up<size_t>(scale_bytes() + weight_bytes(), kBlockAlign);
  }
  constexpr size_t bytes() const { return row_block_bytes() * row_blocks(); }
};

static_assert(MatrixShape{WeightType::int8, 16, 64, 64}.row_block_bytes() == 64 + 1024);
static_assert(MatrixShape{WeightType::int8, 16, 128, 64}.row_block_bytes() == 64 + 2048);
static_assert(MatrixShape{WeightType::int4, 17, 128, 64}.bytes() == 2 * (64 + 1024));
static_assert(MatrixShape{WeightType::int6, 16, 16, 16}.row_block_bytes() == 64 + 192);
static_assert(MatrixShape{WeightType::int5, 16, 32, 32}.row_block_bytes() == 64 + 320);
static_assert(MatrixShape{WeightType::int3, 16, 32, 32}.row_block_bytes() == 64 + 192);
static_assert(MatrixShape{WeightType::int2, 16, 16, 16}.row_block_bytes() == 64 + 64);
static_assert(MatrixShape{WeightType::f16, 16, 10, 1}.row_block_bytes() == 320);

// A recurrent state in int8: per block of 16 channels, groups of up to kStateGroup states, the last one
// shorter, each
//   float scale[16]             0 only where q is 0; NaN where the lane is damaged
//   int8_t q[states][16]        value = scale * q, exactly; padded to whole lines
constexpr size_t kStateGroup = 64;
constexpr float kLeastStateScale = 0x1p-100f;

constexpr size_t int8_state_group_bytes(size_t states) {
  return kTileRows * sizeof(float) + round_up<size_t>(states * kTileRows, kLineBytes);
}
// Of one block.
constexpr size_t int8_state_bytes(size_t d_state) {
  const size_t rest = d_state % kStateGroup;
  return d_state / kStateGroup * int8_state_group_bytes(kStateGroup) +
         (rest != 0 ? int8_state_group_bytes(rest) : 0);
}
static_assert(int8_state_bytes(16) == 64 + 256);
static_assert(int8_state_bytes(130) == 2 * (64 + 1024) + 64 + 64);

}  // namespace mamba_edge
