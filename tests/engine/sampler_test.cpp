#include "engine/text/sampler.h"
#include "platforms/select.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <vector>

namespace mamba_edge {
namespace {

uint32_t draw(std::mt19937& random, size_t below) {
  return static_cast<uint32_t>(random() % below);
}

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Made {
  std::vector<uint64_t> memory;
  Sampler* sampler = nullptr;
  int32_t sample(const std::vector<float>& logits) { return sampler->sample(logits.data()); }
};

Made make(const mamba_edge_sampler_options& options, size_t n_vocab) {
  Made made;
  const size_t bytes = Sampler::required_bytes(static_cast<int32_t>(n_vocab), options);
  made.memory.assign((bytes + 7) / 8, 0xA5A5A5A5A5A5A5A5);
  const Status status =
      Sampler::init(options, *select_table(nullptr), static_cast<int32_t>(n_vocab),
                    {reinterpret_cast<std::byte*>(made.memory.data()), bytes}, &made.sampler);
  EXPECT_TRUE(status.ok()) << status.message();
  return made;
}

mamba_edge_sampler_options with_temperature(float temperature) {
  mamba_edge_sampler_options options = {};
  options.temperature = temperature;
  options.seed = 7;
  return options;
}

std::vector<float> random_logits(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(n);
  for (float& l : logits) l = normal(random);
  return logits;
}

// Which tokens remain after top-k, top-p, min-p, by sorting everything in double.
std::vector<bool> kept_reference(const std::vector<float>& logits,
                                 const mamba_edge_sampler_options& o,
                                 std::vector<double>* probabilities) {
  const size_t n = logits.size();
  std::vector<size_t> order(n);
  for (size_t i = 0; i < n; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  size_t count = o.top_k > 0 ? std::min(n, static_cast<size_t>(o.top_k)) : n;
  const double largest = logits[order[0]];
  const auto weight = [&](size_t i) {
    return std::exp((static_cast<double>(logits[i]) - largest) / o.temperature);
  };
  double total = 0;
  for (size_t i = 0; i < count; ++i) total += weight(order[i]);
  if (o.top_p > 0 && o.top_p < 1) {
    double sum = 0;
    for (size_t i = 0; i < count; ++i) {
      sum += weight(order[i]);
      if (sum >= o.top_p * total) {
        count = i + 1;
        break;
      }
    }
  }
  std::vector<bool> kept(n, false);
  probabilities->assign(n, 0);
  double sum = 0;
  for (size_t i = 0; i < count; ++i) {
    if (weight(order[i]) < o.min_p) continue;
    kept[order[i]] = true;
    (*probabilities)[order[i]] = weight(order[i]);
    sum += weight(order[i]);
  }
  for (double& p : *probabilities) p /= sum;
  return kept;
}

TEST(Sampler, GreedyTakesTheLargestAndOfEqualOnesTheFirst) {
  const std::vector<float> logits = {1, 5, 3, 5, -2};
  for (const float temperature : {0.0f, -1.0f}) {
    Made made = make(with_temperature(temperature), logits.size());
    EXPECT_EQ(made.sample(logits), 1);
  }
  mamba_edge_sampler_options options = with_temperature(1);
  options.top_k = 1;
  EXPECT_EQ(make(options, logits.size()).sample(logits), 1);
}

TEST(Sampler, GreedyWithoutPenaltyNeedsNoCopyOfTheLogits) {
  EXPECT_LT(Sampler::required_bytes(50000, with_temperature(0)), 256u);
}

TEST(Sampler, FrequenciesFollowTheProbabilities) {
  struct Case {
    float temperature, top_p, min_p;
    int32_t top_k;
  };
  for (const Case& c :
       {Case{1, 0, 0, 0}, Case{0.5f, 0, 0, 0}, Case{1.5f, 0, 0, 5}, Case{1, 0.8f, 0, 0},
        Case{1, 0, 0.1f, 0}, Case{2, 0.9f, 0.05f, 12}, Case{1, 1, 0, 40}}) {
    mamba_edge_sampler_options options = with_temperature(c.temperature);
    options.top_p = c.top_p;
    options.min_p = c.min_p;
    options.top_k = c.top_k;
    const std::vector<float> logits = random_logits(20, 3);
    std::vector<double> p;
    const std::vector<bool> kept = kept_reference(logits, options, &p);
    Made made = make(options, logits.size());
    constexpr int kDraws = 200000;
    std::vector<int> counts(logits.size(), 0);
    for (int i = 0; i < kDraws; ++i) ++counts[static_cast<size_t>(made.sample(logits))];
    for (size_t i = 0; i < logits.size(); ++i) {
      // Five standard deviations of a binomial count; the seed is fixed.
      const double deviation = std::sqrt(kDraws * p[i] * (1 - p[i]));
      EXPECT_NEAR(counts[i], kDraws * p[i], 5 * deviation + 1) << i;
      if (!kept[i]) {
        EXPECT_EQ(counts[i], 0) << i;
      }
    }
  }
}

// Over a large vocabulary, everything drawn must be in the set that sorting gives.
TEST(Sampler, SelectionAgreesWithSorting) {
  std::mt19937 random(5);
  for (int round = 0; round < 60; ++round) {
    std::vector<float> logits = random_logits(3000, static_cast<uint32_t>(round));
    if (round % 3 == 0) {
      for (float& l : logits) l = std::floor(l);  // many ties
    }
    mamba_edge_sampler_options options = with_temperature(round % 2 == 0 ? 1.0f : 5.0f);
    options.seed = draw(random, 1000);
    options.top_k = round % 4 == 0 ? 0 : static_cast<int32_t>(1 + draw(random, 3100));
    options.top_p = round % 5 == 0 ? 0.0f : static_cast<float>(draw(random, 1000)) / 1000.0f;
    options.min_p = round % 7 == 0 ? 0.02f : 0.0f;
    std::vector<double> p;
    const std::vector<bool> kept = kept_reference(logits, options, &p);
    Made made = make(options, logits.size());
    for (int i = 0; i < 300; ++i) {
      const auto token = static_cast<size_t>(made.sample(logits));
      ASSERT_TRUE(kept[token]) << round << " token " << token << " p " << p[token];
    }
  }
}

TEST(Sampler, TopKOfEqualLogitsKeepsTheLowestIds) {
  const std::vector<float> logits(1000, 0.5f);
  for (const int32_t k : {3, 300}) {
    mamba_edge_sampler_options options = with_temperature(1);
    options.top_k = k;
    Made made = make(options, logits.size());
    int32_t largest = 0;
    for (int i = 0; i < 20000; ++i) largest = std::max(largest, made.sample(logits));
    EXPECT_EQ(largest, k - 1);
  }
}

// Pinned: a change of these is a change of every seeded text.
TEST(Sampler, TheSameSeedGivesTheSameTokensEverywhere) {
  std::vector<float> logits(256);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>((i * 37) % 64) / 16.0f;
  mamba_edge_sampler_options options = with_temperature(0.75f);
  options.seed = 42;
  options.top_p = 0.95f;
  options.repeat_penalty = 1.25f;
  options.repeat_last_n = 4;
  Made made = make(options, logits.size());
  std::vector<int32_t> tokens;
  for (int i = 0; i < 12; ++i) tokens.push_back(made.sample(logits));
  EXPECT_EQ(tokens,
            (std::vector<int32_t>{69, 214, 250, 159, 254, 114, 157, 102, 214, 57, 211, 41}));
  Made again = make(options, logits.size());
  for (const int32_t token : tokens) EXPECT_EQ(again.sample(logits), token);
}

TEST(Sampler, PenaltyDividesPositiveAndMultipliesNegativeLogitsOnce) {
  mamba_edge_sampler_options options = with_temperature(0);
  options.repeat_penalty = 2;
  options.repeat_last_n = 2;
  const std::vector<float> logits = {4, 3, -1, -3};
  Made made = make(options, logits.size());
  EXPECT_EQ(made.sample(logits), 0);  // 4; then 0 is worth 2
  EXPECT_EQ(made.sample(logits), 1);  // 3; then 1 is worth 1.5
  EXPECT_EQ(made.sample(logits), 0);  // 2 against 1.5
  made.sampler->accept(0);  // twice among the last two: still worth 2, and 1 is free again
  EXPECT_EQ(made.sample(logits), 1);

  const std::vector<float> negative = {-1, -1.5f, -4};
  Made other = make(options, negative.size());
  EXPECT_EQ(other.sample(negative), 0);
  EXPECT_EQ(other.sample(negative), 1);  // -1.5 against -2
}

TEST(Sampler, PenaltyIsOffByDefaultAndIgnoresIdsOutside) {
  mamba_edge_sampler_options options = with_temperature(0);
  options.repeat_penalty = 2;  // repeat_last_n 0: none
  const std::vector<float> logits = {4, 3};
  Made made = make(options, logits.size());
  EXPECT_EQ(made.sample(logits), 0);
  EXPECT_EQ(made.sample(logits), 0);
  options.repeat_last_n = -1;
  Made last = make(options, logits.size());
  last.sampler->accept(-1);
  last.sampler->accept(2);
  last.sampler->accept(0);
  EXPECT_EQ(last.sample(logits), 1);
}

TEST(Sampler, StrangeLogitsGiveATokenInside) {
  const std::vector<std::vector<float>> strange = {
      {kNaN, kNaN, kNaN},     {kNaN, 1, kNaN},     {-kInf, -kInf, -kInf},
      {kInf, kInf, 0},        {kInf, -kInf, kNaN}, {-kInf, 2, -kInf},
      {1e38f, -1e38f, 3e38f}, {-3e38f, 3e38f, 0},  {1e-45f, -1e-45f, 0},
  };
  for (const float temperature : {0.0f, 1e-45f, 1.0f, 3e38f}) {
    for (const float top_p : {0.0f, 0.5f}) {
      for (const int32_t top_k : {0, 2}) {
        for (const float penalty : {0.0f, 1e-30f, 1e30f}) {
          for (const std::vector<float>& logits : strange) {
            mamba_edge_sampler_options options = with_temperature(temperature);
            options.top_p = top_p;
            options.top_k = top_k;
            options.min_p = 0.1f;
            options.repeat_penalty = penalty;
            options.repeat_last_n = -1;
            Made made = make(options, logits.size());
            for (int i = 0; i < 20; ++i) {
              const int32_t token = made.sample(logits);
              ASSERT_GE(token, 0);
              ASSERT_LT(token, 3);
            }
          }
        }
      }
    }
  }
  EXPECT_EQ(make(with_temperature(0), 3).sample(strange[1]), 1);
  EXPECT_EQ(make(with_temperature(1), 3).sample(strange[1]), 1);
  EXPECT_EQ(make(with_temperature(1), 3).sample(strange[5]), 1);
}

TEST(Sampler, RefusesOptionsWithoutMeaning) {
  const auto refused = [](auto change, const char* name) {
    mamba_edge_sampler_options options = with_temperature(1);
    change(options);
    const Status status = Sampler::check(options);
    EXPECT_EQ(status.code(), MAMBA_EDGE_INVALID_ARGUMENT);
    EXPECT_NE(std::string(status.message()).find(name), std::string::npos) << status.message();
  };
  refused([](auto& o) { o.temperature = kNaN; }, "temperature");
  refused([](auto& o) { o.temperature = kInf; }, "temperature");
  refused([](auto& o) { o.top_k = -1; }, "top_k");
  refused([](auto& o) { o.top_p = -0.1f; }, "top_p");
  refused([](auto& o) { o.top_p = 1.1f; }, "top_p");
  refused([](auto& o) { o.top_p = kNaN; }, "top_p");
  refused([](auto& o) { o.min_p = 2; }, "min_p");
  refused([](auto& o) { o.min_p = kNaN; }, "min_p");
  refused([](auto& o) { o.repeat_penalty = -1; }, "repeat_penalty");
  refused([](auto& o) { o.repeat_penalty = kInf; }, "repeat_penalty");
  refused([](auto& o) { o.repeat_last_n = -2; }, "repeat_last_n");
  refused([](auto& o) { o.repeat_last_n = INT32_MAX; }, "repeat_last_n");
  EXPECT_TRUE(Sampler::check({}).ok());
}

TEST(Sampler, RefusesBadMemory) {
  const mamba_edge_sampler_options options = with_temperature(1);
  const size_t bytes = Sampler::required_bytes(100, options);
  std::vector<uint64_t> memory(bytes / 8 + 2);
  auto* const p = reinterpret_cast<std::byte*>(memory.data());
  Sampler* sampler = nullptr;
  EXPECT_EQ(Sampler::init(options, *select_table(nullptr), 100, {p, bytes - 1}, &sampler).code(),
            MAMBA_EDGE_TOO_SMALL);
  EXPECT_EQ(Sampler::init(options, *select_table(nullptr), 100, {p + 4, bytes}, &sampler).code(),
            MAMBA_EDGE_INVALID_ARGUMENT);
  EXPECT_EQ(Sampler::init(options, *select_table(nullptr), 0, {p, bytes}, &sampler).code(),
            MAMBA_EDGE_INVALID_ARGUMENT);
  EXPECT_EQ(sampler, nullptr);
}

}  // namespace
}  // namespace mamba_edge
