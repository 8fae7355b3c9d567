// Hands out pieces of one block of memory, front to back, 64-byte aligned. Run the same code once
// without memory to learn how much is needed, and once with it: what was counted is then what is
// used.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/blocks.h"

namespace mamba_edge {

class Arena {
 public:
  Arena() = default;  // counts only; take() returns NULL
  explicit Arena(void* memory) : base_(static_cast<uint8_t*>(memory)) {}

  template <typename T>
  T* take(size_t n) {
    const size_t at = used_;
    used_ += round_up<size_t>(n * sizeof(T), kBlockAlign);
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
  }
  size_t used() const { return used_; }

 private:
  uint8_t* base_ = nullptr;
  size_t used_ = 0;
};

}  // namespace mamba_edge
