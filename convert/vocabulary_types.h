// The types of embedding and head, which in a tied model are one matrix and so have one type.
#pragma once

#include <optional>
#include <string>

#include "convert/error.h"

namespace mamba_edge::convert {

// `asked_...`: what the user wants; `otherwise`: the type where nothing was asked for. Throws Error
// where two types are asked for one matrix; `name(type)` is what messages call a type.
template <typename Type, typename Name>
void choose_vocabulary_types(const std::string& input, bool tied,
                             const std::optional<Type>& asked_embedding,
                             const std::optional<Type>& asked_head, Type otherwise, Name&& name,
                             Type* embedding, Type* head) {
  *embedding = asked_embedding.value_or(otherwise);
  *head = asked_head.value_or(otherwise);
  if (!tied) return;
  if (asked_embedding && asked_head && *asked_embedding != *asked_head) {
    throw Error(input + ": embedding and head are one tied matrix; --embedding-type " +
                name(*asked_embedding) + " and --head-type " + name(*asked_head) +
                " cannot both hold");
  }
  if (asked_head) *embedding = *head;
}

}  // namespace mamba_edge::convert
