#include "convert/gguf_export.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>

#include "convert/checkpoint.h"
#include "convert/error.h"
#include "convert/find_tokenizer.h"
#include "convert/ggml_blocks.h"
#include "convert/gguf.h"
#include "convert/gguf_model.h"
#include "convert/gguf_tokenizer.h"
#include "convert/hf_config.h"
#include "convert/names.h"
#include "convert/output_file.h"
#include "convert/vocabulary_types.h"
#include "engine/little_endian.h"
#include "engine/tensors.h"
#include "quant/half.h"

namespace mamba_edge::convert {
namespace {

constexpr uint64_t kAlignment = 32;  // the default, so that general.alignment need not be there
constexpr size_t kPieceFloats = 1u
                                << 18;   // elements that are converted at a time, at least one row
constexpr uint32_t kContext = 1u << 20;  // there is no limit; llama.cpp's converter writes this

constexpr GgufOutputType kOutputTypes[] = {{"fp32", DType::f32},
                                           {"fp16", DType::f16},
                                           {"bf16", DType::bf16},
                                           {"q8_0", DType::q8_0},
                                           {"q4_0", DType::q4_0}};

// llama.h, enum llama_ftype.
uint32_t file_type(DType type) {
  switch (type) {
    case DType::f32:
      return 0;
    case DType::f16:
      return 1;
    case DType::q4_0:
      return 2;
    case DType::bf16:
      return 32;
    default:
      return 7;  // q8_0
  }
}

std::string type_label(DType type) {
  const auto* const found = std::find_if(std::begin(kOutputTypes), std::end(kOutputTypes),
                                         [&](const GgufOutputType& t) { return t.dtype == type; });
  return std::string(found->name);
}

// Whether `type` has a number for every finite value up to this magnitude.
bool can_hold(DType type, float max_abs) {
  constexpr float kHalfEnd = 65520;  // rounds to infinity in binary16
  switch (type) {
    case DType::f16:
      return max_abs < kHalfEnd;
    case DType::bf16:
      return max_abs < std::bit_cast<float>(0x7F7F8000u);
    case DType::q8_0:
      return max_abs / 127 < kHalfEnd;
    case DType::q4_0:
      return max_abs / 8 < kHalfEnd;
    default:
      return true;
  }
}

// Rounds to nearest, ties to even; NaN stays NaN.
uint16_t to_bfloat16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// n values (whole blocks) as `type`, and back, for the error.
void encode(DType type, const float* values, size_t n, std::vector<char>* out, float* decoded) {
  const BlockLayout layout = block_layout(type);
  out->resize(n / layout.elements * layout.bytes);
  if (type == DType::f32) {
    std::memcpy(out->data(), values, n * sizeof(float));
    std::copy_n(values, n, decoded);
  } else if (type == DType::f16 || type == DType::bf16) {
    for (size_t i = 0; i < n; ++i) {
      const uint16_t bits = type == DType::f16 ? float_to_half(values[i]) : to_bfloat16(values[i]);
      std::memcpy(out->data() + 2 * i, &bits, sizeof bits);
      decoded[i] = type == DType::f16 ? half_to_float(bits) : bfloat16_to_float(bits);
    }
  } else {
    encode_blocks(type, values, n / layout.elements, out->data());
    decode_blocks(type, out->data(), n / layout.elements, decoded);
  }
}

// The bytes in front of the data.
class Header {
 public:
  template <typename T>
  void put(T value) {
    const size_t at = bytes_.size();
    bytes_.resize(at + sizeof(T));
    store_le<T>(bytes_.data() + at, value);
  }
  void put(std::string_view text) {
    put(static_cast<uint64_t>(text.size()));
    bytes_.insert(bytes_.end(), text.begin(), text.end());
  }
  void raw(std::string_view text) { bytes_.insert(bytes_.end(), text.begin(), text.end()); }

