// Whole steps of the engine, without a file: one decode step, and a prompt of 64 tokens, of models in
// published sizes with random weights.
//
//   step_bench --benchmark_filter=decode/mamba-130m
//
// Bytes per second count the weights once for every pass through them and the state twice. How near
// that is to what the machine's memory gives is what mamba-bench says.
#include <benchmark/benchmark.h>

#include <memory>
#include <string>
#include <vector>

#include "engine/model.h"
#include "engine/session.h"
#include "platforms/os/memory.h"
#include "tools/common.h"
#include "tools/common_synthetic.h"

namespace mamba_edge {
namespace {

constexpr size_t kPrompt = 64;

struct Case {
  std::string model;
  WeightType type;
  StateType state;
  int threads;
  bool prefill;
};

// The model of the last case: cases of the same one follow each other, and two need not fit.
const Model& model_of(const Case& c) {
  static std::unique_ptr<Model> model;
  static std::string made;
  const std::string wanted = c.model + "/" + type_name(c.type);
  if (made != wanted) {
    model.reset();
    model = std::make_unique<Model>();
    tools::make_synthetic_model(tools::synthetic_config(c.model), c.type, 64, nullptr, model.get());
    made = wanted;
  }
  return *model;
}

void step(benchmark::State& state, const Case& c) {
  const Model& model = model_of(c);
  SessionOptions options;
  options.n_threads = c.threads;
  options.state = c.state;
  const size_t arena_bytes = Session::required_bytes(model, options);
  void* arena = memory_allocate(arena_bytes);
  Session* session = nullptr;
  if (arena == nullptr || !Session::create(model, options, arena, &session).ok()) {
    memory_free(arena, arena_bytes);
    state.SkipWithError("no memory for a session");
    return;
  }
  std::vector<int32_t> ids(kPrompt);
  for (size_t i = 0; i < kPrompt; ++i) {
    ids[i] = static_cast<int32_t>((i * 7919 + 11) % model.config.n_vocab);
  }
  size_t at = 0;
  for (auto _ : state) {
    if (c.prefill) {
      session->reset();
      session->take_tokens(ids.data(), kPrompt, nullptr);
    } else {
      session->take_tokens(&ids[at++ % kPrompt], 1, nullptr);
    }
    benchmark::ClobberMemory();
  }
  const size_t tokens = c.prefill ? kPrompt : 1;
  const uint64_t passes = (tokens + options.chunk - 1) / options.chunk;
  // Head and embedding are the same matrix, so every weight is read.
  const uint64_t bytes = passes * (model.weight_bytes + 2 * session->step_state_bytes());
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * static_cast<int64_t>(bytes));
  state.counters["tokens/s"] = benchmark::Counter(static_cast<double>(tokens),
                                                  benchmark::Counter::kIsIterationInvariantRate);
  session->destroy();
  memory_free(arena, arena_bytes);
}

std::string state_name(StateType state) {
  return state == StateType::f32 ? "fp32" : state == StateType::f16 ? "fp16" : "int8";
}

const bool registered = [] {
  for (const char* model : {"mamba-130m", "mamba2-130m"}) {
    for (const WeightType type : {WeightType::int8, WeightType::int4}) {
      for (const bool prefill : {false, true}) {
        for (const StateType state : {StateType::f32, StateType::f16, StateType::int8}) {
          for (const int threads : {1, 2}) {
            const Case c{model, type, state, threads, prefill};
            const std::string name = std::string(prefill ? "prefill_64/" : "decode/") + model +
                                     "/" + type_name(type) + "/state:" + state_name(state) +
                                     "/threads:" + std::to_string(threads);
            benchmark::RegisterBenchmark(name.c_str(), step, c)
                ->Unit(benchmark::kMillisecond)
                ->UseRealTime();
          }
        }
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace mamba_edge
