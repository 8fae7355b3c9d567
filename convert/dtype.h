// How a checkpoint stores numbers.
#pragma once

namespace mamba_edge::convert {

// The first four store each element by itself. The others occur in GGUF files only, and store it
// in blocks (convert/ggml_blocks.h).
enum class DType {
  f32,
  f16,
  bf16,
  f64,
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  q2_k,
  q3_k,
  q4_k,
  q5_k,
  q6_k,
  q8_k,
  iq4_nl
};

}  // namespace mamba_edge::convert
