// Every kernel in every table that this CPU runs, against its contract in platforms/kernels.h,
// computed in double.
//
// u = 2^-24 is the largest relative error of one float32 operation. Bounds are sums of the
// first-order terms; what remains is of the order of u^2 and is covered by the slack of the
// contracts. All memory ends at a forbidden page.
//
// There is a test for each table of the architecture, whatever the CPU: those of tables that it
// does not run are skipped, so that a list of tests made on one CPU (or in one emulated) is right
// on another.
#include "platforms/kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "platforms/select.h"
#include "quant/half.h"
#include "quant/int8_state.h"
#include "tests/platforms/guarded.h"

namespace mamba_edge {
namespace {

constexpr double kU = 0x1p-24;
constexpr double kTiny = 0x1p-126;  // results below this may be subnormal or zero
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

using Floats = Guarded<float>;
using Sizes = std::initializer_list<size_t>;

std::vector<const KernelTable*> tables() {
  size_t n = 0;
  const KernelTable* const* t = available_tables(&n);
  return {t, t + n};
}

// known_isas(), cut at its commas.
std::vector<std::string> isas() {
  std::vector<std::string> names;
  std::istringstream known(known_isas());
  for (std::string name; std::getline(known >> std::ws, name, ',');) names.push_back(name);
  return names;
}

class Kernels : public testing::TestWithParam<std::string> {
 protected:
  const KernelTable* const table = select_table(GetParam().c_str());
  const KernelTable& k = table != nullptr ? *table : *select_table("generic");
  std::mt19937 random{20240611};

  void SetUp() override {
    if (table == nullptr) GTEST_SKIP() << "this CPU does not run " << GetParam();
  }

  float uniform(float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(random);
  }
  int integer(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); }
  void fill(Floats& x, float low, float high) {
    for (float& v : x) v = uniform(low, high);
  }
  Floats floats(size_t n, float low, float high) {
    Floats x(n);
    fill(x, low, high);
    return x;
  }
};

INSTANTIATE_TEST_SUITE_P(Tables, Kernels, testing::ValuesIn(isas()),
                         [](const auto& test) { return test.param; });

// ---- references ----

double half_to_double(uint16_t h) {
  const int exponent = (h >> 10) & 31;
  const double fraction = (h & 1023) / 1024.0;
  const double sign = (h & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 31) return fraction == 0 ? sign * HUGE_VAL : std::nan("");
  return sign *
         (exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1 + fraction, exponent - 15));
}

double silu(double x) { return x / (1 + std::exp(-x)); }
double softplus(double x) { return x > 20 ? x : std::log1p(std::exp(x)); }

// Contract of exp: 2 ulp, an ulp being at most 2u; and of the functions made of it (kernels.h).
constexpr double kExp = 4 * kU;
constexpr double kSilu = 8 * kU;
constexpr double kSoftplus = 12 * kU;
constexpr double kSiluFlush =
    0x1p-119;  // |x| e^-|x| where e^-|x| leaves the normal range, |x| < 128

size_t padded(size_t n) { return round_up<size_t>(n, 16); }

// ---- quantise_i8 ----

struct Quantised {
  Guarded<int8_t> q;
  Floats scale;
  Guarded<int32_t> sum;
  QuantisedRows rows;

  Quantised(size_t tokens, size_t cols, size_t group)
      : q(tokens * round_up<size_t>(cols, 64)),
        scale(tokens * (cols / group)),
        sum(tokens * (cols / group)) {
    rows.q = q.data();
    rows.scale = scale.data();
    rows.sum = sum.data();
    rows.stride = round_up<size_t>(cols, 64);
    rows.group_stride = cols / group;
  }
};

TEST_P(Kernels, QuantiseKeepsItsBound) {
  for (const size_t group : Sizes{16, 32, 48, 64, 128, 240, 256}) {
    for (const float magnitude : {1.0f, 1e-28f, 1e30f, 3.4e38f, 1e-30f, 1e-40f, 0.0f}) {
      const size_t n = 5 * group;
      Floats x = floats(n, -1, 1);
      for (float& v : x) v *= magnitude;
      for (size_t i = 0; i < group; ++i) x[group + i] = 0;  // an all-zero group
      x[2 * group + 3] = magnitude;                         // an outlier decides its group only
      for (size_t i = 0; i < group; ++i) x[3 * group + i] = (i % 2 != 0 ? magnitude : -magnitude);
      Guarded<int8_t> q(n);
      Floats scale(5);
      Guarded<int32_t> sum(5);
      k.quantise_i8(x.data(), n, group, 0, q.data(), scale.data(), sum.data());
      for (size_t g = 0; g < 5; ++g) {
        double top = 0;
        int total = 0;
        for (size_t i = g * group; i < (g + 1) * group; ++i) {
          top = std::max<double>(top, std::fabs(x[i]));
          total += q[i];
          ASSERT_GE(q[i], -127);
        }
        EXPECT_EQ(sum[g], total);
        if (top < static_cast<double>(kTinyActivation)) {
          EXPECT_EQ(scale[g], 0.0f);
          for (size_t i = g * group; i < (g + 1) * group; ++i) ASSERT_EQ(q[i], 0);
          continue;
        }
        EXPECT_NEAR(scale[g], top / 127, top / 127 * kU);
        for (size_t i = g * group; i < (g + 1) * group; ++i) {
          ASSERT_LE(std::fabs(x[i] - double{scale[g]} * q[i]), scale[g] * (0.5 + 0x1p-15))
              << "group " << g << " of " << group << " magnitude " << magnitude;
        }
      }
    }
  }
}

TEST_P(Kernels, QuantiseRoundsTiesToEven) {
  Floats x(16);
  const float in[16] = {127,     0.5f,  1.5f,   2.5f, -0.5f, -1.5f, -2.5f, 126.5f,
                        -126.5f, 3.49f, -3.51f, 0,    -0.0f, 1,     -127,  64.5f};
  const int8_t want[16] = {127, 0, 2, 2, 0, -2, -2, 126, -126, 3, -4, 0, 0, 1, -127, 64};
  std::copy_n(in, 16, x.data());
  Guarded<int8_t> q(16);
  Floats scale(1);
  Guarded<int32_t> sum(1);
  k.quantise_i8(x.data(), 16, 16, 0, q.data(), scale.data(), sum.data());
  EXPECT_EQ(scale[0], 1.0f);
  for (size_t i = 0; i < 16; ++i) EXPECT_EQ(q[i], want[i]) << x[i];
}

// H x by its definition, H[i][j] = (-1)^popcount(i & j), in double; `bound` gets what the kernel's
// log2(rotation) levels of sums may differ by: each rounds sums of magnitudes up to sum |x|.
std::vector<double> rotated(const float* x, size_t n, size_t rotation, std::vector<double>* bound) {
  std::vector<double> out(n);
  bound->assign(n, 0);
  for (size_t i = 0; i < n; ++i) {
    const size_t begin = i / rotation * rotation;
    double magnitude = 0;
    for (size_t j = 0; j < rotation; ++j) {
      const bool minus = (std::popcount((i - begin) & j) & 1) != 0;
      out[i] += minus ? -double{x[begin + j]} : double{x[begin + j]};
      magnitude += std::fabs(x[begin + j]);
    }
    (*bound)[i] = std::log2(rotation) * kU * magnitude;
  }
  return out;
}

TEST_P(Kernels, QuantiseRotates) {
  for (const auto& [group, rotation] : std::vector<std::pair<size_t, size_t>>{
           {64, 64}, {64, 32}, {64, 16}, {48, 16}, {96, 32}, {256, 64}, {256, 128}, {128, 128}}) {
    const size_t n = 3 * group;
    Floats x = floats(n, -1, 1);
    x[group + 5] = 100;  // an outlier, which the rotation spreads
    Guarded<int8_t> q(n);
    Floats scale(3);
    Guarded<int32_t> sum(3);
    k.quantise_i8(x.data(), n, group, rotation, q.data(), scale.data(), sum.data());
    std::vector<double> bound;
    const std::vector<double> want = rotated(x.data(), n, rotation, &bound);
    for (size_t i = 0; i < n; ++i) {
      const double s = scale[i / group];
      ASSERT_LE(std::fabs(want[i] - s * q[i]), s * (0.5 + 0x1p-15) + bound[i])
          << i << ", groups of " << group << ", rotation " << rotation;
    }
    int total = 0;
    for (size_t i = 0; i < group; ++i) total += q[i];
    EXPECT_EQ(sum[0], total);
  }
}

// One value that is not finite makes its group NaN, wherever it stands, and leaves the others alone.
TEST_P(Kernels, QuantiseShowsWhatIsNotFinite) {
  for (const float bad : {kInf, -kInf, kNan}) {
    for (size_t at = 0; at < 64; ++at) {
      Floats x = floats(3 * 64, -1, 1);
      x[64 + at] = bad;
      x[64 + (at + 21) % 64] = at % 2 == 0 ? -bad : 1e30f;
      Guarded<int8_t> q(3 * 64);
      Floats scale(3);
      Guarded<int32_t> sum(3);
      k.quantise_i8(x.data(), 3 * 64, 64, at % 2 * 64, q.data(), scale.data(), sum.data());
      EXPECT_TRUE(std::isnan(scale[1])) << bad << " at " << at;
      EXPECT_EQ(sum[1], 0);
      for (size_t i = 64; i < 128; ++i) ASSERT_EQ(q[i], 0);
      EXPECT_GT(scale[0], 0.0f);
      EXPECT_GT(scale[2], 0.0f);
    }
  }
}

// ---- matmul ----

struct TestMatrix {
  MatrixShape shape;
  Guarded<uint8_t> bytes;
  Matrix m;

  TestMatrix(WeightType type, size_t rows, size_t cols, size_t group, float scale)
      : shape{type, static_cast<uint32_t>(rows), static_cast<uint32_t>(cols),
              static_cast<uint32_t>(group)},
        bytes(shape.bytes()) {
    m.shape = shape;
    m.row_block_bytes = shape.row_block_bytes();
    m.scale = scale;
    m.data = bytes.data();
  }

