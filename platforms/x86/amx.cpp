// Kernels for x86 with AMX tiles and int8 products: products of quantised matrices with many tokens.
// All else, and few tokens, is the table of AVX-512 VNNI.
//
// One tile product takes 16 tokens times K inputs times 16 rows, exact in int32: A is loaded from the
// quantised rows as they lie, B from a copy of the weights with their zero taken off, C goes through
// memory to the float sums. K is the largest part of a group that fits in a tile.
//
// With groups of 64 the vector units are what limits. Every product of 16 cycles leaves 16 rows of
// sums that are to be converted, scaled and added, 48 instructions, for which there is one port as
// long as the tile unit, which takes the other, is at work (measured on Sapphire Rapids: 19 cycles
// of its clock for the 48 alone, 12 for the product alone, 37 for both at once). So all else is kept
// off the vector units and the loads few:
//
//   The zero is taken off once per row block and call, not off every product.
//   Two row blocks share the tokens' tiles and scales; all tokens share the weights' tiles.
//   The sums of all tokens stay in the first cache.
//
// The float operations on one row and token are those of platforms/simd/kernels_impl.h, in the same
// order, so tokens have the same bits here and there.
#include "platforms/tables.h"

// Clang before 17 spells two of the names without the second underscore.
#if (defined(__AMX_TILE__) || defined(__AMXTILE__)) &&                         \
    (defined(__AMX_INT8__) || defined(__AMXINT8__)) && defined(__AVX512F__) && \
    defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>

#include <type_traits>

#include "platforms/simd/planes.h"
#include "platforms/x86/registers.h"

