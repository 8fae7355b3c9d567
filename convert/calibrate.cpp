#include "convert/calibrate.h"

#include <algorithm>
#include <cmath>

#include "convert/parallel.h"
#include "engine/tensors.h"
#include "quant/decode.h"
#include "quant/encode.h"

namespace mamba_edge::convert {
namespace {

constexpr size_t kPanelRows = 1024;  // of the head, whose logits are never all there

bool is_observed(const ModelConfig& config, const TensorSpec& spec) {
  return spec.quantisable && (spec.role != TensorRole::embedding || config.tied != 0);
}

class Calibrator {
 public:
  Calibrator(const Calibration& c, ImportanceFile* file)
      : c_(c),
        config_(*c.config),
        file_(*file),
        stride_(round_up<size_t>(config_.d_model, kTileRows)),
        probe_tokens_(std::min(c.window * kProbeWindows, c.tokens.size())),
        forward_(c.make_forward(config_, c.threads)) {
    for (uint32_t i = 0; i < tensor_count(config_); ++i) {
      const TensorSpec spec = tensor_spec(config_, i);
      if (spec.role == TensorRole::embedding) embedding_ = i;
      if (spec.role == TensorRole::head ||
          (spec.role == TensorRole::embedding && config_.tied != 0))
        head_ = i;
      if (spec.role == TensorRole::final_norm || spec.role == TensorRole::final_norm_bias) {
        forward_->set_tensor(spec, packed(i));
      }
    }
  }

  void run() {
    probing_ = c_.sensitivities && !is_calibrated(config_, true, file_);
    residual_ = embed(embedding_, c_.tokens);
    if (probing_) add_embedding_probe();
    for (uint32_t layer = 0; layer < config_.n_layer; ++layer) {
      run_layer(layer);
      if (c_.progress) c_.progress((layer + 1.0) / (config_.n_layer + 1.0));
    }
    run_head();
    if (c_.progress) c_.progress(1);
  }

 private:
  static constexpr size_t kProbeWindows = 1;

  // The first windows with one matrix rounded: what becomes of them tells how much it matters.
  struct Probe {
    uint32_t tensor = 0;
    double output_error = 0;
    AlignedFloats residual;  // [probe tokens][stride]
    bool is_head = false;    // the head is rounded (also)
  };

  ParallelFor parallel() const {
    return [this](size_t n, const std::function<void(size_t)>& work) {
      parallel_for(c_.threads, n, work);
    };
  }

  // Residual stream of the first layer.
  AlignedFloats embed(uint32_t tensor, const std::vector<int32_t>& tokens) const {
    AlignedFloats rows(tokens.size() * stride_);
    parallel_for(c_.threads, tokens.size(), [&](size_t t) {
      const auto id = static_cast<size_t>(tokens[t]);
      c_.read(tensor, id, id + 1, rows.data() + t * stride_, stride_);
    });
    return rows;
  }

  // A tensor as Forward takes it.
  AlignedFloats packed(uint32_t tensor) const {
    const TensorSpec spec = tensor_spec(config_, tensor);
    if (!spec.is_matrix) {
      AlignedFloats values(round_up(spec.rows, kTileRows));
      c_.read(tensor, 0, spec.rows, values.data(), 1);
      return values;
    }
    AlignedFloats values(size_t{round_up(spec.rows, kTileRows)} * spec.cols);
    parallel_for(c_.threads, (spec.rows + kTileRows - 1) / kTileRows, [&](size_t block) {
      pack_rows(tensor, block * kTileRows, 1, values.data() + block * kTileRows * spec.cols);
    });
    return values;
  }

  // Row blocks of float32 from row `first` on.
  void pack_rows(uint32_t tensor, size_t first, size_t blocks, float* out) const {
    const TensorSpec spec = tensor_spec(config_, tensor);
    std::vector<float> rows(kTileRows * spec.cols);
    for (size_t b = 0; b < blocks; ++b, out += kTileRows * spec.cols) {
      c_.read(tensor, first + b * kTileRows, first + (b + 1) * kTileRows, rows.data(), spec.cols);
      pack_block(rows.data(), spec.cols, out);
    }
  }

