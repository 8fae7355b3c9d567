// Fixed-width little-endian numbers in byte buffers. The library runs on little-endian machines
// only (weights are used in place), so a load is a copy.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace mamba_edge {

static_assert(std::endian::native == std::endian::little,
              "mamba-edge uses weights in place and needs a little-endian machine");

template <typename T>
T load_le(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

template <typename T>
void store_le(uint8_t* p, T value) {
  std::memcpy(p, &value, sizeof(T));
}

}  // namespace mamba_edge
