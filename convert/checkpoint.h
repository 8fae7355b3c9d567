// A published checkpoint as a flat list of named tensors, whatever files it lies in.
//
// Knows nothing about models: names, shapes and values are as published. Tensor data is read on
// demand and never kept.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "convert/file.h"
#include "convert/gguf.h"
#include "convert/tensor.h"

namespace mamba_edge::convert {

struct SourceFile {
  std::filesystem::path path;
  uint64_t size = 0;
};

class Checkpoint {
 public:
  // `input` is a folder or one file. In a folder, the first of these counts:
  //   model.safetensors, model.safetensors.index.json, consolidated.safetensors,
  //   consolidated.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json,
  //   the only file that ends in .gguf
  // A file may be any of these kinds under any name: an index ends in .json, the others are told
  // apart by their first bytes. Shards must lie in the folder of their index. Throws Error when
  // nothing is found or anything is unsound.
  static std::unique_ptr<Checkpoint> open(const std::filesystem::path& input);

  // The folder in which config.json and the tokenizer are to be looked for.
  const std::filesystem::path& folder() const { return folder_; }

  // What a GGUF file says about the model, which other formats keep in files of their own; null for
  // them. Where there is one, names and shapes of the tensors are GGUF's, too.
  const GgufMetadata* gguf() const { return gguf_ ? &*gguf_ : nullptr; }

  // The files that were read so far: the index if there is one, then the files with tensors, by
  // name.
  const std::vector<SourceFile>& files() const { return sources_; }

  // Sorted by name; each name once.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }

  // Null where there is no such tensor.
  const TensorInfo* find(std::string_view name) const;

  // Rows [row_begin, row_end) of dimension 0 as float32: see read_tensor_rows. Thread-safe.
  // out: [row_end - row_begin][elements per row]
  void read_rows(const TensorInfo& tensor, int64_t row_begin, int64_t row_end, float* out) const;

  // All of it, row-major. For small tensors.
  std::vector<float> read(const TensorInfo& tensor) const;

  // Whether both are the same view of the same bytes (tied weights that were saved under two
  // names).
  static bool same_storage(const TensorInfo& a, const TensorInfo& b);

 private:
  Checkpoint() = default;
  void open_index(const std::filesystem::path& path);
  void open_single(const std::filesystem::path& path);
  std::vector<TensorInfo> open_tensors(std::unique_ptr<File> file);
  void add_source(const File& file);
  void sort_tensors();

  std::filesystem::path folder_;
  std::vector<SourceFile> sources_;
  std::vector<std::unique_ptr<File>> files_;  // TensorInfo::file_index counts these
  std::vector<TensorInfo> tensors_;
  std::optional<GgufMetadata> gguf_;  // of files_[0]
};

}  // namespace mamba_edge::convert
