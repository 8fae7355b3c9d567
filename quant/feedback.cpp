#include "quant/feedback.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "platforms/select.h"
#include "quant/half.h"

namespace mamba_edge {
namespace {

constexpr uint32_t kLanes = kTileRows;
constexpr uint32_t kPanel = 64;  // columns of a step of the factorisation

// Lower triangular L with A = L L^T, in place of A's lower triangle (float [n][n]); false where A is
// not positive definite. Panels of kPanel columns, each brought up to date by the kernels.
bool factorise(const ParallelFor& parallel, uint32_t n, float* a) {
  const KernelTable& table = *select_table(nullptr);
  AlignedFloats panel(size_t{n} * kPanel), above(size_t{n} * kPanel);
  for (uint32_t k = 0; k < n; k += kPanel) {
    const uint32_t width = std::min(kPanel, n - k);
    const uint32_t blocks = width / kLanes;
    Matrix matrix;
    matrix.shape = {WeightType::f32, width, k, 1};
    matrix.row_block_bytes = size_t{k} * kLanes * sizeof(float);
    matrix.data = reinterpret_cast<const uint8_t*>(above.data());
    for (uint32_t r = 0; r < width && k > 0; ++r) {
      float* to = above.data() + size_t{r / kLanes} * k * kLanes + r % kLanes;
      for (uint32_t c = 0; c < k; ++c) to[size_t{c} * kLanes] = a[size_t{k + r} * n + c];
    }
    constexpr uint32_t kRows = 64;
    const auto for_rows = [&](uint32_t first, const std::function<void(uint32_t, uint32_t)>& f) {
      parallel((n - first + kRows - 1) / kRows, [&](size_t i) {
        const uint32_t begin = first + static_cast<uint32_t>(i) * kRows;
        f(begin, std::min(begin + kRows, n));
      });
    };
    for_rows(k, [&](uint32_t begin, uint32_t end) {
      float* products = panel.data() + size_t{begin - k} * kPanel;
      if (k > 0) {
        table.matmul_f32_f32(matrix, 0, blocks, a + size_t{begin} * n, n, end - begin, products,
                             kPanel);
      } else {
        std::fill_n(products, size_t{end - begin} * kPanel, 0.0f);
      }
      for (uint32_t r = begin; r < end; ++r) {
        float* row = products + size_t{r - begin} * kPanel;
        for (uint32_t c = 0; c < width; ++c) row[c] = a[size_t{r} * n + k + c] - row[c];
      }
    });
    // The triangle on the diagonal, in double.
    double top[kPanel][kPanel];
    for (uint32_t r = 0; r < width; ++r) {
      for (uint32_t c = 0; c <= r; ++c) {
        double sum = static_cast<double>(panel[size_t{r} * kPanel + c]);
        for (uint32_t i = 0; i < c; ++i) sum -= top[r][i] * top[c][i];
        if (r == c && !(sum > 0)) return false;
        top[r][c] = r == c ? std::sqrt(sum) : sum / top[c][c];
        a[size_t{k + r} * n + k + c] = static_cast<float>(top[r][c]);
      }
    }
    if (k + width == n) break;
    for_rows(k + width, [&](uint32_t begin, uint32_t end) {
      double solved[kPanel];
      for (uint32_t r = begin; r < end; ++r) {
        const float* row = panel.data() + size_t{r - k} * kPanel;
        for (uint32_t c = 0; c < width; ++c) {
          double sum = static_cast<double>(row[c]);
          for (uint32_t i = 0; i < c; ++i) sum -= solved[i] * top[c][i];
          solved[c] = sum / top[c][c];
          a[size_t{r} * n + k + c] = static_cast<float>(solved[c]);
        }
      }
    });
  }
  return true;
}

// Replaces the values of every run of `span` by their Walsh-Hadamard transform, without a factor.
void transform(uint32_t span, float* values, size_t n, size_t stride) {
  for (size_t begin = 0; begin < n; begin += span) {
    for (uint32_t half = 1; half < span; half *= 2) {
      for (uint32_t i = 0; i < span; ++i) {
        if ((i & half) != 0) continue;
        float &a = values[(begin + i) * stride], &b = values[(begin + i + half) * stride];
        const float sum = a + b;
        b = a - b;
        a = sum;
      }
    }
  }
}

using Lanes = float[kLanes];

// One row block while it is rounded; weights, errors and targets in units of the matrix's scale,
// inputs in the plan's order.
class Rounding {
 public:
  Rounding(const MatrixShape& shape, float scale, const FeedbackPlan& plan, const float* rows,
           size_t cols_stride)
      : plan_(plan),
        n_(plan.inputs()),
        group_(shape.group),
        range_(code_range(shape.type)),
        candidates_(step_candidates(shape.type)),
        weights_(size_t{n_} * kLanes),
        errors_(size_t{n_} * kLanes),
        gradient_(size_t{n_} * kLanes),
        codes_(size_t{n_} * kLanes),
        steps_(size_t{n_} / group_ * kLanes) {
    for (uint32_t i = 0; i < n_; ++i) {
      for (uint32_t lane = 0; lane < kLanes; ++lane) {
        weights_[i * kLanes + lane] = rows[lane * cols_stride + plan.column(i)] / scale;
      }
    }
  }

