// The canonical list of tensors and the sizes that follow from a config.
#include "engine/tensors.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "tests/engine/model_builder.h"

namespace mamba_edge::test {
namespace {

std::string line(const ModelConfig& config, uint32_t i) {
  const TensorSpec s = tensor_spec(config, i);
  char name[40];
  tensor_name(s.role, s.layer, name);
  return std::string(name) + (s.is_matrix ? " " : " vector ") + std::to_string(s.rows) + "x" +
         std::to_string(s.cols) + (s.quantisable ? " free" : "");
}

std::vector<std::string> list(const ModelConfig& config) {
  std::vector<std::string> lines;
  for (uint32_t i = 0; i < tensor_count(config); ++i) lines.push_back(line(config, i));
  return lines;
}

// d_inner 40 in one segment of 48; dt_rank 3 and d_state 7 padded to 16 each.
TEST(Tensors, OfMamba1) {
  const ModelConfig config = small_mamba1();
  std::vector<std::string> expected = {"embedding 37x24 free", "final_norm vector 24x1"};
  for (const char* layer : {"layers.0.", "layers.1."}) {
    for (const char* tensor :
         {"norm vector 24x1", "in_proj 96x24 free", "conv 48x4", "conv_bias vector 48x1",
          "x_proj 48x48 free", "dt_proj 48x3 free", "dt_bias vector 48x1", "a 48x7",
          "d vector 48x1", "out_proj 24x48 free"}) {
      expected.push_back(std::string(layer) + tensor);
    }
  }
  EXPECT_EQ(list(config), expected);
}

TEST(Tensors, OfFalconWithEverything) {
  const std::vector<std::string> lines = list(small_falcon());
  const std::vector<std::string> expected = {"embedding 37x24 free",
                                             "head 37x24 free",
                                             "final_norm vector 24x1",
                                             "final_norm_bias vector 24x1",
                                             "layers.0.norm vector 24x1",
                                             "layers.0.norm_bias vector 24x1",
                                             "layers.0.in_proj 96x24 free",
                                             "layers.0.in_proj_bias vector 96x1",
                                             "layers.0.conv 48x3",
                                             "layers.0.conv_bias vector 48x1",
                                             "layers.0.x_proj 48x48 free",
                                             "layers.0.dt_proj 48x5 free",
                                             "layers.0.dt_bias vector 48x1",
                                             "layers.0.a 48x8",
                                             "layers.0.d vector 48x1",
                                             "layers.0.out_proj 24x48 free",
                                             "layers.0.out_proj_bias vector 24x1"};
  ASSERT_EQ(lines.size(), 4 + 2 * 13u);
  EXPECT_EQ(std::vector<std::string>(lines.begin(), lines.begin() + 17), expected);
}

// 40 channels in 2 groups of 20, each padded to 32; B and C of 2 x 9 padded to 32; 4 heads padded
// to 16.
TEST(Tensors, OfMamba2) {
  const ModelConfig config = small_mamba2();
  std::vector<std::string> expected = {"embedding 37x24 free", "final_norm vector 24x1"};
  for (const char* layer : {"layers.0.", "layers.1."}) {
    for (const char* tensor :
         {"norm vector 24x1", "in_proj 208x24 free", "conv 128x4", "conv_bias vector 128x1",
          "dt_bias vector 16x1", "a vector 16x1", "d vector 64x1", "gate_norm vector 64x1",
          "init_states 64x9", "out_proj 24x64 free"}) {
      expected.push_back(std::string(layer) + tensor);
    }
  }
  EXPECT_EQ(list(config), expected);
}

TEST(Tensors, NamesAreUniqueAndShort) {
  for (ModelConfig config : {small_mamba1(), small_falcon(), small_mamba2()}) {
    config.n_layer = 4096;
    std::set<std::string> names;
    const uint32_t n = tensor_count(config);
    for (uint32_t i = 0; i < n; ++i) {
      const TensorSpec s = tensor_spec(config, i);
      char name[40];
      tensor_name(s.role, s.layer, name);
      EXPECT_LT(std::string(name).size(), 39u);
      names.insert(name);
    }
    EXPECT_EQ(names.size(), n);
  }
}

void expect_aligned_sections(const Layout& l) {
  for (const uint32_t n : {l.segment_padded, l.inner, l.bc, l.heads, l.dt_rank, l.in_proj_rows,
                           l.conv_rows, l.x_proj_rows, l.in_z, l.in_x, l.in_b, l.in_c, l.in_dt}) {
    EXPECT_EQ(n % kTileRows, 0u);
  }
}

TEST(Layouts, OfMamba1) {
  const Layout l(small_mamba1());
  expect_aligned_sections(l);
  EXPECT_EQ(l.segments, 1u);
  EXPECT_EQ(l.segment, 40u);
  EXPECT_EQ(l.inner, 48u);
  EXPECT_EQ(l.in_x, 0u);
  EXPECT_EQ(l.in_z, 48u);
  EXPECT_EQ(l.x_proj_rows, 48u);
}

TEST(Layouts, OfMamba2InAnyNumberOfGroups) {
  ModelConfig config = small_mamba2();
  config.mamba2.n_heads = 24;
  config.mamba2.headdim = 6;
  config.mamba2.d_inner = 144;
  for (const uint32_t groups : {1u, 2u, 3u, 4u, 6u, 8u, 12u, 24u}) {
    config.mamba2.n_groups = groups;
    ASSERT_TRUE(validate(config).ok());
    const Layout l(config);
    expect_aligned_sections(l);
    EXPECT_EQ(l.segments, groups);
    EXPECT_EQ(l.segment * groups, 144u);
    EXPECT_GE(l.segment_padded, l.segment);
    EXPECT_LT(l.segment_padded - l.segment, 16u);
    EXPECT_EQ(l.inner, groups * l.segment_padded);
    EXPECT_GE(l.bc, groups * 9);
    EXPECT_LT(l.bc - groups * 9, 16u);
    EXPECT_EQ(l.heads, 32u);
    // z, x, B, C, dt, side by side
    EXPECT_EQ(l.in_z, 0u);
    EXPECT_EQ(l.in_x, l.inner);
    EXPECT_EQ(l.in_b, 2 * l.inner);
    EXPECT_EQ(l.in_c, l.in_b + l.bc);
    EXPECT_EQ(l.in_dt, l.in_c + l.bc);
    EXPECT_EQ(l.in_proj_rows, l.in_dt + 32);
    EXPECT_EQ(l.conv_rows, l.inner + 2 * l.bc);
  }
}

}  // namespace
}  // namespace mamba_edge::test
