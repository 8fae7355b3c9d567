// Every reference model, through the real converter and engine, against numbers that other
// implementations computed (tests/data/golden/README.md says which). Runs over the folders in the
// tree and, where it exists, the larger set beside it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "convert/error.h"
#include "convert/pipeline.h"
#include "platforms/kernels.h"
#include "platforms/select.h"
#include "tests/build_kind.h"
#include "tests/golden/temporary_folder.h"
#include "tools/common.h"

namespace mamba_edge {
namespace {

namespace fs = std::filesystem;
using tools::EngineOptions;
using tools::Model;
using tools::Session;

struct Floats {
  std::vector<uint64_t> shape;
  std::vector<float> values;
};

Floats read_floats(const fs::path& path) {
  const tools::NpyArray array = tools::read_npy(path.string());
  EXPECT_EQ(array.dtype, "<f4") << path;
  Floats result{array.shape, std::vector<float>(array.data.size() / 4)};
  std::memcpy(result.values.data(), array.data.data(), array.data.size());
  return result;
}

std::vector<int32_t> read_ids(const fs::path& path) {
  const std::vector<int64_t> wide = tools::read_npy_ids(path.string());
  return {wide.begin(), wide.end()};
}

// Folders with a checkpoint and expected numbers; Mamba-3 is not converted yet.
std::vector<fs::path> cases() {
  std::vector<fs::path> found;
  for (const char* root :
       {MAMBA_EDGE_SOURCE_DIR "/tests/data/golden", MAMBA_EDGE_SHARED_DIR "/golden"}) {
    if (!fs::is_directory(root)) continue;
    for (const auto& entry : fs::directory_iterator(root)) {
      const std::string name = entry.path().filename().string();
      const bool later = name.rfind("mamba3-", 0) == 0;
      const bool known = std::any_of(found.begin(), found.end(), [&](const fs::path& p) {
        return p.filename() == entry.path().filename();
      });
      if (fs::is_directory(entry.path() / "expect") && !later && !known &&
          name != "mamba2-ss-dssm") {
        found.push_back(entry.path());
      }
    }
  }
  std::sort(found.begin(), found.end());
  return found;
}

// A converted model, gone with the object.
struct Converted {
  explicit Converted(const fs::path& folder, WeightType type, bool gated_norm_whole = false,
                     bool store = false, std::optional<uint32_t> group_size = {}) {
    convert::Options o;
    o.input = folder;
    o.output = temporary.path / "model.mamba";
    o.type = type;
    o.gated_norm_whole = gated_norm_whole;
    o.store = store;
    o.group_size = group_size;
    o.threads = 2;
    report = convert::convert_checkpoint(o);
    engine.model = o.output.string();
    engine.threads = 1;
    model.emplace(engine);
  }
  TemporaryFolder temporary;
  convert::Report report;
  EngineOptions engine;
  std::optional<Model> model;
};

// float [tokens, n_vocab], through prefill in chunks.
std::vector<float> all_logits(const Model& model, EngineOptions options, int chunk,
                              const std::vector<int32_t>& tokens,
                              std::optional<Session>* keep = nullptr) {
  options.chunk = chunk;
  std::optional<Session> session(std::in_place, model, options);
  std::vector<float> logits(tokens.size() * static_cast<size_t>(model.info().n_vocab));
  session->prefill(tokens.data(), tokens.size(), logits.data());
  if (keep != nullptr) keep->swap(session);
  return logits;
}

// Largest error of any row, over the largest magnitude in that row.
double worst_row(const std::vector<float>& got, const Floats& expected) {
  const size_t n = expected.shape.back(), rows = expected.values.size() / n;
  EXPECT_EQ(got.size(), expected.values.size());
  double worst = 0;
  for (size_t r = 0; r < rows; ++r) {
    double error = 0, largest = 0;
    for (size_t i = r * n; i < (r + 1) * n; ++i) {
      largest = std::max(largest, std::fabs(double{expected.values[i]}));
      const double e = std::fabs(double{got[i]} - double{expected.values[i]});
      error = std::max(error, std::isnan(e) ? INFINITY : e);
    }
    worst = std::max(worst, error / largest);
  }
  return worst;
}

size_t arg_max(const float* row, size_t n) {
  return static_cast<size_t>(std::max_element(row, row + n) - row);
}

std::vector<int32_t> greedy(Session& session, size_t n, size_t vocab) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < n; ++i) {
    ids.push_back(static_cast<int32_t>(arg_max(session.logits(), vocab)));
    session.step(ids.back());
  }
  return ids;
}