  void run() {
    for (uint32_t begin = 0; begin < n_; begin += group_) round_group(begin);
    refine();
  }

  // Codes and scales in the order of columns: codes [cols][16], steps [groups][16].
  void give(std::vector<int16_t>* codes, std::vector<uint16_t>* steps) const {
    codes->resize(codes_.size());
    steps->resize(steps_.size());
    for (uint32_t i = 0; i < n_; ++i) {
      std::copy_n(&codes_[size_t{i} * kLanes], kLanes,
                  codes->data() + size_t{plan_.column(i)} * kLanes);
    }
    for (uint32_t i = 0; i < n_; i += group_) {
      std::copy_n(&steps_[size_t{i / group_} * kLanes], kLanes,
                  steps->data() + size_t{plan_.column(i) / group_} * kLanes);
    }
  }

  // The sum of e H e^T over rows.
  double error() const {
    double sum = 0;
    for (size_t i = 0; i < size_t{n_} * kLanes; ++i) {
      sum += static_cast<double>(errors_[i]) * static_cast<double>(gradient_[i]);
    }
    return std::max(sum, 0.0);
  }

 private:
  // Rounds the weights of a group, lane by lane with steps of its own, and writes errors and codes.
  // Returns in *cost what that costs. `target`: weights with the feedback from earlier groups.
  void try_group(uint32_t begin, const float* target, const Lanes& step, Lanes* cost) {
    constexpr float kRound = 0x1.8p23f;
    Lanes inverse;
    for (uint32_t l = 0; l < kLanes; ++l) inverse[l] = step[l] == 0 ? 0.0f : 1.0f / step[l];
    std::fill_n(*cost, kLanes, 0.0f);
    const auto low = static_cast<float>(range_.low), high = static_cast<float>(range_.high);
    for (uint32_t j = 0; j < group_; ++j) {
      Lanes wanted;
      for (uint32_t l = 0; l < kLanes; ++l) wanted[l] = target[j * kLanes + l];
      const float* feedback = plan_.feedback(begin + j) + begin;
      for (uint32_t i = 0; i < j; ++i) {
        const float factor = feedback[i];
        const float* error = errors_.data() + size_t{begin + i} * kLanes;
        for (uint32_t l = 0; l < kLanes; ++l) wanted[l] += factor * error[l];
      }
      const float weight = plan_.weight(begin + j);
      float* error = errors_.data() + size_t{begin + j} * kLanes;
      const float* original = weights_.data() + size_t{begin + j} * kLanes;
      float* code = trial_codes_ + size_t{j} * kLanes;
      for (uint32_t l = 0; l < kLanes; ++l) {
        float q = (wanted[l] * inverse[l] + kRound) - kRound;
        q = q < low ? low : q;
        q = q > high ? high : q;
        const float value = q * step[l], missed = wanted[l] - value;
        code[l] = q;
        (*cost)[l] += weight * missed * missed;
        error[l] = original[l] - value;
      }
    }
  }