  static void pack_block(const float* rows, size_t cols, float* out) {
    for (size_t r = 0; r < kTileRows; ++r) {
      for (size_t c = 0; c < cols; ++c) out[c * kTileRows + r] = rows[r * cols + c];
    }
  }

  // Rows [first, first + 16 * blocks) after rounding them coarsely, and, where wanted, how far each
  // value is off: [16 * blocks][cols].
  void round_rows(uint32_t tensor, size_t first, size_t blocks, float* rounded,
                  float* errors) const {
    const TensorSpec spec = tensor_spec(config_, tensor);
    const MatrixShape shape = matrix_shape(kProbeType, kTileRows, spec.cols, kProbeGroup);
    std::vector<float> rows(kTileRows * shape.cols);
    std::vector<uint8_t> bytes(shape.row_block_bytes());
    for (size_t b = 0; b < blocks; ++b) {
      c_.read(tensor, first + b * kTileRows, first + (b + 1) * kTileRows, rows.data(), shape.cols);
      float largest = 0;
      for (const float v : rows) largest = std::max(largest, std::fabs(v));
      const float scale = matrix_scale(kProbeType, largest);
      encode_row_block(shape, scale, rows.data(), shape.cols, bytes.data());
      for (uint32_t r = 0; r < kTileRows; ++r) {
        float* to = rounded + (b * kTileRows + r) * spec.cols;
        decode_row(shape, scale, bytes.data(), r, spec.cols, to);
        if (errors == nullptr) continue;
        for (size_t c = 0; c < spec.cols; ++c) {
          errors[(b * kTileRows + r) * spec.cols + c] = to[c] - rows[r * shape.cols + c];
        }
      }
    }
  }

  // A matrix, rounded, as Forward takes it, and how far its outputs are off.
  AlignedFloats rounded(uint32_t tensor, const SecondMoment* moment, double* error) const {
    const TensorSpec spec = tensor_spec(config_, tensor);
    const size_t blocks = (spec.rows + kTileRows - 1) / kTileRows, block = kTileRows * spec.cols;
    AlignedFloats values(blocks * block);
    std::vector<float> errors(blocks * block);
    parallel_for(c_.threads, blocks, [&](size_t b) {
      std::vector<float> rows(block);
      round_rows(tensor, b * kTileRows, 1, rows.data(), errors.data() + b * block);
      pack_block(rows.data(), spec.cols, values.data() + b * block);
    });
    if (moment != nullptr) {
      *error = output_error(parallel(), *moment, damping(config_, spec.role), errors.data(),
                            blocks * kTileRows, spec.cols);
    } else {
      *error = 0;
      for (const float e : errors) *error += static_cast<double>(e) * static_cast<double>(e);
    }
    return values;
  }

  void add_embedding_probe() {
    Probe probe;
    probe.tensor = embedding_;
    probe.is_head = config_.tied != 0;
    probe.residual = AlignedFloats(probe_tokens_ * stride_);
    parallel_for(c_.threads, probe_tokens_, [&](size_t t) {
      const auto id = static_cast<size_t>(c_.tokens[t]);
      std::vector<float> rows(kTileRows * config_.d_model);
      round_rows(embedding_, id / kTileRows * kTileRows, 1, rows.data(), nullptr);
      std::copy_n(rows.data() + id % kTileRows * config_.d_model, config_.d_model,
                  probe.residual.data() + t * stride_);
    });
    if (!probe.is_head) rounded(embedding_, nullptr, &probe.output_error);
    probes_.push_back(std::move(probe));
  }

  void run_windows(float* residual, size_t tokens, const Forward::Observe& observe) {
    for (size_t at = 0; at < tokens; at += c_.window) {
      forward_->run_layer(residual + at * stride_, stride_, std::min(c_.window, tokens - at),
                          observe);
    }
  }

