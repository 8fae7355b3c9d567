// An interpreter for the pickles that torch.save writes, which builds dictionaries of tensors and
// plain values and nothing else.
//
// A pickle is a program. This one knows the opcodes that pickle protocols 2 to 5 use for plain
// values and a short list of names (collections.OrderedDict, torch._utils._rebuild_*, storage
// classes, torch.Size); anything else is refused by name, nothing is imported or called. Objects
// may contain themselves: values refer to each other by index and are never walked recursively.
// Reads no tensor data.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "convert/file.h"
#include "convert/tensor.h"

namespace mamba_edge::convert {

using ValueId = uint32_t;  // index into Pickle::values

struct PickleValue {
  enum class Kind : uint8_t {
    none,
    boolean,
    integer,
    big_integer,  // more than 64 bits; `text` has its little-endian two's complement bytes
    real,
    text,  // also bytes
    tuple,
    list,
    dict,     // items: key, value, key, value ... in the order in which they were set; a key may
              // repeat
    global,   // `text` is "module.name"
    storage,  // `integer` is an index into Pickle::storages
    tensor,   // `integer` is an index into Pickle::tensors
  };
  Kind kind = Kind::none;
  int64_t integer = 0;  // boolean, integer
  double real = 0;
  std::string text;
  std::vector<ValueId> items;  // tuple, list, dict
};

// A persistent id ('storage', type, key, location, numel [, view]).
struct PickleStorage {
  ElementType type;
  std::string key;
  int64_t numel = 0;  // elements of the whole storage
  // Old versions wrote views: the tensor sees elements [view_begin, view_begin + view_numel).
  int64_t view_begin = 0;
  int64_t view_numel = 0;
};

// Every element lies inside the storage.
struct PickleTensor {
  uint32_t storage = 0;  // index into Pickle::storages
  ElementType type;
  uint64_t begin = 0;  // byte offset in the whole storage of element [0, ..., 0]
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
};

struct Pickle {
  std::vector<PickleValue> values;
  std::vector<PickleStorage> storages;
  std::vector<PickleTensor> tensors;
  ValueId root = 0;
  uint64_t end = 0;  // offset in the file behind the last opcode

  const PickleValue& at(ValueId id) const { return values[id]; }
};

// Runs the pickle that begins at byte `begin` of the file and must stop before byte `end`. Throws
// Error when it is cut off, asks for anything that is not on the lists, or exceeds 64 MiB, a
// million values, a million marks or 65536 tensors.
Pickle read_pickle(const File& file, uint64_t begin, uint64_t end);

// The value of text key `key` in a dict, null where absent.
const PickleValue* find_key(const Pickle& pickle, const PickleValue& dict, std::string_view key);

}  // namespace mamba_edge::convert