  void entry(std::string_view key, uint32_t value) { number(key, GgufKind::u32, value); }
  void entry(std::string_view key, float value) { number(key, GgufKind::f32, value); }
  void entry(std::string_view key, bool value) {
    number(key, GgufKind::boolean, static_cast<uint8_t>(value));
  }
  void entry(std::string_view key, std::string_view value) {
    begin(key, GgufKind::string);
    put(value);
  }
  void entry(std::string_view key, const char* value) { entry(key, std::string_view(value)); }
  void entry(std::string_view key, const std::vector<std::string>& values) {
    array(key, GgufKind::string, values.size());
    for (const std::string& value : values) put(std::string_view(value));
  }
  void entry(std::string_view key, const std::vector<float>& values) {
    array(key, GgufKind::f32, values.size());
    for (const float value : values) put(value);
  }
  void entry(std::string_view key, const std::vector<GgufToken>& values) {
    array(key, GgufKind::i32, values.size());
    for (const GgufToken value : values) put(static_cast<int32_t>(value));
  }

  uint64_t entries() const { return entries_; }
  const std::vector<uint8_t>& bytes() const { return bytes_; }

 private:
  void begin(std::string_view key, GgufKind kind) {
    ++entries_;
    put(key);
    put(static_cast<uint32_t>(kind));
  }
  void array(std::string_view key, GgufKind element, size_t count) {
    begin(key, GgufKind::array);
    put(static_cast<uint32_t>(element));
    put(static_cast<uint64_t>(count));
  }
  template <typename T>
  void number(std::string_view key, GgufKind kind, T value) {
    begin(key, kind);
    put(value);
  }

  std::vector<uint8_t> bytes_;
  uint64_t entries_ = 0;
};

struct Entry {
  std::string name;
  std::vector<int64_t> shape;  // row-major
  DType type;
  uint64_t offset;  // in the data
};

class Exporter {
 public:
  explicit Exporter(const GgufOptions& options) : o_(options) {}

  Report run() {
    const auto start = std::chrono::steady_clock::now();
    checkpoint_ = Checkpoint::open(o_.input);
    const PublishedConfig published = checkpoint_->gguf() != nullptr
                                          ? read_gguf_config(*checkpoint_)
                                          : read_published_config(checkpoint_->folder());
    report_.config = published.model;
    report_.config_file = published.path;
    report_.warnings = published.warnings;
    refuse_inexpressible();
    names_ = name_tensors(*checkpoint_, report_.config);
    report_.warnings.insert(report_.warnings.end(), names_.warnings.begin(), names_.warnings.end());
    choose_types();
    read_tokenizer();
    spare_inputs();
    write();
    for (const SourceFile& file : checkpoint_->files()) report_.input_bytes += file.size;
    report_.bits_per_weight = matrix_elements_ == 0 ? 0 : 8 * matrix_bytes_ / matrix_elements_;
    report_.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return std::move(report_);
  }

 private:
  [[noreturn]] void refuse(const std::string& why) const {
    throw Error(report_.config_file.string() + ": cannot become GGUF: " + why);
  }

  // What llama.cpp's two architectures do not have.
  void refuse_inexpressible() {
    const ModelConfig& config = report_.config;
    if (config.norm != NormKind::rms) refuse("llama.cpp has RMS norms only, no LayerNorm");
    const bool mamba2 = config.is_mamba2();
    if (mamba2 ? config.mamba2.proj_bias : config.mamba1.proj_bias) {
      refuse("llama.cpp has no biases of in_proj and out_proj");
    }
    if (!(mamba2 ? config.mamba2.conv_bias : config.mamba1.conv_bias)) {
      refuse("llama.cpp needs a bias of the convolution");
    }
    if (mamba2) {
      refuse_inexpressible(config.mamba2);
    } else {
      refuse_inexpressible(config.mamba1);
    }
  }

  void refuse_inexpressible(const Mamba1Config& mixer) {
    if (mixer.d_inner != 2 * report_.config.d_model) {
      refuse("llama.cpp needs a d_inner of twice d_model, it is " + std::to_string(mixer.d_inner) +
             " and " + std::to_string(report_.config.d_model));
    }
    if (mixer.dt_bc_norm != 0 && mixer.dt_bc_eps != report_.config.norm_eps) {
      report_.warnings.push_back(
          "the norms of dt, B and C have an epsilon of their own (mixer_rms_eps " +
          number_text(mixer.dt_bc_eps) + "); in llama.cpp they share " +
          number_text(report_.config.norm_eps) + " with the others");
    }
  }

