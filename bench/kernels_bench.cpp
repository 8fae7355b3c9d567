// Every kernel, by table, on one core. Bytes per second count the weights (or the state) that a
// call must read.
//
//   kernels_bench --benchmark_filter=matmul_i8/avx2
//
// Matrices are far larger than a core's caches, as they are in decode: `tokens` 1 is decode, more
// are prefill.
#include <benchmark/benchmark.h>

#include <cstring>
#include <string>

#include "platforms/os/memory.h"
#include "platforms/select.h"

namespace mamba_edge {
namespace {

constexpr size_t kMatrixBytes = size_t{256} << 20;
constexpr size_t kCachedBytes = size_t{512} << 10;  // the kernels alone, without the memory

// Memory that is filled with small, harmless values.
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
  T& operator[](size_t i) { return data_[i]; }

 private:
  size_t n_;
  T* data_;
};

void matmul(benchmark::State& state, const KernelTable* k, WeightType type, size_t cols,
            size_t tokens, size_t matrix_bytes) {
  MatrixShape shape{type, 16, static_cast<uint32_t>(cols), is_grouped(type) ? 64u : 1u};
  const size_t blocks = matrix_bytes / shape.row_block_bytes();
  shape.rows = static_cast<uint32_t>(blocks * 16);
  Buffer<uint8_t> bytes(shape.bytes(), 0x2c);  // weights of 0x2c, scales and fp16 numbers of 0x2c2c
  Matrix w;
  w.shape = shape;
  w.row_block_bytes = shape.row_block_bytes();
  w.data = bytes.data();
  Buffer<float> x(tokens * cols, 0.25f), scale(tokens * cols, 0.01f), out(tokens * shape.rows);
  Buffer<int8_t> q(tokens * cols, 3);
  Buffer<int32_t> sum(tokens * cols, 64 * 3);
  QuantisedRows rows;
  rows.q = q.data();
  rows.scale = scale.data();
  rows.sum = sum.data();
  rows.stride = cols;
  rows.group_stride = shape.groups();
  for (auto _ : state) {
    switch (type) {
      case WeightType::f32:
        k->matmul_f32_f32(w, 0, blocks, x.data(), cols, tokens, out.data(), shape.rows);
        break;
      case WeightType::f16:
        k->matmul_f16_f32(w, 0, blocks, x.data(), cols, tokens, out.data(), shape.rows);
        break;
      case WeightType::int16:
        k->matmul_i16_f32(w, 0, blocks, x.data(), cols, tokens, out.data(), shape.rows);
        break;
      case WeightType::int8:
        k->matmul_i8_i8(w, 0, blocks, rows, tokens, out.data(), shape.rows);
        break;
      case WeightType::int4:
        k->matmul_i4_i8(w, 0, blocks, rows, tokens, out.data(), shape.rows);
        break;
    }
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) *
                          static_cast<int64_t>(shape.bytes()));
  const double products = static_cast<double>(shape.rows) * static_cast<double>(cols * tokens);
  state.counters["mac/s"] =
      benchmark::Counter(products, benchmark::Counter::kIsIterationInvariantRate);
}

// What one core can read with this table's loads.
void read_words(benchmark::State& state, const KernelTable* k) {
  Buffer<uint8_t> bytes(kMatrixBytes, 1);
  for (auto _ : state) benchmark::DoNotOptimize(k->read_words(bytes.data(), kMatrixBytes));
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) *
                          static_cast<int64_t>(kMatrixBytes));
}

void quantise(benchmark::State& state, const KernelTable* k) {
  constexpr size_t kN = 4096;
  Buffer<float> x(kN, 0.25f), scale(kN / 64);
  Buffer<int8_t> q(kN);
  Buffer<int32_t> sum(kN / 64);
  for (auto _ : state) {
    k->quantise_i8(x.data(), kN, 64, q.data(), scale.data(), sum.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations()) * static_cast<int64_t>(kN));
}

// Rows of 1536 channels: the others that work on a row.
void row(benchmark::State& state, const KernelTable* k, const std::string& name) {
  constexpr size_t kN = 1536;
  Buffer<float> x(kN, 0.25f), z(kN, 0.5f), weight(kN, 1.0f), bias(kN, 0.1f), a(kN, -1.0f), out(kN);
  for (auto _ : state) {
    if (name == "rms_norm") k->rms_norm(x.data(), weight.data(), kN, 1e-5f, out.data());
    if (name == "layer_norm")
      k->layer_norm(x.data(), weight.data(), bias.data(), kN, 1e-5f, out.data());
    if (name == "add_rows") k->add_rows(out.data(), x.data(), bias.data(), kN);
    if (name == "scale") k->scale(out.data(), 0.999f, kN);
    if (name == "dt_decay")
      k->dt_decay(out.data(), bias.data(), a.data(), 0.0f, 10.0f, kN, x.data());
    if (name == "gate_norm")
      benchmark::DoNotOptimize(
          k->gate_norm(x.data(), z.data(), weight.data(), true, kN, out.data()));
    if (name == "arg_max") benchmark::DoNotOptimize(k->arg_max(x.data(), kN));
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations()) * static_cast<int64_t>(kN));
}

