#include "convert/names.h"

#include <algorithm>
#include <string_view>
#include <unordered_set>

#include "convert/error.h"
#include "convert/gguf_model.h"

namespace mamba_edge::convert {
namespace {

constexpr int64_t kCompareElements = int64_t{1} << 18;
constexpr size_t kMaxListed = 5;

bool in_layers(TensorRole role) {
  return role != TensorRole::embedding && role != TensorRole::head &&
         role != TensorRole::final_norm && role != TensorRole::final_norm_bias;
}

// A layer's tensor behind "layers.N."; outside the layers, behind the stem.
const char* published_name(bool mamba2, TensorRole role) {
  switch (role) {
    case TensorRole::embedding:
      return "embedding.weight";
    case TensorRole::head:
      return "lm_head.weight";
    case TensorRole::final_norm:
      return "norm_f.weight";
    case TensorRole::final_norm_bias:
      return "norm_f.bias";
    case TensorRole::norm:
      return "norm.weight";
    case TensorRole::norm_bias:
      return "norm.bias";
    case TensorRole::in_proj:
      return "mixer.in_proj.weight";
    case TensorRole::in_proj_bias:
      return "mixer.in_proj.bias";
    case TensorRole::conv:
      return "mixer.conv1d.weight";
    case TensorRole::conv_bias:
      return "mixer.conv1d.bias";
    case TensorRole::x_proj:
      return "mixer.x_proj.weight";
    case TensorRole::dt_proj:
      return "mixer.dt_proj.weight";
    case TensorRole::dt_bias:
      return mamba2 ? "mixer.dt_bias" : "mixer.dt_proj.bias";
    case TensorRole::a:
      return "mixer.A_log";
    case TensorRole::d:
      return "mixer.D";
    case TensorRole::gate_norm:
      return "mixer.norm.weight";
    case TensorRole::init_states:
      return "mixer.init_states";
    case TensorRole::out_proj:
      return "mixer.out_proj.weight";
    case TensorRole::out_proj_bias:
      return "mixer.out_proj.bias";
  }
  return "";
}

// Whether `text` consists of prefixes that wrappers add, then perhaps "backbone.".
bool is_stem(std::string_view text) {
  for (bool stripped = true; stripped;) {
    stripped = false;
    for (const std::string_view prefix : {"model.", "module.", "_orig_mod."}) {
      if (!text.starts_with(prefix)) continue;
      text.remove_prefix(prefix.size());
      stripped = true;
    }
  }
  return text.empty() || text == "backbone.";
}

std::vector<int64_t> shape_mamba1(const Mamba1Config& m, int64_t d_model, TensorRole role) {
  const int64_t inner = m.d_inner;
  const int64_t state = m.d_state;
  switch (role) {
    case TensorRole::in_proj:
      return {2 * inner, d_model};
    case TensorRole::in_proj_bias:
      return {2 * inner};
    case TensorRole::conv:
      return {inner, 1, m.d_conv};
    case TensorRole::conv_bias:
      return {inner};
    case TensorRole::x_proj:
      return {m.dt_rank + 2 * state, inner};
    case TensorRole::dt_proj:
      return {inner, m.dt_rank};
    case TensorRole::a:
      return {inner, state};
    case TensorRole::out_proj:
      return {d_model, inner};
    default:
      return {inner};  // dt_bias, D
  }
}

std::vector<int64_t> shape_mamba2(const Mamba2Config& m, int64_t d_model, TensorRole role) {
  const int64_t inner = m.d_inner;
  const int64_t heads = m.n_heads;
  const int64_t conv = inner + 2 * int64_t{m.n_groups} * m.d_state;
  switch (role) {
    case TensorRole::in_proj:
      return {inner + conv + heads, d_model};
    case TensorRole::in_proj_bias:
      return {inner + conv + heads};
    case TensorRole::conv:
      return {conv, 1, m.d_conv};
    case TensorRole::conv_bias:
      return {conv};
    case TensorRole::d:
      return {m.d_per_channel ? inner : heads};
    case TensorRole::gate_norm:
      return {inner};
    case TensorRole::init_states:
      return {heads, m.headdim, m.d_state};
    case TensorRole::out_proj:
      return {d_model, inner};
    default:
      return {heads};  // dt_bias, A_log
  }
}

class Namer {
 public:
  Namer(const Checkpoint& checkpoint, const ModelConfig& config)
      : checkpoint_(checkpoint), config_(config) {
    find_stem();
    find_outer();
  }

