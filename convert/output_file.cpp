#include "convert/output_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <system_error>

#include "convert/error.h"

namespace mamba_edge::convert {

void refuse_to_replace(const std::filesystem::path& output,
                       const std::vector<std::filesystem::path>& others, const char* what) {
  if (output.empty()) return;
  for (const std::filesystem::path& other : others) {
    std::error_code ignored;
    if (other.empty()) continue;
    if (std::filesystem::equivalent(other, output, ignored) ||
        std::filesystem::weakly_canonical(follow_links(other, ignored), ignored) ==
            std::filesystem::weakly_canonical(follow_links(output, ignored), ignored)) {
      throw Error(output.string() + ": cannot write: it is " + what);
    }
  }
}

std::filesystem::path follow_links(std::filesystem::path path, std::error_code& error) {
  constexpr int kMaxLinks = 40;
  std::error_code absent;
  error.clear();
  for (int links = 0; std::filesystem::is_symlink(path, absent); ++links) {
    if (links == kMaxLinks) error = std::make_error_code(std::errc::too_many_symbolic_link_levels);
    if (error) break;
    const std::filesystem::path target = std::filesystem::read_symlink(path, error);
    if (!error) path = path.parent_path() / target;
  }
  return path;
}

OutputFile::OutputFile(std::filesystem::path path) : path_(std::move(path)) { open_temporary(); }

OutputFile::~OutputFile() { forget(); }

void OutputFile::fail(const char* what, int error) const {
  throw Error(path_.string() + ": cannot " + what + ": " + std::strerror(error));
}

// A file without a name vanishes with the process that wrote it. Where the file system cannot do
// that, the file gets a temporary name beside its own.
void OutputFile::open_temporary() {
  std::error_code error;
  const std::filesystem::file_status old = std::filesystem::status(path_, error);
  if (std::filesystem::is_directory(old)) fail("write", EISDIR);
  if (path_.empty()) throw Error("cannot write the output: its name is empty");
  if (std::filesystem::exists(old) && !std::filesystem::is_regular_file(old)) {
    throw Error(path_.string() + ": cannot write: it is not a regular file");
  }
  path_ = follow_links(path_, error);
  if (error) fail("write", error.value());
  const std::filesystem::path folder = this->folder();
  if (!std::filesystem::is_directory(folder, error)) {
    throw Error(path_.string() + ": cannot write: there is no folder " + folder.string());
  }
#ifdef O_TMPFILE
  descriptor_ = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
  if (descriptor_ >= 0) return;
  if (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT && errno != EINVAL)
    fail("write", errno);
#endif
  const int refused = name_temporary([&](const char* name) {
    descriptor_ = ::open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    return descriptor_ >= 0 ? 0 : errno;
  });
  if (refused != 0) fail("write", refused);
}

std::filesystem::path OutputFile::folder() const {
  return path_.has_parent_path() ? path_.parent_path() : ".";
}

// Finds a free name beside the file's own, which make(name) takes (0) or refuses (errno). Process
// numbers repeat, across processes and after a crash, and what has such a name is not ours to
// remove.
int OutputFile::name_temporary(const std::function<int(const char*)>& make) {
  int error = EEXIST;
  for (int i = 0; error == EEXIST && i < 1000; ++i) {
    temporary_ =
        folder() / (".mamba-edge-partial-" + std::to_string(::getpid()) + "-" + std::to_string(i));
    error = make(temporary_.c_str());
  }
  if (error != 0) temporary_.clear();
  return error;
}

void OutputFile::forget() {
  if (descriptor_ >= 0) ::close(descriptor_);
  descriptor_ = -1;
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
  temporary_.clear();
}

void OutputFile::publish() {
  struct stat old = {};
  if (::stat(path_.c_str(), &old) == 0) {
    (void)::fchmod(descriptor_,
                   old.st_mode & 0777);  // best effort: some file systems have no modes
  }
  if (::fsync(descriptor_) != 0) fail("sync", errno);
  if (temporary_.empty()) {
    // A file without a name can only be linked to a name that is free. If there is an old file,
    // rename replaces it at once.
    const std::string self = "/proc/self/fd/" + std::to_string(descriptor_);
    const auto link_to = [&](const char* name) {
      return ::linkat(AT_FDCWD, self.c_str(), AT_FDCWD, name, AT_SYMLINK_FOLLOW) == 0 ? 0 : errno;
    };
    int refused = link_to(path_.c_str());
    if (refused == EEXIST) refused = name_temporary(link_to);
    if (refused != 0) fail("give the file its name", refused);
  }
  if (!temporary_.empty() && ::rename(temporary_.c_str(), path_.c_str()) != 0) {
    fail("rename the finished file", errno);
  }
  temporary_.clear();
  const int directory = ::open(folder().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory >= 0) {
    ::fsync(directory);  // best effort: some file systems refuse it
    ::close(directory);
  }
  const int descriptor = descriptor_;
  descriptor_ = -1;
  if (::close(descriptor) != 0) fail("close", errno);
}

void OutputFile::write_at(uint64_t offset, const void* bytes, size_t n) {
  const auto* p = static_cast<const uint8_t*>(bytes);
  while (n > 0) {
    const ssize_t written = ::pwrite(descriptor_, p, n, static_cast<off_t>(offset));
    if (written < 0) {
      if (errno == EINTR) continue;
      fail("write", errno);
    }
    p += written;
    n -= static_cast<size_t>(written);
    offset += static_cast<uint64_t>(written);
  }
}

}  // namespace mamba_edge::convert
