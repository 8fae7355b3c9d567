#include "engine/text/sampler.h"

#include <algorithm>
#include <array>
#include <cfloat>
#include <cinttypes>
#include <cmath>
#include <cstring>
#include <new>

namespace mamba_edge {
namespace {

constexpr uint32_t kWeightOne = 1u
                                << 31;  // of the largest logit; 2^23 tokens of it fit into 64 bits

// 2^(1/2), 2^(1/4), ... 2^(1/65536), times 2^62.
constexpr uint64_t kRoots[16] = {
    0x5A827999FCEF3242, 0x4C1BF828C6DC54B8, 0x45CAE0F1F545EB73, 0x42D561B3E6243D8A,
    0x4166C34C5615D0EC, 0x40B268F9DE0183BA, 0x4058F6A7ECCCD5B6, 0x402C6BE96AF2FB58,
    0x4016321B687027A8, 0x400B18178BA33B14, 0x40058BCE410147E8, 0x4002C5D7BFF71DAF,
    0x400162E807EE7E5B, 0x4000B1730DF6A524, 0x400058B9497B8152, 0x40002C5C955DD701};

// Products of these roots, for 8 bits of a fraction each: 2^(i/256) and 2^(i/65536), times 2^31.
constexpr std::array<uint32_t, 256> make_powers(int first_root) {
  std::array<uint32_t, 256> powers{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint64_t product = uint64_t{1} << 31;
    for (int bit = 0; bit < 8; ++bit) {
      if ((i >> (7 - bit) & 1) != 0)
        product = (product * (kRoots[first_root + bit] >> 31) + (1u << 30)) >> 31;
    }
    powers[i] = static_cast<uint32_t>(product);
  }
  return powers;
}
constexpr std::array<uint32_t, 256> kHighPowers = make_powers(0);
constexpr std::array<uint32_t, 256> kLowPowers = make_powers(8);

// 2^31 * e^-x for x >= 0, in integers but for one product, so that it is the same everywhere;
// within about two units of the exact value.
uint32_t decayed(float x) {
  constexpr double kLog2E = 1.4426950408889634;
  constexpr uint64_t kLn2 = 45426;  // times 2^16
  const double halvings = static_cast<double>(x) * (kLog2E * 4294967296.0);
  if (!(halvings < 32 * 4294967296.0)) return 0;
  const auto scaled = static_cast<uint64_t>(halvings);
  const auto whole = static_cast<uint32_t>(scaled >> 32);
  const auto fraction = static_cast<uint32_t>(scaled);
  if (fraction == 0) return kWeightOne >> whole;
  const uint32_t up = 0u - fraction;  // 2^-(w + f) = 2^(1 - f) / 2^(w + 1)
  uint64_t power = (uint64_t{kHighPowers[up >> 24]} * kLowPowers[up >> 16 & 255]) >> 31;
  power += (power * ((up & 0xFFFF) * kLn2)) >> 48;  // 2^r is nearly 1 + r ln 2
  return static_cast<uint32_t>(power >> (whole + 1));
}

float sanitized(float logit) {
  if (logit != logit) return -FLT_MAX;
  return std::min(std::max(logit, -FLT_MAX), FLT_MAX);
}

bool penalizes(const mamba_edge_sampler_options& o) {
  return o.repeat_penalty != 0 && o.repeat_penalty != 1 && o.repeat_last_n != 0;
}

bool is_greedy(const mamba_edge_sampler_options& o) { return !(o.temperature > 0) || o.top_k == 1; }

bool cuts_top_p(const mamba_edge_sampler_options& o) { return o.top_p > 0 && o.top_p < 1; }

size_t round_up_8(size_t n) { return (n + 7) & ~size_t{7}; }

}  // namespace

struct Sampler::Plan {
  size_t values = 0, order = 0, recent = 0;  // bytes
  int32_t n_recent = 0;

