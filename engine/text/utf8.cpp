#include "engine/text/utf8.h"

namespace mamba_edge {

Utf8Char decode_utf8_backward(const uint8_t* begin, const uint8_t* p) {
  // A lead byte of a valid character is never inside another one, so a valid character that ends
  // here is the one that forward decoding finds.
  const size_t available = static_cast<size_t>(p - begin);
  for (size_t n = 1; n <= 4 && n <= available; ++n) {
    const Utf8Char found = decode_utf8(p - n, p);
    if (found.code < kInvalidByte && found.bytes == n) return found;
    if ((*(p - n) & 0xC0) != 0x80) break;  // not a continuation byte: nothing longer ends here
  }
  return {kInvalidByte + p[-1], 1};
}

bool Utf8Stream::valid() const {
  if (n_pending == 0) return true;
  if (n_pending > 3 || pending[0] < 0xC2 || pending[0] > 0xF4 || n_pending >= length())
    return false;
  Utf8Stream again;
  bool emitted = false;
  for (uint8_t i = 0; i < n_pending; ++i) {
    again.push(pending[i], [&emitted](uint32_t) { emitted = true; });
  }
  return !emitted;
}

}  // namespace mamba_edge
