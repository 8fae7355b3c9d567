#include "convert/ggml_blocks.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "quant/half.h"

namespace mamba_edge::convert {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are read in the file's order");

constexpr uint32_t kSmall = 32;   // elements of the simple blocks
constexpr uint32_t kSuper = 256;  // elements of the "K" blocks

// The 16 values of iq4_nl.
constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};

const uint8_t* unsigned_bytes(const char* bytes) { return reinterpret_cast<const uint8_t*>(bytes); }

float half_at(const uint8_t* bytes) {
  uint16_t half = 0;
  std::memcpy(&half, bytes, sizeof half);
  return half_to_float(half);
}

// Element j of 32 that lie as nibbles: the low ones of 16 bytes, then the high ones.
uint32_t nibble(const uint8_t* bytes, uint32_t j) {
  return j < 16 ? bytes[j] & 15u : uint32_t{bytes[j - 16]} >> 4;
}

uint32_t bits_at(const uint8_t* bytes) {
  uint32_t bits = 0;
  std::memcpy(&bits, bytes, sizeof bits);
  return bits;
}

void decode_q4_0(const uint8_t* b, float* out) {
  const float d = half_at(b);
  for (uint32_t j = 0; j < kSmall; ++j) {
    out[j] = static_cast<float>(static_cast<int>(nibble(b + 2, j)) - 8) * d;
  }
}

void decode_q4_1(const uint8_t* b, float* out) {
  const float d = half_at(b), low = half_at(b + 2);
  for (uint32_t j = 0; j < kSmall; ++j) out[j] = static_cast<float>(nibble(b + 4, j)) * d + low;
}

void decode_q5_0(const uint8_t* b, float* out) {
  const float d = half_at(b);
  const uint32_t fifth = bits_at(b + 2);  // bit j of element j
  for (uint32_t j = 0; j < kSmall; ++j) {
    const uint32_t q = nibble(b + 6, j) | (fifth >> j & 1) << 4;
    out[j] = static_cast<float>(static_cast<int>(q) - 16) * d;
  }
}

void decode_q5_1(const uint8_t* b, float* out) {
  const float d = half_at(b), low = half_at(b + 2);
  const uint32_t fifth = bits_at(b + 4);
  for (uint32_t j = 0; j < kSmall; ++j) {
    const uint32_t q = nibble(b + 8, j) | (fifth >> j & 1) << 4;
    out[j] = static_cast<float>(q) * d + low;
  }
}

void decode_q8_0(const uint8_t* b, float* out) {
  const float d = half_at(b);
  for (uint32_t j = 0; j < kSmall; ++j) {
    out[j] = static_cast<float>(static_cast<int8_t>(b[2 + j])) * d;
  }
}

void decode_iq4_nl(const uint8_t* b, float* out) {
  const float d = half_at(b);
  for (uint32_t j = 0; j < kSmall; ++j) {
    out[j] = d * static_cast<float>(kIq4Values[nibble(b + 2, j)]);
  }
}

// 2-bit numbers of a K block: each 32 bytes hold 128 elements, 32 per pair of bits.
uint32_t two_bits(const uint8_t* bytes, uint32_t j) {
  return uint32_t{bytes[j / 128 * 32 + j % 32]} >> (j % 128 / 32 * 2) & 3;
}

// 16 bytes (scale in the low half, minimum in the high half, one per 16 elements), 64 bytes of 2-bit
// numbers, two binary16 factors.
void decode_q2_k(const uint8_t* b, float* out) {
  const float d = half_at(b + 80), d_min = half_at(b + 82);
  for (uint32_t j = 0; j < kSuper; ++j) {
    const uint8_t packed = b[j / 16];
    const float scale = d * static_cast<float>(packed & 15);
    const float low = d_min * static_cast<float>(packed >> 4);
    out[j] = scale * static_cast<float>(two_bits(b + 16, j)) - low;
  }
}