  void refuse_inexpressible(const Mamba2Config& mixer) {
    if (mixer.gated_norm == 0) refuse("llama.cpp needs the norm before out_proj (rmsnorm)");
    if (mixer.gated_norm == 2 && mixer.n_groups > 1) refuse("llama.cpp normalises each group");
    if (mixer.norm_before_gate != 0)
      refuse("llama.cpp normalises behind the gate (norm_before_gate)");
    if (mixer.d_per_channel != 0) refuse("llama.cpp has a D per head (D_has_hdim)");
    if (mixer.init_states != 0) refuse("llama.cpp has no learned initial states");
    if (mixer.dt_low > 0 || std::isfinite(mixer.dt_high)) refuse("llama.cpp has no limits of dt");
    if (mixer.norm_eps != report_.config.norm_eps)
      refuse("llama.cpp has one epsilon for all norms");
  }

  static std::string number_text(float value) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", static_cast<double>(value));
    return text;
  }

  void choose_types() {
    choose_vocabulary_types(
        o_.input.string(), report_.config.tied != 0, o_.embedding_type, o_.head_type, o_.type,
        [](auto type) { return std::string(type_label(type)); }, &embedding_type_, &head_type_);
  }

  void read_tokenizer() {
    FoundTokenizer found = find_tokenizer(*checkpoint_, o_.tokenizer, &report_.config);
    report_.tokenizer_hint = std::move(found.hint);
    if (found.blob.empty()) return;
    try {
      const ModelConfig& config = report_.config;
      tokenizer_ =
          tokenizer_json_to_gguf(found.files, config.n_vocab, config.bos_token, config.eos_token);
      report_.has_tokenizer = true;
    } catch (const Error& error) {
      report_.tokenizer_hint = std::string("no tokenizer: ") + error.what() +
                               "; without it llama.cpp takes and gives token ids";
    }
  }

  void spare_inputs() const {
    std::vector<std::filesystem::path> inputs = tokenizer_inputs(*checkpoint_, o_.tokenizer);
    inputs.push_back(report_.config_file);
    for (const SourceFile& file : checkpoint_->files()) inputs.push_back(file.path);
    refuse_to_replace(o_.output, inputs, "read for this conversion");
  }

  // The folder's name: of a checkpoint that is a file, the file's.
  std::string model_name() const {
    std::filesystem::path path = std::filesystem::absolute(o_.input).lexically_normal();
    if (!path.has_filename()) path = path.parent_path();
    return std::filesystem::is_directory(path) ? path.filename().string() : path.stem().string();
  }

  Header metadata() const {
    const ModelConfig& config = report_.config;
    const std::string architecture = config.is_mamba2() ? "mamba2" : "mamba";
    const auto key = [&](const char* name) { return architecture + "." + name; };
    Header header;
    header.entry(gguf_key::kArchitecture, architecture);
    header.entry("general.type", "model");
    header.entry("general.name", model_name());
    header.entry(key("context_length"), kContext);
    header.entry(key(gguf_key::kWidth), config.d_model);
    header.entry(key("feed_forward_length"), 0u);  // llama.cpp asks for these two
    header.entry(key("attention.head_count"), 0u);
    header.entry(key(gguf_key::kLayers), config.n_layer);
    header.entry(key(gguf_key::kVocabulary), config.n_vocab);
    header.entry(key(gguf_key::kEps), config.norm_eps);
    if (config.is_mamba2()) {
      const Mamba2Config& mixer = config.mamba2;
      put_mixer(key, mixer.d_conv, mixer.d_inner, mixer.d_state, mixer.n_heads, &header);
      header.entry(key(gguf_key::kGroups), mixer.n_groups);
    } else {
      const Mamba1Config& mixer = config.mamba1;
      put_mixer(key, mixer.d_conv, mixer.d_inner, mixer.d_state, mixer.dt_rank, &header);
      header.entry(key(gguf_key::kDtBcNorm), mixer.dt_bc_norm != 0);
    }
    header.entry("general.file_type", file_type(o_.type));
    header.entry("general.quantization_version", 2u);
    put_tokenizer(&header);
    return header;
  }

