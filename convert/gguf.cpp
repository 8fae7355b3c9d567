#include "convert/gguf.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <set>
#include <utility>

#include "convert/error.h"
#include "convert/ggml_blocks.h"

namespace mamba_edge::convert {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are read in the file's order");

constexpr size_t kWindowBytes = size_t{64} << 10;
// Far beyond any model's; what they bound is memory.
constexpr uint64_t kMaxEntries = uint64_t{1} << 16;
constexpr uint64_t kMaxTensors = uint64_t{1} << 16;
constexpr uint64_t kMaxNameBytes = 256;
constexpr uint64_t kMaxTextBytes = uint64_t{16} << 20;  // of a string that is asked for
constexpr uint64_t kMaxElements = uint64_t{1} << 24;    // of an array that is asked for
constexpr uint32_t kMaxDimensions = 4;
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = uint64_t{1} << 20;
constexpr size_t kShownBytes = 60;

// ggml.h, enum ggml_type.
constexpr GgufTensorType kTensorTypes[] = {
    {0, "F32", DType::f32},
    {1, "F16", DType::f16},
    {2, "Q4_0", DType::q4_0},
    {3, "Q4_1", DType::q4_1},
    {6, "Q5_0", DType::q5_0},
    {7, "Q5_1", DType::q5_1},
    {8, "Q8_0", DType::q8_0},
    {9, "Q8_1", {}},
    {10, "Q2_K", DType::q2_k},
    {11, "Q3_K", DType::q3_k},
    {12, "Q4_K", DType::q4_k},
    {13, "Q5_K", DType::q5_k},
    {14, "Q6_K", DType::q6_k},
    {15, "Q8_K", DType::q8_k},
    {16, "IQ2_XXS", {}},
    {17, "IQ2_XS", {}},
    {18, "IQ3_XXS", {}},
    {19, "IQ1_S", {}},
    {20, "IQ4_NL", DType::iq4_nl},
    {21, "IQ3_S", {}},
    {22, "IQ2_S", {}},
    {23, "IQ4_XS", {}},
    {24, "I8", {}},
    {25, "I16", {}},
    {26, "I32", {}},
    {27, "I64", {}},
    {28, "F64", DType::f64},
    {29, "IQ1_M", {}},
    {30, "BF16", DType::bf16},
    {34, "TQ1_0", {}},
    {35, "TQ2_0", {}},
    {39, "MXFP4", {}},
    {40, "NVFP4", {}},
};

constexpr const char* kKindNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                      "bool", "string", "array", "u64", "i64", "f64"};
constexpr uint32_t kKinds = std::size(kKindNames);

const char* kind_name(GgufKind kind) { return kKindNames[static_cast<uint32_t>(kind)]; }

// Of a number; 0 for strings and arrays.
uint64_t kind_bytes(GgufKind kind) {
  switch (kind) {
    case GgufKind::u8:
    case GgufKind::i8:
    case GgufKind::boolean:
      return 1;
    case GgufKind::u16:
    case GgufKind::i16:
      return 2;
    case GgufKind::u32:
    case GgufKind::i32:
    case GgufKind::f32:
      return 4;
    case GgufKind::u64:
    case GgufKind::i64:
    case GgufKind::f64:
      return 8;
    case GgufKind::string:
    case GgufKind::array:
      break;
  }
  return 0;
}

// A name for messages: printable, not too long.
std::string shown(std::string_view name) {
  std::string text;
  for (const char c : name.substr(0, kShownBytes)) {
    text += c >= ' ' && c != 127 ? c : '?';
  }
  return name.size() > kShownBytes ? text + "..." : text;
}

// Reads a file from front to back through a small window.
class Reader {
 public:
  Reader(const File& file, uint64_t at) : file_(file), at_(at) {}

  uint64_t at() const { return at_; }
  uint64_t left() const { return file_.size() - at_; }

  // `what` names the thing in errors.
  template <typename T>
  T number(const std::string& what) {
    T value;
    bytes(&value, sizeof value, what);
    return value;
  }

  // A string's length, of which as many bytes follow.
  uint64_t length(const std::string& what) {
    const auto n = number<uint64_t>(what);
    if (n > left()) {
      throw Error(file_.name() + ": " + what + " claims " + std::to_string(n) +
                  " bytes, the file has " + std::to_string(left()) + " more");
    }
    return n;
  }

