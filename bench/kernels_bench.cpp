// Every kernel of platforms/kernels.inc, by table, on one core. Bytes per second count the weights
// (or the state) that a call must read.
//
//   kernels_bench --benchmark_filter=matmul_i8_i8/avx2/mamba-370m
//
// `tokens` 1 is decode, more are prefill. What a decode step reads from memory is read from memory
// here: calls go through as many copies of a matrix (or of a layer's state) as fill kMemoryBytes, far
// more than the caches hold, one copy a call. `of_read` is the speed as a share of read_words' over
// the same copies, measured around it: what the memory gives this table's loads.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "engine/session.h"
#include "engine/tensors.h"
#include "platforms/os/memory.h"
#include "platforms/select.h"
#include "quant/encode.h"
#include "tools/common_synthetic.h"

namespace mamba_edge {
namespace {

constexpr size_t kMemoryBytes = size_t{256} << 20;
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
  size_t size() const { return n_; }

 private:
  size_t n_;
  T* data_;
};

// The memory that matrices are read from, one for all benchmarks: weights of 0x2c, scales and binary16
// numbers of 0x2c2c, all of them small and normal. Grows, and stays.
const uint8_t* weight_memory(size_t bytes) {
  static std::unique_ptr<Buffer<uint8_t>> memory;
  if (memory == nullptr || memory->size() < bytes) {
    memory.reset();
    memory = std::make_unique<Buffer<uint8_t>>(bytes, uint8_t{0x2c});
  }
  return memory->data();
}

// Copies of something of `bytes` that together are more than the caches hold.
size_t copies_in_memory(size_t bytes) {
  return std::max<size_t>(1, (kMemoryBytes + bytes - 1) / bytes);
}

// Seconds that this thread has computed.
double thread_seconds() {
  timespec time = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double seconds_to_read(const KernelTable* k, const uint8_t* data, size_t bytes) {
  const double start = thread_seconds();
  benchmark::DoNotOptimize(k->read_words(data, bytes));
  return thread_seconds() - start;
}

void set_bytes(benchmark::State& state, size_t bytes_per_call) {
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) *
                          static_cast<int64_t>(bytes_per_call));
}

// `copies`: how many of the matrix lie in memory, one after the other.
void matmul(benchmark::State& state, const KernelTable* k, const MatrixShape& shape, size_t tokens,
            size_t copies) {
  const size_t blocks = shape.row_blocks(), cols = shape.cols;
  const size_t out_stride = blocks * kTileRows, total = copies * shape.bytes();
  const uint8_t* memory = weight_memory(total);
  Matrix w;
  w.shape = shape;
  w.row_block_bytes = shape.row_block_bytes();
  Buffer<float> x(tokens * cols, 0.25f), scale(tokens * cols, 0.01f), out(tokens * out_stride);
  Buffer<int8_t> q(tokens * cols, 3);
  Buffer<int32_t> sum(tokens * cols, 64 * 3);
  QuantisedRows rows;
  rows.q = q.data();
  rows.scale = scale.data();
  rows.sum = sum.data();
  rows.stride = cols;
  rows.group_stride = shape.groups();
  const double before = seconds_to_read(k, memory, total);
  size_t copy = 0;
  const double start = thread_seconds();
  for (auto _ : state) {
    w.data = memory + copy * shape.bytes();
    copy = copy + 1 == copies ? 0 : copy + 1;
    switch (shape.type) {
      case WeightType::f32:
        k->matmul_f32_f32(w, 0, blocks, x.data(), cols, tokens, out.data(), out_stride);
        break;
      case WeightType::f16:
        k->matmul_f16_f32(w, 0, blocks, x.data(), cols, tokens, out.data(), out_stride);
        break;
      case WeightType::int16:
        k->matmul_i16_f32(w, 0, blocks, x.data(), cols, tokens, out.data(), out_stride);
        break;
      default:
        quantised_matmul(*k, shape.type)(w, 0, blocks, rows, tokens, out.data(), out_stride);
        break;
    }
    benchmark::ClobberMemory();
  }
  const double took = thread_seconds() - start;
  const double after = seconds_to_read(k, memory, total);
  set_bytes(state, shape.bytes());
  if (total >= kMemoryBytes / 2) {  // of the cache there is nothing to say
    const double calls = static_cast<double>(state.iterations());
    const double read = calls * static_cast<double>(shape.bytes());
    state.counters["of_read"] = read * (before + after) / 2 / static_cast<double>(total) / took;
  }
  const double products = static_cast<double>(out_stride) * static_cast<double>(cols * tokens);
  state.counters["mac/s"] =
      benchmark::Counter(products, benchmark::Counter::kIsIterationInvariantRate);
}

