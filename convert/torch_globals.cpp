#include "convert/torch_globals.h"

#include <algorithm>
#include <iterator>

namespace mamba_edge::convert {
namespace {

struct NamedType {
  std::string_view global;
  ElementType type;
};

constexpr NamedType kStorageTypes[] = {
    {"torch.FloatStorage", {"float32", 32, true, DType::f32}},
    {"torch.HalfStorage", {"float16", 16, true, DType::f16}},
    {"torch.BFloat16Storage", {"bfloat16", 16, true, DType::bf16}},
    {"torch.DoubleStorage", {"float64", 64, true, DType::f64}},
    {"torch.LongStorage", {"int64", 64}},
    {"torch.IntStorage", {"int32", 32}},
    {"torch.ShortStorage", {"int16", 16}},
    {"torch.CharStorage", {"int8", 8}},
    {"torch.ByteStorage", {"uint8", 8}},
    {"torch.BoolStorage", {"bool", 8}},
    {"torch.ComplexFloatStorage", {"complex64", 64}},
    {"torch.ComplexDoubleStorage", {"complex128", 128}},
    {"torch.UntypedStorage", {"bytes", 8}},
    {"torch.storage.UntypedStorage", {"bytes", 8}},
    {"torch.storage._UntypedStorage", {"bytes", 8}},
};

// What _rebuild_tensor_v3 names beside an untyped storage.
constexpr NamedType kDtypes[] = {
    {"torch.float32", {"float32", 32, true, DType::f32}},
    {"torch.float16", {"float16", 16, true, DType::f16}},
    {"torch.bfloat16", {"bfloat16", 16, true, DType::bf16}},
    {"torch.float64", {"float64", 64, true, DType::f64}},
    {"torch.uint16", {"uint16", 16}},
    {"torch.uint32", {"uint32", 32}},
    {"torch.uint64", {"uint64", 64}},
    {"torch.float8_e4m3fn", {"float8_e4m3fn", 8}},
    {"torch.float8_e5m2", {"float8_e5m2", 8}},
    {"torch.float8_e4m3fnuz", {"float8_e4m3fnuz", 8}},
    {"torch.float8_e5m2fnuz", {"float8_e5m2fnuz", 8}},
    {"torch.float8_e8m0fnu", {"float8_e8m0fnu", 8}},
};

constexpr std::string_view kCallables[] = {
    "collections.OrderedDict",         "torch.Size",
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_tensor",    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
};

template <size_t N>
const ElementType* find_type(const NamedType (&types)[N], std::string_view global) {
  for (const NamedType& type : types) {
    if (type.global == global) return &type.type;
  }
  return nullptr;
}

}  // namespace

const ElementType* find_storage_type(std::string_view global) {
  return find_type(kStorageTypes, global);
}

const ElementType* find_dtype(std::string_view global) { return find_type(kDtypes, global); }

bool is_known_global(std::string_view global) {
  return find_storage_type(global) != nullptr || find_dtype(global) != nullptr ||
         std::find(std::begin(kCallables), std::end(kCallables), global) != std::end(kCallables);
}

}  // namespace mamba_edge::convert
