#include "convert/torch_zip.h"

#include <algorithm>
#include <string>
#include <unordered_map>

#include "convert/error.h"
#include "convert/pickle.h"
#include "convert/state_dict.h"

namespace mamba_edge::convert {
namespace {

constexpr uint32_t kLocalHeader = 0x04034b50;
constexpr uint32_t kCentralEntry = 0x02014b50;
constexpr uint32_t kEndRecord = 0x06054b50;
constexpr uint32_t kEnd64Record = 0x06064b50;
constexpr uint32_t kEnd64Locator = 0x07064b50;
constexpr uint64_t kLocalHeaderBytes = 30;
constexpr uint64_t kCentralEntryBytes = 46;
constexpr uint64_t kEndRecordBytes = 22;
constexpr uint64_t kEnd64RecordBytes = 56;
constexpr uint64_t kEnd64LocatorBytes = 20;
constexpr uint64_t kMaxCommentBytes = 65535;
constexpr uint64_t kMaxDirectoryBytes = uint64_t{64} << 20;
constexpr uint16_t kZip64Extra = 1;
constexpr uint32_t kIn64 = 0xffffffff;  // the value is in the ZIP64 part

// A little-endian number of `bytes` bytes at `offset`.
uint64_t number(std::string_view data, uint64_t offset, int bytes) {
  uint64_t value = 0;
  for (int i = bytes; i-- > 0;) {
    value = value << 8 | static_cast<uint8_t>(data[offset + static_cast<uint64_t>(i)]);
  }
  return value;
}

struct Record {
  std::string name;
  uint64_t header = 0;  // offset of its local header
  uint64_t size = 0;
  uint16_t flags = 0;
  uint16_t method = 0;
};

struct Directory {
  uint64_t begin = 0;  // of the central directory, so the end of all records
  std::unordered_map<std::string, Record> records;
};

class ZipReader {
 public:
  explicit ZipReader(const File& file) : file_(file) {}

  Directory read_directory() {
    locate();
    if (bytes_ > kMaxDirectoryBytes || begin_ > file_.size() || bytes_ > file_.size() - begin_) {
      throw fail("its central directory of " + std::to_string(bytes_) + " bytes at " +
                 std::to_string(begin_) + " lies outside the file or is too large");
    }
    const std::string data = file_.read_string(begin_, bytes_);
    Directory directory;
    directory.begin = begin_;
    uint64_t at = 0;
    for (uint64_t i = 0; i < entries_; ++i) {
      Record record = read_entry(data, &at);
      const std::string name = record.name;
      if (!directory.records.emplace(name, std::move(record)).second) {
        throw fail("has two records " + name);
      }
    }
    if (at != data.size()) throw fail("its central directory is longer than its entries");
    return directory;
  }

 private:
  Error fail(const std::string& why) const { return Error(file_.name() + ": zip archive: " + why); }

  // Finds the central directory through the record at the end of the file.
  void locate() {
    const uint64_t tail_bytes = std::min(file_.size(), kEndRecordBytes + kMaxCommentBytes);
    const uint64_t tail_begin = file_.size() - tail_bytes;
    const std::string tail = file_.read_string(tail_begin, tail_bytes);
    for (uint64_t back = kEndRecordBytes; back <= tail_bytes; ++back) {
      const uint64_t at = tail_bytes - back;
      if (number(tail, at, 4) != kEndRecord || number(tail, at + 20, 2) != back - kEndRecordBytes) {
        continue;
      }
      const uint64_t disk = number(tail, at + 4, 2);
      if (disk != 0 && disk != 0xffff) throw fail("is split over several files");
      entries_ = number(tail, at + 10, 2);
      bytes_ = number(tail, at + 12, 4);
      begin_ = number(tail, at + 16, 4);
      if (entries_ == 0xffff || bytes_ == kIn64 || begin_ == kIn64) locate64(tail_begin + at);
      return;
    }
    throw fail("has no end record; the file is cut off or damaged");
  }

  // end: offset of the end record, behind which the ZIP64 locator lies.
  void locate64(uint64_t end) {
    if (end < kEnd64LocatorBytes) throw fail("has no ZIP64 locator");
    const std::string locator = file_.read_string(end - kEnd64LocatorBytes, kEnd64LocatorBytes);
    if (number(locator, 0, 4) != kEnd64Locator) throw fail("has no ZIP64 locator");
    const uint64_t at = number(locator, 8, 8);
    if (at > end || end - at < kEnd64RecordBytes) throw fail("has no ZIP64 end record");
    const std::string record = file_.read_string(at, kEnd64RecordBytes);
    if (number(record, 0, 4) != kEnd64Record) throw fail("has no ZIP64 end record");
    if (number(record, 16, 4) != 0 || number(record, 20, 4) != 0) {
      throw fail("is split over several files");
    }
    entries_ = number(record, 32, 8);
    bytes_ = number(record, 40, 8);
    begin_ = number(record, 48, 8);
  }

  // The entry at *at, which moves behind it.
  Record read_entry(std::string_view data, uint64_t* at) const {
    if (data.size() - *at < kCentralEntryBytes || number(data, *at, 4) != kCentralEntry) {
      throw fail("its central directory is damaged");
    }
    const std::string_view entry = data.substr(*at);
    const uint64_t name_bytes = number(entry, 28, 2);
    const uint64_t extra_bytes = number(entry, 30, 2);
    const uint64_t bytes = kCentralEntryBytes + name_bytes + extra_bytes + number(entry, 32, 2);
    if (bytes > entry.size()) throw fail("its central directory is damaged");
    Record record;
    record.name = std::string(entry.substr(kCentralEntryBytes, name_bytes));
    record.flags = static_cast<uint16_t>(number(entry, 8, 2));
    record.method = static_cast<uint16_t>(number(entry, 10, 2));
    uint64_t packed = number(entry, 20, 4);
    record.size = number(entry, 24, 4);
    record.header = number(entry, 42, 4);
    read_zip64(entry.substr(kCentralEntryBytes + name_bytes, extra_bytes), &record, &packed);
    if (record.method == 0 && packed != record.size) {
      throw fail("record " + record.name + " is stored but has two sizes");
    }
    *at += bytes;
    return record;
  }