// 32 bytes of third bits (bit k of byte l: element 32 k + l; clear means minus 4), 64 bytes of 2-bit
// numbers, 12 bytes with 16 scales of 6 bits, a binary16 factor.
void decode_q3_k(const uint8_t* b, float* out) {
  const uint8_t* const scales = b + 96;
  const float d = half_at(b + 108);
  for (uint32_t j = 0; j < kSuper; ++j) {
    const uint32_t s = j / 16;
    // The low 4 bits of scale s, 0 to 15, are nibble s / 8 of byte s % 8; the high 2 bits are pair
    // s / 4 of byte 8 + s % 4.
    const uint32_t low = uint32_t{scales[s % 8]} >> (s / 8 * 4) & 15;
    const uint32_t high = uint32_t{scales[8 + s % 4]} >> (s / 4 * 2) & 3;
    const float scale = d * static_cast<float>(static_cast<int>(low | high << 4) - 32);
    const int third = b[j % 32] >> (j / 32) & 1;
    const int q = static_cast<int>(two_bits(b + 32, j)) - (third != 0 ? 0 : 4);
    out[j] = scale * static_cast<float>(q);
  }
}

struct ScaleAndMin {
  uint32_t scale, min;
};

// Number s of the 8 pairs of 6-bit numbers in 12 bytes. The first four scales and minima are the low
// 6 bits of bytes 0 to 3 and 4 to 7; of the others, the low 4 bits are in bytes 8 to 11 and the high
// 2 bits on top of the first four.
ScaleAndMin scale_and_min(const uint8_t* bytes, uint32_t s) {
  if (s < 4) return {bytes[s] & 63u, bytes[s + 4] & 63u};
  const uint32_t low = bytes[s + 4];
  return {(low & 15) | uint32_t{bytes[s - 4]} >> 6 << 4, low >> 4 | uint32_t{bytes[s]} >> 6 << 4};
}

// 4-bit numbers of a K block: each 32 bytes hold 64 elements, the low nibbles first.
uint32_t four_bits(const uint8_t* bytes, uint32_t j) {
  return uint32_t{bytes[j / 64 * 32 + j % 32]} >> (j % 64 / 32 * 4) & 15;
}

// Two binary16 factors, 12 bytes of scales and minima (one per 32 elements), 128 bytes of nibbles.
void decode_q4_k(const uint8_t* b, float* out) {
  const float d = half_at(b), d_min = half_at(b + 2);
  for (uint32_t j = 0; j < kSuper; ++j) {
    const auto [scale, min] = scale_and_min(b + 4, j / 32);
    const float factor = d * static_cast<float>(scale), low = d_min * static_cast<float>(min);
    out[j] = factor * static_cast<float>(four_bits(b + 16, j)) - low;
  }
}

// The same with 32 bytes of fifth bits (bit k of byte l: element 32 k + l) before the nibbles.
void decode_q5_k(const uint8_t* b, float* out) {
  const float d = half_at(b), d_min = half_at(b + 2);
  for (uint32_t j = 0; j < kSuper; ++j) {
    const auto [scale, min] = scale_and_min(b + 4, j / 32);
    const float factor = d * static_cast<float>(scale), low = d_min * static_cast<float>(min);
    const uint32_t fifth = uint32_t{b[16 + j % 32]} >> (j / 32) & 1;
    out[j] = factor * static_cast<float>(four_bits(b + 48, j) | fifth << 4) - low;
  }
}

// 128 bytes of low nibbles (each 64 bytes hold 128 elements), 64 bytes of high bit pairs, 16 signed
// scales (one per 16 elements), a binary16 factor.
void decode_q6_k(const uint8_t* b, float* out) {
  const float d = half_at(b + 208);
  for (uint32_t j = 0; j < kSuper; ++j) {
    const uint32_t low = uint32_t{b[j / 128 * 64 + j % 64]} >> (j % 128 / 64 * 4) & 15;
    const uint32_t high = two_bits(b + 128, j);
    const auto scale = static_cast<int8_t>(b[192 + j / 16]);
    const int q = static_cast<int>(low | high << 4) - 32;
    out[j] = d * static_cast<float>(scale) * static_cast<float>(q);
  }
}

// A float32 factor, 256 signed bytes, and 16 sums that decoding does not need.
void decode_q8_k(const uint8_t* b, float* out) {
  const auto d = std::bit_cast<float>(bits_at(b));
  for (uint32_t j = 0; j < kSuper; ++j) {
    out[j] = d * static_cast<float>(static_cast<int8_t>(b[4 + j]));
  }
}

using Decode = void (*)(const uint8_t* block, float* out);

