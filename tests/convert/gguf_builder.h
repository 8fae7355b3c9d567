// Writer of small GGUF files for tests, honest ones and lying ones.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tests/convert/checkpoint_builders.h"

namespace mamba_edge::convert::testing {

inline std::string gguf_string(std::string_view text) {
  return little_endian(text.size(), 8) + std::string(text);
}

inline std::string float_bytes(float value) { return bytes_of(std::vector<float>{value}); }

// Entries and tensors are kept apart as bytes, so that a test can replace any part.
struct GgufBuilder {
  // Numbers of the kinds of metadata.
  enum Kind : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

  struct Tensor {
    std::string name;
    std::vector<uint64_t> sizes;  // the fastest first
    uint32_t type = 0;            // F32
    std::string bytes;
    uint64_t claimed_offset = UINT64_MAX;  // instead of the true one
  };

  uint32_t version = 3;
  uint64_t alignment = 32;
  std::vector<std::string> entries;
  std::vector<Tensor> tensors;
  uint64_t claimed_entries = UINT64_MAX, claimed_tensors = UINT64_MAX;

  GgufBuilder& raw(std::string_view key, uint32_t kind, const std::string& value) {
    entries.push_back(gguf_string(key) + little_endian(kind, 4) + value);
    return *this;
  }
  GgufBuilder& number(std::string_view key, uint32_t value) {
    return raw(key, u32, little_endian(value, 4));
  }
  GgufBuilder& real(std::string_view key, float value) { return raw(key, f32, float_bytes(value)); }
  GgufBuilder& flag(std::string_view key, bool value) {
    return raw(key, boolean, little_endian(value ? 1 : 0, 1));
  }
  GgufBuilder& text(std::string_view key, std::string_view value) {
    return raw(key, string, gguf_string(value));
  }
  GgufBuilder& list(std::string_view key, uint32_t element, uint64_t count,
                    const std::string& bytes) {
    return raw(key, array, little_endian(element, 4) + little_endian(count, 8) + bytes);
  }
  GgufBuilder& texts(std::string_view key, const std::vector<std::string>& values) {
    std::string bytes;
    for (const std::string& value : values) bytes += gguf_string(value);
    return list(key, string, values.size(), bytes);
  }
  GgufBuilder& integers(std::string_view key, const std::vector<int32_t>& values) {
    return list(key, i32, values.size(), bytes_of(values));
  }
  GgufBuilder& floats(std::string_view key, const std::vector<float>& values) {
    return list(key, f32, values.size(), bytes_of(values));
  }
  GgufBuilder& remove(std::string_view key) {
    std::erase_if(entries, [&](const std::string& entry) {
      return std::string_view(entry).substr(0, 8 + key.size()) == gguf_string(key);
    });
    return *this;
  }
  GgufBuilder& tensor(std::string name, std::vector<uint64_t> sizes, uint32_t type,
                      std::string bytes) {
    tensors.push_back({std::move(name), std::move(sizes), type, std::move(bytes)});
    return *this;
  }
  Tensor& find(std::string_view name) {
    for (Tensor& t : tensors) {
      if (t.name == name) return t;
    }
    throw std::runtime_error("no tensor " + std::string(name));
  }

  // Everything in front of the padding and the data.
  std::string header() const {
    std::string out =
        "GGUF" + little_endian(version, 4) +
        little_endian(claimed_tensors != UINT64_MAX ? claimed_tensors : tensors.size(), 8) +
        little_endian(claimed_entries != UINT64_MAX ? claimed_entries : entries.size(), 8);
    for (const std::string& entry : entries) out += entry;
    uint64_t offset = 0;
    for (const Tensor& t : tensors) {
      out += gguf_string(t.name) + little_endian(t.sizes.size(), 4);
      for (const uint64_t size : t.sizes) out += little_endian(size, 8);
      out += little_endian(t.type, 4) +
             little_endian(t.claimed_offset != UINT64_MAX ? t.claimed_offset : offset, 8);
      offset += (t.bytes.size() + alignment - 1) / alignment * alignment;
    }
    return out;
  }

  std::string bytes() const {
    std::string out = header();
    const auto pad = [&] { out.resize((out.size() + alignment - 1) / alignment * alignment); };
    pad();
    for (const Tensor& t : tensors) {
      out += t.bytes;
      pad();
    }
    return out;
  }
};

// A Mamba-1 model of one layer: d_model 32, d_inner 64, d_state 4, dt_rank 2, vocabulary 40, with
// a byte-level tokenizer of 7 tokens.
inline GgufBuilder small_gguf() {
  GgufBuilder b;
  b.text("general.architecture", "mamba")
      .number("mamba.block_count", 1)
      .number("mamba.embedding_length", 32)
      .number("mamba.ssm.conv_kernel", 4)
      .number("mamba.ssm.inner_size", 64)
      .number("mamba.ssm.state_size", 4)
      .number("mamba.ssm.time_step_rank", 2)
      .real("mamba.attention.layer_norm_rms_epsilon", 1e-5f)
      .text("tokenizer.ggml.model", "gpt2")
      .text("tokenizer.ggml.pre", "gpt-2")
      .texts("tokenizer.ggml.tokens", {"a", "b", "ab", "\xC4\xA0", "<end>", "[PAD5]", "  "})
      .integers("tokenizer.ggml.token_type", {1, 1, 1, 1, 3, 5, 4})
      .texts("tokenizer.ggml.merges", {"a b"})
      .number("tokenizer.ggml.eos_token_id", 4);
  uint32_t seed = 1;
  const auto add = [&](const std::string& name, std::vector<uint64_t> sizes) {
    uint64_t n = 1;
    for (const uint64_t size : sizes) n *= size;
    std::vector<float> values(n);
    for (float& v : values) {
      seed = seed * 1664525 + 1013904223;
      v = static_cast<float>(seed >> 8) * 0x1p-24f - 0.5f;
    }
    b.tensor(name, std::move(sizes), 0, bytes_of(values));
  };
  add("token_embd.weight", {32, 40});
  add("output_norm.weight", {32});
  add("blk.0.attn_norm.weight", {32});
  add("blk.0.ssm_in.weight", {32, 128});
  add("blk.0.ssm_conv1d.weight", {4, 64});
  add("blk.0.ssm_conv1d.bias", {64});
  add("blk.0.ssm_x.weight", {64, 10});
  add("blk.0.ssm_dt.weight", {2, 64});
  add("blk.0.ssm_dt.bias", {64});
  add("blk.0.ssm_a", {4, 64});
  add("blk.0.ssm_d", {64});
  add("blk.0.ssm_out.weight", {64, 32});
  return b;
}

}  // namespace mamba_edge::convert::testing