// What one core can read with this table's loads, of the memory that matmul reads.
void read_words(benchmark::State& state, const KernelTable* k) {
  const uint8_t* memory = weight_memory(kMemoryBytes);
  for (auto _ : state) benchmark::DoNotOptimize(k->read_words(memory, kMemoryBytes));
  set_bytes(state, kMemoryBytes);
}

void quantise(benchmark::State& state, const KernelTable* k) {
  constexpr size_t kN = 4096;
  Buffer<float> x(kN, 0.25f), scale(kN / 64);
  Buffer<int8_t> q(kN);
  Buffer<int32_t> sum(kN / 64);
  for (auto _ : state) {
    k->quantise_i8(x.data(), kN, 64, 64, q.data(), scale.data(), sum.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations()) * static_cast<int64_t>(kN));
}

// Rows of 1536 channels: the others that work on a row.
void row(benchmark::State& state, const KernelTable* k, const std::string& name) {
  constexpr size_t kN = 1536;
  Buffer<float> x(kN, 0.25f), z(kN, 0.5f), weight(kN, 1.0f), bias(kN, 0.1f), a(kN, -1.0f), out(kN);
  const auto measure = [&](const auto& kernel) {
    for (auto _ : state) {
      kernel();
      benchmark::ClobberMemory();
    }
  };
  if (name == "rms_norm") {
    measure([&] { k->rms_norm(x.data(), weight.data(), kN, 1e-5f, out.data()); });
  } else if (name == "layer_norm") {
    measure([&] { k->layer_norm(x.data(), weight.data(), bias.data(), kN, 1e-5f, out.data()); });
  } else if (name == "add_rows") {
    measure([&] { k->add_rows(out.data(), x.data(), bias.data(), kN); });
  } else if (name == "scale") {
    measure([&] { k->scale(x.data(), 1.0f, kN); });  // by one, or the numbers would fade away
  } else if (name == "dt_decay") {
    // The input is the output: it goes to where softplus(dt + bias) = dt.
    measure([&] { k->dt_decay(out.data(), bias.data(), a.data(), 0.0f, 10.0f, kN, x.data()); });
  } else if (name == "gate_norm") {
    measure([&] {
      benchmark::DoNotOptimize(
          k->gate_norm(x.data(), z.data(), weight.data(), true, kN, out.data()));
    });
  } else if (name == "arg_max") {
    measure([&] { benchmark::DoNotOptimize(k->arg_max(x.data(), kN)); });
  } else if (name == "find_above") {
    measure([&] { benchmark::DoNotOptimize(k->find_above(x.data(), 0, kN, 1.0f)); });
  } else if (name == "copy_finite") {
    measure([&] { k->copy_finite(x.data(), kN, out.data()); });
  } else {
    state.SkipWithError("no such kernel");
  }
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations()) * static_cast<int64_t>(kN));
}

