#include "convert/container_writer.h"

#include <zstd.h>

#include <algorithm>
#include <limits>

#include "convert/error.h"
#include "engine/little_endian.h"
#include "quant/sorted.h"

namespace mamba_edge::convert {
namespace {

using namespace format;

constexpr size_t kFrameBytes =
    1u << 20;  // of row blocks in a frame, or one row block, or a little more

// Fixed-width fields, one after the other.
class Bytes {
 public:
  template <typename T>
  Bytes& put(T value) {
    const size_t at = data_.size();
    data_.resize(at + sizeof(T));
    store_le<T>(data_.data() + at, value);
    return *this;
  }
  Bytes& put(const std::string& text) {
    data_.insert(data_.end(), text.begin(), text.end());
    return *this;
  }
  void put_blob(const Blob& blob) {
    put(blob.raw_bytes).put(blob.checksum).put(blob.first_frame).put(blob.n_frames);
    put(static_cast<uint32_t>(blob.encoding)).put(uint32_t{0});
  }
  const std::vector<uint8_t>& data() const { return data_; }

 private:
  std::vector<uint8_t> data_;
};

}  // namespace

Compressed compress_frame(std::span<const uint8_t> raw, int level, std::span<const size_t> ends) {
  struct Free {
    void operator()(ZSTD_CCtx* c) const { ZSTD_freeCCtx(c); }
  };
  const std::unique_ptr<ZSTD_CCtx, Free> context(ZSTD_createCCtx());
  if (!context) throw Error("zstd: out of memory");
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_compressionLevel, level);
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_checksumFlag, 1);
  ZSTD_CCtx_setPledgedSrcSize(context.get(), raw.size());
  Compressed result;
  result.raw_bytes = static_cast<uint32_t>(raw.size());
  constexpr size_t kBlockHeader = 3;  // an end costs no more than one
  result.frame.resize(ZSTD_compressBound(raw.size()) + ends.size() * kBlockHeader);
  ZSTD_inBuffer in{raw.data(), 0, 0};
  ZSTD_outBuffer out{result.frame.data(), result.frame.size(), 0};
  const auto compress = [&](size_t end, ZSTD_EndDirective directive) {
    in.size = end;
    const size_t left = ZSTD_compressStream2(context.get(), &out, &in, directive);
    if (ZSTD_isError(left)) throw Error(std::string("zstd: ") + ZSTD_getErrorName(left));
    if (left != 0) throw Error("zstd: the frame does not fit its bound");
  };
  for (const size_t end : ends) compress(end, ZSTD_e_flush);
  compress(raw.size(), ZSTD_e_end);
  result.frame.resize(out.pos);
  return result;
}

std::vector<Compressed> compress_row_blocks(std::span<const uint8_t> raw, const MatrixShape& shape,
                                            Encoding encoding, int level) {
  const size_t block_bytes = shape.row_block_bytes(), blocks = raw.size() / block_bytes;
  const size_t pieces = (raw.size() + kFrameBytes - 1) / kFrameBytes;
  std::vector<Compressed> frames;
  if (block_bytes > kMaxFrameRaw) {  // too large to sort; cut anywhere
    for (size_t at = 0; at < raw.size(); at += kMaxFrameRaw) {
      frames.push_back(
          compress_frame(raw.subspan(at, std::min<size_t>(kMaxFrameRaw, raw.size() - at)), level));
    }
    return frames;
  }
  const size_t per_frame = std::max<size_t>(1, (blocks + pieces - 1) / std::max<size_t>(1, pieces));
  std::vector<uint8_t> sorted;
  for (size_t block = 0; block < blocks; block += per_frame) {
    const size_t n = std::min(per_frame, blocks - block);
    const auto piece = raw.subspan(block * block_bytes, n * block_bytes);
    if (encoding != Encoding::sorted) {
      frames.push_back(compress_frame(piece, level));
      continue;
    }
    sorted.resize(piece.size());
    sort_row_blocks(shape, n, piece.data(), sorted.data());
    size_t ends[kMostRuns];
    const size_t runs = sorted_runs(shape, n, ends);
    for (size_t i = 1; i < runs; ++i) ends[i] += ends[i - 1];
    frames.push_back(compress_frame(sorted, level, {ends, runs - 1}));
  }
  return frames;
}

EncodingChoice choose_encoding(std::span<const uint8_t> raw, const MatrixShape& shape, int level) {
  const auto bytes = [&](Encoding encoding) {
    uint64_t sum = 0;
    for (const Compressed& c : compress_row_blocks(raw, shape, encoding, level))
      sum += c.frame.size();
    return sum;
  };
  const EncodingChoice plain{Encoding::zstd, bytes(Encoding::zstd)};
  if (shape.row_block_bytes() > kMaxFrameRaw) return plain;
  const EncodingChoice sorted{Encoding::sorted, bytes(Encoding::sorted)};
  return sorted.stored_bytes < plain.stored_bytes ? sorted : plain;
}

ContainerWriter::ContainerWriter(std::filesystem::path path, int zstd_level)
    : file_(std::move(path)), level_(zstd_level) {
  const std::vector<uint8_t> header(kHeaderBytes, 0);  // finish() writes the real one
  write(header.data(), header.size());
}

void ContainerWriter::write(const void* bytes, size_t n) {
  file_.write_at(offset_, bytes, n);
  offset_ += n;
}

