// The engine's layers, one at a time with float32 weights from memory: what mamba-quantize calibrates
// with.
#pragma once

#include <memory>

#include "convert/forward.h"

namespace mamba_edge::tools {

// A convert::MakeForward. Uses the best kernels of this CPU.
std::unique_ptr<convert::Forward> make_forward(const ModelConfig& config, int threads);

}  // namespace mamba_edge::tools
