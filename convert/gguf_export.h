// A published checkpoint into a GGUF file that llama.cpp loads: metadata, tokenizer and tensors as
// its own converter would write them (convert/gguf_model.h, convert/gguf_tokenizer.h). One tensor at a
// time, in pieces of about a megabyte: memory does not grow with the checkpoint.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string_view>

#include "convert/dtype.h"
#include "convert/pipeline.h"

namespace mamba_edge::convert {

// What --type calls a type that can be written.
struct GgufOutputType {
  std::string_view name;
  DType dtype;
};
std::span<const GgufOutputType> gguf_output_types();

struct GgufOptions {
  std::filesystem::path input;  // a folder or a file, as Checkpoint::open takes it
  std::filesystem::path output;
  DType type = DType::q8_0;  // of the matrices; everything else is F32
  std::optional<DType> embedding_type,
      head_type;                    // default: type; tied: one matrix, both must agree
  bool allow_nonfinite = false;     // NaN and infinities are kept (such a tensor is F32) or refused
  std::filesystem::path tokenizer;  // as for find_tokenizer()
  std::function<void(double done)> progress;  // 0 to 1
};

// A matrix whose rows are no multiple of a block is F16, one whose values its type cannot hold F32.
// Throws Error, naming what it is, where llama.cpp has no such model; nothing is left behind then.
Report export_gguf(const GgufOptions& options);

}  // namespace mamba_edge::convert
