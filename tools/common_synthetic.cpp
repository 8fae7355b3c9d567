#include "tools/common_synthetic.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "platforms/os/memory.h"
#include "platforms/select.h"
#include "quant/encode.h"
#include "quant/half.h"
#include "tools/common.h"

namespace mamba_edge::tools {
namespace {

// Sizes of the published checkpoints (their config.json or params.json).
struct Published {
  const char* name;
  Architecture architecture;
  uint32_t d_model, n_layer;
  uint32_t n_vocab = 50280;
  uint8_t tied = 1;
  uint32_t n_groups = 1;  // of Mamba-2
};
constexpr Published kPublished[] = {
    {"mamba-130m", Architecture::mamba, 768, 24},
    {"mamba-370m", Architecture::mamba, 1024, 48},
    {"mamba-790m", Architecture::mamba, 1536, 48},
    {"mamba-1.4b", Architecture::mamba, 2048, 48},
    {"mamba-2.8b", Architecture::mamba, 2560, 64},
    {"mamba2-130m", Architecture::mamba2, 768, 24},
    {"mamba2-370m", Architecture::mamba2, 1024, 48},
    {"mamba2-780m", Architecture::mamba2, 1536, 48},
    {"mamba2-1.3b", Architecture::mamba2, 2048, 48},
    {"mamba2-2.7b", Architecture::mamba2, 2560, 64},
    {"falcon-mamba-7b", Architecture::falcon_mamba, 4096, 64, 65024, 0},
    {"mamba-codestral-7b", Architecture::mamba2, 4096, 64, 32768, 0, 8},
};

// xorshift64* (Vigna 2016): fast, and good enough to be noise.
class Noise {
 public:
  uint64_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1du;
  }
  float uniform() { return static_cast<float>(next() >> 40) * 0x1p-23f - 1; }  // in [-1, 1)

 private:
  uint64_t state_ = 88172645463325252u;
};

// Weights whose products with inputs of unit variance have about unit variance. A rotation makes inputs
// larger by the root of its length.
void fill_matrix(const MatrixShape& shape, Noise& noise, uint8_t* out) {
  const uint32_t gain = std::max(shape.rotation, 1u);
  const float spread = std::sqrt(3.0f / static_cast<float>(shape.cols) / static_cast<float>(gain));
  const size_t elements = shape.weight_bytes() / (shape.type == WeightType::f32 ? 4 : 2);
  const float largest =
      is_grouped(shape.type) ? static_cast<float>(properties(shape.type).zero()) : 1;
  for (size_t block = 0; block < shape.row_blocks(); ++block, out += shape.row_block_bytes()) {
    const size_t scales = shape.scale_bytes() / 2;
    for (size_t i = 0; i < scales; ++i) {
      const uint16_t half = float_to_half(spread / largest * (1 + 0.25f * noise.uniform()));
      std::memcpy(out + 2 * i, &half, 2);
    }
    uint8_t* w = out + shape.scale_bytes();
    switch (shape.type) {
      case WeightType::f32:
        for (size_t i = 0; i < elements; ++i) {
          const float value = spread * noise.uniform();
          std::memcpy(w + 4 * i, &value, 4);
        }
        break;
      case WeightType::f16:
        for (size_t i = 0; i < elements; ++i) {
          const uint16_t half = float_to_half(spread * noise.uniform());
          std::memcpy(w + 2 * i, &half, 2);
        }
        break;
      default:
        for (size_t i = 0; i < shape.weight_bytes(); i += 8) {
          const uint64_t bits = noise.next();
          std::memcpy(w + i, &bits, 8);
        }
        break;
    }
  }
}

// Floats [row_blocks][cols][16] or, for vectors, [rows].
void fill_floats(const TensorSpec& spec, const ModelConfig& config, Noise& noise, float* out) {
  const size_t n = size_t{round_up(spec.rows, kTileRows)} * spec.cols;
  switch (spec.role) {
    case TensorRole::norm:
    case TensorRole::final_norm:
    case TensorRole::gate_norm:
    case TensorRole::d:
      std::fill_n(out, n, 1.0f);
      return;
    case TensorRole::dt_bias:
      std::fill_n(out, n, -4.6f);  // softplus of it is 0.01
      return;
    case TensorRole::a:  // -1, -2, ... along the state, as models start
      for (size_t i = 0; i < n; ++i) {
        const size_t state = config.is_mamba2() ? 3 : i / kTileRows % spec.cols;
        out[i] = -static_cast<float>(state + 1);
      }
      return;
    case TensorRole::conv:
      for (size_t i = 0; i < n; ++i) out[i] = 0.5f * noise.uniform();
      return;
    default:
      std::fill_n(out, n, 0.0f);
      return;
  }
}

}  // namespace

