// Float32 rows into packed row blocks. Deterministic; runs where the converter runs, not on the
// device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "quant/blocks.h"

namespace mamba_edge {

// The padded shape for a matrix of rows x cols: the group is `group`, or, where the matrix is
// narrower than that, its whole width, rounded up to the type's unit of 16 or 32; 1 for fp32 and
// fp16. `group` is a multiple of 16, 16 to 256. `rotated`: quantised types are, by the longest
// rotation that divides the group.
MatrixShape matrix_shape(WeightType type, uint32_t rows, uint32_t cols, uint32_t group,
                         bool rotated = false);

// The power of two by which a matrix is scaled so that its binary16 numbers (group scales or
// weights) are normal, given the largest magnitude in it. 1 for fp32.
float matrix_scale(WeightType type, float max_abs);

// Whether every value has the 11 significant bits of binary16 or fewer (as all of bfloat16's and
// binary16's do). Under matrix_scale() such values are exact in binary16, or, where they are very
// small, within 2^-39 of the largest.
bool has_half_significands(const float* values, size_t n);

// Sums over the elements that were encoded, of the source and of what the kernels will see.
struct EncodeError {
  double sum_squares = 0;        // of the source
  double sum_square_errors = 0;  // of source minus decoded
  double max_abs_error = 0;
  void add(const EncodeError& other);
  double relative_rms() const;  // sqrt(sum_square_errors / sum_squares); 0 for an all-zero source
};

// Replaces n values of a row, a multiple of `rotation`, by what quant/blocks.h stores of them, w H / B.
void rotate_weights(uint32_t rotation, float* values, size_t n);

// Encodes 16 rows to one row block of shape.row_block_bytes() at `out`.
// `rows` is float [16][cols_stride], each with shape.cols values (padding zero); all values finite,
// and rotated already where shape has a rotation.
//
// int8: per group and row, of 32 scales in binary16 from max|w| / 127 upwards, in steps of two of
// its numbers, the one with the smallest sum of squared errors; weights rounded to nearest. int16:
// max|w| / 32767, rounded up. The others, with zero = 2^(bits - 1): per group and row, the scale
// that minimises the sum of squared errors among
//       -w_extreme / (zero * k / 64), k from 72 to 40       (int6, int5, int4)
//       -+w_extreme / (zero * k / 32), k from 64 to 20      (int3, int2)
// in binary16 and not zero, the first of equals. Minus puts the extreme value at the longer end of
// the range.
EncodeError encode_row_block(const MatrixShape& shape, float scale, const float* rows,
                             size_t cols_stride, uint8_t* out);

// The integers that a grouped type holds.
struct CodeRange {
  int low = 0, high = 0;
};
CodeRange code_range(WeightType type);

// Divisors d of a group's extreme value w: the scales w / d are worth trying for a type.
std::vector<float> step_candidates(WeightType type);

// Encodes 16 rows whose integers and scales have been chosen, for grouped types: value = scale *
// step * code. `rows` as above, for the errors; codes [shape.cols][16] within code_range(); steps
// binary16 [shape.groups()][16].
EncodeError encode_row_block_codes(const MatrixShape& shape, float scale, const float* rows,
                                   size_t cols_stride, const int16_t* codes, const uint16_t* steps,
                                   uint8_t* out);

}  // namespace mamba_edge
