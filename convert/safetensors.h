// The directory of one .safetensors file.
//
// Format: 8 bytes little-endian length, that many bytes of JSON ({name: {dtype, shape,
// data_offsets: [begin, end]}}, offsets counted from behind the JSON; "__metadata__" is a map of
// strings), then the data without holes.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "convert/file.h"
#include "convert/tensor.h"

namespace mamba_edge::convert {

struct SafetensorsDirectory {
  std::vector<TensorInfo> tensors;              // in no particular order; file_index is 0
  std::map<std::string, std::string> metadata;  // "__metadata__"
};

// Whether the file begins as a .safetensors file does: a header length and '{'.
bool looks_like_safetensors(const File& file);

// Throws Error unless the whole directory is sound: every tensor's bytes lie in the file, agree
// with its shape and type, and together they cover the data exactly once.
SafetensorsDirectory read_safetensors(const File& file);

}  // namespace mamba_edge::convert