// Items are multiplications of int8 numbers.
void peak(benchmark::State& state, const KernelTable* k) {
  constexpr size_t kRounds = 1000;
  uint64_t products = 0;
  for (auto _ : state) products += k->peak_i8(kRounds);
  state.SetItemsProcessed(static_cast<int64_t>(products));
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

// One layer's scan of one token. Layers are copies: of the state and, for Mamba-1, of A.
void scan(benchmark::State& state, const KernelTable* k, const ModelConfig& config, StateType type,
          bool cached) {
  const Layout layout(config);
  const size_t n = layout.inner, d_state = layout.d_state, elements = n * d_state;
  const bool half = type == StateType::f16, bytes = type == StateType::int8;
  const size_t state_bytes = bytes  ? n / kTileRows * int8_state_bytes(d_state)
                             : half ? elements * 2
                                    : elements * 4;
  const size_t a_bytes = config.is_mamba2() ? 0 : elements * sizeof(float);
  const size_t copies = cached ? 1 : copies_in_memory(state_bytes + a_bytes);
  // State and A are set to what a scan with these inputs leaves them at, near enough.
  Buffer<float> h(half || bytes ? 1 : copies * elements, 0.1f);
  Buffer<uint16_t> half_h(half ? copies * elements : 1, uint16_t{0x2e66});  // 0.1
  Buffer<uint8_t> int8_h(bytes ? copies * state_bytes : 1, uint8_t{0});
  Buffer<float> a(a_bytes != 0 ? copies * elements : 1, -1.0f);
  Buffer<float> d(n, 1.0f), bias(n, -1.0f), dt(n, 0.1f), decay(n, 0.9f), b(d_state, 0.1f),
      c(d_state, 0.1f), x(n, 0.2f), z(n, 0.3f), y(n);
  Mamba1ScanArgs one;
  one.d = d.data();
  one.dt_bias = bias.data();
  one.dt = dt.data();
  one.b = b.data();
  one.c = c.data();
  one.x = x.data();
  one.z = z.data();
  one.y = y.data();
  one.d_state = d_state;
  one.blocks = n / kTileRows;
  one.tokens = 1;
  Mamba2ScanArgs two;
  two.d = d.data();
  two.dt = dt.data();
  two.decay = decay.data();
  two.b = b.data();
  two.c = c.data();
  two.x = x.data();
  two.y = y.data();
  two.d_state = d_state;
  two.blocks = n / kTileRows;
  two.tokens = 1;
  size_t copy = 0;
  for (auto _ : state) {
    float* full_state = half || bytes ? nullptr : h.data() + copy * elements;
    uint16_t* half_state = half ? half_h.data() + copy * elements : nullptr;
    uint8_t* int8_state = bytes ? int8_h.data() + copy * state_bytes : nullptr;
    if (config.is_mamba2()) {
      two.state = full_state;
      two.half_state = half_state;
      two.int8_state = int8_state;
      k->mamba2_scan(two);
    } else {
      one.state = full_state;
      one.half_state = half_state;
      one.int8_state = int8_state;
      one.a = a.data() + copy * elements;
      k->mamba1_scan(one);
    }
    copy = copy + 1 == copies ? 0 : copy + 1;
    benchmark::ClobberMemory();
  }
  set_bytes(state, 2 * state_bytes + a_bytes);  // the state is written, too
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations()) *
                          static_cast<int64_t>(elements));
}

