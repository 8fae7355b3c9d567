#include "quant/allocate.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace mamba_edge {
namespace {

constexpr uint64_t kUnits = uint64_t{1} << 17;

uint64_t sum_of_cheapest(const std::vector<std::vector<Choice>>& items) {
  uint64_t sum = 0;
  for (const std::vector<Choice>& choices : items) {
    sum += std::min_element(choices.begin(), choices.end(), [](const Choice& a, const Choice& b) {
             return a.cost < b.cost;
           })->cost;
  }
  return sum;
}

}  // namespace

// The knapsack with one of several things from every shelf, by dynamic programming: best[b] is the
// least loss of the items so far within a budget of b units.
std::optional<std::vector<size_t>> allocate(const std::vector<std::vector<Choice>>& items,
                                            uint64_t budget) {
  const uint64_t cheapest = sum_of_cheapest(items);
  if (cheapest > budget) return std::nullopt;
  // Only what is left when everything has its cheapest choice is shared out, so that this is always
  // possible whatever a unit is.
  const uint64_t spare = budget - cheapest;
  const uint64_t unit = spare / kUnits + 1;
  const auto width = static_cast<size_t>(spare / unit) + 1;
  constexpr double kImpossible = std::numeric_limits<double>::infinity();
  std::vector<double> best(width, 0.0), next(width);
  std::vector<std::vector<uint8_t>> picked(items.size(), std::vector<uint8_t>(width));
  for (size_t i = 0; i < items.size(); ++i) {
    std::fill(next.begin(), next.end(), kImpossible);
    uint64_t base = items[i][0].cost;
    for (const Choice& choice : items[i]) base = std::min(base, choice.cost);
    for (size_t c = 0; c < items[i].size(); ++c) {
      const uint64_t units = (items[i][c].cost - base + unit - 1) / unit;
      for (size_t b = units; b < width; ++b) {
        const double loss = best[b - units] + items[i][c].loss;
        if (loss < next[b]) {
          next[b] = loss;
          picked[i][b] = static_cast<uint8_t>(c);
        }
      }
    }
    best.swap(next);
  }
  std::vector<size_t> result(items.size());
  size_t left = width - 1;
  for (size_t i = items.size(); i-- > 0;) {
    result[i] = picked[i][left];
    uint64_t base = items[i][0].cost;
    for (const Choice& choice : items[i]) base = std::min(base, choice.cost);
    left -= static_cast<size_t>((items[i][result[i]].cost - base + unit - 1) / unit);
  }
  return result;
}

}  // namespace mamba_edge
