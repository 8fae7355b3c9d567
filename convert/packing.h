// Where each row and column of a packed tensor comes from: the order and padding that
// engine/tensors.h describes, seen from the published tensors.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/config.h"
#include "engine/tensors.h"

namespace mamba_edge::convert {

constexpr int64_t kPadding = -1;

// For every packed row (element of a vector) the row of the published tensor, or kPadding.
// Mamba-2's D and its dt values repeat a head's value over its channels where the packed tensor has
// one per channel.
std::vector<int64_t> source_rows(const ModelConfig& config, const TensorSpec& spec);

// For every packed column the column of the published matrix, or kPadding.
std::vector<int64_t> source_cols(const ModelConfig& config, const TensorSpec& spec);

}  // namespace mamba_edge::convert
