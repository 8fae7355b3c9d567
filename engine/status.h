// The result of an engine call: a code and a message that names the file, the thing and what was
// expected.
//
// A Status owns its text in place, so making one never allocates. It does not carry causes or stack
// traces.
#pragma once

#include <cstdarg>
#include <cstdint>

#include "engine/include/mamba_edge.h"

namespace mamba_edge {

class [[nodiscard]] Status {
 public:
  Status() = default;  // success

  // A failure; `format` and its arguments as for printf. Of a message of more than
  // kMessageBytes - 1 bytes the middle becomes "..." (never inside a UTF-8 sequence).
  static Status error(mamba_edge_status code, const char* format, ...)
      __attribute__((format(printf, 2, 3)));

  bool ok() const { return code_ == MAMBA_EDGE_OK; }
  mamba_edge_status code() const { return code_; }
  const char* message() const { return message_; }

  static constexpr int kMessageBytes = 480;

 private:
  mamba_edge_status code_ = MAMBA_EDGE_OK;
  char message_[kMessageBytes] = {};
};

// Returns from the enclosing function when `expression` is a failure.
#define ME_TRY(expression)                              \
  do {                                                  \
    ::mamba_edge::Status me_try_status_ = (expression); \
    if (!me_try_status_.ok()) return me_try_status_;    \
  } while (0)

}  // namespace mamba_edge