namespace mamba_edge {
namespace {

constexpr size_t kTileTokens = 16;
constexpr size_t kTileInputs = 64;
constexpr size_t kTileFloats = kTileTokens * kTileRows;
constexpr size_t kMaxBlocks = 2;    // row blocks at a time
constexpr size_t kMaxTokens = 128;  // at a time: their sums stay in the first cache
constexpr size_t kGroupsAhead = 8;  // whose weights are asked for

// Layout of `ldtilecfg`: Intel's manual, volume 1, section 18.2.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

// The compilers' intrinsics do not say which memory they read.
ME_INLINE void finish_writes() { __asm__ volatile("" ::: "memory"); }

// Tiles 0 to 3 are two sets of C for two row blocks, 4 and 5 are A, 6 and 7 B.
void configure(size_t inputs) {
  TileConfig config;
  for (size_t i = 0; i < 4; ++i) {
    config.row_bytes[i] = kTileRows * 4;
    config.rows[i] = kTileTokens;
  }
  for (size_t i = 4; i < 6; ++i) {
    config.row_bytes[i] = static_cast<uint16_t>(inputs);
    config.rows[i] = kTileTokens;
  }
  for (size_t i = 6; i < 8; ++i) {
    config.row_bytes[i] = kLineBytes;
    config.rows[i] = static_cast<uint8_t>(inputs / kStepInputs);
  }
  __asm__ volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// A group is this many tiles of equal size: at most four, as it is a multiple of 16 and at most 256.
size_t tiles_of(size_t group) {
  size_t n = (group + kTileInputs - 1) / kTileInputs;
  while (group % (n * kStepInputs) != 0) ++n;
  return n;
}

// ---- weights without their zero: [input / 4][16 rows][4] ----

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
void unpack(const uint8_t* w, size_t inputs, int8_t* out) {
  using Unit = Planes<kType>;
  for (size_t i = 0; i < inputs; i += Unit::kInputs, w += Unit::kBytes) {
    unpack_steps<kType, 0>(w, out);
    if constexpr (Unit::kParts > 1) unpack_steps<kType, 1>(w, out);
    out += Unit::kInputs * kTileRows;
  }
}
using Unpack = void(const uint8_t* w, size_t inputs, int8_t* out);

// ---- one group of R row blocks times some tiles of tokens ----

struct Buffers {
  alignas(64) int8_t weights[2][kMaxBlocks][kMaxGroup * kTileRows];
  alignas(64) int32_t products[2][kMaxBlocks * kTileFloats];
  alignas(64) float sums[kMaxTokens * kMaxBlocks * kTileRows];  // [token][R][16]
};

struct Group {
  const int8_t* weights;  // [R][kMaxGroup * 16]
  size_t inputs;          // of a tile
  size_t tiles;           // of a group
  const int8_t* q;        // of the first token
  size_t q_stride;
  const float* scale;  // of the first token
  size_t scale_stride;
};

// Tiles 6 and 7: the same tile of R row blocks, or, where one row block has two tiles, both.
template <int R, int kTiles>
ME_INLINE void load_weights(const int8_t* weights, size_t tile_bytes) {
  _tile_loadd(6, weights, kLineBytes);
  if constexpr (R > 1) _tile_loadd(7, weights + kMaxGroup * kTileRows, kLineBytes);
  if constexpr (R == 1 && kTiles == 2) _tile_loadd(7, weights + tile_bytes, kLineBytes);
}

// Starts a product: C tiles 2 * kSet and 2 * kSet + 1. The weights of a group of one tile, or of two
// in one row block, are there already; of more (kTiles 0) they are loaded.
template <int kSet, int R, int kTiles>
ME_INLINE void multiply(const Group& group, size_t token) {
  const long stride = static_cast<long>(group.q_stride);
  const int8_t* a = group.q + token * group.q_stride;
  const int8_t* b = group.weights;
  if constexpr (kSet == 0) {
    _tile_zero(0);
    if constexpr (R > 1) _tile_zero(1);
  } else {
    _tile_zero(2);
    if constexpr (R > 1) _tile_zero(3);
  }
  if constexpr (kTiles == 2) {
    static_assert(R == 1);
    _tile_loadd(4, a, stride);
    _tile_loadd(5, a + group.inputs, stride);
    if constexpr (kSet == 0) {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(0, 5, 7);
    } else {
      _tile_dpbssd(2, 4, 6);
      _tile_dpbssd(2, 5, 7);
    }
    return;
  }
  for (size_t i = 0; i < (kTiles == 1 ? 1 : group.tiles); ++i) {
    if constexpr (kTiles == 0) load_weights<1, 1>(b, 0);
    if constexpr (kSet == 0) {
      _tile_loadd(4, a, stride);
      _tile_dpbssd(0, 4, 6);
      if constexpr (R > 1) _tile_dpbssd(1, 4, 7);
    } else {
      _tile_loadd(5, a, stride);
      _tile_dpbssd(2, 5, 6);
      if constexpr (R > 1) _tile_dpbssd(3, 5, 7);
    }
    a += group.inputs;
    b += group.inputs * kTileRows;
  }
}

template <int kSet, int R>
ME_INLINE void store(int32_t* products) {
  if constexpr (kSet == 0) {
    _tile_stored(0, products, kLineBytes);
    if constexpr (R > 1) _tile_stored(1, products + kTileFloats, kLineBytes);
  } else {
    _tile_stored(2, products, kLineBytes);
    if constexpr (R > 1) _tile_stored(3, products + kTileFloats, kLineBytes);
  }
}

template <int R>
ME_INLINE void add_scaled(const Group& group, const __m512* row_scale, size_t token,
                          const int32_t* products, float* sums) {
  const float* scale = group.scale + token * group.scale_stride;
  sums += token * R * kTileRows;
  ME_UNROLL
  for (size_t t = 0; t < kTileTokens; ++t, scale += group.scale_stride) {
    const __m512 token_scale = _mm512_set1_ps(*scale);
    ME_UNROLL
    for (size_t r = 0; r < R; ++r) {
      float* sum = sums + (t * R + r) * kTileRows;
      const __m512 dot =
          _mm512_cvtepi32_ps(_mm512_load_si512(products + r * kTileFloats + t * kTileRows));
      _mm512_store_ps(
          sum, _mm512_fmadd_ps(_mm512_mul_ps(row_scale[r], token_scale), dot, _mm512_load_ps(sum)));
    }
  }
}

// A round starts the products of one tile, stores those of the tile before, and adds those of the
// one before that, so that none of the three waits for another.
template <int R, int kTiles>
ME_INLINE void add_products(const Group& group, const __m512* row_scale, size_t tokens,
                            Buffers& buffers) {
  if constexpr (kTiles != 0) load_weights<R, kTiles>(group.weights, group.inputs * kTileRows);
  const auto round = [&](auto set, size_t t) {
    constexpr int kSet = set();
    if (t < tokens) multiply<kSet, R, kTiles>(group, t);
    if (t >= kTileTokens && t < tokens + kTileTokens)
      store<1 - kSet, R>(buffers.products[1 - kSet]);
    if (t >= 2 * kTileTokens) {
      add_scaled<R>(group, row_scale, t - 2 * kTileTokens, buffers.products[kSet], buffers.sums);
    }
  };
  for (size_t t = 0; t < tokens + 2 * kTileTokens; t += 2 * kTileTokens) {
    round(std::integral_constant<int, 0>{}, t);
    if (t + kTileTokens < tokens + 2 * kTileTokens) {
      round(std::integral_constant<int, 1>{}, t + kTileTokens);
    }
  }
}

// ---- R row blocks times some tiles of tokens ----

template <int R>
void multiply_rows(Unpack* unpack, const Matrix& w, size_t block, const QuantisedRows& x,
                   size_t first, size_t tokens, float* out, size_t out_stride, Buffers& buffers) {
  const size_t group = w.shape.group, groups = w.shape.groups();
  const size_t group_bytes = group * kTileRows * properties(w.shape.type).bits / 8;
  const uint8_t* rows = w.data + block * w.row_block_bytes;
  for (size_t i = 0; i < tokens * R * kTileRows; i += kTileRows) {
    _mm512_store_ps(buffers.sums + i, _mm512_setzero_ps());
  }
  const auto unpack_group = [&](size_t g) {
    const bool ends = g + kGroupsAhead >= groups;
    const size_t ahead = ends ? g + kGroupsAhead - groups : g + kGroupsAhead;
    for (size_t r = 0; r < R; ++r) {
      const uint8_t* weights = rows + r * w.row_block_bytes + w.shape.group_scale_bytes();
      const uint8_t* next = weights + (ends ? R * w.row_block_bytes : 0) + ahead * group_bytes;
      for (size_t i = 0; i < group_bytes; i += kLineBytes) __builtin_prefetch(next + i, 0, 2);
      unpack(weights + g * group_bytes, group, buffers.weights[g % 2][r]);
    }
    finish_writes();
  };
  Group s;
  s.tiles = tiles_of(group);
  s.inputs = group / s.tiles;
  s.q_stride = x.stride;
  s.scale_stride = x.group_stride;
  unpack_group(0);
  for (size_t g = 0; g < groups; ++g) {
    __m512 row_scale[R];
    for (size_t r = 0; r < R; ++r) {
      row_scale[r] = _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(
          rows + r * w.row_block_bytes + g * kTileRows * sizeof(uint16_t))));
    }
    s.weights = buffers.weights[g % 2][0];
    s.q = x.q + first * x.stride + g * group;
    s.scale = x.scale + first * x.group_stride + g;
    if (g + 1 < groups) unpack_group(g + 1);
    if (R == 2 || s.tiles == 1) {
      add_products<R, 1>(s, row_scale, tokens, buffers);
    } else if (s.tiles == 2) {
      add_products<1, 2>(s, row_scale, tokens, buffers);
    } else {
      add_products<1, 0>(s, row_scale, tokens, buffers);
    }
  }
  const __m512 scale = _mm512_set1_ps(w.scale);
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t r = 0; r < R; ++r) {
      const __m512 sum = _mm512_load_ps(buffers.sums + (t * R + r) * kTileRows);
      _mm512_store_ps(out + (first + t) * out_stride + (block + r) * kTileRows,
                      _mm512_mul_ps(sum, scale));
    }
  }
}

