#include "convert/pickle.h"

#include <algorithm>
#include <array>
#include <bit>
#include <unordered_map>

#include "convert/error.h"
#include "convert/torch_globals.h"

namespace mamba_edge::convert {
namespace {

using Kind = PickleValue::Kind;

constexpr uint64_t kMaxPickleBytes = uint64_t{64} << 20;
constexpr size_t kMaxValues = size_t{1} << 20;
constexpr size_t kMaxMarks = size_t{1} << 20;
constexpr size_t kMaxTensors = size_t{64} << 10;
constexpr size_t kMaxArguments = 16;
constexpr size_t kMaxKeyBytes = 256;
constexpr size_t kMaxCopiedItems = size_t{2} << 20;
constexpr size_t kMaxDimensions = 64;  // torch's own limit
constexpr size_t kMaxShownBytes = 120;
constexpr int kNewestProtocol = 5;

// `text` from a file, cut and made safe to print.
std::string shown(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, kMaxShownBytes)) {
    out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  }
  return text.size() > kMaxShownBytes ? out + "..." : out;
}

// Bytes of a file region, through a small buffer.
class Input {
 public:
  Input(const File& file, uint64_t begin, uint64_t end)
      : file_(file), at_(begin), end_(std::min(end, file.size())) {
    end_ = std::max(std::min(end_, at_ + kMaxPickleBytes), at_);
    cut_ = end_ < std::min(end, file.size());
  }

  uint64_t position() const { return at_ - (filled_ - used_); }

  uint8_t byte() {
    if (used_ == filled_) fill();
    return static_cast<uint8_t>(buffer_[used_++]);
  }

  // An unsigned little-endian number of `bytes` bytes, at most 8.
  uint64_t number(int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; ++i) value |= uint64_t{byte()} << (8 * i);
    return value;
  }

  std::string text(uint64_t length) {
    const uint64_t left = end_ - position();
    if (length > left) throw too_short();
    std::string out(length, '\0');
    for (size_t done = 0; done < out.size();) {
      if (used_ == filled_) fill();
      const size_t now = std::min(out.size() - done, filled_ - used_);
      std::copy_n(buffer_.data() + used_, now, out.data() + done);
      used_ += now;
      done += now;
    }
    return out;
  }

  // Up to a line feed, which is dropped.
  std::string line() {
    std::string out;
    for (;;) {
      const char c = static_cast<char>(byte());
      if (c == '\n') return out;
      out += c;
    }
  }

 private:
  Error too_short() const {
    if (cut_) {
      return Error(file_.name() + ": its pickle is larger than " +
                   std::to_string(kMaxPickleBytes >> 20) + " MiB");
    }
    return Error(file_.name() + ": its pickle is cut off at byte " + std::to_string(end_));
  }

  void fill() {
    if (at_ == end_) throw too_short();
    filled_ = static_cast<size_t>(std::min<uint64_t>(buffer_.size(), end_ - at_));
    used_ = 0;
    file_.read_at(at_, buffer_.data(), filled_);
    at_ += filled_;
  }

  const File& file_;
  uint64_t at_;  // of the byte behind the buffer
  uint64_t end_;
  bool cut_ = false;  // end_ is the size limit, not the end of the region
  std::array<char, 8192> buffer_;
  size_t used_ = 0;
  size_t filled_ = 0;
};

class Interpreter {
 public:
  Interpreter(const File& file, uint64_t begin, uint64_t end)
      : file_(file), input_(file, begin, end) {}

  Pickle run() {
    while (step()) {
    }
    pickle_.end = input_.position();
    return std::move(pickle_);
  }

 private:
  using Values = std::vector<ValueId>;

  Error fail(const std::string& why) const {
    return Error(file_.name() + ": its pickle " + why + " (before byte " +
                 std::to_string(input_.position()) + ")");
  }

  PickleValue& value(ValueId id) { return pickle_.values[id]; }

  ValueId add(PickleValue value) {
    if (pickle_.values.size() >= kMaxValues) throw fail("builds too many values");
    pickle_.values.push_back(std::move(value));
    return static_cast<ValueId>(pickle_.values.size() - 1);
  }

  void push(ValueId id) { stack_.push_back(id); }

  void push_new(Kind kind, Values items = {}) {
    PickleValue made;
    made.kind = kind;
    made.items = std::move(items);
    push(add(std::move(made)));
  }

