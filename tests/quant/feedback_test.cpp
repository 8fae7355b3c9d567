// Rounding with feedback, against the plain definitions: second moments by sums, factors by
// multiplying them out, errors by decoding what was stored.
#include "quant/feedback.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "quant/decode.h"
#include "quant/half.h"

namespace mamba_edge {
namespace {

using Doubles = std::vector<double>;
using Floats = std::vector<float>;

const ParallelFor kForwards = [](size_t n, const std::function<void(size_t)>& work) {
  for (size_t i = 0; i < n; ++i) work(i);
};
const ParallelFor kBackwards = [](size_t n, const std::function<void(size_t)>& work) {
  for (size_t i = n; i-- > 0;) work(i);
};

// Inputs that go together, as those of a model do: a few directions, and noise.
Floats inputs(size_t tokens, size_t n, size_t stride, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  constexpr size_t kDirections = 4;
  Floats directions(kDirections * n), x(tokens * stride, NAN);
  for (float& v : directions) v = normal(random);
  for (size_t t = 0; t < tokens; ++t) {
    float amount[kDirections];
    for (float& v : amount) v = normal(random);
    for (size_t i = 0; i < n; ++i) {
      float sum = 0.3f * normal(random);
      for (size_t d = 0; d < kDirections; ++d) sum += amount[d] * directions[d * n + i];
      x[t * stride + i] = sum;
    }
  }
  return x;
}

Doubles plain_moment(const Floats& x, size_t tokens, size_t n, size_t stride) {
  Doubles h(n * n);
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t i = 0; i < n; ++i) {
      for (size_t j = 0; j < n; ++j) {
        h[i * n + j] += static_cast<double>(x[t * stride + i]) *
                        static_cast<double>(x[t * stride + j]) / static_cast<double>(tokens);
      }
    }
  }
  return h;
}

SecondMoment moment_of(const Floats& x, size_t tokens, size_t n, size_t stride) {
  SecondMoment moment(static_cast<uint32_t>(n));
  moment.add(kForwards, x.data(), stride, tokens);
  return moment;
}

double mean_of_diagonal(const Doubles& h, size_t n) {
  double mean = 0;
  for (size_t i = 0; i < n; ++i) mean += h[i * n + i] / static_cast<double>(n);
  return mean;
}

TEST(SecondMoment, IsTheMeanOfProducts) {
  for (const size_t n : {1u, 16u, 40u, 100u}) {
    const size_t tokens = 700, stride = n + 3;  // more than two runs, and a part of one
    const Floats x = inputs(tokens, n, stride, 1);
    const Doubles h = plain_moment(x, tokens, n, stride);
    const SecondMoment moment = moment_of(x, tokens, n, stride);
    EXPECT_EQ(moment.tokens(), tokens);
    for (uint32_t i = 0; i < n; ++i) {
      for (uint32_t j = 0; j < n; ++j) {
        // Sums of `tokens` products in float32: relative to the sums of their magnitudes, which are
        // at most sqrt(h_ii h_jj).
        const double bound =
            static_cast<double>(tokens) * 0x1p-24 * std::sqrt(h[i * n + i] * h[j * n + j]);
        EXPECT_NEAR(moment.mean(i, j), h[i * n + j], bound) << n << " " << i << " " << j;
      }
    }
  }
}

TEST(SecondMoment, DoesNotDependOnTheOrderOfWork) {
  const Floats x = inputs(300, 48, 48, 2);
  SecondMoment a(48), b(48);
  a.add(kForwards, x.data(), 48, 300);
  b.add(kBackwards, x.data(), 48, 300);
  EXPECT_EQ(a.sums(), b.sums());
}

TEST(SecondMoment, OutputErrorIsTheQuadraticForm) {
  const size_t n = 40, rows = 21, tokens = 500;
  const Floats x = inputs(tokens, n, n, 3);
  const Doubles h = plain_moment(x, tokens, n, n);
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  Floats errors(rows * n);
  for (float& v : errors) v = normal(random);
  const double mean = mean_of_diagonal(h, n);
  double expected = 0, magnitude = 0;
  for (size_t r = 0; r < rows; ++r) {
    for (size_t i = 0; i < n; ++i) {
      for (size_t j = 0; j < n; ++j) {
        const double term = static_cast<double>(errors[r * n + i]) *
                            static_cast<double>(errors[r * n + j]) *
                            (h[i * n + j] + (i == j ? 0.25 * mean : 0));
        expected += term;
        magnitude += std::fabs(term);
      }
    }
  }
  EXPECT_NEAR(output_error(kForwards, moment_of(x, tokens, n, n), 0.25, errors.data(), rows, n),
              expected, magnitude * static_cast<double>(tokens) * 0x1p-24);
}

