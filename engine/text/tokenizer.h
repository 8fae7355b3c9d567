// Text to token ids and back, from a compiled description that is used where it lies.
//
// The description ("blob") is made by convert/tokenizer_json.h from a tokenizer.json. open() checks
// all of it; after that nothing in it can make encode or decode read outside of it. Nothing is
// allocated. The ids are those of Hugging Face's `tokenizers` library for the same file; where text
// is not valid UTF-8, each stray byte counts as a character of category Cn, and becomes what the
// tokenizer has for that byte: its own token (byte-level BPE, byte fallback), else the unknown
// token, else nothing. Does not train, truncate, pad, encode pairs of texts, or apply chat
// templates.
//
// docs/format.md describes the blob.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "engine/include/mamba_edge.h"
#include "engine/status.h"

namespace mamba_edge {

namespace tokenizer_format {

inline constexpr uint32_t kMagic = 0x4B54454D;  // "METK"
inline constexpr uint32_t kVersion = 1;
inline constexpr uint32_t kNone = 0xFFFFFFFF;

// clang-format off
enum Section : uint32_t {
  kTokenOffsets, kTokenBytes, kTokenFlags, kTokenHash, kMergeIndex, kMerges, kMergeIds, kSingle, kFallback,
  kAddedRaw, kAddedNorm, kNormalizers, kPreTokenizers, kDecodeReplace, kPrograms, kAlternatives, kItems,
  kClasses, kRanges, kPrefix, kSuffix, kPool, kSections
};
// Bytes of one element of each section.
inline constexpr uint32_t kElementBytes[kSections] = {
  4, 1, 1, 4, 4, 8, 4, 4, 4, 16, 16, 24, 24, 24, 8, 8, 16, 32, 8, 4, 4, 1};
// clang-format on
inline constexpr uint32_t kHeaderBytes = 56 + 8 * kSections;

inline constexpr uint32_t kFlagByteLevel =
    1;  // words are bytes (the GPT-2 alphabet), not characters
inline constexpr uint32_t kFlagByteFallback =
    2;  // an unknown character becomes the tokens of its bytes
inline constexpr uint32_t kFlagFuseUnknown =
    4;  // unknown characters in a row become one unknown token
inline constexpr uint32_t kFlagIgnoreMerges =
    8;  // a word that is a token becomes it, whatever the merges
inline constexpr uint32_t kFlagWordsStartWithMark =
    16;  // no merge crosses a border before U+2581: cut there
inline constexpr uint32_t kFlagJoinWithSpace = 32;  // decoding puts a space between tokens
inline constexpr uint32_t kAllFlags = 63;

inline constexpr uint8_t kTokenPresent = 1;  // ids without it are holes: no text, never made
inline constexpr uint8_t kTokenSpecial = 2;
inline constexpr uint8_t kTokenByte =
    4;  // decodes to one byte: the number XX of <0xXX>, kept in hexadecimal
inline constexpr uint8_t kTokenWord = 8;  // is in the hash
inline constexpr uint8_t kTokenWhole =
    16;  // encoding its own bytes as a word gives just this token
inline constexpr uint8_t kAllTokenFlags = 31;

inline constexpr uint32_t kAddedSpecial = 1, kAddedSingleWord = 2, kAddedLeftStrip = 4,
                          kAddedRightStrip = 8;

// Normalisers. Strip: argument bit 0 left, bit 1 right. Prepend: string a. Replace: each a by b.
inline constexpr uint32_t kNormNfc = 1, kNormPrepend = 2, kNormReplace = 3, kNormStrip = 4;

// Pre-tokenisers. Those that split have a behaviour in bits 0-2 of the argument, and in bit 3
// "invert".
inline constexpr uint32_t kPreByteLevel =
    1;  // argument bit 0: put a space in front, bit 1: GPT-2's expression
inline constexpr uint32_t kPreSplitRegex = 2;   // string a's offset: number of the program
inline constexpr uint32_t kPreSplitString = 3;  // string a
inline constexpr uint32_t kPrePunctuation = 4;
inline constexpr uint32_t kPreDigits = 5;      // category N; behaviour isolated or contiguous
inline constexpr uint32_t kPreWhitespace = 6;  // White_Space
inline constexpr uint32_t kPreMetaspace = 7;   // string a: the mark; argument bit 0: split, bits
    // 1-2: 0 never, 1 first, 2 always put a mark in front
inline constexpr uint32_t kRemoved = 0, kIsolated = 1, kMergedWithPrevious = 2, kMergedWithNext = 3,
                          kContiguous = 4;
inline constexpr uint32_t kInvert = 8;

inline constexpr uint32_t kItemRun = 0, kItemPossessive = 1, kItemLookahead = 2, kItemNotAhead = 3;
inline constexpr uint32_t kClassNegated = 1, kClassSpace = 2, kClassWord = 4;

inline constexpr uint32_t kMaxOps = 16;    // of one kind
inline constexpr uint32_t kMaxItems = 64;  // of one alternative

// hash() of the description above.
uint32_t hash(std::string_view bytes);
// The character of the GPT-2 alphabet that stands for a byte.
uint32_t byte_to_character(uint8_t byte);

}  // namespace tokenizer_format

class Tokenizer {
 public:
  Tokenizer() = default;

