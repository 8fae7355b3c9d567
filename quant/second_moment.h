// What a matrix is multiplied with, as far as rounding its weights needs to know: the second moment
// H = mean over tokens of x x^T of its inputs. Weights that are off by dW make outputs that are off
// by tr(dW H dW^T), summed over rows and averaged over tokens.
//
// Runs where the converter runs. Threads are the caller's: results do not depend on how many.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace mamba_edge {

// Calls work(i) for every i in [0, n), in any order, on as many threads as the caller likes.
using ParallelFor = std::function<void(size_t n, const std::function<void(size_t)>& work)>;

// Floats that start at a multiple of 64 bytes, as kernels want them.
class AlignedFloats {
 public:
  explicit AlignedFloats(size_t n = 0);
  float* data() { return data_; }
  const float* data() const { return data_; }
  size_t size() const { return size_; }
  float& operator[](size_t i) { return data_[i]; }
  float operator[](size_t i) const { return data_[i]; }
  void fill(float value);
  // The memory follows the object where it moves to.
  AlignedFloats(AlignedFloats&& other) noexcept = default;
  AlignedFloats& operator=(AlignedFloats&& other) noexcept = default;

 private:
  std::vector<float> memory_;
  float* data_ = nullptr;
  size_t size_ = 0;
};

class SecondMoment {
 public:
  SecondMoment() = default;
  explicit SecondMoment(uint32_t inputs);  // all zero

  uint32_t inputs() const { return inputs_; }
  uint64_t tokens() const { return tokens_; }

  // Adds n rows x[t * stride + i], i < inputs. Rows are added up in float32 in runs of kRun, so the
  // sum depends on how rows are divided into calls (and, in its last bits, on the kernels of this CPU).
  static constexpr size_t kRun = 256;
  void add(const ParallelFor& parallel, const float* x, size_t stride, size_t n);

  // Element (i, j) of the mean; 0 before any token.
  double mean(uint32_t i, uint32_t j) const;

  // Sums as they are kept: of (i, j), j <= i, at [i * (i + 1) / 2 + j]. For files.
  std::vector<float>& sums() { return sums_; }
  const std::vector<float>& sums() const { return sums_; }
  void set_tokens(uint64_t tokens) { tokens_ = tokens; }

 private:
  uint32_t inputs_ = 0;
  uint64_t tokens_ = 0;
  std::vector<float> sums_;  // [inputs * (inputs + 1) / 2], the lower triangle
};

// What errors of a matrix do to its outputs: the mean over tokens of the squared error, summed over
// rows; plus `damping` times the mean of H's diagonal times the sum of squared errors, for inputs that
// the tokens did not have. errors [rows][stride], moment.inputs() values each.
double output_error(const ParallelFor& parallel, const SecondMoment& moment, double damping,
                    const float* errors, size_t rows, size_t stride);

}  // namespace mamba_edge
