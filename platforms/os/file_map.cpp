#include "platforms/os/file_map.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "platforms/os/memory.h"

namespace mamba_edge {
namespace {

static_assert(sizeof(off_t) == 8, "build with _FILE_OFFSET_BITS=64");

bool inside(const File& file, uint64_t offset, size_t bytes) {
  return offset <= file.size && bytes <= file.size - offset;
}

}  // namespace

int file_open(const char* path, File* file) {
  *file = File{};
  int fd;
  do {
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // does not wait for the writer of a pipe
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return errno;
  struct stat info;
  int error = 0;
  if (fstat(fd, &info) != 0) {
    error = errno;
  } else if (S_ISDIR(info.st_mode)) {
    error = EISDIR;
  } else if (!S_ISREG(info.st_mode)) {
    error = ESPIPE;
  }
  if (error != 0) {
    close(fd);
    return error;
  }
  file->fd = fd;
  file->size = static_cast<uint64_t>(info.st_size);
  return 0;
}

void file_close(File* file) {
  if (file->fd >= 0) close(file->fd);
  *file = File{};
}

int file_read(const File& file, uint64_t offset, void* buffer, size_t bytes) {
  constexpr uint64_t kLastOffset = INT64_MAX;
  if (offset > kLastOffset || bytes > kLastOffset - offset) return ENODATA;
  uint8_t* to = static_cast<uint8_t*>(buffer);
  while (bytes > 0) {
    const size_t piece = bytes < (size_t{1} << 30) ? bytes : size_t{1} << 30;
    const ssize_t n = pread(file.fd, to, piece, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    if (n == 0) return ENODATA;
    to += n;
    offset += static_cast<uint64_t>(n);
    bytes -= static_cast<size_t>(n);
  }
  return 0;
}

int file_map(const File& file, uint64_t offset, size_t bytes, Mapping* mapping) {
  *mapping = Mapping{};
  if (bytes == 0) return EINVAL;
  if (!inside(file, offset, bytes)) return ENODATA;
  const size_t lead = static_cast<size_t>(offset % memory_page_size());
  if (bytes > SIZE_MAX - lead) return EOVERFLOW;
  void* base = mmap(nullptr, bytes + lead, PROT_READ, MAP_SHARED, file.fd,
                    static_cast<off_t>(offset - lead));
  if (base == MAP_FAILED) return errno;
  mapping->data = static_cast<const uint8_t*>(base) + lead;
  mapping->bytes = bytes;
  mapping->base = base;
  mapping->base_bytes = bytes + lead;
  return 0;
}

void file_unmap(Mapping* mapping) {
  if (mapping->base != nullptr) munmap(mapping->base, mapping->base_bytes);
  *mapping = Mapping{};
}

void file_prefetch(const Mapping& mapping) {
  if (mapping.base != nullptr) madvise(mapping.base, mapping.base_bytes, MADV_WILLNEED);
}

}  // namespace mamba_edge
