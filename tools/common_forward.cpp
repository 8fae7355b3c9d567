#include "tools/common_forward.h"

#include <algorithm>
#include <array>

#include "engine/model.h"
#include "engine/session.h"
#include "engine/step.h"
#include "platforms/select.h"
#include "tools/common.h"

namespace mamba_edge::tools {
namespace {

// A model of one layer, whose weights are replaced as the layers go by.
class OneLayer : public convert::Forward {
 public:
  OneLayer(const ModelConfig& config, int threads) {
    model_.config = config;
    model_.config.n_layer = 1;
    model_.layout = Layout(model_.config);
    model_.kernels = select_table(nullptr);
    model_.weights.layers = new LayerWeights[1];
    options_.n_threads = threads;
    options_.chunk = kChunk;
  }
  ~OneLayer() override {
    if (session_ != nullptr) session_->destroy();
  }
  OneLayer(const OneLayer&) = delete;
  OneLayer& operator=(const OneLayer&) = delete;

  void set_tensor(const TensorSpec& spec, AlignedFloats values) override {
    AlignedFloats& kept = values_[static_cast<size_t>(spec.role)];
    kept = std::move(values);
    Matrix matrix;
    matrix.shape = {WeightType::f32, spec.rows, spec.cols, 1};
    matrix.row_block_bytes = matrix.shape.row_block_bytes();
    matrix.data = reinterpret_cast<const uint8_t*>(kept.data());
    TensorSpec first = spec;
    first.layer = 0;
    place_tensor(first, matrix, &model_);
  }

  void run_layer(float* residual, size_t stride, size_t n, const Observe& observe) override {
    if (session_ == nullptr) create_session();
    session_->reset();
    const LayerWeights& w = model_.weights.layers[0];
    for (size_t begin = 0; begin < n; begin += kChunk) {
      const Step step(*session_, std::min<size_t>(kChunk, n - begin));
      const Buffers& b = step.b;
      for (size_t t = 0; t < step.tokens; ++t) {
        std::copy_n(residual + (begin + t) * stride, b.model_stride,
                    b.residual + t * b.model_stride);
      }
      step.norm_rows(w.norm, w.norm_bias, w.in_proj, b.residual, b.normed);
      if (model_.config.is_mamba2()) {
        run_mamba2(step, 0);
      } else {
        run_mamba1(step, 0);
      }
      for (size_t t = 0; t < step.tokens; ++t) {
        std::copy_n(b.residual + t * b.model_stride, b.model_stride,
                    residual + (begin + t) * stride);
      }
      if (!observe) continue;
      // Each of these has a buffer of its own, which still holds what its matrix has read.
      observe(TensorRole::in_proj, b.normed.x, b.normed.stride, step.tokens);
      if (!model_.config.is_mamba2()) {
        observe(TensorRole::x_proj, b.conv.x, b.conv.stride, step.tokens);
        observe(TensorRole::dt_proj, b.dt_low.x, b.dt_low.stride, step.tokens);
      }
      observe(TensorRole::out_proj, b.y.x, b.y.stride, step.tokens);
    }
  }

  void run_final_norm(const float* residual, size_t stride, size_t n, float* out) override {
    const KernelTable& k = *model_.kernels;
    const Weights& w = model_.weights;
    const ModelConfig& config = model_.config;
    for (size_t t = 0; t < n; ++t, residual += stride, out += stride) {
      if (config.norm == NormKind::layer) {
        k.layer_norm(residual, w.final_norm, w.final_norm_bias, config.d_model, config.norm_eps,
                     out);
      } else {
        k.rms_norm(residual, w.final_norm, config.d_model, config.norm_eps, out);
      }
    }
  }

  void multiply(const AlignedFloats& matrix, size_t rows, size_t cols, const float* x,
                size_t stride, size_t n, float* out, size_t out_stride) const override {
    Matrix w;
    w.shape = {WeightType::f32, static_cast<uint32_t>(rows), static_cast<uint32_t>(cols), 1};
    w.row_block_bytes = w.shape.row_block_bytes();
    w.data = reinterpret_cast<const uint8_t*>(matrix.data());
    model_.kernels->matmul_f32_f32(w, 0, rows / kTileRows, x, stride, n, out, out_stride);
  }

 private:
  static constexpr uint32_t kChunk = 256;

  void create_session() {
    arena_ =
        AlignedFloats(mamba_edge::Session::required_bytes(model_, options_) / sizeof(float) + 1);
    const Status created = mamba_edge::Session::create(model_, options_, arena_.data(), &session_);
    if (!created.ok()) throw Error(created.message());
  }

  std::array<AlignedFloats, kTensorRoles> values_;
  mamba_edge::Model model_;
  SessionOptions options_;
  AlignedFloats arena_;
  mamba_edge::Session* session_ = nullptr;
};

}  // namespace

std::unique_ptr<convert::Forward> make_forward(const ModelConfig& config, int threads) {
  return std::make_unique<OneLayer>(config, threads);
}

}  // namespace mamba_edge::tools
