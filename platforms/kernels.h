// The contract of every kernel: what it computes, the layout of what it reads, and how exact it is.
//
// A kernel is a pure function: it allocates nothing, starts no thread and keeps nothing. All float
// rows are padded to a multiple of 16 floats (kTileRows) and start at a multiple of 64 bytes;
// strides are in elements. A kernel reads and writes whole blocks of 16 and nothing beyond them.
// Results for one token do not depend on how many tokens, row blocks or channel blocks a call
// covers, so work may be cut anywhere and gives the same bits; different tables round differently.
//
// `kernels.inc` lists the kernels, one row each, and drives the table below, the tests and the
// benches. Names are <op>_<weights>_<activations>; the ISA is the table that a kernel sits in.
// Nothing here knows "Mamba" the model: the scans are the recurrences of the papers, given as plain
// arrays.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/blocks.h"

namespace mamba_edge {

// Functions inside the kernels, on finite x: exp is within 2 ulp (4 * 2^-24), 0 below log(2^-126)
// and infinity above log(FLT_MAX); softplus is within 12 * 2^-24 relative, 0 below log(2^-125.5);
// silu is within 8 * 2^-24 and 2^-119. A NaN stays a NaN.

// A packed matrix in memory; see quant/blocks.h for the layout.
struct Matrix {
  MatrixShape shape;
  size_t row_block_bytes = 0;     // shape.row_block_bytes()
  float scale = 1.0f;             // multiplies every value
  const uint8_t* data = nullptr;  // [row_blocks][row_block_bytes], 64-byte aligned
};

// Rows of activations quantised to int8 in groups: value = scale * q, -127 <= q <= 127. Rows of q
// start at a multiple of 64 bytes.
struct QuantisedRows {
  int8_t* q = nullptr;     // [tokens][stride], padded inputs are 0
  float* scale = nullptr;  // [tokens][group_stride]
  int32_t* sum = nullptr;  // [tokens][group_stride], sum of q over each group
  size_t stride = 0;
  size_t group_stride = 0;
};

// Products of up to so many tokens wait for the memory, which is fastest where it is read once and as one stream.
// Those of more are better off with many row blocks in a call, which share what is done to the activations.
constexpr size_t kStreamTokens = 16;

constexpr float kTinyActivation = 0x1p-100f;

// Quantises one row of `n` floats (n a multiple of group, group of kGroupMultiple) in groups, after the
// transform x <- H x of every `rotation` of them (quant/blocks.h; 0: none; a divisor of group), which
// takes log2(rotation) roundings of sums of magnitudes no larger than sum |x|: scale
// = max|x| / 127, q = x / scale rounded to nearest (ties to even), sum = sum of q; an all-zero
// group has scale 0 and q 0. |x - scale * q| <= scale * (0.5 + 2^-15). A group whose max|x| is
// below kTinyActivation counts as all zero, so that no scale is subnormal. A group that holds NaN
// or an infinity (which only a damaged model makes) has scale NaN and q 0, so it stays visible.
using QuantiseI8 = void(const float* x, size_t n, size_t group, size_t rotation, int8_t* q,
                        float* scale, int32_t* sum);

// out[t * out_stride + row] for the rows of row blocks [begin, end) and t in [0, tokens):
//   sum over groups g of (weight_scale[g][row] * act_scale[t][g]) * (int32 dot of the group), times
//   matrix.scale.
// The int32 dot is exact; float32 accumulation over groups, in ascending order, in one accumulator
// per row. |error| <= (groups + 3) * 2^-24 * sum over groups of |term|.
using MatmulQuantised = void(const Matrix& w, size_t begin, size_t end, const QuantisedRows& x,
                             size_t tokens, float* out, size_t out_stride);

// The same with float activations x[t * x_stride + col], w.shape.cols of them (padding 0), and
// fp32, fp16 or int16 weights; float32 products and sums (for int16, a sum per group, then times
// the group's scale). |error| <= (cols + groups + 2) * 2^-24 * sum over cols of |w * x|.
using MatmulFloat = void(const Matrix& w, size_t begin, size_t end, const float* x, size_t x_stride,
                         size_t tokens, float* out, size_t out_stride);

// out[i] = x[i] * weight[i] / sqrt(mean(x^2) + eps) over the first n values (padding up to a
// multiple of 16 is zero on input, where it adds nothing to the sum, and zero on output, because
// weight's padding is zero). `weight` NULL: ones for the first n. out may be x. Relative error <=
// (n / 16 + 12) * 2^-24 (sums run in 16 lanes).
using RmsNorm = void(const float* x, const float* weight, size_t n, float eps, float* out);

// out = (x - mean) / sqrt(variance + eps) * weight + bias, two passes; bias may be NULL. Same
// padding rules: padding of out is zero. The mean is within (n / 16 + 8) * 2^-24 of mean|x|, the
// rest of the error is of the order of RmsNorm's.
using LayerNorm = void(const float* x, const float* weight, const float* bias, size_t n, float eps,
                       float* out);

// y[i] += x[i] (+ bias[i] where bias is not NULL); n is a multiple of 16.
using AddRows = void(float* y, const float* x, const float* bias, size_t n);

// Causal depthwise convolution and SiLU over channel blocks, one window per channel:
//   window <- (window[1..], in[t]);  out[t] = silu(bias + sum_k weight[k] * window[k])
struct ConvArgs {
  float* window = nullptr;        // [blocks][d_conv][16], newest last; updated
  const float* weight = nullptr;  // [blocks][d_conv][16]
  const float* bias = nullptr;    // [blocks * 16] or NULL
  const float* in = nullptr;      // [tokens][in_stride], the inputs x
  float* out = nullptr;           // [tokens][out_stride]; may be `in` with the same stride
  size_t in_stride = 0, out_stride = 0;
  size_t d_conv = 0;
  size_t blocks = 0;
  size_t tokens = 0;
};
using ConvSilu = void(const ConvArgs& args);

// Scans with a state in int8 (quant/blocks.h: scale * q, 16 lanes of up to kStateGroup states). Sums, y
// included, are those of the float scan from the state's values; then every token's new state is
// rounded, group by group and lane by lane:
//   scale = max over the group of |h| * float(1 / 127), at least kLeastStateScale, then rounded to 17
//           significant bits, which makes scale * q exact
//   q[n] = h[n] / scale + dither, rounded to nearest; -127 <= q <= 127
//   dither = (((position + n) * 39 + lane * 4) mod 64 + 1/2) / 64 - 1/2
// so |h - scale * q| <= scale * (127/128 + 2^-15). Rounded to the nearest alone, what a token adds to a
// state that hardly decays would be lost for good where it is less than half a step. In 64 tokens the
// dither takes 64 evenly spaced values, in steps of about the golden ratio: what is added is kept on
// average, and errors cancel sooner than with random numbers. The same token of the same text has
// the same dither however the text is split. A lane whose group gets a NaN or an infinity keeps the
// scale NaN, so it stays visible.

// Mamba-1's selective scan (Gu & Dao 2023, "Mamba", algorithm 2, zero-order hold on A, Euler on B)
// with the output gate, per channel d and state n, tokens in order:
//   dt = softplus(dt_in + dt_bias);  h[n] = exp(dt * A[n]) * h[n] + dt * B[n] * x;
//   y = (sum_n C[n] * h[n] + D * x) * silu(z)
struct Mamba1ScanArgs {
  float* state = nullptr;          // [blocks][d_state][16]; updated. NULL where another is set
  uint16_t* half_state = nullptr;  // the same in binary16, rounded to nearest after every token
  uint8_t* int8_state = nullptr;   // [blocks][int8_state_bytes(d_state)]; see above
  uint64_t position = 0;           // tokens before the first one; int8_state only
  const float* a = nullptr;        // [blocks][d_state][16], negative (-exp(A_log))
  const float* d = nullptr;        // [blocks * 16]
  const float* dt_bias = nullptr;  // [blocks * 16]
  const float* dt = nullptr;       // [tokens][dt_stride]
  const float* b = nullptr;        // [tokens][bc_stride], d_state values
  const float* c = nullptr;        // [tokens][bc_stride], d_state values
  const float* x = nullptr;        // [tokens][x_stride]
  const float* z = nullptr;        // [tokens][z_stride]
  float* y = nullptr;              // [tokens][y_stride]; may be x or dt with the same stride
  // NULL, or what the caller reads soon afterwards: while it computes, a single token's scan asks
  // for kScanAhead bytes of it per state of a block.
  const uint8_t* ahead = nullptr;
  size_t dt_stride = 0, bc_stride = 0, x_stride = 0, z_stride = 0, y_stride = 0;
  size_t d_state = 0;
  size_t blocks = 0;
  size_t tokens = 0;
};
constexpr size_t kScanAhead = 128;
using Mamba1Scan = void(const Mamba1ScanArgs& args);

// Mamba-2's scan (Dao & Gu 2024, "Transformers are SSMs", scalar A per head), per channel, with dt
// and decay = exp(dt * A) already expanded to channels:
//   h[n] = decay * h[n] + dt * x * B[n];  y = sum_n C[n] * h[n] + D * x
struct Mamba2ScanArgs {
  float* state = nullptr;          // [blocks][d_state][16]; updated. NULL where another is set
  uint16_t* half_state = nullptr;  // the same in binary16, rounded to nearest after every token
  uint8_t* int8_state = nullptr;   // [blocks][int8_state_bytes(d_state)]; see above
  uint64_t position = 0;           // tokens before the first one; int8_state only
  const float* d = nullptr;        // [blocks * 16]
  const float* dt = nullptr;       // [tokens][dt_stride], one value per channel
  const float* decay = nullptr;    // [tokens][dt_stride], one value per channel
  const float* b = nullptr;  // [tokens][bc_stride], d_state values: all channels are of one group
  const float* c = nullptr;  // [tokens][bc_stride]
  const float* x = nullptr;  // [tokens][x_stride]
  float* y = nullptr;        // [tokens][y_stride]; may be x
  size_t dt_stride = 0, bc_stride = 0, x_stride = 0, y_stride = 0;
  size_t d_state = 0;
  size_t blocks = 0;
  size_t tokens = 0;
};
using Mamba2Scan = void(const Mamba2ScanArgs& args);

// The same of one head over kDualTokens tokens at once, as products of matrices between them (Dao & Gu 2024,
// section 6, the state-space dual form), with what is multiplied rounded to bfloat16 and sums in float32.
// y is within 5 * 2^-8 of the sum of the magnitudes of its terms C[n] * decays * dt * x * B[n] (and C[n]
// * decays * h[n] of the state before), plus a few 2^-24 of D * x; the new state within 3 * 2^-8 of
// those of its own. NULL in tables that have no faster way than the recurrence, as all do that have no
// tiles. Both or none are there.
constexpr size_t kDualTokens = 64;
constexpr size_t kMaxDualBlocks = 4;    // of 16 channels
constexpr size_t kMaxDualStates = 256;  // d_state, a multiple of kDualStates
constexpr size_t kDualStates = 32;
constexpr float kLeastLogDecay = -150.0f;  // log2 of a token's decay counts as no less: it is zero

// What the heads of a B/C group share, computed once for all of them.
constexpr size_t dual_group_floats(size_t d_state) { return kDualTokens * (kDualTokens + d_state); }
struct Mamba2DualPrepareArgs {
  const float* b = nullptr;  // [tokens][bc_stride], d_state values
  const float* c = nullptr;  // [tokens][bc_stride]
  float* group = nullptr;    // [dual_group_floats(d_state)], in a form of the table's own
  size_t bc_stride = 0;
  size_t d_state = 0;
};
using Mamba2DualPrepare = void(const Mamba2DualPrepareArgs& args);

struct Mamba2DualArgs {
  float* state = nullptr;        // [blocks][d_state][16]; updated
  const float* group = nullptr;  // as prepared
  float a = 0;                   // of the head, negative: decay = exp(dt * a)
  const float* d = nullptr;      // [blocks * 16]
  const float* dt = nullptr;     // of the head: [tokens], dt_stride apart
  const float* x = nullptr;      // [tokens][x_stride]
  float* y = nullptr;            // [tokens][y_stride]; may be x with the same stride
  size_t dt_stride = 0, x_stride = 0, y_stride = 0;
  size_t d_state = 0;
  size_t blocks = 0;  // at most kMaxDualBlocks
};
using Mamba2Dual = void(const Mamba2DualArgs& args);

// Per head: dt[i] = clamp(softplus(dt[i] + bias[i]), low, high) and decay[i] = exp(dt[i] * a[i]); n
// a multiple of 16. softplus(v) = log1p(exp(v)), which above 20 is v itself (as PyTorch defines it); it
// never overflows.
using DtDecay = void(float* dt, const float* bias, const float* a, float low, float high, size_t n,
                     float* decay);

// Mamba-2's output gate before its norm, one row of n channels (a multiple of 16):
//   norm_first false: v = y * silu(z), out = v * weight;   norm_first true: v = y, out = y * weight
//   * silu(z).
// Returns the sum of v^2, so that the caller can finish the RMS norm by one factor per row; weight
// NULL: ones.
using GateNorm = float(const float* y, const float* z, const float* weight, bool norm_first,
                       size_t n, float* out);

// x[i] *= factor; n a multiple of 16.
using Scale = void(float* x, float factor, size_t n);

// Index of the largest of n floats (any n >= 1, unaligned), the lowest on ties; NaN is never the
// largest unless all are.
using ArgMax = size_t(const float* x, size_t n);

// The first i in [from, n) with x[i] > floor, or n (x unaligned); NaN is above nothing.
using FindAbove = size_t(const float* x, size_t from, size_t n, float floor);

// out[i] = x[i], but -FLT_MAX for NaN, and nothing beyond +-FLT_MAX; any n, both unaligned.
using CopyFinite = void(const float* x, size_t n, float* out);

// Sum, modulo 2^32, of the n bytes at `data` as 32-bit words: as fast as this table's loads can read
// memory, which is what decode is measured against. n is a multiple of 64, data 64-byte aligned.
using ReadWords = uint32_t(const uint8_t* data, size_t n);

// Multiplies int8 numbers in registers, as fast as this table's instructions do it when nothing else
// is done: what products with many tokens are measured against. Returns how many products it added up, a
// multiple of `rounds`.
using PeakI8 = uint64_t(size_t rounds);

struct KernelTable {
  const char* isa;
#define ME_KERNEL(Type, name) Type* name;
#include "platforms/kernels.inc"
#undef ME_KERNEL
};

}  // namespace mamba_edge
