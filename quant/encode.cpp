#include "quant/encode.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>
#include <numeric>
#include <vector>

#include "quant/half.h"

namespace mamba_edge {
namespace {

void store_u16(uint8_t* p, uint16_t value) { std::memcpy(p, &value, sizeof value); }

// Puts a grouped weight where quant/blocks.h says; `weights` starts behind the scales and is
// zeroed.
void store_weight(WeightType type, uint8_t* weights, uint32_t lane, uint32_t col, int q) {
  if (type == WeightType::int16) {
    store_u16(weights + (size_t{col} * kTileRows + lane) * 2, static_cast<uint16_t>(q));
    return;
  }
  const TypeProperties& p = properties(type);
  uint8_t* unit = weights + size_t{col / p.unit()} * p.unit_lines() * kLineBytes +
                  size_t{lane} * kStepInputs + col % kStepInputs;
  const uint32_t step = col % p.unit() / kStepInputs, bit = step * p.low;
  const auto u = static_cast<uint32_t>(q + p.zero());
  uint8_t& low = unit[bit / 8 * kLineBytes];
  low = static_cast<uint8_t>(low | (u & ((1u << p.low) - 1)) << bit % 8);
  if (p.high > 0) {
    uint8_t& high = unit[p.low_lines() * kLineBytes];
    high = static_cast<uint8_t>(high | u >> p.low << p.high_at(step));
  }
}

// Whether weights reach as far up as down, to the largest of their group; so many levels that one
// more does not matter.
bool is_symmetric(WeightType type) { return type == WeightType::int8 || type == WeightType::int16; }

// Rounds w / step to nearest, ties to even, and clamps. Adding 1.5 * 2^23 leaves no bits below the point, and needs no call
// of the C library; |w / step| is far below 2^22, because the step follows from the largest |w|.
int quantise(float w, float inverse_step, int low, int high) {
  constexpr float kRound = 0x1.8p23f;
  const float q = (w * inverse_step + kRound) - kRound;
  return static_cast<int>(std::clamp(q, static_cast<float>(low), static_cast<float>(high)));
}

// Weights and steps are compared in units of the matrix's scale, a power of two, so that neither a
// step nor its inverse leaves float32's range however small or large the weights are.
// Sixteen sums side by side (a group is a multiple of 16), which a compiler puts into vectors.
float square_error(std::span<const float> scaled, float step, int low, int high) {
  constexpr float kRound = 0x1.8p23f;
  const float inverse = step == 0 ? 0.0f : 1.0f / step;
  const auto lowest = static_cast<float>(low), highest = static_cast<float>(high);
  float sums[kGroupMultiple] = {};
  for (size_t i = 0; i < scaled.size(); i += kGroupMultiple) {
    for (size_t k = 0; k < kGroupMultiple; ++k) {
      const float value = scaled[i + k];
      float q = (value * inverse + kRound) - kRound;
      q = q < lowest ? lowest : q;
      q = q > highest ? highest : q;
      const float error = value - step * q;
      sums[k] += error * error;
    }
  }
  return std::accumulate(std::begin(sums), std::end(sums), 0.0f);
}

// The step of a group, as binary16 bits: the smallest that cuts nothing.
uint16_t choose_step_symmetric(std::span<const float> w, int high) {
  float max_abs = 0;
  for (const float value : w) max_abs = std::max(max_abs, std::fabs(value));
  const float step = max_abs / static_cast<float>(high);
  uint16_t bits = float_to_half(step);
  if (half_to_float(bits) < step) ++bits;  // rounded up, so that the largest weight is not cut
  return bits;
}

// Or a little more: where the rounding errors of so few weights are small by luck is worth more than
// the smallest step. Steps of two binary16 numbers, 0.1 to 0.2 %, move the largest weights by a tenth
// to a quarter of a unit.
uint16_t choose_step_int8(std::span<const float> w, int high) {
  const uint16_t smallest = choose_step_symmetric(w, high);
  if (smallest == 0) return 0;
  uint16_t best = smallest;
  float best_error = INFINITY;
  for (uint16_t i = 0; i < 32; ++i) {
    const auto bits = static_cast<uint16_t>(smallest + 2 * i);
    const float error = square_error(w, half_to_float(bits), -high, high);
    if (error < best_error) {
      best_error = error;
      best = bits;
    }
  }
  return best;
}

// The steps that are tried for a type whose weights need not reach to both ends: w_extreme over
// +-(first to last) / per_zero times the type's zero. Few levels want the small weights hit and the
// large ones cut: the best step for 64 normally distributed weights is about w_extreme / (1.3 * zero)
// for int2 and w_extreme / zero for int6. The end with one level more may then be the better one for
// the smaller weights, so both signs are tried.
struct StepSearch {
  int first, last, per_zero;
  bool both_signs;
};
constexpr StepSearch kManyLevels = {40, 72, 64, false}, kFewLevels = {20, 64, 32, true};
constexpr float kSmallestDivisor = 0.625f;  // of the zero, in both

uint16_t choose_step(std::span<const float> w, const TypeProperties& type) {
  float extreme = 0;
  for (const float value : w) {
    if (std::fabs(value) > std::fabs(extreme)) extreme = value;
  }
  if (extreme == 0) return 0;
  const StepSearch& search = type.bits >= 4 ? kManyLevels : kFewLevels;
  uint16_t best = 0;
  float best_error = INFINITY;
  for (const float sign : {-1.0f, 1.0f}) {
    if (sign > 0 && !search.both_signs) break;
    for (int i = search.last; i >= search.first; --i) {
      const float divisor =
          sign * static_cast<float>(i * type.zero()) / static_cast<float>(search.per_zero);
      uint16_t bits = float_to_half(extreme / divisor);
      if ((bits & 0x7FFF) == 0) ++bits;  // the smallest step may still be nearer than none
      const float error = square_error(w, half_to_float(bits), -type.zero(), type.zero() - 1);
      if (error < best_error) {
        best_error = error;
        best = bits;
      }
    }
  }
  return best;
}

struct Accumulator {
  EncodeError error;
  void add(float source, float decoded) {
    const double difference = static_cast<double>(source) - static_cast<double>(decoded);
    error.sum_squares += static_cast<double>(source) * static_cast<double>(source);
    error.sum_square_errors += difference * difference;
    error.max_abs_error = std::max(error.max_abs_error, std::fabs(difference));
  }
};

}  // namespace

void EncodeError::add(const EncodeError& other) {
  sum_squares += other.sum_squares;
  sum_square_errors += other.sum_square_errors;
  max_abs_error = std::max(max_abs_error, other.max_abs_error);
}

double EncodeError::relative_rms() const {
  return sum_squares > 0 ? std::sqrt(sum_square_errors / sum_squares) : 0;
}

MatrixShape matrix_shape(WeightType type, uint32_t rows, uint32_t cols, uint32_t group,
                         bool rotated) {
  if (!is_grouped(type)) return {type, rows, cols, 1};
  const uint32_t g = round_up(std::min(group, cols), properties(type).unit());
  return {type, rows, round_up(cols, g), g, rotated && is_quantised(type) ? rotation_of(g) : 0};
}

float matrix_scale(WeightType type, float max_abs) {
  if (type == WeightType::f32 || max_abs == 0) return 1.0f;
  // The largest binary16 number in the matrix: the weight itself, or the largest group's step.
  const TypeProperties& p = properties(type);
  const float largest = type == WeightType::f16 ? max_abs
                        : is_symmetric(type)
                            ? max_abs / static_cast<float>(p.zero() - 1)
                            : max_abs / (kSmallestDivisor * static_cast<float>(p.zero()));
  // Put it just below 2^15, so that 29 octaves below it are normal numbers.
  int exponent = 0;
  std::frexp(largest, &exponent);
  return std::ldexp(1.0f, std::clamp(exponent - 15, -126, 127));
}

bool has_half_significands(const float* values, size_t n) {
  uint32_t low_bits = 0;
  for (size_t i = 0; i < n; ++i) low_bits |= std::bit_cast<uint32_t>(values[i]);
  return (low_bits & 0x1FFFu) == 0;  // a float32 has 13 more bits than a binary16
}

void rotate_weights(uint32_t rotation, float* values, size_t n) {
  const double factor = 1.0 / rotation;
  double block[kMaxRotation];
  for (size_t begin = 0; begin < n; begin += rotation) {
    std::copy_n(values + begin, rotation, block);
    for (uint32_t span = 1; span < rotation; span *= 2) {
      for (uint32_t i = 0; i < rotation; ++i) {
        if ((i & span) != 0) continue;
        const double a = block[i], b = block[i + span];
        block[i] = a + b;
        block[i + span] = a - b;
      }
    }
    for (uint32_t i = 0; i < rotation; ++i) {
      values[begin + i] = static_cast<float>(block[i] * factor);
    }
  }
}

CodeRange code_range(WeightType type) {
  const int zero = properties(type).zero();
  return {is_symmetric(type) ? 1 - zero : -zero, zero - 1};
}

std::vector<float> step_candidates(WeightType type) {
  const TypeProperties& p = properties(type);
  std::vector<float> divisors;
  if (is_symmetric(type)) {
    for (int i = 0; i < 8; ++i) {
      divisors.push_back(static_cast<float>(code_range(type).high) /
                         (1.0f + 0.004f * static_cast<float>(i)));
    }
    return divisors;
  }
  const StepSearch& search = p.bits >= 4 ? kManyLevels : kFewLevels;
  for (const float sign : {-1.0f, 1.0f}) {
    if (sign > 0 && !search.both_signs) break;
    for (int i = search.last; i >= search.first; i -= 2) {
      divisors.push_back(sign * static_cast<float>(i * p.zero()) /
                         static_cast<float>(search.per_zero));
    }
  }
  return divisors;
}

EncodeError encode_row_block_codes(const MatrixShape& shape, float scale, const float* rows,
                                   size_t cols_stride, const int16_t* codes, const uint16_t* steps,
                                   uint8_t* out) {
  Accumulator total;
  std::memset(out, 0, shape.row_block_bytes());
  for (size_t i = 0; i < size_t{shape.groups()} * kTileRows; ++i) store_u16(out + 2 * i, steps[i]);
  uint8_t* weights = out + shape.scale_bytes();
  for (uint32_t col = 0; col < shape.cols; ++col) {
    for (uint32_t lane = 0; lane < kTileRows; ++lane) {
      const int16_t code = codes[size_t{col} * kTileRows + lane];
      const float step = half_to_float(steps[size_t{col / shape.group} * kTileRows + lane]);
      total.add(rows[lane * cols_stride + col], scale * step * static_cast<float>(code));
      store_weight(shape.type, weights, lane, col, code);
    }
  }
  return total.error;
}

EncodeError encode_row_block(const MatrixShape& shape, float scale, const float* rows,
                             size_t cols_stride, uint8_t* out) {
  Accumulator total;
  std::memset(out, 0, shape.row_block_bytes());
  uint8_t* weights = out + shape.scale_bytes();
  for (uint32_t lane = 0; lane < kTileRows; ++lane) {
    const float* row = rows + lane * cols_stride;
    if (shape.type == WeightType::f32) {
      for (uint32_t c = 0; c < shape.cols; ++c) {
        std::memcpy(out + (size_t{c} * kTileRows + lane) * 4, &row[c], 4);
        total.add(row[c], row[c]);
      }
      continue;
    }
    if (shape.type == WeightType::f16) {
      for (uint32_t c = 0; c < shape.cols; ++c) {
        const uint16_t half = float_to_half(row[c] / scale);
        store_u16(out + (size_t{c} * kTileRows + lane) * 2, half);
        total.add(row[c], scale * half_to_float(half));
      }
      continue;
    }
    const TypeProperties& p = properties(shape.type);
    const bool symmetric = is_symmetric(shape.type);
    const int high = p.zero() - 1, low = symmetric ? -high : -p.zero();
    std::vector<float> scaled(shape.group);
    for (uint32_t g = 0; g < shape.groups(); ++g) {
      const std::span<const float> w(row + size_t{g} * shape.group, shape.group);
      std::transform(w.begin(), w.end(), scaled.begin(), [&](float v) { return v / scale; });
      const uint16_t bits = !symmetric                       ? choose_step(scaled, p)
                            : shape.type == WeightType::int8 ? choose_step_int8(scaled, high)
                                                             : choose_step_symmetric(scaled, high);
      store_u16(out + (size_t{g} * kTileRows + lane) * 2, bits);
      const float step = half_to_float(bits);
      const float inverse = step == 0 ? 0.0f : 1.0f / step;
      for (uint32_t i = 0; i < shape.group; ++i) {
        const uint32_t col = g * shape.group + i;
        const int q = quantise(scaled[i], inverse, low, high);
        total.add(w[i], scale * step * static_cast<float>(q));
        store_weight(shape.type, weights, lane, col, q);
      }
    }
  }
  return total.error;
}

}  // namespace mamba_edge
