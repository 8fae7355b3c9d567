// Packed weights: where every byte lies, and how far a decoded weight may be from its source.
#include "quant/encode.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "quant/decode.h"
#include "quant/half.h"

namespace mamba_edge {
namespace {

using Floats = std::vector<float>;

constexpr WeightType kTypes[] = {WeightType::f32,  WeightType::f16,  WeightType::int16,
                                 WeightType::int8, WeightType::int6, WeightType::int5,
                                 WeightType::int4, WeightType::int3, WeightType::int2};

// Types whose weights are cut in planes: bits of a weight, of its low plane, inputs of a unit.
struct Cut {
  uint32_t bits, low, unit;
};
Cut cut_of(WeightType type) {
  switch (type) {
    case WeightType::int8:
      return {8, 8, 16};
    case WeightType::int6:
      return {6, 4, 16};
    case WeightType::int5:
      return {5, 4, 32};
    case WeightType::int4:
      return {4, 4, 16};
    case WeightType::int3:
      return {3, 2, 32};
    case WeightType::int2:
      return {2, 2, 16};
    default:
      return {0, 0, 16};
  }
}
bool is_searched(WeightType type) { return cut_of(type).bits > 0 && type != WeightType::int8; }

struct Packed {
  MatrixShape shape;
  float scale = 1;
  std::vector<uint8_t> bytes;
  EncodeError error;
};

// Packs `values` [rows][cols].
Packed pack(WeightType type, uint32_t rows, uint32_t cols, uint32_t group, const Floats& values) {
  Packed p;
  p.shape = matrix_shape(type, rows, cols, group);
  float max_abs = 0;
  for (const float v : values) max_abs = std::max(max_abs, std::fabs(v));
  p.scale = matrix_scale(type, max_abs);
  // One guard element per row: the stride need not be the width.
  const size_t stride = p.shape.cols + 1;
  const size_t blocks = (rows + 15) / 16;
  Floats padded(blocks * 16 * stride, 0.0f);
  for (size_t r = 0; r < blocks * 16; ++r) {
    padded[r * stride + p.shape.cols] = NAN;
    for (size_t c = 0; c < cols && r < rows; ++c) padded[r * stride + c] = values[r * cols + c];
  }
  p.bytes.assign(p.shape.bytes(), 0xEE);
  for (size_t b = 0; b < blocks; ++b) {
    p.error.add(encode_row_block(p.shape, p.scale, padded.data() + b * 16 * stride, stride,
                                 p.bytes.data() + b * p.shape.row_block_bytes()));
  }
  return p;
}

Floats decode(const Packed& p, uint32_t rows, uint32_t cols) {
  Floats out(size_t{rows} * cols);
  for (uint32_t r = 0; r < rows; ++r) {
    decode_row(p.shape, p.scale, p.bytes.data(), r, cols, out.data() + size_t{r} * cols);
  }
  return out;
}

Floats random_values(size_t n, float magnitude, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  Floats values(n);
  for (float& v : values) v = magnitude * normal(random);
  return values;
}

size_t up_to(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// The layout as quant/blocks.h words it, in plain indices.
struct Place {
  size_t group_scale = 0;  // of the binary16 scale, where there is one
  size_t byte = 0;         // of the weight, or of its low bits
  uint32_t shift = 0;      // of those
  size_t high_byte = 0;    // of its high bits, where they lie apart
  uint32_t high_shift = 0;
};

Place place_of(WeightType type, size_t cols, size_t group, size_t row, size_t col) {
  const Cut cut = cut_of(type);
  const size_t n = cols / group, lane = row % 16;
  const bool grouped = type != WeightType::f32 && type != WeightType::f16;
  const size_t scales = grouped ? up_to(n * 16 * 2, 64) : 0;
  const size_t weights = type == WeightType::f32 ? cols * 16 * 4
                         : cut.bits > 0          ? cols * 16 * cut.bits / 8
                                                 : cols * 16 * 2;
  const size_t start = row / 16 * up_to(scales + weights, 64);
  Place place;
  place.group_scale = start + (col / group * 16 + lane) * 2;
  place.byte = start + scales;
  if (type == WeightType::f32) {
    place.byte += (col * 16 + lane) * 4;
  } else if (cut.bits == 0) {
    place.byte += (col * 16 + lane) * 2;
  } else {
    constexpr uint32_t kBitOf[] = {0, 1, 4, 5, 2, 3, 6, 7};  // of eight steps in one line
    const size_t step = col % cut.unit / 4, steps_in_line = 8 / cut.low;
    place.byte += col / cut.unit * (cut.unit * cut.bits * 2) + lane * 4 + col % 4;
    place.high_byte = place.byte + cut.unit * cut.low * 2;
    place.byte += step / steps_in_line * 64;
    place.shift = static_cast<uint32_t>(step % steps_in_line) * cut.low;
    place.high_shift = cut.bits - cut.low == 1 ? kBitOf[step] : static_cast<uint32_t>(step) * 2;
  }
  return place;
}

template <typename T>
T at(const std::vector<uint8_t>& bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

// The value of (row, col) and the step of its group, without the library's decoder.
std::pair<double, double> read(const Packed& p, size_t row, size_t col) {
  const Place place = place_of(p.shape.type, p.shape.cols, p.shape.group, row, col);
  const double scale = static_cast<double>(p.scale);
  const auto half = [&](size_t offset) {
    return static_cast<double>(half_to_float(at<uint16_t>(p.bytes, offset)));
  };
  switch (p.shape.type) {
    case WeightType::f32:
      return {scale * static_cast<double>(at<float>(p.bytes, place.byte)), 0.0};
    case WeightType::f16:
      return {scale * half(place.byte), 0.0};
    default:
      break;
  }
  const double step = scale * half(place.group_scale);
  int q = 0;
  if (p.shape.type == WeightType::int16) q = at<int16_t>(p.bytes, place.byte);
  if (const Cut cut = cut_of(p.shape.type); cut.bits > 0) {
    q = p.bytes[place.byte] >> place.shift & ((1 << cut.low) - 1);
    const uint32_t high = cut.bits - cut.low;
    if (high > 0)
      q |= (p.bytes[place.high_byte] >> place.high_shift & ((1 << high) - 1)) << cut.low;
    q -= 1 << (cut.bits - 1);
  }
  return {step * q, step};
}

struct Size {
  uint32_t rows, cols, group;
};
constexpr Size kSizes[] = {{1, 1, 16},   {16, 64, 64},   {17, 65, 64},
                           {5, 3, 64},   {33, 100, 48},  {15, 256, 256},
                           {40, 80, 16}, {16, 257, 256}, {2, 1000, 64}};

TEST(MatrixShape, GroupsAndPadding) {
  for (const WeightType type : kTypes) {
    for (const Size& s : kSizes) {
      const MatrixShape shape = matrix_shape(type, s.rows, s.cols, s.group);
      EXPECT_EQ(shape.type, type);
      EXPECT_EQ(shape.rows, s.rows);
      const bool grouped = type != WeightType::f32 && type != WeightType::f16;
      const size_t group = grouped ? up_to(std::min(s.group, s.cols), cut_of(type).unit) : 1;
      EXPECT_EQ(shape.group, group);
      EXPECT_EQ(shape.cols, up_to(s.cols, group));
      EXPECT_EQ(shape.group % cut_of(type).unit, grouped ? 0u : 1u);
      EXPECT_EQ(shape.bytes() % 64, 0u);
      const Place next = place_of(type, shape.cols, shape.group, 16, 0);
      EXPECT_EQ(shape.row_block_bytes() + shape.scale_bytes(), next.byte);
      EXPECT_EQ(shape.bytes(), shape.row_block_bytes() * ((s.rows + 15) / 16));
    }
  }
}

TEST(MatrixShape, RotatesByTheLargestPowerOfTwoThatDividesAGroup) {
  constexpr std::pair<uint32_t, uint32_t> kWant[] = {{16, 16}, {32, 32},   {48, 16},  {64, 64},
                                                     {96, 32}, {128, 128}, {256, 128}};
  for (const auto& [group, rotation] : kWant) {
    for (const WeightType type : {WeightType::f32, WeightType::int16, WeightType::int8,
                                  WeightType::int4, WeightType::int2}) {
      EXPECT_EQ(matrix_shape(type, 16, 256, group, true).rotation,
                is_quantised(type) ? rotation : 0u);
      EXPECT_EQ(matrix_shape(type, 16, 256, group).rotation, 0u);
    }
  }
  EXPECT_EQ(matrix_shape(WeightType::int8, 16, 40, 64, true).rotation, 16u);  // one group of 48
}

// What the engine computes with a rotated row, (w H / B) (H x), is w x. Rounding to float leaves
// half an ulp of each stored weight, times |H x|.
TEST(Rotation, LeavesProductsAsTheyAre) {
  for (const uint32_t rotation : {16u, 32u, 64u, 128u}) {
    const size_t n = 3 * size_t{rotation};
    const Floats w = random_values(n, 1.0f, 7), x = random_values(n, 1.0f, 8);
    Floats stored = w;
    rotate_weights(rotation, stored.data(), n);
    double want = 0, got = 0, bound = 0;
    for (size_t i = 0; i < n; ++i) {
      want += static_cast<double>(w[i]) * static_cast<double>(x[i]);
      const size_t begin = i / rotation * rotation;
      double transformed = 0;
      for (size_t j = 0; j < rotation; ++j) {
        const bool minus = (std::popcount((i - begin) & j) & 1) != 0;
        const auto value = static_cast<double>(x[begin + j]);
        transformed += minus ? -value : value;
      }
      got += static_cast<double>(stored[i]) * transformed;
      bound += 0x1p-24 * std::fabs(static_cast<double>(stored[i]) * transformed);
    }
    EXPECT_NEAR(got, want, bound + static_cast<double>(n) * 0x1p-50) << rotation;
    EXPECT_NE(stored[1], w[1]);
  }
}

// Every element where the format says it is, and decode_row() of the same opinion.
TEST(Encode, EveryElementLiesWhereTheFormatSays) {
  for (const WeightType type : kTypes) {
    for (const Size& s : kSizes) {
      const Floats values = random_values(size_t{s.rows} * s.cols, 1.0f, 3);
      const Packed p = pack(type, s.rows, s.cols, s.group, values);
      const Floats decoded = decode(p, s.rows, s.cols);
      std::vector<bool> used(p.bytes.size(), false);
      for (uint32_t r = 0; r < p.shape.row_blocks() * 16; ++r) {
        Floats row(p.shape.cols);
        decode_row(p.shape, p.scale, p.bytes.data(), r, p.shape.cols, row.data());
        for (uint32_t c = 0; c < p.shape.cols; ++c) {
          const auto [value, step] = read(p, r, c);
          ASSERT_EQ(row[c], static_cast<float>(value)) << type_name(type) << " " << r << "," << c;
          if (r >= s.rows || c >= s.cols) {
            ASSERT_EQ(row[c], 0.0f) << "padding at " << r << "," << c;
          } else {
            ASSERT_EQ(row[c], decoded[size_t{r} * s.cols + c]);
          }
          const Place place = place_of(type, p.shape.cols, p.shape.group, r, c);
          const size_t size = type == WeightType::f32                                ? 4
                              : type == WeightType::f16 || type == WeightType::int16 ? 2
                                                                                     : 1;
          for (size_t i = 0; i < size; ++i) used[place.byte + i] = true;
          if (cut_of(type).bits > cut_of(type).low) used[place.high_byte] = true;
          if (p.shape.scale_bytes() > 0)
            used[place.group_scale] = used[place.group_scale + 1] = true;
        }
      }
      for (size_t i = 0; i < p.bytes.size(); ++i) {  // what is nobody's is zero
        if (!used[i]) {
          ASSERT_EQ(p.bytes[i], 0) << i;
        }
      }
    }
  }
}

TEST(Encode, ErrorsAreBounded) {
  for (const WeightType type : kTypes) {
    for (const Size& s : kSizes) {
      for (const float magnitude : {1.0f, 0.02f, 1e-30f, 1e30f}) {
        SCOPED_TRACE(testing::Message() << type_name(type) << " " << s.rows << "x" << s.cols << "/"
                                        << s.group << " of " << magnitude);
        const Floats values = random_values(size_t{s.rows} * s.cols, magnitude, 17);
        const Packed p = pack(type, s.rows, s.cols, s.group, values);
        double largest_in_matrix = 0;
        for (const float v : values)
          largest_in_matrix = std::max(largest_in_matrix, std::fabs(double{v}));
        double squares = 0, error_squares = 0, max_error = 0;
        for (uint32_t r = 0; r < s.rows; ++r) {
          for (uint32_t c = 0; c < s.cols; ++c) {
            const double w = static_cast<double>(values[size_t{r} * s.cols + c]);
            const auto [value, step] = read(p, r, c);
            const double error = std::fabs(w - value);
            squares += w * w;
            error_squares += error * error;
            max_error = std::max(max_error, error);
            double bound = 0;
            switch (type) {
              case WeightType::f32:
                break;  // exact
              // Half a unit in the last of 11 bits; below the normal range 2^-25 of the matrix's
              // scale.
              case WeightType::f16:
                bound = std::max(std::fabs(w) * 0x1p-11, static_cast<double>(p.scale) * 0x1p-25);
                break;
              // Half a step, and what w / step loses in float32: three roundings of 2^-24 of a
              // quotient of at most 127 (32767) steps. Where a weight is below float32's normal
              // range, dividing by the scale is still exact.
              case WeightType::int8:
                bound = step * (0.5 + 127 * 3 * 0x1p-24);
                break;
              case WeightType::int16:
                bound = step * (0.5 + 32767 * 3 * 0x1p-24);
                break;
              // Half a step where the range reaches, else up to its end.
              default: {
                const double q = w / step, zero = 1 << (cut_of(type).bits - 1);
                const double beyond = q < -zero ? -zero - q : q > zero - 1 ? q - (zero - 1) : 0;
                bound = std::fabs(step) * (beyond > 0.5 ? beyond : 0.5) * (1 + 0x1p-17);
                break;
              }
            }
            ASSERT_LE(error, bound) << r << "," << c << ": " << w << " became " << value;
          }
        }
        // What encode_row_block() says about itself; it multiplies in float32, so 2^-22 of the
        // largest weight apart.
        const double slack = largest_in_matrix * 0x1p-22;
        EXPECT_NEAR(p.error.sum_squares, squares, squares * 1e-9);
        EXPECT_NEAR(std::sqrt(p.error.sum_square_errors), std::sqrt(error_squares),
                    slack * std::sqrt(static_cast<double>(values.size())));
        EXPECT_NEAR(p.error.max_abs_error, max_error, slack);
        EXPECT_NEAR(p.error.relative_rms(), std::sqrt(error_squares / squares), 1e-5);
      }
    }
  }
}

// The steps themselves: max / 127, rounded up to 11 bits, so no weight is cut and none wasted.
TEST(Encode, SymmetricStepsFitTheLargestWeight) {
  for (const auto& [type, high] :
       {std::pair{WeightType::int8, 127}, std::pair{WeightType::int16, 32767}}) {
    const uint32_t rows = 32, cols = 192, group = 64;
    Floats values = random_values(rows * cols, 0.3f, 5);
    for (uint32_t i = 0; i < 64; ++i) values[7 * cols + 64 + i] *= 1e-4f;  // a group of small ones
    const Packed p = pack(type, rows, cols, group, values);
    for (uint32_t r = 0; r < rows; ++r) {
      for (uint32_t g = 0; g < cols / group; ++g) {
        double largest = 0;
        for (uint32_t i = 0; i < group; ++i) {
          largest = std::max(largest, std::fabs(double{values[r * cols + g * group + i]}));
        }
        const double step = read(p, r, g * group).second;
        // Up by less than one unit in the last place of binary16 (2^-10), or, where int8's search
        // goes on from there, by 62 more; down only by float32's rounding.
        const int units = type == WeightType::int8 ? 63 : 1;
        EXPECT_GE(step * high, largest * (1 - 0x1p-23));
        EXPECT_LE(step * high, largest * (1 + units * 0x1p-10) * (1 + 0x1p-23));
      }
    }
  }
}

// The chosen step is as good as the best of those that the header describes, searched again in doubles.
TEST(Encode, StepIsTheBestCandidate) {
  const uint32_t rows = 16, cols = 128, group = 32;
  Floats values = random_values(rows * cols, 0.05f, 23);
  for (uint32_t i = 0; i < group; ++i) values[i] = std::fabs(values[i]);  // one sign only
  for (uint32_t i = 0; i < group; ++i) values[cols + i] = 0.01f;          // all equal
  values[2 * cols] = 1.0f;                                                // one giant
  for (const WeightType type : kTypes) {
    if (!is_searched(type)) continue;
    const Packed p = pack(type, rows, cols, group, values);
    const double zero = 1 << (cut_of(type).bits - 1);
    const bool few = cut_of(type).bits < 4;
    std::vector<double> divisors;
    for (int k = few ? 20 : 40; k <= (few ? 64 : 72); ++k) {
      divisors.push_back(-zero * k / (few ? 32 : 64));
      if (few) divisors.push_back(-divisors.back());
    }
    for (uint32_t r = 0; r < rows; ++r) {
      for (uint32_t g = 0; g < cols / group; ++g) {
        const float* w = &values[r * cols + g * group];
        float extreme = 0;
        for (uint32_t i = 0; i < group; ++i)
          extreme = std::fabs(w[i]) > std::fabs(extreme) ? w[i] : extreme;
        double best = INFINITY, chosen = 0;
        for (const double divisor : divisors) {
          const double wanted =
              static_cast<double>(extreme) / divisor / static_cast<double>(p.scale);
          const double step =
              static_cast<double>(p.scale) *
              static_cast<double>(half_to_float(float_to_half(static_cast<float>(wanted))));
          double sum = 0;
          for (uint32_t i = 0; i < group; ++i) {
            const double x = static_cast<double>(w[i]);
            const double q = std::clamp(std::nearbyint(x / step), -zero, zero - 1);
            sum += (x - step * q) * (x - step * q);
          }
          best = std::min(best, sum);
        }
        for (uint32_t i = 0; i < group; ++i) {
          const double error = static_cast<double>(w[i]) - read(p, r, g * group + i).first;
          chosen += error * error;
        }
        // The library's sums are of float32 differences: each square is off by at most 2^-22 of the
        // step times the weight.
        EXPECT_LE(chosen, best * (1 + 1e-5) + static_cast<double>(extreme) *
                                                  static_cast<double>(extreme) * 0x1p-24 * group)
            << type_name(type) << " " << r << "," << g;
      }
    }
  }
}

// What the search is for: errors of normally distributed weights in groups of 64, relative to their
// root mean square. The numbers are what the best of 561 steps per sign, w_extreme / (0.2 * zero) to
// w_extreme / (3 * zero), gave with 1500 such groups in doubles. The library tries fewer, and loses at
// most 1 % (int6); with 2048 groups of about 64 errors the mean differs by another 1 % from sample to
// sample.
TEST(Encode, FewBitsOfNormalWeights) {
  const std::pair<WeightType, double> found[] = {{WeightType::int6, 0.0224},
                                                 {WeightType::int5, 0.0452},
                                                 {WeightType::int4, 0.0899},
                                                 {WeightType::int3, 0.1760},
                                                 {WeightType::int2, 0.3508}};
  const Floats values = random_values(64 * 2048, 0.02f, 97);
  for (const auto& [type, error] : found) {
    const double got = pack(type, 64, 2048, 64, values).error.relative_rms();
    EXPECT_NEAR(got, error, error * 0.03) << type_name(type);
  }
}

// Bytes of a unit, written out: row 0 has the numbers 0, 1, 2, ... of each type from the lowest up (mod
// 2^bits) in its inputs, row 1 all the highest, the others the value zero.
TEST(Encode, FixedBytes) {
  struct Line {
    uint8_t row0[4], row1;  // bytes of inputs 0 to 3 of row 0; each byte of row 1
    uint8_t zero;           // of the other rows
  };
  const std::pair<WeightType, std::vector<Line>> layouts[] = {
      {WeightType::int6,
       {{{0x40, 0x51, 0x62, 0x73}, 0xFF, 0x00},
        {{0xC8, 0xD9, 0xEA, 0xFB}, 0xFF, 0x00},
        {{0x00, 0x00, 0x00, 0x00}, 0xFF, 0xAA}}},
      {WeightType::int5,
       {{{0x40, 0x51, 0x62, 0x73}, 0xFF, 0x00},
        {{0xC8, 0xD9, 0xEA, 0xFB}, 0xFF, 0x00},
        {{0x40, 0x51, 0x62, 0x73}, 0xFF, 0x00},
        {{0xC8, 0xD9, 0xEA, 0xFB}, 0xFF, 0x00},
        // inputs 16 to 31, steps 4 to 7, have bit 4: bits 2, 3, 6 and 7 of the line
        {{0xCC, 0xCC, 0xCC, 0xCC}, 0xFF, 0xFF}}},
      {WeightType::int4,
       {{{0x40, 0x51, 0x62, 0x73}, 0xFF, 0x88}, {{0xC8, 0xD9, 0xEA, 0xFB}, 0xFF, 0x88}}},
      {WeightType::int3,
       {{{0x00, 0x55, 0xAA, 0xFF}, 0xFF, 0x00},
        {{0x00, 0x55, 0xAA, 0xFF}, 0xFF, 0x00},
        // every second step, 1, 3, 5 and 7, has bit 2: bits 1, 5, 3 and 7 of the line
        {{0xAA, 0xAA, 0xAA, 0xAA}, 0xFF, 0xFF}}},
      {WeightType::int2, {{{0x00, 0x55, 0xAA, 0xFF}, 0xFF, 0xAA}}},
  };
  for (const auto& [type, lines] : layouts) {
    const auto [bits, low, unit] = cut_of(type);
    const int zero = 1 << (bits - 1);
    // Decoded from bytes that are written by hand: the scale is 1 in every row.
    const MatrixShape shape = matrix_shape(type, 16, unit, unit);
    std::vector<uint8_t> bytes(shape.bytes());
    ASSERT_EQ(bytes.size(), 64 + lines.size() * 64) << type_name(type);
    for (size_t row = 0; row < 16; ++row) {
      bytes[2 * row + 1] = 0x3C;  // binary16 1.0
      for (size_t n = 0; n < lines.size(); ++n) {
        for (size_t i = 0; i < 4; ++i) {
          bytes[64 + n * 64 + row * 4 + i] = row == 0   ? lines[n].row0[i]
                                             : row == 1 ? lines[n].row1
                                                        : lines[n].zero;
        }
      }
    }
    for (uint32_t row = 0; row < 16; ++row) {
      Floats out(unit);
      decode_row(shape, 1.0f, bytes.data(), row, unit, out.data());
      for (uint32_t c = 0; c < unit; ++c) {
        const int number = row == 0   ? static_cast<int>(c) % (2 * zero)
                           : row == 1 ? 2 * zero - 1
                                      : zero;
        EXPECT_EQ(out[c], static_cast<float>(number - zero))
            << type_name(type) << " " << row << "," << c;
      }
    }
    // And encoded: values that a step of 1 meets exactly give the same bytes but for the scales, which
    // may be smaller by a power of two only where all numbers are even.
    Floats values(16 * unit);
    for (uint32_t row = 0; row < 16; ++row) {
      decode_row(shape, 1.0f, bytes.data(), row, unit, values.data() + row * unit);
    }
    const Packed p = pack(type, 16, unit, unit, values);
    EXPECT_EQ(decode(p, 16, unit), values) << type_name(type);
    for (size_t n = 0; n < lines.size(); ++n) {  // row 0, whose step can only be 1
      for (size_t i = 0; i < 4; ++i) {
        EXPECT_EQ(p.bytes[64 + n * 64 + i], lines[n].row0[i]) << type_name(type) << " line " << n;
      }
    }
  }
}

TEST(Encode, ZeroGroupsStayZero) {
  for (const WeightType type : kTypes) {
    for (const float other : {0.0f, 1.0f, 1e-30f}) {
      Floats values(32 * 128, 0.0f);
      for (uint32_t c = 0; c < 64; ++c) values[3 * 128 + c] = other;  // one group of one row
      const Packed p = pack(type, 32, 128, 64, values);
      const Floats decoded = decode(p, 32, 128);
      for (size_t i = 0; i < values.size(); ++i) {
        if (values[i] == 0) {
          ASSERT_EQ(decoded[i], 0.0f) << type_name(type) << " " << i;
        }
      }
      if (other != 0) {
        EXPECT_NEAR(decoded[3 * 128] / other, 1.0f, 0.01f) << type_name(type);
      }
      if (other == 0) {
        EXPECT_EQ(p.scale, 1.0f);
        EXPECT_EQ(p.error.relative_rms(), 0.0);
      }
    }
  }
}

// A group may be 2^29 times smaller than another before its step leaves the normal numbers; far
// below it becomes zero or a multiple of the smallest step, never garbage.
TEST(Encode, SmallGroupsBesideLargeOnes) {
  for (const WeightType type : kTypes) {
    if (type == WeightType::f32 || type == WeightType::f16) continue;
    for (const float small : {1e-3f, 1e-6f, 1e-9f, 1e-12f, 1e-20f, 1e-38f, 1e-42f}) {
      Floats values = random_values(16 * 64, 1.0f, 31);
      for (uint32_t r = 0; r < 16; ++r) {
        for (uint32_t c = 32; c < 64; ++c) values[r * 64 + c] *= small;
      }
      const Packed p = pack(type, 16, 64, 32, values);
      const Floats decoded = decode(p, 16, 64);
      for (uint32_t r = 0; r < 16; ++r) {
        for (uint32_t c = 32; c < 64; ++c) {
          const double w = static_cast<double>(values[r * 64 + c]),
                       got = static_cast<double>(decoded[r * 64 + c]);
          // Never more than one smallest step (2^-24 of the scale) from a step's worth of error.
          const double step = std::fabs(read(p, r, c).second);
          EXPECT_LE(std::fabs(got - w),
                    std::max(step, static_cast<double>(p.scale) * 0x1p-24) + std::fabs(w) * 0.5)
              << type_name(type) << " " << small;
          EXPECT_TRUE(std::isfinite(decoded[r * 64 + c]));
        }
      }
    }
  }
}

// Matrices so small that a step's inverse is not a float32, down to the smallest float.
TEST(Encode, VanishingMatrices) {
  for (const WeightType type : kTypes) {
    for (const float magnitude : {1e-34f, 1e-36f, 3e-38f, 1e-40f, 1e-44f}) {
      const Floats values = random_values(16 * 64, magnitude, 41);
      const Packed p = pack(type, 16, 64, 64, values);
      EXPECT_TRUE(std::isfinite(p.scale) && p.scale > 0);
      const Floats decoded = decode(p, 16, 64);
      for (size_t i = 0; i < values.size(); ++i) {
        const auto [value, signed_step] = read(p, i / 64, i % 64);
        const double step = std::fabs(signed_step);
        const double w = static_cast<double>(values[i]);
        // Scale times step is itself a float32, rounded to its smallest step, and so is the product
        // with q.
        const double roundings = (1 + (step > 0 ? std::fabs(value) / step : 0)) * 0x1p-149;
        const double beyond =
            is_searched(type)
                ? std::max(0.0, std::fabs(w) - ((1 << (cut_of(type).bits - 1)) - 1) * step)
                : 0.0;
        const double bound =
            type == WeightType::f32 ? 0
            : type == WeightType::f16
                ? std::max(std::fabs(w) * 0x1p-11, static_cast<double>(p.scale) * 0x1p-25)
                : step * 0.51 + beyond;
        EXPECT_LE(std::fabs(static_cast<double>(decoded[i]) - w), bound * 1.01 + roundings)
            << type_name(type) << " " << magnitude << " " << i;
      }
      EXPECT_TRUE(std::isfinite(p.error.relative_rms()));
      EXPECT_LE(p.error.relative_rms(), magnitude < 1e-42f         ? 1.0
                                        : type == WeightType::int2 ? 0.4
                                                                   : 0.2)
          << type_name(type) << " " << magnitude;
    }
  }
}

TEST(Encode, SameInputSameBytes) {
  for (const WeightType type : kTypes) {
    const Floats values = random_values(40 * 200, 0.1f, 53);
    const Packed a = pack(type, 40, 200, 64, values), b = pack(type, 40, 200, 64, values);
    EXPECT_EQ(a.bytes, b.bytes);
    EXPECT_EQ(a.scale, b.scale);
  }
}

TEST(MatrixScale, PutsTheLargestNumberBelowTwoToTheFifteenth) {
  std::mt19937 random(61);
  std::uniform_real_distribution<float> exponent(-25.0f, 30.0f);
  const std::pair<WeightType, float> divisors[] = {
      {WeightType::f16, 1.0f},   {WeightType::int16, 32767.0f}, {WeightType::int8, 127.0f},
      {WeightType::int6, 20.0f}, {WeightType::int5, 10.0f},     {WeightType::int4, 5.0f},
      {WeightType::int3, 2.5f},  {WeightType::int2, 1.25f}};
  for (int i = 0; i < 2000; ++i) {
    const float max_abs = std::pow(10.0f, exponent(random));
    EXPECT_EQ(matrix_scale(WeightType::f32, max_abs), 1.0f);
    for (const auto& [type, divisor] : divisors) {
      const float scale = matrix_scale(type, max_abs);
      int e = 0;
      EXPECT_EQ(std::frexp(scale, &e), 0.5f) << "not a power of two";
      const float largest = max_abs / divisor / scale;
      EXPECT_GE(largest, 0x1p14f);
      EXPECT_LE(largest, 0x1p15f);
    }
  }
  for (const WeightType type : kTypes) {
    EXPECT_EQ(matrix_scale(type, 0.0f), 1.0f);
    for (const float extreme : {3.4e38f, 1e-45f, 0x1p-126f}) {
      const float scale = matrix_scale(type, extreme);
      EXPECT_TRUE(std::isnormal(scale) && scale > 0) << type_name(type) << " " << extreme;
    }
  }
}

TEST(HasHalfSignificands, ElevenBitsAndNoMore) {
  std::mt19937 random(71);
  Floats values;
  EXPECT_TRUE(has_half_significands(values.data(), 0));
  for (uint32_t bits = 0; bits < 0x7C00; bits += 7) {
    values.push_back(half_to_float(static_cast<uint16_t>(bits)));
    values.push_back(-std::ldexp(values.back(), 40));  // any exponent will do
    values.push_back(bfloat16_to_float(static_cast<uint16_t>(random())));
  }
  EXPECT_TRUE(has_half_significands(values.data(), values.size()));
  values.back() = 1.0f + 0x1p-10f;
  EXPECT_TRUE(has_half_significands(values.data(), values.size()));
  for (const float more : {1.0f + 0x1p-11f, 0.1f, 1.0f + 0x1p-23f}) {
    values[values.size() / 2] = more;
    EXPECT_FALSE(has_half_significands(values.data(), values.size())) << more;
  }
}

// What the function promises: such values are exact in binary16 under the matrix's scale unless
// they are 2^-29 and less of the largest, and then off by at most 2^-25 of a scale that is at most
// 2^-14 of the largest.
TEST(HasHalfSignificands, MeansExactness) {
  std::mt19937 random(73);
  Floats values(16 * 64);
  for (float& v : values) {
    v = std::ldexp(half_to_float(static_cast<uint16_t>(0x3C00 + random() % 0x400)),
                   -static_cast<int>(random() % 60));
  }
  values[0] = 1.0f;
  ASSERT_TRUE(has_half_significands(values.data(), values.size()));
  const Packed p = pack(WeightType::f16, 16, 64, 64, values);
  const Floats decoded = decode(p, 16, 64);
  float largest = 0;
  for (const float v : values) largest = std::max(largest, v);
  int exact = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] >= largest * 0x1p-28f) {
      EXPECT_EQ(decoded[i], values[i]);
      ++exact;
    }
    EXPECT_LE(std::fabs(decoded[i] - values[i]), largest * 0x1p-39f);
  }
  EXPECT_GT(exact, 100);
}

}  // namespace
}  // namespace mamba_edge