void conv(benchmark::State& state, const KernelTable* k) {
  constexpr size_t kN = 1536;
  Buffer<float> window(kN * 4, 0.1f), weight(kN * 4, 0.1f), bias(kN, 0.1f), x(kN, 0.2f), out(kN);
  ConvArgs args;
  args.window = window.data();
  args.weight = weight.data();
  args.bias = bias.data();
  args.in = x.data();
  args.out = out.data();
  args.in_stride = args.out_stride = kN;
  args.d_conv = 4;
  args.blocks = kN / 16;
  args.tokens = 1;
  for (auto _ : state) {
    k->conv_silu(args);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations()) * static_cast<int64_t>(kN));
}

// One layer's scan: 1536 channels times the state.
void scan(benchmark::State& state, const KernelTable* k, bool mamba1, size_t d_state) {
  constexpr size_t kN = 1536;
  Buffer<float> h(kN * d_state, 0.1f), a(kN * d_state, -1.0f), d(kN, 1.0f), bias(kN, -1.0f),
      dt(kN, 0.1f);
  Buffer<float> decay(kN, 0.9f), b(d_state, 0.1f), c(d_state, 0.1f), x(kN, 0.2f), z(kN, 0.3f),
      y(kN);
  Mamba1ScanArgs one;
  one.state = h.data();
  one.a = a.data();
  one.d = d.data();
  one.dt_bias = bias.data();
  one.dt = dt.data();
  one.b = b.data();
  one.c = c.data();
  one.x = x.data();
  one.z = z.data();
  one.y = y.data();
  one.d_state = d_state;
  one.blocks = kN / 16;
  one.tokens = 1;
  Mamba2ScanArgs two;
  two.state = h.data();
  two.d = d.data();
  two.dt = dt.data();
  two.decay = decay.data();
  two.b = b.data();
  two.c = c.data();
  two.x = x.data();
  two.y = y.data();
  two.d_state = d_state;
  two.blocks = kN / 16;
  two.tokens = 1;
  for (auto _ : state) {
    if (mamba1) {
      k->mamba1_scan(one);
    } else {
      k->mamba2_scan(two);
    }
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations()) *
                          static_cast<int64_t>(kN * d_state));
}

const bool registered = [] {
  size_t n = 0;
  const KernelTable* const* tables = available_tables(&n);
  for (size_t i = 0; i < n; ++i) {
    const KernelTable* k = tables[i];
    const std::string isa = k->isa;
    benchmark::RegisterBenchmark(("read_words/" + isa).c_str(), read_words, k)
        ->Unit(benchmark::kMillisecond);
    constexpr WeightType kTypes[] = {WeightType::f32, WeightType::f16, WeightType::int16,
                                     WeightType::int8, WeightType::int4};
    constexpr const char* kNames[] = {"matmul_f32_f32/", "matmul_f16_f32/", "matmul_i16_f32/",
                                      "matmul_i8_i8/", "matmul_i4_i8/"};
    for (size_t type = 0; type < 5; ++type) {
      const std::string name = kNames[type] + isa;
      for (const size_t tokens : {size_t{1}, size_t{4}, size_t{8}, size_t{32}}) {
        benchmark::RegisterBenchmark((name + "/tokens:" + std::to_string(tokens)).c_str(), matmul,
                                     k, kTypes[type], size_t{2560}, tokens, kMatrixBytes)
            ->Unit(benchmark::kMillisecond);
      }
      benchmark::RegisterBenchmark((name + "/cached").c_str(), matmul, k, kTypes[type],
                                   size_t{2560}, size_t{1}, kCachedBytes)
          ->Unit(benchmark::kMillisecond);
    }
    benchmark::RegisterBenchmark(("quantise_i8/" + isa).c_str(), quantise, k);
    for (const char* name :
         {"rms_norm", "layer_norm", "add_rows", "scale", "dt_decay", "gate_norm", "arg_max"}) {
      benchmark::RegisterBenchmark((std::string(name) + "/" + isa).c_str(), row, k,
                                   std::string(name));
    }
    benchmark::RegisterBenchmark(("conv_silu/" + isa).c_str(), conv, k);
    benchmark::RegisterBenchmark(("mamba1_scan/" + isa + "/d_state:16").c_str(), scan, k, true,
                                 size_t{16});
    benchmark::RegisterBenchmark(("mamba2_scan/" + isa + "/d_state:128").c_str(), scan, k, false,
                                 size_t{128});
  }
  return true;
}();

}  // namespace
}  // namespace mamba_edge