// Starts a blob. A raw one is the content of a skippable frame, whose size must be known first,
// padded in front so that the bytes are aligned.
void ContainerWriter::begin_blob(Blob* blob, Encoding encoding, uint64_t raw_bytes) {
  blob->first_frame = static_cast<uint32_t>(frames_.size());
  blob->encoding = encoding;
  checksum_ = {};
  if (encoding != Encoding::raw) return;
  const uint64_t content = offset_ + kFrameHeaderBytes;
  const uint64_t padding = round_up<uint64_t>(content, kBlockAlign) - content;
  if (padding + raw_bytes > std::numeric_limits<uint32_t>::max()) {
    throw Error(file_.path().string() + ": a tensor of " + std::to_string(raw_bytes) +
                " bytes is too large for --store (4 GiB at most); leave --store out");
  }
  Bytes head;
  head.put(kSkippableMagic).put(static_cast<uint32_t>(padding + raw_bytes));
  for (uint64_t i = 0; i < padding; ++i) head.put(uint8_t{0});
  write(head.data().data(), head.data().size());
  frames_.push_back({offset_, static_cast<uint32_t>(raw_bytes), static_cast<uint32_t>(raw_bytes)});
  blob->n_frames = 1;
}

void ContainerWriter::add_section(const char* id, bool required, std::span<const uint8_t> bytes) {
  Entry entry;
  entry.name = id;
  entry.required = required;
  begin_blob(&entry.blob, Encoding::zstd, bytes.size());
  for (size_t at = 0; at < bytes.size(); at += kMaxFrameRaw) {
    const auto piece = bytes.subspan(at, std::min<size_t>(kMaxFrameRaw, bytes.size() - at));
    const Compressed c = compress_frame(piece, level_);
    frames_.push_back({offset_, static_cast<uint32_t>(c.frame.size()), c.raw_bytes});
    write(c.frame.data(), c.frame.size());
    ++entry.blob.n_frames;
  }
  entry.blob.raw_bytes = bytes.size();
  entry.blob.checksum = xxh64(bytes.data(), bytes.size());
  sections_.push_back(std::move(entry));
}

void ContainerWriter::begin_tensor(const std::string& name, bool is_matrix,
                                   const MatrixShape& shape, uint32_t logical_cols, float scale,
                                   Encoding encoding) {
  Entry entry;
  entry.name = name;
  entry.is_matrix = is_matrix;
  entry.shape = shape;
  entry.logical_cols = logical_cols;
  entry.scale = scale;
  tensor_start_ = offset_;
  entry.blob.raw_bytes = is_matrix ? shape.bytes() : vector_bytes(shape.rows);
  begin_blob(&entry.blob, encoding, entry.blob.raw_bytes);
  tensors_.push_back(std::move(entry));
}

void ContainerWriter::append(std::span<const uint8_t> raw, const std::vector<Compressed>& frames) {
  checksum_.update(raw.data(), raw.size());
  if (tensors_.back().blob.encoding == Encoding::raw) {
    write(raw.data(), raw.size());
    return;
  }
  for (const Compressed& c : frames) {
    frames_.push_back({offset_, static_cast<uint32_t>(c.frame.size()), c.raw_bytes});
    write(c.frame.data(), c.frame.size());
    ++tensors_.back().blob.n_frames;
  }
}

uint64_t ContainerWriter::end_tensor() {
  tensors_.back().blob.checksum = checksum_.digest();
  return offset_ - tensor_start_;
}

uint64_t ContainerWriter::complete() {
  Bytes names, directory;
  for (const Entry& t : tensors_) names.put(t.name);
  directory.put(static_cast<uint32_t>(sections_.size()))
      .put(static_cast<uint32_t>(tensors_.size()));
  directory.put(static_cast<uint32_t>(frames_.size()))
      .put(static_cast<uint32_t>(names.data().size()));
  for (const Entry& s : sections_) {
    directory.put(s.name).put(s.required ? kSectionRequired : 0u);
    directory.put_blob(s.blob);
  }
  uint32_t name_offset = 0;
  for (const Entry& t : tensors_) {
    const auto name_bytes = static_cast<uint32_t>(t.name.size());
    directory.put(name_offset)
        .put(name_bytes)
        .put(uint32_t{t.is_matrix})
        .put(static_cast<uint32_t>(t.shape.type));
    directory.put(t.shape.rows)
        .put(t.logical_cols)
        .put(t.shape.cols)
        .put(t.shape.group)
        .put(t.scale);
    directory.put(t.shape.rotation);
    directory.put_blob(t.blob);
    name_offset += name_bytes;
  }
  for (const FrameEntry& f : frames_) directory.put(f.offset).put(f.stored_bytes).put(f.raw_bytes);
  const std::vector<uint8_t>& d = directory.data();
  const std::vector<uint8_t>& n = names.data();

  Bytes frame;
  frame.put(kSkippableMagic).put(static_cast<uint32_t>(d.size() + n.size()));
  write(frame.data().data(), frame.data().size());
  const uint64_t directory_offset = offset_;
  write(d.data(), d.size());
  write(n.data(), n.size());
  Xxh64 checksum;
  checksum.update(d.data(), d.size());
  checksum.update(n.data(), n.size());

  Bytes header;
  header.put(kSkippableMagic).put(static_cast<uint32_t>(kHeaderBytes - kFrameHeaderBytes));
  header.put(std::string(kMagic, sizeof kMagic)).put(kVersion).put(uint32_t{0});
  header.put(directory_offset)
      .put(static_cast<uint64_t>(d.size() + n.size()))
      .put(checksum.digest());
  header.put(offset_);
  while (header.data().size() < kHeaderBytes - 8) header.put(uint8_t{0});
  header.put(xxh64(header.data().data(), header.data().size()));
  file_.write_at(0, header.data().data(), header.data().size());
  return offset_;
}

}  // namespace mamba_edge::convert
