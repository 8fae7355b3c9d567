// A file that has no name until it is complete.
//
// It appears under its name only in publish(), after everything has reached the disk; if the object
// is destroyed before, or the process is killed, an old file of that name stays as it was. Throws
// Error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <system_error>
#include <vector>

namespace mamba_edge::convert {

// Throws Error where `output` is one of the other files of a conversion, by whatever name, or would be, once
// it is there: "cannot write: it is <what>". Empty paths are none.
void refuse_to_replace(const std::filesystem::path& output,
                       const std::vector<std::filesystem::path>& others, const char* what);

// Where a file of that name would be: where the symbolic links at its end lead, whether there is something or
// not. `error`: a link cannot be read, or they lead in a circle.
std::filesystem::path follow_links(std::filesystem::path path, std::error_code& error);

class OutputFile {
 public:
  // The file gets the mode of the old one, or what the umask leaves; a symbolic link stays, and what it
  // points to is replaced or made. Refuses an empty name, a missing folder, and an old file that is not a regular one.
  explicit OutputFile(std::filesystem::path path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  const std::filesystem::path& path() const { return path_; }

  void write_at(uint64_t offset, const void* bytes, size_t n);

  // Syncs, and gives the file its name. Nothing can be written after that.
  void publish();

 private:
  void open_temporary();
  int name_temporary(const std::function<int(const char*)>& make);
  std::filesystem::path folder() const;
  void forget();
  [[noreturn]] void fail(const char* what, int error) const;

  std::filesystem::path path_;
  std::filesystem::path temporary_;  // empty while the file has no name at all
  int descriptor_ = -1;
};

}  // namespace mamba_edge::convert
