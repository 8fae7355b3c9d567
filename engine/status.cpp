#include "engine/status.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace mamba_edge {

namespace {

bool continues(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }  // UTF-8

// The beginning and the end of a message that is too long: what has made it so is a path, and the
// reason stands behind it.
void shorten(const char* whole, int bytes, char* out) {
  constexpr int kDots = 3, kKept = Status::kMessageBytes - 1 - kDots;
  int head = kKept / 2, tail = bytes - (kKept - head);
  while (head > 0 && continues(whole[head])) --head;
  while (tail < bytes && continues(whole[tail])) ++tail;
  std::memcpy(out, whole, static_cast<size_t>(head));
  std::memset(out + head, '.', kDots);
  std::memcpy(out + head + kDots, whole + tail, static_cast<size_t>(bytes - tail));
  out[head + kDots + bytes - tail] = '\0';
}

}  // namespace

Status Status::error(mamba_edge_status code, const char* format, ...) {
  Status status;
  status.code_ = code;
  va_list arguments;
  va_start(arguments, format);
  char whole[6144];  // a path may have 4096
  const int written = std::vsnprintf(whole, sizeof(whole), format, arguments);
  va_end(arguments);
  if (written < kMessageBytes) {
    std::memcpy(status.message_, whole, static_cast<size_t>(written) + 1);
  } else {
    shorten(whole, std::min(written, static_cast<int>(sizeof(whole)) - 1), status.message_);
  }
  return status;
}

}  // namespace mamba_edge
