// The blocks in which GGUF files keep quantised weights: a few scales and minima in front of, or
// between, 32 or 256 small integers.
//
// The layouts are those of ggml (https://github.com/ggml-org/ggml, ggml-common.h and ggml-quants.c),
// which the GGUF specification names but does not describe. All numbers are little-endian. Knows
// nothing about files or tensors.
#pragma once

#include <cstddef>
#include <cstdint>

#include "convert/dtype.h"

namespace mamba_edge::convert {

struct BlockLayout {
  uint32_t elements;  // of one block: a divisor of a row's width
  uint32_t bytes;
};

// {1, bytes of an element} for types without blocks.
BlockLayout block_layout(DType dtype);

inline bool is_blocked(DType dtype) { return block_layout(dtype).elements > 1; }

// blocks: n_blocks of `dtype`, which is blocked; out: n_blocks * elements values, computed in
// float32 in the order in which ggml computes them. Scales that are NaN or infinite give such values.
void decode_blocks(DType dtype, const char* blocks, size_t n_blocks, float* out);

// The reverse, for q8_0 and q4_0: values are n_blocks * 32 finite numbers. Rounds as llama.cpp does:
// q8_0 with scale max|v| / 127; q4_0 with the scale that makes the value of largest magnitude -8.
// Scales are rounded to binary16, the quotients are those by the scale before that rounding.
void encode_blocks(DType dtype, const float* values, size_t n_blocks, char* out);

}  // namespace mamba_edge::convert
