#include "convert/pipeline.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <system_error>

#include "convert/calibrate.h"
#include "convert/checkpoint.h"
#include "convert/container_writer.h"
#include "convert/error.h"
#include "convert/find_tokenizer.h"
#include "convert/gguf_model.h"
#include "convert/hf_config.h"
#include "convert/importance.h"
#include "convert/names.h"
#include "convert/packing.h"
#include "convert/parallel.h"
#include "convert/type_choice.h"
#include "convert/vocabulary_types.h"
#include "engine/container.h"
#include "engine/tensors.h"
#include "engine/text/tokenizer.h"
#include "engine/xxh64.h"
#include "quant/feedback.h"

namespace mamba_edge::convert {
namespace {

constexpr size_t kPanelFloats = 1u << 20;  // elements of a panel
constexpr size_t kSampledBlocks = 16;      // of 16 rows, by which types of a matrix are judged

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
    open_sources(names);
    calibrate_matrices();
    first_warning_ = report_.warnings.size();
    if (o_.choose_types) {
      write_best();
    } else {
      for (uint32_t i = 0; i < tensor_count(report_.config); ++i) {
        const TensorSpec spec = tensor_spec(report_.config, i);
        chosen_.push_back({type_of(spec), group_of(spec, type_of(spec))});
      }
      write_file();
    }
    writer_->publish();
    for (const SourceFile& file : checkpoint_->files()) report_.input_bytes += file.size;
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
    constexpr const char* kRead = "read for this conversion";
    std::vector<std::filesystem::path> inputs = tokenizer_inputs(*checkpoint_, o_.tokenizer);
    inputs.insert(inputs.end(), {report_.config_file, o_.calibration, o_.importance});
    for (const SourceFile& file : checkpoint_->files()) inputs.push_back(file.path);
    refuse_to_replace(o_.output, inputs, kRead);
    refuse_to_replace(o_.also_written, inputs, kRead);
    refuse_to_replace(o_.also_written, {o_.output}, "the output of this conversion");
  }

  // Everything, under the types that have been chosen; the file is complete but has no name yet.
  void write_file() {
    const ModelConfig& config = report_.config;
    const uint32_t n = tensor_count(config);
    writer_.reset();
    writer_ = std::make_unique<ContainerWriter>(o_.output, o_.zstd_level);
    report_.tensors.clear();
    report_.warnings.resize(first_warning_);
    report_.packed_bytes = 0;
    report_.n_parameters = 0;
    hash_ = {};
    total_elements_ = done_elements_ = matrix_bytes_ = matrix_elements_ = 0;
    for (uint32_t i = 0; i < n; ++i) {
      const TensorSpec spec = tensor_spec(config, i);
      total_elements_ += double{1} * spec.rows * spec.cols;
    }
    for (uint32_t i = 0; i < n; ++i) pack(i);
    write_sections();
    report_.output_bytes = writer_->complete();
    report_.bits_per_weight = matrix_elements_ == 0 ? 0 : 8 * matrix_bytes_ / matrix_elements_;
  }

  // ---- a type for every matrix

  // What a matrix may become.
  std::vector<Alternative> alternatives(const TensorSpec& spec) const {
    std::optional<WeightType> only;
    if (spec.role == TensorRole::head ||
        (spec.role == TensorRole::embedding && o_.head_type && report_.config.tied != 0)) {
      only = o_.head_type;
    } else if (spec.role == TensorRole::embedding) {
      only = o_.embedding_type;
    }
    std::vector<Alternative> list;
    const auto add = [&](WeightType type, uint32_t group) {
      if (!only || type == *only) list.push_back({type, group});
    };
    for (const WeightType type : kQuantisedTypes) add(type, group_of(spec, type));
    if (!asked_group(spec)) {
      for (const uint32_t group : {64u, 32u, 16u}) {
        if (group < group_of(spec, WeightType::int8)) add(WeightType::int8, group);
      }
    }
    add(WeightType::f16, group_of(spec, WeightType::int16));
    add(WeightType::f32, 1);
    return list;
  }