Decode decoder(DType dtype) {
  switch (dtype) {
    case DType::q4_0:
      return decode_q4_0;
    case DType::q4_1:
      return decode_q4_1;
    case DType::q5_0:
      return decode_q5_0;
    case DType::q5_1:
      return decode_q5_1;
    case DType::q8_0:
      return decode_q8_0;
    case DType::q2_k:
      return decode_q2_k;
    case DType::q3_k:
      return decode_q3_k;
    case DType::q4_k:
      return decode_q4_k;
    case DType::q5_k:
      return decode_q5_k;
    case DType::q6_k:
      return decode_q6_k;
    case DType::q8_k:
      return decode_q8_k;
    case DType::iq4_nl:
      return decode_iq4_nl;
    case DType::f32:
    case DType::f16:
    case DType::bf16:
    case DType::f64:
      break;
  }
  return nullptr;
}

// 0 where the scale is 0 or so small that its inverse overflows: such a scale is 0 in binary16, too.
float inverse_of(float scale) {
  const float inverse = 1 / scale;
  return std::isfinite(inverse) ? inverse : 0;
}

// One block of 32; what is written is a binary16 scale and the integers.
void encode_q8_0(const float* values, uint8_t* out) {
  float largest = 0;
  for (uint32_t j = 0; j < kSmall; ++j) largest = std::max(largest, std::fabs(values[j]));
  const float scale = largest / 127;
  const float inverse = inverse_of(scale);
  const uint16_t half = float_to_half(scale);
  std::memcpy(out, &half, sizeof half);
  for (uint32_t j = 0; j < kSmall; ++j) {
    out[2 + j] = static_cast<uint8_t>(static_cast<int8_t>(std::lround(values[j] * inverse)));
  }
}

void encode_q4_0(const float* values, uint8_t* out) {
  float extreme = 0;
  for (uint32_t j = 0; j < kSmall; ++j) {
    if (std::fabs(values[j]) > std::fabs(extreme)) extreme = values[j];
  }
  const float scale = extreme / -8;
  const float inverse = inverse_of(scale);
  const uint16_t half = float_to_half(scale);
  std::memcpy(out, &half, sizeof half);
  const auto q = [&](uint32_t j) {
    return static_cast<uint32_t>(std::min(15, static_cast<int>(values[j] * inverse + 8.5f)));
  };
  for (uint32_t j = 0; j < 16; ++j) out[2 + j] = static_cast<uint8_t>(q(j) | q(j + 16) << 4);
}

}  // namespace

BlockLayout block_layout(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return {1, 4};
    case DType::f16:
    case DType::bf16:
      return {1, 2};
    case DType::f64:
      return {1, 8};
    case DType::q4_0:
    case DType::iq4_nl:
      return {kSmall, 18};
    case DType::q4_1:
      return {kSmall, 20};
    case DType::q5_0:
      return {kSmall, 22};
    case DType::q5_1:
      return {kSmall, 24};
    case DType::q8_0:
      return {kSmall, 34};
    case DType::q2_k:
      return {kSuper, 84};
    case DType::q3_k:
      return {kSuper, 110};
    case DType::q4_k:
      return {kSuper, 144};
    case DType::q5_k:
      return {kSuper, 176};
    case DType::q6_k:
      return {kSuper, 210};
    case DType::q8_k:
      return {kSuper, 292};
  }
  return {1, 8};
}

void decode_blocks(DType dtype, const char* blocks, size_t n_blocks, float* out) {
  const BlockLayout layout = block_layout(dtype);
  const Decode decode = decoder(dtype);
  for (size_t i = 0; i < n_blocks; ++i) {
    decode(unsigned_bytes(blocks) + i * layout.bytes, out + i * layout.elements);
  }
}

void encode_blocks(DType dtype, const float* values, size_t n_blocks, char* out) {
  const BlockLayout layout = block_layout(dtype);
  for (size_t i = 0; i < n_blocks; ++i) {
    auto* const block = reinterpret_cast<uint8_t*>(out) + i * layout.bytes;
    if (dtype == DType::q8_0) {
      encode_q8_0(values + i * layout.elements, block);
    } else {
      encode_q4_0(values + i * layout.elements, block);
    }
  }
}

}  // namespace mamba_edge::convert
