// What is in a GGUF file: metadata and the list of tensors.
//
// Format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), all little-endian: "GGUF", u32
// version (2 or 3), u64 number of tensors, u64 number of metadata entries; entries (string key, u32
// type, value); tensors (string name, u32 number of dimensions, u64 sizes with the fastest first,
// u32 type, u64 offset); zeros up to a multiple of general.alignment; the data, from which the
// offsets count. A string is u64 length and bytes, an array u32 type, u64 count and the elements.
//
// Knows nothing about models. Values of metadata stay in the file until they are asked for, so that
// memory depends on the number of entries and tensors alone.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "convert/dtype.h"
#include "convert/file.h"
#include "convert/tensor.h"

namespace mamba_edge::convert {

// Numbers are part of the format.
enum class GgufKind : uint32_t {
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  f32,
  boolean,
  string,
  array,
  u64,
  i64,
  f64
};

// A tensor's type: its number and name in GGUF. Types that cannot be read have no dtype.
struct GgufTensorType {
  uint32_t number;
  std::string_view name;
  std::optional<DType> dtype;
};

// Null where no type has this number, name or dtype.
const GgufTensorType* gguf_tensor_type(uint32_t number);
const GgufTensorType* gguf_tensor_type(DType dtype);

class GgufMetadata {
 public:
  // Where a value lies in the file, which has been checked to hold all of it.
  struct Value {
    GgufKind kind;
    uint64_t begin;                   // of a string's or array's bytes behind their counts
    uint64_t count = 0;               // bytes of a string, elements of an array
    GgufKind element = GgufKind::u8;  // of an array
  };

  // `file` must outlive this object.
  GgufMetadata(const File& file, std::map<std::string, Value, std::less<>> values)
      : file_(&file), values_(std::move(values)) {}

  bool has(std::string_view key) const { return values_.find(key) != values_.end(); }
  std::string file() const { return file_->name(); }

  // Each throws Error, naming the file and the key, where the value has another kind. Nothing (or
  // an empty vector) where there is no such key.
  std::optional<uint64_t> count(std::string_view key) const;  // any integer kind, not negative
  std::optional<double> number(std::string_view key) const;   // any integer or float kind
  std::optional<bool> flag(std::string_view key) const;
  std::optional<std::string> text(std::string_view key) const;
  std::vector<std::string> texts(std::string_view key) const;
  std::vector<int64_t> integers(std::string_view key) const;
  std::vector<float> floats(std::string_view key) const;

 private:
  const Value* find(std::string_view key) const;
  const Value* find_array(std::string_view key, std::string_view wanted) const;

  const File* file_;
  std::map<std::string, Value, std::less<>> values_;
};

struct GgufDirectory {
  GgufMetadata metadata;
  std::vector<TensorInfo> tensors;  // in the file's order; shapes row-major, so the fastest is last
};

bool looks_like_gguf(const File& file);

// Throws Error unless everything is sound: counts, kinds, types and names are known and possible,
// no key or name appears twice, every tensor's bytes lie in the file, aligned, and no two overlap.
// Splits into several files are refused.
GgufDirectory read_gguf(const File& file);

}  // namespace mamba_edge::convert