  uint8_t* block(size_t row) { return bytes.data() + row / 16 * shape.row_block_bytes(); }
  const uint8_t* block(size_t row) const {
    return bytes.data() + row / 16 * shape.row_block_bytes();
  }

  void set_group_scale(size_t row, size_t group, uint16_t half) {
    std::memcpy(block(row) + (group * 16 + row % 16) * 2, &half, 2);
  }
  double group_scale(size_t row, size_t group) const {
    uint16_t half;
    std::memcpy(&half, block(row) + (group * 16 + row % 16) * 2, 2);
    return half_to_double(half);
  }
  // The stored integer, without its zero, as quant/blocks.h words it.
  int quantum(size_t row, size_t col) const {
    const uint8_t* w = block(row) + shape.scale_bytes() + row % 16 * 4 + col % 4;
    const size_t step = col / 4;
    constexpr size_t kBitOf[] = {0, 1, 4, 5, 2, 3, 6, 7};  // of eight steps in one line
    // Byte `lane` of line `n` behind the scales, and in it the bits of the `k`th step.
    const auto bits = [&](size_t n, size_t k, int count) {
      return w[n * 64] >> (k * static_cast<size_t>(count)) & ((1 << count) - 1);
    };
    switch (shape.type) {
      case WeightType::int6: {
        const size_t unit = step / 4 * 3, s = step % 4;
        return (bits(unit + s / 2, s % 2, 4) | bits(unit + 2, s, 2) << 4) - 32;
      }
      case WeightType::int5: {
        const size_t unit = step / 8 * 5, s = step % 8;
        return (bits(unit + s / 2, s % 2, 4) | bits(unit + 4, kBitOf[s], 1) << 4) - 16;
      }
      case WeightType::int4:
        return bits(step / 2, step % 2, 4) - 8;
      case WeightType::int3: {
        const size_t unit = step / 8 * 3, s = step % 8;
        return (bits(unit + s / 4, s % 4, 2) | bits(unit + 2, kBitOf[s], 1) << 2) - 4;
      }
      case WeightType::int2:
        return bits(step / 4, step % 4, 2) - 2;
      default:
        return bits(step, 0, 8) - 128;
    }
  }
};

enum class Fill { random, highest, lowest, alternating };

void fill_quanta(TestMatrix& m, Fill fill, std::mt19937& random) {
  for (size_t r = 0; r < m.shape.row_blocks(); ++r) {
    uint8_t* w = m.block(r * 16) + m.shape.scale_bytes();
    for (size_t i = 0; i < m.shape.weight_bytes(); ++i) {
      const bool int8 = m.shape.type == WeightType::int8;
      const unsigned low = int8 ? 1 : 0x00, high = 0xff;
      switch (fill) {
        case Fill::random:
          w[i] = static_cast<uint8_t>(low + random() % (256 - low));
          break;
        case Fill::highest:
          w[i] = static_cast<uint8_t>(high);
          break;
        case Fill::lowest:
          w[i] = static_cast<uint8_t>(low);
          break;
        case Fill::alternating:
          w[i] = static_cast<uint8_t>(i % 2 != 0 ? high : low);
          break;
      }
    }
  }
}

void fill_q(Quantised& x, Fill fill, size_t tokens, size_t cols, size_t group,
            std::mt19937& random) {
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t g = 0; g < cols / group; ++g) {
      int32_t sum = 0;
      for (size_t i = g * group; i < (g + 1) * group; ++i) {
        int v = 0;
        switch (fill) {
          case Fill::random:
            v = static_cast<int>(random() % 255) - 127;
            break;
          case Fill::highest:
            v = 127;
            break;
          case Fill::lowest:
            v = -127;
            break;
          case Fill::alternating:
            v = i % 2 != 0 ? 127 : -127;
            break;
        }
        x.q[t * x.rows.stride + i] = static_cast<int8_t>(v);
        sum += v;
      }
      x.sum[t * x.rows.group_stride + g] = sum;
    }
  }
}

QuantisedRows from_token(QuantisedRows x, size_t t) {
  x.q += t * x.stride;
  x.scale += t * x.group_stride;
  x.sum += t * x.group_stride;
  return x;
}

struct QuantisedCase {
  size_t rows, cols, group, tokens;
};

// The group is rounded up to what the type allows.
void check_quantised(const KernelTable& k, WeightType type, QuantisedCase c, Fill weights,
                     Fill acts, bool extreme_scales, std::mt19937& random) {
  const size_t unit = properties(type).unit(), n_groups = c.cols / c.group;
  c.group = round_up(c.group, unit);
  c.cols = n_groups * c.group;
  SCOPED_TRACE(testing::Message() << type_name(type) << " rows " << c.rows << " cols " << c.cols
                                  << " group " << c.group << " tokens " << c.tokens);
  TestMatrix m(type, c.rows, c.cols, c.group, 0.25f);
  fill_quanta(m, weights, random);
  const size_t groups = c.cols / c.group;
  for (size_t row = 0; row < m.shape.row_blocks() * 16; ++row) {
    for (size_t g = 0; g < groups; ++g) {
      // Any finite binary16 but zero, subnormals included, or ordinary ones; either sign.
      const auto half = extreme_scales ? 1 + random() % 0x7bff : 0x1c00 + random() % 0x1000;
      m.set_group_scale(row, g, static_cast<uint16_t>(half | (random() % 2) << 15));
    }
  }
  Quantised x(c.tokens, c.cols, c.group);
  fill_q(x, acts, c.tokens, c.cols, c.group, random);
  for (size_t i = 0; i < x.scale.size(); ++i) {
    const float e = extreme_scales ? static_cast<float>(static_cast<int>(random() % 160)) - 80 : 0;
    x.scale[i] =
        random() % 7 == 0 ? 0.0f : std::exp2(e) * (1 + static_cast<float>(random() % 1000) / 1000);
    if (x.scale[i] == 0) {  // an all-zero group
      const size_t t = i / groups, g = i % groups;
      x.sum[i] = 0;
      std::memset(x.q.data() + t * x.rows.stride + g * c.group, 0, c.group);
    }
  }
  const size_t stride = m.shape.row_blocks() * 16;
  const auto matmul = quantised_matmul(k, type);
  Floats out(c.tokens * stride);
  matmul(m.m, 0, m.shape.row_blocks(), x.rows, c.tokens, out.data(), stride);
  for (size_t t = 0; t < c.tokens; ++t) {
    for (size_t row = 0; row < stride; ++row) {
      double sum = 0, size = 0;
      for (size_t g = 0; g < groups; ++g) {
        int64_t dot = 0;
        for (size_t i = g * c.group; i < (g + 1) * c.group; ++i) {
          dot += int64_t{m.quantum(row, i)} * x.q[t * x.rows.stride + i];
        }
        const double term =
            m.group_scale(row, g) * x.scale[t * groups + g] * static_cast<double>(dot) * 0.25;
        sum += term;
        size += std::fabs(term);
      }
      ASSERT_LE(std::fabs(out[t * stride + row] - sum),
                (static_cast<double>(groups) + 3) * kU * size)
          << "token " << t << " row " << row;
    }
  }
  // The same bits, however the work is cut.
  Floats cut(c.tokens * stride);
  for (size_t t = 0; t < c.tokens;) {
    const size_t n = std::min<size_t>(1 + random() % 3, c.tokens - t);
    for (size_t r = m.shape.row_blocks(); r-- > 0;) {
      matmul(m.m, r, r + 1, from_token(x.rows, t), n, cut.data() + t * stride, stride);
    }
    t += n;
  }
  ASSERT_TRUE(cut.same_bits(out));
}

TEST_P(Kernels, MatmulQuantisedMeetsItsBound) {
  for (const WeightType type : kQuantisedTypes) {
    for (const size_t group : Sizes{16, 32, 48, 64, 80, 128, 192, 240, 256}) {
      for (const size_t groups : Sizes{1, 2, 3, 5, 8}) {
        const size_t tokens = 1 + random() % 9;
        check_quantised(k, type, {1 + random() % 70, groups * group, group, tokens}, Fill::random,
                        Fill::random, random() % 2 != 0, random);
      }
    }
    for (size_t tokens = 1; tokens <= 19; ++tokens) {
      check_quantised(k, type, {33, 192, 64, tokens}, Fill::random, Fill::random, false, random);
    }
  }
}

// As a prompt is read: tiles of 16 tokens and what is left, one row block and several.
TEST_P(Kernels, MatmulQuantisedOfManyTokens) {
  for (const WeightType type : kQuantisedTypes) {
    for (size_t group = 16; group <= kMaxGroup; group += 16) {
      const size_t tokens = 16 + random() % 34;
      check_quantised(k, type, {1 + random() % 70, (1 + random() % 3) * group, group, tokens},
                      Fill::random, Fill::random, random() % 2 != 0, random);
    }
    for (const size_t tokens : Sizes{16, 17, 31, 32, 33, 48, 63, 64, 128, 129, 150, 275}) {
      check_quantised(k, type, {1 + random() % 80, 128, 64, tokens}, Fill::random, Fill::random,
                      false, random);
    }
  }
  // As many groups as AVX2's sums over pairs of weights have room for, and one more.
  for (const size_t groups : Sizes{128, 129}) {
    check_quantised(k, WeightType::int8, {112, groups * 64, 64, 21}, Fill::random, Fill::random,
                    false, random);
  }
  // Rows that fit in AMX's unpacked weights, and rows that do not.
  for (const size_t groups : Sizes{32, 33}) {
    check_quantised(k, WeightType::int8, {33, groups * 64, 64, 81}, Fill::random, Fill::random,
                    false, random);
  }
}

TEST_P(Kernels, MatmulQuantisedDoesNotSaturate) {
  constexpr Fill kFills[] = {Fill::highest, Fill::lowest, Fill::alternating};
  for (const WeightType type : kQuantisedTypes) {
    for (const Fill weights : kFills) {
      for (const Fill acts : kFills) {
        for (const size_t group : Sizes{16, 64, 256}) {
          check_quantised(k, type, {16, 2 * group, group, 1}, weights, acts, false, random);
          check_quantised(k, type, {17, group, group, 9}, weights, acts, true, random);
          check_quantised(k, type, {33, 2 * group, group, 17}, weights, acts, true, random);
        }
      }
    }
  }
}