  void push_integer(Kind kind, int64_t integer) {
    PickleValue made;
    made.kind = kind;
    made.integer = integer;
    push(add(std::move(made)));
  }

  void push_text(std::string text, Kind kind = Kind::text) {
    PickleValue made;
    made.kind = kind;
    made.text = std::move(text);
    push(add(std::move(made)));
  }

  // Opcodes may take only what was pushed behind the last mark.
  size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }

  void need(size_t count) const {
    if (stack_.size() - floor() < count) throw fail("takes a value from an empty stack");
  }

  ValueId pop() {
    need(1);
    const ValueId id = stack_.back();
    stack_.pop_back();
    return id;
  }

  ValueId top() const {
    need(1);
    return stack_.back();
  }

  Values pop_last(size_t count) {
    need(count);
    const auto first = stack_.end() - static_cast<ptrdiff_t>(count);
    Values out(first, stack_.end());
    stack_.erase(first, stack_.end());
    return out;
  }

  Values pop_to_mark() {
    if (marks_.empty()) throw fail("looks for a mark that it never set");
    Values out = pop_last(stack_.size() - marks_.back());
    marks_.pop_back();
    return out;
  }

  void mark() {
    if (marks_.size() >= kMaxMarks) throw fail("is nested too deeply");
    marks_.push_back(stack_.size());
  }

  void remember(uint64_t key) { memo_[key] = top(); }

  void recall(uint64_t key) {
    const auto found = memo_.find(key);
    if (found == memo_.end())
      throw fail("recalls memo " + std::to_string(key) + ", which is not set");
    push(found->second);
  }

  bool step();
  void global(const std::string& module, const std::string& name);
  void stack_global();
  void set_items(const Values& items);
  void append(const Values& items);
  void persistent();
  void reduce();
  void build();
  void ordered_dict(const Values& arguments);
  void rebuild_tensor(std::string_view callable, const Values& arguments);
  void parameter(std::string_view callable, const Values& arguments);
  static bool inside(const PickleTensor& tensor, int64_t offset, int64_t storage_bytes);
  void long_integer(uint64_t length);

  int64_t integer(ValueId id, const char* what) {
    if (value(id).kind != Kind::integer || value(id).integer < 0) {
      throw fail(std::string("has ") + what + " that is not a count");
    }
    return value(id).integer;
  }

  std::vector<int64_t> sizes(ValueId id, const char* what) {
    const PickleValue& list = value(id);
    if (list.kind != Kind::tuple && list.kind != Kind::list) {
      throw fail(std::string("has ") + what + " that is not a tuple");
    }
    if (list.items.size() > kMaxDimensions) {
      throw fail("describes a tensor of " + std::to_string(list.items.size()) + " dimensions");
    }
    std::vector<int64_t> out;
    for (const ValueId item : list.items) out.push_back(integer(item, what));
    return out;
  }

  const File& file_;
  Input input_;
  Pickle pickle_;
  Values stack_;
  std::vector<size_t> marks_;  // stack sizes
  std::unordered_map<uint64_t, ValueId> memo_;
  size_t copied_items_ = 0;
};

