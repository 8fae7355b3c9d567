// Rounding that knows what the weights are multiplied with: the error of every weight is made up for
// by the weights that are rounded after it (Frantar et al. 2022, "GPTQ"; the same as Babai's nearest
// plane in the lattice of the inputs' second moment H), the scale of a group is chosen by the error
// of the outputs that it leaves, and afterwards single weights and scales are moved as long as that
// helps.
//
// H is of the inputs as the kernels see them, rotated where the matrix is. Deterministic for any
// number of threads; runs where the converter runs.
#pragma once

#include <cstdint>
#include <vector>

#include "quant/encode.h"
#include "quant/second_moment.h"

namespace mamba_edge {

// Everything about H that rounding the rows of a matrix of this shape needs, computed once. Inputs are
// in the order in which they are rounded: groups by falling mean of H's diagonal, inputs of a group
// likewise.
class FeedbackPlan {
 public:
  // `damping` is added to the diagonal, as a multiple of its mean: it stands for what other texts do
  // that this one did not. `shape` is of a grouped type and has at least moment.inputs() columns;
  // those beyond are padding.
  FeedbackPlan(const ParallelFor& parallel, const SecondMoment& moment, const MatrixShape& shape,
               double damping);

  // Whether it holds for matrices of this shape, too.
  bool fits(const MatrixShape& shape) const {
    return shape.cols == inputs_ && shape.group == group_ && shape.rotation == rotation_;
  }
  uint32_t inputs() const { return inputs_; }
  uint32_t column(uint32_t i) const { return order_[i]; }  // of the input that is rounded i-th
  // H with its damping, [inputs][inputs].
  const float* moment(uint32_t i) const { return moment_.data() + size_t{i} * inputs_; }
  // H = M M^T with M upper triangular. Row j: M[i][j] / M[j][j] for i < j, zeros from j on.
  const float* feedback(uint32_t j) const { return feedback_.data() + size_t{j} * inputs_; }
  float weight(uint32_t j) const { return weight_[j]; }  // M[j][j]^2, what an error of j costs
  double damping() const { return damping_; }            // as it was added

 private:
  uint32_t inputs_, group_, rotation_;
  std::vector<uint32_t> order_;
  AlignedFloats moment_, feedback_;
  std::vector<float> weight_;
  double damping_ = 0;
};

// As encode_row_block, for grouped types. Adds to *error what the block's rounding does to its
// outputs, as output_error() with the plan's damping.
EncodeError encode_row_block_with_feedback(const MatrixShape& shape, float scale,
                                           const FeedbackPlan& plan, const float* rows,
                                           size_t cols_stride, uint8_t* out, double* error);

}  // namespace mamba_edge