  Plan(int32_t n_vocab, const mamba_edge_sampler_options& o) {
    const auto n = static_cast<size_t>(n_vocab);
    if (penalizes(o)) {
      n_recent = o.repeat_last_n < 0 ? kDefaultRecent : o.repeat_last_n;
      recent = round_up_8(static_cast<size_t>(n_recent) * sizeof(int32_t));
    }
    if (penalizes(o) || !is_greedy(o)) values = round_up_8(n * sizeof(float));
    if (!is_greedy(o) && (o.top_k > 0 || cuts_top_p(o))) order = round_up_8(n * sizeof(int32_t));
  }
  size_t total() const { return round_up_8(sizeof(Sampler)) + values + order + recent; }
};

Status Sampler::check(const mamba_edge_sampler_options& o) {
  const auto bad = [](const char* name, double value, const char* expected) {
    return Status::error(MAMBA_EDGE_INVALID_ARGUMENT, "sampler: %s is %g, expected %s", name, value,
                         expected);
  };
  if (!std::isfinite(o.temperature))
    return bad("temperature", static_cast<double>(o.temperature), "a finite number");
  if (o.top_k < 0) return bad("top_k", o.top_k, "0 or more");
  if (!(o.top_p >= 0 && o.top_p <= 1))
    return bad("top_p", static_cast<double>(o.top_p), "a number from 0 to 1");
  if (!(o.min_p >= 0 && o.min_p <= 1))
    return bad("min_p", static_cast<double>(o.min_p), "a number from 0 to 1");
  if (!(o.repeat_penalty >= 0) || !std::isfinite(o.repeat_penalty)) {
    return bad("repeat_penalty", static_cast<double>(o.repeat_penalty),
               "a finite number, 0 or more");
  }
  if (o.repeat_last_n < -1 || o.repeat_last_n > kMaxRecent) {
    return bad("repeat_last_n", o.repeat_last_n, "a number from -1 to 1048576");
  }
  return Status();
}

size_t Sampler::required_bytes(int32_t n_vocab_used, const mamba_edge_sampler_options& options) {
  return Plan(n_vocab_used, options).total();
}

Status Sampler::init(const mamba_edge_sampler_options& options, const KernelTable& kernels,
                     int32_t n_vocab_used, std::span<std::byte> memory, Sampler** out) {
  ME_TRY(check(options));
  if (n_vocab_used < 1 || n_vocab_used > 1 << 23) {
    return Status::error(MAMBA_EDGE_INVALID_ARGUMENT,
                         "sampler: a vocabulary of %" PRId32 ", expected 1 to 8388608",
                         n_vocab_used);
  }
  const Plan plan(n_vocab_used, options);
  if (memory.data() == nullptr || (reinterpret_cast<uintptr_t>(memory.data()) & 7) != 0) {
    return Status::error(MAMBA_EDGE_INVALID_ARGUMENT,
                         "sampler: memory is NULL or not aligned to 8 bytes");
  }
  if (memory.size() < plan.total()) {
    return Status::error(MAMBA_EDGE_TOO_SMALL, "sampler: memory of %zu bytes, needed are %zu",
                         memory.size(), plan.total());
  }
  auto* const sampler = new (memory.data()) Sampler();
  std::byte* p = memory.data() + round_up_8(sizeof(Sampler));
  if (plan.values > 0) sampler->values_ = reinterpret_cast<float*>(p);
  p += plan.values;
  if (plan.order > 0) sampler->order_ = reinterpret_cast<int32_t*>(p);
  p += plan.order;
  if (plan.recent > 0) sampler->recent_ = reinterpret_cast<int32_t*>(p);
  sampler->options_ = options;
  sampler->kernels_ = &kernels;
  sampler->n_vocab_ = n_vocab_used;
  sampler->recent_capacity_ = plan.n_recent;
  sampler->state_ = options.seed;
  *out = sampler;
  return Status();
}

void Sampler::accept(int32_t token) {
  if (recent_ == nullptr || token < 0 || token >= n_vocab_) return;
  recent_[recent_next_] = token;
  recent_next_ = recent_next_ + 1 == recent_capacity_ ? 0 : recent_next_ + 1;
  n_recent_ = std::min(n_recent_ + 1, recent_capacity_);
}

// SplitMix64 (Steele, Lea, Flood 2014), and rejection to a range.
uint64_t Sampler::uniform(uint64_t below) {
  uint64_t mask = below - 1;
  for (uint32_t shift = 1; shift < 64; shift *= 2) mask |= mask >> shift;
  for (;;) {
    state_ += 0x9E3779B97F4A7C15;
    uint64_t z = state_;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    z = (z ^ z >> 31) & mask;
    if (z < below) return z;
  }
}

uint32_t Sampler::weight(float value) const {
  const float below = largest_ - value;  // >= 0, may be infinite
  return below == 0 ? kWeightOne : decayed(below / options_.temperature);
}

bool Sampler::before(int32_t a, int32_t b) const {
  return values_[a] > values_[b] || (values_[a] == values_[b] && a < b);
}

// Puts the k best ids into order_[0, k), in no order.
void Sampler::select_best(int32_t k) {
  const auto order = [this](int32_t a, int32_t b) { return before(a, b); };
  if (k > 256) {
    for (int32_t i = 0; i < n_vocab_; ++i) order_[i] = i;
    std::nth_element(order_, order_ + (k - 1), order_ + n_vocab_, order);
    return;
  }
  for (int32_t i = 0; i < k; ++i) order_[i] = i;
  std::make_heap(order_, order_ + k, order);  // the worst of them in front
  // Only what is larger than the worst comes in: of equal ones the earlier id stays.
  const auto next = [this](int32_t from) {
    return static_cast<int32_t>(kernels_->find_above(
        values_, static_cast<size_t>(from), static_cast<size_t>(n_vocab_), values_[order_[0]]));
  };
  for (int32_t i = next(k); i < n_vocab_; i = next(i + 1)) {
    std::pop_heap(order_, order_ + k, order);
    order_[k - 1] = i;
    std::push_heap(order_, order_ + k, order);
  }
}

// Given the n best candidates in order_[0, n), in any order, which weigh `total`: puts the fewest
// that reach p of it in front, and returns how many these are. Sorts only as many as needed,
// doubling.
int32_t Sampler::top_p_count(int32_t n, uint64_t total, float p) {
  const double wanted = static_cast<double>(p) * static_cast<double>(total);
  const auto order = [this](int32_t a, int32_t b) { return before(a, b); };
  uint64_t reached = 0;
  int32_t sorted = 0;
  for (int32_t step = 64; sorted < n; step = std::min(step, n / 2 + 1) * 2) {
    const int32_t next = n - sorted > step ? sorted + step : n;
    if (next < n) std::nth_element(order_ + sorted, order_ + next, order_ + n, order);
    std::sort(order_ + sorted, order_ + next, order);
    for (int32_t i = sorted; i < next; ++i) {
      reached += weight(values_[order_[i]]);
      if (static_cast<double>(reached) >= wanted) return i + 1;
    }
    sorted = next;
  }
  return n;
}

// The id of the largest of n_vocab_ values, which may not be finite.
int32_t Sampler::largest(const float* values) const {
  const auto best = static_cast<int32_t>(kernels_->arg_max(values, static_cast<size_t>(n_vocab_)));
  if (std::isfinite(values[best])) return best;
  int32_t first = 0;
  for (int32_t i = 1; i < n_vocab_; ++i) {
    if (sanitized(values[i]) > sanitized(values[first])) first = i;
  }
  return first;
}

// Draws from n candidates, given by their ids or, where `ids` is NULL, all of the vocabulary. Walks
// them in the order of their ids. The values make room for the weights.
int32_t Sampler::draw(int32_t* ids, int32_t n, int32_t best) {
  if (ids != nullptr) std::sort(ids, ids + n);
  const double least = static_cast<double>(options_.min_p) * static_cast<double>(kWeightOne);
  const auto at = [&](int32_t i) { return values_ + (ids == nullptr ? i : ids[i]); };
  uint64_t total = 0;
  for (int32_t i = 0; i < n; ++i) {
    uint32_t w = weight(*at(i));
    if (static_cast<double>(w) < least) w = 0;
    std::memcpy(at(i), &w, sizeof(w));
    total += w;
  }
  uint64_t drawn = uniform(total);
  for (int32_t i = 0; i < n; ++i) {
    uint32_t w;
    std::memcpy(&w, at(i), sizeof(w));
    if (drawn < w) return ids == nullptr ? i : ids[i];
    drawn -= w;
  }
  return best;
}

int32_t Sampler::sample(const float* logits) {
  const float* values = logits;
  if (values_ != nullptr) {
    kernels_->copy_finite(logits, static_cast<size_t>(n_vocab_), values_);
    // From the logit itself, so that a token that occurred twice is not penalised twice.
    for (int32_t i = 0; i < n_recent_; ++i) {
      const float logit = sanitized(logits[recent_[i]]);
      const float penalty = options_.repeat_penalty;
      values_[recent_[i]] = sanitized(logit > 0 ? logit / penalty : logit * penalty);
    }
    values = values_;
  }
  const int32_t best = largest(values);
  if (is_greedy(options_)) {
    accept(best);
    return best;
  }
  largest_ = values[best];

  int32_t n = n_vocab_;
  if (order_ != nullptr) {
    if (options_.top_k > 0 && options_.top_k < n) {
      n = options_.top_k;
      select_best(n);
    } else {
      for (int32_t i = 0; i < n; ++i) order_[i] = i;
    }
    if (cuts_top_p(options_)) {
      uint64_t total = 0;
      for (int32_t i = 0; i < n; ++i) total += weight(values_[order_[i]]);
      n = top_p_count(n, total, options_.top_p);
    }
  }
  const int32_t token = draw(order_, n, best);
  accept(token);
  return token;
}

}  // namespace mamba_edge
