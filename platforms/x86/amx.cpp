// Kernels for x86 with AMX tiles and int8 products: products of quantised matrices with many tokens.
// All else, and few tokens, is the table of AVX-512 VNNI.
//
// A tile product takes 16 tokens times K inputs times 16 rows, exact in int32: A is loaded from the
// quantised rows as they lie, B from a copy of the weights as signed bytes. C goes through memory to
// the float sums. K is the largest part of a group that fits in a tile.
//
// The conversion of the sums is what limits. A product of 16 cycles leaves 16 rows of them, which are
// converted, scaled and added by 48 instructions, and while the tile unit is at work only one port
// takes instructions of 512 bits (measured on Emerald Rapids: a product and 24 such instructions
// take 24 cycles, a product and 48 take 48). A group of 128 inputs is two products for the same 48:
// 0.69 of the tile unit's peak at best, where groups of 64 have 0.34. All else is kept out of its way:
//
//   Two row blocks share the tokens' tiles and scales; all tokens of a span share the weights' tiles.
//   All of a group's work for two row blocks is done before the next group's: weights, inputs and sums
//   stay in the first cache.
//   The sums of one product are added, and weights of the next group unpacked, while the next is
//   computed, in pieces between the tile instructions (measured in the first cache: 65 instead of 83 ns
//   for four products while something else slows the core's tile unit to half, 45 instead of 49 else).
//   Lines of the output are asked for one step before they are written.
//   Inputs, which are used once per step, are loaded so that they do not push the rest out of the first cache.
//
// The float operations on one row and token are those of platforms/simd/kernels_impl.h, in the same
// order, so tokens have the same bits here and there.
#include "platforms/tables.h"

// Clang before 17 spells two of the names without the second underscore.
#if (defined(__AMX_TILE__) || defined(__AMXTILE__)) &&                         \
    (defined(__AMX_INT8__) || defined(__AMXINT8__)) &&                         \
    (defined(__AMX_BF16__) || defined(__AMXBF16__)) && defined(__AVX512F__) && \
    defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>

#include "platforms/simd/planes.h"
#include "platforms/x86/amx_dual.h"
#include "platforms/x86/registers.h"
#include "platforms/x86/tiles.h"