  static void put_mixer(const auto& key, uint32_t conv, uint32_t inner, uint32_t state,
                        uint32_t rank, Header* header) {
    header->entry(key(gguf_key::kConv), conv);
    header->entry(key(gguf_key::kInner), inner);
    header->entry(key(gguf_key::kState), state);
    header->entry(key(gguf_key::kRank), rank);
  }

  void put_tokenizer(Header* header) const {
    const ModelConfig& config = report_.config;
    const auto id = [&](const char* key, int64_t value) {
      if (value >= 0) header->entry(key, static_cast<uint32_t>(value));
    };
    if (!tokenizer_) {
      header->entry("tokenizer.ggml.model", "none");
      id(gguf_key::kBos, config.bos_token);
      id(gguf_key::kEos, config.eos_token);
      return;
    }
    const GgufTokenizer& t = *tokenizer_;
    header->entry("tokenizer.ggml.model", t.model);
    header->entry("tokenizer.ggml.pre", t.pre);
    header->entry("tokenizer.ggml.tokens", t.tokens);
    if (!t.scores.empty()) header->entry("tokenizer.ggml.scores", t.scores);
    header->entry("tokenizer.ggml.token_type", t.types);
    if (t.model == "gpt2") header->entry("tokenizer.ggml.merges", t.merges);
    id(gguf_key::kBos, config.bos_token);
    id(gguf_key::kEos, config.eos_token);
    id("tokenizer.ggml.unknown_token_id", t.unknown ? int64_t{*t.unknown} : -1);
    header->entry("tokenizer.ggml.add_bos_token", t.add_bos);
    header->entry("tokenizer.ggml.add_eos_token", t.add_eos);
  }

  static void put_entry(const Entry& entry, Header* header) {
    header->put(std::string_view(entry.name));
    header->put(static_cast<uint32_t>(entry.shape.size()));
    for (size_t d = entry.shape.size(); d-- > 0;)
      header->put(static_cast<uint64_t>(entry.shape[d]));
    header->put(gguf_tensor_type(entry.type)->number);
    header->put(entry.offset);
  }

  Header whole_header(const std::vector<Entry>& entries) const {
    const Header metadata = this->metadata();
    Header header;
    header.raw("GGUF");
    header.put(uint32_t{3});
    header.put(static_cast<uint64_t>(entries.size()));
    header.put(metadata.entries());
    header.raw({reinterpret_cast<const char*>(metadata.bytes().data()), metadata.bytes().size()});
    for (const Entry& entry : entries) put_entry(entry, &header);
    return header;
  }

  static uint64_t padded(uint64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }

  // Types and offsets become known tensor by tensor, but take the same space whatever they are: so
  // the header comes last.
  void write() {
    const ModelConfig& config = report_.config;
    std::vector<Entry> entries;
    for (const NamedTensor& tensor : names_.tensors) {
      entries.push_back({gguf_tensor_name(tensor.role, tensor.layer),
                         gguf_shape(config, tensor.role), DType::f32, 0});
      total_elements_ += static_cast<double>(tensor.source->elements());
    }
    OutputFile file(o_.output);
    const uint64_t data = padded(whole_header(entries).bytes().size());
    uint64_t at = 0;
    for (size_t i = 0; i < entries.size(); ++i) {
      entries[i].offset = at;
      const TensorSpec spec = tensor_spec(config, static_cast<uint32_t>(i));
      at += padded(write_tensor(spec, *names_.tensors[i].source, data + at, &entries[i], &file));
    }
    const Header header = whole_header(entries);
    file.write_at(0, header.bytes().data(), header.bytes().size());
    file.publish();
    report_.output_bytes = data + at;
  }

  DType wanted_type(const TensorSpec& spec) const {
    if (!spec.quantisable) return DType::f32;
    if (spec.role == TensorRole::embedding) return embedding_type_;
    return spec.role == TensorRole::head ? head_type_ : o_.type;
  }