  void round_group(uint32_t begin) {
    // What the errors so far ask of this group's weights.
    alignas(kBlockAlign) float target[kMaxGroup * kLanes];
    if (begin > 0) {
      Matrix matrix;
      matrix.shape = {WeightType::f32, kLanes, begin, 1};
      matrix.row_block_bytes = size_t{begin} * kLanes * sizeof(float);
      matrix.data = reinterpret_cast<const uint8_t*>(errors_.data());
      table_.matmul_f32_f32(matrix, 0, 1, plan_.feedback(begin), n_, group_, target, kLanes);
    } else {
      std::fill_n(target, group_ * kLanes, 0.0f);
    }
    Lanes extreme = {};
    for (uint32_t i = 0; i < group_ * kLanes; ++i) {
      target[i] += weights_[size_t{begin} * kLanes + i];
      float& e = extreme[i % kLanes];
      if (std::fabs(target[i]) > std::fabs(e)) e = target[i];
    }
    Lanes best = {}, best_cost, cost, step;
    std::fill_n(best_cost, kLanes, INFINITY);
    for (const float divisor : candidates_) {
      for (uint32_t l = 0; l < kLanes; ++l)
        step[l] = half_to_float(float_to_half(extreme[l] / divisor));
      try_group(begin, target, step, &cost);
      for (uint32_t l = 0; l < kLanes; ++l) {
        if (cost[l] < best_cost[l]) {
          best_cost[l] = cost[l];
          best[l] = step[l];
        }
      }
    }
    try_group(begin, target, best, &cost);
    for (uint32_t i = 0; i < group_ * kLanes; ++i) {
      codes_[size_t{begin} * kLanes + i] = static_cast<int16_t>(trial_codes_[i]);
    }
    for (uint32_t l = 0; l < kLanes; ++l) {
      steps_[size_t{begin / group_} * kLanes + l] = float_to_half(best[l]);
    }
  }

  // out[j][lane] = sum over inputs i of [begin, begin + count) of errors[i - begin][lane] H[i][j].
  void multiply_by_moment(const float* errors, uint32_t begin, uint32_t count, float* out) const {
    Matrix matrix;
    matrix.shape = {WeightType::f32, kLanes, count, 1};
    matrix.row_block_bytes = size_t{count} * kLanes * sizeof(float);
    matrix.data = reinterpret_cast<const uint8_t*>(errors);
    table_.matmul_f32_f32(matrix, 0, 1, plan_.moment(0) + begin, n_, n_, out, kLanes);
  }

  // Goes through the groups a few times and moves codes one by one, then scales, to where the error
  // e H e^T is least while everything else stays.
  void refine() {
    multiply_by_moment(errors_.data(), 0, n_, gradient_.data());
    AlignedFloats changes(size_t{n_} * kLanes);
    constexpr int kSweeps = 4;
    for (int sweep = 0; sweep < kSweeps; ++sweep) {
      bool moved = false;
      for (uint32_t begin = 0; begin < n_; begin += group_) {
        if (!refine_group(begin)) continue;
        moved = true;
        multiply_by_moment(moves_, begin, group_, changes.data());
        for (size_t i = 0; i < size_t{n_} * kLanes; ++i) gradient_[i] += changes[i];
      }
      if (!moved) break;
    }
  }