TEST_P(Kernels, MatmulFloatMeetsItsBound) {
  for (const WeightType type : {WeightType::f32, WeightType::f16, WeightType::int16}) {
    const bool int16 = type == WeightType::int16;
    const std::vector<size_t> sizes = int16 ? std::vector<size_t>{16, 96, 160, 1008}
                                            : std::vector<size_t>{1, 2, 3, 16, 17, 63, 160, 1001};
    for (const size_t cols : sizes) {
      for (const size_t tokens : Sizes{1, 2, 3, 4, 5, 7, 9}) {
        const size_t rows = 1 + random() % 50;
        const size_t group = int16 ? (cols % 48 == 0 ? 48 : 16) : 1;
        TestMatrix m(type, rows, cols, group, 2.0f);
        const size_t stride = m.shape.row_blocks() * 16;
        const size_t x_stride = padded(cols);
        auto weight = [&](size_t row, size_t col) -> double {
          const uint8_t* block = m.block(row);
          if (type == WeightType::f32) {
            float v;
            std::memcpy(&v, block + (col * 16 + row % 16) * 4, 4);
            return v;
          }
          uint16_t h;
          std::memcpy(&h, block + m.shape.scale_bytes() + (col * 16 + row % 16) * 2, 2);
          return int16 ? m.group_scale(row, col / group) * static_cast<int16_t>(h)
                       : half_to_double(h);
        };
        for (size_t row = 0; row < stride; ++row) {
          for (size_t g = 0; int16 && g < cols / group; ++g) {
            m.set_group_scale(row, g, static_cast<uint16_t>(random() % 0x7c00));
          }
          for (size_t col = 0; col < cols; ++col) {
            if (type == WeightType::f32) {
              const float v = uniform(-1, 1);
              std::memcpy(m.block(row) + (col * 16 + row % 16) * 4, &v, 4);
            } else {  // any finite one
              const uint16_t h = static_cast<uint16_t>((random() & 0x8000) | random() % 0x7c00);
              std::memcpy(m.block(row) + m.shape.scale_bytes() + (col * 16 + row % 16) * 2, &h, 2);
            }
          }
        }
        Floats x = floats(tokens * x_stride, -1, 1);
        Floats out(tokens * stride);
        const auto matmul = type == WeightType::f32   ? k.matmul_f32_f32
                            : type == WeightType::f16 ? k.matmul_f16_f32
                                                      : k.matmul_i16_f32;
        matmul(m.m, 0, m.shape.row_blocks(), x.data(), x_stride, tokens, out.data(), stride);
        for (size_t t = 0; t < tokens; ++t) {
          for (size_t row = 0; row < stride; ++row) {
            double sum = 0, size = 0;
            for (size_t col = 0; col < cols; ++col) {
              const double term = 2 * weight(row, col) * x[t * x_stride + col];
              sum += term;
              size += std::fabs(term);
            }
            ASSERT_LE(std::fabs(out[t * stride + row] - sum),
                      (static_cast<double>(cols + m.shape.groups()) + 2) * kU * size + kTiny)
                << type_name(type) << " cols " << cols << " token " << t << " row " << row;
          }
        }
        Floats cut(tokens * stride);
        for (size_t t = 0; t < tokens; ++t) {
          for (size_t r = 0; r < m.shape.row_blocks(); ++r) {
            matmul(m.m, r, r + 1, x.data() + t * x_stride, x_stride, 1, cut.data() + t * stride,
                   stride);
          }
        }
        ASSERT_TRUE(cut.same_bits(out))
            << type_name(type) << " cols " << cols << " tokens " << tokens;
      }
    }
  }
}

// A matrix of one column holds every finite binary16; times 1 it comes back unchanged.
TEST_P(Kernels, EveryHalfIsExact) {
  TestMatrix m(WeightType::f16, 65536, 1, 1, 1.0f);
  for (size_t i = 0; i < 65536; ++i) {
    const uint16_t h = static_cast<uint16_t>(i);
    std::memcpy(m.block(i) + i % 16 * 2, &h, 2);
  }
  Floats x(16), out(65536);
  x[0] = 1.0f;
  k.matmul_f16_f32(m.m, 0, 4096, x.data(), 16, 1, out.data(), 65536);
  for (size_t i = 0; i < 65536; ++i) {
    const double want = half_to_double(static_cast<uint16_t>(i));
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(out[i])) << i;
    } else {
      ASSERT_EQ(static_cast<double>(out[i]), want) << i;
    }
  }
}

TEST_P(Kernels, EveryGroupScaleIsExact) {
  for (const WeightType type : kQuantisedTypes) {
    const size_t cols = properties(type).unit();
    TestMatrix m(type, 0x7c00, cols, cols, 1.0f);
    fill_quanta(m, Fill::random, random);
    for (size_t r = 0; r < 0x7c00; ++r) m.set_group_scale(r, 0, static_cast<uint16_t>(r));
    Quantised x(1, cols, cols);
    x.q[cols - 3] = 1;
    x.scale[0] = 1.0f;
    x.sum[0] = 1;
    Floats out(0x7c00);
    const auto matmul = quantised_matmul(k, type);
    matmul(m.m, 0, 0x7c0, x.rows, 1, out.data(), 0x7c00);
    for (size_t r = 0; r < 0x7c00; ++r) {
      ASSERT_EQ(static_cast<double>(out[r]),
                half_to_double(static_cast<uint16_t>(r)) * m.quantum(r, cols - 3))
          << type_name(type) << " " << r;
    }
  }
}

// ---- norms ----

TEST_P(Kernels, RmsNorm) {
  for (const size_t n : Sizes{1, 15, 16, 17, 48, 768, 2561}) {
    for (const float magnitude : {1.0f, 1e-3f, 1e15f, 0.0f}) {
      for (const bool weighted : {false, true}) {
        const size_t p = padded(n);
        Floats x(p), weight(p), out(p);
        for (size_t i = 0; i < n; ++i) {
          x[i] = uniform(-magnitude, magnitude);
          weight[i] = uniform(-2, 2);
        }
        double squares = 0;
        for (size_t i = 0; i < n; ++i) squares += double{x[i]} * x[i];
        const double factor = 1 / std::sqrt(squares / static_cast<double>(n) + double{1e-5f});
        const Floats before = x;
        k.rms_norm(x.data(), weighted ? weight.data() : nullptr, n, 1e-5f, out.data());
        for (size_t i = 0; i < p; ++i) {
          const double want = i < n ? x[i] * factor * (weighted ? weight[i] : 1.0f) : 0.0;
          ASSERT_LE(std::fabs(out[i] - want),
                    (static_cast<double>(n) / 16 + 12) * kU * std::fabs(want))
              << n << " at " << i;
        }
        k.rms_norm(x.data(), weighted ? weight.data() : nullptr, n, 1e-5f, x.data());  // in place
        ASSERT_TRUE(x.same_bits(out));
      }
    }
  }
}

// d = (n / 16 + 8) u is the relative error of a sum over n values in 16 lanes, made of chains of n
// / 16 and a tree of 4. The mean is off by dm <= d mean|x|. The variance is off by d, and by dm^2,
// because it is taken about the wrong mean; its square root halves that. The other operations, on x
// - mean, add less than 8 u.
TEST_P(Kernels, LayerNorm) {
  for (const size_t n : Sizes{1, 15, 16, 17, 48, 768, 2561}) {
    for (const float offset : {0.0f, 3.0f, -100.0f}) {
      for (const bool biased : {false, true}) {
        const size_t p = padded(n);
        Floats x(p), weight(p), bias(p), out(p);
        double mean = 0, size = 0, variance = 0;
        for (size_t i = 0; i < n; ++i) {
          x[i] = uniform(-1, 1) + offset;
          weight[i] = uniform(-2, 2);
          bias[i] = uniform(-2, 2);
          mean += x[i] / static_cast<double>(n);
          size += std::fabs(x[i]) / static_cast<double>(n);
        }
        for (size_t i = 0; i < n; ++i)
          variance += std::pow(x[i] - mean, 2) / static_cast<double>(n);
        const double factor = 1 / std::sqrt(variance + double{1e-5f});
        const double d = (static_cast<double>(n) / 16 + 8) * kU;
        const double dm = d * size;
        k.layer_norm(x.data(), weight.data(), biased ? bias.data() : nullptr, n, 1e-5f, out.data());
        for (size_t i = 0; i < p; ++i) {
          const double b = biased ? bias[i] : 0.0f;
          const double v = i < n ? x[i] - mean : 0.0;
          const double want = i < n ? v * factor * weight[i] + b : 0.0;
          const double relative = d / 2 + dm * dm * factor * factor + 8 * kU;
          const double bound =
              std::fabs(weight[i]) * factor * (dm * (1 + relative) + std::fabs(v) * relative) +
              2 * kU * std::fabs(want) + kU * std::fabs(b);
          ASSERT_LE(std::fabs(out[i] - want), bound) << n << " offset " << offset << " at " << i;
        }
        k.layer_norm(x.data(), weight.data(), biased ? bias.data() : nullptr, n, 1e-5f, x.data());
        ASSERT_TRUE(x.same_bits(out));
      }
    }
  }
}

// ---- elementwise ----

TEST_P(Kernels, AddRowsAndScaleRoundOnce) {
  for (const size_t n : Sizes{16, 32, 48, 1040}) {
    const Floats y = floats(n, -3, 3), x = floats(n, -1e-3f, 1e3f), bias = floats(n, -1, 1);
    Floats plain = y, biased = y, scaled = y;
    k.add_rows(plain.data(), x.data(), nullptr, n);
    k.add_rows(biased.data(), x.data(), bias.data(), n);
    k.scale(scaled.data(), 0.3f, n);
    for (size_t i = 0; i < n; ++i) {
      ASSERT_EQ(plain[i], y[i] + x[i]);
      ASSERT_EQ(biased[i], (y[i] + x[i]) + bias[i]);
      ASSERT_EQ(scaled[i], y[i] * 0.3f);
    }
  }
}

