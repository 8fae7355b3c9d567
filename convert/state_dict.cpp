#include "convert/state_dict.h"

#include <map>
#include <string>
#include <utility>

#include "convert/error.h"

namespace mamba_edge::convert {
namespace {

using Kind = PickleValue::Kind;

// `dict` itself where it is a dict with a tensor in it, otherwise null.
const PickleValue* tensor_dict(const Pickle& pickle, const PickleValue* dict) {
  if (dict == nullptr || dict->kind != Kind::dict) return nullptr;
  for (size_t i = 1; i < dict->items.size(); i += 2) {
    if (pickle.at(dict->items[i]).kind == Kind::tensor) return dict;
  }
  return nullptr;
}

}  // namespace

StateDict find_state_dict(const File& file, const Pickle& pickle) {
  const PickleValue& root = pickle.at(pickle.root);
  if (root.kind != Kind::dict) {
    throw Error(file.name() + ": holds something that is not a dict of tensors");
  }
  const PickleValue* dict = tensor_dict(pickle, &root);
  for (const char* key : {"state_dict", "model_state_dict", "model"}) {
    if (dict == nullptr) dict = tensor_dict(pickle, find_key(pickle, root, key));
  }
  if (dict == nullptr) {
    throw Error(file.name() +
                ": has no tensors at top level, nor under state_dict, model_state_dict or model");
  }
  std::map<std::string, const PickleTensor*> named;
  for (size_t i = 0; i < dict->items.size(); i += 2) {
    const PickleValue& key = pickle.at(dict->items[i]);
    const PickleValue& entry = pickle.at(dict->items[i + 1]);
    if (entry.kind != Kind::tensor) continue;
    if (key.kind != Kind::text) throw Error(file.name() + ": has a tensor whose name is not text");
    named[key.text] = &pickle.tensors[static_cast<size_t>(entry.integer)];
  }
  StateDict state;
  for (const auto& [name, tensor] : named) {
    TensorInfo info;
    info.name = name;
    info.dtype_name = std::string(tensor->type.name);
    info.dtype = tensor->type.dtype;
    info.readable_as_float = tensor->type.readable;
    info.shape = tensor->shape;
    info.strides = tensor->strides;
    info.file = file.name();
    info.begin = tensor->begin;
    state.tensors.push_back(std::move(info));
    state.storages.push_back(tensor->storage);
  }
  return state;
}

}  // namespace mamba_edge::convert
