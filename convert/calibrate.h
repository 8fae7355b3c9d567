// Runs a model over a text, layer by layer, and writes down what its matrices are multiplied with.
//
// Weights are read one layer at a time; what grows with the text is one row of d_model floats per
// token. Rounding errors are not carried from layer to layer: what is learned holds for every type.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "convert/forward.h"
#include "convert/importance.h"
#include "engine/config.h"
#include "engine/tensors.h"

namespace mamba_edge::convert {

struct Calibration {
  const ModelConfig* config = nullptr;
  // Rows [begin, end) of a tensor of engine/tensors.h's list, packed order, as float32
  // out[end - begin][stride].
  std::function<void(uint32_t tensor, size_t begin, size_t end, float* out, size_t stride)> read;
  MakeForward make_forward;
  std::vector<int32_t> tokens;  // windows, one after the other; each is a text of its own
  size_t window = 0;            // tokens of each
  int threads = 1;
  bool sensitivities = false;                 // measure these, too
  std::function<void(double done)> progress;  // 0 to 1
};

// How much an error counts whatever its direction, as a part of the mean second moment: inputs that
// the text did not have. A tied embedding is also looked up, which wants rows that are right in every
// direction. Measured: docs/quantization.md.
double damping(const ModelConfig& config, TensorRole role);

// Adds to `file` what it lacks: the second moment of the inputs of every matrix whose type can be
// chosen (of a tied embedding: as the head; of another embedding there is none), and, where asked
// for, every such matrix's sensitivity.
void calibrate(const Calibration& calibration, ImportanceFile* file);

// Whether `file` has all of that.
bool is_calibrated(const ModelConfig& config, bool sensitivities, const ImportanceFile& file);

}  // namespace mamba_edge::convert
