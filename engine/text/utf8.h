// UTF-8, decoded without losing anything: a byte that is not part of a valid character stands for
// itself.
//
// Does not normalise, classify or convert to other encodings (see unicode.h).
#pragma once

#include <cstddef>
#include <cstdint>

namespace mamba_edge {

// What decode_utf8 and decode_utf8_backward found: `bytes` (1 to 4) bytes that are the character
// `code`, or one byte b that belongs to no valid character, with code = kInvalidByte + b.
// Surrogates, overlong forms and codes above U+10FFFF are not valid.
struct Utf8Char {
  uint32_t code;
  uint32_t bytes;
};

inline constexpr uint32_t kInvalidByte = 0x110000;  // first code that is no character

// The character at [p, end); p < end.
inline Utf8Char decode_utf8(const uint8_t* p, const uint8_t* end) {
  const uint32_t b0 = p[0];
  if (b0 < 0x80) return {b0, 1};
  const Utf8Char invalid = {kInvalidByte + b0, 1};
  if (b0 < 0xC2 || b0 > 0xF4) return invalid;
  const size_t available = static_cast<size_t>(end - p);
  const auto continues = [p](size_t i) { return (p[i] & 0xC0) == 0x80; };
  if (b0 < 0xE0) {
    if (available < 2 || !continues(1)) return invalid;
    return {(b0 & 0x1Fu) << 6 | (p[1] & 0x3Fu), 2};
  }
  if (b0 < 0xF0) {
    if (available < 3 || !continues(1) || !continues(2)) return invalid;
    const uint32_t code = (b0 & 0x0Fu) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
    if (code < 0x800 || (code >= 0xD800 && code < 0xE000)) return invalid;
    return {code, 3};
  }
  if (available < 4 || !continues(1) || !continues(2) || !continues(3)) return invalid;
  const uint32_t code =
      (b0 & 0x07u) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
  if (code < 0x10000 || code > 0x10FFFF) return invalid;
  return {code, 4};
}

// The character that ends at `p`, where begin < p; the same split into characters as decoding
// forward from any boundary before it.
Utf8Char decode_utf8_backward(const uint8_t* begin, const uint8_t* p);

// Writes `code` and returns the number of bytes (1 to 4). A code of kInvalidByte + b writes the
// byte b.
inline uint32_t encode_utf8(uint32_t code, uint8_t* out) {
  if (code < 0x80) {
    out[0] = static_cast<uint8_t>(code);
    return 1;
  }
  if (code < 0x800) {
    out[0] = static_cast<uint8_t>(0xC0 | code >> 6);
    out[1] = static_cast<uint8_t>(0x80 | (code & 0x3F));
    return 2;
  }
  if (code < 0x10000) {
    out[0] = static_cast<uint8_t>(0xE0 | code >> 12);
    out[1] = static_cast<uint8_t>(0x80 | (code >> 6 & 0x3F));
    out[2] = static_cast<uint8_t>(0x80 | (code & 0x3F));
    return 3;
  }
  if (code >= kInvalidByte) {
    out[0] = static_cast<uint8_t>(code - kInvalidByte);
    return 1;
  }
  out[0] = static_cast<uint8_t>(0xF0 | code >> 18);
  out[1] = static_cast<uint8_t>(0x80 | (code >> 12 & 0x3F));
  out[2] = static_cast<uint8_t>(0x80 | (code >> 6 & 0x3F));
  out[3] = static_cast<uint8_t>(0x80 | (code & 0x3F));
  return 4;
}

// Cuts a stream of bytes into whole characters. Bytes that cannot become one are reported as
// U+FFFD, one for each maximal subpart: the longest prefix of a valid character, or a single byte.
// (This is the practice that the Unicode Standard recommends in its chapter on conformance, and
// what WHATWG decoders do.) Plain data: copy it to fork a stream.
struct Utf8Stream {
  uint8_t pending[3] = {};  // the beginning of a character
  uint8_t n_pending = 0;

  // Takes one byte and calls emit(code) for each character that it settles: none, one, or two (a
  // U+FFFD for what was pending, then the byte itself).
  template <typename Emit>
  void push(uint8_t byte, Emit&& emit) {
    if (n_pending > 0) {
      if (continues(byte)) {
        uint8_t whole[4] = {pending[0], pending[1], pending[2], 0};
        whole[n_pending] = byte;
        if (n_pending + 1u == length()) {
          const uint32_t n = length();
          n_pending = 0;
          emit(decode_utf8(whole, whole + n).code);
        } else {
          pending[n_pending++] = byte;
        }
        return;
      }
      n_pending = 0;
      emit(kReplacement);
    }
    if (byte < 0x80) {
      emit(uint32_t{byte});
    } else if (byte >= 0xC2 && byte <= 0xF4) {
      pending[n_pending++] = byte;
    } else {
      emit(kReplacement);
    }
  }

  // The end of the stream: an incomplete character becomes U+FFFD.
  template <typename Emit>
  void finish(Emit&& emit) {
    if (n_pending > 0) emit(kReplacement);
    n_pending = 0;
  }

  // False for pending bytes that push() cannot have left there.
  bool valid() const;

  static constexpr uint32_t kReplacement = 0xFFFD;

 private:
  uint32_t length() const { return pending[0] < 0xE0 ? 2 : pending[0] < 0xF0 ? 3 : 4; }
  bool continues(uint8_t byte) const {
    if (n_pending > 1) return (byte & 0xC0) == 0x80;
    switch (pending[0]) {  // these leads allow a part of the continuation bytes only
      case 0xE0:
        return byte >= 0xA0 && byte <= 0xBF;
      case 0xED:
        return byte >= 0x80 && byte <= 0x9F;
      case 0xF0:
        return byte >= 0x90 && byte <= 0xBF;
      case 0xF4:
        return byte >= 0x80 && byte <= 0x8F;
      default:
        return (byte & 0xC0) == 0x80;
    }
  }
};

}  // namespace mamba_edge
