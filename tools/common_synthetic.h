// Models in the dimensions of the published ones with random weights, made in memory. Only speed
// can be measured with them: what they say is noise, but finite.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/model.h"

namespace mamba_edge::tools {

// "mamba-130m", "mamba2-2.7b", ..., "falcon-mamba-7b", "mamba-codestral-7b": published models.
std::vector<std::string> synthetic_names();

// The config of one of them; throws UsageError for another name, which says that it came from
// --synthetic and lists the known ones.
ModelConfig synthetic_config(const std::string& name);

// Fills *model (freshly constructed) with weights of `type` in groups of `group`, as mamba-quantize
// would pack them, in memory as the loader would take it. The same bytes every time. Throws Error.
void make_synthetic_model(const ModelConfig& config, WeightType type, uint32_t group,
                          const char* isa, mamba_edge::Model* model);

}  // namespace mamba_edge::tools
