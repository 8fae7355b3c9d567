// XXH64, the 64-bit checksum of the container (algorithm: the xxHash specification, version 0.1.1;
// seed 0). Not cryptographic: it finds damage, not malice.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mamba_edge {

// A checksum in progress; feed it in pieces of any size.
class Xxh64 {
 public:
  Xxh64();
  void update(const void* data, size_t bytes);
  uint64_t digest() const;

 private:
  uint64_t lanes_[4];
  uint64_t total_ = 0;
  uint8_t tail_[32];
  size_t n_tail_ = 0;
};

uint64_t xxh64(const void* data, size_t bytes);

}  // namespace mamba_edge
