// The names that a pickle of tensors may ask for. Everything else is refused: see pickle.h.
#pragma once

#include <string_view>

#include "convert/tensor.h"

namespace mamba_edge::convert {

// `global` is "module.name". Whether it is a storage class, a dtype or one of the functions that
// pickle.h lists.
bool is_known_global(std::string_view global);

// What a storage class ("torch.HalfStorage") holds; null where it is none.
const ElementType* find_storage_type(std::string_view global);

// What a dtype ("torch.bfloat16") that stands beside an untyped storage means; null where it is
// none.
const ElementType* find_dtype(std::string_view global);

}  // namespace mamba_edge::convert