  // Rounds some of a matrix' rows in every way, to see what that costs and loses.
  void try_alternatives(uint32_t index, std::vector<Alternative>* list) const {
    const TensorSpec spec = tensor_spec(report_.config, index);
    const bool calibrated = importance_ && importance_->has_moment(index);
    const SecondMoment moment = calibrated ? importance_->moment(index) : SecondMoment();
    std::optional<FeedbackPlan> plan;
    const size_t blocks = (spec.rows + kTileRows - 1) / kTileRows;
    const size_t sampled = std::min(blocks, kSampledBlocks);
    const double factor = static_cast<double>(blocks) / static_cast<double>(sampled);
    for (Alternative& a : *list) {
      const MatrixShape shape = shape_of(spec, a);
      const bool feedback = calibrated && is_quantised(a.type);
      if (feedback && !(plan && plan->fits(shape))) {
        plan.emplace(parallel(), moment, shape, damping(report_.config, spec.role));
      }
      std::vector<std::vector<uint8_t>> packed(sampled);
      std::vector<EncodeError> errors(sampled);
      std::vector<double> output_errors(sampled);
      parallel_for(o_.threads, sampled, [&](size_t i) {
        const size_t first = i * blocks / sampled * kTileRows;
        std::vector<float> rows(size_t{kTileRows} * shape.cols);
        sources_[index]->read(first, first + kTileRows, rows.data(), shape.cols);
        float largest = 0;
        for (float& v : rows) {
          v = std::isfinite(v) ? v : 0.0f;
          largest = std::max(largest, std::fabs(v));
        }
        const float scale = matrix_scale(a.type, largest);
        if (shape.rotation != 0) rotate_weights(shape.rotation, rows.data(), rows.size());
        packed[i].resize(shape.row_block_bytes());
        errors[i] =
            feedback ? encode_row_block_with_feedback(shape, scale, *plan, rows.data(), shape.cols,
                                                      packed[i].data(), &output_errors[i])
                     : encode_row_block(shape, scale, rows.data(), shape.cols, packed[i].data());
      });
      EncodeError error;
      double output_error = 0;
      std::vector<uint8_t> sample;
      for (size_t i = 0; i < sampled; ++i) {
        error.add(errors[i]);
        output_error += output_errors[i];
        sample.insert(sample.end(), packed[i].begin(), packed[i].end());
      }
      a.bytes = static_cast<double>(shape.bytes());
      if (o_.target_bytes && !o_.store) {
        a.bytes *= static_cast<double>(choose_encoding(sample, shape, o_.zstd_level).stored_bytes) /
                   static_cast<double>(sample.size());
      }
      // Between 16 bits and 32 there is nothing left to measure.
      if (!is_quantised(a.type)) continue;
      if (importance_ && importance_->sensitivities().contains(index)) {
        const Sensitivity& s = importance_->sensitivities().at(index);
        const double measure = calibrated ? output_error : error.sum_square_errors;
        if (s.output_error > 0) a.loss = s.divergence / s.output_error * measure * factor;
      } else {
        a.loss =
            guessed_loss(report_.config, spec.role) * error.relative_rms() * error.relative_rms();
      }
    }
  }

