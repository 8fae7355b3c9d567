#include "engine/status.h"

#include <cstdio>
#include <cstring>

namespace mamba_edge {

Status Status::error(mamba_edge_status code, const char* format, ...) {
  Status status;
  status.code_ = code;
  va_list arguments;
  va_start(arguments, format);
  const int written = std::vsnprintf(status.message_, kMessageBytes, format, arguments);
  va_end(arguments);
  if (written >= kMessageBytes) {
    // Step back over a UTF-8 sequence that the cut may have split: its continuation bytes, then its
    // lead.
    int end = kMessageBytes - 1;
    while (end > 0 && (static_cast<unsigned char>(status.message_[end - 1]) & 0xC0) == 0x80) --end;
    if (end > 0 && static_cast<unsigned char>(status.message_[end - 1]) >= 0xC0) --end;
    status.message_[end] = '\0';
  }
  return status;
}

}  // namespace mamba_edge
