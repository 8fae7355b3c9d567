// A published model's config.json or params.json as a ModelConfig.
//
// Three spellings: state-spaces (d_model, n_layer, ssm_cfg), transformers (model_type mamba, mamba2
// or falcon_mamba) and Mistral's params.json (dim, n_layers). Missing keys have the defaults of the
// code that publishes that spelling. Whatever changes a result is honoured or refused by name and
// value; keys that only matter for initialisation, training or speed are ignored. Does not look at
// tensors: names.h finds contradictions between the two.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "engine/config.h"

namespace mamba_edge::convert {

struct PublishedConfig {
  ModelConfig model;                  // validated
  std::filesystem::path path;         // which file it came from
  std::vector<std::string> warnings;  // what was ignored although somebody may have meant it
};

// Reads config.json, or params.json where there is none, in `folder`. Throws Error when there is
// neither, when it is not JSON (NaN and Infinity are understood), or when it describes a model that
// the engine cannot run.
PublishedConfig read_published_config(const std::filesystem::path& folder);

// The same for text; `source` names it in errors and becomes `path`.
PublishedConfig parse_published_config(std::string_view json, const std::string& source);

}  // namespace mamba_edge::convert
