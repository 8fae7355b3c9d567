// Where packed rows and columns come from, against the published order written out by hand.
#include "convert/packing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "tests/engine/model_builder.h"

namespace mamba_edge::convert {
namespace {

using Rows = std::vector<int64_t>;

TensorSpec spec_of(const ModelConfig& config, TensorRole role) {
  for (uint32_t i = 0; i < tensor_count(config); ++i) {
    if (tensor_spec(config, i).role == role) return tensor_spec(config, i);
  }
  ADD_FAILURE() << "no such tensor";
  return {};
}

// first, first + 1, ..., n of them, and padding up to a multiple of 16.
Rows section(int64_t first, int64_t n) {
  Rows rows;
  for (int64_t i = 0; i < n; ++i) rows.push_back(first + i);
  while (rows.size() % 16 != 0) rows.push_back(-1);
  return rows;
}

Rows join(const std::vector<Rows>& parts) {
  Rows all;
  for (const Rows& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

TEST(Packing, Mamba1) {
  const ModelConfig c = test::small_mamba1();  // d_inner 40, d_state 7, dt_rank 3
  EXPECT_EQ(source_rows(c, spec_of(c, TensorRole::in_proj)),
            join({section(0, 40), section(40, 40)}));
  EXPECT_EQ(source_rows(c, spec_of(c, TensorRole::x_proj)),
            join({section(0, 3), section(3, 7), section(10, 7)}));
  for (const TensorRole role : {TensorRole::conv, TensorRole::conv_bias, TensorRole::dt_proj,
                                TensorRole::dt_bias, TensorRole::a, TensorRole::d}) {
    EXPECT_EQ(source_rows(c, spec_of(c, role)), section(0, 40));
  }
  EXPECT_EQ(source_cols(c, spec_of(c, TensorRole::x_proj)), section(0, 40));
  EXPECT_EQ(source_cols(c, spec_of(c, TensorRole::out_proj)), section(0, 40));
  EXPECT_EQ(source_cols(c, spec_of(c, TensorRole::dt_proj)), (Rows{0, 1, 2}));
}

TEST(Packing, Mamba2InGroups) {
  const ModelConfig c = test::small_mamba2();  // 4 heads of 10 in 2 groups, d_state 9
  const auto channels = [](int64_t first) {
    return join({section(first, 20), section(first + 20, 20)});
  };
  EXPECT_EQ(source_rows(c, spec_of(c, TensorRole::in_proj)),
            join({channels(0), channels(40), section(80, 18), section(98, 18), section(116, 4)}));
  EXPECT_EQ(source_rows(c, spec_of(c, TensorRole::conv)),
            join({channels(0), section(40, 18), section(58, 18)}));
  EXPECT_EQ(source_rows(c, spec_of(c, TensorRole::a)), section(0, 4));
  EXPECT_EQ(source_rows(c, spec_of(c, TensorRole::dt_bias)), section(0, 4));
  EXPECT_EQ(source_rows(c, spec_of(c, TensorRole::gate_norm)), channels(0));
  EXPECT_EQ(source_rows(c, spec_of(c, TensorRole::init_states)), channels(0));
  EXPECT_EQ(source_cols(c, spec_of(c, TensorRole::out_proj)), channels(0));
  // D of a head stands for each of its 10 channels.
  Rows d;
  for (const int64_t head : {0, 1}) d.insert(d.end(), 10, head);
  d.insert(d.end(), 12, -1);
  for (const int64_t head : {2, 3}) d.insert(d.end(), 10, head);
  d.insert(d.end(), 12, -1);
  EXPECT_EQ(source_rows(c, spec_of(c, TensorRole::d)), d);
  ModelConfig per_channel = c;
  per_channel.mamba2.d_per_channel = 1;
  EXPECT_EQ(source_rows(per_channel, spec_of(per_channel, TensorRole::d)), channels(0));
}

// Whatever the sizes: as many rows and columns as the packed tensor has, and each published one
// exactly once (D per head: headdim times).
TEST(Packing, NothingIsLostOrDoubled) {
  std::mt19937 random(5);
  for (int round = 0; round < 60; ++round) {
    ModelConfig c = round % 2 == 0 ? test::small_mamba1() : test::small_mamba2();
    const auto any = [&](uint32_t n) { return 1 + static_cast<uint32_t>(random() % n); };
    c.d_model = any(50);
    c.mamba1.d_inner = any(100);
    c.mamba1.d_state = any(40);
    c.mamba1.dt_rank = any(40);
    c.mamba2.n_groups = any(5);
    c.mamba2.n_heads = c.mamba2.n_groups * any(4);
    c.mamba2.headdim = any(30);
    c.mamba2.d_inner = c.mamba2.n_heads * c.mamba2.headdim;
    c.mamba2.d_state = any(40);
    ASSERT_TRUE(validate(c).ok());
    for (uint32_t i = 0; i < tensor_count(c); ++i) {
      const TensorSpec spec = tensor_spec(c, i);
      const bool repeats = c.is_mamba2() && spec.role == TensorRole::d;
      for (const auto& [map, size] :
           {std::pair{source_rows(c, spec), spec.rows}, {source_cols(c, spec), spec.cols}}) {
        ASSERT_EQ(map.size(), size) << static_cast<int>(spec.role);
        Rows real;
        std::copy_if(map.begin(), map.end(), std::back_inserter(real),
                     [](int64_t r) { return r != kPadding; });
        ASSERT_TRUE(std::is_sorted(real.begin(), real.end()));
        if (repeats && size > 1) {
          for (size_t k = 0; k < real.size(); ++k)
            ASSERT_EQ(real[k], static_cast<int64_t>(k / c.mamba2.headdim));
        } else {
          for (size_t k = 0; k < real.size(); ++k) ASSERT_EQ(real[k], static_cast<int64_t>(k));
        }
      }
    }
  }
}

}  // namespace
}  // namespace mamba_edge::convert