class Golden : public testing::TestWithParam<fs::path> {};

// 1e-4 of the row's largest magnitude: float32 rounding alone, in another order of summation, moves
// these logits by up to 1.7e-4 absolute at magnitudes of 5 to 16 (source.txt of each case), which
// is 1e-5 to 3e-5 of the row.
TEST_P(Golden, Float32) {
  const Converted c(GetParam(), WeightType::f32);
  const fs::path expect = GetParam() / "expect";
  const std::vector<int32_t> tokens = read_ids(expect / "tokens.npy");
  const Floats logits = read_floats(expect / "logits.npy");
  std::optional<Session> session;
  const std::vector<float> got = all_logits(*c.model, c.engine, 5, tokens, &session);
  EXPECT_LE(worst_row(got, logits), 1e-4);

  // States before the greedy tokens change them.
  const Floats conv = read_floats(expect / "final_conv_state.npy");
  const Floats ssm = read_floats(expect / "final_ssm_state.npy");
  const size_t layers = static_cast<size_t>(c.model->info().n_layer);
  ASSERT_EQ(conv.shape[0], layers);
  std::vector<float> got_conv, got_ssm;
  for (size_t layer = 0; layer < layers; ++layer) {
    size_t n_conv = 0, n_ssm = 0;
    mamba_edge_error error;
    const auto export_state = [&](float* to_conv, float* to_ssm) {
      return mamba_edge_state_export(session->get(), static_cast<int>(layer), to_conv, &n_conv,
                                     to_ssm, &n_ssm, &error);
    };
    ASSERT_EQ(export_state(nullptr, nullptr), MAMBA_EDGE_OK);
    ASSERT_EQ(n_conv, conv.values.size() / layers);
    ASSERT_EQ(n_ssm, ssm.values.size() / layers);
    got_conv.resize(got_conv.size() + n_conv);
    got_ssm.resize(got_ssm.size() + n_ssm);
    ASSERT_EQ(export_state(got_conv.data() + layer * n_conv, got_ssm.data() + layer * n_ssm),
              MAMBA_EDGE_OK);
  }
  const auto per_layer = [&](Floats f) {
    f.shape = {layers, f.values.size() / layers};
    return f;
  };
  EXPECT_LE(worst_row(got_conv, per_layer(conv)), 1e-4);
  EXPECT_LE(worst_row(got_ssm, per_layer(ssm)), 1e-4);

  const std::vector<int32_t> expected = read_ids(expect / "greedy.npy");
  EXPECT_EQ(greedy(*session, expected.size(), static_cast<size_t>(c.model->info().n_vocab)),
            expected);
}

TEST_P(Golden, SameBitsForAnyThreadsAndSplits) {
  const std::vector<int32_t> tokens = read_ids(GetParam() / "expect" / "tokens.npy");
  for (const WeightType type :
       {WeightType::f32, WeightType::f16, WeightType::int8, WeightType::int6, WeightType::int5,
        WeightType::int4, WeightType::int3, WeightType::int2}) {
    Converted c(GetParam(), type);
    c.engine.same_bits = true;
    const std::vector<float> one = all_logits(*c.model, c.engine, 1, tokens);
    for (const int chunk : {3, 64}) {
      for (const int threads : {1, 3}) {
        c.engine.threads = threads;
        const std::vector<float> other = all_logits(*c.model, c.engine, chunk, tokens);
        EXPECT_EQ(std::memcmp(one.data(), other.data(), one.size() * sizeof(float)), 0)
            << type_name(type) << ", chunk " << chunk << ", " << threads << " threads";
      }
    }
  }
}