// kDualTokens tokens of one layer in the dual form: what the heads of all groups share, or the scan of all heads.
// Rows are as far apart as in_proj's output has them.
void dual(benchmark::State& state, const KernelTable* k, const ModelConfig& config, bool prepare) {
  const Layout l(config);
  const size_t groups = config.mamba2.n_groups, heads = config.mamba2.n_heads;
  const size_t headdim = config.mamba2.headdim,
               stride = round_up<size_t>(l.in_proj_rows, kTileRows);
  const size_t group_floats = dual_group_floats(l.d_state);
  Buffer<float> proj(kDualTokens * stride, 0.1f), y(kDualTokens * l.inner), d(l.inner, 1.0f);
  Buffer<float> h(l.inner * l.d_state, 0.1f), group(groups * group_floats);
  Mamba2DualPrepareArgs shared;
  shared.bc_stride = stride;
  shared.d_state = l.d_state;
  const auto prepare_all = [&] {
    for (size_t g = 0; g < groups; ++g) {
      shared.b = proj.data() + l.in_b + g * l.d_state;
      shared.c = proj.data() + l.in_c + g * l.d_state;
      shared.group = group.data() + g * group_floats;
      k->mamba2_dual_prepare(shared);
    }
  };
  Mamba2DualArgs args;
  args.a = -1;
  args.dt_stride = args.x_stride = stride;
  args.y_stride = l.inner;
  args.d_state = l.d_state;
  args.blocks = headdim / kTileRows;
  prepare_all();
  for (auto _ : state) {
    if (prepare) {
      prepare_all();
    } else {
      for (size_t head = 0; head < heads; ++head) {
        const size_t c = head * headdim;
        args.state = h.data() + c * l.d_state;
        args.group = group.data() + head / (heads / groups) * group_floats;
        args.d = d.data() + c;
        args.dt = proj.data() + l.in_dt + head;
        args.x = proj.data() + l.in_x + c;
        args.y = y.data() + c;
        k->mamba2_dual(args);
      }
    }
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations()) *
                          static_cast<int64_t>(kDualTokens * (prepare ? groups : heads)));
}

// ---- what is measured

struct Layer {
  std::string name;  // "in_proj"; "head" for the last one
  uint32_t rows, cols;
};

// The matrices of a model, one of each kind, from the list that the converter and the loader use.
std::vector<Layer> matrices(const ModelConfig& config) {
  std::vector<Layer> found;
  for (uint32_t i = 0; i < tensor_count(config); ++i) {
    const TensorSpec spec = tensor_spec(config, i);
    if (!spec.quantisable || spec.layer > 0) continue;
    char name[40];
    tensor_name(spec.role, spec.layer, name);
    std::string kind = name;
    kind = kind.substr(kind.rfind('.') + 1);
    if (spec.role == TensorRole::embedding) {
      if (config.tied == 0) continue;  // rows of it are looked up
      kind = "head";
    }
    found.push_back({kind, spec.rows, spec.cols});
  }
  return found;
}

std::string matmul_name(WeightType type) {
  const bool is_float = type == WeightType::f32 || type == WeightType::f16;
  return std::string(is_float ? "matmul_f" : "matmul_i") + std::to_string(properties(type).bits) +
         (is_quantised(type) ? "_i8" : "_f32");
}

class Registry {
 public:
  // kernel/isa[/rest]
  template <typename... Args>
  benchmark::internal::Benchmark* add(const std::string& kernel, const KernelTable* k,
                                      const std::string& rest, Args&&... args) {
    kernels_.insert(kernel);
    const std::string name = kernel + "/" + k->isa + (rest.empty() ? "" : "/" + rest);
    return benchmark::RegisterBenchmark(name.c_str(), std::forward<Args>(args)...);
  }

  // A kernel that not every table has.
  void may_be_missing(const std::string& kernel) { kernels_.insert(kernel); }

  // A kernel without a benchmark is a mistake of whoever added it.
  void require_all() const {
    for (const char* kernel : {
#define ME_KERNEL(Type, name) #name,
#include "platforms/kernels.inc"
#undef ME_KERNEL
         }) {
      if (kernels_.count(kernel) != 0) continue;
      std::fprintf(stderr, "kernels_bench: no benchmark of %s\n", kernel);
      std::abort();
    }
  }

 private:
  std::set<std::string> kernels_;
};

