// A clock that never goes back.
#pragma once

#include <cstdint>

namespace mamba_edge {

// Nanoseconds since some fixed moment.
uint64_t monotonic_ns();

}  // namespace mamba_edge