  std::string text(uint64_t n, const std::string& what) {
    std::string out(n, '\0');
    bytes(out.data(), n, what);
    return out;
  }

  void skip(uint64_t n) { at_ += n; }  // at most left()

 private:
  void bytes(void* out, uint64_t n, const std::string& what) {
    if (n > left()) throw Error(file_.name() + ": ends inside " + what);
    auto* to = static_cast<char*>(out);
    while (n > 0) {
      if (at_ < window_at_ || at_ >= window_at_ + window_.size()) {
        window_.resize(std::min<uint64_t>(kWindowBytes, left()));
        window_at_ = at_;
        file_.read_at(at_, window_.data(), window_.size());
      }
      const uint64_t from = at_ - window_at_;
      const uint64_t now = std::min<uint64_t>(n, window_.size() - from);
      std::memcpy(to, window_.data() + from, now);
      to += now;
      at_ += now;
      n -= now;
    }
  }

  const File& file_;
  uint64_t at_;
  std::vector<char> window_;
  uint64_t window_at_ = 0;
};

template <typename From, typename To>
To load(const char* bytes) {
  From value;
  std::memcpy(&value, bytes, sizeof value);
  return static_cast<To>(value);
}

// The number of kind `kind` in `bytes`.
template <typename To>
To convert_number(GgufKind kind, const char* bytes) {
  switch (kind) {
    case GgufKind::u8:
      return load<uint8_t, To>(bytes);
    case GgufKind::i8:
      return load<int8_t, To>(bytes);
    case GgufKind::u16:
      return load<uint16_t, To>(bytes);
    case GgufKind::i16:
      return load<int16_t, To>(bytes);
    case GgufKind::u32:
      return load<uint32_t, To>(bytes);
    case GgufKind::i32:
      return load<int32_t, To>(bytes);
    case GgufKind::u64:
      return load<uint64_t, To>(bytes);
    case GgufKind::i64:
      return load<int64_t, To>(bytes);
    case GgufKind::f32:
      return load<float, To>(bytes);
    case GgufKind::f64:
      return load<double, To>(bytes);
    case GgufKind::boolean:
    case GgufKind::string:
    case GgufKind::array:
      break;
  }
  return To{};
}

bool is_integer(GgufKind kind) {
  return kind_bytes(kind) != 0 && kind != GgufKind::boolean && kind != GgufKind::f32 &&
         kind != GgufKind::f64;
}

class DirectoryReader {
 public:
  explicit DirectoryReader(const File& file) : file_(file), reader_(file, 4) {}

  GgufDirectory run() {
    const auto version = reader_.number<uint32_t>("its version");
    if (version != 2 && version != 3) {
      if (version == 0x02000000 || version == 0x03000000) {
        throw fail("is big-endian GGUF; only the little-endian one can be read");
      }
      throw fail("is GGUF version " + std::to_string(version) + "; 2 and 3 can be read");
    }
    const auto n_tensors = reader_.number<uint64_t>("its number of tensors");
    const auto n_entries = reader_.number<uint64_t>("its number of metadata entries");
    if (n_tensors > kMaxTensors) {
      throw fail("claims " + std::to_string(n_tensors) + " tensors, the limit is " +
                 std::to_string(kMaxTensors));
    }
    if (n_entries > kMaxEntries) {
      throw fail("claims " + std::to_string(n_entries) + " metadata entries, the limit is " +
                 std::to_string(kMaxEntries));
    }
    std::map<std::string, GgufMetadata::Value, std::less<>> values;
    for (uint64_t i = 0; i < n_entries; ++i) {
      const std::string key = name("metadata key", i);
      const GgufMetadata::Value value = read_value("metadata " + shown(key));
      if (!values.emplace(key, value).second)
        throw fail("metadata " + shown(key) + " appears twice");
    }
    GgufDirectory directory{GgufMetadata(file_, std::move(values)), {}};
    refuse_split(directory.metadata);
    read_tensors(n_tensors, alignment(directory.metadata), &directory.tensors);
    return directory;
  }

 private:
  Error fail(const std::string& why) const { return Error(file_.name() + ": " + why); }