// float [tokens, n_vocab] of a text that steps in a batch of `n`: text i of the batch begins i steps
// after the first, so texts at different places share steps, and texts leave one by one. All have the
// same tokens; the answer is the last one's, and all others must have the same bits.
std::vector<float> batch_logits(const Model& model, EngineOptions options, size_t n,
                                const std::vector<int32_t>& tokens) {
  const auto vocab = static_cast<size_t>(model.info().n_vocab);
  std::vector<std::vector<float>> logits(n, std::vector<float>(tokens.size() * vocab));
  options.chunk = 1;
  options.batch = static_cast<int64_t>(n);
  std::vector<Session> sessions;
  for (size_t i = 0; i < n; ++i) sessions.emplace_back(model, options);
  for (size_t step = 0; step < tokens.size() + n - 1; ++step) {
    std::vector<Session*> batch;
    std::vector<int32_t> ids;
    for (size_t i = 0; i < n; ++i) {
      if (step < i || step - i >= tokens.size()) continue;
      batch.push_back(&sessions[i]);
      ids.push_back(tokens[step - i]);
    }
    sessions[n / 2].step_batch(batch, ids);
    for (size_t i = 0; i < n; ++i) {
      if (step < i || step - i >= tokens.size()) continue;
      std::copy_n(sessions[i].logits(), vocab, logits[i].data() + (step - i) * vocab);
    }
  }
  for (size_t i = 0; i + 1 < n; ++i) EXPECT_EQ(logits[i], logits[n - 1]) << i;
  return logits[n - 1];
}

// Keeps the first n tokens and their logits.
void shorten(size_t n, std::vector<int32_t>* tokens, Floats* expected) {
  if (n >= tokens->size()) return;
  tokens->resize(n);
  expected->shape[0] = n;
  expected->values.resize(n * expected->shape.back());
}

// The same with the state rounded after every token, which depends on the token's place in the text.
TEST_P(Golden, SameBitsWithRoundedStates) {
  const std::vector<int32_t> tokens = read_ids(GetParam() / "expect" / "tokens.npy");
  Converted c(GetParam(), WeightType::f32);
  const std::vector<float> exact = all_logits(*c.model, c.engine, 1, tokens);
  for (const char* state : {"fp16", "int8"}) {
    c.engine.state = state;
    c.engine.threads = 1;
    const std::vector<float> one = all_logits(*c.model, c.engine, 1, tokens);
    EXPECT_NE(one, exact) << state;
    for (const int chunk : {3, 64}) {
      for (const int threads : {1, 3}) {
        c.engine.threads = threads;
        const std::vector<float> other = all_logits(*c.model, c.engine, chunk, tokens);
        EXPECT_EQ(std::memcmp(one.data(), other.data(), one.size() * sizeof(float)), 0)
            << state << ", chunk " << chunk << ", " << threads << " threads";
      }
    }
    c.engine.threads = 1;
    EXPECT_EQ(batch_logits(*c.model, c.engine, 3, tokens), one) << state;
  }
}

// Chunks of a prompt and batches of texts on every table of this CPU: float32 equals the reference,
// int8 has the same bits as token by token. Slow builds stop soon after the longest chunk but one, and
// take the best table and the generic one.
TEST_P(Golden, ChunksAndBatchesOnEveryTable) {
  std::vector<int32_t> tokens = read_ids(GetParam() / "expect" / "tokens.npy");
  Floats expected = read_floats(GetParam() / "expect" / "logits.npy");
  if (test::kSlow) shorten(80, &tokens, &expected);
  const Converted f32(GetParam(), WeightType::f32), int8(GetParam(), WeightType::int8);
  size_t n_tables = 0;
  const KernelTable* const* tables = available_tables(&n_tables);
  for (size_t i = 0; i < n_tables; ++i) {
    if (test::kSlow && i != 0 && i + 1 != n_tables) continue;
    EngineOptions engine = f32.engine, engine8 = int8.engine;
    engine.isa = engine8.isa = tables[i]->isa;
    engine8.same_bits = true;
    const Model model(engine), model8(engine8);
    const std::vector<float> one = all_logits(model8, engine8, 1, tokens);
    const auto same_bits = [&](const std::vector<float>& other) {
      return std::memcmp(one.data(), other.data(), one.size() * sizeof(float)) == 0;
    };
    for (const int chunk : {1, 7, 64, 512}) {
      EXPECT_LE(worst_row(all_logits(model, engine, chunk, tokens), expected), 1e-4)
          << engine.isa << ", chunk " << chunk;
      EXPECT_TRUE(same_bits(all_logits(model8, engine8, chunk, tokens)))
          << engine.isa << ", chunk " << chunk;
    }
    for (const size_t batch : {size_t{1}, size_t{3}, size_t{8}}) {
      EXPECT_LE(worst_row(batch_logits(model, engine, batch, tokens), expected), 1e-4)
          << engine.isa << ", batch " << batch;
      EXPECT_TRUE(same_bits(batch_logits(model8, engine8, batch, tokens)))
          << engine.isa << ", batch " << batch;
    }
  }
}

