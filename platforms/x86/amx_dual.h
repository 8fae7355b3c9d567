// Mamba-2's scan in the dual form with AMX's products of bfloat16: see Mamba2Dual in platforms/kernels.h.
// Only for the AMX unit.
//
// Everything is a product of tiles, 16 x 32 numbers (A) times 32 x 16 (B), where B holds pairs of
// consecutive inputs side by side. Of a B/C group and 64 tokens, what all its heads share is prepared
// once: C and the transpose of B as A operands, and G = C B^T. Then, for up to 64 channels of a head, with
// l[t] = log2 of the decay from before the first token to after token t:
//
//   y[t]  = 2^l[t] (C[t] H) + sum over s <= t of M[t][s] x[s] + D x[t],  M[t][s] = G[t][s] dt[s] 2^(l[t] - l[s])
//   H'    = 2^l[63] H + B^T (w x),                                       w[s] = dt[s] 2^(l[63] - l[s])
//
// (Dao & Gu 2024, section 6.) No power is of a positive number, so strong decays become zeros, never
// infinities.
#pragma once

#include "platforms/x86/avx512.h"
#include "platforms/x86/tiles.h"

namespace mamba_edge {
namespace {

constexpr size_t kPairInputs = 2;  // of a 32-bit number of an operand
constexpr size_t kDualInputs = kTileSize * kPairInputs;
constexpr size_t kDualTiles = kDualTokens / kTileSize;

// What Mamba2DualPrepare writes, for d_state = n: A operands c [64][n] and b [n][64] in bfloat16, and
// g [64][64] in float, of which the tiles above the diagonal are not written.
template <typename Half, typename Float>
struct DualGroup {
  Half* c;
  Half* b;
  Float* g;
  DualGroup(Float* memory, size_t d_state)
      : c(reinterpret_cast<Half*>(memory + kDualTokens * kDualTokens)),
        b(c + kDualTokens * d_state),
        g(memory) {}
};
using DualGroupOut = DualGroup<uint16_t, float>;
using DualGroupIn = DualGroup<const uint16_t, const float>;

ME_INLINE __m512i float_bits(__m512 v) { return _mm512_castps_si512(v); }

// To the upper halves of 32 bits, by rounding to nearest; what the lower halves hold is no part of it.
ME_INLINE __m512i to_upper(__m512 v) {
  return _mm512_add_epi32(float_bits(v), _mm512_set1_epi32(0x8000));
}

// Pairs (a, b) lane by lane in bfloat16: a in the lower halves.
ME_INLINE __m512i pairs(__m512 a, __m512 b) {
  return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(to_upper(a), 16), to_upper(b));
}

// 32 consecutive numbers in bfloat16.
ME_INLINE __m512i row_of(__m512 first, __m512 second) {
  alignas(64) static constexpr uint16_t kUpper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                      23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                      45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return _mm512_permutex2var_epi16(to_upper(first), _mm512_load_si512(kUpper), to_upper(second));
}

void configure_dual() {
  TileConfig config;
  for (size_t i = 0; i < 8; ++i) {
    config.row_bytes[i] = kLineBytes;
    config.rows[i] = kTileSize;
  }
  load_config(config);
}

// Tiles 0 to 3, two of rows times R of columns, += A [32][32 inputs] B. Tile r of B is `b_apart` numbers
// behind the one before.
template <int R>
ME_INLINE void dual_product(const uint16_t* a, size_t a_stride, const uint16_t* b, size_t b_apart) {
  const long stride = static_cast<long>(a_stride * sizeof(uint16_t));
  _tile_loadd(4, a, stride);
  _tile_loadd(6, b, kLineBytes);
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (R > 1) {
    _tile_loadd(7, b + b_apart, kLineBytes);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_loadd(5, a + kTileSize * a_stride, stride);
  _tile_dpbf16ps(2, 5, 6);
  if constexpr (R > 1) _tile_dpbf16ps(3, 5, 7);
}

// Tiles 0 to 3 in memory: tile (i, r) at p + i * row_apart + r * column_apart, with rows of `stride`.
template <int R>
ME_INLINE void load_sums(const float* p, size_t row_apart, size_t column_apart, size_t stride) {
  const long bytes = static_cast<long>(stride * sizeof(float));
  _tile_loadd(0, p, bytes);
  if constexpr (R > 1) _tile_loadd(1, p + column_apart, bytes);
  _tile_loadd(2, p + row_apart, bytes);
  if constexpr (R > 1) _tile_loadd(3, p + row_apart + column_apart, bytes);
}
template <int R>
ME_INLINE void store_sums(float* p, size_t row_apart, size_t column_apart, size_t stride) {
  const long bytes = static_cast<long>(stride * sizeof(float));
  _tile_stored(0, p, bytes);
  if constexpr (R > 1) _tile_stored(1, p + column_apart, bytes);
  _tile_stored(2, p + row_apart, bytes);
  if constexpr (R > 1) _tile_stored(3, p + row_apart + column_apart, bytes);
}
ME_INLINE void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// On the stack of a caller's thread, too, as DualBuffers.
struct DualPrepareBuffers {
  // B as [64][n]; pairs of tokens of it, [32][n]; pairs of states of it, [n / 2][64].
  alignas(64) uint16_t b_rows[kDualTokens * kMaxDualStates];
  alignas(64) uint32_t by_token[kDualTokens / kPairInputs * kMaxDualStates];
  alignas(64) uint32_t b_pairs[kMaxDualStates / kPairInputs * kDualTokens];
};
static_assert(sizeof(DualPrepareBuffers) <= size_t{112} << 10);

void mamba2_dual_prepare(const Mamba2DualPrepareArgs& args) {
  const size_t n = args.d_state;
  const DualGroupOut out(args.group, n);
  DualPrepareBuffers f;  // not initialised
  for (size_t t = 0; t < kDualTokens; t += kPairInputs) {
    for (size_t i = 0; i < n; i += kDualInputs) {
      __m512 low[kPairInputs], high[kPairInputs];
      for (size_t k = 0; k < kPairInputs; ++k) {
        const float* b = args.b + (t + k) * args.bc_stride + i;
        const float* c = args.c + (t + k) * args.bc_stride + i;
        low[k] = _mm512_load_ps(b);
        high[k] = _mm512_load_ps(b + kLanes);
        _mm512_store_si512(f.b_rows + (t + k) * n + i, row_of(low[k], high[k]));
        _mm512_store_si512(out.c + (t + k) * n + i,
                           row_of(_mm512_load_ps(c), _mm512_load_ps(c + kLanes)));
      }
      uint32_t* pair = f.by_token + t / kPairInputs * n + i;
      _mm512_store_si512(pair, pairs(low[0], low[1]));
      _mm512_store_si512(pair + kLanes, pairs(high[0], high[1]));
    }
  }
  finish_writes();
  // Transposed by gathering columns, which for all heads together is cheap enough.
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i rows = _mm512_mullo_epi32(lane, _mm512_set1_epi32(static_cast<int>(n)));
  for (size_t i = 0; i < n; ++i) {
    for (size_t k = 0; k < kDualTokens / kDualInputs; ++k) {
      _mm512_store_si512(out.b + i * kDualTokens + k * kDualInputs,
                         _mm512_i32gather_epi32(rows, f.by_token + k * kTileSize * n + i, 4));
    }
  }
  const __m512i half_rows = _mm512_srli_epi32(rows, 1);
  const auto* states = reinterpret_cast<const uint32_t*>(f.b_rows);  // [64][n / 2]
  for (size_t i = 0; i < n / kPairInputs; ++i) {
    for (size_t t = 0; t < kDualTokens; t += kTileSize) {
      _mm512_store_si512(f.b_pairs + i * kDualTokens + t,
                         _mm512_i32gather_epi32(half_rows, states + t * (n / kPairInputs) + i, 4));
    }
  }
  finish_writes();
  configure_dual();
  constexpr long kRow = kDualTokens * sizeof(float);
  for (size_t t = 0; t < kDualTokens; t += kTileSize) {
    for (size_t s = 0; s <= t; s += kTileSize) {
      _tile_zero(0);
      for (size_t i = 0; i < n; i += kDualInputs) {
        _tile_loadd(4, out.c + t * n + i, static_cast<long>(n * sizeof(uint16_t)));
        _tile_loadd(6, f.b_pairs + i / kPairInputs * kDualTokens + s, kRow);
        _tile_dpbf16ps(0, 4, 6);
      }
      _tile_stored(0, out.g + t * kDualTokens + s, kRow);
    }
  }
  _tile_release();
}

// What a head's 64 tokens and up to 64 channels need on the way.
struct DualBuffers {
  alignas(64) uint16_t m[kDualTokens][kDualTokens];
  // B operands: x, w x, and the state before.
  alignas(64) uint16_t x[kMaxDualBlocks][kDualTokens / kPairInputs][kDualInputs];
  alignas(64) uint16_t w_x[kMaxDualBlocks][kDualTokens / kPairInputs][kDualInputs];
  alignas(64) uint16_t h[kMaxDualBlocks][kMaxDualStates / kPairInputs][kDualInputs];
  alignas(64) float sums[2][kMaxDualBlocks / 2][kTileSize][kTileSize];
  alignas(64) float log_decay[kDualTokens];  // l
  alignas(64) float decay[kDualTokens];      // 2^l
  alignas(64) float dt[kDualTokens];
  alignas(64) float w[kDualTokens];
};
static_assert(sizeof(DualBuffers) <= size_t{64} << 10);  // on the stack of a caller's thread, too

ME_INLINE __m512 power_of_two(__m512 x) { return Avx512::decay(_mm512_set1_ps(1.0f), x); }

void dual_decays(const Mamba2DualArgs& args, DualBuffers& f) {
  const float rate = args.a * kLog2E;
  double sum = 0;
  for (size_t t = 0; t < kDualTokens; ++t) {
    f.dt[t] = args.dt[t * args.dt_stride];
    const float step = f.dt[t] * rate;
    sum += step < kLeastLogDecay ? kLeastLogDecay : step;  // NaN stays
    f.log_decay[t] = static_cast<float>(sum);
  }
  const __m512 last = _mm512_set1_ps(f.log_decay[kDualTokens - 1]);
  for (size_t t = 0; t < kDualTokens; t += kLanes) {
    const __m512 l = _mm512_load_ps(f.log_decay + t);
    _mm512_store_ps(f.decay + t, power_of_two(l));
    _mm512_store_ps(f.w + t,
                    _mm512_mul_ps(_mm512_load_ps(f.dt + t), power_of_two(_mm512_sub_ps(last, l))));
  }
}

// m: G times dt and the decay from s to t, zero above the diagonal. In a tile below the diagonal the decay is
// that from s to the tile's first token times that from there to t.
void dual_mixture(const float* g, DualBuffers& f) {
  alignas(64) float from_first[kTileSize];
  for (size_t tile = 0; tile < kDualTiles; ++tile) {
    const size_t first = tile * kTileSize;
    const __m512 at_first = _mm512_set1_ps(f.log_decay[first]);
    _mm512_store_ps(from_first,
                    power_of_two(_mm512_sub_ps(_mm512_load_ps(f.log_decay + first), at_first)));
    __m512 to_first[kDualTiles];
    for (size_t k = 0; k < tile; ++k) {
      const __m512 l = _mm512_load_ps(f.log_decay + k * kLanes);
      to_first[k] = _mm512_mul_ps(power_of_two(_mm512_sub_ps(at_first, l)),
                                  _mm512_load_ps(f.dt + k * kLanes));
    }
    const __m512 l = _mm512_load_ps(f.log_decay + first), dt = _mm512_load_ps(f.dt + first);
    for (size_t i = 0; i < kTileSize; ++i) {
      const size_t t = first + i;
      const float* row = g + t * kDualTokens;
      const __m512 factor = _mm512_set1_ps(from_first[i]);
      __m512 v[kDualTiles];
      for (size_t k = 0; k < tile; ++k) {
        v[k] = _mm512_mul_ps(_mm512_mul_ps(_mm512_load_ps(row + k * kLanes), to_first[k]), factor);
      }
      const auto until_t = static_cast<__mmask16>((2u << i) - 1);
      const __m512 decay = power_of_two(_mm512_sub_ps(_mm512_set1_ps(f.log_decay[t]), l));
      v[tile] = _mm512_maskz_mul_ps(until_t, _mm512_mul_ps(decay, dt), _mm512_load_ps(row + first));
      if (tile % 2 == 0) v[tile + 1] = _mm512_setzero_ps();
      for (size_t k = 0; k <= tile; k += 2) {
        _mm512_store_si512(f.m[t] + k * kLanes, row_of(v[k], v[k + 1]));
      }
    }
  }
}

// x and w x of all blocks.
ME_INLINE void dual_inputs(const Mamba2DualArgs& args, DualBuffers& f) {
  for (size_t s = 0; s < kDualTokens; s += kPairInputs) {
    const float* x = args.x + s * args.x_stride;
    const __m512 w0 = _mm512_set1_ps(f.w[s]), w1 = _mm512_set1_ps(f.w[s + 1]);
    for (size_t i = 0; i < args.blocks; ++i) {
      const __m512 x0 = _mm512_load_ps(x + i * kLanes);
      const __m512 x1 = _mm512_load_ps(x + args.x_stride + i * kLanes);
      _mm512_store_si512(f.x[i][s / kPairInputs], pairs(x0, x1));
      _mm512_store_si512(f.w_x[i][s / kPairInputs],
                         pairs(_mm512_mul_ps(x0, w0), _mm512_mul_ps(x1, w1)));
    }
  }
}

// h from the state, which then decays over all tokens.
ME_INLINE void dual_state(const Mamba2DualArgs& args, DualBuffers& f) {
  const __m512 decay = _mm512_set1_ps(f.decay[kDualTokens - 1]);
  for (size_t i = 0; i < args.blocks; ++i) {
    float* state = args.state + i * args.d_state * kLanes;
    for (size_t n = 0; n < args.d_state; n += kPairInputs, state += kPairInputs * kLanes) {
      const __m512 h0 = _mm512_load_ps(state), h1 = _mm512_load_ps(state + kLanes);
      _mm512_store_si512(f.h[i][n / kPairInputs], pairs(h0, h1));
      _mm512_store_ps(state, _mm512_mul_ps(h0, decay));
      _mm512_store_ps(state + kLanes, _mm512_mul_ps(h1, decay));
    }
  }
}

// Blocks [block, block + R): y of all tokens, then the new state.
template <int R>
void dual_blocks(const Mamba2DualArgs& args, const DualGroupIn& group, DualBuffers& f,
                 size_t block) {
  const size_t n_state = args.d_state;
  constexpr size_t kBothTiles = 2 * kTileSize;
  constexpr size_t kTile = kTileSize * kTileSize;  // numbers
  const size_t x_apart = sizeof(f.x[0]) / sizeof(uint16_t),
               h_apart = sizeof(f.h[0]) / sizeof(uint16_t);
  float* sums = f.sums[0][0][0];
  constexpr size_t kSumsApart = sizeof(f.sums[0]) / sizeof(float);
  __m512 d[R];
  for (size_t r = 0; r < R; ++r) d[r] = _mm512_load_ps(args.d + (block + r) * kLanes);
  for (size_t t = 0; t < kDualTokens; t += kBothTiles) {
    zero_sums();
    for (size_t n = 0; n < n_state; n += kDualInputs) {
      dual_product<R>(group.c + t * n_state + n, n_state, f.h[block][n / kPairInputs], h_apart);
    }
    store_sums<R>(sums, kSumsApart, kTile, kTileSize);
    finish_writes();
    for (size_t i = 0; i < kBothTiles; ++i) {
      const __m512 decay = _mm512_set1_ps(f.decay[t + i]);
      for (size_t r = 0; r < R; ++r) {
        float* sum = f.sums[i / kTileSize][r][i % kTileSize];
        const __m512 x = _mm512_load_ps(args.x + (t + i) * args.x_stride + (block + r) * kLanes);
        _mm512_store_ps(sum, _mm512_fmadd_ps(decay, _mm512_load_ps(sum), _mm512_mul_ps(d[r], x)));
      }
    }
    finish_writes();
    load_sums<R>(sums, kSumsApart, kTile, kTileSize);
    for (size_t s = 0; s <= t; s += kDualInputs) {
      dual_product<R>(f.m[t] + s, kDualTokens, f.x[block][s / kPairInputs], x_apart);
    }
    store_sums<R>(args.y + t * args.y_stride + block * kLanes, kTileSize * args.y_stride, kLanes,
                  args.y_stride);
  }
  for (size_t n = 0; n < n_state; n += kBothTiles) {
    float* state = args.state + (block * n_state + n) * kLanes;
    load_sums<R>(state, kTile, n_state * kLanes, kLanes);
    for (size_t s = 0; s < kDualTokens; s += kDualInputs) {
      dual_product<R>(group.b + n * kDualTokens + s, kDualTokens, f.w_x[block][s / kPairInputs],
                      x_apart);
    }
    store_sums<R>(state, kTile, n_state * kLanes, kLanes);
  }
}

void mamba2_dual(const Mamba2DualArgs& args) {
  DualBuffers f;  // not initialised
  // Rows of activations are too far apart for the hardware to foresee them.
  for (size_t t = 0; t < kDualTokens; ++t) {
    for (size_t i = 0; i < args.blocks; ++i) {
      __builtin_prefetch(args.x + t * args.x_stride + i * kLanes);
    }
  }
  const DualGroupIn group(args.group, args.d_state);
  dual_decays(args, f);
  dual_mixture(group.g, f);
  dual_inputs(args, f);
  dual_state(args, f);
  finish_writes();
  configure_dual();
  size_t block = 0;
  for (; block + 2 <= args.blocks; block += 2) dual_blocks<2>(args, group, f, block);
  if (block < args.blocks) dual_blocks<1>(args, group, f, block);
  _tile_release();
}

}  // namespace
}  // namespace mamba_edge
