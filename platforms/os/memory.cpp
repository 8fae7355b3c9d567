#include "platforms/os/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

namespace mamba_edge {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

size_t round_to(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Reads the start of a small text file. False if there is none.
bool read_text(const char* path, char* text, size_t capacity) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  size_t length = 0;
  while (length + 1 < capacity) {
    const ssize_t n = read(fd, text + length, capacity - 1 - length);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    length += static_cast<size_t>(n);
  }
  close(fd);
  text[length] = '\0';
  return length > 0;
}

// The number at the start of `text`, after blanks; false if there is none.
bool parse_number(const char* text, uint64_t* value) {
  while (*text == ' ' || *text == '\t') ++text;
  if (*text < '0' || *text > '9') return false;
  *value = strtoull(text, nullptr, 10);
  return true;
}

bool read_number(const char* path, uint64_t* value) {
  char text[64];
  return read_text(path, text, sizeof(text)) && parse_number(text, value);
}

uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

// Limit and use of the control group whose files are mounted at the usual place (version 2, then
// 1). A group without a limit
// ("max", or a number near 2^63) has none.
bool group_memory(uint64_t* limit, uint64_t* used) {
  if (read_number("/sys/fs/cgroup/memory.max", limit)) {
    return read_number("/sys/fs/cgroup/memory.current", used);
  }
  return read_number("/sys/fs/cgroup/memory/memory.limit_in_bytes", limit) &&
         read_number("/sys/fs/cgroup/memory/memory.usage_in_bytes", used);
}

}  // namespace

size_t memory_page_size() {
  const long size = sysconf(_SC_PAGESIZE);
  return size > 0 ? static_cast<size_t>(size) : 4096;
}

void* memory_allocate(size_t bytes) {
  const size_t page = memory_page_size();
  if (bytes == 0 || bytes > SIZE_MAX / 2) return nullptr;
  const size_t whole = round_to(bytes, page);
  const bool huge = bytes >= kHugePage;
  const size_t request = huge ? whole + kHugePage : whole;
  void* mapped = mmap(nullptr, request, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  if (!huge) return mapped;
  // Give back what lies before the first and after the last byte.
  uint8_t* base = static_cast<uint8_t*>(mapped);
  const size_t address = reinterpret_cast<size_t>(base);
  const size_t head = round_to(address, kHugePage) - address;
  if (head > 0) munmap(base, head);
  if (request > head + whole) munmap(base + head + whole, request - head - whole);
#if defined(MADV_HUGEPAGE)
  madvise(base + head, whole, MADV_HUGEPAGE);  // advice only
#endif
  return base + head;
}

void memory_free(void* memory, size_t bytes) {
  if (memory != nullptr) munmap(memory, round_to(bytes, memory_page_size()));
}

uint64_t memory_total() {
  const long pages = sysconf(_SC_PHYS_PAGES);
  uint64_t total = pages > 0 ? static_cast<uint64_t>(pages) * memory_page_size() : 0;
  uint64_t limit, used;
  if (total > 0 && group_memory(&limit, &used)) total = smaller(total, limit);
  return total;
}

uint64_t memory_available() {
  char text[1024];
  uint64_t free_bytes = 0;
  if (read_text("/proc/meminfo", text, sizeof(text))) {
    const char* line = strstr(text, "MemAvailable:");
    if (line != nullptr && parse_number(line + strlen("MemAvailable:"), &free_bytes))
      free_bytes *= 1024;
  }
#if defined(_SC_AVPHYS_PAGES)
  if (free_bytes == 0) {
    const long pages = sysconf(_SC_AVPHYS_PAGES);
    if (pages > 0) free_bytes = static_cast<uint64_t>(pages) * memory_page_size();
  }
#endif
  uint64_t limit, used;
  if (free_bytes > 0 && group_memory(&limit, &used)) {
    free_bytes = smaller(free_bytes, limit > used ? limit - used : 0);
  }
  return free_bytes;
}

}  // namespace mamba_edge
