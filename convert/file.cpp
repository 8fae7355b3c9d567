#include "convert/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "convert/error.h"

namespace mamba_edge::convert {
namespace {

// Linux moves at most 0x7ffff000 bytes per call; asking for less keeps every platform's limits out
// of sight.
constexpr size_t kMaxBytesPerCall = size_t{1} << 30;

Error failed(const std::filesystem::path& path, const char* verb, int error_number) {
  return Error(path.string() + ": cannot " + verb + ": " + std::strerror(error_number));
}

}  // namespace

File::File(const std::filesystem::path& path) : path_(path) {
  do {
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // waits for no pipe
  } while (descriptor_ < 0 && errno == EINTR);
  if (descriptor_ < 0) throw failed(path, "open it", errno);

  struct stat status = {};
  const bool known = ::fstat(descriptor_, &status) == 0;
  const int error_number = errno;
  if (!known || !S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    if (!known) throw failed(path, "read its size", error_number);
    throw Error(path.string() + ": is not a regular file");
  }
  size_ = static_cast<uint64_t>(status.st_size);
}

File::~File() { ::close(descriptor_); }

void File::read_at(uint64_t offset, void* destination, size_t count) const {
  if (offset > size_ || count > size_ - offset) {
    throw Error(name() + ": ends too early: bytes " + std::to_string(offset) + " to " +
                std::to_string(offset) + " + " + std::to_string(count) + " are needed, it has " +
                std::to_string(size_));
  }
  auto* out = static_cast<char*>(destination);
  while (count > 0) {
    const ssize_t got =
        ::pread(descriptor_, out, std::min(count, kMaxBytesPerCall), static_cast<off_t>(offset));
    if (got < 0) {
      if (errno == EINTR) continue;
      throw failed(path_, ("read at byte " + std::to_string(offset)).c_str(), errno);
    }
    if (got == 0) throw Error(name() + ": became shorter while it was read");
    out += got;
    offset += static_cast<uint64_t>(got);
    count -= static_cast<size_t>(got);
  }
}

std::string File::read_string(uint64_t offset, uint64_t count) const {
  if (offset > size_ || count > size_ - offset) read_at(offset, nullptr, count);  // throws
  std::string bytes(count, '\0');
  read_at(offset, bytes.data(), bytes.size());
  return bytes;
}

}  // namespace mamba_edge::convert