// Runs one opcode; false after the last one.
bool Interpreter::step() {
  const uint8_t opcode = input_.byte();
  switch (opcode) {
    case 0x80: {  // PROTO
      const uint8_t protocol = input_.byte();
      if (protocol > kNewestProtocol) throw fail("uses protocol " + std::to_string(protocol));
      break;
    }
    case 0x95:  // FRAME: its length is only a hint for buffering
      input_.number(8);
      break;
    case '.':  // STOP
      pickle_.root = pop();
      return false;
    case '(':  // MARK
      mark();
      break;
    case 'N':  // NONE
      push_new(Kind::none);
      break;
    case 0x88:  // NEWTRUE
      push_integer(Kind::boolean, 1);
      break;
    case 0x89:  // NEWFALSE
      push_integer(Kind::boolean, 0);
      break;
    case 'K':  // BININT1
      push_integer(Kind::integer, static_cast<int64_t>(input_.number(1)));
      break;
    case 'M':  // BININT2
      push_integer(Kind::integer, static_cast<int64_t>(input_.number(2)));
      break;
    case 'J':  // BININT
      push_integer(Kind::integer, static_cast<int32_t>(static_cast<uint32_t>(input_.number(4))));
      break;
    case 0x8a:  // LONG1
      long_integer(input_.number(1));
      break;
    case 'G': {  // BINFLOAT, big-endian
      uint64_t bits = 0;
      for (int i = 0; i < 8; ++i) bits = bits << 8 | input_.byte();
      PickleValue made;
      made.kind = Kind::real;
      made.real = std::bit_cast<double>(bits);
      push(add(std::move(made)));
      break;
    }
    case 0x8c:  // SHORT_BINUNICODE
    case 'U':   // SHORT_BINSTRING
    case 'C':   // SHORT_BINBYTES
      push_text(input_.text(input_.number(1)));
      break;
    case 'X':  // BINUNICODE
    case 'T':  // BINSTRING
    case 'B':  // BINBYTES
      push_text(input_.text(input_.number(4)));
      break;
    case 0x8d:  // BINUNICODE8
    case 0x8e:  // BINBYTES8
      push_text(input_.text(input_.number(8)));
      break;
    case ')':  // EMPTY_TUPLE
      push_new(Kind::tuple);
      break;
    case ']':  // EMPTY_LIST
      push_new(Kind::list);
      break;
    case '}':  // EMPTY_DICT
      push_new(Kind::dict);
      break;
    case 't':  // TUPLE
      push_new(Kind::tuple, pop_to_mark());
      break;
    case 'l':  // LIST
      push_new(Kind::list, pop_to_mark());
      break;
    case 'd': {  // DICT
      const Values items = pop_to_mark();
      push_new(Kind::dict);
      set_items(items);
      break;
    }
    case 0x85:  // TUPLE1
    case 0x86:  // TUPLE2
    case 0x87:  // TUPLE3
      push_new(Kind::tuple, pop_last(opcode - size_t{0x84}));
      break;
    case 'a':  // APPEND
      append(pop_last(1));
      break;
    case 'e':  // APPENDS
      append(pop_to_mark());
      break;
    case 's':  // SETITEM
      set_items(pop_last(2));
      break;
    case 'u':  // SETITEMS
      set_items(pop_to_mark());
      break;
    case 'q':  // BINPUT
      remember(input_.number(1));
      break;
    case 'r':  // LONG_BINPUT
      remember(input_.number(4));
      break;
    case 0x94:  // MEMOIZE
      remember(memo_.size());
      break;
    case 'h':  // BINGET
      recall(input_.number(1));
      break;
    case 'j':  // LONG_BINGET
      recall(input_.number(4));
      break;
    case 'c': {  // GLOBAL
      const std::string module = input_.line();
      global(module, input_.line());
      break;
    }
    case 0x93:  // STACK_GLOBAL
      stack_global();
      break;
    case 'Q':  // BINPERSID
      persistent();
      break;
    case 'R':  // REDUCE
      reduce();
      break;
    case 'b':  // BUILD
      build();
      break;
    default: {
      constexpr char kHex[] = "0123456789abcdef";
      throw fail(std::string("uses opcode 0x") + kHex[opcode >> 4] + kHex[opcode & 15] +
                 ", which a checkpoint of tensors does not need");
    }
  }
  return true;
}

void Interpreter::long_integer(uint64_t length) {
  std::string bytes = input_.text(length);
  if (bytes.size() > 8) return push_text(std::move(bytes), Kind::big_integer);
  const bool negative = !bytes.empty() && (static_cast<uint8_t>(bytes.back()) & 0x80) != 0;
  uint64_t bits = negative ? ~uint64_t{0} : 0;
  for (size_t i = bytes.size(); i-- > 0;) bits = bits << 8 | static_cast<uint8_t>(bytes[i]);
  push_integer(Kind::integer, static_cast<int64_t>(bits));
}

void Interpreter::global(const std::string& module, const std::string& name) {
  std::string full = module + "." + name;
  if (!is_known_global(full)) {
    throw fail("asks for " + shown(full) +
               ", which a checkpoint of tensors does not need; it was not run");
  }
  push_text(std::move(full), Kind::global);
}

void Interpreter::stack_global() {
  const Values names = pop_last(2);
  if (value(names[0]).kind != Kind::text || value(names[1]).kind != Kind::text) {
    throw fail("asks for a global whose name is not text");
  }
  global(value(names[0]).text, value(names[1]).text);
}