// 5e-3 of the row's largest magnitude. Checkpoints in binary16 and bfloat16 convert exactly. Others
// become int16 in groups: an error of at most 2^-16 of a group's largest weight, about 2^-15.5 of
// its root mean square. With the gains up to 100 from a weight's relative error to a logit's that
// these models have (measured by rounding weights), that is 2e-3 and less.
TEST_P(Golden, Float16) {
  const Converted c(GetParam(), WeightType::f16);
  const std::vector<int32_t> tokens = read_ids(GetParam() / "expect" / "tokens.npy");
  EXPECT_LE(worst_row(all_logits(*c.model, c.engine, 16, tokens),
                      read_floats(GetParam() / "expect" / "logits.npy")),
            5e-3);
}

struct Divergence {
  double kl = 0;    // mean over rows of KL(expected || got)
  size_t same = 0;  // rows whose largest logit is the same
};

Divergence divergence(const Floats& expected, const std::vector<float>& got) {
  const size_t n = expected.shape.back(), rows = expected.values.size() / n;
  Divergence d;
  for (size_t r = 0; r < rows; ++r) {
    const float* p = expected.values.data() + r * n;
    const float* q = got.data() + r * n;
    const size_t best_p = arg_max(p, n), best_q = arg_max(q, n);
    double sum_p = 0, sum_q = 0;
    for (size_t i = 0; i < n; ++i) {
      sum_p += std::exp(double{p[i]} - double{p[best_p]});
      sum_q += std::exp(double{q[i]} - double{q[best_q]});
    }
    for (size_t i = 0; i < n; ++i) {
      const double log_p = double{p[i]} - double{p[best_p]} - std::log(sum_p);
      const double log_q = double{q[i]} - double{q[best_q]} - std::log(sum_q);
      d.kl += std::exp(log_p) * (log_p - log_q) / static_cast<double>(rows);
    }
    d.same += best_p == best_q;
  }
  return d;
}

// The bound on int8 and below. To second order KL(p || q) = Var_p(d) / 2 for logits that move by d, and d is
// linear in small relative errors of the products' operands, so KL = G e^2 with a G that belongs to
// the model. We measure G with weights rounded to int16, whose error w16 the converter reports: the
// largest KL / w16^2 of four group sizes, so of four independent roundings. In int8 both operands
// are rounded: weights with the reported w8, and activations, uniformly by a step of max / 127: a =
// c / (127 sqrt(12)) for a group whose largest value is c times its root mean square; c <= 4 for
// groups of up to 128 near-Gaussian values. So KL <= 4 G (w8^2 + a^2), where 4 allows an unlucky
// rounding to move the logits by twice what the worst of four did. Logits cannot move linearly for
// ever: no bound above 1 is needed.
double weight_error(const convert::Report& report) {
  EncodeError sum;
  for (const convert::TensorReport& t : report.tensors) {
    if (t.type != "fp32") sum.add(t.error);
  }
  return sum.relative_rms();
}

double measured_gain(const fs::path& folder, const std::vector<int32_t>& tokens,
                     const Floats& expected) {
  double gain = 0;
  for (const uint32_t group : {16u, 32u, 48u, 64u}) {
    const Converted c(folder, WeightType::int16, false, false, group);
    const double e = weight_error(c.report);
    gain = std::max(gain,
                    divergence(expected, all_logits(*c.model, c.engine, 16, tokens)).kl / (e * e));
  }
  return gain;
}

double divergence_bound(double gain, const convert::Report& report) {
  const double w = weight_error(report), a = 4 / (127 * std::sqrt(12.0));
  return std::min(1.0, 4 * gain * (w * w + a * a));
}