namespace mamba_edge {
namespace {

constexpr size_t kTileTokens = 16;
constexpr size_t kTileInputs = 64;
constexpr size_t kTileFloats = kTileTokens * kTileRows;
constexpr size_t kSpanTiles = 4;      // tiles of tokens at a time
constexpr size_t kLongSpanTiles = 8;  // the same where Buffers cannot hold a row's weights
constexpr size_t kPair = 2;           // row blocks at a time
constexpr size_t kStepGroups = 2;     // groups of one tile at a time
constexpr size_t kWeightBytes = size_t{72} << 10;  // unpacked
static_assert(kWeightBytes >= 2 * kPair * kMaxGroup * kTileRows);

// std::min would be a function that kernel units share.
constexpr size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

// Tiles 0 and 1 are C for two row blocks, 2 and 3 A, and 4 to 7 B.
void configure(size_t inputs) {
  TileConfig config;
  for (size_t i = 0; i < 2; ++i) {
    config.row_bytes[i] = kTileRows * 4;
    config.rows[i] = kTileTokens;
  }
  for (size_t i = 2; i < 4; ++i) {
    config.row_bytes[i] = static_cast<uint16_t>(inputs);
    config.rows[i] = kTileTokens;
  }
  for (size_t i = 4; i < 8; ++i) {
    config.row_bytes[i] = kLineBytes;
    config.rows[i] = static_cast<uint8_t>(inputs / kStepInputs);
  }
  load_config(config);
}

// A group is this many tiles of equal size: at most four, as it is a multiple of 16 and at most 256.
size_t tiles_of(size_t group) {
  size_t n = (group + kTileInputs - 1) / kTileInputs;
  while (group % (n * kStepInputs) != 0) ++n;
  return n;
}

// ---- weights as signed bytes: [input / 4][16 rows][4]; as many weights at `next` are asked for ----

template <WeightType kType, size_t kPart>
ME_INLINE void unpack_steps(const uint8_t* unit, int8_t* out) {
  const __m512i zero = _mm512_set1_epi8(static_cast<char>(properties(kType).zero()));
  __m512i steps[kPartSteps];
  unpack_part<Avx512Registers, kType, kPart>(unit, steps);
  ME_UNROLL
  for (size_t k = 0; k < kPartSteps; ++k) {
    _mm512_store_si512(out + (kPart * kPartSteps + k) * kLineBytes,
                       _mm512_sub_epi8(steps[k], zero));
  }
}

template <WeightType kType>
void unpack(const uint8_t* w, const uint8_t* next, size_t inputs, int8_t* out) {
  if constexpr (kType == WeightType::int8) {
    const __m512i zero = _mm512_set1_epi8(static_cast<char>(properties(kType).zero()));
    for (size_t i = 0; i < inputs * kTileRows; i += kLineBytes) {
      __builtin_prefetch(next + i, 0, 2);
      _mm512_store_si512(out + i, _mm512_sub_epi8(_mm512_load_si512(w + i), zero));
    }
  } else {
    using Unit = Planes<kType>;
    for (size_t i = 0; i < inputs; i += Unit::kInputs, w += Unit::kBytes, next += Unit::kBytes) {
      for (size_t k = 0; k < Unit::kBytes; k += kLineBytes) __builtin_prefetch(next + k, 0, 2);
      unpack_steps<kType, 0>(w, out);
      if constexpr (Unit::kParts > 1) unpack_steps<kType, 1>(w, out);
      out += Unit::kInputs * kTileRows;
    }
  }
}
using Unpack = void(const uint8_t* w, const uint8_t* next, size_t inputs, int8_t* out);

// ---- a span: R row blocks times up to 64 or 128 tokens ----

// Tokens and row blocks are taken step by step through the inputs: a step is one group, or two that
// are one tile each.
struct Buffers {
  // Steps of kPair row blocks, in turn: all of a row's and one more where they fit, so that only the
  // first span of tokens has to unpack them, and at least two.
  alignas(64) int8_t weights[kWeightBytes];
  alignas(64) int32_t products[2][kStepGroups][kPair][kTileFloats];
  alignas(64) float sums[kLongSpanTiles][kTileTokens][kPair][kTileRows];
};
static_assert(sizeof(Buffers) <= size_t{112} << 10);  // on the stack of a caller's thread, too

// What all of a call has in common.
struct Product {
  Unpack* unpack;
  size_t unit_inputs, unit_bytes;  // of what `unpack` takes
  const Matrix& w;
  const QuantisedRows& x;
  size_t tokens;
  size_t tiles, tile_inputs;  // of a group
  size_t steps, step_inputs;
  size_t slots;       // steps that Buffers::weights holds
  size_t span_tiles;  // at most
  float* out;
  size_t out_stride;
};

// Weights of a step of one or two tiles (kTiles) stay in tiles 4 to 7; of more (0) they are loaded when
// they are multiplied.
template <int R, int kTiles>
ME_INLINE void load_weights(const Product& p, const int8_t* b) {
  const int8_t* second = b + p.step_inputs * kTileRows;
  _tile_loadd(4, b, kLineBytes);
  if constexpr (R > 1) _tile_loadd(5, second, kLineBytes);
  if constexpr (kTiles == 2) {
    _tile_loadd(6, b + p.tile_inputs * kTileRows, kLineBytes);
    if constexpr (R > 1) _tile_loadd(7, second + p.tile_inputs * kTileRows, kLineBytes);
  }
}

template <int R>
ME_INLINE void store_products(int32_t (*products)[kTileFloats]) {
  _tile_stored(0, products[0], kLineBytes);
  if constexpr (R > 1) _tile_stored(1, products[1], kLineBytes);
}

template <int R>
ME_INLINE void zero_products() {
  _tile_zero(0);
  if constexpr (R > 1) _tile_zero(1);
}

// products[kGroups][R] = one tile of tokens times R row blocks, one step. `meanwhile(0)` to
// `meanwhile(3)` are spread over it.
template <int R, int kTiles, int kGroups, typename Meanwhile>
ME_INLINE void multiply(const Product& p, const int8_t* a, const int8_t* b,
                        int32_t (*products)[kPair][kTileFloats], const Meanwhile& meanwhile) {
  const long stride = static_cast<long>(p.x.stride);
  zero_products<R>();
  _tile_stream_loadd(2, a, stride);
  if constexpr (kTiles == 0) load_weights<R, 0>(p, b);
  _tile_dpbssd(0, 2, 4);
  meanwhile(0);
  if constexpr (R > 1) _tile_dpbssd(1, 2, 5);
  meanwhile(1);
  if constexpr (kTiles == 2) {
    if constexpr (kGroups == 2) {
      store_products<R>(products[0]);
      zero_products<R>();
    }
    _tile_stream_loadd(3, a + p.tile_inputs, stride);
    _tile_dpbssd(0, 3, 6);
    meanwhile(2);
    if constexpr (R > 1) _tile_dpbssd(1, 3, 7);
  } else {
    meanwhile(2);
    for (size_t i = 1; i < p.tiles; ++i) {
      const int8_t* tile = b + i * p.tile_inputs * kTileRows;
      _tile_stream_loadd(3, a + i * p.tile_inputs, stride);
      _tile_loadd(6, tile, kLineBytes);
      _tile_dpbssd(0, 3, 6);
      if constexpr (R > 1) {
        _tile_loadd(7, tile + p.step_inputs * kTileRows, kLineBytes);
        _tile_dpbssd(1, 3, 7);
      }
    }
  }
  meanwhile(3);
  store_products<R>(products[kGroups - 1]);
}

// What is to be done with the products of one tile of tokens, R row blocks and a step.
template <int R, int kGroups>
struct Sums {
  const int32_t (*products)[kPair][kTileFloats];
  __m512 row_scale[kGroups][R];
  const float* token_scale;  // [tokens][token_stride]
  size_t token_stride;
  float (*sums)[kPair][kTileRows];
  float* out;  // [tokens][out_stride]
  size_t out_stride;
  __m512 final_scale;