std::vector<std::string> synthetic_names() {
  std::vector<std::string> names;
  for (const Published& p : kPublished) names.emplace_back(p.name);
  return names;
}

ModelConfig synthetic_config(const std::string& name) {
  const auto* p = std::find_if(std::begin(kPublished), std::end(kPublished),
                               [&](const Published& row) { return name == row.name; });
  if (p == std::end(kPublished)) {
    std::string known;
    for (const std::string& each : synthetic_names()) known += (known.empty() ? "" : ", ") + each;
    throw UsageError("--synthetic: no model is called '" + name + "'; known are " + known);
  }
  ModelConfig c;
  c.d_model = p->d_model;
  c.n_layer = p->n_layer;
  c.n_vocab = c.n_vocab_used = p->n_vocab;
  c.norm_eps = 1e-5f;
  c.tied = p->tied;
  c.bos_token = c.eos_token = 0;
  c.architecture = p->architecture;
  if (!c.is_mamba2()) {
    c.mamba1.d_inner = 2 * p->d_model;
    c.mamba1.d_state = 16;
    c.mamba1.d_conv = 4;
    c.mamba1.dt_rank = (p->d_model + 15) / 16;
    c.mamba1.conv_bias = 1;
    if (c.architecture == Architecture::falcon_mamba) {
      c.mamba1.dt_bc_norm = 1;
      c.mamba1.dt_bc_eps = 1e-6f;
    }
  } else {
    c.mamba2.d_inner = 2 * p->d_model;
    c.mamba2.d_state = 128;
    c.mamba2.d_conv = 4;
    c.mamba2.headdim = 64;
    c.mamba2.n_heads = c.mamba2.d_inner / c.mamba2.headdim;
    c.mamba2.n_groups = p->n_groups;
    c.mamba2.conv_bias = 1;
    c.mamba2.gated_norm = 1;
    c.mamba2.norm_eps = 1e-5f;
    c.mamba2.dt_high = HUGE_VALF;
  }
  return c;
}

void make_synthetic_model(const ModelConfig& config, WeightType type, uint32_t group,
                          const char* isa, mamba_edge::Model* model) {
  mamba_edge::Model& m = *model;
  const Status valid = validate(config);
  if (!valid.ok()) throw Error(valid.message());
  m.kernels = select_table(isa);
  if (m.kernels == nullptr) {
    throw UsageError("instruction set '" + std::string(isa) +
                     "' is none that this machine runs: " + available_isas());
  }
  m.config = config;
  m.layout = Layout(config);
  m.weights.layers = new LayerWeights[config.n_layer];
  const uint32_t n = tensor_count(config);
  const auto shape_of = [&](const TensorSpec& spec) {
    // As mamba-quantize chooses.
    const bool keep = type == WeightType::f16 && spec.role == TensorRole::x_proj;
    const bool vocabulary = is_vocabulary(spec.role);
    const WeightType own = vocabulary ? vocabulary_type(type) : type;
    return matrix_shape(spec.quantisable && !keep ? own : WeightType::f32, spec.rows, spec.cols,
                        group != 0 && !vocabulary ? group : default_group(own, spec.role),
                        !vocabulary);
  };
  for (uint32_t i = 0; i < n; ++i) {
    m.memory_bytes += round_up<uint64_t>(shape_of(tensor_spec(config, i)).bytes(), kBlockAlign);
  }
  m.weight_bytes = m.memory_bytes;
  m.memory = static_cast<uint8_t*>(memory_allocate(m.memory_bytes));
  if (m.memory == nullptr) {
    throw Error("no memory for weights of " + format_bytes(m.memory_bytes));
  }
  Noise noise;
  uint8_t* at = m.memory;
  for (uint32_t i = 0; i < n; ++i) {
    const TensorSpec spec = tensor_spec(config, i);
    const MatrixShape shape = shape_of(spec);
    if (spec.quantisable) {
      fill_matrix(shape, noise, at);
    } else {
      fill_floats(spec, config, noise, reinterpret_cast<float*>(at));
    }
    m.n_parameters += published_elements(config, spec);
    place_tensor(spec, {shape, shape.row_block_bytes(), 1.0f, at}, &m);
    at += round_up<uint64_t>(shape.bytes(), kBlockAlign);
  }
}

}  // namespace mamba_edge::tools