  std::string name(const char* what, uint64_t index) {
    const std::string number = std::string(what) + " number " + std::to_string(index);
    const uint64_t n = reader_.length(number);
    if (n == 0 || n > kMaxNameBytes) {
      throw fail(number + " has " + std::to_string(n) + " bytes; expected 1 to " +
                 std::to_string(kMaxNameBytes));
    }
    return reader_.text(n, number);
  }

  GgufKind kind(const std::string& what) {
    const auto number = reader_.number<uint32_t>(what);
    if (number >= kKinds) {
      throw fail(what + " has kind " + std::to_string(number) + ", which is unknown");
    }
    return static_cast<GgufKind>(number);
  }

  GgufMetadata::Value read_value(const std::string& what) {
    GgufMetadata::Value value = {kind(what), 0};
    if (value.kind == GgufKind::string) {
      value.count = reader_.length(what);
      value.begin = reader_.at();
      reader_.skip(value.count);
    } else if (value.kind == GgufKind::array) {
      read_array(what, &value);
    } else {
      value.begin = reader_.at();
      need(kind_bytes(value.kind), what);
      reader_.skip(kind_bytes(value.kind));
    }
    return value;
  }

  void read_array(const std::string& what, GgufMetadata::Value* value) {
    value->element = kind(what);
    value->count = reader_.number<uint64_t>(what);
    value->begin = reader_.at();
    if (value->element == GgufKind::array) throw fail(what + " is an array of arrays");
    // A string takes at least its length.
    const uint64_t least = value->element == GgufKind::string ? 8 : kind_bytes(value->element);
    if (value->count > reader_.left() / least) {
      throw fail(what + " claims " + std::to_string(value->count) + " elements, the file has " +
                 std::to_string(reader_.left()) + " more bytes");
    }
    if (value->element != GgufKind::string) return reader_.skip(value->count * least);
    for (uint64_t i = 0; i < value->count; ++i) reader_.skip(reader_.length(what));
  }

  void need(uint64_t bytes, const std::string& what) const {
    if (bytes > reader_.left()) throw fail("ends inside " + what);
  }

  void refuse_split(const GgufMetadata& metadata) const {
    const uint64_t parts = metadata.count("split.count").value_or(0);
    if (parts > 1) {
      throw fail("is one of " + std::to_string(parts) +
                 " parts of a model; make one file of them with llama-gguf-split --merge");
    }
  }

  uint64_t alignment(const GgufMetadata& metadata) const {
    const uint64_t value = metadata.count("general.alignment").value_or(kDefaultAlignment);
    if (!std::has_single_bit(value) || value > kMaxAlignment) {
      throw fail("general.alignment is " + std::to_string(value) +
                 "; expected a power of two, at most " + std::to_string(kMaxAlignment));
    }
    return value;
  }

  void read_tensors(uint64_t n, uint64_t alignment, std::vector<TensorInfo>* tensors) {
    std::set<std::string> names;
    std::vector<uint64_t> bytes;  // 0 where the type cannot be read
    for (uint64_t i = 0; i < n; ++i) {
      tensors->push_back(read_tensor(i, alignment, &bytes));
      if (!names.insert(tensors->back().name).second) {
        throw fail("tensor " + shown(tensors->back().name) + " appears twice");
      }
    }
    // Only where there is data must there be padding before it.
    const uint64_t data = (reader_.at() + alignment - 1) / alignment * alignment;
    const uint64_t data_bytes = data < file_.size() ? file_.size() - data : 0;
    struct Range {
      uint64_t begin, end;
      const TensorInfo* tensor;
    };
    std::vector<Range> ranges;
    for (size_t i = 0; i < tensors->size(); ++i) {
      TensorInfo& tensor = (*tensors)[i];
      if (tensor.begin > data_bytes || bytes[i] > data_bytes - tensor.begin) {
        throw fail("tensor " + shown(tensor.name) + " has " + std::to_string(bytes[i]) +
                   " bytes at offset " + std::to_string(tensor.begin) + ", the file holds " +
                   std::to_string(data_bytes) + " bytes of data");
      }
      if (bytes[i] > 0) ranges.push_back({tensor.begin, tensor.begin + bytes[i], &tensor});
      tensor.begin += data;
    }
    std::sort(ranges.begin(), ranges.end(),
              [](const Range& a, const Range& b) { return a.begin < b.begin; });
    for (size_t i = 1; i < ranges.size(); ++i) {
      if (ranges[i].begin < ranges[i - 1].end) {
        throw fail("tensors " + shown(ranges[i - 1].tensor->name) + " and " +
                   shown(ranges[i].tensor->name) + " overlap");
      }
    }
  }

