#include "convert/torch_legacy.h"

#include <string>
#include <string_view>
#include <unordered_map>

#include "convert/error.h"
#include "convert/pickle.h"
#include "convert/state_dict.h"

namespace mamba_edge::convert {
namespace {

using Kind = PickleValue::Kind;

// 0x1950a86a20f9469cfc6c, the first pickle, as little-endian two's complement.
constexpr std::string_view kMagic("\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 10);
constexpr int64_t kProtocolVersion = 1001;
constexpr uint64_t kCountBytes = 8;

struct StorageKind {
  uint64_t element_bytes = 0;
  int64_t numel = 0;
};

Error fail(const File& file, const std::string& why) { return Error(file.name() + ": " + why); }

uint64_t read_header(const File& file) {
  const Pickle magic = read_pickle(file, 0, file.size());
  if (magic.at(magic.root).kind != Kind::big_integer || magic.at(magic.root).text != kMagic) {
    throw fail(file, "begins with a pickle, but not with torch.save's magic number");
  }
  const Pickle version = read_pickle(file, magic.end, file.size());
  if (version.at(version.root).kind != Kind::integer ||
      version.at(version.root).integer != kProtocolVersion) {
    throw fail(file, "is not of torch.save's protocol version 1001");
  }
  const Pickle machine = read_pickle(file, version.end, file.size());
  const PickleValue* little = machine.at(machine.root).kind == Kind::dict
                                  ? find_key(machine, machine.at(machine.root), "little_endian")
                                  : nullptr;
  if (little == nullptr || little->kind != Kind::boolean || little->integer != 1) {
    throw fail(file, "was not written by a little-endian machine");
  }
  return machine.end;
}

// What the object says about the storages that will follow.
std::unordered_map<std::string, StorageKind> expected_storages(const File& file,
                                                               const Pickle& object) {
  std::unordered_map<std::string, StorageKind> expected;
  for (const PickleStorage& storage : object.storages) {
    const StorageKind kind = {storage.type.bits / 8, storage.numel};
    const auto [known, added] = expected.emplace(storage.key, kind);
    if (!added &&
        (known->second.element_bytes != kind.element_bytes || known->second.numel != kind.numel)) {
      throw fail(file, "storage " + storage.key + " is described in two ways");
    }
  }
  return expected;
}

// Offsets of the storages' first elements, which begin at byte `at` in the order of `keys`.
std::unordered_map<std::string, uint64_t> locate_storages(const File& file, const Pickle& keys,
                                                          const Pickle& object, uint64_t at) {
  const auto expected = expected_storages(file, object);
  const PickleValue& list = keys.at(keys.root);
  if (list.kind != Kind::list) throw fail(file, "has no list of storages");
  std::unordered_map<std::string, uint64_t> begins;
  for (const ValueId item : list.items) {
    const PickleValue& key = keys.at(item);
    if (key.kind != Kind::text) throw fail(file, "has a storage whose key is not text");
    const auto found = expected.find(key.text);
    if (found == expected.end()) throw fail(file, "has a storage that no tensor uses: " + key.text);
    uint64_t count = 0;
    file.read_at(at, &count, kCountBytes);
    at += kCountBytes;
    const auto numel = static_cast<uint64_t>(found->second.numel);
    if (count != numel) {
      throw fail(file, "storage " + key.text + " should have " + std::to_string(numel) +
                           " elements, it has " + std::to_string(count));
    }
    const uint64_t bytes = numel * found->second.element_bytes;
    if (bytes > file.size() - at) {
      throw fail(file, "is cut off: storage " + key.text + " needs " + std::to_string(bytes) +
                           " bytes, " + std::to_string(file.size() - at) + " are left");
    }
    if (!begins.emplace(key.text, at).second) {
      throw fail(file, "lists storage " + key.text + " twice");
    }
    at += bytes;
  }
  return begins;
}

}  // namespace

bool looks_like_pickle(const File& file) {
  return file.size() >= 2 && file.read_string(0, 1) == "\x80";
}

std::vector<TensorInfo> read_torch_legacy(const File& file) {
  const Pickle object = read_pickle(file, read_header(file), file.size());
  StateDict state = find_state_dict(file, object);
  const Pickle keys = read_pickle(file, object.end, file.size());
  const auto begins = locate_storages(file, keys, object, keys.end);
  for (size_t i = 0; i < state.tensors.size(); ++i) {
    const PickleStorage& storage = object.storages[state.storages[i]];
    const auto begin = begins.find(storage.key);
    if (begin == begins.end()) {
      throw fail(file, "tensor " + state.tensors[i].name + ": its storage " + storage.key +
                           " is not in the file");
    }
    state.tensors[i].begin += begin->second;
  }
  return std::move(state.tensors);
}

}  // namespace mamba_edge::convert