  void run_layer(uint32_t layer) {
    std::vector<uint32_t> matrices;
    std::map<TensorRole, SecondMoment> moments;
    for (uint32_t i = 0; i < tensor_count(config_); ++i) {
      const TensorSpec spec = tensor_spec(config_, i);
      if (spec.layer != layer || is_outside(spec.role)) continue;
      forward_->set_tensor(spec, packed(i));
      if (!spec.quantisable) continue;
      matrices.push_back(i);
      if (!file_.has_moment(i)) moments.emplace(spec.role, SecondMoment(spec.cols));
    }
    const AlignedFloats before =
        probing_ ? copy(residual_, probe_tokens_ * stride_) : AlignedFloats();
    const auto observe = [&](TensorRole role, const float* x, size_t stride, size_t n) {
      const auto found = moments.find(role);
      if (found != moments.end()) found->second.add(parallel(), x, stride, n);
    };
    run_windows(residual_.data(), c_.tokens.size(), moments.empty() ? Forward::Observe() : observe);
    for (const uint32_t i : matrices) {
      const auto found = moments.find(tensor_spec(config_, i).role);
      if (found != moments.end()) file_.add_moment(i, found->second);
    }
    if (!probing_) return;
    for (Probe& probe : probes_) run_windows(probe.residual.data(), probe_tokens_, {});
    for (const uint32_t i : matrices) {
      Probe probe;
      probe.tensor = i;
      const SecondMoment moment = file_.moment(i);
      forward_->set_tensor(tensor_spec(config_, i), rounded(i, &moment, &probe.output_error));
      probe.residual = copy(before, before.size());
      run_windows(probe.residual.data(), probe_tokens_, {});
      forward_->set_tensor(tensor_spec(config_, i), packed(i));
      probes_.push_back(std::move(probe));
    }
  }

  void run_head() {
    AlignedFloats normed(residual_.size());
    forward_->run_final_norm(residual_.data(), stride_, c_.tokens.size(), normed.data());
    if (!file_.has_moment(head_)) {
      SecondMoment moment(config_.d_model);
      moment.add(parallel(), normed.data(), stride_, c_.tokens.size());
      file_.add_moment(head_, moment);
    }
    if (!probing_) return;
    const SecondMoment moment = file_.moment(head_);
    if (config_.tied == 0) {
      Probe probe;
      probe.tensor = head_;
      probe.is_head = true;
      probe.residual = copy(residual_, probe_tokens_ * stride_);
      probes_.push_back(std::move(probe));
    }
    for (Probe& probe : probes_) {
      forward_->run_final_norm(probe.residual.data(), stride_, probe_tokens_,
                               probe.residual.data());
      if (probe.is_head) rounded(head_, &moment, &probe.output_error);
    }
    const std::vector<double> divergences = compare_predictions(normed);
    for (size_t i = 0; i < probes_.size(); ++i) {
      file_.add_sensitivity(probes_[i].tensor, {divergences[i], probes_[i].output_error});
    }
  }

  // Sums of a token's softmax over the vocabulary, as far as it has been seen.
  struct Softmax {
    double largest = -INFINITY, sum = 0, other_largest = -INFINITY, other_sum = 0, cross = 0;

    void add(const float* logits, const float* other, size_t n) {
      const auto top = static_cast<double>(*std::max_element(logits, logits + n));
      const auto other_top = static_cast<double>(*std::max_element(other, other + n));
      if (top > largest) {
        sum *= std::exp(largest - top);
        cross *= std::exp(largest - top);
        largest = top;
      }
      if (other_top > other_largest) {
        other_sum *= std::exp(other_largest - other_top);
        other_largest = other_top;
      }
      for (size_t i = 0; i < n; ++i) {
        const auto a = static_cast<double>(logits[i]), b = static_cast<double>(other[i]);
        const double e = std::exp(a - largest);
        sum += e;
        cross += e * (a - b);
        other_sum += std::exp(b - other_largest);
      }
    }
    double divergence() const {
      return cross / sum - std::log(sum) - largest + std::log(other_sum) + other_largest;
    }
  };