TEST_P(Kernels, ArgMax) {
  for (const size_t n : Sizes{1, 2, 7, 15, 16, 17, 31, 33, 64, 100, 1003}) {
    for (int trial = 0; trial < 20; ++trial) {
      Floats x(n);
      for (float& v : x) v = static_cast<float>(integer(-5, 5));  // many ties
      if (trial % 4 == 1) x[random() % n] = kNan;
      if (trial % 4 == 2) x[random() % n] = -kInf;
      if (trial % 4 == 3) x[random() % n] = kInf;
      size_t want = n;
      for (size_t i = 0; i < n; ++i) {
        if (!std::isnan(x[i]) && (want == n || x[i] > x[want])) want = i;
      }
      ASSERT_EQ(k.arg_max(x.data(), n), want == n ? 0 : want) << n;
    }
    Floats x(n);
    for (float& v : x) v = kNan;
    EXPECT_EQ(k.arg_max(x.data(), n), 0u);
    x[n - 1] = -kInf;
    EXPECT_EQ(k.arg_max(x.data(), n), n - 1);
    for (float& v : x) v = -kInf;
    EXPECT_EQ(k.arg_max(x.data(), n), 0u);
  }
}

double ulps(float got, double want) {
  const double ulp = std::ldexp(1.0, std::max(std::ilogb(want), -126) - 23);
  return std::fabs(got - want) / ulp;
}

// dt clamped to 1 makes decay = exp(a) of exactly a.
TEST_P(Kernels, ExpIsWithinTwoUlp) {
  constexpr size_t kN = 1 << 16;
  Floats dt(kN), zero(kN), a(kN), decay(kN);
  double worst = 0;
  for (int round = 0; round < 8; ++round) {
    for (size_t i = 0; i < kN; ++i) {
      a[i] = round == 0 ? -87.3f + 176.0f * static_cast<float>(i) / static_cast<float>(kN)
                        : uniform(-1, 1) * (round < 4 ? 87.3f : std::exp2(uniform(-30, 6)));
    }
    k.dt_decay(dt.data(), zero.data(), a.data(), 1.0f, 1.0f, kN, decay.data());
    for (size_t i = 0; i < kN; ++i) {
      ASSERT_EQ(dt[i], 1.0f);
      worst = std::max(worst, ulps(decay[i], std::exp(double{a[i]})));
    }
  }
  EXPECT_LE(worst, 2.0);
  RecordProperty("worst_ulp", std::to_string(worst));
  std::printf("exp, %s: %.3f ulp\n", k.isa, worst);

  const float edges[16] = {-kInf, -1e30f, -1000, -104,  -88,  -87.4f, -0.0f,  0,
                           88.7f, 88.73f, 1000,  1e30f, kInf, kNan,   1e-40f, -1e-40f};
  Floats edge(16);
  std::copy_n(edges, 16, edge.data());
  Floats one(16), bias(16), out(16);
  k.dt_decay(one.data(), bias.data(), edge.data(), 1.0f, 1.0f, 16, out.data());
  for (size_t i = 0; i < 6; ++i) EXPECT_EQ(out[i], 0.0f) << edge[i];
  for (const size_t i : Sizes{6, 7, 14, 15}) EXPECT_EQ(out[i], 1.0f) << edge[i];
  EXPECT_LE(ulps(out[8], std::exp(double{88.7f})), 2.0);
  for (size_t i = 9; i < 13; ++i) EXPECT_EQ(out[i], kInf) << edge[i];
  EXPECT_TRUE(std::isnan(out[13]));
}

TEST_P(Kernels, SoftplusAndClamp) {
  constexpr size_t kN = 1 << 16;
  Floats dt(kN), bias(kN), a(kN), decay(kN), in(kN);
  double worst = 0;
  for (int round = 0; round < 4; ++round) {
    for (size_t i = 0; i < kN; ++i) {
      in[i] = round == 0 ? -87.3f + 120.0f * static_cast<float>(i) / static_cast<float>(kN)
                         : uniform(-1, 1) * std::exp2(uniform(-30, 6.4f));
      dt[i] = in[i];
      a[i] = -uniform(0, 16);
    }
    k.dt_decay(dt.data(), bias.data(), a.data(), 0.0f, kInf, kN, decay.data());
    for (size_t i = 0; i < kN; ++i) {
      const double want = softplus(in[i]);
      if (in[i] > 20) {
        ASSERT_EQ(dt[i], in[i]);
      }
      if (in[i] < -86.98f && dt[i] == 0) continue;  // below log(2^-125.5)
      worst = std::max(worst, std::fabs(dt[i] - want) / want);
      const double product = double{dt[i]} * a[i];
      const double exact = std::exp(product);
      ASSERT_LE(std::fabs(decay[i] - exact), exact * (kExp + std::fabs(product) * kU) + kTiny);
    }
  }
  EXPECT_LE(worst, kSoftplus);
  std::printf("softplus, %s: %.2f u\n", k.isa, worst / kU);

  const float edges[16] = {-kInf, -3e38f, -1000, -104,  -90, 20, 20.000002f, 100,
                           3e38f, kInf,   0,     -0.0f, 1,   -1, 5,          -5};
  Floats edge(16), zero(16), minus(16), out(16);
  std::copy_n(edges, 16, edge.data());
  for (float& v : minus) v = -1;
  k.dt_decay(edge.data(), zero.data(), minus.data(), 0.0f, kInf, 16, out.data());
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(edge[i], 0.0f) << edges[i];
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(out[i], 1.0f) << edges[i];
  for (size_t i = 6; i < 10; ++i) EXPECT_EQ(edge[i], edges[i]);
  EXPECT_EQ(out[8], 0.0f);

  Floats clamped = floats(48, -10, 10), bias48 = floats(48, -1, 1), a48 = floats(48, -2, 0),
         out48(48);
  const Floats raw = clamped;
  k.dt_decay(clamped.data(), bias48.data(), a48.data(), 0.5f, 2.0f, 48, out48.data());
  for (size_t i = 0; i < 48; ++i) {
    const double v = double{raw[i]} + bias48[i];
    const double want = std::clamp(softplus(v), 0.5, 2.0);
    ASSERT_LE(std::fabs(clamped[i] - want), want * kSoftplus + kU * std::fabs(v));
    ASSERT_GE(clamped[i], 0.5f);
    ASSERT_LE(clamped[i], 2.0f);
  }
}

TEST_P(Kernels, SiluAndGateNorm) {
  constexpr size_t kN = 1 << 15;
  Floats y(kN), z(kN), out(kN);
  double worst = 0;
  for (float& v : y) v = 1;
  for (int round = 0; round < 4; ++round) {
    for (size_t i = 0; i < kN; ++i) {
      z[i] = round == 0 ? -100.0f + 200.0f * static_cast<float>(i) / static_cast<float>(kN)
                        : uniform(-1, 1) * std::exp2(uniform(-30, 6.3f));
    }
    k.gate_norm(y.data(), z.data(), nullptr, false, kN, out.data());
    for (size_t i = 0; i < kN; ++i) {
      const double want = silu(z[i]);
      ASSERT_LE(std::fabs(out[i] - want), kSilu * std::fabs(want) + kSiluFlush) << z[i];
      if (z[i] > -80) worst = std::max(worst, std::fabs(out[i] - want) / (std::fabs(want) + kTiny));
    }
  }
  std::printf("silu, %s: %.2f u\n", k.isa, worst / kU);
  Floats big(16), ones(16), result(16);
  for (size_t i = 0; i < 16; ++i) {
    ones[i] = 1;
    big[i] = (i % 2 != 0 ? 1.0f : -1.0f) * std::exp2(static_cast<float>(i) * 8);
  }
  k.gate_norm(ones.data(), big.data(), nullptr, false, 16, result.data());
  for (size_t i = 2; i < 16; ++i) {
    if (big[i] > 200) {
      EXPECT_EQ(result[i], big[i]);
    } else if (big[i] < -200) {
      EXPECT_EQ(result[i], 0.0f) << big[i];
    }
  }

  for (const size_t n : Sizes{16, 48, 1536}) {
    for (const bool norm_first : {false, true}) {
      for (const bool weighted : {false, true}) {
        const Floats v = floats(n, -2, 2), gate = floats(n, -6, 6), weight = floats(n, -2, 2);
        Floats got(n);
        const float sum = k.gate_norm(v.data(), gate.data(), weighted ? weight.data() : nullptr,
                                      norm_first, n, got.data());
        double squares = 0;
        for (size_t i = 0; i < n; ++i) {
          const double g = silu(gate[i]);
          const double want = v[i] * g * (weighted ? weight[i] : 1.0f);
          ASSERT_LE(std::fabs(got[i] - want), (kSilu + 3 * kU) * std::fabs(want));
          squares += std::pow(norm_first ? v[i] : v[i] * g, 2);
        }
        // Twice the gate's error, a rounding for the product, and the chains and tree of the sum.
        ASSERT_LE(std::fabs(sum - squares),
                  (2 * (kSilu + kU) + (static_cast<double>(n) / 16 + 5) * kU) * squares);
        Floats in_place = v;
        const float again =
            k.gate_norm(in_place.data(), gate.data(), weighted ? weight.data() : nullptr,
                        norm_first, n, in_place.data());
        EXPECT_EQ(again, sum);
        ASSERT_TRUE(in_place.same_bits(got));
      }
    }
  }
}

TEST_P(Kernels, FindAbove) {
  for (const size_t n : Sizes{1, 5, 63, 64, 65, 200}) {
    Floats x(n);
    fill(x, -1, 1);
    for (size_t at = 0; at < n; ++at) {
      const float before = x[at];
      for (const float v : {2.0f, kInf}) {
        x[at] = v;
        for (const size_t from : Sizes{0, 1, at, at + 1, n}) {
          if (from > n) continue;
          EXPECT_EQ(k.find_above(x.data(), from, n, 1.5f), from <= at ? at : n);
        }
      }
      for (const float v : {1.5f, kNan, -kInf}) {  // an equal one is not above, nor is NaN
        x[at] = v;
        EXPECT_EQ(k.find_above(x.data(), 0, n, 1.5f), n);
      }
      x[at] = before;
    }
    EXPECT_EQ(k.find_above(x.data(), 0, n, -2.0f), 0u);
    EXPECT_EQ(k.find_above(x.data(), 0, n, kInf), n);
  }
}