void Interpreter::set_items(const Values& items) {
  PickleValue& dict = value(top());
  if (dict.kind != Kind::dict) throw fail("sets an item of something that is not a dict");
  if (items.size() % 2 != 0) throw fail("sets a key without a value");
  dict.items.insert(dict.items.end(), items.begin(), items.end());
}

void Interpreter::append(const Values& items) {
  PickleValue& list = value(top());
  if (list.kind != Kind::list) throw fail("appends to something that is not a list");
  list.items.insert(list.items.end(), items.begin(), items.end());
}

void Interpreter::persistent() {
  const ValueId id = pop();
  if (value(id).kind != Kind::tuple || value(id).items.size() > kMaxArguments) {
    throw fail("has a persistent id that is not a storage");
  }
  const Values parts = value(id).items;
  if (parts.empty() || value(parts[0]).kind != Kind::text) {
    throw fail("has a persistent id that is not a storage");
  }
  if (value(parts[0]).text != "storage") {
    throw fail("has a persistent " + shown(value(parts[0]).text) +
               "; only tensors can be read, save model.state_dict() instead of the model");
  }
  if (parts.size() < 5 || value(parts[1]).kind != Kind::global ||
      value(parts[2]).kind != Kind::text || value(parts[2]).text.size() > kMaxKeyBytes) {
    throw fail("has a storage without type, key, location and size");
  }
  const ElementType* type = find_storage_type(value(parts[1]).text);
  if (type == nullptr) throw fail("has a storage of type " + shown(value(parts[1]).text));
  PickleStorage storage;
  storage.type = *type;
  storage.key = value(parts[2]).text;
  storage.numel = integer(parts[4], "a storage size");
  if (count_elements({storage.numel}) < 0) throw fail("has a storage of an impossible size");
  storage.view_numel = storage.numel;
  if (parts.size() > 5 && value(parts[5]).kind != Kind::none) {
    if (value(parts[5]).kind != Kind::tuple || value(parts[5]).items.size() != 3) {
      throw fail("has a storage view that is not (key, offset, size)");
    }
    const Values view = value(parts[5]).items;
    storage.view_begin = integer(view[1], "a storage view's offset");
    storage.view_numel = integer(view[2], "a storage view's size");
    if (storage.view_begin > storage.numel ||
        storage.view_numel > storage.numel - storage.view_begin) {
      throw fail("has a storage view outside its storage");
    }
  }
  if (pickle_.storages.size() >= kMaxTensors) throw fail("has too many storages");
  pickle_.storages.push_back(std::move(storage));
  push_integer(Kind::storage, static_cast<int64_t>(pickle_.storages.size() - 1));
}

void Interpreter::reduce() {
  const Values call = pop_last(2);
  if (value(call[0]).kind != Kind::global || value(call[1]).kind != Kind::tuple) {
    throw fail("calls something that is not a known function");
  }
  const std::string callable = value(call[0]).text;
  if (value(call[1]).items.size() > kMaxArguments) throw fail("calls " + callable + " wrongly");
  const Values arguments = value(call[1]).items;
  if (callable == "collections.OrderedDict") return ordered_dict(arguments);
  if (callable == "torch.Size") {
    if (arguments.size() != 1) throw fail("makes a torch.Size without sizes");
    sizes(arguments[0], "a torch.Size");
    return push_new(Kind::tuple, value(arguments[0]).items);
  }
  if (callable.starts_with("torch._utils._rebuild_tensor")) {
    return rebuild_tensor(callable, arguments);
  }
  if (callable.starts_with("torch._utils._rebuild_parameter")) {
    return parameter(callable, arguments);
  }
  throw fail("calls " + callable);
}

// OrderedDict() or, as Python 2 wrote it, OrderedDict([[key, value], ...]).
void Interpreter::ordered_dict(const Values& arguments) {
  Values items;
  if (!arguments.empty()) {
    if (arguments.size() != 1 || value(arguments[0]).kind != Kind::list) {
      throw fail("makes an OrderedDict from something that is not a list");
    }
    copied_items_ += value(arguments[0]).items.size();  // one list can be used many times
    if (copied_items_ > kMaxCopiedItems) throw fail("copies too many items");
    for (const ValueId pair : value(arguments[0]).items) {
      const PickleValue& entry = value(pair);
      if ((entry.kind != Kind::list && entry.kind != Kind::tuple) || entry.items.size() != 2) {
        throw fail("makes an OrderedDict from something that is not a list of pairs");
      }
      items.insert(items.end(), entry.items.begin(), entry.items.end());
    }
  }
  push_new(Kind::dict, std::move(items));
}

