// Products with many tokens against what the arithmetic allows, on one core.
//
//   prefill_bench --benchmark_filter='peak|matmul_i8_i8/amx'
//
// `op/s` counts a multiplication and an addition as two. peak/<isa> repeats what a table's int8 products
// are made of, on registers, with enough sums to hide the latencies; the products' `op/s` over that is the fraction of the arithmetic that they reach. A call covers 64
// rows at a time, as the engine's do, of a matrix that fits in the second cache.
#include <benchmark/benchmark.h>

#include <string>

#include "platforms/os/memory.h"
#include "platforms/select.h"

namespace mamba_edge {
namespace {

void count_operations(benchmark::State& state, double per_iteration) {
  state.counters["op/s"] =
      benchmark::Counter(per_iteration, benchmark::Counter::kIsIterationInvariantRate);
}

void peak(benchmark::State& state, const KernelTable* k) {
  constexpr size_t kRounds = 1000;
  uint64_t products = 0;
  for (auto _ : state) products = k->peak_i8(kRounds);
  count_operations(state, 2.0 * static_cast<double>(products));
}

template <typename T>
class Buffer {
 public:
  explicit Buffer(size_t n, T value = T{})
      : n_(n), data_(static_cast<T*>(memory_allocate(n * sizeof(T)))) {
    for (size_t i = 0; i < n; ++i) data_[i] = value;
  }
  ~Buffer() { memory_free(data_, n_ * sizeof(T)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() { return data_; }

 private:
  size_t n_;
  T* data_;
};

void matmul(benchmark::State& state, const KernelTable* k, WeightType type, size_t cols,
            size_t group, size_t tokens) {
  constexpr size_t kMatrixBytes = size_t{1} << 20, kBlocks = 4;  // at a time
  MatrixShape shape{type, 16, static_cast<uint32_t>(cols), static_cast<uint32_t>(group)};
  const size_t blocks = kMatrixBytes / shape.row_block_bytes() / kBlocks * kBlocks;
  shape.rows = static_cast<uint32_t>(blocks * kTileRows);
  Buffer<uint8_t> bytes(shape.bytes(), 0x2c);  // weights of 0x2c, scales of 0x2c2c
  Matrix w;
  w.shape = shape;
  w.row_block_bytes = shape.row_block_bytes();
  w.data = bytes.data();
  Buffer<float> scale(tokens * shape.groups(), 0.01f), out(tokens * shape.rows);
  const size_t stride = cols + kBlockAlign;  // as the engine's: an odd number of lines
  Buffer<int8_t> q(tokens * stride, 3);
  Buffer<int32_t> sum(tokens * shape.groups(), static_cast<int32_t>(group * 3));
  QuantisedRows rows;
  rows.q = q.data();
  rows.scale = scale.data();
  rows.sum = sum.data();
  rows.stride = stride;
  rows.group_stride = shape.groups();
  const auto multiply = quantised_matmul(*k, type);
  for (auto _ : state) {
    for (size_t r = 0; r < blocks; r += kBlocks) {
      multiply(w, r, r + kBlocks, rows, tokens, out.data(), shape.rows);
    }
    benchmark::ClobberMemory();
  }
  count_operations(state,
                   2.0 * static_cast<double>(shape.rows) * static_cast<double>(cols * tokens));
}

// One piece of 64 channels, all tokens.
void scan(benchmark::State& state, const KernelTable* k, bool mamba1, bool half, size_t d_state,
          size_t tokens) {
  constexpr size_t kN = 64, kWidth = 2048 + 16;
  Buffer<float> h(kN * d_state, 0.1f), a(kN * d_state, -1.0f), d(kN, 1.0f), bias(kN, -1.0f);
  Buffer<uint16_t> half_h(kN * d_state, 0x2c00);
  Buffer<float> dt(tokens * kWidth, 0.1f), decay(tokens * kWidth, 0.9f), x(tokens * kWidth, 0.2f);
  Buffer<float> z(tokens * kWidth, 0.3f), y(tokens * kWidth), b(tokens * 2 * d_state, 0.1f);
  Mamba1ScanArgs one;
  one.state = half ? nullptr : h.data();
  one.half_state = half ? half_h.data() : nullptr;
  one.a = a.data();
  one.d = d.data();
  one.dt_bias = bias.data();
  one.dt = dt.data();
  one.b = b.data();
  one.c = b.data() + d_state;
  one.x = x.data();
  one.z = z.data();
  one.y = y.data();
  one.dt_stride = one.x_stride = one.z_stride = one.y_stride = kWidth;
  one.bc_stride = 2 * d_state;
  one.d_state = d_state;
  one.blocks = kN / 16;
  one.tokens = tokens;
  Mamba2ScanArgs two;
  two.state = one.state;
  two.half_state = one.half_state;
  two.d = d.data();
  two.dt = dt.data();
  two.decay = decay.data();
  two.b = one.b;
  two.c = one.c;
  two.x = x.data();
  two.y = y.data();
  two.dt_stride = two.x_stride = two.y_stride = kWidth;
  two.bc_stride = 2 * d_state;
  two.d_state = d_state;
  two.blocks = kN / 16;
  two.tokens = tokens;
  for (auto _ : state) {
    if (mamba1) {
      k->mamba1_scan(one);
    } else {
      k->mamba2_scan(two);
    }
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations()) *
                          static_cast<int64_t>(kN * d_state * tokens));
}

const bool registered = [] {
  size_t n = 0;
  const KernelTable* const* tables = available_tables(&n);
  for (size_t i = 0; i < n; ++i) {
    const KernelTable* k = tables[i];
    const std::string isa = k->isa;
    benchmark::RegisterBenchmark(("peak/" + isa).c_str(), peak, k);
    for (const WeightType type : kQuantisedTypes) {
      for (const size_t cols : {size_t{1024}, size_t{2048}, size_t{4096}}) {
        for (const size_t tokens :
             {size_t{16}, size_t{32}, size_t{64}, size_t{128}, size_t{256}, size_t{512}}) {
          const std::string name = "matmul_i" + std::to_string(properties(type).bits) + "_i8/" +
                                   isa + "/cols:" + std::to_string(cols) +
                                   "/tokens:" + std::to_string(tokens);
          benchmark::RegisterBenchmark(name.c_str(), matmul, k, type, cols,
                                       size_t{type == WeightType::int8 ? 128u : 64u}, tokens);
        }
      }
    }
    for (const bool half : {false, true}) {
      for (const size_t tokens : {size_t{1}, size_t{4}, size_t{32}, size_t{256}}) {
        const std::string rest =
            isa + (half ? "/fp16" : "/fp32") + "/tokens:" + std::to_string(tokens);
        benchmark::RegisterBenchmark(("mamba1_scan/" + rest).c_str(), scan, k, true, half,
                                     size_t{16}, tokens);
        benchmark::RegisterBenchmark(("mamba2_scan/" + rest).c_str(), scan, k, false, half,
                                     size_t{128}, tokens);
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace mamba_edge
