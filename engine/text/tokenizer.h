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
// ---- The blob, version 1
// ------------------------------------------------------------------------------- Little-endian;
// u32 unless said otherwise; "none" is 0xFFFFFFFF. It needs no alignment. First the header:
//   0 magic "METK"   4 version (1)   8 size of the blob in bytes   12 flags (kFlag...)
//   16 n_tokens   20 unknown token   24 bos   28 eos   (ids or none)   32 longest token in bytes
//   36 character that decoding strips from the start of the text   40 at most how many of it
//   44, 48, 52 reserved (0)
//   56 sections: kSections pairs (offset from the start of the blob, number of elements)
// Sections, in the order of the enum Section; an element of several fields is those u32 in a row:
//   token_offsets [n_tokens + 1]   token t is token_bytes[token_offsets[t] .. token_offsets[t + 1])
//   token_bytes   bytes. If kFlagByteLevel is set these are the raw bytes that the GPT-2 alphabet
//   stands for
//                 (for a token that has characters outside of that alphabet: its UTF-8)
//   token_flags   bytes [n_tokens], kToken...
//   token_hash    [0 or a power of two] ids or none: open addressing, linear probing, from
//                 hash(bytes) & (size - 1); only the tokens that words can become (kTokenWord) are
//                 in it. hash: FNV-1a in 32 bits (offset 0x811C9DC5, prime 0x01000193), then h ^= h
//                 >> 15, h *= 0x2C1B3C6D, h ^= h >> 12
//   merge_index   [n_tokens + 1]   the merges whose left part is t are merge_index[t] ..
//   merge_index[t + 1] merges        (right id, rank), sorted by right id for each left id; the
//   lowest rank merges first merge_ids     [number of ranks] the token that the merge of a rank
//   makes single        [256] token of a word's byte (byte level) or of an ASCII character; none if
//   there is none fallback      [256] the token <0xXX> of each byte, or none added_raw     (pattern
//   offset in `pool`, pattern bytes, id, kAdded... flags): tokens looked for in the
//                 text before it is normalised; sorted by the bytes of the pattern, which is never
//                 empty
//   added_norm    the same for tokens looked for in normalised text
//   normalizers   Op, carried out in order
//   pre_tokenizers  Op, in order
//   decode_replace  at most one Op of kind kNormReplace, on each token's text when decoding;
//   argument 1: in the
//                 first token of a text, a becomes nothing instead of b
//   programs      (first alternative, number of alternatives): a regular expression for
//   kPreSplitRegex alternatives  (first item, number of items >= 1), tried in order items (class,
//   min, max or none for no bound, kind (kItem...)): a run of a class, greedy, giving back
//                 one by one if what follows fails; or a look-ahead at one character
//   classes       (ASCII bitmap in four words, category mask, kClass... flags, first range, number
//   of ranges):
//                 a code below 128 is looked up in the bitmap; another is in the class if its
//                 category, its kClass flags or a range contains it, or, with kClassNegated, if
//                 none does
//   ranges        (first code, last code)
//   prefix, suffix  ids that the post-processor puts before and after
//   pool          bytes: patterns and strings
// An Op is (kind, argument, string a: offset in pool, bytes, string b: offset in pool, bytes).
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