TEST_P(Kernels, CopyFinite) {
  constexpr float kMax = std::numeric_limits<float>::max();
  const float in[] = {kNan, kInf, -kInf, 1.5f, -0.0f, kMax, -kMax, 1e-45f};
  const float want[] = {-kMax, kMax, -kMax, 1.5f, -0.0f, kMax, -kMax, 1e-45f};
  for (const size_t n : Sizes{1, 8, 15, 16, 17, 33}) {
    Floats x(n), out(n);
    for (size_t i = 0; i < n; ++i) x[i] = in[(i * 5) % 8];
    k.copy_finite(x.data(), n, out.data());
    for (size_t i = 0; i < n; ++i) {
      EXPECT_EQ(std::memcmp(&out[i], &want[(i * 5) % 8], sizeof(float)), 0) << i << " " << x[i];
    }
  }
}

TEST_P(Kernels, PeakCountsWhatItDoes) {
  EXPECT_EQ(k.peak_i8(0), 0u);
  const uint64_t one = k.peak_i8(1);
  EXPECT_GE(one, 12 * 8u);  // twelve sums of the smallest registers
  EXPECT_EQ(k.peak_i8(1000), 1000 * one);
}

TEST_P(Kernels, ReadWordsSumsThem) {
  for (const size_t n : Sizes{64, 128, 192, 1024}) {
    Guarded<uint8_t> bytes(n);
    for (uint8_t& b : bytes) b = static_cast<uint8_t>(integer(0, 255));
    uint32_t sum = 0;
    for (size_t i = 0; i < n; i += 4) {
      uint32_t word;
      std::memcpy(&word, bytes.data() + i, 4);
      sum += word;
    }
    EXPECT_EQ(k.read_words(bytes.data(), n), sum);
  }
}

// ---- recurrences ----

TEST_P(Kernels, ConvSilu) {
  for (size_t d_conv = 1; d_conv <= 6; ++d_conv) {
    for (const size_t blocks : Sizes{1, 3}) {
      for (const size_t tokens : Sizes{1, 2, 3, 9}) {
        const size_t channels = blocks * 16, stride = channels + 16;
        Floats window = floats(d_conv * channels, -1, 1);
        const Floats weight = floats(d_conv * channels, -1, 1), bias = floats(channels, -1, 1);
        const Floats x = floats(tokens * stride, -20, 20);
        const bool biased = (tokens + blocks) % 2 == 0;
        const Floats start = window;
        Floats out(tokens * channels);
        ConvArgs args;
        args.window = window.data();
        args.weight = weight.data();
        args.bias = biased ? bias.data() : nullptr;
        args.in = x.data();
        args.in_stride = stride;
        args.out = out.data();
        args.out_stride = channels;
        args.d_conv = d_conv;
        args.blocks = blocks;
        args.tokens = tokens;
        k.conv_silu(args);
        for (size_t c = 0; c < channels; ++c) {
          const size_t at = c / 16 * d_conv * 16 + c % 16;
          std::vector<float> history;
          for (size_t i = 0; i < d_conv; ++i) history.push_back(start[at + i * 16]);
          for (size_t t = 0; t < tokens; ++t) {
            history.erase(history.begin());
            history.push_back(x[t * stride + c]);
            double sum = biased ? bias[c] : 0.0f, size = std::fabs(sum);
            for (size_t i = 0; i < d_conv; ++i) {
              const double term = double{weight[at + i * 16]} * history[i];
              sum += term;
              size += std::fabs(term);
            }
            // |silu'| < 1.1
            const double bound =
                1.1 * static_cast<double>(d_conv + 1) * kU * size + kSilu * std::fabs(silu(sum));
            ASSERT_LE(std::fabs(out[t * channels + c] - silu(sum)), bound + kSiluFlush)
                << d_conv << " " << t;
          }
          for (size_t i = 0; i < d_conv; ++i) ASSERT_EQ(window[at + i * 16], history[i]);
        }
        // Token by token and block by block, in place.
        Floats other_window = start, in_place = x;
        args.window = other_window.data();
        args.out_stride = stride;
        for (size_t b = 0; b < blocks; ++b) {
          for (size_t t = 0; t < tokens; ++t) {
            ConvArgs one = args;
            one.window += b * d_conv * 16;
            one.weight += b * d_conv * 16;
            if (one.bias != nullptr) one.bias += b * 16;
            one.in = in_place.data() + t * stride + b * 16;
            one.out = in_place.data() + t * stride + b * 16;
            one.blocks = 1;
            one.tokens = 1;
            k.conv_silu(one);
          }
        }
        ASSERT_TRUE(other_window.same_bits(window));
        for (size_t t = 0; t < tokens; ++t) {
          ASSERT_EQ(
              std::memcmp(in_place.data() + t * stride, out.data() + t * channels, channels * 4),
              0);
        }
      }
    }
  }
}

// Tables take four, two or one at a time.
constexpr size_t kScanBlocks = 7;

struct ScanData {
  size_t blocks, d_state, tokens, channels;
  Floats state, a, d, bias, dt, b, c, x, z, y;

  ScanData(size_t blocks_in, size_t d_state_in, size_t tokens_in)
      : blocks(blocks_in),
        d_state(d_state_in),
        tokens(tokens_in),
        channels(blocks_in * 16),
        state(channels * d_state),
        a(channels * d_state),
        d(channels),
        bias(channels),
        dt(tokens * channels),
        b((tokens - 1) * (2 * d_state + 3) + d_state),
        c((tokens - 1) * (2 * d_state + 3) + d_state),
        x(tokens * channels),
        z(tokens * channels),
        y(tokens * channels) {}

  size_t bc_stride() const { return 2 * d_state + 3; }
  size_t at(size_t channel, size_t n) const {
    return (channel / 16 * d_state + n) * 16 + channel % 16;
  }

  Mamba1ScanArgs mamba1() {
    Mamba1ScanArgs args;
    args.state = state.data();
    args.a = a.data();
    args.d = d.data();
    args.dt_bias = bias.data();
    args.dt = dt.data();
    args.b = b.data();
    args.c = c.data();
    args.x = x.data();
    args.z = z.data();
    args.y = y.data();
    args.dt_stride = args.x_stride = args.z_stride = args.y_stride = channels;
    args.bc_stride = bc_stride();
    args.d_state = d_state;
    args.blocks = blocks;
    args.tokens = tokens;
    return args;
  }
  Mamba2ScanArgs mamba2(const Floats& decay) {
    Mamba2ScanArgs args;
    args.state = state.data();
    args.d = d.data();
    args.dt = dt.data();
    args.decay = decay.data();
    args.b = b.data();
    args.c = c.data();
    args.x = x.data();
    args.y = y.data();
    args.dt_stride = args.x_stride = args.y_stride = channels;
    args.bc_stride = bc_stride();
    args.d_state = d_state;
    args.blocks = blocks;
    args.tokens = tokens;
    return args;
  }
};

// Follows the recurrence in double with a bound on the state's error e beside it:
//   e <- decay * e + |decay * h| * (relative error of decay) + |dt * B * x| * (relative error of dt
//   + 2 u) + 2 u |h|
TEST_P(Kernels, Mamba1Scan) {
  for (const size_t d_state : Sizes{1, 3, 8, 16, 24, 128}) {
    for (const size_t tokens : Sizes{1, 2, 7}) {
      for (const float dt_size : {0.5f, 30.0f, 1e3f}) {
        SCOPED_TRACE(testing::Message()
                     << "d_state " << d_state << " tokens " << tokens << " dt " << dt_size);
        ScanData s(kScanBlocks, d_state, tokens);
        fill(s.state, -1, 1);
        for (float& v : s.a) v = -std::exp(uniform(-3, 4));
        fill(s.d, -1, 1);
        fill(s.bias, -5, 1);
        fill(s.dt, -dt_size, dt_size);
        fill(s.b, -1, 1);
        fill(s.c, -1, 1);
        fill(s.x, -3, 3);
        fill(s.z, -8, 8);
        const Floats start = s.state;
        k.mamba1_scan(s.mamba1());
        for (size_t ch = 0; ch < s.channels; ++ch) {
          std::vector<double> h(d_state), e(d_state, 0.0);
          for (size_t n = 0; n < d_state; ++n) h[n] = start[s.at(ch, n)];
          for (size_t t = 0; t < tokens; ++t) {
            const double in = double{s.dt[t * s.channels + ch]} + s.bias[ch];
            const double dt = softplus(in), x = s.x[t * s.channels + ch];
            // softplus' / softplus <= 1, so a rounding of its input is worth u |in| of the result.
            const double dt_error = kSoftplus + kU * std::fabs(in);
            double y = s.d[ch] * x, y_size = std::fabs(y), y_error = 0;
            for (size_t n = 0; n < d_state; ++n) {
              const double exponent = dt * s.a[s.at(ch, n)];
              const double decay = std::exp(exponent);
              // The exponent is rounded as dt * log2(e), whose constant is off by 0.23 u, and, where there
              // is no fused multiply-add, as the product with A.
              const double decay_error = kExp + std::fabs(exponent) * (dt_error + 2.25 * kU);
              const double step = dt * s.b[t * s.bc_stride() + n] * x;
              const double old = h[n];
              h[n] = decay * old + step;
              e[n] = decay * e[n] + std::fabs(decay * old) * decay_error +
                     std::fabs(step) * (dt_error + 2 * kU) +
                     2 * kU * (std::fabs(decay * old) + std::fabs(step)) +
                     kTiny * (1 + std::fabs(old));
              const double term = s.c[t * s.bc_stride() + n] * h[n];
              y += term;
              y_size += std::fabs(term);
              y_error += std::fabs(s.c[t * s.bc_stride() + n]) * e[n];
            }
            y_error += (static_cast<double>(d_state) + 2) * kU * y_size;
            const double gate = silu(s.z[t * s.channels + ch]);
            ASSERT_LE(std::fabs(s.y[t * s.channels + ch] - y * gate),
                      std::fabs(gate) * (y_error + (kSilu + kU) * std::fabs(y)) + kTiny)
                << "token " << t << " channel " << ch;
          }
          for (size_t n = 0; n < d_state; ++n)
            ASSERT_LE(std::fabs(s.state[s.at(ch, n)] - h[n]), e[n]);
        }
        // Token by token and block by block, with y in the place of x.
        Floats state = start, x = s.x;
        for (size_t block = 0; block < kScanBlocks; ++block) {
          for (size_t t = 0; t < tokens; ++t) {
            Mamba1ScanArgs one = s.mamba1();
            one.state = state.data() + block * d_state * 16;
            one.a += block * d_state * 16;
            one.d += block * 16;
            one.dt_bias += block * 16;
            one.dt += t * s.channels + block * 16;
            one.b += t * s.bc_stride();
            one.c += t * s.bc_stride();
            one.x = one.y = x.data() + t * s.channels + block * 16;
            one.z += t * s.channels + block * 16;
            one.blocks = one.tokens = 1;
            k.mamba1_scan(one);
          }
        }
        ASSERT_TRUE(state.same_bits(s.state));
        ASSERT_TRUE(x.same_bits(s.y));
      }
    }
  }
}

