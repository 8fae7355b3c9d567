// What calibration learned about a model, in a file: for every matrix the second moment of its
// inputs, and how much an error of its outputs matters to the model's predictions.
//
// Grows by whole records, so what an interrupted run had finished is there for the next one. Not
// meant for other programs: docs/quantization.md says what it is for, not its bytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "quant/second_moment.h"

namespace mamba_edge::convert {

struct ImportanceKey {
  uint64_t model = 0;   // hash of config and weights
  uint64_t text = 0;    // hash of the calibration tokens, as they were cut
  uint64_t tokens = 0;  // how many
};

// How a model's predictions suffer from rounding one matrix, as measured by rounding it coarsely.
struct Sensitivity {
  double divergence = 0;    // Kullback-Leibler divergence of the predictions, nats per token
  double output_error = 0;  // what encode_row_block's rounding did to the outputs of the matrix
};

class ImportanceFile {
 public:
  // `path` empty: a file without a name beside `beside`, gone with this object.
  ImportanceFile(const std::filesystem::path& path, const std::filesystem::path& beside);
  ~ImportanceFile();
  ImportanceFile(const ImportanceFile&) = delete;
  ImportanceFile& operator=(const ImportanceFile&) = delete;

  // What the file was made from; nothing if it is new.
  const std::optional<ImportanceKey>& key() const { return key_; }
  // Starts a new file.
  void begin(const ImportanceKey& key);

  // By the index of the matrix in engine/tensors.h's list.
  bool has_moment(uint32_t tensor) const { return moments_.contains(tensor); }
  SecondMoment moment(uint32_t tensor) const;
  void add_moment(uint32_t tensor, const SecondMoment& moment);
  const std::map<uint32_t, Sensitivity>& sensitivities() const { return sensitivities_; }
  void add_sensitivity(uint32_t tensor, const Sensitivity& sensitivity);

 private:
  struct Place {
    uint64_t offset = 0;
    uint32_t inputs = 0;
    uint64_t tokens = 0;
  };
  void read_records();
  void append(uint32_t kind, uint32_t tensor, uint32_t inputs, uint64_t tokens,
              std::span<const uint8_t> payload);
  void read(uint64_t offset, void* out, size_t n) const;
  [[noreturn]] void fail(const char* what) const;
  [[noreturn]] void damaged(const std::string& what) const;

  void check_writable() const;

  std::string path_;
  int file_ = -1;
  int read_only_ = 0;  // why the file cannot be written (errno), or 0
  uint64_t end_ = 0;
  std::optional<ImportanceKey> key_;
  std::map<uint32_t, Place> moments_;
  std::map<uint32_t, Sensitivity> sensitivities_;
};

}  // namespace mamba_edge::convert