// H in the plan's order, rotated and damped, in plain arithmetic.
Doubles planned_moment(const Doubles& h, size_t known, const FeedbackPlan& plan,
                       const MatrixShape& shape) {
  const size_t n = shape.cols, b = std::max(1u, shape.rotation);
  const auto sign = [](size_t i, size_t j) { return __builtin_popcountll(i & j) % 2 ? -1.0 : 1.0; };
  Doubles rotated(n * n);
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < n; ++j) {
      for (size_t k = i / b * b; k < i / b * b + b; ++k) {
        for (size_t l = j / b * b; l < j / b * b + b; ++l) {
          if (k < known && l < known) {
            rotated[i * n + j] += sign(i % b, k % b) * h[k * known + l] * sign(l % b, j % b);
          }
        }
      }
    }
  }
  Doubles result(n * n);
  for (uint32_t i = 0; i < n; ++i) {
    for (uint32_t j = 0; j < n; ++j) {
      result[i * n + j] =
          rotated[size_t{plan.column(i)} * n + plan.column(j)] + (i == j ? plan.damping() : 0);
    }
  }
  return result;
}

TEST(FeedbackPlan, FactorsTheMoment) {
  struct Case {
    uint32_t inputs, group;
    bool rotated;
  };
  // One panel and several, padding, a rotation.
  for (const Case& c : {Case{48, 16, false}, Case{200, 64, true}, Case{100, 32, true}}) {
    const size_t tokens = 600;
    const Floats x = inputs(tokens, c.inputs, c.inputs, 5);
    const MatrixShape shape = matrix_shape(WeightType::int4, 16, c.inputs, c.group, c.rotated);
    const FeedbackPlan plan(kForwards, moment_of(x, tokens, c.inputs, c.inputs), shape, 0.01);
    const Doubles h =
        planned_moment(plain_moment(x, tokens, c.inputs, c.inputs), c.inputs, plan, shape);
    const size_t n = shape.cols;
    std::vector<bool> seen(n);
    for (uint32_t i = 0; i < n; ++i) {
      EXPECT_FALSE(seen[plan.column(i)]);
      seen[plan.column(i)] = true;
      EXPECT_EQ(plan.column(i) / c.group, plan.column(i / c.group * c.group) / c.group);
    }
    for (uint32_t i = 0; i < n; ++i) {
      for (uint32_t j = 0; j < n; ++j) {
        double product = 0;
        for (uint32_t k = std::max(i, j); k < n; ++k) {
          const auto entry = [&](uint32_t r) {
            const double pivot = std::sqrt(static_cast<double>(plan.weight(k)));
            return r == k ? pivot : static_cast<double>(plan.feedback(k)[r]) * pivot;
          };
          product += entry(i) * entry(j);
        }
        // Float32 sums of n products whose magnitudes add up to at most sqrt(h_ii h_jj), and an H that
        // is as exact as its sums over tokens.
        const double bound = static_cast<double>(tokens + 4 * n) * 0x1p-24 *
                             std::sqrt(h[i * n + i] * h[j * n + j]) * 4;
        EXPECT_NEAR(product, h[i * n + j], bound) << n << " " << i << " " << j;
      }
    }
  }
}

TEST(FeedbackPlan, InputsThatNeverCome) {
  const SecondMoment nothing(32);
  const MatrixShape shape = matrix_shape(WeightType::int4, 16, 32, 16);
  const FeedbackPlan plan(kForwards, nothing, shape, 0.01);
  for (uint32_t i = 0; i < 32; ++i) EXPECT_GT(plan.weight(i), 0);
}

struct Rounded {
  std::vector<uint8_t> bytes;
  double reported = 0;  // by the encoder
  double error = 0;     // by decoding
};

class Feedback : public testing::TestWithParam<WeightType> {
 protected:
  static constexpr size_t kTokens = 1000;
  static constexpr uint32_t kInputs = 120;

  explicit Feedback() {
    std::mt19937 random(6);
    std::normal_distribution<float> normal;
    rows_.assign(size_t{kTileRows} * shape_.cols, 0.0f);
    for (uint32_t r = 0; r < kTileRows; ++r) {
      for (uint32_t c = 0; c < kInputs; ++c) rows_[r * shape_.cols + c] = 0.1f * normal(random);
    }
    float largest = 0;
    for (const float v : rows_) largest = std::max(largest, std::fabs(v));
    scale_ = matrix_scale(GetParam(), largest);
    rotate_weights(shape_.rotation, rows_.data(), rows_.size());
  }

