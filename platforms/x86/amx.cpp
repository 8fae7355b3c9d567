// Kernels for x86 with AMX tiles and int8 products: products of quantised matrices with many tokens.
// All else, and few tokens, is the table of AVX-512 VNNI.
//
// A tile product takes 16 tokens times K inputs times 16 rows, exact in int32: A is loaded from the
// quantised rows as they lie, and B from the weights as they lie (int8), or from a copy of their
// planes as bytes. Weights keep their zero; the sums that C starts with take it off, one value per
// token and group: minus zero times the sum of the token's inputs. C goes through memory to the
// float sums. K is the largest part of a group that fits in a tile.
//
// The conversion of the sums is what limits. A product of 16 cycles leaves 16 rows of them, which are
// converted, scaled and added by 48 instructions, and while the tile unit is at work only one port
// takes instructions of 512 bits (measured on Sapphire Rapids: a product and 24 such instructions
// take 24 cycles, a product and 48 take 48). A group of 128 inputs is two products for the same 48:
// 0.69 of the tile unit's peak at best, where groups of 64 have 0.34. All else is kept off the
// vector units and out of the way of the loads:
//
//   Two row blocks share the tokens' tiles and scales; all tokens share the weights' tiles.
//   All of a group's work for 64 rows and 64 tokens is done before the next group's: weights, inputs,
//   starting values and output stay in the first cache.
//   The sums of one product are added while the next is computed.
//
// The float operations on one row and token are those of platforms/simd/kernels_impl.h, in the same
// order, so tokens have the same bits here and there.
#include "platforms/tables.h"

// Clang before 17 spells two of the names without the second underscore.
#if (defined(__AMX_TILE__) || defined(__AMXTILE__)) &&                         \
    (defined(__AMX_INT8__) || defined(__AMXINT8__)) && defined(__AVX512F__) && \
    defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>

#include "platforms/simd/planes.h"
#include "platforms/x86/registers.h"

