#include "engine/container.h"

#include <zstd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "engine/little_endian.h"
#include "engine/xxh64.h"
#include "quant/sorted.h"

namespace mamba_edge {
namespace {

using namespace format;

// A cursor over one record of the directory.
class Cursor {
 public:
  explicit Cursor(const uint8_t* p) : p_(p) {}
  uint32_t u32() { return take<uint32_t>(); }
  uint64_t u64() { return take<uint64_t>(); }
  float f32() { return std::bit_cast<float>(u32()); }

 private:
  template <typename T>
  T take() {
    const T value = load_le<T>(p_);
    p_ += sizeof(T);
    return value;
  }
  const uint8_t* p_;
};

int clip(std::string_view text) { return static_cast<int>(text.size() < 60 ? text.size() : 60); }

// One field of the config: its key in the file and where it lives in a ModelConfig.
struct ConfigField {
  uint32_t key;
  const char* name;
  uint32_t (*get)(const ModelConfig&);
  void (*set)(ModelConfig&, uint32_t);
  bool for_mamba1, for_mamba2;
};

#define ME_U32(key, member, m1, m2)                                                               \
  {                                                                                               \
    key, #member, [](const ModelConfig& c) { return static_cast<uint32_t>(c.member); },           \
        [](ModelConfig& c, uint32_t v) { c.member = static_cast<decltype(c.member)>(v); }, m1, m2 \
  }
#define ME_F32(key, member, m1, m2)                                                       \
  {                                                                                       \
    key, #member, [](const ModelConfig& c) { return std::bit_cast<uint32_t>(c.member); }, \
        [](ModelConfig& c, uint32_t v) { c.member = std::bit_cast<float>(v); }, m1, m2    \
  }

// Keys are part of the container format and never change.
constexpr ConfigField kFields[kConfigKeys] = {
    ME_U32(1, architecture, true, true),
    ME_U32(2, d_model, true, true),
    ME_U32(3, n_layer, true, true),
    ME_U32(4, n_vocab, true, true),
    ME_U32(5, n_vocab_used, true, true),
    ME_U32(6, norm, true, true),
    ME_F32(7, norm_eps, true, true),
    ME_U32(8, residual_in_fp32, true, true),
    ME_U32(9, tied, true, true),
    ME_U32(10, bos_token, true, true),
    ME_U32(11, eos_token, true, true),
    ME_U32(32, mamba1.d_inner, true, false),
    ME_U32(33, mamba1.d_state, true, false),
    ME_U32(34, mamba1.d_conv, true, false),
    ME_U32(35, mamba1.dt_rank, true, false),
    ME_U32(36, mamba1.proj_bias, true, false),
    ME_U32(37, mamba1.conv_bias, true, false),
    ME_U32(38, mamba1.dt_bc_norm, true, false),
    ME_F32(39, mamba1.dt_bc_eps, true, false),
    ME_U32(64, mamba2.d_inner, false, true),
    ME_U32(65, mamba2.d_state, false, true),
    ME_U32(66, mamba2.d_conv, false, true),
    ME_U32(67, mamba2.headdim, false, true),
    ME_U32(68, mamba2.n_heads, false, true),
    ME_U32(69, mamba2.n_groups, false, true),
    ME_U32(70, mamba2.proj_bias, false, true),
    ME_U32(71, mamba2.conv_bias, false, true),
    ME_U32(72, mamba2.gated_norm, false, true),
    ME_U32(73, mamba2.norm_before_gate, false, true),
    ME_U32(74, mamba2.d_per_channel, false, true),
    ME_U32(75, mamba2.init_states, false, true),
    ME_F32(76, mamba2.norm_eps, false, true),
    ME_F32(77, mamba2.dt_low, false, true),
    ME_F32(78, mamba2.dt_high, false, true),
};
#undef ME_U32
#undef ME_F32

bool concerns(const ConfigField& field, const ModelConfig& config) {
  return config.is_mamba2() ? field.for_mamba2 : field.for_mamba1;
}

}  // namespace

size_t encode_config(const ModelConfig& config, uint8_t out[8 * kConfigKeys]) {
  size_t n = 0;
  for (const ConfigField& field : kFields) {
    if (!concerns(field, config)) continue;
    store_le<uint32_t>(out + n, field.key);
    store_le<uint32_t>(out + n + 4, field.get(config));
    n += 8;
  }
  return n;
}

Status decode_config(const uint8_t* bytes, size_t n, const char* path, ModelConfig* out) {
  if (n % 8 != 0) {
    return Status::error(MAMBA_EDGE_BAD_FORMAT,
                         "%s: config section of %zu bytes is not made of pairs", path, n);
  }
  ModelConfig config;
  bool seen[kConfigKeys] = {};
  uint32_t previous = 0;
  for (size_t at = 0; at < n; at += 8) {
    const auto key = load_le<uint32_t>(bytes + at);
    const auto value = load_le<uint32_t>(bytes + at + 4);
    if (key <= previous) {
      return Status::error(MAMBA_EDGE_BAD_FORMAT, "%s: config key %u is out of order", path, key);
    }
    previous = key;
    bool known = false;
    for (uint32_t i = 0; i < kConfigKeys; ++i) {
      if (kFields[i].key != key) continue;
      kFields[i].set(config, value);
      known = seen[i] = true;
    }
    if (!known && (key & kOptionalKey) == 0) {
      return Status::error(MAMBA_EDGE_UNSUPPORTED,
                           "%s: config key %u is not known to this version; a newer one is needed",
                           path, key);
    }
  }
  for (uint32_t i = 0; i < kConfigKeys; ++i) {
    if (!seen[i] && concerns(kFields[i], config)) {
      return Status::error(MAMBA_EDGE_BAD_FORMAT, "%s: the config has no %s (key %u)", path,
                           kFields[i].name, kFields[i].key);
    }
  }
  const Status valid = validate(config);
  if (!valid.ok()) return Status::error(valid.code(), "%s: config: %s", path, valid.message());
  *out = config;
  return {};
}

Status for_each_provenance(const uint8_t* bytes, size_t n, const char* path,
                           void (*visit)(void* user, std::string_view key, std::string_view value),
                           void* user) {
  const auto* text = reinterpret_cast<const char*>(bytes);
  for (size_t at = 0; at < n;) {
    if (n - at < 8) return Status::error(MAMBA_EDGE_BAD_FORMAT, "%s: provenance is cut", path);
    const auto key_bytes = load_le<uint32_t>(bytes + at);
    const auto value_bytes = load_le<uint32_t>(bytes + at + 4);
    at += 8;
    if (key_bytes > n - at || value_bytes > n - at - key_bytes) {
      return Status::error(MAMBA_EDGE_BAD_FORMAT,
                           "%s: a provenance entry is longer than its section", path);
    }
    visit(user, {text + at, key_bytes}, {text + at + key_bytes, value_bytes});
    at += size_t{key_bytes} + value_bytes;
  }
  return {};
}

Container::~Container() {
  file_close(&file_);
  std::free(path_);
  std::free(directory_);
}

Container::Container(Container&& other) noexcept { *this = std::move(other); }

Container& Container::operator=(Container&& other) noexcept {
  if (this == &other) return *this;
  file_close(&file_);
  std::free(path_);
  std::free(directory_);
  path_ = std::exchange(other.path_, nullptr);
  file_ = std::exchange(other.file_, {});
  directory_ = std::exchange(other.directory_, nullptr);
  directory_bytes_ = other.directory_bytes_;
  directory_offset_ = other.directory_offset_;
  n_sections_ = other.n_sections_;
  n_tensors_ = other.n_tensors_;
  n_frames_ = other.n_frames_;
  names_bytes_ = other.names_bytes_;
  sections_ = other.sections_;
  tensors_ = other.tensors_;
  frames_ = other.frames_;
  names_ = other.names_;
  fingerprint_ = other.fingerprint_;
  config_ = other.config_;
  return *this;
}

Status Container::damaged(const char* format, ...) const {
  char text[400];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return Status::error(MAMBA_EDGE_BAD_FORMAT, "%s: damaged: %s", path_, text);
}

Status Container::open(const char* path, Container* out) {
  Container c;
  c.path_ = strdup(path);
  if (c.path_ == nullptr) return Status::error(MAMBA_EDGE_OUT_OF_MEMORY, "%s: out of memory", path);
  if (const int error = file_open(path, &c.file_)) {
    return Status::error(MAMBA_EDGE_IO, "%s: cannot open: %s", path, std::strerror(error));
  }
  uint8_t header[kHeaderBytes];
  if (c.file_.size < kHeaderBytes) {
    return Status::error(
        MAMBA_EDGE_BAD_FORMAT,
        "%s: not a mamba-edge model: %llu bytes long, and the header alone has %zu", path,
        static_cast<unsigned long long>(c.file_.size), kHeaderBytes);
  }
  if (const int error = file_read(c.file_, 0, header, kHeaderBytes)) {
    return Status::error(MAMBA_EDGE_IO, "%s: cannot read the header: %s", path,
                         std::strerror(error));
  }
  if (load_le<uint32_t>(header) != kSkippableMagic ||
      load_le<uint32_t>(header + 4) != kHeaderBytes - kFrameHeaderBytes ||
      std::memcmp(header + 8, kMagic, sizeof kMagic) != 0) {
    return Status::error(
        MAMBA_EDGE_BAD_FORMAT,
        "%s: not a mamba-edge model (wrong magic); convert checkpoints with mamba-quantize", path);
  }
  const auto version = load_le<uint32_t>(header + 16);
  if (version != kVersion) {
    return Status::error(MAMBA_EDGE_UNSUPPORTED,
                         "%s: container version %u; this library reads version %u", path, version,
                         kVersion);
  }
  if (load_le<uint64_t>(header + kHeaderBytes - 8) != xxh64(header, kHeaderBytes - 8)) {
    return c.damaged("the header's checksum does not match");
  }
  c.directory_offset_ = load_le<uint64_t>(header + 24);
  const auto directory_bytes = load_le<uint64_t>(header + 32);
  const auto directory_checksum = load_le<uint64_t>(header + 40);
  const auto file_bytes = load_le<uint64_t>(header + 48);
  if (file_bytes != c.file_.size) {
    return c.damaged("the header says %llu bytes, the file has %llu%s",
                     static_cast<unsigned long long>(file_bytes),
                     static_cast<unsigned long long>(c.file_.size),
                     c.file_.size < file_bytes ? " (an incomplete copy?)" : "");
  }
  // The directory frame is the last one.
  if (c.directory_offset_ < kHeaderBytes || directory_bytes > file_bytes ||
      c.directory_offset_ > file_bytes - directory_bytes ||
      c.directory_offset_ + directory_bytes != file_bytes ||
      directory_bytes < kDirectoryHeadBytes) {
    return c.damaged("the directory does not lie at the end of the file");
  }
  c.directory_ = static_cast<uint8_t*>(std::malloc(directory_bytes));
  if (c.directory_ == nullptr) {
    return Status::error(MAMBA_EDGE_OUT_OF_MEMORY, "%s: no memory for a directory of %llu bytes",
                         path, static_cast<unsigned long long>(directory_bytes));
  }
  c.directory_bytes_ = directory_bytes;
  if (const int error = file_read(c.file_, c.directory_offset_, c.directory_, directory_bytes)) {
    return Status::error(MAMBA_EDGE_IO, "%s: cannot read the directory: %s", path,
                         std::strerror(error));
  }
  if (xxh64(c.directory_, directory_bytes) != directory_checksum) {
    return c.damaged("the directory's checksum does not match");
  }
  ME_TRY(c.parse_directory());
  ME_TRY(c.read_config());
  Xxh64 fingerprint;
  uint8_t config_bytes[8 * kConfigKeys];
  fingerprint.update(config_bytes, encode_config(c.config_, config_bytes));
  for (uint32_t i = 0; i < c.n_tensors_; ++i) {
    const TensorEntry t = c.tensor(i);
    fingerprint.update(t.name.data(), t.name.size());
    fingerprint.update(&t.blob.checksum, sizeof t.blob.checksum);
    fingerprint.update(&t.scale, sizeof t.scale);
  }
  c.fingerprint_ = fingerprint.digest();
  *out = std::move(c);
  return {};
}

Status Container::parse_directory() {
  Cursor head(directory_);
  n_sections_ = head.u32();
  n_tensors_ = head.u32();
  n_frames_ = head.u32();
  names_bytes_ = head.u32();
  const uint64_t expected = kDirectoryHeadBytes + uint64_t{n_sections_} * kSectionBytes +
                            uint64_t{n_tensors_} * kTensorBytes +
                            uint64_t{n_frames_} * kFrameEntryBytes + names_bytes_;
  if (expected != directory_bytes_) {
    return damaged("a directory of %zu bytes cannot hold %u sections, %u tensors and %u frames",
                   directory_bytes_, n_sections_, n_tensors_, n_frames_);
  }
  sections_ = directory_ + kDirectoryHeadBytes;
  tensors_ = sections_ + size_t{n_sections_} * kSectionBytes;
  frames_ = tensors_ + size_t{n_tensors_} * kTensorBytes;
  names_ = reinterpret_cast<const char*>(frames_ + size_t{n_frames_} * kFrameEntryBytes);
  ME_TRY(check_frames());
  for (uint32_t i = 0; i < n_sections_; ++i) {
    const uint8_t* p = sections_ + size_t{i} * kSectionBytes;
    const std::string_view id(reinterpret_cast<const char*>(p), 4);
    Blob blob;
    ME_TRY(parse_blob(p + 8, id, &blob));
    if (blob.encoding == Encoding::sorted) {
      return damaged("section \"%.4s\" is sorted, as only tensors can be", id.data());
    }
    const bool known = id == "CONF" || id == "TOKN" || id == "PROV";
    if (!known && (load_le<uint32_t>(p + 4) & kSectionRequired) != 0) {
      return Status::error(MAMBA_EDGE_UNSUPPORTED,
                           "%s: needs section \"%.4s\", which this version does not know", path_,
                           id.data());
    }
  }
  return check_tensors();
}

Status Container::check_frames() {
  for (uint32_t i = 0; i < n_frames_; ++i) {
    const FrameEntry f = frame(i);
    if (f.offset < kHeaderBytes || f.offset > directory_offset_ ||
        f.stored_bytes > directory_offset_ - f.offset) {
      return damaged("frame %u lies outside the file's data", i);
    }
  }
  return {};
}

Status Container::parse_blob(const uint8_t* p, std::string_view what, Blob* out) const {
  Cursor cursor(p);
  Blob blob;
  blob.raw_bytes = cursor.u64();
  blob.checksum = cursor.u64();
  blob.first_frame = cursor.u32();
  blob.n_frames = cursor.u32();
  const uint32_t encoding = cursor.u32();
  const int width = clip(what);
  if (encoding > static_cast<uint32_t>(Encoding::sorted)) {
    return Status::error(MAMBA_EDGE_UNSUPPORTED,
                         "%s: \"%.*s\" has encoding %u, which this version does not know", path_,
                         width, what.data(), encoding);
  }
  blob.encoding = static_cast<Encoding>(encoding);
  if (blob.first_frame > n_frames_ || blob.n_frames > n_frames_ - blob.first_frame) {
    return damaged("\"%.*s\" has frames %u to %llu of %u", width, what.data(), blob.first_frame,
                   static_cast<unsigned long long>(blob.first_frame) + blob.n_frames, n_frames_);
  }
  uint64_t raw = 0;
  for (uint32_t i = 0; i < blob.n_frames; ++i) {
    const FrameEntry f = frame(blob.first_frame + i);
    raw += f.raw_bytes;
    const bool plausible = blob.encoding == Encoding::raw
                               ? f.stored_bytes == f.raw_bytes && f.offset % kBlockAlign == 0
                               : f.raw_bytes <= kMaxFrameRaw;
    if (!plausible) {
      return damaged("frame %u of \"%.*s\" has %u bytes for %u at offset %llu", i, width,
                     what.data(), f.stored_bytes, f.raw_bytes,
                     static_cast<unsigned long long>(f.offset));
    }
  }
  const bool one_run = blob.encoding != Encoding::raw || blob.n_frames <= 1;
  if (raw != blob.raw_bytes || !one_run) {
    return damaged("the frames of \"%.*s\" hold %llu bytes; %llu expected", width, what.data(),
                   static_cast<unsigned long long>(raw),
                   static_cast<unsigned long long>(blob.raw_bytes));
  }
  *out = blob;
  return {};
}

Status Container::check_tensors() {
  for (uint32_t i = 0; i < n_tensors_; ++i) {
    Cursor cursor(tensors_ + size_t{i} * kTensorBytes);
    const uint32_t name_offset = cursor.u32(), name_bytes = cursor.u32();
    if (name_offset > names_bytes_ || name_bytes > names_bytes_ - name_offset || name_bytes == 0) {
      return damaged("tensor %u has no valid name", i);
    }
    const std::string_view name(names_ + name_offset, name_bytes);
    const int width = clip(name);
    const uint32_t is_matrix = cursor.u32(), type = cursor.u32(), rows = cursor.u32(),
                   logical_cols = cursor.u32(), cols = cursor.u32(), group = cursor.u32();
    const float scale = cursor.f32();
    if (!is_known(static_cast<WeightType>(type))) {
      return Status::error(
          MAMBA_EDGE_UNSUPPORTED,
          "%s: tensor \"%.*s\" has weight type %u, which this version does not know", path_, width,
          name.data(), type);
    }
    Blob blob;
    ME_TRY(parse_blob(tensors_ + size_t{i} * kTensorBytes + 40, name, &blob));
    const uint32_t rotation = cursor.u32();
    const MatrixShape shape{static_cast<WeightType>(type), rows, cols, group, rotation};
    const bool grouped = is_grouped(shape.type);
    const bool can_rotate = rotation >= kGroupMultiple && rotation <= kMaxRotation &&
                            std::has_single_bit(rotation) && is_quantised(shape.type);
    // Bounds first, so that the products below cannot overflow: 2^32 rows x 2^24 columns x 4 bytes
    // < 2^63.
    const bool sane =
        is_matrix <= 1 && rows > 0 && logical_cols > 0 && cols >= logical_cols &&
        cols <= (1u << 24) && rows <= (1u << 28) && std::isfinite(scale) && scale > 0 &&
        (grouped ? group % properties(shape.type).unit() == 0 && group > 0 && group <= kMaxGroup &&
                       cols % group == 0 && cols - logical_cols < group
                 : group == 1 && cols == logical_cols) &&
        (rotation == 0 || (can_rotate && group % rotation == 0)) &&
        (is_matrix == 1 || (shape.type == WeightType::f32 && cols == 1));
    if (!sane) {
      return damaged("tensor \"%.*s\" has an impossible shape: %u x %u (%u), group %u, rotation %u",
                     width, name.data(), rows, logical_cols, cols, group, rotation);
    }
    const uint64_t expected = is_matrix ? shape.bytes() : vector_bytes(rows);
    if (blob.raw_bytes != expected) {
      return damaged("tensor \"%.*s\" has %llu bytes; its shape needs %llu", width, name.data(),
                     static_cast<unsigned long long>(blob.raw_bytes),
                     static_cast<unsigned long long>(expected));
    }
    for (uint32_t f = 0; blob.encoding == Encoding::sorted && f < blob.n_frames; ++f) {
      const uint32_t raw = frame(blob.first_frame + f).raw_bytes;
      if (raw % shape.row_block_bytes() != 0) {
        return damaged("sorted frame %u of \"%.*s\" has %u bytes, and a row block %zu", f, width,
                       name.data(), raw, shape.row_block_bytes());
      }
    }
  }
  return check_names();
}

std::string_view Container::name(uint32_t index) const {
  const uint8_t* p = tensors_ + size_t{index} * kTensorBytes;
  return {names_ + load_le<uint32_t>(p), load_le<uint32_t>(p + 4)};
}

// A name that stands for two tensors would mean one or the other, depending on who looks.
Status Container::check_names() const {
  auto* order = static_cast<uint32_t*>(std::calloc(size_t{n_tensors_} + 1, sizeof(uint32_t)));
  if (order == nullptr) return Status::error(MAMBA_EDGE_OUT_OF_MEMORY, "%s: out of memory", path_);
  for (uint32_t i = 0; i < n_tensors_; ++i) order[i] = i;
  std::sort(order, order + n_tensors_, [&](uint32_t a, uint32_t b) { return name(a) < name(b); });
  Status status;
  for (uint32_t i = 1; i < n_tensors_ && status.ok(); ++i) {
    if (name(order[i]) != name(order[i - 1])) continue;
    const std::string_view twice = name(order[i]);
    status = damaged("two tensors are called \"%.*s\"", clip(twice), twice.data());
  }
  std::free(order);
  return status;
}

Status Container::read_config() {
  Blob blob;
  if (!find_section("CONF", &blob)) return damaged("there is no config section");
  uint8_t bytes[4096];
  if (blob.raw_bytes > sizeof bytes) return damaged("the config section has an impossible size");
  ME_TRY(read_blob(blob, bytes, "CONF"));
  return decode_config(bytes, blob.raw_bytes, path_, &config_);
}

TensorEntry Container::tensor(uint32_t index) const {
  const uint8_t* p = tensors_ + size_t{index} * kTensorBytes;
  Cursor cursor(p);
  TensorEntry t;
  const uint32_t name_offset = cursor.u32(), name_bytes = cursor.u32();
  t.name = {names_ + name_offset, name_bytes};
  t.is_matrix = cursor.u32() != 0;
  t.shape.type = static_cast<WeightType>(cursor.u32());
  t.shape.rows = cursor.u32();
  t.logical_cols = cursor.u32();
  t.shape.cols = cursor.u32();
  t.shape.group = cursor.u32();
  t.scale = cursor.f32();
  t.shape.rotation = cursor.u32();
  const Status parsed = parse_blob(p + 40, t.name, &t.blob);  // checked when the file was opened
  if (!parsed.ok()) t.blob = {};
  t.blob.shape = t.shape;
  return t;
}

bool Container::find_tensor(std::string_view name, TensorEntry* out) const {
  for (uint32_t i = 0; i < n_tensors_; ++i) {
    const uint8_t* p = tensors_ + size_t{i} * kTensorBytes;
    if (std::string_view(names_ + load_le<uint32_t>(p), load_le<uint32_t>(p + 4)) == name) {
      *out = tensor(i);
      return true;
    }
  }
  return false;
}

bool Container::find_section(const char id[4], Blob* out) const {
  for (uint32_t i = 0; i < n_sections_; ++i) {
    const uint8_t* p = sections_ + size_t{i} * kSectionBytes;
    if (std::memcmp(p, id, 4) == 0) {
      return parse_blob(p + 8, std::string_view(id, 4), out).ok();
    }
  }
  return false;
}

FrameEntry Container::frame(uint32_t index) const {
  Cursor cursor(frames_ + size_t{index} * kFrameEntryBytes);
  FrameEntry f;
  f.offset = cursor.u64();
  f.stored_bytes = cursor.u32();
  f.raw_bytes = cursor.u32();
  return f;
}

uint64_t Container::stored_bytes(const Blob& blob) const {
  uint64_t sum = 0;
  for (uint32_t i = 0; i < blob.n_frames; ++i) sum += frame(blob.first_frame + i).stored_bytes;
  return sum;
}

FrameReader::~FrameReader() {
  std::free(scratch_);
  ZSTD_freeDCtx(context_);
}

Status FrameReader::reserve(size_t bytes) {
  if (scratch_ == nullptr || scratch_bytes_ < bytes) {
    std::free(scratch_);
    scratch_ = static_cast<uint8_t*>(std::malloc(std::max<size_t>(bytes, 1)));
    scratch_bytes_ = scratch_ == nullptr ? 0 : bytes;
  }
  if (context_ == nullptr) context_ = ZSTD_createDCtx();
  if (scratch_ == nullptr || context_ == nullptr) {
    return Status::error(MAMBA_EDGE_OUT_OF_MEMORY, "%s: no memory for a frame of %zu bytes",
                         c_.path(), bytes);
  }
  return {};
}

Status FrameReader::read(const Blob& blob, uint32_t index_in_blob, uint8_t* out,
                         std::string_view what) {
  const FrameEntry f = c_.frame(blob.first_frame + index_in_blob);
  const int width = clip(what);
  const bool is_sorted = blob.encoding == Encoding::sorted;
  uint8_t* target = out;
  if (blob.encoding != Encoding::raw) {
    ME_TRY(reserve(size_t{f.stored_bytes} + (is_sorted ? f.raw_bytes : 0)));
    target = scratch_;
  }
  if (const int error = file_read(c_.file(), f.offset, target, f.stored_bytes)) {
    return Status::error(MAMBA_EDGE_IO, "%s: cannot read \"%.*s\": %s", c_.path(), width,
                         what.data(), std::strerror(error));
  }
  if (blob.encoding == Encoding::raw) return {};
  // The frame must be exactly what the directory says: a frame with a checksum (RFC 8878,
  // section 3.1.1.1.1: bit 2 of the byte behind the magic number), of this size, and nothing after
  // it.
  if (f.stored_bytes < 5 || load_le<uint32_t>(scratch_) != ZSTD_MAGICNUMBER ||
      (scratch_[4] & 4) == 0 || ZSTD_getFrameContentSize(scratch_, f.stored_bytes) != f.raw_bytes ||
      ZSTD_findFrameCompressedSize(scratch_, f.stored_bytes) != f.stored_bytes) {
    return c_.damaged("\"%.*s\", frame %u is not a zstd frame of %u bytes with a checksum", width,
                      what.data(), index_in_blob, f.raw_bytes);
  }
  uint8_t* content = is_sorted ? scratch_ + f.stored_bytes : out;
  const size_t n = ZSTD_decompressDCtx(context_, content, f.raw_bytes, scratch_, f.stored_bytes);
  if (ZSTD_isError(n) || n != f.raw_bytes) {
    return c_.damaged("\"%.*s\", frame %u: %s", width, what.data(), index_in_blob,
                      ZSTD_isError(n) ? ZSTD_getErrorName(n) : "wrong size");
  }
  if (is_sorted) {
    unsort_row_blocks(blob.shape, f.raw_bytes / blob.shape.row_block_bytes(), content, out);
  }
  return {};
}

Status Container::read_blob(const Blob& blob, uint8_t* out, std::string_view what) const {
  FrameReader reader(*this);
  uint64_t at = 0;
  for (uint32_t i = 0; i < blob.n_frames; ++i) {
    ME_TRY(reader.read(blob, i, out + at, what));
    at += frame(blob.first_frame + i).raw_bytes;
  }
  if (xxh64(out, blob.raw_bytes) != blob.checksum) {
    return damaged("the checksum of \"%.*s\" does not match", clip(what), what.data());
  }
  return {};
}

}  // namespace mamba_edge