// The decay alone: dt of 32 is its own softplus, and a state of 1 without input becomes exp(32 * a).
TEST_P(Kernels, Mamba1ScanDecays) {
  constexpr float kStep = 32;
  ScanData s(kScanBlocks, 128, 1);
  size_t zeros = 0;
  for (int round = 0; round < 40; ++round) {
    for (float& v : s.state) v = 1;
    for (float& v : s.a) v = -uniform(0, round % 4 == 0 ? 0.001f : 2.8f);
    for (float& v : s.dt) v = kStep;
    k.mamba1_scan(s.mamba1());
    for (size_t i = 0; i < s.state.size(); ++i) {
      const double exponent = double{kStep} * s.a[i], exact = std::exp(exponent);
      // dt * log2(e) is off by its constant's 0.23 u; without fused multiply-add the product by another u.
      ASSERT_LE(std::fabs(s.state[i] - exact),
                exact * (kExp + 1.25 * std::fabs(exponent) * kU) + 0x1p-125)
          << "exponent " << exponent;
      if (exponent < -126 * std::log(2.0)) {
        ++zeros;
        ASSERT_EQ(s.state[i], 0) << "exponent " << exponent;
      }
    }
  }
  ASSERT_GT(zeros, 1000U);
}

TEST_P(Kernels, Mamba1ScanForgetsAndKeeps) {
  // dt so negative that nothing changes; dt so large that nothing is left. No NaN in either.
  ScanData s(1, 16, 2);
  fill(s.state, -1, 1);
  for (float& v : s.a) v = -3;
  fill(s.x, -3, 3);
  fill(s.b, -1, 1);
  fill(s.c, -1, 1);
  for (size_t i = 0; i < 16; ++i) {
    s.dt[i] = -1e30f;
    s.dt[16 + i] = 1e6f;
    s.z[i] = s.z[16 + i] = 1;
  }
  const Floats start = s.state;
  Mamba1ScanArgs args = s.mamba1();
  args.tokens = 1;
  k.mamba1_scan(args);
  ASSERT_TRUE(s.state.same_bits(start));
  args.dt += 16;
  args.x += 16;
  args.b += s.bc_stride();
  k.mamba1_scan(args);
  for (size_t ch = 0; ch < 16; ++ch) {
    for (size_t n = 0; n < 16; ++n) {
      EXPECT_EQ(s.state[s.at(ch, n)], 1e6f * s.x[16 + ch] * s.b[s.bc_stride() + n]);
    }
  }
}

TEST_P(Kernels, Mamba2Scan) {
  for (const size_t d_state : Sizes{1, 3, 8, 16, 24, 64, 128}) {
    for (const size_t tokens : Sizes{1, 2, 5, 9}) {
      SCOPED_TRACE(testing::Message() << "d_state " << d_state << " tokens " << tokens);
      ScanData s(kScanBlocks, d_state, tokens);
      fill(s.state, -1, 1);
      fill(s.d, -1, 1);
      fill(s.dt, 0, 2);
      fill(s.b, -1, 1);
      fill(s.c, -1, 1);
      fill(s.x, -3, 3);
      const Floats decay = floats(tokens * s.channels, 0, 1);
      const Floats start = s.state;
      k.mamba2_scan(s.mamba2(decay));
      for (size_t ch = 0; ch < s.channels; ++ch) {
        std::vector<double> h(d_state), e(d_state, 0.0);
        for (size_t n = 0; n < d_state; ++n) h[n] = start[s.at(ch, n)];
        for (size_t t = 0; t < tokens; ++t) {
          const double x = s.x[t * s.channels + ch], dt = s.dt[t * s.channels + ch];
          double y = s.d[ch] * x, y_size = std::fabs(y), y_error = 0;
          for (size_t n = 0; n < d_state; ++n) {
            const double kept = decay[t * s.channels + ch] * h[n],
                         step = dt * x * s.b[t * s.bc_stride() + n];
            h[n] = kept + step;
            e[n] = decay[t * s.channels + ch] * e[n] + 4 * kU * (std::fabs(kept) + std::fabs(step));
            const double term = s.c[t * s.bc_stride() + n] * h[n];
            y += term;
            y_size += std::fabs(term);
            y_error += std::fabs(s.c[t * s.bc_stride() + n]) * e[n];
          }
          ASSERT_LE(std::fabs(s.y[t * s.channels + ch] - y),
                    y_error + (static_cast<double>(d_state) + 2) * kU * y_size)
              << "token " << t << " channel " << ch;
        }
        for (size_t n = 0; n < d_state; ++n)
          ASSERT_LE(std::fabs(s.state[s.at(ch, n)] - h[n]), e[n]);
      }
      Floats state = start, x = s.x;
      for (size_t block = 0; block < kScanBlocks; ++block) {
        for (size_t t = 0; t < tokens; ++t) {
          Mamba2ScanArgs one = s.mamba2(decay);
          one.state = state.data() + block * d_state * 16;
          one.d += block * 16;
          one.dt += t * s.channels + block * 16;
          one.decay += t * s.channels + block * 16;
          one.b += t * s.bc_stride();
          one.c += t * s.bc_stride();
          one.x = one.y = x.data() + t * s.channels + block * 16;
          one.blocks = one.tokens = 1;
          k.mamba2_scan(one);
        }
      }
      ASSERT_TRUE(state.same_bits(s.state));
      ASSERT_TRUE(x.same_bits(s.y));
    }
  }
}

// What the dual form reads and writes, for one head. Prepared before its arguments are handed out.
struct DualData {
  size_t d_state, blocks, stride;
  Floats state, group, d, dt, b, c, x;  // dt: every third number; b and c: rows of 2 * d_state

  DualData(size_t d_state_in, size_t blocks_in)
      : d_state(d_state_in),
        blocks(blocks_in),
        stride(blocks_in * 16 + 32),
        state(blocks_in * 16 * d_state_in),
        group(dual_group_floats(d_state_in)),
        d(blocks_in * 16),
        dt(kDualTokens * 3),
        b(kDualTokens * bc_stride()),
        c(kDualTokens * bc_stride()),
        x(kDualTokens * stride) {}

  size_t bc_stride() const { return 2 * d_state; }
  Mamba2DualArgs prepare(const KernelTable& k, float a, float* y) {
    k.mamba2_dual_prepare({.b = b.data(),
                           .c = c.data(),
                           .group = group.data(),
                           .bc_stride = bc_stride(),
                           .d_state = d_state});
    Mamba2DualArgs args;
    args.state = state.data();
    args.group = group.data();
    args.a = a;
    args.d = d.data();
    args.dt = dt.data();
    args.dt_stride = 3;
    args.x = x.data();
    args.y = y;
    args.x_stride = args.y_stride = stride;
    args.d_state = d_state;
    args.blocks = blocks;
    return args;
  }
};

// Against the recurrence in double, within the contract's bound: 2^-8 of a product's size for each factor
// that was rounded to bfloat16 (y: C, B, their product with the decays, and x), and what is left of one more
// for the decays, whose logarithms are sums of up to 64 * 150 in float32.
TEST_P(Kernels, Mamba2Dual) {
  if (k.mamba2_dual == nullptr) {
    EXPECT_EQ(k.mamba2_dual_prepare, nullptr);
    return;
  }
  constexpr size_t kTokens = kDualTokens;
  struct Decay {
    float a, low, high;  // dt
  };
  for (const Decay& decay :
       {Decay{-1, 0, 0.1f}, {-16, 0.001f, 0.1f}, {-100, 0, 2}, {-1e-3f, 0, 1}}) {
    for (const size_t d_state : Sizes{32, 64, 128, 256}) {
      for (size_t blocks = 1; blocks <= kMaxDualBlocks; ++blocks) {
        SCOPED_TRACE(testing::Message()
                     << "a " << decay.a << " d_state " << d_state << " blocks " << blocks);
        DualData data(d_state, blocks);
        const size_t channels = blocks * 16, bc_stride = data.bc_stride(), stride = data.stride;
        fill(data.state, -1, 1);
        fill(data.d, -1, 1);
        fill(data.b, -1, 1);
        fill(data.c, -1, 1);
        fill(data.x, -3, 3);
        fill(data.dt, decay.low, decay.high);
        const Floats &d = data.d, &b = data.b, &c = data.c, &x = data.x, &dt = data.dt;
        const Floats start = data.state, &state = data.state;
        Floats y(kTokens * stride);
        const Mamba2DualArgs args = data.prepare(k, decay.a, y.data());
        k.mamba2_dual(args);
        const auto at = [&](size_t ch, size_t n) { return (ch / 16 * d_state + n) * 16 + ch % 16; };
        for (size_t ch = 0; ch < channels; ++ch) {
          std::vector<double> h(d_state), size(d_state);
          for (size_t n = 0; n < d_state; ++n) size[n] = std::fabs(h[n] = start[at(ch, n)]);
          for (size_t t = 0; t < kTokens; ++t) {
            const double in = x[t * stride + ch], step = dt[t * 3], kept = std::exp(step * decay.a);
            double sum = d[ch] * in, terms = 0;
            for (size_t n = 0; n < d_state; ++n) {
              const double added = step * in * b[t * bc_stride + n];
              h[n] = kept * h[n] + added;
              size[n] = kept * size[n] + std::fabs(added);
              sum += c[t * bc_stride + n] * h[n];
              terms += std::fabs(c[t * bc_stride + n]) * size[n];
            }
            ASSERT_LE(std::fabs(y[t * stride + ch] - sum),
                      5 * 0x1p-8 * terms + 4 * kU * std::fabs(d[ch] * in) + 1e-30)
                << "token " << t << " channel " << ch;
          }
          for (size_t n = 0; n < d_state; ++n) {
            ASSERT_LE(std::fabs(state[at(ch, n)] - h[n]), 3 * 0x1p-8 * size[n] + 1e-30) << n;
          }
        }
        // In the place of x, and beside other blocks or alone.
        Floats in_place = x, other = start;
        for (size_t block = 0; block < blocks; ++block) {
          Mamba2DualArgs one = args;
          one.state = other.data() + block * d_state * 16;
          one.d += block * 16;
          one.x = one.y = in_place.data() + block * 16;
          one.blocks = 1;
          k.mamba2_dual(one);
        }
        ASSERT_TRUE(other.same_bits(state));
        for (size_t t = 0; t < kTokens; ++t) {
          ASSERT_EQ(std::memcmp(in_place.data() + t * stride, y.data() + t * stride,
                                channels * sizeof(float)),
                    0);
        }
      }
    }
  }
}