namespace mamba_edge {
namespace {

constexpr size_t kTileTokens = 16;
constexpr size_t kTileInputs = 64;
constexpr size_t kTileFloats = kTileTokens * kTileRows;
constexpr size_t kSpanTiles = 4;    // tiles of tokens at a time
constexpr size_t kSpanBlocks = 4;   // row blocks at a time
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
  __asm__ volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// A group is this many tiles of equal size: at most four, as it is a multiple of 16 and at most 256.
size_t tiles_of(size_t group) {
  size_t n = (group + kTileInputs - 1) / kTileInputs;
  while (group % (n * kStepInputs) != 0) ++n;
  return n;
}

// ---- weights in planes as bytes: [input / 4][16 rows][4] ----

template <WeightType kType, size_t kPart>
ME_INLINE void unpack_steps(const uint8_t* unit, uint8_t* out) {
  __m512i steps[kPartSteps];
  unpack_part<Avx512Registers, kType, kPart>(unit, steps);
  ME_UNROLL
  for (size_t k = 0; k < kPartSteps; ++k) {
    _mm512_store_si512(out + (kPart * kPartSteps + k) * kLineBytes, steps[k]);
  }
}

template <WeightType kType>
void unpack(const uint8_t* w, size_t inputs, uint8_t* out) {
  using Unit = Planes<kType>;
  for (size_t i = 0; i < inputs; i += Unit::kInputs, w += Unit::kBytes) {
    unpack_steps<kType, 0>(w, out);
    if constexpr (Unit::kParts > 1) unpack_steps<kType, 1>(w, out);
    out += Unit::kInputs * kTileRows;
  }
}
using Unpack = void(const uint8_t* w, size_t inputs, uint8_t* out);  // NULL: as they lie

// ---- a span: up to 64 rows times up to 64 tokens ----

struct Buffers {
  alignas(64) uint8_t weights[2][kMaxGroup * kTileRows];  // of a pair of row blocks, unpacked
  alignas(64) int32_t starts[kSpanTiles][kTileFloats];    // of C, for one group
  alignas(64) int32_t products[2][2 * kTileFloats];
};

// What all spans of a call have in common.
struct Product {
  Unpack* unpack;
  const Matrix& w;
  const QuantisedRows& x;
  size_t tiles, tile_inputs;  // of a group
  float* out;
  size_t out_stride;
};

// One tile of tokens times R row blocks times one group: products that are to be added to the output,
// or, of the first group, to be the output.
template <int R>
struct Pending {
  const int32_t* products = nullptr;  // [R][16 tokens][16 rows]; NULL: nothing
  float* out;                         // of the first token and row
  const float* scale;                 // of the first token
  __m512 row_scale[R];
  bool is_first = false;
};

template <int R, bool kFirst>
ME_INLINE void add_scaled(const Product& p, const Pending<R>& pending) {
  const float* scale = pending.scale;
  float* out = pending.out;
  ME_UNROLL
  for (size_t t = 0; t < kTileTokens; ++t, scale += p.x.group_stride, out += p.out_stride) {
    const __m512 token_scale = _mm512_set1_ps(*scale);
    ME_UNROLL
    for (size_t r = 0; r < R; ++r) {
      const __m512 dot =
          _mm512_cvtepi32_ps(_mm512_load_si512(pending.products + r * kTileFloats + t * kTileRows));
      const __m512 before = kFirst ? _mm512_setzero_ps() : _mm512_load_ps(out + r * kTileRows);
      _mm512_store_ps(
          out + r * kTileRows,
          _mm512_fmadd_ps(_mm512_mul_ps(pending.row_scale[r], token_scale), dot, before));
    }
  }
}

template <int R>
ME_INLINE void add_scaled(const Product& p, const Pending<R>& pending) {
  if (pending.is_first) {
    add_scaled<R, true>(p, pending);
  } else {
    add_scaled<R, false>(p, pending);
  }
}

// Weights of R row blocks in tiles: 4 and 5, and of the second half of a group 6 and 7.
template <int R>
ME_INLINE void load_weights(const uint8_t* const* b) {
  _tile_loadd(4, b[0], kLineBytes);
  if constexpr (R > 1) _tile_loadd(5, b[1], kLineBytes);
}
template <int R>
ME_INLINE void load_second_weights(const uint8_t* const* b, size_t offset) {
  _tile_loadd(6, b[0] + offset, kLineBytes);
  if constexpr (R > 1) _tile_loadd(7, b[1] + offset, kLineBytes);
}

// Of one or two tiles (kTiles) the weights are there already; of more (0) they are loaded.
template <int R, int kTiles>
ME_INLINE void multiply(const Product& p, const uint8_t* const* b, const int8_t* a,
                        const int32_t* starts, int32_t* products) {
  const long stride = static_cast<long>(p.x.stride);
  _tile_loadd(0, starts, kLineBytes);
  if constexpr (R > 1) _tile_loadd(1, starts, kLineBytes);
  _tile_loadd(2, a, stride);
  if constexpr (kTiles == 0) load_weights<R>(b);
  _tile_dpbsud(0, 2, 4);
  if constexpr (R > 1) _tile_dpbsud(1, 2, 5);
  if constexpr (kTiles != 1) {
    for (size_t i = 1; i < (kTiles == 0 ? p.tiles : kTiles); ++i) {
      _tile_loadd(3, a + i * p.tile_inputs, stride);
      if constexpr (kTiles == 0) load_second_weights<R>(b, i * p.tile_inputs * kTileRows);
      _tile_dpbsud(0, 3, 6);
      if constexpr (R > 1) _tile_dpbsud(1, 3, 7);
    }
  }
  _tile_stored(0, products, kLineBytes);
  if constexpr (R > 1) _tile_stored(1, products + kTileFloats, kLineBytes);
}

// Weights of group g of a row block. Those of kGroupsAhead groups later are asked for, beyond the end
// of a row block those of the span that is likely to be next.
ME_INLINE const uint8_t* group_weights(const Product& p, size_t block, size_t g, size_t blocks) {
  const MatrixShape& shape = p.w.shape;
  const size_t bytes = shape.group * kTileRows * properties(shape.type).bits / 8;
  const uint8_t* weights = p.w.data + block * p.w.row_block_bytes + shape.group_scale_bytes();
  const size_t ahead = g + kGroupsAhead, groups = shape.groups();
  const uint8_t* far = ahead < groups
                           ? weights + ahead * bytes
                           : weights + blocks * p.w.row_block_bytes + (ahead - groups) * bytes;
  for (size_t i = 0; i < bytes; i += kLineBytes) {
    __builtin_prefetch(far + i, 0, 2);
  }
  return weights + g * bytes;
}

// Row blocks [block, block + blocks), a multiple of R and at most kSpanBlocks, times the tiles of
// tokens that start at first[0], ... first[tiles - 1].
template <int R, int kTiles>
void multiply_span(const Product& p, size_t block, size_t blocks, const size_t* first, size_t tiles,
                   Buffers& buffers) {
  const MatrixShape& shape = p.w.shape;
  const int32_t zero = properties(shape.type).zero();
  const __m512 scale =
      _mm512_set1_ps(p.w.scale);  // a power of two: where it is applied is the same
  Pending<R> pending;
  size_t turn = 0;
  for (size_t g = 0; g < shape.groups(); ++g) {
    for (size_t i = 0; i < tiles; ++i) {
      const int32_t* sum = p.x.sum + first[i] * p.x.group_stride + g;
      ME_UNROLL
      for (size_t t = 0; t < kTileTokens; ++t, sum += p.x.group_stride) {
        _mm512_store_si512(buffers.starts[i] + t * kTileRows, _mm512_set1_epi32(-zero * *sum));
      }
    }
    for (size_t r = 0; r < blocks; r += R) {
      const uint8_t* b[R];
      __m512 row_scale[R];
      for (size_t k = 0; k < R; ++k) {
        b[k] = group_weights(p, block + r + k, g, blocks);
        if (p.unpack != nullptr) {
          p.unpack(b[k], shape.group, buffers.weights[k]);
          b[k] = buffers.weights[k];
        }
        const __m512 own = _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(
            p.w.data + (block + r + k) * p.w.row_block_bytes + g * kTileRows * sizeof(uint16_t))));
        row_scale[k] = _mm512_mul_ps(own, scale);
      }
      finish_writes();
      if constexpr (kTiles >= 1) load_weights<R>(b);
      if constexpr (kTiles == 2) load_second_weights<R>(b, p.tile_inputs * kTileRows);
      for (size_t i = 0; i < tiles; ++i) {
        int32_t* products = buffers.products[turn++ % 2];
        multiply<R, kTiles>(p, b, p.x.q + first[i] * p.x.stride + g * shape.group,
                            buffers.starts[i], products);
        if (pending.products != nullptr) add_scaled(p, pending);
        pending.products = products;
        pending.out = p.out + first[i] * p.out_stride + (block + r) * kTileRows;
        pending.scale = p.x.scale + first[i] * p.x.group_stride + g;
        pending.is_first = g == 0;
        for (size_t k = 0; k < R; ++k) pending.row_scale[k] = row_scale[k];
      }
    }
  }
  add_scaled(p, pending);
}