  // The extra field holds, in this order, those of the three values that do not fit 32 bits.
  void read_zip64(std::string_view extra, Record* record, uint64_t* packed) const {
    uint64_t* const values[] = {&record->size, packed, &record->header};
    if (std::none_of(std::begin(values), std::end(values),
                     [](const uint64_t* value) { return *value == kIn64; })) {
      return;
    }
    while (extra.size() >= 4) {
      const uint64_t bytes = number(extra, 2, 2);
      if (bytes > extra.size() - 4) break;
      if (number(extra, 0, 2) == kZip64Extra) {
        uint64_t used = 0;
        for (uint64_t* const value : values) {
          if (*value != kIn64) continue;
          if (bytes - used < 8) throw fail("record " + record->name + " lacks its ZIP64 sizes");
          *value = number(extra, 4 + used, 8);
          used += 8;
        }
        return;
      }
      extra.remove_prefix(4 + bytes);
    }
    throw fail("record " + record->name + " lacks its ZIP64 sizes");
  }

  const File& file_;
  uint64_t entries_ = 0;
  uint64_t bytes_ = 0;
  uint64_t begin_ = 0;
};

// A torch archive: its records by their name below the root folder.
class Archive {
 public:
  explicit Archive(const File& file) : file_(file), directory_(ZipReader(file).read_directory()) {
    constexpr std::string_view kPickle = "data.pkl";
    bool found = false;
    for (const auto& [name, record] : directory_.records) {
      if (!name.ends_with(kPickle)) continue;
      const std::string root = name.substr(0, name.size() - kPickle.size());
      if (!root.empty() && root.find('/') != root.size() - 1) continue;
      if (found) throw fail("has two records data.pkl, in " + root_ + " and " + root);
      root_ = root;
      found = true;
    }
    if (!found) throw fail("has no record data.pkl, so torch.save did not write it");
  }

  bool has(const std::string& name) const { return directory_.records.contains(root_ + name); }

  // Where the record's bytes lie in the file. Throws Error when it is missing, packed or outside
  // the file.
  std::pair<uint64_t, uint64_t> range(const std::string& name) const {
    const auto found = directory_.records.find(root_ + name);
    if (found == directory_.records.end()) throw fail("has no record " + root_ + name);
    const Record& record = found->second;
    if (record.flags & 1) throw fail("record " + record.name + " is encrypted");
    if (record.method != 0) {
      throw fail("record " + record.name + " is compressed with method " +
                 std::to_string(record.method) + (record.method == 8 ? " (deflate)" : "") +
                 "; torch stores its records, so repack the file without compression");
    }
    const uint64_t limit = directory_.begin;
    if (record.header > limit || limit - record.header < kLocalHeaderBytes) {
      throw fail("record " + record.name + " begins outside the file");
    }
    const std::string local = file_.read_string(record.header, kLocalHeaderBytes);
    if (number(local, 0, 4) != kLocalHeader) {
      throw fail("record " + record.name + " has no local header");
    }
    const uint64_t name_begin = record.header + kLocalHeaderBytes;
    const uint64_t name_bytes = number(local, 26, 2);
    if (name_bytes != record.name.size() || name_bytes > limit - name_begin ||
        file_.read_string(name_begin, name_bytes) != record.name) {
      throw fail("record " + record.name + " has another name in its local header");
    }
    const uint64_t begin = name_begin + name_bytes + number(local, 28, 2);
    if (begin > limit || record.size > limit - begin) {
      throw fail("record " + record.name + " of " + std::to_string(record.size) +
                 " bytes leaves the file");
    }
    return {begin, begin + record.size};
  }

  void check_byte_order() const {
    if (!has("byteorder")) return;
    const auto [begin, end] = range("byteorder");
    const std::string order = file_.read_string(begin, std::min<uint64_t>(end - begin, 16));
    if (order != "little") {
      throw fail("its byte order is \"" + order + "\"; only little-endian files can be read");
    }
  }

 private:
  Error fail(const std::string& why) const { return Error(file_.name() + ": zip archive: " + why); }

  const File& file_;
  Directory directory_;
  std::string root_;  // with its slash
};

}  // namespace

bool looks_like_zip(const File& file) {
  return file.size() >= 4 && number(file.read_string(0, 4), 0, 4) == kLocalHeader;
}

std::vector<TensorInfo> read_torch_zip(const File& file) {
  const Archive archive(file);
  archive.check_byte_order();
  const auto [begin, end] = archive.range("data.pkl");
  const Pickle pickle = read_pickle(file, begin, end);
  StateDict state = find_state_dict(file, pickle);
  for (size_t i = 0; i < state.tensors.size(); ++i) {
    const PickleStorage& storage = pickle.storages[state.storages[i]];
    const auto [data_begin, data_end] = archive.range("data/" + storage.key);
    const uint64_t expected = static_cast<uint64_t>(storage.numel) * (storage.type.bits / 8);
    if (data_end - data_begin != expected) {
      throw Error(file.name() + ": tensor " + state.tensors[i].name + ": its storage " +
                  storage.key + " should have " + std::to_string(expected) + " bytes, it has " +
                  std::to_string(data_end - data_begin));
    }
    state.tensors[i].begin += data_begin;
  }
  return std::move(state.tensors);
}

}  // namespace mamba_edge::convert
