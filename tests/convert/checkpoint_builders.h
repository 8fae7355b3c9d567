// Writers of small safetensors files, zip archives and pickles for tests, honest ones and lying
// ones.
#pragma once

#include <stdlib.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mamba_edge::convert::testing {

// A folder that is removed with the object.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "mamba_edge_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = name;
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }

  std::filesystem::path write(const std::string& name, std::string_view bytes) const {
    std::ofstream out(path_ / name, std::ios::binary | std::ios::trunc);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!out.flush()) throw std::runtime_error("cannot write " + name);
    return path_ / name;
  }

 private:
  std::filesystem::path path_;
};

inline std::string little_endian(uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i) & 0xff);
  return out;
}

template <typename T>
std::string bytes_of(const std::vector<T>& values) {
  std::string out(values.size() * sizeof(T), '\0');
  std::memcpy(out.data(), values.data(), out.size());
  return out;
}

inline std::string safetensors(const std::string& header, const std::string& data) {
  return little_endian(header.size(), 8) + header + data;
}

// One zip record. Fields that lie are for tests of the reader.
struct ZipRecord {
  std::string name;
  std::string bytes;
  uint16_t method = 0;
  uint16_t flags = 0;
  bool descriptor = false;  // sizes behind the data instead of in front
  bool zip64 = false;       // sizes and offset in extra fields
  std::string local_extra = {};
  uint64_t claimed_size = UINT64_MAX;    // in the central directory, instead of the true one
  uint64_t claimed_offset = UINT64_MAX;  // of the local header
};

struct ZipOptions {
  bool zip64_end = false;
  std::string comment = {};
};

inline std::string zip(const std::vector<ZipRecord>& records, const ZipOptions& options = {}) {
  std::string out;
  std::string central;
  for (const ZipRecord& record : records) {
    const uint64_t size =
        record.claimed_size != UINT64_MAX ? record.claimed_size : record.bytes.size();
    const uint64_t offset =
        record.claimed_offset != UINT64_MAX ? record.claimed_offset : out.size();
    const auto flags = static_cast<uint16_t>(record.flags | (record.descriptor ? 8 : 0));
    const uint64_t local_size = record.descriptor ? 0 : record.bytes.size();
    out += little_endian(0x04034b50, 4) + little_endian(20, 2) + little_endian(flags, 2) +
           little_endian(record.method, 2) + little_endian(0, 4) + little_endian(0, 4) +
           little_endian(local_size, 4) + little_endian(local_size, 4) +
           little_endian(record.name.size(), 2) + little_endian(record.local_extra.size(), 2) +
           record.name + record.local_extra + record.bytes;
    if (record.descriptor) {
      out += little_endian(0x08074b50, 4) + little_endian(0, 4) + little_endian(size, 4) +
             little_endian(size, 4);
    }
    std::string extra;
    if (record.zip64) {
      extra = little_endian(0x5455, 2) + little_endian(1, 2) + "x" +  // another field in front
              little_endian(1, 2) + little_endian(24, 2) + little_endian(size, 8) +
              little_endian(size, 8) + little_endian(offset, 8);
    }
    const uint64_t size32 = record.zip64 ? 0xffffffff : size;
    const uint64_t offset32 = record.zip64 ? 0xffffffff : offset;
    central += little_endian(0x02014b50, 4) + little_endian(20, 2) + little_endian(20, 2) +
               little_endian(flags, 2) + little_endian(record.method, 2) + little_endian(0, 4) +
               little_endian(0, 4) + little_endian(size32, 4) + little_endian(size32, 4) +
               little_endian(record.name.size(), 2) + little_endian(extra.size(), 2) +
               little_endian(0, 2) + little_endian(0, 2) + little_endian(0, 2) +
               little_endian(0, 4) + little_endian(offset32, 4) + record.name + extra;
  }
  const uint64_t begin = out.size();
  out += central;
  uint64_t count = records.size();
  uint64_t bytes = central.size();
  uint64_t begin32 = begin;
  if (options.zip64_end) {
    const uint64_t end64 = out.size();
    out += little_endian(0x06064b50, 4) + little_endian(44, 8) + little_endian(45, 2) +
           little_endian(45, 2) + little_endian(0, 4) + little_endian(0, 4) +
           little_endian(count, 8) + little_endian(count, 8) + little_endian(bytes, 8) +
           little_endian(begin, 8);
    out += little_endian(0x07064b50, 4) + little_endian(0, 4) + little_endian(end64, 8) +
           little_endian(1, 4);
    count = 0xffff;
    bytes = begin32 = 0xffffffff;
  }
  return out + little_endian(0x06054b50, 4) + little_endian(0, 2) + little_endian(0, 2) +
         little_endian(count, 2) + little_endian(count, 2) + little_endian(bytes, 4) +
         little_endian(begin32, 4) + little_endian(options.comment.size(), 2) + options.comment;
}