void register_wide_matrix(Registry& registry, const KernelTable* k, WeightType type) {
  constexpr uint32_t kCols = 2560;
  const size_t block_bytes = matrix_shape(type, kTileRows, kCols, 64).row_block_bytes();
  const auto shape_of = [&](size_t bytes) {
    const size_t rows = bytes / block_bytes * kTileRows;
    return matrix_shape(type, static_cast<uint32_t>(rows), kCols, 64);
  };
  for (const size_t tokens : {size_t{1}, size_t{4}, size_t{8}, size_t{32}}) {
    registry
        .add(matmul_name(type), k, "tokens:" + std::to_string(tokens), matmul, k,
             shape_of(kMemoryBytes), tokens, size_t{1})
        ->Unit(benchmark::kMillisecond);
  }
  registry
      .add(matmul_name(type), k, "cached", matmul, k, shape_of(kCachedBytes), size_t{1}, size_t{1})
      ->Unit(benchmark::kMicrosecond);
}

void register_layers(Registry& registry, const KernelTable* k, const std::string& model) {
  const ModelConfig config = tools::synthetic_config(model);
  for (const Layer& layer : matrices(config)) {
    // Of Mamba-2 the head is that of Mamba-1.
    if (config.is_mamba2() && layer.name == "head") continue;
    for (const WeightType type : {WeightType::int8, WeightType::int4, WeightType::f16}) {
      const MatrixShape shape = matrix_shape(type, layer.rows, layer.cols, 64);
      registry
          .add(matmul_name(type), k, model + "." + layer.name + "/tokens:1", matmul, k, shape,
               size_t{1}, copies_in_memory(shape.bytes()))
          ->Unit(benchmark::kMicrosecond);
    }
  }
}

const bool registered = [] {
  Registry registry;
  registry.may_be_missing("mamba2_dual_prepare");
  registry.may_be_missing("mamba2_dual");
  size_t n = 0;
  const KernelTable* const* tables = available_tables(&n);
  for (size_t i = 0; i < n; ++i) {
    const KernelTable* k = tables[i];
    registry.add("read_words", k, "", read_words, k)->Unit(benchmark::kMillisecond);
    for (const WeightType type :
         {WeightType::f32, WeightType::f16, WeightType::int16, WeightType::int8, WeightType::int6,
          WeightType::int5, WeightType::int4, WeightType::int3, WeightType::int2}) {
      register_wide_matrix(registry, k, type);
    }
    for (const char* model :
         {"mamba-130m", "mamba-370m", "mamba-1.4b", "mamba2-370m", "mamba2-1.3b"}) {
      register_layers(registry, k, model);
    }
    registry.add("quantise_i8", k, "", quantise, k);
    for (const std::string name : {"rms_norm", "layer_norm", "add_rows", "scale", "dt_decay",
                                   "gate_norm", "arg_max", "find_above", "copy_finite"}) {
      registry.add(name, k, "", row, k, name);
    }
    registry.add("conv_silu", k, "", conv, k);
    registry.add("peak_i8", k, "", peak, k);
    if (k->mamba2_dual != nullptr) {
      for (const std::string model : {"mamba2-370m", "mamba-codestral-7b"}) {
        const ModelConfig config = tools::synthetic_config(model);
        registry.add("mamba2_dual_prepare", k, model, dual, k, config, true)
            ->Unit(benchmark::kMicrosecond);
        registry.add("mamba2_dual", k, model, dual, k, config, false)
            ->Unit(benchmark::kMicrosecond);
      }
    }
    for (const std::string model : {"mamba-130m", "mamba-370m", "mamba2-130m", "mamba2-370m"}) {
      const ModelConfig config = tools::synthetic_config(model);
      for (const StateType type : {StateType::f32, StateType::f16, StateType::int8}) {
        const std::string name = type == StateType::f32   ? "fp32"
                                 : type == StateType::f16 ? "fp16"
                                                          : "int8";
        for (const bool cached : {false, true}) {
          registry
              .add(config.is_mamba2() ? "mamba2_scan" : "mamba1_scan", k,
                   model + "/state:" + name + (cached ? "/cached" : ""), scan, k, config, type,
                   cached)
              ->Unit(benchmark::kMicrosecond);
        }
      }
    }
  }
  registry.require_all();
  return true;
}();

}  // namespace
}  // namespace mamba_edge
