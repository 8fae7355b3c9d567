#include "quant/second_moment.h"

#include <algorithm>

#include "platforms/select.h"
#include "quant/blocks.h"

namespace mamba_edge {

AlignedFloats::AlignedFloats(size_t n) : memory_(n + kBlockAlign / sizeof(float)), size_(n) {
  const auto address = reinterpret_cast<uintptr_t>(memory_.data());
  data_ = memory_.data() + (round_up<uintptr_t>(address, kBlockAlign) - address) / sizeof(float);
}

void AlignedFloats::fill(float value) { std::fill_n(data_, size_, value); }

SecondMoment::SecondMoment(uint32_t inputs)
    : inputs_(inputs), sums_(size_t{inputs} * (size_t{inputs} + 1) / 2, 0.0f) {}

void SecondMoment::add(const ParallelFor& parallel, const float* x, size_t stride, size_t n) {
  const KernelTable& table = *select_table(nullptr);
  const size_t blocks = (size_t{inputs_} + kTileRows - 1) / kTileRows;
  // A run of tokens twice: as a packed matrix, a row per input, and with a row per input.
  AlignedFloats packed(blocks * kTileRows * kRun), rows(blocks * kTileRows * kRun);
  for (size_t begin = 0; begin < n; begin += kRun) {
    const size_t run = std::min(kRun, n - begin);
    const size_t width = round_up<size_t>(run, kTileRows);
    packed.fill(0);
    rows.fill(0);
    parallel(blocks, [&](size_t block) {
      const size_t first = block * kTileRows;
      const size_t count = std::min<size_t>(kTileRows, inputs_ - first);
      for (size_t t = 0; t < run; ++t) {
        const float* from = x + (begin + t) * stride + first;
        float* to = packed.data() + (block * width + t) * kTileRows;
        for (size_t i = 0; i < count; ++i) {
          to[i] = from[i];
          rows[(first + i) * kRun + t] = from[i];
        }
      }
    });
    Matrix matrix;
    matrix.shape = {WeightType::f32, static_cast<uint32_t>(blocks * kTileRows),
                    static_cast<uint32_t>(width), 1};
    matrix.row_block_bytes = matrix.shape.row_block_bytes();
    matrix.data = reinterpret_cast<const uint8_t*>(packed.data());
    // Inputs of a block with themselves and all later ones. The last blocks have the least to do, so
    // each job takes one from either end.
    parallel((blocks + 1) / 2, [&](size_t job) {
      AlignedFloats products(blocks * kTileRows * kTileRows);
      const auto run_block = [&](size_t block) {
        const size_t first = block * kTileRows;
        Matrix part = matrix;
        part.data += block * matrix.row_block_bytes;
        table.matmul_f32_f32(part, 0, 1, rows.data() + first * kRun, kRun, inputs_ - first,
                             products.data(), kTileRows);
        for (size_t i = first; i < inputs_; ++i) {
          float* sums = sums_.data() + i * (i + 1) / 2 + first;
          const float* from = products.data() + (i - first) * kTileRows;
          const size_t count = std::min<size_t>(kTileRows, i - first + 1);
          for (size_t j = 0; j < count; ++j) sums[j] += from[j];
        }
      };
      run_block(job);
      if (blocks - 1 - job != job) run_block(blocks - 1 - job);
    });
    tokens_ += run;
  }
}

double SecondMoment::mean(uint32_t i, uint32_t j) const {
  if (tokens_ == 0) return 0;
  if (i < j) std::swap(i, j);
  return static_cast<double>(sums_[size_t{i} * (size_t{i} + 1) / 2 + j]) /
         static_cast<double>(tokens_);
}

double output_error(const ParallelFor& parallel, const SecondMoment& moment, double damping,
                    const float* errors, size_t rows, size_t stride) {
  const KernelTable& table = *select_table(nullptr);
  const size_t n = moment.inputs(), width = round_up<size_t>(n, kTileRows);
  AlignedFloats h(n * width);
  parallel(n, [&](size_t i) {
    for (size_t j = 0; j < n; ++j) {
      h[i * width + j] =
          static_cast<float>(moment.mean(static_cast<uint32_t>(i), static_cast<uint32_t>(j)));
    }
  });
  double mean = 0;
  for (size_t i = 0; i < n; ++i)
    mean += static_cast<double>(h[i * width + i]) / static_cast<double>(n);
  for (size_t i = 0; i < n; ++i) h[i * width + i] += static_cast<float>(damping * mean);
  const size_t blocks = (rows + kTileRows - 1) / kTileRows;
  std::vector<double> sums(blocks);
  parallel(blocks, [&](size_t block) {
    AlignedFloats packed(width * kTileRows), products(n * kTileRows);
    const size_t first = block * kTileRows, count = std::min<size_t>(kTileRows, rows - first);
    for (size_t r = 0; r < count; ++r) {
      for (size_t i = 0; i < n; ++i) packed[i * kTileRows + r] = errors[(first + r) * stride + i];
    }
    Matrix matrix;
    matrix.shape = {WeightType::f32, kTileRows, static_cast<uint32_t>(width), 1};
    matrix.row_block_bytes = matrix.shape.row_block_bytes();
    matrix.data = reinterpret_cast<const uint8_t*>(packed.data());
    table.matmul_f32_f32(matrix, 0, 1, h.data(), width, n, products.data(), kTileRows);
    for (size_t i = 0; i < n * kTileRows; ++i) {
      sums[block] += static_cast<double>(packed[i]) * static_cast<double>(products[i]);
    }
  });
  double sum = 0;
  for (const double part : sums) sum += part;
  return std::max(sum, 0.0);
}

}  // namespace mamba_edge
