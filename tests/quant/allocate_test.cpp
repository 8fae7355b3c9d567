#include "quant/allocate.h"

#include <gtest/gtest.h>

#include <random>

namespace mamba_edge {
namespace {

using Items = std::vector<std::vector<Choice>>;

struct Total {
  uint64_t cost = 0;
  double loss = 0;
};

Total total(const Items& items, const std::vector<size_t>& chosen) {
  Total sum;
  for (size_t i = 0; i < items.size(); ++i) {
    sum.cost += items[i][chosen[i]].cost;
    sum.loss += items[i][chosen[i]].loss;
  }
  return sum;
}

// The least loss within a budget, by trying everything; negative where nothing fits.
double exhaustive(const Items& items, uint64_t budget) {
  double best = -1;
  std::vector<size_t> chosen(items.size());
  for (;;) {
    const Total sum = total(items, chosen);
    if (sum.cost <= budget && (best < 0 || sum.loss < best)) best = sum.loss;
    size_t i = 0;
    while (i < items.size() && ++chosen[i] == items[i].size()) chosen[i++] = 0;
    if (i == items.size()) return best;
  }
}

TEST(Allocate, IsTheBestThereIs) {
  std::mt19937 random(1);
  std::uniform_int_distribution<uint64_t> cost(1, 1000);
  std::uniform_real_distribution<double> loss(0, 1);
  for (int round = 0; round < 30; ++round) {
    Items items(5);
    for (auto& item : items) {
      item.resize(1 + random() % 5);
      for (Choice& c : item) c = {cost(random), loss(random)};
    }
    for (const uint64_t budget : {500u, 1500u, 2500u, 5000u}) {
      const double best = exhaustive(items, budget);
      const auto chosen = allocate(items, budget);
      ASSERT_EQ(chosen.has_value(), best >= 0);
      if (!chosen) continue;
      EXPECT_LE(total(items, *chosen).cost, budget);
      EXPECT_DOUBLE_EQ(total(items, *chosen).loss, best);
    }
  }
}

// Costs of a real model: rounded up to units, they never exceed the budget, and lose no more than what
// a budget smaller by a unit per item would.
TEST(Allocate, LargeBudgetsHold) {
  std::mt19937 random(2);
  std::uniform_int_distribution<uint64_t> cost(100'000'000, 900'000'000);
  std::uniform_real_distribution<double> loss(0, 1);
  Items items(4);
  for (auto& item : items) {
    item.resize(4);
    for (Choice& c : item) c = {cost(random), loss(random)};
  }
  const uint64_t budget = 2'000'000'000, unit = (budget >> 17) + 1;
  const auto chosen = allocate(items, budget);
  ASSERT_TRUE(chosen);
  EXPECT_LE(total(items, *chosen).cost, budget);
  EXPECT_GE(total(items, *chosen).loss, exhaustive(items, budget));
  EXPECT_LE(total(items, *chosen).loss, exhaustive(items, budget - 4 * unit));
}

TEST(Allocate, Edges) {
  EXPECT_EQ(allocate({}, 0), std::vector<size_t>{});
  const Items one = {{{10, 1.0}, {20, 0.5}}};
  EXPECT_EQ(allocate(one, 9), std::nullopt);
  EXPECT_EQ(allocate(one, 10), std::vector<size_t>{0});
  EXPECT_EQ(allocate(one, 19), std::vector<size_t>{0});
  EXPECT_EQ(allocate(one, 20), std::vector<size_t>{1});
  const Items tie = {{{10, 1.0}, {10, 1.0}}};
  EXPECT_EQ(allocate(tie, 10), std::vector<size_t>{0});
}

}  // namespace
}  // namespace mamba_edge