  // Changes codes, steps and errors of a group; moves_[i][lane] is how errors have changed. False if
  // nothing has.
  bool refine_group(uint32_t begin) {
    float* errors = errors_.data() + size_t{begin} * kLanes;
    int16_t* codes = &codes_[size_t{begin} * kLanes];
    uint16_t* bits = &steps_[size_t{begin / group_} * kLanes];
    Lanes step, inverse;
    for (uint32_t l = 0; l < kLanes; ++l) {
      step[l] = half_to_float(bits[l]);
      inverse[l] = step[l] == 0 ? 0.0f : 1.0f / step[l];
    }
    std::fill_n(moves_, group_ * kLanes, 0.0f);
    // The group's part of the gradient e H, which moves with every code.
    std::copy_n(gradient_.data() + size_t{begin} * kLanes, group_ * kLanes, slopes_);
    const auto low = static_cast<float>(range_.low), high = static_cast<float>(range_.high);
    constexpr float kRound = 0x1.8p23f;
    bool moved = false;
    for (uint32_t i = 0; i < group_; ++i) {
      // e H e^T changes by 2 d g + d^2 H[i][i], least for d = -g / H[i][i]; a code that is one higher
      // makes d = -step.
      const float* row = plan_.moment(begin + i) + begin;
      const float per_unit = 1.0f / row[i];
      Lanes d;
      float any = 0;
      for (uint32_t l = 0; l < kLanes; ++l) {
        const auto code = static_cast<float>(codes[i * kLanes + l]);
        float next = (code + slopes_[i * kLanes + l] * per_unit * inverse[l] + kRound) - kRound;
        next = next < low ? low : next;
        next = next > high ? high : next;
        if (inverse[l] == 0) next = code;
        d[l] = (code - next) * step[l];
        any += d[l] * d[l];
        codes[i * kLanes + l] = static_cast<int16_t>(next);
      }
      if (any == 0) continue;
      moved = true;
      for (uint32_t l = 0; l < kLanes; ++l) moves_[i * kLanes + l] += d[l];
      for (uint32_t j = 0; j < group_; ++j) {
        const float factor = row[j];
        float* slope = slopes_ + size_t{j} * kLanes;
        for (uint32_t l = 0; l < kLanes; ++l) slope[l] += factor * d[l];
      }
    }
    moved |= refine_steps(begin, codes, bits);
    if (!moved) return false;
    for (uint32_t i = 0; i < group_ * kLanes; ++i) errors[i] += moves_[i];
    return true;
  }

  // With codes c, a scale that is larger by d makes errors smaller by d c: least for
  // d = g c / (c H c^T).
  bool refine_steps(uint32_t begin, const int16_t* codes, uint16_t* bits) {
    Lanes slope = {}, curvature = {};
    for (uint32_t i = 0; i < group_; ++i) {
      const float* row = plan_.moment(begin + i) + begin;
      Lanes sum = {};
      for (uint32_t j = 0; j < group_; ++j) {
        const float factor = row[j];
        for (uint32_t l = 0; l < kLanes; ++l) {
          sum[l] += factor * static_cast<float>(codes[j * kLanes + l]);
        }
      }
      for (uint32_t l = 0; l < kLanes; ++l) {
        const auto code = static_cast<float>(codes[i * kLanes + l]);
        slope[l] += slopes_[i * kLanes + l] * code;
        curvature[l] += sum[l] * code;
      }
    }
    bool moved = false;
    for (uint32_t l = 0; l < kLanes; ++l) {
      if (!(curvature[l] > 0)) continue;
      const float step = half_to_float(bits[l]);
      const uint16_t next = float_to_half(step + slope[l] / curvature[l]);
      const float d = half_to_float(next) - step;
      if (next == bits[l] || !(2 * d * slope[l] > d * d * curvature[l])) continue;
      bits[l] = next;
      moved = true;
      for (uint32_t i = 0; i < group_; ++i) {
        moves_[i * kLanes + l] -= d * static_cast<float>(codes[i * kLanes + l]);
      }
    }
    return moved;
  }

