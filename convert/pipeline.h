// A published checkpoint into a container: reads, folds, packs, compresses and writes one tensor at
// a time, in panels of about a megabyte that threads work on side by side. Memory does not grow
// with the checkpoint.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "convert/forward.h"
#include "engine/config.h"
#include "quant/blocks.h"
#include "quant/encode.h"

namespace mamba_edge::convert {

constexpr size_t kCalibrationWindow = 512;    // tokens that are read as one text
constexpr size_t kCalibrationTokens = 16384;  // of a text, spread over it, by default
constexpr size_t kFewestCalibrationTokens = 2048;

struct Options {
  std::filesystem::path input;   // a folder or a file, as Checkpoint::open takes it
  std::filesystem::path output;  // the container
  // Another file that the caller writes for this conversion: refused where it is one of the others.
  std::filesystem::path also_written;
  WeightType type = WeightType::int8;
  // Instead of `type`: every matrix gets the type, and the group, with which the model loses least
  // within a budget. One of the two is given: bytes of the file, or packed bits per weight.
  bool choose_types = false;
  std::optional<uint64_t> target_bytes;
  std::optional<double> target_bits;
  std::optional<WeightType> embedding_type,
      head_type;  // default: vocabulary_type(type); tied: one matrix, so both must agree
  // Multiples of 16, 16 to 256; default_group() where not given.
  std::optional<uint32_t> group_size, vocabulary_group_size;  // the second of embedding and head
  int zstd_level = 3;                                         // as zstd counts, 1 to 22
  bool store = false;                                         // keep tensors raw, for mapping
  int threads = 1;
  bool allow_nonfinite =
      false;  // NaN and infinities in weights are kept (fp32, fp16) or refused (others)
  bool gated_norm_whole = false;    // Mamba-2: the gated norm works over all of d_inner
  std::filesystem::path tokenizer;  // empty: tokenizer.json beside the checkpoint, if there is one
  std::string recipe;               // recorded in the file: the options that shape the numbers
  // Rounds the matrices of grouped types by what this text makes of their inputs (quant/feedback.h);
  // empty: by their values alone.
  std::filesystem::path calibration;
  size_t calibration_tokens = kCalibrationTokens;
  // Where that is kept for the next conversion of the same checkpoint; alone, it replaces the text.
  std::filesystem::path importance;
  MakeForward make_forward;  // for calibration

  std::function<void(const char* what, double done)>
      progress;  // 0 to 1; from the converting thread
};

// How types were chosen. Losses are Kullback-Leibler divergences of the predictions from those of the
// checkpoint, nats per token: extrapolated from measurements on the calibration text, or, without
// one, guessed.
struct Allocation {
  struct Point {
    double bytes = 0;  // of the file; of the packed matrices where a number of bits was asked for
    double loss = 0;
  };
  std::vector<Point> curve;  // the best for other budgets, ascending
  Point chosen;
  bool measured = false;
};

struct TensorReport {
  std::string name;
  std::string type;  // "int8", "fp32", ...
  uint32_t rows = 0, cols = 0, group = 1;
  bool quantisable = false;  // its type can be chosen
  uint64_t raw_bytes = 0;
  uint64_t stored_bytes = 0;
  EncodeError error;
  double output_error = 0;    // where it was calibrated: see quant/feedback.h
  double predicted_loss = 0;  // where its type was chosen: its part of the loss
};

struct Report {
  ModelConfig config;
  std::vector<TensorReport> tensors;
  std::optional<Allocation> allocation;
  std::vector<std::string> warnings;
  std::filesystem::path config_file;
  bool has_tokenizer = false;
  std::string tokenizer_hint;  // without one: which file to add
  uint64_t input_bytes = 0;    // the checkpoint's files
  uint64_t output_bytes = 0;
  uint64_t packed_bytes = 0;  // of all tensors, as they lie in memory
  int64_t n_parameters = 0;
  double bits_per_weight = 0;  // packed bits of the matrices over their elements
  double seconds = 0;
};

// Throws Error; nothing is left behind on failure.
Report convert_checkpoint(const Options& options);

}  // namespace mamba_edge::convert