// What is not finite stays visible.
TEST_P(Kernels, Mamba2DualKeepsNanVisible) {
  if (k.mamba2_dual == nullptr) return;
  for (const bool in_dt : {false, true}) {
    DualData data(32, 1);
    fill(data.state, -1, 1);
    fill(data.b, -1, 1);
    fill(data.c, -1, 1);
    fill(data.x, -1, 1);
    fill(data.dt, 0, 1);
    (in_dt ? data.dt[5 * 3] : data.x[5 * data.stride + 3]) = kNan;
    k.mamba2_dual(data.prepare(k, -1, data.x.data()));
    for (size_t t = 5; t < kDualTokens; ++t) {
      EXPECT_TRUE(std::isnan(data.x[t * data.stride + 3])) << t;
    }
    for (size_t n = 0; n < data.d_state; ++n) {
      EXPECT_TRUE(std::isnan(data.state[n * 16 + 3])) << n;
    }
  }
}

// A state in binary16 is that of the float scan, rounded after each token: the float kernel, run token
// by token on the rounded state, must give the same bits.
template <typename Args, typename Scan>
void check_half_state(const ScanData& s, const Floats& start, Scan scan, const Args& args,
                      void (*advance)(Args*, size_t token)) {
  const size_t n = start.size();
  Guarded<uint16_t> half(n);
  Floats rounded(n);
  for (size_t i = 0; i < n; ++i) {
    half[i] = float_to_half(start[i]);
    rounded[i] = half_to_float(half[i]);
  }
  Floats want(s.tokens * s.channels), got(s.tokens * s.channels);
  for (size_t t = 0; t < s.tokens; ++t) {
    Args one = args;
    advance(&one, t);
    one.tokens = 1;
    one.state = rounded.data();
    one.y = want.data() + t * s.channels;
    scan(one);
    for (float& v : rounded) v = half_to_float(float_to_half(v));
  }
  Args all = args;
  all.state = nullptr;
  all.half_state = half.data();
  all.y = got.data();
  scan(all);
  for (size_t i = 0; i < n; ++i) ASSERT_EQ(half[i], float_to_half(rounded[i])) << i;
  ASSERT_TRUE(got.same_bits(want));
}

TEST_P(Kernels, Mamba1ScanInHalf) {
  for (const size_t d_state : Sizes{1, 8, 16, 24}) {
    for (const size_t tokens : Sizes{1, 2, 7}) {
      ScanData s(kScanBlocks, d_state, tokens);
      for (float& v : s.a) v = -std::exp(uniform(-3, 2));
      fill(s.d, -1, 1);
      fill(s.bias, -5, 1);
      fill(s.dt, -1, 1);
      fill(s.b, -1, 1);
      fill(s.c, -1, 1);
      fill(s.x, -3, 3);
      fill(s.z, -8, 8);
      // Sizes from subnormal binary16 numbers to the largest, and beyond, which is infinity.
      Floats start(s.state.size());
      for (float& v : start) v = uniform(-1, 1) * std::exp2(uniform(-26, 15));
      check_half_state<Mamba1ScanArgs>(s, start, k.mamba1_scan, s.mamba1(),
                                       [](Mamba1ScanArgs* a, size_t t) {
                                         a->dt += t * a->dt_stride;
                                         a->b += t * a->bc_stride;
                                         a->c += t * a->bc_stride;
                                         a->x += t * a->x_stride;
                                         a->z += t * a->z_stride;
                                       });
    }
  }
}

TEST_P(Kernels, Mamba2ScanInHalf) {
  for (const size_t d_state : Sizes{1, 16, 24, 128}) {
    for (const size_t tokens : Sizes{1, 2, 7}) {
      ScanData s(kScanBlocks, d_state, tokens);
      fill(s.d, -1, 1);
      fill(s.dt, 0, 2);
      fill(s.b, -1, 1);
      fill(s.c, -1, 1);
      fill(s.x, -3, 3);
      const Floats decay = floats(tokens * s.channels, 0, 1);
      Floats start(s.state.size());
      for (float& v : start) v = uniform(-1, 1) * std::exp2(uniform(-26, 15));
      check_half_state<Mamba2ScanArgs>(s, start, k.mamba2_scan, s.mamba2(decay),
                                       [](Mamba2ScanArgs* a, size_t t) {
                                         a->dt += t * a->dt_stride;
                                         a->decay += t * a->dt_stride;
                                         a->b += t * a->bc_stride;
                                         a->c += t * a->bc_stride;
                                         a->x += t * a->x_stride;
                                       });
    }
  }
}

// Calls f(first state, states, the group's bytes) for all groups of a block.
template <typename F>
void for_each_group(uint8_t* block, size_t d_state, const F& f) {
  for (size_t n = 0; n < d_state; n += kStateGroup) {
    const size_t states = std::min(kStateGroup, d_state - n);
    f(n, states, block);
    block += int8_state_group_bytes(states);
  }
}

float int8_scale_of(const uint8_t* group, size_t lane) {
  float scale;
  std::memcpy(&scale, group + lane * sizeof(float), sizeof(scale));
  return scale;
}

// A state in int8 is that of the float scan, rounded after each token as platforms/kernels.h says:
// the float kernel, run token by token on the state's values, must give the same bits of y, and
// values that the new state is within the rounding of. The float kernel is within its own bound of
// the recurrence in double.
template <typename Args, typename Scan>
void check_int8_state(const ScanData& s, const Floats& start, Scan scan, const Args& args,
                      void (*advance)(Args*, size_t token, size_t block)) {
  constexpr uint64_t kPosition = 1000;
  const size_t block_bytes = int8_state_bytes(s.d_state);
  Guarded<uint8_t> state(s.blocks * block_bytes), all_state(s.blocks * block_bytes);
  Floats values(start.size());
  std::memset(state.data(), 0, s.blocks * block_bytes);
  const auto value_bytes = [&](size_t block, size_t n) {
    return reinterpret_cast<uint8_t*>(values.data() + (block * s.d_state + n) * 16);
  };
  for (size_t block = 0; block < s.blocks; ++block) {
    for_each_group(state.data() + block * block_bytes, s.d_state,
                   [&](size_t n, size_t states, uint8_t* group) {
                     const auto* from = start.data() + (block * s.d_state + n) * 16;
                     encode_int8_state(reinterpret_cast<const uint8_t*>(from), states, group);
                     decode_int8_state(group, states, value_bytes(block, n));
                   });
  }
  std::memcpy(all_state.data(), state.data(), s.blocks * block_bytes);

  Floats want(s.tokens * s.channels), got(s.tokens * s.channels);
  for (size_t t = 0; t < s.tokens; ++t) {
    Args one = args;
    advance(&one, t, 0);
    one.tokens = 1;
    one.state = values.data();
    one.y = want.data() + t * s.channels;
    scan(one);
    for (size_t block = 0; block < s.blocks; ++block) {
      Args part = args;
      advance(&part, t, block);
      part.tokens = part.blocks = 1;
      part.state = nullptr;
      part.int8_state = state.data() + block * block_bytes;
      part.position = kPosition + t;
      part.y = got.data() + t * s.channels + block * 16;
      scan(part);
      for_each_group(part.int8_state, s.d_state, [&](size_t first, size_t states, uint8_t* group) {
        for (size_t lane = 0; lane < 16; ++lane) {
          const auto h = [&](size_t n) {
            return values[(block * s.d_state + first + n) * 16 + lane];
          };
          float top = 0;
          for (size_t n = 0; n < states; ++n) top = std::max(top, std::fabs(h(n)));
          const float step = std::max(top * (1.0f / 127.0f), kLeastStateScale);
          const float scale =
              std::bit_cast<float>((std::bit_cast<uint32_t>(step) + 0x40u) & 0xffffff80u);
          ASSERT_EQ(int8_scale_of(group, lane), scale);
          for (size_t n = 0; n < states; ++n) {
            const int q = static_cast<int8_t>(group[64 + n * 16 + lane]);
            const auto row = (kPosition + t + first + n) * 39 + lane * 4;
            const double dither = (static_cast<double>(row % 64) + 0.5) / 64 - 0.5;
            // Three roundings of numbers below 128: of the inverse, the product and the sum.
            ASSERT_LE(std::fabs(q - (h(n) / double{scale} + dither)), 0.5 + 3 * 128 * kU)
                << "token " << t << " state " << first + n << " lane " << lane;
            ASSERT_LE(std::abs(q), 127);
          }
        }
        decode_int8_state(group, states, value_bytes(block, first));
      });
    }
  }
  ASSERT_TRUE(got.same_bits(want));

  Floats together(s.tokens * s.channels);
  Args all = args;
  all.state = nullptr;
  all.int8_state = all_state.data();
  all.position = kPosition;
  all.y = together.data();
  scan(all);
  ASSERT_EQ(std::memcmp(all_state.data(), state.data(), s.blocks * block_bytes), 0);
  ASSERT_TRUE(together.same_bits(want));
}

