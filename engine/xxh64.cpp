#include "engine/xxh64.h"

#include <bit>
#include <cstring>

#include "engine/little_endian.h"

namespace mamba_edge {
namespace {

constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87ull;
constexpr uint64_t kPrime2 = 0xC2B2AE3D27D4EB4Full;
constexpr uint64_t kPrime3 = 0x165667B19E3779F9ull;
constexpr uint64_t kPrime4 = 0x85EBCA77C2B2AE63ull;
constexpr uint64_t kPrime5 = 0x27D4EB2F165667C5ull;

uint64_t round_lane(uint64_t lane, uint64_t input) {
  return std::rotl(lane + input * kPrime2, 31) * kPrime1;
}

void consume_stripe(uint64_t lanes[4], const uint8_t* p) {
  for (int i = 0; i < 4; ++i) lanes[i] = round_lane(lanes[i], load_le<uint64_t>(p + 8 * i));
}

}  // namespace

Xxh64::Xxh64() : lanes_{kPrime1 + kPrime2, kPrime2, 0, 0 - kPrime1}, tail_{} {}

void Xxh64::update(const void* data, size_t bytes) {
  if (bytes == 0) return;
  const auto* p = static_cast<const uint8_t*>(data);
  total_ += bytes;
  if (n_tail_ > 0) {
    const size_t take = bytes < 32 - n_tail_ ? bytes : 32 - n_tail_;
    std::memcpy(tail_ + n_tail_, p, take);
    n_tail_ += take;
    p += take;
    bytes -= take;
    if (n_tail_ < 32) return;
    consume_stripe(lanes_, tail_);
    n_tail_ = 0;
  }
  for (; bytes >= 32; bytes -= 32, p += 32) consume_stripe(lanes_, p);
  std::memcpy(tail_, p, bytes);
  n_tail_ = bytes;
}

uint64_t Xxh64::digest() const {
  uint64_t hash;
  if (total_ >= 32) {
    hash = std::rotl(lanes_[0], 1) + std::rotl(lanes_[1], 7) + std::rotl(lanes_[2], 12) +
           std::rotl(lanes_[3], 18);
    for (const uint64_t lane : lanes_) hash = (hash ^ round_lane(0, lane)) * kPrime1 + kPrime4;
  } else {
    hash = kPrime5;  // seed 0
  }
  hash += total_;
  const uint8_t* p = tail_;
  size_t left = n_tail_;
  for (; left >= 8; left -= 8, p += 8) {
    hash = std::rotl(hash ^ round_lane(0, load_le<uint64_t>(p)), 27) * kPrime1 + kPrime4;
  }
  if (left >= 4) {
    hash = std::rotl(hash ^ load_le<uint32_t>(p) * kPrime1, 23) * kPrime2 + kPrime3;
    p += 4;
    left -= 4;
  }
  for (; left > 0; --left, ++p) hash = std::rotl(hash ^ *p * kPrime5, 11) * kPrime1;
  hash = (hash ^ (hash >> 33)) * kPrime2;
  hash = (hash ^ (hash >> 29)) * kPrime3;
  return hash ^ (hash >> 32);
}

uint64_t xxh64(const void* data, size_t bytes) {
  Xxh64 state;
  state.update(data, bytes);
  return state.digest();
}

}  // namespace mamba_edge