  // One entry of the list; `begin` is still its offset in the data.
  TensorInfo read_tensor(uint64_t index, uint64_t alignment, std::vector<uint64_t>* bytes) {
    TensorInfo tensor;
    tensor.name = name("the name of tensor", index);
    tensor.file = file_.name();
    const std::string what = "tensor " + shown(tensor.name);
    const auto n_dimensions = reader_.number<uint32_t>(what);
    if (n_dimensions > kMaxDimensions) {
      throw fail(what + " has " + std::to_string(n_dimensions) + " dimensions, the limit is " +
                 std::to_string(kMaxDimensions));
    }
    for (uint32_t d = 0; d < n_dimensions; ++d) {
      const auto size = reader_.number<uint64_t>(what);
      if (size > INT64_MAX) {
        throw fail(what + " has a dimension of " + std::to_string(size) + ", which is too large");
      }
      tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(size));
    }
    const int64_t elements = count_elements(tensor.shape);
    if (elements < 0)
      throw fail(what + ": its shape " + shape_text(tensor.shape) + " is too large");
    tensor.strides = contiguous_strides(tensor.shape);
    const auto number = reader_.number<uint32_t>(what);
    const GgufTensorType* const type = gguf_tensor_type(number);
    if (type == nullptr) {
      throw fail(what + " has type " + std::to_string(number) + ", which is unknown");
    }
    tensor.dtype_name = type->name;
    tensor.readable_as_float = type->dtype.has_value();
    bytes->push_back(0);
    if (type->dtype) {
      tensor.dtype = *type->dtype;
      const BlockLayout layout = block_layout(tensor.dtype);
      const int64_t width = tensor.shape.empty() ? 1 : tensor.shape.back();
      if (width % layout.elements != 0) {
        throw fail(what + " of shape " + shape_text(tensor.shape) +
                   ": its rows are no multiple of the " + std::to_string(layout.elements) +
                   " elements of a block of " + tensor.dtype_name);
      }
      bytes->back() = static_cast<uint64_t>(elements) / layout.elements * layout.bytes;
    }
    tensor.begin = reader_.number<uint64_t>(what);
    if (tensor.begin % alignment != 0) {
      throw fail(what + ": its offset " + std::to_string(tensor.begin) + " is no multiple of " +
                 std::to_string(alignment));
    }
    return tensor;
  }

  const File& file_;
  Reader reader_;
};

}  // namespace

const GgufTensorType* gguf_tensor_type(uint32_t number) {
  const auto* found = std::find_if(std::begin(kTensorTypes), std::end(kTensorTypes),
                                   [&](const GgufTensorType& t) { return t.number == number; });
  return found == std::end(kTensorTypes) ? nullptr : found;
}

const GgufTensorType* gguf_tensor_type(DType dtype) {
  const auto* found = std::find_if(std::begin(kTensorTypes), std::end(kTensorTypes),
                                   [&](const GgufTensorType& t) { return t.dtype == dtype; });
  return found == std::end(kTensorTypes) ? nullptr : found;
}

const GgufMetadata::Value* GgufMetadata::find(std::string_view key) const {
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &found->second;
}

namespace {

Error wrong_kind(const File& file, std::string_view key, const GgufMetadata::Value& value,
                 std::string_view wanted) {
  std::string kind = kind_name(value.kind);
  if (value.kind == GgufKind::array) kind += std::string(" of ") + kind_name(value.element);
  return Error(file.name() + ": metadata " + shown(key) + " is of kind " + kind + ", expected " +
               std::string(wanted));
}

// The bytes of a number.
struct NumberBytes {
  char bytes[8];
};

NumberBytes read_number(const File& file, const GgufMetadata::Value& value) {
  NumberBytes number = {};
  file.read_at(value.begin, number.bytes, kind_bytes(value.kind));
  return number;
}

}  // namespace