  // The mean divergence of every probe's predictions from the model's own.
  std::vector<double> compare_predictions(const AlignedFloats& normed) const {
    const TensorSpec spec = tensor_spec(config_, head_);
    std::vector<std::vector<Softmax>> sums(probes_.size(), std::vector<Softmax>(probe_tokens_));
    for (size_t first = 0; first < spec.rows; first += kPanelRows) {
      const size_t rows = std::min<size_t>(kPanelRows, spec.rows - first);
      const size_t blocks = (rows + kTileRows - 1) / kTileRows, width = blocks * kTileRows;
      AlignedFloats panel(width * spec.cols), coarse(width * spec.cols);
      AlignedFloats logits(probe_tokens_ * width);
      parallel_for(c_.threads, blocks, [&](size_t b) {
        std::vector<float> values(kTileRows * spec.cols);
        pack_rows(head_, first + b * kTileRows, 1, panel.data() + b * kTileRows * spec.cols);
        round_rows(head_, first + b * kTileRows, 1, values.data(), nullptr);
        pack_block(values.data(), spec.cols, coarse.data() + b * kTileRows * spec.cols);
      });
      constexpr size_t kRows = 64;
      parallel_for(c_.threads, (probe_tokens_ + kRows - 1) / kRows, [&](size_t i) {
        const size_t n = std::min(kRows, probe_tokens_ - i * kRows);
        forward_->multiply(panel, width, spec.cols, normed.data() + i * kRows * stride_, stride_, n,
                           logits.data() + i * kRows * width, width);
      });
      parallel_for(c_.threads, probes_.size(), [&](size_t p) {
        AlignedFloats other(kRows * width);
        for (size_t t = 0; t < probe_tokens_; t += kRows) {
          const size_t n = std::min(kRows, probe_tokens_ - t);
          forward_->multiply(probes_[p].is_head ? coarse : panel, width, spec.cols,
                             probes_[p].residual.data() + t * stride_, stride_, n, other.data(),
                             width);
          for (size_t i = 0; i < n; ++i) {
            sums[p][t + i].add(logits.data() + (t + i) * width, other.data() + i * width, rows);
          }
        }
      });
    }
    std::vector<double> means;
    for (const std::vector<Softmax>& probe : sums) {
      double sum = 0;
      for (const Softmax& token : probe) sum += token.divergence();
      means.push_back(std::max(sum, 0.0) / static_cast<double>(probe_tokens_));
    }
    return means;
  }

  static bool is_outside(TensorRole role) {
    return role == TensorRole::embedding || role == TensorRole::head ||
           role == TensorRole::final_norm || role == TensorRole::final_norm_bias;
  }

  static AlignedFloats copy(const AlignedFloats& from, size_t n) {
    AlignedFloats to(n);
    std::copy_n(from.data(), n, to.data());
    return to;
  }

  static constexpr WeightType kProbeType = WeightType::int4;
  static constexpr uint32_t kProbeGroup = 64;

  const Calibration& c_;
  const ModelConfig& config_;
  ImportanceFile& file_;
  size_t stride_;
  size_t probe_tokens_;
  std::unique_ptr<Forward> forward_;
  uint32_t embedding_ = 0, head_ = 0;
  bool probing_ = false;
  AlignedFloats residual_;  // [tokens][stride]
  std::vector<Probe> probes_;
};

}  // namespace

double damping(const ModelConfig& config, TensorRole role) {
  return role == TensorRole::embedding && config.tied != 0 ? 0.5 : 0.05;
}

bool is_calibrated(const ModelConfig& config, bool sensitivities, const ImportanceFile& file) {
  for (uint32_t i = 0; i < tensor_count(config); ++i) {
    const TensorSpec spec = tensor_spec(config, i);
    if (is_observed(config, spec) && !file.has_moment(i)) return false;
    if (sensitivities && spec.quantisable && !file.sensitivities().contains(i)) return false;
  }
  return true;
}

void calibrate(const Calibration& calibration, ImportanceFile* file) {
  if (is_calibrated(*calibration.config, calibration.sensitivities, *file)) return;
  Calibrator(calibration, file).run();
}

}  // namespace mamba_edge::convert
