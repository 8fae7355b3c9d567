// One layer of a model at a time, in float32, as calibration needs it. The converter does not know
// how a layer is computed: the programs hand it an implementation that uses the engine.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "engine/config.h"
#include "engine/tensors.h"
#include "quant/second_moment.h"

namespace mamba_edge::convert {

class Forward {
 public:
  virtual ~Forward() = default;

  // A tensor of the layer that is computed next (spec.layer counts for nothing), or final_norm: a
  // matrix in row blocks of float32, as quant/blocks.h lays them out, or a vector padded with zeros to
  // 16. It replaces the one before.
  virtual void set_tensor(const TensorSpec& spec, AlignedFloats values) = 0;

  // Is shown rows x[t * stride], the inputs of a matrix.
  using Observe = std::function<void(TensorRole matrix, const float* x, size_t stride, size_t n)>;

  // The layer over n tokens of one text from its start: residual [n][stride], d_model values each and
  // zeros up to a multiple of 16, becomes what the layer leaves. `observe` may be empty.
  virtual void run_layer(float* residual, size_t stride, size_t n, const Observe& observe) = 0;

  // out[t][stride] = final norm of residual[t][stride].
  virtual void run_final_norm(const float* residual, size_t stride, size_t n, float* out) = 0;

  // out[t][out_stride] = the rows of a matrix, packed as above, times x[t][stride]; rows is a multiple
  // of 16. Thread-safe.
  virtual void multiply(const AlignedFloats& matrix, size_t rows, size_t cols, const float* x,
                        size_t stride, size_t n, float* out, size_t out_stride) const = 0;
};

using MakeForward = std::function<std::unique_ptr<Forward>(const ModelConfig& config, int threads)>;

}  // namespace mamba_edge::convert