  ME_INLINE void ask_for_out() const {
    for (size_t t = 0; t < kTileTokens; ++t) {
      for (size_t r = 0; r < R; ++r) {
        __builtin_prefetch(out + t * out_stride + r * kTileRows, 1, 3);
      }
    }
  }

  // Adds a quarter of the tokens. The first step's sums start at zero, the last one's are scaled.
  template <bool kFirst, bool kLast>
  ME_INLINE void add(size_t quarter) const {
    constexpr size_t kTokens = kTileTokens / 4;
    finish_writes();  // keeps it between the products that it was written between
    ME_UNROLL
    for (size_t i = 0; i < kTokens; ++i) {
      const size_t t = quarter * kTokens + i;
      __m512 sum[R];
      ME_UNROLL
      for (size_t r = 0; r < R; ++r) {
        sum[r] = kFirst ? _mm512_setzero_ps() : _mm512_load_ps(sums[t][r]);
      }
      ME_UNROLL
      for (size_t g = 0; g < kGroups; ++g) {
        const __m512 scale = _mm512_set1_ps(token_scale[t * token_stride + g]);
        ME_UNROLL
        for (size_t r = 0; r < R; ++r) {
          const __m512 dot = _mm512_cvtepi32_ps(_mm512_load_si512(products[g][r] + t * kTileRows));
          sum[r] = _mm512_fmadd_ps(_mm512_mul_ps(row_scale[g][r], scale), dot, sum[r]);
        }
      }
      ME_UNROLL
      for (size_t r = 0; r < R; ++r) {
        if constexpr (kLast) {
          _mm512_store_ps(out + t * out_stride + r * kTileRows, _mm512_mul_ps(sum[r], final_scale));
        } else {
          _mm512_store_ps(sums[t][r], sum[r]);
        }
      }
    }
    finish_writes();
  }
};

// A step of R row blocks and a span of tokens. The order of the work: all tiles of a step, all steps
// of a span, all spans of the row blocks.
struct Place {
  size_t block;
  size_t token, tiles;  // of the span
  size_t step;
  size_t slot;    // of its weights in Buffers::weights
  bool unpacked;  // they are there since an earlier span
};

// At least 16 tokens. Where they are no multiple of 16, a last span of one tile starts inside the one
// before: what both cover is computed twice, with the same bits.
void start_span(const Product& p, Place* at) {
  at->step = 0;
  at->tiles = smaller((p.tokens - at->token) / kTileTokens, p.span_tiles);
  if (at->tiles > 0) return;
  at->token = p.tokens - kTileTokens;
  at->tiles = 1;
}

template <int R>
ME_INLINE Place next(const Product& p, const Place& at) {
  Place n = at;
  n.slot = at.slot + 1 == p.slots ? 0 : at.slot + 1;
  if (++n.step < p.steps) return n;
  n.token += n.tiles * kTileTokens;
  if (n.token == p.tokens) {
    n.token = 0;
    n.block += R;
    n.unpacked = false;
  } else if (p.steps < p.slots) {
    n.slot = at.slot + (at.slot + 1 < p.steps ? p.slots : 0) - (p.steps - 1);
    n.unpacked = true;
  }
  start_span(p, &n);
  return n;
}

// Row blocks [block, end), a multiple of R.
template <int R, int kTiles, int kGroups>
void multiply_blocks(const Product& p, size_t block, size_t end, Buffers& buffers) {
  const size_t scale_bytes = p.w.shape.group_scale_bytes();
  const size_t row_units = p.step_inputs / p.unit_inputs;
  const auto slot = [&](const Place& at) {
    return buffers.weights + at.slot * (kPair * p.step_inputs * kTileRows);
  };
  // Units [unit, last) of the step's R row blocks.
  const auto unpack = [&](const Place& at, size_t unit, size_t last) {
    while (unit < last) {
      const size_t r = R > 1 && unit >= row_units ? 1 : 0, first = unit - r * row_units;
      const size_t n = smaller(last - unit, row_units - first);
      const uint8_t* from = p.w.data + (at.block + r) * p.w.row_block_bytes + scale_bytes +
                            (at.step * row_units + first) * p.unit_bytes;
      p.unpack(from, from + R * p.w.row_block_bytes, n * p.unit_inputs,
               slot(at) + (r * row_units + first) * p.unit_inputs * kTileRows);
      unit += n;
    }
  };
  const size_t units = R * row_units;
  Sums<R, kGroups> s;
  s.token_stride = p.x.group_stride;
  s.out_stride = p.out_stride;
  s.final_scale = _mm512_set1_ps(p.w.scale);
  // The products of a tile are added while the next one's are computed.
  enum { kNone, kOnly, kFirst, kMiddle, kLast } waiting = kNone;
  const auto with_waiting = [&](const auto& f) {
    switch (waiting) {
      case kNone:
        return f([](size_t) {});
      case kOnly:
        return f([&](size_t i) { s.template add<true, true>(i); });
      case kFirst:
        return f([&](size_t i) { s.template add<true, false>(i); });
      case kMiddle:
        return f([&](size_t i) { s.template add<false, false>(i); });
      case kLast:
        return f([&](size_t i) { s.template add<false, true>(i); });
    }
  };
  size_t turn = 0;
  Place at{block, 0, 0, 0, 0, false};
  start_span(p, &at);
  unpack(at, 0, units);
  while (at.block < end) {
    const Place ahead = next<R>(p, at);
    const size_t units_ahead = ahead.block < end && !ahead.unpacked ? units : 0;
    size_t unit = 0;
    finish_writes();
    if constexpr (kTiles > 0) load_weights<R, kTiles>(p, slot(at));
    for (size_t tile = 0; tile < at.tiles; ++tile, ++turn) {
      const size_t token = at.token + tile * kTileTokens;
      const size_t last_unit = (tile + 1) * units_ahead / at.tiles;
      int32_t(*products)[kPair][kTileFloats] = buffers.products[turn % 2];
      with_waiting([&](const auto& add_quarter) {
        multiply<R, kTiles, kGroups>(p, p.x.q + token * p.x.stride + at.step * p.step_inputs,
                                     slot(at), products, [&](size_t i) {
                                       add_quarter(i);
                                       if (i == 1) unpack(ahead, unit, last_unit);
                                     });
      });
      unit = last_unit;
      if (tile == 0) {
        for (size_t g = 0; g < kGroups; ++g) {
          for (size_t r = 0; r < R; ++r) {
            s.row_scale[g][r] = _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(
                p.w.data + (at.block + r) * p.w.row_block_bytes +
                (at.step * kGroups + g) * kTileRows * sizeof(uint16_t))));
          }
        }
      }
      s.products = products;
      s.token_scale = p.x.scale + token * p.x.group_stride + at.step * kGroups;
      s.sums = buffers.sums[tile];
      s.out = p.out + token * p.out_stride + at.block * kTileRows;
      if (at.step + 2 == p.steps) s.ask_for_out();
      if (at.step == 0) {
        waiting = p.steps == 1 ? kOnly : kFirst;
      } else {
        waiting = at.step + 1 == p.steps ? kLast : kMiddle;
      }
    }
    at = ahead;
  }
  with_waiting([](const auto& add_quarter) {
    for (size_t i = 0; i < 4; ++i) add_quarter(i);
  });
}