std::optional<uint64_t> GgufMetadata::count(std::string_view key) const {
  const Value* const value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!is_integer(value->kind)) throw wrong_kind(*file_, key, *value, "an integer");
  const NumberBytes number = read_number(*file_, *value);
  if (value->kind == GgufKind::u64) return convert_number<uint64_t>(value->kind, number.bytes);
  const auto signed_value = convert_number<int64_t>(value->kind, number.bytes);
  if (signed_value < 0) {
    throw Error(file_->name() + ": metadata " + shown(key) + " is " + std::to_string(signed_value) +
                ", expected a count");
  }
  return static_cast<uint64_t>(signed_value);
}

std::optional<double> GgufMetadata::number(std::string_view key) const {
  const Value* const value = find(key);
  if (value == nullptr) return std::nullopt;
  if (kind_bytes(value->kind) == 0 || value->kind == GgufKind::boolean) {
    throw wrong_kind(*file_, key, *value, "a number");
  }
  return convert_number<double>(value->kind, read_number(*file_, *value).bytes);
}

std::optional<bool> GgufMetadata::flag(std::string_view key) const {
  const Value* const value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->kind != GgufKind::boolean) throw wrong_kind(*file_, key, *value, "bool");
  return read_number(*file_, *value).bytes[0] != 0;
}

std::optional<std::string> GgufMetadata::text(std::string_view key) const {
  const Value* const value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->kind != GgufKind::string) throw wrong_kind(*file_, key, *value, "a string");
  if (value->count > kMaxTextBytes) {
    throw Error(file_->name() + ": metadata " + shown(key) + " has " +
                std::to_string(value->count) + " bytes, the limit is " +
                std::to_string(kMaxTextBytes));
  }
  return file_->read_string(value->begin, value->count);
}

const GgufMetadata::Value* GgufMetadata::find_array(std::string_view key,
                                                    std::string_view wanted) const {
  const Value* const value = find(key);
  if (value == nullptr) return nullptr;
  if (value->kind != GgufKind::array) throw wrong_kind(*file_, key, *value, wanted);
  if (value->count > kMaxElements) {
    throw Error(file_->name() + ": metadata " + shown(key) + " has " +
                std::to_string(value->count) + " elements, the limit is " +
                std::to_string(kMaxElements));
  }
  return value;
}

std::vector<std::string> GgufMetadata::texts(std::string_view key) const {
  const Value* const value = find_array(key, "an array of strings");
  if (value == nullptr) return {};
  if (value->element != GgufKind::string)
    throw wrong_kind(*file_, key, *value, "an array of strings");
  const std::string what = "metadata " + shown(key);
  Reader reader(*file_, value->begin);
  std::vector<std::string> out;
  for (uint64_t i = 0; i < value->count; ++i) {
    const uint64_t n = reader.length(what);
    if (n > kMaxTextBytes)
      throw Error(file_->name() + ": " + what + " holds a string that is too long");
    out.push_back(reader.text(n, what));
  }
  return out;
}

std::vector<int64_t> GgufMetadata::integers(std::string_view key) const {
  const Value* const value = find_array(key, "an array of integers");
  if (value == nullptr) return {};
  if (!is_integer(value->element)) throw wrong_kind(*file_, key, *value, "an array of integers");
  const uint64_t width = kind_bytes(value->element);
  const std::string bytes = file_->read_string(value->begin, value->count * width);
  std::vector<int64_t> out;
  for (uint64_t i = 0; i < value->count; ++i) {
    out.push_back(convert_number<int64_t>(value->element, bytes.data() + i * width));
  }
  return out;
}

std::vector<float> GgufMetadata::floats(std::string_view key) const {
  const Value* const value = find_array(key, "an array of f32");
  if (value == nullptr) return {};
  if (value->element != GgufKind::f32) throw wrong_kind(*file_, key, *value, "an array of f32");
  std::vector<float> out(value->count);
  file_->read_at(value->begin, out.data(), out.size() * sizeof(float));
  return out;
}

bool looks_like_gguf(const File& file) {
  return file.size() >= 4 && file.read_string(0, 4) == "GGUF";
}

GgufDirectory read_gguf(const File& file) { return DirectoryReader(file).run(); }

}  // namespace mamba_edge::convert
