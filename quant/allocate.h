// One choice for each of several things, so that all together cost no more than a budget and lose as
// little as possible.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace mamba_edge {

struct Choice {
  uint64_t cost = 0;
  double loss = 0;
};

// For every item the index of its choice; nothing where even the cheapest choices cost more than
// `budget`. Every item has at least one choice. The best there is, as far as costs are multiples of
// budget / 2^17; a cost in between counts as the next one up, so the budget always holds. Ties go to
// the lower index.
std::optional<std::vector<size_t>> allocate(const std::vector<std::vector<Choice>>& items,
                                            uint64_t budget);

}  // namespace mamba_edge