  // Checks `blob` and keeps a pointer to it. BAD_FORMAT for damage, UNSUPPORTED for a newer
  // version.
  static Status open(std::span<const uint8_t> blob, Tokenizer* out);

  int32_t n_tokens() const { return static_cast<int32_t>(n_tokens_); }
  int32_t bos() const { return bos_; }  // -1 if there is none
  int32_t eos() const { return eos_; }
  bool is_special(int32_t id) const;               // false outside [0, n_tokens)
  std::string_view token_bytes(int32_t id) const;  // as stored; empty outside [0, n_tokens)

  // Memory that encode needs for a text of this many bytes; SIZE_MAX if that overflows.
  size_t scratch_bytes(size_t text_bytes) const;

  // Writes the ids of `text` (at most `capacity`) and sets *n to the number there are; TOO_SMALL if
  // that is more. `flags`: MAMBA_EDGE_PLAIN_TEXT, MAMBA_EDGE_NO_TEMPLATE. `scratch`: any alignment.
  // O(n log n).
  Status encode(std::string_view text, unsigned flags, std::span<std::byte> scratch, int32_t* ids,
                size_t capacity, size_t* n) const;

  // BPE alone: the ids of one pre-token, given in the form in which tokens are stored.
  Status encode_word(std::string_view word, std::span<std::byte> scratch, int32_t* ids,
                     size_t capacity, size_t* n) const;

  // Decoding of a stream, see mamba_edge.h; these leave `model` of the decoder alone. A run of byte
  // tokens that is not valid UTF-8 becomes one U+FFFD for each maximal invalid part, so that text
  // can be given out as it comes; the Rust library instead turns the whole run into U+FFFD, one for
  // each token. On failure the decoder is unchanged. TOO_SMALL sets *n to the length needed.
  size_t max_piece_bytes() const { return max_piece_bytes_; }
  Status decoder_init(mamba_edge_decoder* decoder, unsigned flags) const;
  Status decode(mamba_edge_decoder* decoder, int32_t token, char* text, size_t capacity,
                size_t* n) const;
  Status decode_finish(mamba_edge_decoder* decoder, char* text, size_t capacity, size_t* n) const;

 private:
  friend class Encoder;
  struct Section {
    const uint8_t* data = nullptr;
    uint32_t n = 0;
  };

  Status check_sections() const;
  Status check_tokens();
  Status check_merges() const;
  Status check_added(uint32_t section) const;
  Status check_ops() const;
  Status check_programs() const;
  bool pool_string(uint32_t offset, uint32_t bytes) const;
  uint32_t find(std::string_view bytes) const;  // a word's token, or kNone

  Section sections_[tokenizer_format::kSections];
  uint32_t flags_ = 0;
  uint32_t n_tokens_ = 0;
  uint32_t unknown_ = tokenizer_format::kNone;
  int32_t bos_ = -1, eos_ = -1;
  uint32_t longest_token_ = 0;
  uint32_t strip_char_ = 0, strip_count_ = 0;
  size_t max_piece_bytes_ = 0;
};

}  // namespace mamba_edge
