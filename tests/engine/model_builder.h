// Small models with random weights, written as containers: honest ones, and ones that lie in a
// place of the test's choosing.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "convert/container_writer.h"
#include "convert/packing.h"
#include "engine/container.h"
#include "engine/tensors.h"
#include "engine/xxh64.h"
#include "quant/encode.h"
#include "quant/sorted.h"

namespace mamba_edge::test {

using Bytes = std::vector<uint8_t>;

// Sizes that are multiples of nothing, so that every kind of padding exists.
inline ModelConfig small_mamba1() {
  ModelConfig c;
  c.architecture = Architecture::mamba;
  c.d_model = 24;
  c.n_layer = 2;
  c.n_vocab = 37;
  c.n_vocab_used = 35;
  c.norm_eps = 1e-5f;
  c.tied = 1;
  c.bos_token = 0;
  c.eos_token = 1;
  c.mamba1 = {40, 7, 4, 3, 0, 1, 0, 0.0f};
  return c;
}

inline ModelConfig small_falcon() {
  ModelConfig c = small_mamba1();
  c.architecture = Architecture::falcon_mamba;
  c.norm = NormKind::layer;
  c.tied = 0;
  c.mamba1 = {48, 8, 3, 5, 1, 1, 1, 1e-6f};
  return c;
}

inline ModelConfig small_mamba2() {
  ModelConfig c = small_mamba1();
  c.architecture = Architecture::mamba2;
  c.mamba2.d_inner = 40;
  c.mamba2.d_state = 9;
  c.mamba2.d_conv = 4;
  c.mamba2.headdim = 10;
  c.mamba2.n_heads = 4;
  c.mamba2.n_groups = 2;
  c.mamba2.conv_bias = 1;
  c.mamba2.gated_norm = 1;
  c.mamba2.init_states = 1;
  c.mamba2.norm_eps = 1e-5f;
  c.mamba2.dt_high = INFINITY;
  return c;
}

struct TensorBytes {
  std::string name;
  bool is_matrix = false;
  MatrixShape shape;
  uint32_t logical_cols = 1;
  float scale = 1;
  Bytes bytes;
};

// A value that keeps activations near 1 and the recurrence stable.
inline float typical(TensorRole role, uint32_t cols, std::mt19937& random) {
  const float u = std::uniform_real_distribution<float>(-1.0f, 1.0f)(random);
  switch (role) {
    case TensorRole::a:
      return -1.0f + 0.5f * u;
    case TensorRole::norm:
    case TensorRole::final_norm:
    case TensorRole::gate_norm:
    case TensorRole::d:
      return 1.0f + 0.25f * u;
    case TensorRole::embedding:
    case TensorRole::head:
      return u;
    case TensorRole::dt_bias:
      return -2.0f + u;
    default:
      return u * 1.7f / std::sqrt(static_cast<float>(cols));
  }
}

// Every tensor of the model, packed; padding is zero. Matrices whose type is free have `type`.
inline std::vector<TensorBytes> random_tensors(const ModelConfig& config, WeightType type,
                                               uint32_t group = 32, uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::vector<TensorBytes> tensors;
  for (uint32_t i = 0; i < tensor_count(config); ++i) {
    const TensorSpec spec = tensor_spec(config, i);
    const std::vector<int64_t> rows = convert::source_rows(config, spec);
    const std::vector<int64_t> cols = convert::source_cols(config, spec);
    TensorBytes t;
    char name[40];
    tensor_name(spec.role, spec.layer, name);
    t.name = name;
    t.is_matrix = spec.is_matrix;
    t.logical_cols = spec.cols;
    t.shape = spec.is_matrix ? matrix_shape(spec.quantisable ? type : WeightType::f32, spec.rows,
                                            spec.cols, group, !is_vocabulary(spec.role))
                             : MatrixShape{WeightType::f32, spec.rows, 1, 1};
    const size_t width = spec.is_matrix ? t.shape.cols : 1;
    std::vector<float> values(size_t{t.shape.row_blocks()} * kTileRows * width, 0.0f);
    float max_abs = 0;
    for (size_t r = 0; r < spec.rows; ++r) {
      for (size_t c = 0; c < spec.cols; ++c) {
        if (rows[r] == convert::kPadding || cols[c] == convert::kPadding) continue;
        const float value = typical(spec.role, spec.cols, random);
        values[r * width + c] = value;
        max_abs = std::max(max_abs, std::fabs(value));
      }
    }
    if (spec.is_matrix) {
      t.scale = matrix_scale(t.shape.type, max_abs);
      if (t.shape.rotation != 0) rotate_weights(t.shape.rotation, values.data(), values.size());
      t.bytes.resize(t.shape.bytes());
      for (size_t b = 0; b < t.shape.row_blocks(); ++b) {
        encode_row_block(t.shape, t.scale, values.data() + b * kTileRows * width, width,
                         t.bytes.data() + b * t.shape.row_block_bytes());
      }
    } else {
      t.bytes.resize(vector_bytes(spec.rows));
      std::memcpy(t.bytes.data(), values.data(), t.bytes.size());
    }
    tensors.push_back(std::move(t));
  }
  return tensors;
}

struct ExtraSection {
  std::string id;
  bool required = false;
  Bytes bytes;
};

struct WriteOptions {
  Encoding encoding = Encoding::zstd;  // of the tensors
  std::vector<ExtraSection> more_sections = {};
  size_t frame_bytes = 1 << 20;  // sorted frames: whole row blocks, at least one
  // Sees every compressed frame of a tensor, and its content, before it is written.
  std::function<void(convert::Compressed&, std::span<const uint8_t> content)> frame = {};
  bool without_config = false;
};

inline void write_model(const std::filesystem::path& path, const Bytes& config,
                        const std::vector<TensorBytes>& tensors, const WriteOptions& o = {}) {
  convert::ContainerWriter writer(path, 1);
  for (const TensorBytes& t : tensors) {
    writer.begin_tensor(t.name, t.is_matrix, t.shape, t.logical_cols, t.scale, o.encoding);
    std::vector<convert::Compressed> frames;
    const std::span<const uint8_t> raw(t.bytes);
    const bool sorted = o.encoding == Encoding::sorted;
    const size_t block = sorted ? t.shape.row_block_bytes() : 1;
    const size_t step = std::max<size_t>(1, o.frame_bytes / block) * block;
    for (size_t at = 0; at < raw.size() && o.encoding != Encoding::raw; at += step) {
      const auto piece = raw.subspan(at, std::min(step, raw.size() - at));
      Bytes content(piece.begin(), piece.end());
      if (sorted) {
        sort_row_blocks(t.shape, piece.size() / block, piece.data(), content.data());
      }
      frames.push_back(convert::compress_frame(content, 1));
      if (o.frame) o.frame(frames.back(), content);
    }
    writer.append(raw, frames);
    writer.end_tensor();
  }
  if (!o.without_config) writer.add_section("CONF", true, config);
  for (const ExtraSection& s : o.more_sections)
    writer.add_section(s.id.c_str(), s.required, s.bytes);
  writer.finish();
}

inline Bytes encoded(const ModelConfig& config) {
  Bytes bytes(8 * kConfigKeys);
  bytes.resize(encode_config(config, bytes.data()));
  return bytes;
}

inline void write_model(const std::filesystem::path& path, const ModelConfig& config,
                        const std::vector<TensorBytes>& tensors, const WriteOptions& o = {}) {
  write_model(path, encoded(config), tensors, o);
}

inline void write_model(const std::filesystem::path& path, const ModelConfig& config,
                        WeightType type, const WriteOptions& o = {}) {
  write_model(path, config, random_tensors(config, type), o);
}

inline Bytes read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_file(const std::filesystem::path& path, std::span<const uint8_t> bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  ASSERT_TRUE(file.flush().good());
}

// The bytes of a container with its numbers in reach; sign() makes the checksums right again.
// Offsets are written down here from docs/format.md, not taken from the reader.
class Image {
 public:
  explicit Image(Bytes file) : bytes(std::move(file)) {}

  template <typename T>
  T get(size_t at) const {
    T value;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    return value;
  }
  template <typename T>
  void set(size_t at, T value) {
    std::memcpy(bytes.data() + at, &value, sizeof value);
  }

  size_t directory() const { return get<uint64_t>(24); }
  uint32_t n_sections() const { return get<uint32_t>(directory()); }
  uint32_t n_tensors() const { return get<uint32_t>(directory() + 4); }
  uint32_t n_frames() const { return get<uint32_t>(directory() + 8); }
  size_t section(uint32_t i) const { return directory() + 16 + size_t{i} * 40; }
  size_t tensor(uint32_t i) const { return section(n_sections()) + size_t{i} * 72; }
  size_t frame(uint32_t i) const { return tensor(n_tensors()) + size_t{i} * 16; }
  size_t names() const { return frame(n_frames()); }

  void sign_header() { set(120, xxh64(bytes.data(), 120)); }
  void sign() {
    set(40, xxh64(bytes.data() + directory(), get<uint64_t>(32)));
    sign_header();
  }

  Bytes bytes;
};

}  // namespace mamba_edge::test