  // Calls use(values, n) for the tensor's float32 values, front to back, whole rows at a time.
  template <typename Use>
  void for_each_piece(const TensorSpec& spec, const TensorInfo& source, Use use) {
    const auto width = static_cast<size_t>(source.elements() / source.rows());
    const auto step = static_cast<int64_t>(std::max<size_t>(1, kPieceFloats / width));
    std::vector<float> values;
    for (int64_t row = 0; row < source.rows(); row += step) {
      const int64_t end = std::min(row + step, source.rows());
      values.resize(static_cast<size_t>(end - row) * width);
      checkpoint_->read_rows(source, row, end, values.data());
      if (spec.role == TensorRole::a && !names_.a_is_folded) {
        for (float& v : values) v = -std::exp(v);
      }
      use(values.data(), values.size());
    }
  }

  DType possible_type(const TensorSpec& spec, const TensorInfo& source) {
    float max_abs = 0;
    bool finite = true;
    for_each_piece(spec, source, [&](const float* values, size_t n) {
      for (size_t i = 0; i < n; ++i) {
        finite = finite && std::isfinite(values[i]);
        max_abs = std::max(max_abs, std::fabs(values[i]));
      }
    });
    if (!finite && !o_.allow_nonfinite) {
      throw Error(source.file + ": tensor " + source.name +
                  " holds NaN or an infinity; --allow-nonfinite converts it all the same");
    }
    DType type = wanted_type(spec);
    if (source.shape.back() % block_layout(type).elements != 0) type = DType::f16;
    if (finite && can_hold(type, max_abs)) return type;
    if (type != DType::f32) {
      report_.warnings.push_back(source.name + " holds numbers that " + type_label(type) +
                                 " cannot; it becomes fp32");
    }
    return DType::f32;
  }

  // Returns the tensor's bytes.
  uint64_t write_tensor(const TensorSpec& spec, const TensorInfo& source, uint64_t at, Entry* entry,
                        OutputFile* file) {
    entry->type = possible_type(spec, source);
    TensorReport report;
    std::vector<char> bytes;
    std::vector<float> decoded;
    uint64_t written = 0;
    for_each_piece(spec, source, [&](const float* values, size_t n) {
      decoded.resize(n);
      encode(entry->type, values, n, &bytes, decoded.data());
      file->write_at(at + written, bytes.data(), bytes.size());
      written += bytes.size();
      add_error(values, decoded.data(), n, &report.error);
      done_elements_ += static_cast<double>(n);
      if (o_.progress) o_.progress(std::min(1.0, done_elements_ / total_elements_));
    });
    const std::vector<char> padding(padded(written) - written, '\0');
    file->write_at(at + written, padding.data(), padding.size());

    report.name = entry->name;
    report.type = type_label(entry->type);
    report.rows = static_cast<uint32_t>(source.rows());
    report.cols = static_cast<uint32_t>(source.elements() / source.rows());
    report.group = block_layout(entry->type).elements;
    report.raw_bytes = report.stored_bytes = written;
    report_.packed_bytes += written;
    report_.n_parameters += source.elements();
    report_.tensors.push_back(std::move(report));
    if (spec.quantisable) {
      matrix_bytes_ += static_cast<double>(written);
      matrix_elements_ += static_cast<double>(source.elements());
    }
    return written;
  }

  static void add_error(const float* values, const float* decoded, size_t n, EncodeError* error) {
    for (size_t i = 0; i < n; ++i) {
      const double difference = double{values[i]} - double{decoded[i]};
      error->sum_squares += double{values[i]} * double{values[i]};
      error->sum_square_errors += difference * difference;
      error->max_abs_error = std::max(error->max_abs_error, std::fabs(difference));
    }
  }

  const GgufOptions& o_;
  Report report_;
  std::unique_ptr<Checkpoint> checkpoint_;
  NamedTensors names_;
  std::optional<GgufTokenizer> tokenizer_;
  DType embedding_type_{}, head_type_{};
  double total_elements_ = 0, done_elements_ = 0;
  double matrix_bytes_ = 0, matrix_elements_ = 0;
};

}  // namespace

std::span<const GgufOutputType> gguf_output_types() { return kOutputTypes; }

Report export_gguf(const GgufOptions& options) { return Exporter(options).run(); }

}  // namespace mamba_edge::convert
