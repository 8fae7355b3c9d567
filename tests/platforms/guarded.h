// Memory that ends where a forbidden page begins: whoever reads or writes beyond it dies at once.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace mamba_edge {

// `n` zeroed elements, the last of which ends at the forbidden page. They start at a multiple of 64
// bytes if n * sizeof(T) is one.
template <typename T>
class Guarded {
 public:
  explicit Guarded(size_t n) : n_(n) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t body = (n * sizeof(T) + page - 1) / page * page;
    bytes_ = body + page;
    base_ = static_cast<uint8_t*>(
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + body, page, PROT_NONE) != 0) std::abort();
    data_ = reinterpret_cast<T*>(base_ + body - n * sizeof(T));
  }
  Guarded(const Guarded& other) : Guarded(other.n_) {
    if (n_ > 0) std::memcpy(data_, other.data_, n_ * sizeof(T));
  }
  Guarded(Guarded&& other) noexcept
      : base_(std::exchange(other.base_, nullptr)),
        bytes_(other.bytes_),
        data_(other.data_),
        n_(other.n_) {}
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() {
    if (base_ != nullptr) munmap(base_, bytes_);
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return n_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  T* begin() { return data_; }
  T* end() { return data_ + n_; }
  bool same_bits(const Guarded& other) const {
    return n_ == other.n_ && (n_ == 0 || std::memcmp(data_, other.data_, n_ * sizeof(T)) == 0);
  }

 private:
  uint8_t* base_ = nullptr;
  size_t bytes_ = 0;
  T* data_ = nullptr;
  size_t n_ = 0;
};

}  // namespace mamba_edge
