// Which type every matrix of a model gets, within a budget of bytes.
#pragma once

#include <cstdint>
#include <vector>

#include "convert/pipeline.h"
#include "engine/config.h"
#include "engine/tensors.h"
#include "quant/blocks.h"

namespace mamba_edge::convert {

// What a matrix may become, and what that is expected to cost and to lose.
struct Alternative {
  WeightType type = WeightType::f32;
  uint32_t group = 1;
  double bytes = 0;
  double loss = 0;
};

// The loss of a model one of whose matrices has a relative square error of 1, if it went on growing
// as it begins: for models that were not measured. From the ones in models/; docs/quantization.md.
double guessed_loss(const ModelConfig& config, TensorRole role);

class TypeChoice {
 public:
  // By the number of the tensor; `list` is not empty.
  void add(uint32_t tensor, std::vector<Alternative> list);

  // Chooses what loses least within so many bytes; false, and nothing changes, if that is impossible.
  bool choose(double bytes);
  double smallest() const;  // bytes that suffice
  double bytes() const;     // of what was chosen
  double loss() const;
  // Puts what was chosen into (*chosen)[tensor].
  void fill(std::vector<Alternative>* chosen) const;

  // The chosen alternative of a tensor turned out to take so many bytes: takes that over, and expects
  // the others to be off alike.
  void correct(uint32_t tensor, double bytes);

  // The best for budgets from the smallest to the one where nothing is gained any more; `rest` is
  // added to the bytes.
  std::vector<Allocation::Point> curve(double rest) const;

 private:
  struct Item {
    uint32_t tensor = 0;
    std::vector<Alternative> list;
    size_t chosen = 0;
    bool corrected = false;
  };
  std::vector<Item> items_;
};

}  // namespace mamba_edge::convert