  void write_best() {
    const uint32_t n = tensor_count(report_.config);
    TypeChoice choice;
    double elements = 0, others = 0;
    chosen_.assign(n, {WeightType::f32, 1});
    for (uint32_t i = 0; i < n; ++i) {
      const TensorSpec spec = tensor_spec(report_.config, i);
      if (spec.quantisable) {
        std::vector<Alternative> list = alternatives(spec);
        try_alternatives(i, &list);
        choice.add(i, std::move(list));
        elements += static_cast<double>(sources_[i]->info().elements());
      } else {
        others += static_cast<double>(shape_of(spec, chosen_[i]).bytes());
      }
      if (o_.progress) o_.progress("choosing types", (i + 1.0) / n);
    }
    report_.allocation.emplace();
    report_.allocation->measured = importance_ && !importance_->sensitivities().empty();
    const auto write = [&] {
      choice.fill(&chosen_);
      write_file();
      for (uint32_t i = 0; i < n; ++i) report_.tensors[i].predicted_loss = chosen_[i].loss;
    };
    if (o_.target_bits) {
      if (!choice.choose(*o_.target_bits * elements / 8)) {
        char text[128];
        std::snprintf(text, sizeof text,
                      ": cannot be packed in %.4g bits per weight; the fewest are %.4g",
                      *o_.target_bits, 8 * choice.smallest() / elements);
        throw Error(o_.input.string() + text);
      }
      write();
      report_.allocation->chosen = {choice.bytes(), choice.loss()};
      report_.allocation->curve = choice.curve(0);
      return;
    }

    // Compressed sizes are estimates until a file has been written; what one attempt shows serves the
    // next. The first one takes for the rest of the file what is certainly enough.
    const auto target = static_cast<double>(*o_.target_bytes);
    double rest = others + static_cast<double>(tokenizer_.size()) + 65536;
    double margin = 0;
    std::unique_ptr<ContainerWriter> best;
    Report best_report;
    constexpr int kAttempts = 6;
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
      const bool fits = choice.choose(target - rest - margin);
      if (!fits && attempt > 0) break;
      if (!fits) choice.choose(choice.smallest());
      write();
      const auto bytes = static_cast<double>(report_.output_bytes);
      double matrices = 0;
      for (uint32_t i = 0; i < n; ++i) {
        if (!tensor_spec(report_.config, i).quantisable) continue;
        const auto stored = static_cast<double>(report_.tensors[i].stored_bytes);
        matrices += stored;
        choice.correct(i, stored);
      }
      rest = bytes - matrices;
      if (bytes > target) {
        margin += bytes - target;
      } else if (!best || report_.output_bytes > best_report.output_bytes) {
        report_.allocation->chosen = {bytes, choice.loss()};
        best_report = report_;
        best = std::move(writer_);
        if (bytes > target * 0.999) break;
      } else {
        break;
      }
    }
    if (!best) {
      choice.choose(choice.smallest());
      write();
      throw Error(o_.input.string() + ": cannot be packed in " + std::to_string(*o_.target_bytes) +
                  " bytes; the smallest file has " + std::to_string(report_.output_bytes));
    }
    writer_ = std::move(best);
    report_ = std::move(best_report);
    report_.allocation->curve = choice.curve(rest);
  }

  void choose_types() {
    choose_vocabulary_types(
        o_.input.string(), report_.config.tied != 0, o_.embedding_type, o_.head_type,
        vocabulary_type(o_.type), [](auto type) { return std::string(type_name(type)); },
        &embedding_type_, &head_type_);
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

  std::optional<uint32_t> asked_group(const TensorSpec& spec) const {
    if (is_vocabulary(spec.role)) return o_.vocabulary_group_size;
    return o_.group_size;
  }
  uint32_t group_of(const TensorSpec& spec, WeightType type) const {
    return asked_group(spec).value_or(default_group(type, spec.role));
  }
  // The engine looks rows of the embedding up, and gives the head activations of 16 bits.
  MatrixShape shape_of(const TensorSpec& spec, const Alternative& a) const {
    return matrix_shape(a.type, spec.rows, spec.cols, a.group, !is_vocabulary(spec.role));
  }

  void add_tokenizer() {
    FoundTokenizer found = find_tokenizer(*checkpoint_, o_.tokenizer, &report_.config);
    report_.has_tokenizer = !found.blob.empty();
    report_.tokenizer_hint = std::move(found.hint);
    tokenizer_ = std::move(found.blob);
    // Vocabularies are padded, but not by that much.
    const ModelConfig& config = report_.config;
    if (report_.has_tokenizer && config.n_vocab_used < config.n_vocab - config.n_vocab / 8) {
      report_.warnings.push_back(
          "the tokenizer has " + std::to_string(config.n_vocab_used) + " tokens, the model " +
          std::to_string(config.n_vocab) +
          ": those that it lacks are never generated; is it this model's tokenizer?");
    }
  }

  void open_sources(const NamedTensors& names) {
    for (uint32_t i = 0; i < tensor_count(report_.config); ++i) {
      sources_.push_back(std::make_unique<Source>(*checkpoint_, *names.tensors[i].source,
                                                  report_.config, tensor_spec(report_.config, i),
                                                  a_is_folded_));
    }
  }

  ParallelFor parallel() const {
    return [this](size_t n, const std::function<void(size_t)>& work) {
      parallel_for(o_.threads, n, work);
    };
  }

  // Config and weights, so that what was learned of one model is not used for another.
  uint64_t model_hash() const {
    const ModelConfig& config = report_.config;
    Xxh64 hash;
    uint8_t bytes[8 * kConfigKeys];
    hash.update(bytes, encode_config(config, bytes));
    for (uint32_t i = 0; i < tensor_count(config); ++i) {
      const TensorSpec spec = tensor_spec(config, i);
      const size_t rows = std::max<size_t>(1, kPanelFloats / spec.cols);
      const size_t panels = (spec.rows + rows - 1) / rows;
      std::vector<uint64_t> hashes(panels);
      parallel_for(o_.threads, panels, [&](size_t p) {
        const size_t begin = p * rows, end = std::min<size_t>(begin + rows, spec.rows);
        std::vector<float> values((end - begin) * spec.cols);
        sources_[i]->read(begin, end, values.data(), spec.cols);
        hashes[p] = xxh64(values.data(), values.size() * sizeof(float));
        if (!all_finite(values.data(), values.size())) {
          refuse_nonfinite(sources_[i]->info(), values.data(), values.size());
        }
      });
      hash.update(hashes.data(), hashes.size() * sizeof(uint64_t));
    }
    return hash.digest();
  }

  // Windows of the calibration text, spread evenly over it.
  std::vector<int32_t> calibration_tokens() const {
    const std::string name = o_.calibration.string();
    if (tokenizer_.empty()) {
      throw Error(name + ": calibration needs a tokenizer, and there is none beside " +
                  o_.input.string() + "; give one with --tokenizer PATH");
    }
    const File file(o_.calibration);
    const std::string text = file.read_string(0, file.size());
    Tokenizer tokenizer;
    const Status opened = Tokenizer::open(tokenizer_, &tokenizer);
    if (!opened.ok()) throw Error(name + ": " + opened.message());
    std::vector<std::byte> scratch(tokenizer.scratch_bytes(text.size()));
    std::vector<int32_t> ids(text.size() + 1);
    size_t n = 0;
    const Status encoded =
        tokenizer.encode(text, MAMBA_EDGE_NO_TEMPLATE, scratch, ids.data(), ids.size(), &n);
    if (!encoded.ok()) throw Error(name + ": " + encoded.message());
    if (n < kFewestCalibrationTokens) {
      throw Error(name + ": the text has " + std::to_string(n) +
                  " tokens; calibration needs at least " +
                  std::to_string(kFewestCalibrationTokens) + ", better " +
                  std::to_string(kCalibrationTokens));
    }
    const size_t windows = std::min(n, o_.calibration_tokens) / kCalibrationWindow;
    std::vector<int32_t> tokens;
    for (size_t w = 0; w < windows; ++w) {
      const size_t begin = windows == 1 ? 0 : (n - kCalibrationWindow) * w / (windows - 1);
      tokens.insert(tokens.end(), ids.begin() + static_cast<ptrdiff_t>(begin),
                    ids.begin() + static_cast<ptrdiff_t>(begin + kCalibrationWindow));
    }
    return tokens;
  }

  void calibrate_matrices() {
    if (o_.calibration.empty() && o_.importance.empty()) return;
    const std::string name = o_.importance.string();
    if (o_.calibration.empty() && !std::filesystem::exists(o_.importance)) {
      throw Error(name + ": no such importance file; --calibration TEXT makes one");
    }
    importance_.emplace(o_.importance, o_.output);
    std::vector<int32_t> tokens;
    if (!o_.calibration.empty()) tokens = calibration_tokens();
    ImportanceKey key;
    key.model = model_hash();
    if (importance_->key() && importance_->key()->model != key.model) {
      throw Error(name + ": belongs to another model than " + o_.input.string() +
                  " (or to another version of it); calibrate this one with another file");
    }
    if (o_.calibration.empty()) {
      if (!is_calibrated(report_.config, o_.choose_types, *importance_)) {
        throw Error(name + ": holds no complete calibration; give the text with --calibration");
      }
      return;
    }
    Calibration c;
    c.config = &report_.config;
    c.tokens = std::move(tokens);
    key.text = xxh64(c.tokens.data(), c.tokens.size() * sizeof(int32_t));
    key.tokens = c.tokens.size();
    if (!importance_->key()) {
      importance_->begin(key);
    } else if (importance_->key()->text != key.text) {
      throw Error(
          name + ": was made from another text than " + o_.calibration.string() +
          ", or another number of its tokens; use another file, or leave --calibration out");
    }
    c.read = [this](uint32_t tensor, size_t begin, size_t end, float* out, size_t stride) {
      sources_[tensor]->read(begin, end, out, stride);
    };
    c.make_forward = o_.make_forward;
    c.window = kCalibrationWindow;
    c.threads = o_.threads;
    c.sensitivities = o_.choose_types;
    if (o_.progress) c.progress = [this](double done) { o_.progress("calibrating", done); };
    calibrate(c, &*importance_);
  }

  void add_progress(double elements) {
    done_elements_ += elements;
    if (o_.progress) o_.progress("converting", std::min(1.0, done_elements_ / total_elements_));
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

  void pack(uint32_t index) {
    const TensorSpec spec = tensor_spec(report_.config, index);
    const Source& source = *sources_[index];
    TensorReport entry;
    char name[40];
    tensor_name(spec.role, spec.layer, name);
    entry.name = name;
    entry.rows = spec.rows;
    entry.cols = spec.cols;
    entry.quantisable = spec.quantisable;
    if (spec.is_matrix) {
      pack_matrix(index, spec, source, &entry);
    } else {
      pack_vector(spec, source, &entry);
    }
    report_.packed_bytes += entry.raw_bytes;
    report_.n_parameters += source.info().elements();
    report_.tensors.push_back(std::move(entry));
  }

  void pack_vector(const TensorSpec& spec, const Source& source, TensorReport* entry) {
    std::vector<float> values(round_up(spec.rows, kTileRows), 0.0f);
    source.read(0, spec.rows, values.data(), 1);
    const PanelScan result = scan(source.info(), values.data(), values.size());
    hash_.update(&result.hash, sizeof result.hash);
    const std::span<const uint8_t> raw(reinterpret_cast<const uint8_t*>(values.data()),
                                       values.size() * 4);
    const MatrixShape shape{WeightType::f32, spec.rows, 1, 1};
    const Encoding encoding = encoding_of(raw, shape);
    writer_->begin_tensor(entry->name, false, shape, 1, 1.0f, encoding);
    writer_->append(raw, compress(raw, shape, encoding));
    entry->type = type_name(WeightType::f32);
    entry->raw_bytes = raw.size();
    entry->stored_bytes = writer_->end_tensor();
    add_progress(spec.rows);
  }

  // The encoding of a tensor, by some of its row blocks.
  Encoding encoding_of(std::span<const uint8_t> raw, const MatrixShape& shape) const {
    return o_.store ? Encoding::raw : choose_encoding(raw, shape, o_.zstd_level).encoding;
  }

  std::vector<Compressed> compress(std::span<const uint8_t> raw, const MatrixShape& shape,
                                   Encoding encoding) const {
    if (encoding == Encoding::raw) return {};
    return compress_row_blocks(raw, shape, encoding, o_.zstd_level);
  }

  void pack_matrix(uint32_t index, const TensorSpec& spec, const Source& source,
                   TensorReport* entry) {
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
    WeightType type = chosen_[index].type;
    // 16 bits hold more of a weight as integers in groups than as binary16, unless that is exact
    // already.
    if (type == WeightType::f16 && !half && !nonfinite) type = WeightType::int16;
    if (nonfinite && is_grouped(type)) {
      report_.warnings.push_back(source.info().name + " holds NaN or infinities, which " +
                                 type_name(type) + " cannot express; they become 0");
    }
    const MatrixShape shape = shape_of(spec, {type, chosen_[index].group});
    const size_t block_bytes = shape.row_block_bytes();
    const float scale = matrix_scale(type, max_abs);

    std::optional<FeedbackPlan> plan;
    if (importance_ && importance_->has_moment(index) && is_quantised(type)) {
      plan.emplace(parallel(), importance_->moment(index), shape,
                   damping(report_.config, spec.role));
    }

    // Second pass: encode and compress a few panels at a time, write them in order. The first panel
    // decides the encoding of all.
    Encoding encoding = Encoding::raw;
    struct Panel {
      std::vector<uint8_t> raw;
      std::vector<Compressed> frames;
      EncodeError error;
      double output_error = 0;
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
          const float* rows = values.data() + b * kTileRows * shape.cols;
          uint8_t* out = panel.raw.data() + b * block_bytes;
          panel.error.add(plan
                              ? encode_row_block_with_feedback(shape, scale, *plan, rows,
                                                               shape.cols, out, &panel.output_error)
                              : encode_row_block(shape, scale, rows, shape.cols, out));
        }
      });
      if (first == 0) {
        encoding = encoding_of(work[0].raw, shape);
        writer_->begin_tensor(entry->name, true, shape, spec.cols, scale, encoding);
      }
      parallel_for(o_.threads, work.size(),
                   [&](size_t i) { work[i].frames = compress(work[i].raw, shape, encoding); });
      for (size_t i = 0; i < work.size(); ++i) {
        writer_->append(work[i].raw, work[i].frames);
        entry->error.add(work[i].error);
        entry->output_error += work[i].output_error;
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
    if (importance_) {
      std::snprintf(hash, sizeof hash, "%016llx",
                    static_cast<unsigned long long>(importance_->key()->text));
      put("calibration", std::to_string(importance_->key()->tokens) + " tokens " + hash);
    }
    writer_->add_section("PROV", false, provenance);
  }

  const Options& o_;
  Report report_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::vector<std::unique_ptr<Source>> sources_;  // by tensor
  std::optional<ImportanceFile> importance_;
  std::vector<Alternative> chosen_;  // by tensor
  std::unique_ptr<ContainerWriter> writer_;
  std::vector<uint8_t> tokenizer_;
  WeightType embedding_type_{}, head_type_{};
  bool a_is_folded_ = false;
  size_t first_warning_ = 0;  // of those that writing the file may add
  Xxh64 hash_;
  double total_elements_ = 0, done_elements_ = 0;
  double matrix_bytes_ = 0, matrix_elements_ = 0;
};

}  // namespace

Report convert_checkpoint(const Options& options) { return Converter(options).run(); }

}  // namespace mamba_edge::convert