// `tokens` is a multiple of 16.
ME_INLINE void multiply_blocks(Unpack* unpack, const Matrix& w, size_t begin, size_t end,
                               const QuantisedRows& x, size_t first, size_t tokens, float* out,
                               size_t out_stride, Buffers& buffers) {
  const bool in_pairs = tiles_of(w.shape.group) == 1;
  size_t r = begin;
  for (; in_pairs && r + 2 <= end; r += 2) {
    multiply_rows<2>(unpack, w, r, x, first, tokens, out, out_stride, buffers);
  }
  for (; r < end; ++r) multiply_rows<1>(unpack, w, r, x, first, tokens, out, out_stride, buffers);
}

// At least 16 tokens. Where they are no multiple of 16, the last tile starts inside the one before:
// what both cover is computed twice, with the same bits.
void multiply_tokens(Unpack* unpack, const Matrix& w, size_t begin, size_t end,
                     const QuantisedRows& x, size_t tokens, float* out, size_t out_stride) {
  Buffers buffers;  // not initialised
  configure(w.shape.group / tiles_of(w.shape.group));
  const size_t whole = tokens / kTileTokens * kTileTokens;
  for (size_t t = 0; t < whole; t += kMaxTokens) {
    multiply_blocks(unpack, w, begin, end, x, t, whole - t < kMaxTokens ? whole - t : kMaxTokens,
                    out, out_stride, buffers);
  }
  if (whole < tokens) {
    multiply_blocks(unpack, w, begin, end, x, tokens - kTileTokens, kTileTokens, out, out_stride,
                    buffers);
  }
  _tile_release();
}

// kKernel: the product's place in the table, for few tokens.
template <WeightType kType, MatmulQuantised* KernelTable::*kKernel>
void matmul(const Matrix& w, size_t begin, size_t end, const QuantisedRows& x, size_t tokens,
            float* out, size_t out_stride) {
  if (tokens < kTileTokens) {
    (avx512vnni_table()->*kKernel)(w, begin, end, x, tokens, out, out_stride);
  } else {
    multiply_tokens(unpack<kType>, w, begin, end, x, tokens, out, out_stride);
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
    return t;
  }();
  return &table;
}

}  // namespace mamba_edge

#else

const mamba_edge::KernelTable* mamba_edge::amx_table() { return nullptr; }

#endif