  NamedTensors run() {
    NamedTensors named;
    const uint32_t count = tensor_count(config_);
    for (uint32_t index = 0; index < count; ++index) {
      const TensorSpec spec = tensor_spec(config_, index);
      named.tensors.push_back({spec.role, spec.layer, require(spec.role, spec.layer)});
    }
    for (const NamedTensor& tensor : named.tensors) used_.insert(tensor.source);
    check_rest(&named.warnings);
    return named;
  }

 private:
  Error fail(const std::string& why) const {
    return Error(checkpoint_.files().front().path.string() + ": " + why);
  }

  // The stem is what stands before "norm_f.weight", which every layout has.
  void find_stem() {
    constexpr std::string_view kMark = "norm_f.weight";
    bool found = false;
    for (const TensorInfo& tensor : checkpoint_.tensors()) {
      if (!tensor.name.ends_with(kMark)) continue;
      const std::string stem = tensor.name.substr(0, tensor.name.size() - kMark.size());
      if (!is_stem(stem)) continue;
      if (found) throw fail("has two models, " + stem_ + "* and " + stem + "*");
      stem_ = stem;
      found = true;
    }
    if (!found) throw fail("has no tensor backbone.norm_f.weight, so it is not a Mamba model");
    wrapper_ = stem_.ends_with("backbone.") ? stem_.substr(0, stem_.size() - 9) : stem_;
  }

  // Embedding and head, whose names vary.
  void find_outer() {
    embedding_ = checkpoint_.find(stem_ + "embedding.weight");
    if (embedding_ == nullptr) embedding_ = checkpoint_.find(stem_ + "embeddings.weight");
    head_ = checkpoint_.find(wrapper_ + "lm_head.weight");
    if (head_ == nullptr) head_ = checkpoint_.find("lm_head.weight");
  }

  std::string layer_stem(uint32_t layer) const {
    return stem_ + "layers." + std::to_string(layer) + ".";
  }

  const TensorInfo* look_up(TensorRole role, uint32_t layer, std::string* name) const {
    *name = published_name(config_.is_mamba2(), role);
    if (role == TensorRole::head) return head_;
    if (role == TensorRole::embedding) {
      *name = stem_ + *name;
      return embedding_ == nullptr && config_.tied ? head_ : embedding_;
    }
    *name = (in_layers(role) ? layer_stem(layer) : stem_) + *name;
    return checkpoint_.find(*name);
  }

  const TensorInfo* require(TensorRole role, uint32_t layer) const {
    std::string name;
    const TensorInfo* tensor = look_up(role, layer, &name);
    const std::vector<int64_t> expected = source_shape(config_, role);
    if (tensor == nullptr) {
      const char* const hint = role == TensorRole::head
                                   ? "; the config says that the head is not tied to the embedding"
                                   : "";
      throw fail("lacks tensor " + name + " of shape " + shape_text(expected) + hint);
    }
    if (tensor->shape != expected) {
      throw Error(tensor->file + ": tensor " + tensor->name + " has shape " +
                  shape_text(tensor->shape) + ", the config says " + shape_text(expected));
    }
    if (!tensor->readable_as_float) {
      throw Error(tensor->file + ": tensor " + tensor->name + " holds " + tensor->dtype_name +
                  "; weights must be float32, float16, bfloat16 or float64");
    }
    return tensor;
  }

  bool is_used(const TensorInfo& tensor) const { return used_.contains(&tensor); }