  const KernelTable& table_ = *select_table(nullptr);
  const FeedbackPlan& plan_;
  uint32_t n_, group_;
  CodeRange range_;
  std::vector<float> candidates_;
  AlignedFloats weights_, errors_, gradient_;  // [n][16]
  std::vector<int16_t> codes_;                 // [n][16]
  std::vector<uint16_t> steps_;                // [groups][16]
  // Of one group, [group][16].
  alignas(kBlockAlign) float trial_codes_[kMaxGroup * kLanes] = {};
  alignas(kBlockAlign) float moves_[kMaxGroup * kLanes] = {};
  alignas(kBlockAlign) float slopes_[kMaxGroup * kLanes] = {};
};

}  // namespace

FeedbackPlan::FeedbackPlan(const ParallelFor& parallel, const SecondMoment& moment,
                           const MatrixShape& shape, double damping)
    : inputs_(shape.cols), group_(shape.group), rotation_(shape.rotation), order_(shape.cols) {
  const uint32_t n = inputs_, known = moment.inputs();
  // H in the order of columns, rotated.
  AlignedFloats h(size_t{n} * n);
  parallel(known, [&](size_t i) {
    for (uint32_t j = 0; j < known; ++j) {
      h[i * n + j] = static_cast<float>(moment.mean(static_cast<uint32_t>(i), j));
    }
  });
  if (rotation_ > 1) {
    parallel(n, [&](size_t i) { transform(rotation_, h.data() + i * n, n, 1); });
    parallel(n, [&](size_t i) { transform(rotation_, h.data() + i, n, n); });
  }
  std::vector<double> diagonal(n), of_group(n / shape.group);
  double mean = 0;
  for (uint32_t i = 0; i < n; ++i) {
    diagonal[i] = static_cast<double>(h[size_t{i} * n + i]);
    of_group[i / shape.group] += diagonal[i];
    mean += diagonal[i] / n;
  }
  std::iota(order_.begin(), order_.end(), 0u);
  std::stable_sort(order_.begin(), order_.end(), [&](uint32_t a, uint32_t b) {
    const uint32_t ga = a / shape.group, gb = b / shape.group;
    if (ga != gb) return of_group[ga] != of_group[gb] ? of_group[ga] > of_group[gb] : ga < gb;
    return diagonal[a] > diagonal[b];
  });

  moment_ = AlignedFloats(size_t{n} * n);
  feedback_ = AlignedFloats(size_t{n} * n);
  weight_.resize(n);
  AlignedFloats lower(size_t{n} * n);
  if (!(mean > 0)) mean = 1;  // no input ever: all errors are alike
  for (damping_ = damping * mean;; damping_ *= 10) {
    parallel(n, [&](size_t i) {
      for (uint32_t j = 0; j < n; ++j) {
        const float value =
            h[size_t{order_[i]} * n + order_[j]] + (i == j ? static_cast<float>(damping_) : 0.0f);
        moment_[i * n + j] = value;
        // Upper triangular factors come from the last row up.
        lower[(n - 1 - i) * n + (n - 1 - j)] = value;
      }
    });
    if (factorise(parallel, n, lower.data())) break;
  }
  parallel(n, [&](size_t row) {
    const auto j = static_cast<uint32_t>(row);
    const float pivot = lower[size_t{n - 1 - j} * n + (n - 1 - j)];
    weight_[j] = pivot * pivot;
    for (uint32_t i = 0; i < j; ++i) {
      feedback_[size_t{j} * n + i] = lower[size_t{n - 1 - i} * n + (n - 1 - j)] / pivot;
    }
  });
}

EncodeError encode_row_block_with_feedback(const MatrixShape& shape, float scale,
                                           const FeedbackPlan& plan, const float* rows,
                                           size_t cols_stride, uint8_t* out, double* error) {
  Rounding rounding(shape, scale, plan, rows, cols_stride);
  rounding.run();
  std::vector<int16_t> codes;
  std::vector<uint16_t> steps;
  rounding.give(&codes, &steps);
  *error += rounding.error() * static_cast<double>(scale) * static_cast<double>(scale);
  return encode_row_block_codes(shape, scale, rows, cols_stride, codes.data(), steps.data(), out);
}

}  // namespace mamba_edge