template <int kTiles, int kGroups>
void multiply_tokens(const Product& p, size_t begin, size_t end, Buffers& buffers) {
  const size_t pairs = begin + (end - begin) / kPair * kPair;
  configure(p.tile_inputs);
  if (begin < pairs) multiply_blocks<kPair, kTiles, kGroups>(p, begin, pairs, buffers);
  if (pairs < end) multiply_blocks<1, kTiles, kGroups>(p, pairs, end, buffers);
  _tile_release();
}

void multiply_tokens(Unpack* unpack, size_t unit_inputs, size_t unit_bytes, const Matrix& w,
                     size_t begin, size_t end, const QuantisedRows& x, size_t tokens, float* out,
                     size_t out_stride) {
  Buffers buffers;  // not initialised
  const size_t tiles = tiles_of(w.shape.group);
  const bool two_groups = tiles == 1 && w.shape.groups() % 2 == 0;
  const size_t step_inputs = w.shape.group * (two_groups ? kStepGroups : 1);
  const size_t steps = w.shape.cols / step_inputs;
  const size_t slots = kWeightBytes / (kPair * step_inputs * kTileRows);
  const Product p = {.unpack = unpack,
                     .unit_inputs = unit_inputs,
                     .unit_bytes = unit_bytes,
                     .w = w,
                     .x = x,
                     .tokens = tokens,
                     .tiles = tiles,
                     .tile_inputs = w.shape.group / tiles,
                     .steps = steps,
                     .step_inputs = step_inputs,
                     .slots = slots,
                     .span_tiles = steps < slots ? kSpanTiles : kLongSpanTiles,
                     .out = out,
                     .out_stride = out_stride};
  if (two_groups) {
    multiply_tokens<2, 2>(p, begin, end, buffers);
  } else if (tiles == 1) {
    multiply_tokens<1, 1>(p, begin, end, buffers);
  } else if (tiles == 2) {
    multiply_tokens<2, 1>(p, begin, end, buffers);
  } else {
    multiply_tokens<0, 1>(p, begin, end, buffers);
  }
}

