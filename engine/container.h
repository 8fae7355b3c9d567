// The container: one file with everything that the engine needs. docs/format.md describes every
// byte.
//
// In short: a legal sequence of zstd frames. A header (skippable frame) at offset 0 points at the
// directory (skippable frame) at the end, which lists sections and tensors, each a blob of one or
// more frames: ordinary zstd frames with content checksums, of the bytes or, for tensors, of the
// bytes in the order of quant/sorted.h; or one raw run of bytes inside a skippable frame, 64-byte
// aligned, for mapping. This header has the layout, shared by reader and writer, and the reader. The
// reader checks every number before it trusts it; it does not know which tensors a model needs
// (loader.h does).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "engine/config.h"
#include "engine/status.h"
#include "platforms/os/file_map.h"
#include "quant/blocks.h"

struct ZSTD_DCtx_s;

namespace mamba_edge {

namespace format {
constexpr uint32_t kSkippableMagic = 0x184D2A5E;  // zstd: 0x184D2A50 to 0x184D2A5F
constexpr char kMagic[8] = {'M', 'A', 'M', 'B', 'E', 'D', 'G', 'E'};
constexpr uint32_t kVersion = 1;
constexpr size_t kFrameHeaderBytes = 8;  // magic, content size
constexpr size_t kHeaderBytes = 128;     // the header frame, its 8 bytes included
constexpr size_t kDirectoryHeadBytes = 16;
constexpr size_t kBlobBytes = 32;
constexpr size_t kSectionBytes = 8 + kBlobBytes;
constexpr size_t kTensorBytes = 40 + kBlobBytes;
constexpr size_t kFrameEntryBytes = 16;
constexpr uint32_t kSectionRequired =
    1;  // flag: a reader that does not know this section must refuse the file
constexpr uint32_t kOptionalKey = 0x80000000;  // bit of a config key that a reader may ignore
constexpr uint64_t kMaxFrameRaw = 4u << 20;    // raw bytes of one compressed frame
}  // namespace format

enum class Encoding : uint32_t { raw = 0, zstd = 1, sorted = 2 };

// Where the bytes of a section or tensor lie.
struct Blob {
  uint64_t raw_bytes = 0;
  uint64_t checksum = 0;  // XXH64 of the raw bytes
  uint32_t first_frame = 0;
  uint32_t n_frames = 0;
  Encoding encoding = Encoding::raw;
  MatrixShape shape;  // of the row blocks in sorted frames
};

struct FrameEntry {
  uint64_t offset = 0;  // of the zstd frame, or of the raw bytes themselves
  uint32_t stored_bytes = 0;
  uint32_t raw_bytes = 0;
};

struct TensorEntry {
  std::string_view name;
  bool is_matrix = false;
  MatrixShape shape;          // of a matrix; a vector has type f32, rows, cols 1
  uint32_t logical_cols = 0;  // without the padding to whole groups
  float scale = 1.0f;         // of a matrix
  Blob blob;
};

// Bytes that a vector of n floats takes: padded to 16 floats with zeros.
constexpr uint64_t vector_bytes(uint64_t n) { return round_up<uint64_t>(n, kTileRows) * 4; }

// An open container. Movable, not copyable. Reads are thread-safe.
class Container {
 public:
  Container() = default;
  ~Container();
  Container(Container&& other) noexcept;
  Container& operator=(Container&& other) noexcept;

  // Opens the file and checks header and directory. Allocates the directory.
  static Status open(const char* path, Container* out);

  const char* path() const { return path_; }
  uint64_t file_bytes() const { return file_.size; }
  const File& file() const { return file_; }
  const ModelConfig& config() const { return config_; }
  uint64_t fingerprint() const {
    return fingerprint_;
  }  // of config and tensors, the same for every encoding of them

  uint32_t n_tensors() const { return n_tensors_; }
  TensorEntry tensor(uint32_t index) const;
  bool find_tensor(std::string_view name, TensorEntry* out) const;

  // Sections by their four letters: "TOKN" tokenizer, "PROV" provenance.
  bool find_section(const char id[4], Blob* out) const;

  FrameEntry frame(uint32_t index) const;

  // Stored bytes of a blob, frame headers and alignment excluded.
  uint64_t stored_bytes(const Blob& blob) const;

  // Reads a whole blob and checks its XXH64.
  Status read_blob(const Blob& blob, uint8_t* out, std::string_view what) const;

  Status damaged(const char* format, ...) const __attribute__((format(printf, 2, 3)));

 private:
  Status parse_directory();
  Status parse_blob(const uint8_t* p, std::string_view what, Blob* out) const;
  Status check_frames();
  Status check_tensors();
  Status check_names() const;
  std::string_view name(uint32_t index) const;
  Status read_config();

  char* path_ = nullptr;
  File file_;
  uint8_t* directory_ = nullptr;
  size_t directory_bytes_ = 0;
  uint64_t directory_offset_ = 0;
  uint32_t n_sections_ = 0, n_tensors_ = 0, n_frames_ = 0, names_bytes_ = 0;
  const uint8_t* sections_ = nullptr;
  const uint8_t* tensors_ = nullptr;
  const uint8_t* frames_ = nullptr;
  const char* names_ = nullptr;
  uint64_t fingerprint_ = 0;
  ModelConfig config_;
};

// Reads frames of one container, one after the other, and keeps the memory that this takes. For one
// thread at a time.
class FrameReader {
 public:
  explicit FrameReader(const Container& container) : c_(container) {}
  ~FrameReader();
  FrameReader(const FrameReader&) = delete;
  FrameReader& operator=(const FrameReader&) = delete;

  // Reads one frame of a blob to `out` (frame.raw_bytes long). `what` names the blob in messages.
  // Compressed frames are checked by their own checksum.
  Status read(const Blob& blob, uint32_t index_in_blob, uint8_t* out, std::string_view what);

 private:
  Status reserve(size_t bytes);

  const Container& c_;
  uint8_t* scratch_ = nullptr;
  size_t scratch_bytes_ = 0;
  ZSTD_DCtx_s* context_ = nullptr;
};

// The CONF section: pairs of uint32 (key, value), in ascending order of keys. Reader and writer
// share this list.
constexpr uint32_t kConfigKeys = 34;
size_t encode_config(const ModelConfig& config, uint8_t out[8 * kConfigKeys]);
Status decode_config(const uint8_t* bytes, size_t n, const char* path, ModelConfig* out);

// Writes `name=value` pairs of the PROV section one after the other: calls visit(user, key, value)
// for each.
Status for_each_provenance(const uint8_t* bytes, size_t n, const char* path,
                           void (*visit)(void* user, std::string_view key, std::string_view value),
                           void* user);

}  // namespace mamba_edge
