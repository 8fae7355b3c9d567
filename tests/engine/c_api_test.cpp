// The C boundary: arguments, arenas, positions, states, and what the header promises about each.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/include/mamba_edge.h"
#include "platforms/kernels.h"
#include "platforms/select.h"
#include "quant/half.h"
#include "tests/engine/model_builder.h"
#include "tests/golden/temporary_folder.h"
#include "tests/platforms/guarded.h"

namespace mamba_edge::test {
namespace {

using ModelPtr = std::unique_ptr<mamba_edge_model, decltype(&mamba_edge_model_close)>;
using SessionPtr = std::unique_ptr<mamba_edge_session, decltype(&mamba_edge_session_destroy)>;
using Options = mamba_edge_session_options;

const Options kDefaults = {};

ModelPtr open_model(const ModelConfig& config, WeightType type, uint32_t seed = 1,
                    const char* isa = nullptr) {
  const TemporaryFolder folder;
  const auto path = folder.path / "model.mamba";
  write_model(path, config, random_tensors(config, type, 32, seed));
  mamba_edge_model_options options = {};
  options.isa = isa;
  mamba_edge_model* model = nullptr;
  mamba_edge_error error;
  EXPECT_EQ(mamba_edge_model_open(path.c_str(), &options, &model, &error), MAMBA_EDGE_OK)
      << error.message;
  return {model, mamba_edge_model_close};
}

SessionPtr make_session(const ModelPtr& model, const Options& options = kDefaults,
                        void* arena = nullptr, size_t bytes = 0) {
  mamba_edge_session* session = nullptr;
  mamba_edge_error error;
  EXPECT_EQ(mamba_edge_session_create(model.get(), &options, arena, bytes, &session, &error),
            MAMBA_EDGE_OK)
      << error.message;
  return {session, mamba_edge_session_destroy};
}

size_t required(const ModelPtr& model, const Options& options) {
  size_t bytes = 0;
  EXPECT_EQ(mamba_edge_session_required_bytes(model.get(), &options, &bytes, nullptr),
            MAMBA_EDGE_OK);
  return bytes;
}

using Floats = std::vector<float>;

Floats logits_of(const SessionPtr& session, const ModelPtr& model) {
  mamba_edge_model_info info;
  mamba_edge_model_get_info(model.get(), &info);
  const float* row = mamba_edge_logits(session.get());
  EXPECT_NE(row, nullptr);
  return row == nullptr ? Floats() : Floats(row, row + info.n_vocab);
}

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && !a.empty() &&
         std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

Bytes state_of(const SessionPtr& session, const ModelPtr& model) {
  Bytes state(mamba_edge_state_bytes(model.get()));
  EXPECT_EQ(mamba_edge_state_save(session.get(), state.data(), state.size(), nullptr),
            MAMBA_EDGE_OK);
  return state;
}

std::vector<int32_t> some_tokens(size_t n, uint32_t seed = 5) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(n);
  for (int32_t& t : tokens) t = static_cast<int32_t>(random() % 37);
  return tokens;
}

void take(const SessionPtr& session, const std::vector<int32_t>& tokens, float* all = nullptr) {
  mamba_edge_error error;
  EXPECT_EQ(mamba_edge_prefill(session.get(), tokens.data(), tokens.size(), all, &error),
            MAMBA_EDGE_OK)
      << error.message;
}

// A thread pool of the caller's that runs every task on a fresh thread, last one first.
struct CallersPool {
  std::atomic<size_t> calls{0}, tasks{0};
  static void run(void* user, size_t n, mamba_edge_task task, void* context) {
    auto& self = *static_cast<CallersPool*>(user);
    ++self.calls;
    self.tasks += n;
    for (size_t i = n; i > 0;) {
      --i;
      std::thread other([=] { task(context, i); });
      if (i > 0) {
        --i;
        task(context, i);
      }
      other.join();
    }
  }
};

// Every architecture with every kind of weights.
class CApi : public testing::TestWithParam<std::tuple<int, WeightType>> {
 protected:
  static ModelConfig config() {
    const int kind = std::get<0>(GetParam());
    return kind == 0 ? small_mamba1() : kind == 1 ? small_falcon() : small_mamba2();
  }
  const ModelPtr model_ = open_model(config(), std::get<1>(GetParam()));
};

std::string kind_and_type(const testing::TestParamInfo<CApi::ParamType>& p) {
  const char* const kinds[] = {"mamba1_", "falcon_", "mamba2_"};
  return std::string(kinds[std::get<0>(p.param)]) + type_name(std::get<1>(p.param));
}

INSTANTIATE_TEST_SUITE_P(
    All, CApi,
    testing::Combine(testing::Range(0, 3),
                     testing::Values(WeightType::f32, WeightType::f16, WeightType::int16,
                                     WeightType::int8, WeightType::int6, WeightType::int5,
                                     WeightType::int4, WeightType::int3, WeightType::int2)),
    kind_and_type);

// The arena ends at a page that may not be touched, and the bytes before it are watched: what was
// announced is what is used.
TEST_P(CApi, ArenaIsExactlyWhatWasAnnounced) {
  const auto tokens = some_tokens(23);
  Floats expected;
  for (const int threads : {1, 2}) {
    for (const int chunk : {1, 3, 32}) {
      Options options = {};
      options.n_threads = threads;
      options.chunk = chunk;
      const size_t bytes = required(model_, options);
      ASSERT_EQ(bytes % 64, 0u);
      const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
      const size_t body = (bytes + 64 + page - 1) / page * page;
      auto* base = static_cast<uint8_t*>(
          mmap(nullptr, body + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      ASSERT_NE(base, MAP_FAILED);
      ASSERT_EQ(mprotect(base + body, page, PROT_NONE), 0);
      std::memset(base, 0xCD, body);
      uint8_t* arena = base + body - bytes;
      Floats all(tokens.size() * 37);
      {
        const SessionPtr session = make_session(model_, options, arena, bytes);
        EXPECT_EQ(reinterpret_cast<uint8_t*>(session.get()), arena);
        take(session, tokens, all.data());
        ASSERT_EQ(mamba_edge_step(session.get(), 36, nullptr), MAMBA_EDGE_OK);
        const Floats last = logits_of(session, model_);
        all.insert(all.end(), last.begin(), last.end());
        const float* row = mamba_edge_logits(session.get());
        EXPECT_GE(reinterpret_cast<const uint8_t*>(row), arena);
        EXPECT_LE(reinterpret_cast<const uint8_t*>(row + 37), arena + bytes);
      }
      for (const uint8_t* p = base; p < arena; ++p) ASSERT_EQ(*p, 0xCD);
      munmap(base, body + page);
      if (expected.empty()) expected = all;
      EXPECT_TRUE(same_bits(all, expected)) << threads << " threads, chunk " << chunk;
    }
  }
  for (const float v : expected) ASSERT_TRUE(std::isfinite(v));
}

// The last block of the arena is used too: one byte less than announced would not do.
TEST_P(CApi, LastBytesOfTheArenaAreUsed) {
  Options options = {};
  options.chunk = 8;
  const size_t bytes = required(model_, options);
  std::unique_ptr<uint8_t, decltype(&std::free)> arena(
      static_cast<uint8_t*>(std::aligned_alloc(64, bytes)), std::free);
  const SessionPtr session = make_session(model_, options, arena.get(), bytes);
  Floats all(8 * 37);
  take(session, some_tokens(8), all.data());
  bool used = false;
  for (size_t i = bytes - 64; i < bytes; ++i) used |= arena.get()[i] != 0;
  EXPECT_TRUE(used);
}

TEST_P(CApi, SavedStatesContinueWithTheSameBits) {
  const auto head = some_tokens(9), tail = some_tokens(14, 6);
  Options options = {};
  options.chunk = 4;
  const SessionPtr a = make_session(model_, options);
  take(a, head);
  const Bytes state = state_of(a, model_);
  const Floats at_save = logits_of(a, model_);
  Floats expected(tail.size() * 37), got(tail.size() * 37);
  take(a, tail, expected.data());
  const Bytes end = state_of(a, model_);

  Options other = {};
  other.n_threads = 2;
  other.chunk = 7;
  const SessionPtr b = make_session(model_, other);
  take(b, some_tokens(3, 99));  // something to forget
  ASSERT_EQ(mamba_edge_state_load(b.get(), state.data(), state.size(), nullptr), MAMBA_EDGE_OK);
  EXPECT_EQ(mamba_edge_session_position(b.get()), head.size());
  EXPECT_TRUE(same_bits(logits_of(b, model_), at_save));
  take(b, tail, got.data());
  EXPECT_TRUE(same_bits(got, expected));
  EXPECT_EQ(state_of(b, model_), end);

  // Rollback in the session itself.
  ASSERT_EQ(mamba_edge_state_load(a.get(), state.data(), state.size(), nullptr), MAMBA_EDGE_OK);
  EXPECT_EQ(state_of(a, model_), state);
  take(a, tail, got.data());
  EXPECT_TRUE(same_bits(got, expected));

  // A fork: both go on, neither disturbs the other.
  ASSERT_EQ(mamba_edge_state_load(a.get(), state.data(), state.size(), nullptr), MAMBA_EDGE_OK);
  ASSERT_EQ(mamba_edge_state_copy(b.get(), a.get(), nullptr), MAMBA_EDGE_OK);
  EXPECT_EQ(state_of(b, model_), state);
  take(a, some_tokens(5, 77));
  take(b, tail, got.data());
  EXPECT_TRUE(same_bits(got, expected));
  EXPECT_EQ(state_of(b, model_), end);
  const Bytes before = state_of(a, model_);
  EXPECT_EQ(mamba_edge_state_copy(a.get(), a.get(), nullptr), MAMBA_EDGE_OK);
  EXPECT_EQ(state_of(a, model_), before);
  // A position that could not go on.
  Bytes late = state;
  std::fill_n(late.begin() + 16, 8, uint8_t{0xff});
  mamba_edge_error error;
  EXPECT_EQ(mamba_edge_state_load(a.get(), late.data(), late.size(), &error),
            MAMBA_EDGE_BAD_FORMAT);
  EXPECT_NE(std::string(error.message).find("18446744073709551615"), std::string::npos);
  EXPECT_EQ(state_of(a, model_), before);
}

TEST_P(CApi, ResetIsAFreshSession) {
  const auto tokens = some_tokens(11);
  const SessionPtr fresh = make_session(model_), used = make_session(model_);
  const Bytes empty = state_of(fresh, model_);
  take(used, some_tokens(30, 2));
  EXPECT_NE(state_of(used, model_), empty);
  EXPECT_EQ(mamba_edge_session_position(used.get()), 30u);
  mamba_edge_session_reset(used.get());
  EXPECT_EQ(mamba_edge_session_position(used.get()), 0u);
  EXPECT_EQ(mamba_edge_logits(used.get()), nullptr);
  EXPECT_EQ(state_of(used, model_), empty);  // to the last byte: nothing of the old text is left
  Floats a(tokens.size() * 37), b(a.size());
  take(fresh, tokens, a.data());
  take(used, tokens, b.data());
  EXPECT_TRUE(same_bits(a, b));
}

TEST_P(CApi, StepsAndPrefillsAgree) {
  const auto tokens = some_tokens(20);
  const SessionPtr all_at_once = make_session(model_), stepped = make_session(model_);
  Floats rows(tokens.size() * 37);
  take(all_at_once, tokens, rows.data());
  for (size_t i = 0; i < tokens.size(); ++i) {
    ASSERT_EQ(mamba_edge_step(stepped.get(), tokens[i], nullptr), MAMBA_EDGE_OK);
    EXPECT_EQ(mamba_edge_session_position(stepped.get()), i + 1);
    EXPECT_TRUE(same_bits(logits_of(stepped, model_),
                          Floats(rows.begin() + static_cast<ptrdiff_t>(i) * 37,
                                 rows.begin() + static_cast<ptrdiff_t>(i + 1) * 37)));
  }
  EXPECT_EQ(state_of(stepped, model_), state_of(all_at_once, model_));
  // No tokens at all change nothing.
  const Bytes before = state_of(stepped, model_);
  EXPECT_EQ(mamba_edge_prefill(stepped.get(), nullptr, 0, nullptr, nullptr), MAMBA_EDGE_OK);
  EXPECT_EQ(state_of(stepped, model_), before);
}

TEST_P(CApi, TokensOutsideTheVocabularyChangeNothing) {
  const SessionPtr session = make_session(model_);
  mamba_edge_error error;
  EXPECT_EQ(mamba_edge_step(session.get(), 37, &error), MAMBA_EDGE_INVALID_ARGUMENT);
  EXPECT_EQ(mamba_edge_logits(session.get()), nullptr);
  take(session, some_tokens(4));
  const Bytes before = state_of(session, model_);
  for (const int32_t token : {37, -1, INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(mamba_edge_step(session.get(), token, &error), MAMBA_EDGE_INVALID_ARGUMENT);
    EXPECT_EQ(error.status, MAMBA_EDGE_INVALID_ARGUMENT);
    EXPECT_NE(std::string(error.message).find("token " + std::to_string(token)), std::string::npos)
        << error.message;
    EXPECT_NE(std::string(error.message).find("37"), std::string::npos) << error.message;
    auto tokens = some_tokens(70);
    tokens[66] = token;  // in the third chunk: the first two must not be taken either
    Floats rows(tokens.size() * 37, -1.0f);
    EXPECT_EQ(mamba_edge_prefill(session.get(), tokens.data(), tokens.size(), rows.data(), nullptr),
              MAMBA_EDGE_INVALID_ARGUMENT);
    EXPECT_EQ(rows, Floats(rows.size(), -1.0f));
  }
  EXPECT_EQ(state_of(session, model_), before);
  EXPECT_EQ(mamba_edge_session_position(session.get()), 4u);
  take(session, {36, 0});  // the largest and the smallest are inside
}

TEST_P(CApi, CallersThreadsAreUsed) {
  const auto tokens = some_tokens(9);
  const SessionPtr plain = make_session(model_);
  Floats expected(tokens.size() * 37), got(expected.size());
  take(plain, tokens, expected.data());
  CallersPool pool;
  Options options = {};
  options.n_threads = 2;
  options.chunk = 4;
  options.parallel_for = CallersPool::run;
  options.parallel_for_user = &pool;
  const SessionPtr session = make_session(model_, options);
  EXPECT_EQ(pool.calls, 0u);
  take(session, tokens, got.data());
  EXPECT_TRUE(same_bits(got, expected));
  EXPECT_GT(pool.calls, 0u);
  EXPECT_GT(pool.tasks, pool.calls);  // no call for a single piece
  // The session has no threads of its own then: it needs no more memory than one that computes
  // alone.
  Options alone = options;
  alone.n_threads = 1;
  alone.parallel_for = nullptr;
  EXPECT_EQ(required(model_, options), required(model_, alone));
}

TEST_P(CApi, ExportedStateIsTheInputsAndZerosBeforeThem) {
  const SessionPtr session = make_session(model_);
  const ModelConfig c = config();
  const size_t inner = c.is_mamba2() ? c.mamba2.d_inner : c.mamba1.d_inner;
  const size_t d_state = c.is_mamba2() ? c.mamba2.d_state : c.mamba1.d_state;
  const size_t d_conv = c.is_mamba2() ? c.mamba2.d_conv : c.mamba1.d_conv;
  const size_t channels = inner + (c.is_mamba2() ? 2 * size_t{c.mamba2.n_groups} * d_state : 0);
  size_t n_conv = 0, n_ssm = 0;
  mamba_edge_error error;
  for (const int layer : {-1, 2, INT32_MAX}) {
    EXPECT_EQ(
        mamba_edge_state_export(session.get(), layer, nullptr, &n_conv, nullptr, &n_ssm, &error),
        MAMBA_EDGE_INVALID_ARGUMENT);
    EXPECT_NE(std::string(error.message).find("layer " + std::to_string(layer)), std::string::npos);
  }
  ASSERT_EQ(mamba_edge_state_export(session.get(), 1, nullptr, &n_conv, nullptr, &n_ssm, nullptr),
            MAMBA_EDGE_OK);
  EXPECT_EQ(n_conv, channels * d_conv);
  EXPECT_EQ(n_ssm, inner * d_state);
  Floats conv(n_conv + 1, -7.0f), ssm(n_ssm + 1, -7.0f);
  const auto export_layer = [&](int layer) {
    ASSERT_EQ(mamba_edge_state_export(session.get(), layer, conv.data(), nullptr, ssm.data(),
                                      nullptr, nullptr),
              MAMBA_EDGE_OK);
    EXPECT_EQ(conv.back(), -7.0f);  // not one float beyond
    EXPECT_EQ(ssm.back(), -7.0f);
  };
  export_layer(0);
  for (size_t i = 0; i < n_conv; ++i) EXPECT_EQ(conv[i], 0.0f);
  const bool learned = c.is_mamba2() && c.mamba2.init_states != 0;
  EXPECT_EQ(std::any_of(ssm.begin(), ssm.end() - 1, [](float v) { return v != 0; }), learned);
  // After one token only the newest column of the window is filled; after two, the older one has
  // moved on.
  take(session, {3});
  export_layer(0);
  const Floats first = conv;
  for (size_t ch = 0; ch < channels; ++ch) {
    for (size_t i = 0; i + 1 < d_conv; ++i) EXPECT_EQ(conv[ch * d_conv + i], 0.0f);
    EXPECT_NE(conv[ch * d_conv + d_conv - 1], 0.0f) << "channel " << ch;
  }
  take(session, {9});
  export_layer(0);
  for (size_t ch = 0; ch < channels; ++ch) {
    EXPECT_EQ(conv[ch * d_conv + d_conv - 2], first[ch * d_conv + d_conv - 1]) << "channel " << ch;
  }
}

TEST_P(CApi, SavedStateHasOneSizeWhateverComputes) {
  const ModelPtr generic = open_model(config(), std::get<1>(GetParam()), 1, "generic");
  EXPECT_EQ(mamba_edge_state_bytes(generic.get()), mamba_edge_state_bytes(model_.get()));
  const auto tokens = some_tokens(6);
  const SessionPtr a = make_session(model_), b = make_session(generic);
  take(a, tokens);
  const Bytes state = state_of(a, model_);
  // The state of one instruction set is a state of the other: same fingerprint, same layout.
  ASSERT_EQ(mamba_edge_state_load(b.get(), state.data(), state.size(), nullptr), MAMBA_EDGE_OK);
  EXPECT_EQ(state_of(b, generic), state);
}

Floats ssm_state_of(const SessionPtr& session, int layer) {
  size_t n_conv = 0, n_ssm = 0;
  EXPECT_EQ(
      mamba_edge_state_export(session.get(), layer, nullptr, &n_conv, nullptr, &n_ssm, nullptr),
      MAMBA_EDGE_OK);
  Floats conv(n_conv), ssm(n_ssm);
  EXPECT_EQ(mamba_edge_state_export(session.get(), layer, conv.data(), &n_conv, ssm.data(), &n_ssm,
                                    nullptr),
            MAMBA_EDGE_OK);
  return ssm;
}

// |a - b| / |b|.
double distance(const Floats& a, const Floats& b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    size += double{b[i]} * b[i];
  }
  return std::sqrt(difference / size);
}

// Whole blocks of 64 tokens may be read in the dual form: for any number of groups, heads of an odd number of
// channel blocks, any norm, and a text that starts anywhere. The first layer reads the same bits either way, so
// its state differs by the kernel's own roundings only: two factors of each term, to 2^-8 of it each,
// which for terms of random signs are at most 2^-7 of the whole. Logits move by less than int8 moved them.
TEST(CApiDualForm, IsNearTheRecurrence) {
  ModelConfig config = small_mamba2();
  config.d_model = 64;
  config.mamba2.d_inner = 192;
  config.mamba2.d_state = 32;
  config.mamba2.headdim = 48;
  for (const auto& [groups, gated_norm, norm_first] :
       {std::tuple(1u, 1u, 0u), {2u, 1u, 0u}, {4u, 2u, 1u}, {2u, 0u, 0u}}) {
    SCOPED_TRACE(testing::Message() << groups << " groups, norm " << gated_norm << norm_first);
    config.mamba2.n_groups = groups;
    config.mamba2.gated_norm = gated_norm;
    config.mamba2.norm_before_gate = norm_first;
    const ModelPtr model = open_model(config, WeightType::int8);
    const ModelPtr f32 = open_model(config, WeightType::f32);
    const auto first = some_tokens(5, 1), rest = some_tokens(2 * kDualTokens + 9);
    const auto read = [&](const ModelPtr& of, const Options& options, Floats* all) {
      const size_t bytes = required(of, options);
      auto arena = std::make_unique<Guarded<uint8_t>>(bytes);
      SessionPtr session = make_session(of, options, arena->data(), bytes);
      take(session, first);
      all->resize(rest.size() * config.n_vocab);
      take(session, rest, all->data());
      return std::pair(ssm_state_of(session, 0), state_of(session, of));
    };
    Options options = {};
    options.chunk = 256;
    options.same_bits = 1;
    Floats exact, expected, all;
    const auto [exact_ssm, exact_state] = read(model, options, &exact);
    read(f32, options, &expected);
    options.same_bits = 0;
    const auto [ssm, state] = read(model, options, &all);
    const bool dual = select_table(nullptr)->mamba2_dual != nullptr;
    EXPECT_EQ(state != exact_state, dual);
    EXPECT_EQ(distance(ssm, exact_ssm) > 0, dual);
    EXPECT_LE(distance(ssm, exact_ssm), 0x1p-7);
    EXPECT_LE(distance(all, exact), distance(exact, expected));
    options.n_threads = 3;
    EXPECT_EQ(read(model, options, &exact).second, state);
    // A model of floats has nothing to gain.
    options.same_bits = 1;
    const Bytes floats = read(f32, options, &expected).second;
    options.same_bits = 0;
    EXPECT_EQ(read(f32, options, &expected).second, floats);
  }
}

// Memory is the same after 3,000 tokens as after 10.
// fp16 changes what is kept between tokens, by one rounding each time, and nothing else.
TEST_P(CApi, StateInHalfPrecision) {
  Options half = kDefaults;
  half.state_type = MAMBA_EDGE_STATE_FP16;
  const std::vector<int32_t> tokens = some_tokens(20);
  const SessionPtr exact = make_session(model_), session = make_session(model_, half);
  EXPECT_LT(required(model_, half), required(model_, kDefaults));

  // From zeros, the first token's logits do not depend on how its state is kept afterwards. (The
  // small Mamba-2 model starts from learned states, which are rounded.)
  take(exact, {tokens[0]});
  take(session, {tokens[0]});
  EXPECT_EQ(same_bits(logits_of(session, model_), logits_of(exact, model_)),
            config().mamba2.init_states == 0);
  take(exact, {tokens.begin() + 1, tokens.end()});
  take(session, {tokens.begin() + 1, tokens.end()});
  const Floats want = logits_of(exact, model_), got = logits_of(session, model_);
  EXPECT_FALSE(same_bits(got, want));

  // A saved state fits either kind; one that came from fp16 goes back to it unchanged.
  const Bytes saved = state_of(session, model_);
  const SessionPtr wide = make_session(model_), copy = make_session(model_, half);
  for (const SessionPtr* to : {&wide, &copy}) {
    ASSERT_EQ(mamba_edge_state_load(to->get(), saved.data(), saved.size(), nullptr), MAMBA_EDGE_OK);
    EXPECT_EQ(state_of(*to, model_), saved);
  }
  // So does a fork, in both directions; and a saved float state is rounded once.
  ASSERT_EQ(mamba_edge_state_copy(wide.get(), session.get(), nullptr), MAMBA_EDGE_OK);
  EXPECT_EQ(state_of(wide, model_), saved);
  ASSERT_EQ(mamba_edge_state_copy(copy.get(), exact.get(), nullptr), MAMBA_EDGE_OK);
  const Bytes rounded = state_of(copy, model_), precise = state_of(exact, model_);
  ASSERT_EQ(mamba_edge_state_load(session.get(), precise.data(), precise.size(), nullptr),
            MAMBA_EDGE_OK);
  EXPECT_EQ(state_of(session, model_), rounded);
  EXPECT_NE(rounded, precise);

  // Exported states are those numbers too, and are all binary16.
  size_t n_conv = 0, n_ssm = 0;
  ASSERT_EQ(mamba_edge_state_export(copy.get(), 0, nullptr, &n_conv, nullptr, &n_ssm, nullptr),
            MAMBA_EDGE_OK);
  Floats ssm(n_ssm), original(n_ssm);
  mamba_edge_state_export(copy.get(), 0, nullptr, nullptr, ssm.data(), nullptr, nullptr);
  mamba_edge_state_export(exact.get(), 0, nullptr, nullptr, original.data(), nullptr, nullptr);
  for (size_t i = 0; i < n_ssm; ++i) {
    ASSERT_EQ(ssm[i], half_to_float(float_to_half(original[i]))) << i;
  }
}

// int8 keeps a step of a 127th of the largest of up to 64 states; the same holds as for fp16, and
// rounding depends on a token's position, not on how the text is split, by whom it is computed, or
// where it was kept.
TEST_P(CApi, StateInInt8) {
  Options options = kDefaults, half = kDefaults;
  options.state_type = MAMBA_EDGE_STATE_INT8;
  half.state_type = MAMBA_EDGE_STATE_FP16;
  EXPECT_LT(required(model_, options), required(model_, kDefaults));
  const std::vector<int32_t> tokens = some_tokens(70);
  const SessionPtr exact = make_session(model_), session = make_session(model_, options);
  take(exact, {tokens[0]});
  take(session, {tokens[0]});
  EXPECT_EQ(same_bits(logits_of(session, model_), logits_of(exact, model_)),
            config().mamba2.init_states == 0);
  take(exact, {tokens.begin() + 1, tokens.end()});
  take(session, {tokens.begin() + 1, tokens.end()});
  EXPECT_FALSE(same_bits(logits_of(session, model_), logits_of(exact, model_)));
  const Bytes saved = state_of(session, model_);

  for (const int threads : {1, 2, 3}) {
    for (const size_t split : std::initializer_list<size_t>{1, 5, 64}) {
      Options other = options;
      other.n_threads = threads;
      other.chunk = 7;
      SessionPtr text = make_session(model_, other);
      for (size_t i = 0; i < tokens.size(); i += split) {
        const size_t end = std::min(i + split, tokens.size());
        take(text, {tokens.begin() + static_cast<std::ptrdiff_t>(i),
                    tokens.begin() + static_cast<std::ptrdiff_t>(end)});
        if (i / split == 3) {  // goes on elsewhere
          const Bytes here = state_of(text, model_);
          text = make_session(model_, other);
          ASSERT_EQ(mamba_edge_state_load(text.get(), here.data(), here.size(), nullptr),
                    MAMBA_EDGE_OK);
        }
      }
      EXPECT_EQ(state_of(text, model_), saved) << threads << " threads, by " << split;
    }
  }

  // Loaded, and copied from and to the other kinds.
  const SessionPtr wide = make_session(model_), copy = make_session(model_, options);
  for (const SessionPtr* to : {&wide, &copy}) {
    ASSERT_EQ(mamba_edge_state_load(to->get(), saved.data(), saved.size(), nullptr), MAMBA_EDGE_OK);
    EXPECT_EQ(state_of(*to, model_), saved);
  }
  mamba_edge_session_reset(wide.get());
  ASSERT_EQ(mamba_edge_state_copy(wide.get(), session.get(), nullptr), MAMBA_EDGE_OK);
  EXPECT_EQ(state_of(wide, model_), saved);
  const SessionPtr from_half = make_session(model_, half);
  take(from_half, tokens);
  for (const SessionPtr* from : {&exact, &from_half}) {
    ASSERT_EQ(mamba_edge_state_copy(copy.get(), from->get(), nullptr), MAMBA_EDGE_OK);
    const Bytes precise = state_of(*from, model_), rounded = state_of(copy, model_);
    EXPECT_NE(rounded, precise);
    ASSERT_EQ(mamba_edge_state_load(session.get(), precise.data(), precise.size(), nullptr),
              MAMBA_EDGE_OK);
    EXPECT_EQ(state_of(session, model_), rounded);
  }

  // What was copied from fp16 is within half a step of it, and a little, in every channel.
  size_t n_ssm = 0;
  ASSERT_EQ(mamba_edge_state_export(copy.get(), 0, nullptr, nullptr, nullptr, &n_ssm, nullptr),
            MAMBA_EDGE_OK);
  Floats got(n_ssm), want(n_ssm);
  mamba_edge_state_export(copy.get(), 0, nullptr, nullptr, got.data(), nullptr, nullptr);
  mamba_edge_state_export(from_half.get(), 0, nullptr, nullptr, want.data(), nullptr, nullptr);
  const size_t d_state = config().is_mamba2() ? config().mamba2.d_state : config().mamba1.d_state;
  for (size_t i = 0; i < n_ssm; i += d_state) {
    float top = 0;
    for (size_t n = i; n < i + d_state; ++n) top = std::max(top, std::fabs(want[n]));
    for (size_t n = i; n < i + d_state; ++n) {
      ASSERT_LE(std::fabs(got[n] - want[n]), top / 127 * 0.501f) << n;
    }
  }
}

// Texts of different ages, with states of all kinds, join and leave; each gets the bits that it
// gets alone.
TEST_P(CApi, BatchesGiveEachTextWhatItGetsAlone) {
  for (const int threads : {1, 2}) {
    for (const size_t n : std::initializer_list<size_t>{1, 3, 8, 17}) {
      Options lead_options = kDefaults;
      lead_options.n_threads = threads;
      lead_options.batch = 17;
      Options half = kDefaults;
      half.state_type = MAMBA_EDGE_STATE_FP16;
      Options bytes = kDefaults;
      bytes.state_type = MAMBA_EDGE_STATE_INT8;
      const Options of_text[] = {kDefaults, half, bytes};
      const SessionPtr lead = make_session(model_, lead_options);
      std::vector<SessionPtr> together, alone;
      for (size_t i = 0; i < n; ++i) {
        for (auto* list : {&together, &alone}) {
          list->push_back(make_session(model_, of_text[i % 3]));
          if (i > 0) take(list->back(), some_tokens(i, 7));
        }
      }
      for (uint32_t round = 0; round < 4; ++round) {
        std::vector<mamba_edge_session*> batch;
        std::vector<int32_t> tokens;
        for (size_t i = 0; i < n; ++i) {
          if (n > 1 && (i + round) % 4 == 0) continue;  // sits this one out
          batch.push_back(together[i].get());
          tokens.push_back(static_cast<int32_t>((i * 11 + round * 5) % 37));
          take(alone[i], {tokens.back()});
        }
        mamba_edge_error error;
        ASSERT_EQ(
            mamba_edge_step_batch(lead.get(), batch.data(), tokens.data(), batch.size(), &error),
            MAMBA_EDGE_OK)
            << error.message;
      }
      for (size_t i = 0; i < n; ++i) {
        EXPECT_EQ(state_of(together[i], model_), state_of(alone[i], model_)) << i << " of " << n;
      }
      EXPECT_EQ(mamba_edge_session_position(lead.get()), 0u);
    }
  }
}

TEST_P(CApi, TheLeadMayBeInItsBatch) {
  Options options = kDefaults;
  options.batch = 2;
  options.chunk = 1;
  const SessionPtr lead = make_session(model_, options), other = make_session(model_);
  const SessionPtr alone = make_session(model_);
  mamba_edge_session* batch[] = {other.get(), lead.get()};
  for (const int32_t token : some_tokens(5)) {
    const int32_t tokens[] = {token, token};
    ASSERT_EQ(mamba_edge_step_batch(lead.get(), batch, tokens, 2, nullptr), MAMBA_EDGE_OK);
    take(alone, {token});
    EXPECT_EQ(state_of(lead, model_), state_of(alone, model_));
    EXPECT_EQ(state_of(other, model_), state_of(alone, model_));
  }
}

TEST_P(CApi, MemoryDoesNotGrowWithTheText) {
  // The process's own mappings, by its list of them: under an emulator, statm counts the emulator's memory too.
  const auto mapped_bytes = [] {
    unsigned long long bytes = 0;
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
      unsigned long long from = 0, to = 0;
      EXPECT_EQ(std::sscanf(line.c_str(), "%llx-%llx", &from, &to), 2) << line;
      bytes += to - from;
    }
    EXPECT_GT(bytes, 0u);
    return bytes;
  };
  const SessionPtr session = make_session(model_);
  const auto tokens = some_tokens(100);
  take(session, tokens);
  const unsigned long long before = mapped_bytes();
  for (int i = 0; i < 29; ++i) take(session, tokens);
  EXPECT_EQ(mapped_bytes(), before);
  EXPECT_EQ(mamba_edge_session_position(session.get()), 3000u);
  for (const float v : logits_of(session, model_)) ASSERT_TRUE(std::isfinite(v));
}

// ---- arguments

TEST(CApiArguments, Sessions) {
  const ModelPtr model = open_model(small_mamba1(), WeightType::int8);
  mamba_edge_session* session = nullptr;
  mamba_edge_error error;
  const auto create = [&](const Options& options, void* arena, size_t bytes) {
    session = reinterpret_cast<mamba_edge_session*>(&error);
    const mamba_edge_status status =
        mamba_edge_session_create(model.get(), &options, arena, bytes, &session, &error);
    EXPECT_EQ(error.status, status);
    EXPECT_EQ(session == nullptr, status != MAMBA_EDGE_OK);
    return status;
  };
  const auto says = [&](const char* text) {
    return std::string(error.message).find(text) != std::string::npos;
  };
  for (const int bad : {-1, 257, INT32_MIN, INT32_MAX}) {
    Options options = {};
    options.n_threads = bad;
    EXPECT_EQ(create(options, nullptr, 0), MAMBA_EDGE_INVALID_ARGUMENT);
    EXPECT_TRUE(says("n_threads")) << error.message;
    size_t bytes = 0;
    EXPECT_EQ(mamba_edge_session_required_bytes(model.get(), &options, &bytes, &error),
              MAMBA_EDGE_INVALID_ARGUMENT);
  }
  for (const int bad : {-1, 4097, INT32_MIN, INT32_MAX}) {
    Options options = {};
    options.chunk = bad;
    EXPECT_EQ(create(options, nullptr, 0), MAMBA_EDGE_INVALID_ARGUMENT);
    EXPECT_TRUE(says("chunk")) << error.message;
  }
  const Options defaults = {};
  const size_t bytes = required(model, defaults);
  std::unique_ptr<uint8_t, decltype(&std::free)> arena(
      static_cast<uint8_t*>(std::aligned_alloc(64, bytes + 64)), std::free);
  EXPECT_EQ(create(defaults, arena.get(), bytes - 1), MAMBA_EDGE_TOO_SMALL);
  EXPECT_TRUE(says(std::to_string(bytes).c_str())) << error.message;
  EXPECT_EQ(create(defaults, arena.get(), 0), MAMBA_EDGE_TOO_SMALL);
  for (const size_t offset : {1u, 16u, 32u, 63u}) {
    EXPECT_EQ(create(defaults, arena.get() + offset, bytes), MAMBA_EDGE_INVALID_ARGUMENT);
    EXPECT_TRUE(says("aligned")) << error.message;
  }
  ASSERT_EQ(create(defaults, arena.get(), bytes), MAMBA_EDGE_OK);
  EXPECT_EQ(error.message[0], '\0');
  mamba_edge_session_destroy(session);
  ASSERT_EQ(create(defaults, arena.get() + 64, bytes), MAMBA_EDGE_OK);
  mamba_edge_session_destroy(session);
  // NULL options are the defaults: 1 thread, chunks of 256.
  size_t by_default = 0;
  ASSERT_EQ(mamba_edge_session_required_bytes(model.get(), nullptr, &by_default, nullptr),
            MAMBA_EDGE_OK);
  EXPECT_EQ(by_default, bytes);
  Options explicit_ones = {};
  explicit_ones.n_threads = 1;
  explicit_ones.chunk = 256;
  EXPECT_EQ(required(model, explicit_ones), bytes);
  explicit_ones.chunk = 257;
  EXPECT_GT(required(model, explicit_ones), bytes);
}

TEST(CApiArguments, UnknownStateType) {
  const ModelPtr model = open_model(small_mamba2(), WeightType::int8);
  Options options = kDefaults;
  options.state_type = 7;
  mamba_edge_session* session = nullptr;
  mamba_edge_error error;
  EXPECT_EQ(mamba_edge_session_create(model.get(), &options, nullptr, 0, &session, &error),
            MAMBA_EDGE_INVALID_ARGUMENT);
  for (const char* part : {"state_type is 7", "0 (fp32)", "1 (fp16)", "2 (int8)"}) {
    EXPECT_NE(std::string(error.message).find(part), std::string::npos) << error.message;
  }
  EXPECT_EQ(session, nullptr);
}

TEST(CApiArguments, NegativeOptionsAreNamedAsTheyWereGiven) {
  const ModelPtr model = open_model(small_mamba2(), WeightType::int8);
  mamba_edge_session* session = nullptr;
  mamba_edge_error error;
  const std::pair<const char*, int32_t Options::*> members[] = {
      {"chunk is -3", &Options::chunk},
      {"batch is -3", &Options::batch},
      {"state_type is -3", &Options::state_type}};
  for (const auto& [says, member] : members) {
    Options options = kDefaults;
    options.*member = -3;
    EXPECT_EQ(mamba_edge_session_create(model.get(), &options, nullptr, 0, &session, &error),
              MAMBA_EDGE_INVALID_ARGUMENT);
    EXPECT_NE(std::string(error.message).find(says), std::string::npos) << error.message;
  }
}

// A long path takes its own middle, not the reason, from the message.
TEST(CApiArguments, MessagesKeepTheirEnds) {
  mamba_edge_model* model = nullptr;
  mamba_edge_error error;
  std::string path = "/begins/";
  while (path.size() < 3000) path += "sch\u00f6n/";
  path += "absent.mamba";
  EXPECT_NE(mamba_edge_model_open(path.c_str(), nullptr, &model, &error), MAMBA_EDGE_OK);
  const std::string message = error.message;
  EXPECT_TRUE(message.starts_with("/begins/sch")) << message;
  EXPECT_NE(message.find("..."), std::string::npos) << message;
  EXPECT_NE(message.find("/absent.mamba: "), std::string::npos) << message;
  // No part of a character is left: a byte that continues one follows a byte that begins it.
  for (size_t i = 0; i < message.size(); ++i) {
    const bool begins = message[i] == '\xc3', continues = message[i] == '\xb6';
    EXPECT_TRUE(!begins || message[i + 1] == '\xb6') << i;
    EXPECT_TRUE(!continues || message[i - 1] == '\xc3') << i;
  }
}

TEST(CApiArguments, BatchesThatAreRefusedChangeNothing) {
  const ModelPtr model = open_model(small_mamba2(), WeightType::int8);
  const ModelPtr stranger = open_model(small_mamba2(), WeightType::int8, 9);
  Options options = kDefaults;
  options.batch = 2;
  const SessionPtr lead = make_session(model, options), other = make_session(model);
  const SessionPtr third = make_session(model), foreign = make_session(stranger);
  const SessionPtr unplanned = make_session(model);
  take(lead, {1});
  take(other, {2});
  const Bytes before = state_of(lead, model), before_other = state_of(other, model);
  mamba_edge_error error;
  const auto expect = [&](mamba_edge_session* leader, std::vector<mamba_edge_session*> batch,
                          std::vector<int32_t> tokens, const char* message) {
    EXPECT_EQ(mamba_edge_step_batch(leader, batch.data(), tokens.data(), batch.size(), &error),
              MAMBA_EDGE_INVALID_ARGUMENT);
    EXPECT_NE(std::string(error.message).find(message), std::string::npos) << error.message;
    EXPECT_EQ(state_of(lead, model), before);
    EXPECT_EQ(state_of(other, model), before_other);
  };
  expect(lead.get(), {lead.get(), other.get(), third.get()}, {1, 1, 1}, "batch of 3");
  expect(unplanned.get(), {other.get()}, {1}, "made for 0");
  expect(lead.get(), {lead.get(), foreign.get()}, {1, 1}, "session 1 belongs to another model");
  expect(lead.get(), {lead.get(), lead.get()}, {1, 1}, "sessions 0 and 1");
  expect(lead.get(), {lead.get(), nullptr}, {1, 1}, "session 1 is NULL");
  expect(lead.get(), {lead.get(), other.get()}, {1, 37}, "token 37 of session 1");
  expect(lead.get(), {lead.get(), other.get()}, {-1, 1}, "token -1 of session 0");
  mamba_edge_session* one[] = {other.get()};
  const int32_t token = 1;
  EXPECT_EQ(mamba_edge_step_batch(lead.get(), one, &token, 0, &error), MAMBA_EDGE_INVALID_ARGUMENT);
  EXPECT_STREQ(error.message, "the batch is empty");
  EXPECT_EQ(mamba_edge_step_batch(nullptr, one, &token, 1, &error), MAMBA_EDGE_INVALID_ARGUMENT);
  EXPECT_EQ(mamba_edge_step_batch(lead.get(), nullptr, &token, 1, &error),
            MAMBA_EDGE_INVALID_ARGUMENT);
  EXPECT_EQ(mamba_edge_step_batch(lead.get(), one, nullptr, 1, &error),
            MAMBA_EDGE_INVALID_ARGUMENT);
  Options nonsense = kDefaults;
  nonsense.batch = -1;
  size_t bytes = 0;
  EXPECT_EQ(mamba_edge_session_required_bytes(model.get(), &nonsense, &bytes, &error),
            MAMBA_EDGE_INVALID_ARGUMENT);
  nonsense = kDefaults;
  nonsense.same_bits = 2;
  EXPECT_EQ(mamba_edge_session_required_bytes(model.get(), &nonsense, &bytes, &error),
            MAMBA_EDGE_INVALID_ARGUMENT);
  EXPECT_STREQ(error.message, "same_bits is 2; expected 0 or 1");
}

TEST(CApiArguments, Nulls) {
  const ModelPtr model = open_model(small_mamba2(), WeightType::f32);
  const SessionPtr session = make_session(model);
  mamba_edge_error error;
  const auto refused = [&](mamba_edge_status status, const char* name) {
    EXPECT_EQ(status, MAMBA_EDGE_INVALID_ARGUMENT);
    EXPECT_EQ(error.status, MAMBA_EDGE_INVALID_ARGUMENT);
    EXPECT_EQ(std::string(error.message), std::string(name) + " is NULL");
  };
  mamba_edge_model* m = nullptr;
  mamba_edge_session* s = nullptr;
  size_t n = 0;
  float floats[1];
  char text[8];
  int32_t ids[8];
  refused(mamba_edge_model_open(nullptr, nullptr, &m, &error), "path");
  refused(mamba_edge_model_open("x", nullptr, nullptr, &error), "model");
  refused(mamba_edge_session_required_bytes(nullptr, nullptr, &n, &error), "model");
  refused(mamba_edge_session_required_bytes(model.get(), nullptr, nullptr, &error), "bytes");
  refused(mamba_edge_session_create(nullptr, nullptr, nullptr, 0, &s, &error), "model");
  refused(mamba_edge_session_create(model.get(), nullptr, nullptr, 0, nullptr, &error), "session");
  refused(mamba_edge_prefill(nullptr, ids, 1, nullptr, &error), "session");
  refused(mamba_edge_prefill(session.get(), nullptr, 1, nullptr, &error), "tokens");
  refused(mamba_edge_step(nullptr, 0, &error), "session");
  refused(mamba_edge_state_save(nullptr, text, 8, &error), "session");
  refused(mamba_edge_state_save(session.get(), nullptr, 8, &error), "buffer");
  refused(mamba_edge_state_load(nullptr, text, 8, &error), "session");
  refused(mamba_edge_state_load(session.get(), nullptr, 8, &error), "buffer");
  refused(mamba_edge_state_copy(nullptr, session.get(), &error), "to");
  refused(mamba_edge_state_copy(session.get(), nullptr, &error), "from");
  refused(mamba_edge_state_export(nullptr, 0, floats, &n, floats, &n, &error), "session");
  refused(mamba_edge_tokenize(nullptr, "a", 1, 0, ids, 8, &n, &error), "model");
  refused(mamba_edge_tokenize(model.get(), nullptr, 1, 0, ids, 8, &n, &error), "text");
  refused(mamba_edge_tokenize(model.get(), "a", 1, 0, nullptr, 8, &n, &error), "ids");
  refused(mamba_edge_tokenize(model.get(), "a", 1, 0, ids, 8, nullptr, &error), "n");
  mamba_edge_decoder decoder = {};
  refused(mamba_edge_decoder_init(nullptr, model.get(), 0, &error), "decoder");
  refused(mamba_edge_decoder_init(&decoder, nullptr, 0, &error), "model");
  refused(mamba_edge_decode(nullptr, 0, text, 8, &n, &error), "decoder");
  refused(mamba_edge_decode(&decoder, 0, text, 8, &n, &error), "decoder");  // never initialised
  refused(mamba_edge_decode_finish(nullptr, text, 8, &n, &error), "decoder");
  decoder.model = model.get();
  refused(mamba_edge_decode(&decoder, 0, nullptr, 8, &n, &error), "text");
  refused(mamba_edge_decode_finish(&decoder, nullptr, 8, &n, &error), "text");
  mamba_edge_sampler* sampler = nullptr;
  const mamba_edge_sampler_options options = {};
  refused(mamba_edge_sampler_init(nullptr, &options, text, 8, &sampler, &error), "model");
  refused(mamba_edge_sampler_init(model.get(), nullptr, text, 8, &sampler, &error), "options");
  refused(mamba_edge_sampler_init(model.get(), &options, nullptr, 8, &sampler, &error), "memory");
  refused(mamba_edge_sampler_init(model.get(), &options, text, 8, nullptr, &error), "sampler");
  EXPECT_EQ(mamba_edge_sampler_required_bytes(nullptr, &options), 0u);
  mamba_edge_model_close(nullptr);
  mamba_edge_session_destroy(nullptr);
  // Without an error to write to, the status is all.
  EXPECT_EQ(mamba_edge_model_open(nullptr, nullptr, &m, nullptr), MAMBA_EDGE_INVALID_ARGUMENT);
  EXPECT_EQ(mamba_edge_step(session.get(), -1, nullptr), MAMBA_EDGE_INVALID_ARGUMENT);
}

TEST(CApiArguments, WithoutATokenizer) {
  const ModelPtr model = open_model(small_mamba1(), WeightType::f32);
  mamba_edge_error error;
  size_t n = 0;
  int32_t ids[8];
  EXPECT_EQ(mamba_edge_tokenize(model.get(), "a", 1, 0, ids, 8, &n, &error),
            MAMBA_EDGE_NO_TOKENIZER);
  EXPECT_NE(std::string(error.message).find("--tokenizer"), std::string::npos) << error.message;
  mamba_edge_decoder decoder;
  EXPECT_EQ(mamba_edge_decoder_init(&decoder, model.get(), 0, &error), MAMBA_EDGE_NO_TOKENIZER);
  char text[8];
  EXPECT_EQ(mamba_edge_decode(&decoder, 0, text, 8, &n, &error), MAMBA_EDGE_INVALID_ARGUMENT);
  EXPECT_EQ(mamba_edge_max_piece_bytes(model.get()), 0u);
}

TEST(CApiArguments, Models) {
  const TemporaryFolder folder;
  const auto path = folder.path / "model.mamba";
  mamba_edge_model* model = nullptr;
  mamba_edge_error error;
  EXPECT_EQ(mamba_edge_model_open(path.c_str(), nullptr, &model, &error), MAMBA_EDGE_IO);
  EXPECT_EQ(model, nullptr);
  EXPECT_NE(std::string(error.message).find(path.string()), std::string::npos);
  write_model(path, small_mamba1(), WeightType::int8);
  mamba_edge_model_options options = {};
  options.isa = "z80";
  EXPECT_EQ(mamba_edge_model_open(path.c_str(), &options, &model, &error),
            MAMBA_EDGE_INVALID_ARGUMENT);
  EXPECT_NE(std::string(error.message).find("\"z80\""), std::string::npos) << error.message;
  EXPECT_NE(std::string(error.message).find("generic"), std::string::npos) << error.message;
  options.isa = "generic";
  for (const int threads : {-5, 0, 1, 3, INT32_MAX}) {
    options.n_threads = threads;
    ASSERT_EQ(mamba_edge_model_open(path.c_str(), &options, &model, &error), MAMBA_EDGE_OK)
        << error.message;
    mamba_edge_model_info info;
    mamba_edge_model_get_info(model, &info);
    EXPECT_STREQ(info.architecture, "mamba");
    EXPECT_STREQ(info.isa, "generic");
    EXPECT_EQ(info.n_layer, 2);
    EXPECT_EQ(info.d_model, 24);
    EXPECT_EQ(info.n_vocab, 37);
    EXPECT_EQ(info.n_vocab_used, 35);
    EXPECT_EQ(info.bos_token, 0);
    EXPECT_EQ(info.eos_token, 1);
    EXPECT_EQ(info.has_tokenizer, 0);
    EXPECT_EQ(info.mapped_bytes, 0u);
    EXPECT_GT(info.weight_bytes, 0u);
    mamba_edge_model_close(model);
  }
}

TEST(CApiStates, OfAnotherModelAreRefused) {
  const ModelPtr one = open_model(small_mamba1(), WeightType::int8, 1),
                 two = open_model(small_mamba1(), WeightType::int8, 2),
                 three = open_model(small_mamba2(), WeightType::int8, 1);
  const SessionPtr a = make_session(one), b = make_session(two), c = make_session(three);
  take(a, some_tokens(3));
  take(b, some_tokens(4));
  const Bytes of_a = state_of(a, one), of_b = state_of(b, two);
  mamba_edge_error error;
  ASSERT_EQ(of_a.size(), of_b.size());
  EXPECT_EQ(mamba_edge_state_load(b.get(), of_a.data(), of_a.size(), &error),
            MAMBA_EDGE_INVALID_ARGUMENT);
  EXPECT_NE(std::string(error.message).find("another model"), std::string::npos) << error.message;
  EXPECT_EQ(mamba_edge_state_copy(b.get(), a.get(), &error), MAMBA_EDGE_INVALID_ARGUMENT);
  EXPECT_EQ(mamba_edge_state_copy(c.get(), a.get(), &error), MAMBA_EDGE_INVALID_ARGUMENT);
  EXPECT_EQ(mamba_edge_state_load(c.get(), of_a.data(), of_a.size(), &error),
            MAMBA_EDGE_BAD_FORMAT);
  EXPECT_EQ(state_of(b, two), of_b);
}

TEST(CApiStates, DamagedOnesAreRefused) {
  const ModelPtr model = open_model(small_mamba2(), WeightType::int8);
  const SessionPtr session = make_session(model);
  take(session, some_tokens(3));
  const Bytes good = state_of(session, model);
  take(session, some_tokens(2, 8));
  const Bytes now = state_of(session, model);
  const auto load = [&](const Bytes& bytes) {
    return mamba_edge_state_load(session.get(), bytes.data(), bytes.size(), nullptr);
  };
  Bytes bytes = good;
  bytes[0] ^= 1;
  EXPECT_EQ(load(bytes), MAMBA_EDGE_BAD_FORMAT);
  bytes = good;
  bytes[4] = 2;
  EXPECT_EQ(load(bytes), MAMBA_EDGE_UNSUPPORTED);
  for (size_t i = 8; i < 16; ++i) {
    bytes = good;
    bytes[i] ^= 0x80;
    EXPECT_EQ(load(bytes), MAMBA_EDGE_INVALID_ARGUMENT) << i;
  }
  bytes = good;
  bytes.pop_back();
  EXPECT_EQ(load(bytes), MAMBA_EDGE_BAD_FORMAT);
  bytes = good;
  bytes.push_back(0);
  EXPECT_EQ(load(bytes), MAMBA_EDGE_BAD_FORMAT);
  EXPECT_EQ(state_of(session, model), now);  // untouched by all of that
  Bytes small(good.size() - 1);
  mamba_edge_error error;
  EXPECT_EQ(mamba_edge_state_save(session.get(), small.data(), small.size(), &error),
            MAMBA_EDGE_TOO_SMALL);
  EXPECT_NE(std::string(error.message).find(std::to_string(good.size())), std::string::npos);
  EXPECT_EQ(load(good), MAMBA_EDGE_OK);
  EXPECT_EQ(state_of(session, model), good);
}

// Two sessions of one model, on two threads at once.
TEST(CApiSessions, ShareAModel) {
  const ModelPtr model = open_model(small_mamba1(), WeightType::int4);
  const auto tokens = some_tokens(200);
  const auto run = [&](Floats& out) {
    const SessionPtr session = make_session(model);
    for (const int32_t t : tokens)
      ASSERT_EQ(mamba_edge_step(session.get(), t, nullptr), MAMBA_EDGE_OK);
    out = logits_of(session, model);
  };
  Floats alone, a, b;
  run(alone);
  std::thread other([&] { run(a); });
  run(b);
  other.join();
  EXPECT_TRUE(same_bits(a, alone));
  EXPECT_TRUE(same_bits(b, alone));
}

TEST(CApiNames, Statuses) {
  std::set<std::string> names;
  for (int i = 0; i <= 7; ++i)
    names.insert(mamba_edge_status_name(static_cast<mamba_edge_status>(i)));
  EXPECT_EQ(names.size(), 8u);
  EXPECT_EQ(names.count("unknown status"), 0u);
  int major = -1, minor = -1, patch = -1;
  EXPECT_EQ(std::sscanf(mamba_edge_version(), "%d.%d.%d", &major, &minor, &patch), 3);
}

}  // namespace
}  // namespace mamba_edge::test
