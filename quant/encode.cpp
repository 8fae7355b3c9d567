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
  const uint32_t step = col / kStepInputs, input = col % kStepInputs;
  if (type == WeightType::int16) {
    store_u16(weights + (size_t{col} * kTileRows + lane) * 2, static_cast<uint16_t>(q));
  } else if (type == WeightType::int8) {
    weights[size_t{step} * 64 + lane * kStepInputs + input] = static_cast<uint8_t>(q + 128);
  } else {
    uint8_t& pair = weights[size_t{step / 2} * 64 + lane * kStepInputs + input];
    pair = static_cast<uint8_t>(pair | (q + 8) << (step % 2 == 0 ? 0 : 4));
  }
}

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

uint16_t choose_step_int4(std::span<const float> w) {
  float extreme = 0;
  for (const float value : w) {
    if (std::fabs(value) > std::fabs(extreme)) extreme = value;
  }
  if (extreme == 0) return 0;
  uint16_t best = 0;
  float best_error = INFINITY;
  for (int i = 0; i <= 32; ++i) {
    const float divisor = -8.0f + static_cast<float>(i - 8) * 0.125f;  // -9 to -5
    const uint16_t bits = float_to_half(extreme / divisor);
    const float error = square_error(w, half_to_float(bits), -8, 7);
    if (error < best_error) {
      best_error = error;
      best = bits;
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
  const uint32_t g = std::min(group, round_up(cols, kGroupMultiple));
  return {type, rows, round_up(cols, g), g, rotated && is_quantised(type) ? rotation_of(g) : 0};
}

float matrix_scale(WeightType type, float max_abs) {
  if (type == WeightType::f32 || max_abs == 0) return 1.0f;
  // The largest binary16 number in the matrix: the weight itself, or the largest group's step.
  const float largest = type == WeightType::int8    ? max_abs / 127.0f
                        : type == WeightType::int4  ? max_abs / 5.0f
                        : type == WeightType::int16 ? max_abs / 32767.0f
                                                    : max_abs;
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
    const bool is_int4 = shape.type == WeightType::int4;
    const int high = is_int4 ? 7 : shape.type == WeightType::int8 ? 127 : 32767;
    const int low = is_int4 ? -8 : -high;
    std::vector<float> scaled(shape.group);
    for (uint32_t g = 0; g < shape.groups(); ++g) {
      const std::span<const float> w(row + size_t{g} * shape.group, shape.group);
      std::transform(w.begin(), w.end(), scaled.begin(), [&](float v) { return v / scale; });
      const uint16_t bits = is_int4                          ? choose_step_int4(scaled)
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