void advance_mamba1(Mamba1ScanArgs* a, size_t t, size_t block) {
  a->a += block * a->d_state * 16;
  a->d += block * 16;
  a->dt_bias += block * 16;
  a->dt += t * a->dt_stride + block * 16;
  a->b += t * a->bc_stride;
  a->c += t * a->bc_stride;
  a->x += t * a->x_stride + block * 16;
  a->z += t * a->z_stride + block * 16;
}

void advance_mamba2(Mamba2ScanArgs* a, size_t t, size_t block) {
  a->d += block * 16;
  a->dt += t * a->dt_stride + block * 16;
  a->decay += t * a->dt_stride + block * 16;
  a->b += t * a->bc_stride;
  a->c += t * a->bc_stride;
  a->x += t * a->x_stride + block * 16;
}

// Numbers between -1 and 1 become those of sizes from what counts as zero, block by block, and a lane
// of zeros.
Floats states_of_all_sizes(const ScanData& s, Floats numbers) {
  for (size_t i = 0; i < numbers.size(); ++i) {
    const size_t block = i / (16 * s.d_state);
    numbers[i] *= i % 16 == 3 ? 0.0f : std::exp2(static_cast<float>(block) * 30 - 105);
  }
  return numbers;
}

TEST_P(Kernels, Mamba1ScanInInt8) {
  for (const size_t d_state : Sizes{1, 3, 16, 24, 65}) {
    for (const size_t tokens : Sizes{1, 2, 7, 19}) {
      SCOPED_TRACE(testing::Message() << "d_state " << d_state << " tokens " << tokens);
      ScanData s(kScanBlocks, d_state, tokens);
      for (float& v : s.a) v = -std::exp(uniform(-3, 2));
      fill(s.d, -1, 1);
      fill(s.bias, -5, 1);
      fill(s.dt, -1, 1);
      fill(s.b, -1, 1);
      fill(s.c, -1, 1);
      fill(s.x, -3, 3);
      fill(s.z, -8, 8);
      for (size_t t = 0; t < tokens; ++t) s.x[t * s.channels + 3] = 0;  // a lane stays zero
      check_int8_state<Mamba1ScanArgs>(s, states_of_all_sizes(s, floats(s.state.size(), -1, 1)),
                                       k.mamba1_scan, s.mamba1(), advance_mamba1);
    }
  }
}

TEST_P(Kernels, Mamba2ScanInInt8) {
  for (const size_t d_state : Sizes{1, 3, 16, 64, 65, 128, 256, 300}) {
    for (const size_t tokens : Sizes{1, 2, 7}) {
      SCOPED_TRACE(testing::Message() << "d_state " << d_state << " tokens " << tokens);
      ScanData s(kScanBlocks, d_state, tokens);
      fill(s.d, -1, 1);
      fill(s.dt, 0, 2);
      fill(s.b, -1, 1);
      fill(s.c, -1, 1);
      fill(s.x, -3, 3);
      for (size_t t = 0; t < tokens; ++t) s.x[t * s.channels + 3] = 0;
      const Floats decay = floats(tokens * s.channels, 0, 1);
      check_int8_state<Mamba2ScanArgs>(s, states_of_all_sizes(s, floats(s.state.size(), -1, 1)),
                                       k.mamba2_scan, s.mamba2(decay), advance_mamba2);
    }
  }
}

// A NaN or an infinity spoils its lane of its group, for good, and nothing else of the state.
TEST_P(Kernels, Int8StatesKeepNanVisible) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    constexpr size_t kState = 2 * kStateGroup;
    ScanData s(1, kState, 2);
    fill(s.d, -1, 1);
    fill(s.dt, 0, 2);
    fill(s.b, 0.5f, 1);
    fill(s.c, -1, 1);
    fill(s.x, -3, 3);
    const Floats decay = floats(2 * s.channels, 0.5f, 1);
    const size_t at = kStateGroup + 9;  // a state of the second group
    s.b[at] = bad;
    Guarded<uint8_t> state(int8_state_bytes(kState));
    std::memset(state.data(), 0, int8_state_bytes(kState));
    Mamba2ScanArgs args = s.mamba2(decay);
    args.state = nullptr;
    args.int8_state = state.data();
    for (size_t lane = 8; lane < 16; ++lane) {  // zero times an infinity is NaN, too
      s.x[lane] = s.x[16 + lane] = 0;
    }
    k.mamba2_scan(args);
    for (size_t lane = 0; lane < 16; ++lane) {
      EXPECT_FALSE(std::isnan(int8_scale_of(state.data(), lane))) << lane;
      EXPECT_TRUE(
          std::isnan(int8_scale_of(state.data() + int8_state_group_bytes(kStateGroup), lane)));
      EXPECT_TRUE(std::isnan(s.y[16 + lane])) << lane;
    }
  }
}

// Where nothing decays, additions of a fraction of a step are kept on average: after each 64 tokens the
// state is off by no more than one rounding and what the 64 values of the dither miss.
TEST_P(Kernels, Int8StatesKeepSmallAdditions) {
  constexpr size_t kState = 3;
  for (const float part : {0.02f, 0.1f, 0.37f, -0.49f}) {
    ScanData s(1, kState, 64);
    const float step = 0x1p-4f;
    Guarded<uint8_t> state(int8_state_bytes(kState));
    std::memset(state.data(), 0, int8_state_bytes(kState));
    Floats start(kState * 16);
    for (size_t lane = 0; lane < 16; ++lane) start[lane] = 127 * step;  // state 0 fixes the scale
    encode_int8_state(reinterpret_cast<const uint8_t*>(start.data()), kState, state.data());
    for (float& v : s.dt) v = 1;
    for (float& v : s.x) v = step;
    for (size_t t = 0; t < 64; ++t) s.b[t * s.bc_stride() + 1] = part;
    Floats decay(64 * 16);
    for (float& v : decay) v = 1;
    Mamba2ScanArgs args = s.mamba2(decay);
    args.state = nullptr;
    args.int8_state = state.data();
    k.mamba2_scan(args);
    for (size_t lane = 0; lane < 16; ++lane) {
      ASSERT_EQ(int8_scale_of(state.data(), lane), step);
      const int q = static_cast<int8_t>(state.data()[64 + 16 + lane]);
      // The state is whole steps, so a token adds one more where its dither is above 1/2 - part:
      // as many of 64 as 64 * part, rounded up or down.
      EXPECT_LT(std::fabs(static_cast<double>(q) - 64 * double{part}), 1.0) << part << " " << lane;
      EXPECT_EQ(static_cast<int8_t>(state.data()[64 + lane]), 127);
      EXPECT_EQ(static_cast<int8_t>(state.data()[64 + 32 + lane]), 0);
    }
  }
}

// The kernels that a table may lack.
template <typename Kernel>
constexpr bool kIsDual =
    std::is_same_v<Kernel, Mamba2DualPrepare> || std::is_same_v<Kernel, Mamba2Dual>;

// What one table of these computes, the other does, bit for bit: they differ in the instructions for
// exact sums, and in the dual form.
TEST(KernelTables, AmxIsAvx512Vnni) {
  const KernelTable* amx = select_table("amx");
  const KernelTable* vnni = select_table("avx512vnni");
  if (amx == nullptr) GTEST_SKIP() << "no AMX here";
  ASSERT_NE(vnni, nullptr);
  std::mt19937 random(7);
  const auto compare = [&](WeightType type, size_t group, size_t groups, size_t tokens) {
    const size_t cols = groups * group;
    TestMatrix m(type, 80, cols, group, 0.5f);
    fill_quanta(m, Fill::random, random);
    for (size_t row = 0; row < 80; ++row) {
      for (size_t g = 0; g < groups; ++g) {
        m.set_group_scale(row, g, static_cast<uint16_t>(1 + random() % 0x7bff));
      }
    }
    Quantised x(tokens, cols, group);
    fill_q(x, Fill::random, tokens, cols, group, random);
    for (float& v : x.scale) v = std::exp2(static_cast<float>(random() % 100) / 10 - 5);
    Floats a(tokens * 80), b(tokens * 80);
    quantised_matmul(*amx, type)(m.m, 0, 5, x.rows, tokens, a.data(), 80);
    quantised_matmul(*vnni, type)(m.m, 0, 5, x.rows, tokens, b.data(), 80);
    ASSERT_TRUE(a.same_bits(b)) << type_name(type) << " group " << group << " groups " << groups
                                << " tokens " << tokens;
  };
  for (const WeightType type : kQuantisedTypes) {
    for (const size_t least : Sizes{16, 48, 64, 80, 128, 176, 256}) {
      const size_t group = round_up<size_t>(least, properties(type).unit());
      // Odd and even, as groups of one tile go by pairs; one and two, which are first and last at once.
      for (const size_t groups : Sizes{1, 2, 3, 4}) {
        for (const size_t tokens : Sizes{1, 15, 16, 40, 145}) {
          compare(type, group, groups, tokens);
          if (HasFatalFailure()) return;
        }
      }
      // More than are unpacked at a time: the row's weights do not fit, or just do (72 KiB).
      const size_t fit = (size_t{72} << 10) / (2 * group * kTileRows);
      for (const size_t groups : {fit / 2 * 2, fit + 1, fit + 2}) {
        compare(type, group, groups, 209);
        if (HasFatalFailure()) return;
      }
    }
  }
#define ME_KERNEL(Type, name)                                                              \
  if constexpr (!std::is_same_v<Type, MatmulQuantised> && !std::is_same_v<Type, PeakI8> && \
                !kIsDual<Type>) {                                                          \
    EXPECT_EQ(amx->name, vnni->name) << #name;                                             \
  }
#include "platforms/kernels.inc"
#undef ME_KERNEL
}

TEST(KernelTables, AreComplete) {
  for (const KernelTable* t : tables()) {
#define ME_KERNEL(Type, name)                              \
  if constexpr (!kIsDual<Type>) {                          \
    EXPECT_NE(t->name, nullptr) << t->isa << " " << #name; \
  }
#include "platforms/kernels.inc"
#undef ME_KERNEL
  }
}

}  // namespace
}  // namespace mamba_edge
