#include "convert/pipeline.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#include "convert/checkpoint.h"
#include "convert/container_writer.h"
#include "convert/error.h"
#include "convert/find_tokenizer.h"
#include "convert/gguf_model.h"
#include "convert/hf_config.h"
#include "convert/names.h"
#include "convert/packing.h"
#include "engine/container.h"
#include "engine/tensors.h"
#include "engine/xxh64.h"

namespace mamba_edge::convert {
namespace {

constexpr size_t kPanelFloats = 1u << 20;  // elements of a panel
constexpr size_t kFrameBytes = 1u << 20;   // raw bytes of a compressed frame

// Calls work(i) for i in [0, n) on `threads` threads; rethrows the first exception.
void parallel_for(int threads, size_t n, const std::function<void(size_t)>& work) {
  std::atomic<size_t> next{0};
  std::exception_ptr failure;
  std::mutex mutex;
  const auto run = [&] {
    for (size_t i; (i = next.fetch_add(1)) < n;) {
      try {
        work(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
        next = n;
      }
    }
  };
  std::vector<std::thread> helpers;
  try {
    for (int t = 1; t < threads && static_cast<size_t>(t) < n; ++t) helpers.emplace_back(run);
  } catch (const std::system_error&) {
    // The system gives no more threads; those that there are do the work.
  }
  run();
  for (std::thread& helper : helpers) helper.join();
  if (failure) std::rethrow_exception(failure);
}

// One published tensor, read in packed order.
class Source {
 public:
  Source(const Checkpoint& checkpoint, const TensorInfo& info, const ModelConfig& config,
         const TensorSpec& spec, bool a_is_folded)
      : checkpoint_(checkpoint),
        info_(info),
        negative_exp_(spec.role == TensorRole::a && !a_is_folded),
        rows_(source_rows(config, spec)),
        cols_(source_cols(config, spec)) {
    // A vector, whose rows may repeat, and initial states, whose published rows are heads, are
    // small: read them once.
    width_ = spec.role == TensorRole::init_states
                 ? spec.cols
                 : info.elements() / std::max<int64_t>(info.rows(), 1);
    if (width_ == 1 || spec.role == TensorRole::init_states) whole_ = checkpoint.read(info);
    straight_cols_ = static_cast<int64_t>(cols_.size()) == width_ && cols_.back() == width_ - 1;
  }

  const TensorInfo& info() const { return info_; }

  // Packed rows [begin, end) into out [end - begin][stride], which is zeroed first; rows beyond the
  // last are padding.
  void read(size_t begin, size_t end, float* out, size_t stride) const {
    std::fill_n(out, (end - begin) * stride, 0.0f);
    std::vector<float> run;
    const size_t stop = std::min(end, rows_.size());
    const auto w = static_cast<size_t>(width_);
    if (!whole_.empty()) {
      for (size_t r = begin; r < stop; ++r) {
        if (rows_[r] != kPadding)
          place(&whole_[static_cast<size_t>(rows_[r]) * w], out + (r - begin) * stride);
      }
      return;
    }
    for (size_t r = begin; r < stop;) {
      if (rows_[r] == kPadding) {
        ++r;
        continue;
      }
      size_t last = r + 1;
      while (last < stop && rows_[last] == rows_[r] + static_cast<int64_t>(last - r)) ++last;
      run.resize((last - r) * w);
      checkpoint_.read_rows(info_, rows_[r], rows_[r] + static_cast<int64_t>(last - r), run.data());
      for (size_t i = r; i < last; ++i) place(run.data() + (i - r) * w, out + (i - begin) * stride);
      r = last;
    }
  }

 private:
  void place(const float* from, float* to) const {
    if (straight_cols_) {
      std::copy_n(from, width_, to);
    } else {
      for (size_t c = 0; c < cols_.size(); ++c) {
        if (cols_[c] != kPadding) to[c] = from[cols_[c]];
      }
    }
    if (negative_exp_) {
      for (int64_t c = 0; c < width_; ++c) to[c] = -std::exp(to[c]);
    }
  }

  const Checkpoint& checkpoint_;
  const TensorInfo& info_;
  bool negative_exp_;
  std::vector<int64_t> rows_, cols_;
  int64_t width_ = 0;  // values of a published row
  std::vector<float> whole_;
  bool straight_cols_ = false;
};

class Converter {
 public:
  explicit Converter(const Options& options) : o_(options) {}

  Report run() {
    const auto start = std::chrono::steady_clock::now();
    checkpoint_ = Checkpoint::open(o_.input);
    read_config();
    const NamedTensors names = name_tensors(*checkpoint_, report_.config);
    a_is_folded_ = names.a_is_folded;
    report_.warnings.insert(report_.warnings.end(), names.warnings.begin(), names.warnings.end());
    choose_types();
    add_tokenizer();

    spare_inputs();
    writer_.emplace(o_.output, o_.zstd_level, o_.store);
    const ModelConfig& config = report_.config;
    const uint32_t n = tensor_count(config);
    for (uint32_t i = 0; i < n; ++i) {
      const TensorSpec spec = tensor_spec(config, i);
      total_elements_ += double{1} * spec.rows * spec.cols;
    }
    for (uint32_t i = 0; i < n; ++i) pack(tensor_spec(config, i), *names.tensors[i].source);
    write_sections();
    report_.output_bytes = writer_->finish();
    for (const SourceFile& file : checkpoint_->files()) report_.input_bytes += file.size;
    report_.bits_per_weight = matrix_elements_ == 0 ? 0 : 8 * matrix_bytes_ / matrix_elements_;
    report_.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return std::move(report_);
  }

 private:
  void read_config() {
    const PublishedConfig published = checkpoint_->gguf() != nullptr
                                          ? read_gguf_config(*checkpoint_)
                                          : read_published_config(checkpoint_->folder());
    report_.config = published.model;
    report_.config_file = published.path;
    report_.warnings = published.warnings;
    ModelConfig& config = report_.config;
    if (o_.gated_norm_whole) {
      if (!config.is_mamba2() || config.mamba2.gated_norm == 0) {
        throw Error(o_.input.string() +
                    ": --gated-norm whole is for Mamba-2 models with a gated norm; this is " +
                    architecture_name(config.architecture) +
                    (config.is_mamba2() ? " without one" : ""));
      }
      config.mamba2.gated_norm = 2;
    }
  }

  // The output would take the place of what it is made from.
  void spare_inputs() const {
    std::vector<std::filesystem::path> inputs = {report_.config_file, o_.tokenizer,
                                                 checkpoint_->folder() / "tokenizer.json"};
    for (const SourceFile& file : checkpoint_->files()) inputs.push_back(file.path);
    for (const std::filesystem::path& input : inputs) {
      std::error_code ignored;
      if (std::filesystem::equivalent(input, o_.output, ignored)) {
        throw Error(o_.output.string() + ": cannot write: it is read for this conversion");
      }
    }
  }

  void choose_types() {
    embedding_type_ = o_.embedding_type.value_or(o_.type);
    head_type_ = o_.head_type.value_or(o_.type);
    if (report_.config.tied == 0) return;
    // One matrix serves as both: whichever was asked for is its type.
    if (o_.embedding_type && o_.head_type && *o_.embedding_type != *o_.head_type) {
      throw Error(o_.input.string() +
                  ": embedding and head are one tied matrix; --embedding-type " +
                  type_name(*o_.embedding_type) + " and --head-type " + type_name(*o_.head_type) +
                  " cannot both hold");
    }
    if (o_.head_type) embedding_type_ = head_type_;
  }

  WeightType type_of(const TensorSpec& spec) const {
    if (!spec.quantisable) return WeightType::f32;
    if (spec.role == TensorRole::embedding) return embedding_type_;
    if (spec.role == TensorRole::head) return head_type_;
    // Small, and what it computes goes through two exponentials: at 16 bits its rounding would
    // dominate.
    if (spec.role == TensorRole::x_proj && o_.type == WeightType::f16) return WeightType::f32;
    return o_.type;
  }

  void add_tokenizer() {
    FoundTokenizer found = find_tokenizer(*checkpoint_, o_.tokenizer, &report_.config);
    report_.has_tokenizer = !found.blob.empty();
    report_.tokenizer_hint = std::move(found.hint);
    tokenizer_ = std::move(found.blob);
  }

  void add_progress(double elements) {
    done_elements_ += elements;
    if (o_.progress) o_.progress(std::min(1.0, done_elements_ / total_elements_));
  }

  [[noreturn]] void refuse_nonfinite(const TensorInfo& info, const float* values, size_t n) const {
    const auto* bad = std::find_if(values, values + n, [](float v) { return !std::isfinite(v); });
    throw Error(info.file + ": tensor " + info.name + " holds " +
                (std::isnan(*bad) ? "NaN" : "an infinity") +
                "; --allow-nonfinite converts it all the same");
  }

  static bool all_finite(const float* values, size_t n) {
    // The sum of v * 0 is 0 unless some v is NaN or infinite.
    float probe = 0;
    for (size_t i = 0; i < n; ++i) probe += values[i] * 0.0f;
    return probe == 0.0f;
  }

  // What one panel needs to be hashed in order, and the largest magnitude in it.
  struct PanelScan {
    uint64_t hash = 0;
    float max_abs = 0;
    bool nonfinite = false;
    bool half_significands = false;
  };

  PanelScan scan(const TensorInfo& info, const float* values, size_t n) const {
    PanelScan result;
    result.hash = xxh64(values, n * sizeof(float));
    result.nonfinite = !all_finite(values, n);
    result.half_significands = has_half_significands(values, n);
    if (result.nonfinite && !o_.allow_nonfinite) refuse_nonfinite(info, values, n);
    for (size_t i = 0; i < n; ++i) {
      const float magnitude = std::fabs(values[i]);
      if (std::isfinite(magnitude)) result.max_abs = std::max(result.max_abs, magnitude);
    }
    return result;
  }

  void pack(const TensorSpec& spec, const TensorInfo& info) {
    const Source source(*checkpoint_, info, report_.config, spec, a_is_folded_);
    TensorReport entry;
    char name[40];
    tensor_name(spec.role, spec.layer, name);
    entry.name = name;
    entry.rows = spec.rows;
    entry.cols = spec.cols;
    if (spec.is_matrix) {
      pack_matrix(spec, source, &entry);
    } else {
      pack_vector(spec, source, &entry);
    }
    report_.packed_bytes += entry.raw_bytes;
    report_.n_parameters += info.elements();
    report_.tensors.push_back(std::move(entry));
  }

  void pack_vector(const TensorSpec& spec, const Source& source, TensorReport* entry) {
    std::vector<float> values(round_up(spec.rows, kTileRows), 0.0f);
    source.read(0, spec.rows, values.data(), 1);
    const PanelScan result = scan(source.info(), values.data(), values.size());
    hash_.update(&result.hash, sizeof result.hash);
    const std::span<const uint8_t> raw(reinterpret_cast<const uint8_t*>(values.data()),
                                       values.size() * 4);
    writer_->begin_tensor(entry->name, false, {WeightType::f32, spec.rows, 1, 1}, 1, 1.0f);
    append(raw);
    entry->type = type_name(WeightType::f32);
    entry->raw_bytes = raw.size();
    entry->stored_bytes = writer_->end_tensor();
    add_progress(spec.rows);
  }

  std::vector<Compressed> compress(std::span<const uint8_t> raw) const {
    std::vector<Compressed> frames;
    if (o_.store) return frames;
    for (size_t at = 0; at < raw.size(); at += kFrameBytes) {
      frames.push_back(compress_frame(
          raw.subspan(at, std::min<size_t>(kFrameBytes, raw.size() - at)), o_.zstd_level));
    }
    return frames;
  }

  void append(std::span<const uint8_t> raw) { writer_->append(raw, compress(raw)); }

  void pack_matrix(const TensorSpec& spec, const Source& source, TensorReport* entry) {
    const size_t blocks = (spec.rows + kTileRows - 1) / kTileRows;
    // Panels are cut by what the matrix would take in float32, so that they do not depend on its
    // type.
    const size_t per_panel =
        std::clamp<size_t>(kPanelFloats / (size_t{spec.cols} * kTileRows), 1, blocks);
    const size_t panels = (blocks + per_panel - 1) / per_panel;
    const auto panel_blocks = [&](size_t p) { return std::min(per_panel, blocks - p * per_panel); };
    const auto read_panel = [&](size_t p, size_t cols) {
      const size_t rows = panel_blocks(p) * kTileRows, first = p * per_panel * kTileRows;
      std::vector<float> values(rows * cols);
      source.read(first, first + rows, values.data(), cols);
      return values;
    };

    // First pass: a hash, and what decides type and scale.
    std::vector<PanelScan> scans(panels);
    parallel_for(o_.threads, panels, [&](size_t p) {
      const std::vector<float> values = read_panel(p, spec.cols);
      scans[p] = scan(source.info(), values.data(), values.size());
    });
    float max_abs = 0;
    bool nonfinite = false, half = true;
    for (const PanelScan& s : scans) {
      hash_.update(&s.hash, sizeof s.hash);
      max_abs = std::max(max_abs, s.max_abs);
      nonfinite |= s.nonfinite;
      half &= s.half_significands;
    }
    WeightType type = type_of(spec);
    // 16 bits hold more of a weight as integers in groups than as binary16, unless that is exact
    // already.
    if (type == WeightType::f16 && !half && !nonfinite) type = WeightType::int16;
    if (nonfinite && is_grouped(type)) {
      report_.warnings.push_back(source.info().name + " holds NaN or infinities, which " +
                                 type_name(type) + " cannot express; they become 0");
    }
    // The engine looks rows of the embedding up, and gives the head activations of 16 bits.
    const bool vocabulary = is_vocabulary(spec.role);
    const uint32_t group = (vocabulary ? o_.vocabulary_group_size : o_.group_size)
                               .value_or(default_group(type, vocabulary));
    const MatrixShape shape = matrix_shape(type, spec.rows, spec.cols, group, !vocabulary);
    const size_t block_bytes = shape.row_block_bytes();
    const float scale = matrix_scale(type, max_abs);

    // Second pass: encode and compress a few panels at a time, write them in order.
    writer_->begin_tensor(entry->name, true, shape, spec.cols, scale);
    struct Panel {
      std::vector<uint8_t> raw;
      std::vector<Compressed> frames;
      EncodeError error;
    };
    const size_t batch = static_cast<size_t>(o_.threads) * 2;
    for (size_t first = 0; first < panels; first += batch) {
      std::vector<Panel> work(std::min(batch, panels - first));
      parallel_for(o_.threads, work.size(), [&](size_t i) {
        std::vector<float> values = read_panel(first + i, shape.cols);
        if (nonfinite && is_grouped(type)) {
          for (float& v : values) v = std::isfinite(v) ? v : 0.0f;
        }
        if (shape.rotation != 0) rotate_weights(shape.rotation, values.data(), values.size());
        Panel& panel = work[i];
        panel.raw.resize(panel_blocks(first + i) * block_bytes);
        for (size_t b = 0; b < panel_blocks(first + i); ++b) {
          panel.error.add(encode_row_block(shape, scale, values.data() + b * kTileRows * shape.cols,
                                           shape.cols, panel.raw.data() + b * block_bytes));
        }
        panel.frames = compress(panel.raw);
      });
      for (size_t i = 0; i < work.size(); ++i) {
        writer_->append(work[i].raw, work[i].frames);
        entry->error.add(work[i].error);
        add_progress(double{kTileRows} * static_cast<double>(panel_blocks(first + i)) * spec.cols);
      }
    }
    entry->type = type_name(shape.type);
    entry->group = shape.group;
    entry->raw_bytes = shape.bytes();
    entry->stored_bytes = writer_->end_tensor();
    if (spec.quantisable) {
      matrix_bytes_ += static_cast<double>(shape.bytes());
      matrix_elements_ += static_cast<double>(source.info().elements());
    }
  }

  void write_sections() {
    uint8_t config[8 * kConfigKeys];
    writer_->add_section("CONF", true, {config, encode_config(report_.config, config)});
    if (!tokenizer_.empty()) writer_->add_section("TOKN", false, tokenizer_);
    std::vector<uint8_t> provenance;
    const auto put_number = [&](size_t n) {
      for (int i = 0; i < 4; ++i) provenance.push_back(static_cast<uint8_t>(n >> (8 * i)));
    };
    const auto put = [&](const std::string& key, const std::string& value) {
      put_number(key.size());
      put_number(value.size());
      provenance.insert(provenance.end(), key.begin(), key.end());
      provenance.insert(provenance.end(), value.begin(), value.end());
    };
    put("converter", std::string("mamba-quantize ") + mamba_edge_version());
    put("source.config", report_.config_file.filename().string());
    for (const SourceFile& file : checkpoint_->files()) {
      put("source.file", file.path.filename().string() + " " + std::to_string(file.size));
    }
    char hash[24];
    std::snprintf(hash, sizeof hash, "%016llx", static_cast<unsigned long long>(hash_.digest()));
    put("source.xxh64", hash);  // of the float32 values, in packed order
    put("recipe", o_.recipe);
    writer_->add_section("PROV", false, provenance);
  }

  const Options& o_;
  Report report_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::optional<ContainerWriter> writer_;
  std::vector<uint8_t> tokenizer_;
  WeightType embedding_type_{}, head_type_{};
  bool a_is_folded_ = false;
  Xxh64 hash_;
  double total_elements_ = 0, done_elements_ = 0;
  double matrix_bytes_ = 0, matrix_elements_ = 0;
};

}  // namespace

Report convert_checkpoint(const Options& options) { return Converter(options).run(); }

}  // namespace mamba_edge::convert
