// Writes a container (engine/container.h, docs/format.md) front to back, in one pass, under no name
// until publish(): see convert/output_file.h. Bytes depend only on what is written. Throws Error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "convert/output_file.h"
#include "engine/config.h"
#include "engine/container.h"
#include "engine/xxh64.h"

namespace mamba_edge::convert {

struct Compressed {
  uint32_t raw_bytes = 0;
  std::vector<uint8_t> frame;  // one zstd frame with content size and checksum
};

// Compresses up to format::kMaxFrameRaw bytes. `ends`: where a new zstd block starts, ascending, so
// that bytes on both sides are coded apart. Thread-safe, as is what follows.
Compressed compress_frame(std::span<const uint8_t> raw, int level,
                          std::span<const size_t> ends = {});

// The frames, of about a megabyte each, of a run of whole row blocks. `encoding` is zstd or sorted.
std::vector<Compressed> compress_row_blocks(std::span<const uint8_t> raw, const MatrixShape& shape,
                                            Encoding encoding, int level);

// The encoding, zstd or sorted, in which these row blocks take less room; and how much.
struct EncodingChoice {
  Encoding encoding = Encoding::zstd;
  uint64_t stored_bytes = 0;
};
EncodingChoice choose_encoding(std::span<const uint8_t> raw, const MatrixShape& shape, int level);

class ContainerWriter {
 public:
  ContainerWriter(std::filesystem::path path, int zstd_level);
  ContainerWriter(const ContainerWriter&) = delete;
  ContainerWriter& operator=(const ContainerWriter&) = delete;

  // A section, whole. `id` has four letters.
  void add_section(const char* id, bool required, std::span<const uint8_t> bytes);

  // A tensor: begin, its bytes in order (as frames in its encoding, or, where that is raw, as they
  // are), end. For a vector the shape has type f32, rows, cols 1.
  void begin_tensor(const std::string& name, bool is_matrix, const MatrixShape& shape,
                    uint32_t logical_cols, float scale, Encoding encoding);
  void append(std::span<const uint8_t> raw, const std::vector<Compressed>& frames);
  // Returns the bytes that the tensor takes in the file.
  uint64_t end_tensor();

  // Writes directory and header; the file is complete, but has no name yet. Returns its size.
  uint64_t complete();
  // Syncs the complete file and gives it its name.
  void publish() { file_.publish(); }
  uint64_t finish() {
    const uint64_t bytes = complete();
    publish();
    return bytes;
  }

 private:
  struct Entry {
    std::string name;  // id of a section
    bool required = false, is_matrix = false;
    MatrixShape shape;
    uint32_t logical_cols = 0;
    float scale = 1;
    Blob blob;
  };
  void begin_blob(Blob* blob, Encoding encoding, uint64_t raw_bytes);
  void write(const void* bytes, size_t n);

  OutputFile file_;
  int level_;
  uint64_t offset_ = 0;
  std::vector<Entry> sections_, tensors_;
  std::vector<FrameEntry> frames_;
  Xxh64 checksum_;
  uint64_t tensor_start_ = 0;
};

}  // namespace mamba_edge::convert