template <int R>
void multiply_span(const Product& p, size_t block, size_t blocks, const size_t* first, size_t tiles,
                   Buffers& buffers) {
  if (p.tiles == 1) {
    multiply_span<R, 1>(p, block, blocks, first, tiles, buffers);
  } else if (p.tiles == 2) {
    multiply_span<R, 2>(p, block, blocks, first, tiles, buffers);
  } else {
    multiply_span<R, 0>(p, block, blocks, first, tiles, buffers);
  }
}

// At least 16 tokens. Where they are no multiple of 16, a last span of one tile starts inside the one
// before: what both cover is computed twice, with the same bits.
void multiply_tokens(Unpack* unpack, const Matrix& w, size_t begin, size_t end,
                     const QuantisedRows& x, size_t tokens, float* out, size_t out_stride) {
  Buffers buffers;  // not initialised
  const size_t tiles = tiles_of(w.shape.group);
  const Product p = {unpack, w, x, tiles, w.shape.group / tiles, out, out_stride};
  configure(p.tile_inputs);
  for (size_t t = 0; t < tokens;) {
    size_t first[kSpanTiles], n = 0;
    for (; n < kSpanTiles && t + kTileTokens <= tokens; t += kTileTokens) first[n++] = t;
    if (n == 0) {
      first[n++] = tokens - kTileTokens;
      t = tokens;
    }
    for (size_t r = begin; r < end;) {
      const size_t left = end - r, pairs = left < kSpanBlocks ? left / 2 * 2 : kSpanBlocks;
      if (pairs > 0) {
        multiply_span<2>(p, r, pairs, first, n, buffers);
        r += pairs;
      } else {
        multiply_span<1>(p, r++, 1, first, n, buffers);
      }
    }
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
    constexpr bool kInPlace = kType == WeightType::int8;
    multiply_tokens(kInPlace ? nullptr : unpack<kType>, w, begin, end, x, tokens, out, out_stride);
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