// (storage, offset, size, stride [, requires_grad, hooks [, metadata]]); version 3 has a dtype
// behind the hooks.
void Interpreter::rebuild_tensor(std::string_view callable, const Values& arguments) {
  const bool v3 = callable.ends_with("_v3");
  if (arguments.size() < (v3 ? 7U : 4U) || value(arguments[0]).kind != Kind::storage) {
    throw fail("calls " + std::string(callable) + " without a storage and a shape");
  }
  PickleTensor tensor;
  tensor.storage = static_cast<uint32_t>(value(arguments[0]).integer);
  const PickleStorage& storage = pickle_.storages[tensor.storage];
  tensor.type = storage.type;
  if (v3) {
    const ElementType* type = find_dtype(value(arguments[6]).text);
    if (value(arguments[6]).kind != Kind::global || type == nullptr) {
      throw fail("calls " + std::string(callable) + " without a known dtype");
    }
    tensor.type = *type;
  }
  tensor.shape = sizes(arguments[2], "a size");
  tensor.strides = sizes(arguments[3], "a stride");
  const int64_t offset = integer(arguments[1], "a storage offset");
  const int64_t storage_bytes = storage.view_numel * (storage.type.bits / 8);
  if (!inside(tensor, offset, storage_bytes)) {
    throw fail("has a tensor of shape " + shape_text(tensor.shape) + ", strides " +
               shape_text(tensor.strides) + " and offset " + std::to_string(offset) +
               " that leaves its storage of " + std::to_string(storage_bytes) + " bytes");
  }
  // An empty tensor may claim any offset; it is never read.
  const int64_t first = count_elements(tensor.shape) == 0 ? 0 : offset;
  tensor.begin = static_cast<uint64_t>(storage.view_begin) * (storage.type.bits / 8) +
                 static_cast<uint64_t>(first) * (tensor.type.bits / 8);
  if (pickle_.tensors.size() >= kMaxTensors) throw fail("has too many tensors");
  pickle_.tensors.push_back(std::move(tensor));
  push_integer(Kind::tensor, static_cast<int64_t>(pickle_.tensors.size() - 1));
}

// Whether every element of `tensor`, counted from element `offset`, lies in `storage_bytes` bytes.
bool Interpreter::inside(const PickleTensor& tensor, int64_t offset, int64_t storage_bytes) {
  if (tensor.shape.size() != tensor.strides.size()) return false;
  const int64_t elements = count_elements(tensor.shape);
  if (elements <= 0) return elements == 0;
  int64_t last = offset;
  for (size_t d = 0; d < tensor.shape.size(); ++d) {
    int64_t reach = 0;
    if (__builtin_mul_overflow(tensor.shape[d] - 1, tensor.strides[d], &reach) ||
        __builtin_add_overflow(last, reach, &last)) {
      return false;
    }
  }
  return last < storage_bytes / (tensor.type.bits / 8);
}

// (data, requires_grad, hooks [, state])
void Interpreter::parameter(std::string_view callable, const Values& arguments) {
  if (arguments.empty() || value(arguments[0]).kind != Kind::tensor) {
    throw fail("calls " + std::string(callable) + " without a tensor");
  }
  push(arguments[0]);
}

// The only objects with a state are OrderedDicts with attributes (a state dict's _metadata), which
// no tensor needs.
void Interpreter::build() {
  pop();
  if (value(top()).kind != Kind::dict) throw fail("sets the state of something that is not a dict");
}

}  // namespace

Pickle read_pickle(const File& file, uint64_t begin, uint64_t end) {
  return Interpreter(file, begin, end).run();
}

const PickleValue* find_key(const Pickle& pickle, const PickleValue& dict, std::string_view key) {
  for (size_t i = dict.items.size() / 2; i-- > 0;) {  // the last one set counts
    const PickleValue& name = pickle.at(dict.items[2 * i]);
    if (name.kind == Kind::text && name.text == key) return &pickle.at(dict.items[2 * i + 1]);
  }
  return nullptr;
}

}  // namespace mamba_edge::convert