// A pickle, opcode by opcode; stop() ends it.
class PickleWriter {
 public:
  explicit PickleWriter(int protocol = 2) : protocol_(protocol) {
    out_ = std::string("\x80") + static_cast<char>(protocol);
  }

  PickleWriter& raw(std::string_view bytes) {
    out_ += bytes;
    return *this;
  }
  PickleWriter& text(std::string_view value) {
    if (protocol_ >= 4) return raw("\x8c").raw(little_endian(value.size(), 1)).raw(value);
    return raw("X").raw(little_endian(value.size(), 4)).raw(value);
  }
  PickleWriter& integer(int64_t value) {
    if (value >= 0 && value < 256)
      return raw("K").raw(little_endian(static_cast<uint64_t>(value), 1));
    if (value >= 0 && value < 65536)
      return raw("M").raw(little_endian(static_cast<uint64_t>(value), 2));
    return raw("\x8a\x08").raw(little_endian(static_cast<uint64_t>(value), 8));
  }
  PickleWriter& global(const std::string& module, const std::string& name) {
    if (protocol_ >= 4) return text(module).text(name).raw("\x93");
    return raw("c" + module + "\n" + name + "\n");
  }
  PickleWriter& integers(const std::vector<int64_t>& values) {
    raw("(");
    for (const int64_t value : values) integer(value);
    return raw("t");
  }
  PickleWriter& storage(const std::string& type, const std::string& key, int64_t numel) {
    return raw("(")
        .text("storage")
        .global("torch", type)
        .text(key)
        .text("cpu")
        .integer(numel)
        .raw("tQ");
  }
  PickleWriter& empty_ordered_dict() { return global("collections", "OrderedDict").raw(")R"); }
  // torch._utils._rebuild_tensor_v2(...)
  PickleWriter& tensor(const std::string& type, const std::string& key, int64_t numel,
                       int64_t offset, const std::vector<int64_t>& shape,
                       const std::vector<int64_t>& strides) {
    global("torch._utils", "_rebuild_tensor_v2").raw("(");
    storage(type, key, numel).integer(offset).integers(shape).integers(strides).raw("\x89");
    return empty_ordered_dict().raw("tR");
  }
  std::string stop() const { return out_ + "."; }

 private:
  int protocol_;
  std::string out_;
};

// A torch.save archive of one pickle and its storages, named 0, 1, ...
inline std::string torch_archive(const std::string& pickle,
                                 const std::vector<std::string>& storages) {
  std::vector<ZipRecord> records = {{"archive/data.pkl", pickle}};
  for (size_t i = 0; i < storages.size(); ++i) {
    records.push_back({"archive/data/" + std::to_string(i), storages[i]});
  }
  records.push_back({"archive/version", "3\n"});
  return zip(records);
}

// Each string as if torch.save had written {"t": tensor} with that tensor in storage 0.
inline std::string one_tensor_pickle(int64_t numel, int64_t offset,
                                     const std::vector<int64_t>& shape,
                                     const std::vector<int64_t>& strides,
                                     const std::string& type = "FloatStorage") {
  return PickleWriter()
      .raw("}")
      .text("t")
      .tensor(type, "0", numel, offset, shape, strides)
      .raw("s")
      .stop();
}

}  // namespace mamba_edge::convert::testing
