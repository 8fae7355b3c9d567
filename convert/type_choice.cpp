#include "convert/type_choice.h"

#include <algorithm>
#include <cmath>

#include "quant/allocate.h"

namespace mamba_edge::convert {
namespace {

uint64_t cost(const Alternative& a) { return static_cast<uint64_t>(std::ceil(a.bytes)); }

}  // namespace

double guessed_loss(const ModelConfig& config, TensorRole role) {
  const auto layers = static_cast<double>(config.n_layer);
  switch (role) {
    case TensorRole::embedding:
      return config.tied != 0 ? 0.9 : 0.45;
    case TensorRole::head:
      return 0.45;
    case TensorRole::in_proj:
      return 0.42 / layers;
    case TensorRole::out_proj:
      return 0.46 / layers;
    case TensorRole::x_proj:
      return 0.07 / layers;
    default:
      return 0.02 / layers;
  }
}

void TypeChoice::add(uint32_t tensor, std::vector<Alternative> list) {
  items_.push_back({tensor, std::move(list)});
}

bool TypeChoice::choose(double bytes) {
  if (!(bytes >= 0)) return false;
  std::vector<std::vector<Choice>> choices;
  for (const Item& item : items_) {
    choices.emplace_back();
    for (const Alternative& a : item.list) choices.back().push_back({cost(a), a.loss});
  }
  const auto chosen = allocate(choices, static_cast<uint64_t>(bytes));
  if (!chosen) return false;
  for (size_t i = 0; i < items_.size(); ++i) items_[i].chosen = (*chosen)[i];
  return true;
}

double TypeChoice::smallest() const {
  uint64_t sum = 0;
  for (const Item& item : items_) {
    uint64_t least = UINT64_MAX;
    for (const Alternative& a : item.list) least = std::min(least, cost(a));
    sum += least;
  }
  return static_cast<double>(sum);
}

double TypeChoice::bytes() const {
  double sum = 0;
  for (const Item& item : items_) sum += item.list[item.chosen].bytes;
  return sum;
}

double TypeChoice::loss() const {
  double sum = 0;
  for (const Item& item : items_) sum += item.list[item.chosen].loss;
  return sum;
}

void TypeChoice::fill(std::vector<Alternative>* chosen) const {
  for (const Item& item : items_) (*chosen)[item.tensor] = item.list[item.chosen];
}

void TypeChoice::correct(uint32_t tensor, double bytes) {
  for (Item& item : items_) {
    if (item.tensor != tensor) continue;
    const double factor = bytes / item.list[item.chosen].bytes;
    for (Alternative& a : item.list) {
      if (!item.corrected) a.bytes *= factor;
    }
    item.list[item.chosen].bytes = bytes;
    item.corrected = true;
  }
}

std::vector<Allocation::Point> TypeChoice::curve(double rest) const {
  constexpr int kPoints = 40;
  TypeChoice other = *this;
  // Where every matrix has its best quantised type.
  double most = 0;
  for (const Item& item : items_) {
    const auto best = std::min_element(
        item.list.begin(), item.list.end(), [](const Alternative& a, const Alternative& b) {
          return is_quantised(a.type) != is_quantised(b.type) ? is_quantised(a.type)
                                                              : a.loss < b.loss;
        });
    most += std::ceil(best->bytes);
  }
  const double least = smallest();
  std::vector<Allocation::Point> points;
  for (int i = 0; i <= kPoints; ++i) {
    if (!other.choose(least + (most - least) * i / kPoints)) continue;
    points.push_back({other.bytes() + rest, other.loss()});
  }
  return points;
}

}  // namespace mamba_edge::convert
