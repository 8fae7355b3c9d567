// A read-only file that is read piece by piece with pread.
//
// It never maps a checkpoint: a mapped page that has been touched counts as resident memory, and
// checkpoints are larger than the machines that convert them. Reading is thread-safe, there is no
// file position.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

namespace mamba_edge::convert {

class File {
 public:
  // Throws Error when `path` is not a regular file that can be read.
  explicit File(const std::filesystem::path& path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::string name() const { return path_.string(); }  // for messages
  uint64_t size() const { return size_; }              // when it was opened

  // Fills destination[0, count) from byte `offset`. Throws Error when the file ends before that or
  // reading fails.
  void read_at(uint64_t offset, void* destination, size_t count) const;

  // Bytes [offset, offset + count) as a string. Throws Error when the file has fewer.
  std::string read_string(uint64_t offset, uint64_t count) const;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  uint64_t size_ = 0;
};

}  // namespace mamba_edge::convert