uint64_t peak_i8(size_t rounds) {
  configure(kTileInputs);
  for (size_t i = 0; i < rounds; ++i) {
    _tile_dpbssd(0, 2, 4);
    _tile_dpbssd(1, 2, 5);
    _tile_dpbssd(0, 3, 6);
    _tile_dpbssd(1, 3, 7);
  }
  _tile_release();
  return rounds * 4 * kTileTokens * kTileRows * kTileInputs;
}

// Fewer tokens are better served by the table of AVX-512 VNNI. In small groups a tile product does little
// for the additions that follow it.
constexpr size_t least_tokens(size_t group) {
  return group < kTileInputs ? 2 * kTileTokens : kTileTokens;
}

// kKernel: the product's place in the table, for few tokens.
template <WeightType kType, MatmulQuantised* KernelTable::*kKernel>
void matmul(const Matrix& w, size_t begin, size_t end, const QuantisedRows& x, size_t tokens,
            float* out, size_t out_stride) {
  if (tokens < least_tokens(w.shape.group)) {
    (avx512vnni_table()->*kKernel)(w, begin, end, x, tokens, out, out_stride);
  } else {
    multiply_tokens(unpack<kType>, Planes<kType>::kInputs, Planes<kType>::kBytes, w, begin, end, x,
                    tokens, out, out_stride);
  }
}

}  // namespace

const KernelTable* amx_table() {
  if (avx512vnni_table() == nullptr) return nullptr;
  static const KernelTable table = [] {
    KernelTable t = *avx512vnni_table();
    t.isa = "amx";
    t.matmul_i8_i8 = matmul<WeightType::int8, &KernelTable::matmul_i8_i8>;
    t.matmul_i6_i8 = matmul<WeightType::int6, &KernelTable::matmul_i6_i8>;
    t.matmul_i5_i8 = matmul<WeightType::int5, &KernelTable::matmul_i5_i8>;
    t.matmul_i4_i8 = matmul<WeightType::int4, &KernelTable::matmul_i4_i8>;
    t.matmul_i3_i8 = matmul<WeightType::int3, &KernelTable::matmul_i3_i8>;
    t.matmul_i2_i8 = matmul<WeightType::int2, &KernelTable::matmul_i2_i8>;
    t.mamba2_dual_prepare = mamba2_dual_prepare;
    t.mamba2_dual = mamba2_dual;
    t.peak_i8 = peak_i8;
    return t;
  }();
  return &table;
}

}  // namespace mamba_edge

#else

const mamba_edge::KernelTable* mamba_edge::amx_table() { return nullptr; }

#endif
