// The order of bytes in sorted frames: as docs/format.md describes it, and back.
#include "quant/sorted.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <vector>

namespace mamba_edge::test {
namespace {

using Bytes = std::vector<uint8_t>;

// Several groups, and for fp16 a row block whose last line is half padding.
std::vector<MatrixShape> shapes() {
  std::vector<MatrixShape> result;
  for (const WeightType type : {WeightType::f32, WeightType::f16}) {
    for (const uint32_t cols : {1u, 5u, 32u}) result.push_back({type, 40, cols, 1});
  }
  for (const WeightType type :
       {WeightType::int16, WeightType::int8, WeightType::int6, WeightType::int5, WeightType::int4,
        WeightType::int3, WeightType::int2}) {
    for (const uint32_t group : {32u, 96u}) result.push_back({type, 40, 3 * group, group});
  }
  result.push_back({WeightType::int8, 16, 48, 16});
  return result;
}

Bytes random_bytes(size_t n) {
  std::mt19937 random(1);
  Bytes bytes(n);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random());
  return bytes;
}

// One run after the other, number by number, from the sentences of docs/format.md.
Bytes described(const MatrixShape& shape, const Bytes& raw) {
  const size_t block_bytes = shape.row_block_bytes(), blocks = raw.size() / block_bytes;
  const size_t scale_bytes = shape.scale_bytes();
  const TypeProperties& p = properties(shape.type);
  Bytes out;
  const auto take = [&](size_t begin, size_t end, size_t size, size_t byte) {
    for (size_t b = 0; b < blocks; ++b) {
      for (size_t i = begin; i < end; i += size) out.push_back(raw[b * block_bytes + i + byte]);
    }
  };
  if (scale_bytes > 0) {
    take(0, scale_bytes, 2, 1);
    take(0, scale_bytes, 2, 0);
  }
  if (p.low == 0) {
    const size_t size = p.bits / 8;
    for (size_t byte = size; byte-- > 0;) take(scale_bytes, block_bytes, size, byte);
    return out;
  }
  if (p.high == 0) {
    take(scale_bytes, block_bytes, 1, 0);
    return out;
  }
  const size_t unit_bytes = size_t{p.unit()} * 2 * p.bits, low_bytes = size_t{p.unit()} * 2 * p.low;
  const auto units = [&](auto visit) {
    for (size_t b = 0; b < blocks; ++b) {
      for (size_t at = scale_bytes; at < block_bytes; at += unit_bytes)
        visit(&raw[b * block_bytes + at]);
    }
  };
  units([&](const uint8_t* unit) {
    Bytes low(unit, unit + low_bytes);
    for (uint32_t step = 0; p.high == 1 && step < p.unit() / 4; ++step) {
      const uint32_t bits[] = {0, 1, 4, 5, 2, 3, 6, 7};
      for (size_t k = 0; k < 64; ++k) {
        if ((unit[low_bytes + k] >> bits[step] & 1) == 0)
          low[step * p.low / 8 * 64 + k] ^=
              static_cast<uint8_t>(((1u << p.low) - 1) << step * p.low % 8);
      }
    }
    out.insert(out.end(), low.begin(), low.end());
  });
  units([&](const uint8_t* unit) { out.insert(out.end(), unit + low_bytes, unit + unit_bytes); });
  return out;
}

TEST(Sorted, AsDescribedAndBack) {
  for (const MatrixShape& shape : shapes()) {
    for (const size_t blocks : {size_t{1}, size_t{3}}) {
      SCOPED_TRACE(testing::Message() << type_name(shape.type) << " " << shape.cols << " / "
                                      << shape.group << ", " << blocks);
      const Bytes raw = random_bytes(blocks * shape.row_block_bytes());
      Bytes sorted(raw.size()), back(raw.size());
      sort_row_blocks(shape, blocks, raw.data(), sorted.data());
      EXPECT_EQ(sorted, described(shape, raw));
      unsort_row_blocks(shape, blocks, sorted.data(), back.data());
      EXPECT_EQ(back, raw);
      size_t runs[kMostRuns];
      const size_t n = sorted_runs(shape, blocks, runs);
      ASSERT_LE(n, kMostRuns);
      EXPECT_EQ(std::accumulate(runs, runs + n, size_t{0}), raw.size());
    }
  }
}

// Where a run ends, like bytes end: of fp32 numbers whose four bytes are 4, 3, 2 and 1, say.
TEST(Sorted, RunsAreOfLikeBytes) {
  const MatrixShape f32{WeightType::f32, 16, 7, 1}, f16{WeightType::f16, 16, 4, 1};
  for (const MatrixShape& shape : {f32, f16}) {
    const size_t size = properties(shape.type).bits / 8;
    Bytes raw(2 * shape.row_block_bytes());
    for (size_t i = 0; i < raw.size(); ++i) raw[i] = static_cast<uint8_t>(i % size);
    Bytes sorted(raw.size());
    sort_row_blocks(shape, 2, raw.data(), sorted.data());
    size_t runs[kMostRuns];
    ASSERT_EQ(sorted_runs(shape, 2, runs), size);
    size_t at = 0;
    for (size_t r = 0; r < size; ++r) {
      for (size_t i = 0; i < runs[r]; ++i) ASSERT_EQ(sorted[at++], size - 1 - r);
    }
  }
}

}  // namespace
}  // namespace mamba_edge::test