TEST_P(Golden, Int8) {
  const std::vector<int32_t> tokens = read_ids(GetParam() / "expect" / "tokens.npy");
  const Floats expected = read_floats(GetParam() / "expect" / "logits.npy");
  const Converted c(GetParam(), WeightType::int8);
  const Divergence d = divergence(expected, all_logits(*c.model, c.engine, 16, tokens));
  const double bound = divergence_bound(measured_gain(GetParam(), tokens, expected), c.report);
  std::printf("  %-26s int8: KL %.2e (bound %.2e), top-1 agreement %zu of %zu\n",
              GetParam().filename().c_str(), d.kl, bound, d.same, tokens.size());
  EXPECT_LE(d.kl, bound);
  // By Pinsker's inequality the total variation is at most sqrt(KL / 2) on average, and a winner
  // can only change where the best two are closer than twice that; half of the rows is far above
  // what remains.
  EXPECT_GE(2 * d.same, tokens.size());
}

TEST_P(Golden, TextToText) {
  std::ifstream file(GetParam() / "text.json");
  if (!file) {
    EXPECT_FALSE(
        fs::exists(GetParam() / "tokenizer.json"));  // a model with a tokenizer has prompts
    return;
  }
  const Converted c(GetParam(), WeightType::f32);
  for (const auto& entry : nlohmann::json::parse(file)) {
    const auto prompt = entry["prompt"].get<std::string>();
    const auto ids = entry["prompt_ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(c.model->tokenize(prompt, 0), ids);
    Session session(*c.model, c.engine);
    session.prefill(ids.data(), ids.size(), nullptr);
    const auto expected = entry["greedy_ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(greedy(session, expected.size(), static_cast<size_t>(c.model->info().n_vocab)),
              expected);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, Golden, testing::ValuesIn(cases()), [](const auto& test) {
  std::string name = test.param.filename().string();
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

// The trained models in every type, on every table of this CPU: the same bits for one thread and two,
// and no farther from the float32 logits than the type's weight errors allow (as for int8 above).
TEST(TrainedModels, EveryTypeOnEveryTable) {
  for (const char* name : {"mamba1-tiny", "mamba2-tiny"}) {
    const fs::path folder = fs::path(MAMBA_EDGE_SOURCE_DIR) / "models" / name;
    std::vector<int32_t> tokens = read_ids(folder.string() + "-prompt-ids.npy");
    Floats expected = read_floats(folder.string() + "-prompt-logits.npy");
    ASSERT_EQ(expected.shape.at(0), tokens.size());
    shorten(test::kSlow ? 24 : 40, &tokens, &expected);
    const double gain = measured_gain(folder, tokens, expected);
    for (const WeightType type : kQuantisedTypes) {
      const Converted c(folder, type);
      const double bound = divergence_bound(gain, c.report);
      double last = 0;
      size_t n = 0;
      const KernelTable* const* tables = available_tables(&n);
      for (size_t i = 0; i < n; ++i) {
        if (test::kSlow && i != 0 && i + 1 != n) continue;
        EngineOptions engine = c.engine;
        engine.isa = tables[i]->isa;
        const Model model(engine);
        const std::vector<float> one = all_logits(model, engine, 1, tokens);
        engine.threads = 2;
        EXPECT_EQ(std::memcmp(one.data(), all_logits(model, engine, 20, tokens).data(),
                              one.size() * sizeof(float)),
                  0)
            << name << " " << type_name(type) << " " << engine.isa;
        last = divergence(expected, one).kl;
        EXPECT_LE(last, bound) << name << " " << type_name(type) << " " << engine.isa;
      }
      std::printf("  %s %s: KL %.2e (bound %.2e)\n", name, type_name(type), last, bound);
    }
  }
}

// Blocks of 64 tokens of a quantised Mamba-2 model may be read in the dual form, which rounds what it
// multiplies to bfloat16: to 2^-9 of itself on average at most, where quantised weights and activations are
// rounded to 1/254 of their group's largest. So the logits may move by less than quantisation moved
// them. Where a table has no dual form, or a session wants the same bits, they may not move at all.
TEST(TrainedModels, DualFormMovesLogitsLessThanQuantisation) {
  const fs::path folder = fs::path(MAMBA_EDGE_SOURCE_DIR) / "models" / "mamba2-tiny";
  const std::vector<int32_t> prompt = read_ids(folder.string() + "-prompt-ids.npy");
  std::vector<int32_t> tokens;
  while (tokens.size() < 4 * kDualTokens) tokens.insert(tokens.end(), prompt.begin(), prompt.end());
  tokens.resize(3 * kDualTokens + 8);
  const Converted f32(folder, WeightType::f32), c(folder, WeightType::int8);
  Floats expected;
  expected.shape = {tokens.size(), static_cast<size_t>(c.model->info().n_vocab)};
  expected.values = all_logits(*f32.model, f32.engine, 1, tokens);
  size_t n = 0;
  const KernelTable* const* tables = available_tables(&n);
  for (size_t i = 0; i < n; ++i) {
    if (test::kSlow && i != 0) continue;
    EngineOptions engine = c.engine;
    engine.isa = tables[i]->isa;
    const Model model(engine);
    Floats steps = expected;
    steps.values = all_logits(model, engine, 1, tokens);
    const double quantised = divergence(expected, steps.values).kl;
    const std::vector<float> one = all_logits(model, engine, 128, tokens);
    engine.threads = 3;
    EXPECT_EQ(all_logits(model, engine, 128, tokens), one) << engine.isa;
    engine.same_bits = true;
    EXPECT_EQ(all_logits(model, engine, 128, tokens), steps.values) << engine.isa;
    engine.same_bits = false;
    for (const int chunk : {64, 100, 128, 256}) {
      const std::vector<float> got = all_logits(model, engine, chunk, tokens);
      const double moved = divergence(steps, got).kl, away = divergence(expected, got).kl;
      std::printf(
          "  %s, chunk %d: KL %.2e from the steps, which are %.2e from float32; itself %.2e\n",
          engine.isa.c_str(), chunk, moved, quantised, away);
      if (tables[i]->mamba2_dual == nullptr) {
        EXPECT_EQ(got, steps.values) << engine.isa << ", chunk " << chunk;
      } else {
        EXPECT_GT(moved, 0) << engine.isa << ", chunk " << chunk;
        EXPECT_LT(moved, quantised) << engine.isa << ", chunk " << chunk;
      }
    }
  }
}

// transformers normalises over all channels; a checkpoint trained so is converted with --gated-norm
// whole.
TEST(GatedNorm, WholeRowEqualsTransformers) {
  const fs::path folder = MAMBA_EDGE_SOURCE_DIR "/tests/data/golden/mamba2-hf-groups";
  const Converted c(folder, WeightType::f32, /*gated_norm_whole=*/true);
  const std::vector<int32_t> tokens = read_ids(folder / "expect" / "tokens.npy");
  EXPECT_LE(worst_row(all_logits(*c.model, c.engine, 16, tokens),
                      read_floats(folder / "expect/logits_transformers.npy")),
            1e-4);
}

// A stored container is mapped and gives the same bits as a compressed one.
TEST(Store, SameBitsAsCompressed) {
  const fs::path folder = MAMBA_EDGE_SOURCE_DIR "/tests/data/golden/mamba2-hf-groups";
  const std::vector<int32_t> tokens = read_ids(folder / "expect" / "tokens.npy");
  const Converted compressed(folder, WeightType::int8),
      stored(folder, WeightType::int8, false, true);
  EXPECT_GT(stored.model->info().mapped_bytes, 0u);
  EXPECT_EQ(compressed.model->info().mapped_bytes, 0u);
  EXPECT_EQ(compressed.model->info().fingerprint, stored.model->info().fingerprint);
  EXPECT_EQ(all_logits(*compressed.model, compressed.engine, 8, tokens),
            all_logits(*stored.model, stored.engine, 8, tokens));
}

TEST(Refused, UnsupportedModelsByName) {
  const struct {
    const char* folder;
    const char* word;
  } refused[] = {
      {"mamba3-ss-siso", "Mamba3"}, {"mamba3-ss-mimo", "Mamba3"}, {"mamba2-ss-dssm", "d_ssm"}};
  for (const auto& r : refused) {
    fs::path folder = fs::path(MAMBA_EDGE_SHARED_DIR) / "golden" / r.folder;
    if (!fs::exists(folder))
      folder = fs::path(MAMBA_EDGE_SOURCE_DIR) / "tests/data/refused" / r.folder;
    const TemporaryFolder temporary;
    convert::Options o;
    o.input = folder;
    o.output = temporary.path / "out.mamba";
    try {
      convert::convert_checkpoint(o);
      FAIL() << r.folder << " was converted";
    } catch (const convert::Error& error) {
      EXPECT_NE(std::string(error.what()).find(r.word), std::string::npos) << error.what();
    }
    EXPECT_TRUE(fs::is_empty(temporary.path));
  }
}

}  // namespace
}  // namespace mamba_edge
