// Files that are only read: their size, their bytes, and ranges of them mapped into memory.
//
// Every function that can fail returns 0 or an errno value; the caller, who knows what the file is
// for, makes the message.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mamba_edge {

struct File {
  int fd = -1;
  uint64_t size = 0;  // when it was opened
};

// Opens a regular file; a directory gives EISDIR, another kind ESPIPE.
int file_open(const char* path, File* file);
void file_close(File* file);  // a closed one is allowed

// Reads exactly `bytes` bytes at `offset`; ENODATA if the file ends before. Several threads may do
// so at once.
int file_read(const File& file, uint64_t offset, void* buffer, size_t bytes);

// Read-only pages of a file, shared with every process that maps the same ones.
struct Mapping {
  const uint8_t* data = nullptr;  // the byte at `offset`
  size_t bytes = 0;
  void* base = nullptr;  // page-aligned start and length of what is really mapped
  size_t base_bytes = 0;
};

// Maps [offset, offset + bytes), any offset. EINVAL if bytes is 0, ENODATA if the range leaves the
// file as it was opened. A file that is cut short while mapped kills the reader (SIGBUS), so do not
// map files that others rewrite in place.
int file_map(const File& file, uint64_t offset, size_t bytes, Mapping* mapping);
void file_unmap(Mapping* mapping);  // an empty one is allowed

// Asks the system to read the pages ahead of use.
void file_prefetch(const Mapping& mapping);

}  // namespace mamba_edge