  // The roles that tensors of this model's kind can have, but this config switches off.
  void refuse_contradiction(const TensorInfo& tensor) const {
    const std::string_view name = tensor.name;
    const auto refuse = [&](const std::string& why) {
      throw Error(tensor.file + ": has tensor " + tensor.name + ", but the config says " + why);
    };
    if (name == wrapper_ + "lm_head.bias" || name == "lm_head.bias") {
      throw Error(tensor.file + ": tensor " + tensor.name +
                  ": a head with a bias is not supported");
    }
    if (!name.starts_with(stem_)) return;
    std::string_view rest = name.substr(stem_.size());
    const bool layered = rest.starts_with("layers.");
    if (layered) {
      rest.remove_prefix(7);
      const size_t dot = rest.find('.');
      const std::string_view number = rest.substr(0, dot);
      if (dot == std::string_view::npos || number.empty() || number.size() > 9 ||
          number.find_first_not_of("0123456789") != std::string_view::npos) {
        return;
      }
      if (std::stoul(std::string(number)) >= config_.n_layer) {
        refuse("that there are " + std::to_string(config_.n_layer) + " layers");
      }
      rest.remove_prefix(dot + 1);
    }
    for (uint32_t r = 0; r < kTensorRoles; ++r) {
      const auto role = static_cast<TensorRole>(r);
      if (role == TensorRole::embedding || role == TensorRole::head) continue;
      if (in_layers(role) == layered && rest == published_name(config_.is_mamba2(), role)) {
        refuse("that there is none");
      }
    }
  }

  void check_rest(std::vector<std::string>* warnings) const {
    std::vector<std::string> unused;
    for (const TensorInfo& tensor : checkpoint_.tensors()) {
      if (is_used(tensor)) continue;
      if (&tensor == head_ && config_.tied) {
        if (!same_values(*embedding_, tensor)) {
          warnings->push_back(tensor.name + " differs from " + embedding_->name +
                              ", but the config says that they are tied; it is ignored");
        }
        continue;
      }
      refuse_contradiction(tensor);
      unused.push_back(tensor.name);
    }
    if (unused.empty()) return;
    std::string list;
    for (size_t i = 0; i < std::min(unused.size(), kMaxListed); ++i) {
      list += (i > 0 ? ", " : "") + unused[i];
    }
    if (unused.size() > kMaxListed) list += ", ...";
    warnings->push_back("the model does not use " + std::to_string(unused.size()) +
                        " of the checkpoint's tensors: " + list);
  }

  bool same_values(const TensorInfo& a, const TensorInfo& b) const {
    if (Checkpoint::same_storage(a, b)) return true;
    if (a.shape != b.shape || !b.readable_as_float) return false;
    const int64_t columns = config_.d_model;
    const int64_t step = std::max<int64_t>(1, kCompareElements / columns);
    std::vector<float> rows_a(static_cast<size_t>(step * columns));
    std::vector<float> rows_b(rows_a.size());
    for (int64_t row = 0; row < a.rows(); row += step) {
      const int64_t end = std::min(row + step, a.rows());
      checkpoint_.read_rows(a, row, end, rows_a.data());
      checkpoint_.read_rows(b, row, end, rows_b.data());
      const auto count = static_cast<ptrdiff_t>((end - row) * columns);
      if (!std::equal(rows_a.begin(), rows_a.begin() + count, rows_b.begin())) return false;
    }
    return true;
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  std::string stem_;     // before "layers."
  std::string wrapper_;  // before "lm_head."
  const TensorInfo* embedding_ = nullptr;
  const TensorInfo* head_ = nullptr;
  std::unordered_set<const TensorInfo*> used_;
};

}  // namespace

std::vector<int64_t> source_shape(const ModelConfig& config, TensorRole role) {
  const int64_t d_model = config.d_model;
  switch (role) {
    case TensorRole::embedding:
    case TensorRole::head:
      return {config.n_vocab, d_model};
    case TensorRole::final_norm:
    case TensorRole::final_norm_bias:
    case TensorRole::norm:
    case TensorRole::norm_bias:
    case TensorRole::out_proj_bias:
      return {d_model};
    default:
      return config.is_mamba2() ? shape_mamba2(config.mamba2, d_model, role)
                                : shape_mamba1(config.mamba1, d_model, role);
  }
}

NamedTensors name_tensors(const Checkpoint& checkpoint, const ModelConfig& config) {
  if (checkpoint.gguf() != nullptr) return name_gguf_tensors(checkpoint, config);
  return Namer(checkpoint, config).run();
}

}  // namespace mamba_edge::convert
