#include "convert/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "convert/error.h"
#include "convert/json.h"

namespace mamba_edge::convert {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;

constexpr ElementType kElementTypes[] = {
    {"F64", 64, true, DType::f64},
    {"F32", 32, true, DType::f32},
    {"F16", 16, true, DType::f16},
    {"BF16", 16, true, DType::bf16},
    {"BOOL", 8},
    {"U8", 8},
    {"I8", 8},
    {"F8_E5M2", 8},
    {"F8_E4M3", 8},
    {"F8_E8M0", 8},
    {"I16", 16},
    {"U16", 16},
    {"I32", 32},
    {"U32", 32},
    {"I64", 64},
    {"U64", 64},
    {"C64", 64},
    {"F4", 4},
    {"F6_E2M3", 6},
    {"F6_E3M2", 6},
};

const ElementType* find_type(std::string_view name) {
  const auto* found = std::find_if(std::begin(kElementTypes), std::end(kElementTypes),
                                   [&](const ElementType& type) { return type.name == name; });
  return found == std::end(kElementTypes) ? nullptr : found;
}

uint64_t header_length(const File& file) {
  std::array<unsigned char, kLengthBytes> bytes = {};
  file.read_at(0, bytes.data(), bytes.size());
  uint64_t length = 0;
  for (size_t i = bytes.size(); i-- > 0;) length = length << 8 | bytes[i];
  return length;
}

struct Range {
  uint64_t begin;
  uint64_t end;
  const std::string* name;
};

// Tensor `name`, whose data_offsets count from `data_begin`.
TensorInfo read_entry(const File& file, const std::string& name, const nlohmann::json& entry,
                      uint64_t data_begin) {
  const auto fail = [&](const std::string& why) {
    return Error(file.name() + ": tensor " + name + ": " + why);
  };
  if (!entry.is_object() || !entry.contains("dtype") || !entry["dtype"].is_string() ||
      !entry.contains("shape") || !entry["shape"].is_array() || !entry.contains("data_offsets") ||
      !entry["data_offsets"].is_array() || entry["data_offsets"].size() != 2) {
    throw fail("needs a dtype, a shape and two data_offsets");
  }
  TensorInfo tensor;
  tensor.name = name;
  tensor.file = file.name();
  tensor.dtype_name = entry["dtype"].get<std::string>();
  for (const nlohmann::json& size : entry["shape"]) {
    if (!size.is_number_unsigned() || size.get<uint64_t>() > INT64_MAX) {
      throw fail("its shape " + entry["shape"].dump() + " is not a list of sizes");
    }
    tensor.shape.push_back(size.get<int64_t>());
  }
  const nlohmann::json& offsets = entry["data_offsets"];
  if (!offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned()) {
    throw fail("its data_offsets " + offsets.dump() + " are not two byte offsets");
  }
  const uint64_t begin = offsets[0].get<uint64_t>();
  const uint64_t end = offsets[1].get<uint64_t>();
  const uint64_t data_bytes = file.size() - data_begin;
  if (begin > end || end > data_bytes) {
    throw fail("its data_offsets " + offsets.dump() + " leave the " + std::to_string(data_bytes) +
               " bytes of data that the file has");
  }
  const int64_t elements = count_elements(tensor.shape);
  if (elements < 0) throw fail("its shape " + shape_text(tensor.shape) + " is too large");
  if (const ElementType* type = find_type(tensor.dtype_name)) {
    tensor.dtype = type->dtype;
    tensor.readable_as_float = type->readable;
    const auto count = static_cast<uint64_t>(elements);
    const uint64_t expected = count / 8 * type->bits + (count % 8 * type->bits + 7) / 8;
    if (end - begin != expected) {
      throw fail("shape " + shape_text(tensor.shape) + " of " + tensor.dtype_name + " needs " +
                 std::to_string(expected) + " bytes, its data_offsets hold " +
                 std::to_string(end - begin));
    }
  }
  tensor.strides = contiguous_strides(tensor.shape);
  tensor.begin = data_begin + begin;
  return tensor;
}

// `ranges` are offsets into `data_bytes` bytes of data.
void check_cover(const File& file, std::vector<Range> ranges, uint64_t data_bytes) {
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t covered = 0;
  for (const Range& range : ranges) {
    if (range.begin < covered) {
      throw Error(file.name() + ": tensor " + *range.name + " overlaps another one at data byte " +
                  std::to_string(range.begin));
    }
    if (range.begin > covered) {
      throw Error(file.name() + ": data bytes " + std::to_string(covered) + " to " +
                  std::to_string(range.begin) + " belong to no tensor");
    }
    covered = range.end;
  }
  if (covered != data_bytes) {
    throw Error(file.name() + ": its tensors end at data byte " + std::to_string(covered) +
                ", the file holds " + std::to_string(data_bytes));
  }
}

}  // namespace

bool looks_like_safetensors(const File& file) {
  if (file.size() < kLengthBytes + 2) return false;
  return header_length(file) <= kMaxHeaderBytes && file.read_string(kLengthBytes, 1) == "{";
}

SafetensorsDirectory read_safetensors(const File& file) {
  const uint64_t length = header_length(file);
  if (length > kMaxHeaderBytes || length > file.size() - kLengthBytes) {
    throw Error(file.name() + ": claims a header of " + std::to_string(length) +
                " bytes; the file has " + std::to_string(file.size()) + " bytes, the limit is " +
                std::to_string(kMaxHeaderBytes));
  }
  const nlohmann::json header =
      parse_json(file.read_string(kLengthBytes, length), file.name() + ": the safetensors header");
  if (!header.is_object()) throw Error(file.name() + ": its header is not a JSON object");

  SafetensorsDirectory directory;
  std::vector<Range> ranges;
  const uint64_t data_begin = kLengthBytes + length;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      if (!entry.is_object()) throw Error(file.name() + ": its __metadata__ is not a JSON object");
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string())
          throw Error(file.name() + ": __metadata__ of " + key + " is not text");
        directory.metadata[key] = value.get<std::string>();
      }
      continue;
    }
    directory.tensors.push_back(read_entry(file, name, entry, data_begin));
    const nlohmann::json& offsets = entry["data_offsets"];
    ranges.push_back({offsets[0].get<uint64_t>(), offsets[1].get<uint64_t>(), nullptr});
  }
  for (size_t i = 0; i < ranges.size(); ++i) ranges[i].name = &directory.tensors[i].name;
  check_cover(file, std::move(ranges), file.size() - data_begin);
  return directory;
}

}  // namespace mamba_edge::convert