  Rounded finish(Rounded r) const {
    const Doubles h =
        planned_moment(plain_moment(x_, kTokens, kInputs, kInputs), kInputs, plan_, shape_);
    Floats decoded(shape_.cols);
    for (uint32_t row = 0; row < kTileRows; ++row) {
      decode_row(shape_, scale_, r.bytes.data(), row, shape_.cols, decoded.data());
      Doubles e(shape_.cols);
      for (uint32_t i = 0; i < shape_.cols; ++i) {
        const uint32_t c = plan_.column(i);
        e[i] = static_cast<double>(rows_[row * shape_.cols + c]) - static_cast<double>(decoded[c]);
      }
      for (uint32_t i = 0; i < shape_.cols; ++i) {
        for (uint32_t j = 0; j < shape_.cols; ++j) r.error += e[i] * h[i * shape_.cols + j] * e[j];
      }
    }
    return r;
  }

  Rounded with_feedback(const FeedbackPlan& plan) const {
    Rounded r;
    r.bytes.resize(shape_.row_block_bytes());
    encode_row_block_with_feedback(shape_, scale_, plan, rows_.data(), shape_.cols, r.bytes.data(),
                                   &r.reported);
    return finish(r);
  }

  Rounded by_value() const {
    Rounded r;
    r.bytes.resize(shape_.row_block_bytes());
    encode_row_block(shape_, scale_, rows_.data(), shape_.cols, r.bytes.data());
    return finish(r);
  }

  MatrixShape shape_ = matrix_shape(GetParam(), kTileRows, kInputs, 32, true);
  Floats x_ = inputs(kTokens, kInputs, kInputs, 7);
  FeedbackPlan plan_{kForwards, moment_of(x_, kTokens, kInputs, kInputs), shape_, 0.01};
  Floats rows_;
  float scale_ = 1;
};

// Inputs with four strong directions leave 116 of 120 in which errors cost little, so most of the
// error can be moved there.
TEST_P(Feedback, LosesLessThanRoundingToNearest) {
  EXPECT_LT(with_feedback(plan_).error, 0.5 * by_value().error);
}

TEST_P(Feedback, ReportsTheErrorOfWhatItStored) {
  const Rounded r = with_feedback(plan_);
  EXPECT_NEAR(r.reported, r.error, 0.01 * r.error);
}

TEST_P(Feedback, SameBytesWhateverTheOrderOfWork) {
  const FeedbackPlan other(kBackwards, moment_of(x_, kTokens, kInputs, kInputs), shape_, 0.01);
  EXPECT_EQ(with_feedback(plan_).bytes, with_feedback(other).bytes);
}

// Chosen codes and scales come back as they were given.
TEST_P(Feedback, StoresCodesAndScales) {
  const CodeRange range = code_range(GetParam());
  std::mt19937 random(8);
  std::vector<int16_t> codes(size_t{shape_.cols} * kTileRows);
  std::vector<uint16_t> steps(size_t{shape_.groups()} * kTileRows);
  for (int16_t& c : codes) {
    c = static_cast<int16_t>(std::uniform_int_distribution<int>(range.low, range.high)(random));
  }
  for (uint16_t& s : steps) {
    s = float_to_half(std::uniform_real_distribution<float>(-4, 4)(random));
  }
  std::vector<uint8_t> bytes(shape_.row_block_bytes());
  encode_row_block_codes(shape_, 0.5f, rows_.data(), shape_.cols, codes.data(), steps.data(),
                         bytes.data());
  Floats decoded(shape_.cols);
  for (uint32_t row = 0; row < kTileRows; ++row) {
    decode_row(shape_, 0.5f, bytes.data(), row, shape_.cols, decoded.data());
    for (uint32_t c = 0; c < shape_.cols; ++c) {
      const float step = half_to_float(steps[c / shape_.group * kTileRows + row]);
      EXPECT_EQ(decoded[c], 0.5f * step * static_cast<float>(codes[c * kTileRows + row]));
    }
  }
}

TEST_P(Feedback, ZerosStayZeros) {
  std::fill(rows_.begin(), rows_.end(), 0.0f);
  const Rounded r = with_feedback(plan_);
  EXPECT_EQ(r.error, 0);
  EXPECT_EQ(r.reported, 0);
}

INSTANTIATE_TEST_SUITE_P(Types, Feedback, testing::ValuesIn(kQuantisedTypes),
                         [](const auto& type) { return type_name(type.param); });

}  // namespace
}  // namespace mamba_edge
