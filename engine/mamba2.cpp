// Mamba-2's mixer. Formulas: Dao & Gu 2024, section 7; the gated norm and dt limits as in the
// authors' code.
#include <algorithm>
#include <cmath>

#include "engine/step.h"

namespace mamba_edge {
namespace {

// The parts of in_proj's output, in pieces of the same size; x, B and C go through the convolution.
struct Section {
  size_t row, rows;
  bool conv;
};

// The scan takes a few tokens and channels at a time, as dt and decay are expanded for these.
constexpr size_t kScanTokens = 16, kScanChannels = 64;

// How many tokens earlier z is asked for: its rows are too far apart for the hardware to foresee them.
constexpr size_t kGateAhead = 4;

// row[begin], ..., row[end - 1] = value, in blocks of constant size where there are any.
void fill(float* row, size_t begin, size_t end, float value) {
  for (; begin + kTileRows <= end; begin += kTileRows) std::fill_n(row + begin, kTileRows, value);
  for (; begin < end; ++begin) row[begin] = value;
}

// The dual form of the scan, for as many whole blocks of a prompt's tokens as a chunk has. Quantised models take
// it, where the table has it: they round activations to less than bfloat16 has anyway.
struct DualForm {
  const Step& step;
  const uint32_t layer;
  size_t blocks = 0;  // of kDualTokens

  DualForm(const Step& of, uint32_t in_layer) : step(of), layer(in_layer) {
    const LayerWeights& w = step.model.weights.layers[layer];
    if (step.b.dual_groups != nullptr && step.kernels.mamba2_dual != nullptr &&
        step.texts == nullptr && is_quantised(w.in_proj.shape.type) &&
        is_quantised(w.out_proj.shape.type)) {
      blocks = step.tokens / kDualTokens;
    }
  }

  size_t tokens() const { return blocks * kDualTokens; }
  float* proj(size_t block) const { return step.b.proj + block * kDualTokens * step.b.proj_stride; }
  float* prepared(size_t block, size_t group) const {
    return step.b.dual_groups + (block * step.model.config.mamba2.n_groups + group) *
                                    dual_group_floats(step.layout.d_state);
  }

  // What the heads of a group share, for all blocks and groups.
  void prepare(const Step::Ahead& next) const {
    const size_t groups = step.model.config.mamba2.n_groups;
    step.parallel(blocks * groups, next, [&](size_t i) {
      const size_t block = i / groups, group = i % groups;
      const float* row = proj(block) + group * step.layout.d_state;
      Mamba2DualPrepareArgs args;
      args.b = row + step.layout.in_b;
      args.c = row + step.layout.in_c;
      args.group = prepared(block, group);
      args.bc_stride = step.b.proj_stride;
      args.d_state = step.layout.d_state;
      step.kernels.mamba2_dual_prepare(args);
    });
  }

  // n channels of one head, from channel c on.
  void scan(size_t c, size_t n, size_t group, size_t head) const {
    const LayerWeights& w = step.model.weights.layers[layer];
    Mamba2ScanArgs state;
    step.set_state(step.session, layer, c, &state);
    Mamba2DualArgs args;
    args.state = state.state;
    args.a = w.a[head];
    args.d = w.d + c;
    args.dt_stride = args.x_stride = step.b.proj_stride;
    args.y_stride = step.b.y.stride;
    args.d_state = step.layout.d_state;
    args.blocks = n / kTileRows;
    for (size_t block = 0; block < blocks; ++block) {
      args.group = prepared(block, group);
      args.dt = proj(block) + step.layout.in_dt + head;
      args.x = proj(block) + step.layout.in_x + c;
      args.y = step.b.y.x + block * kDualTokens * step.b.y.stride + c;
      step.kernels.mamba2_dual(args);
    }
  }
};

}  // namespace

void run_mamba2(const Step& step, uint32_t layer) {
  const LayerWeights& w = step.model.weights.layers[layer];
  const Mamba2Config& config = step.model.config.mamba2;
  const Layout& l = step.layout;
  const KernelTable& k = step.kernels;
  Buffers& b = step.b;
  const size_t tokens = step.tokens;
  const size_t stride = b.proj_stride;

  // Phase 1: in_proj, the convolution of x, B and C, and dt.
  constexpr size_t kPiece = 64;
  const Section sections[] = {{l.in_z, l.inner, false},
                              {l.in_x, l.conv_rows, true},  // x, B, C lie side by side
                              {l.in_dt, l.heads, false}};
  const auto pieces_of = [&](const Section& s) { return (s.rows + kPiece - 1) / kPiece; };
  const size_t n_pieces = pieces_of(sections[0]) + pieces_of(sections[1]) + pieces_of(sections[2]);
  const size_t y_piece = Step::piece_channels(w.out_proj);
  const size_t y_pieces = (l.inner + y_piece - 1) / y_piece;
  step.parallel(n_pieces, step.state_ahead(layer, y_piece), [&](size_t i) {
    const Section* s = sections;
    while (i >= pieces_of(*s)) i -= pieces_of(*s++);
    const size_t first = i * kPiece, end = std::min(first + kPiece, s->rows);
    const size_t row = s->row + first, n = end - first;
    step.matmul(w.in_proj, b.normed, row / kTileRows, (row + n) / kTileRows, b.proj, stride);
    if (w.in_proj_bias != nullptr) {
      for (size_t t = 0; t < tokens; ++t) {
        k.add_rows(b.proj + t * stride + row, w.in_proj_bias + row, nullptr, n);
      }
    }
    if (s->conv) {
      ConvArgs conv;
      conv.weight = w.conv + first * l.d_conv;
      conv.bias = w.conv_bias == nullptr ? nullptr : w.conv_bias + first;
      conv.in_stride = stride;
      conv.out_stride = stride;
      conv.d_conv = l.d_conv;
      conv.blocks = n / kTileRows;
      step.for_each_text([&](const Session& text, size_t t, size_t count) {
        conv.window = Step::conv_state(text, layer) + first * l.d_conv;
        conv.in = conv.out = b.proj + t * stride + row;
        conv.tokens = count;
        k.conv_silu(conv);
      });
    } else if (s->row == l.in_dt) {
      // Here, as it takes the least time of all pieces: where phase 2 leaves sums out, they are zero.
      if (first == 0) std::fill_n(b.gate_sums, tokens * (l.inner / kTileRows), 0.0f);
      for (size_t t = 0; t < tokens; ++t) {
        k.dt_decay(b.proj + t * stride + row, w.dt_bias + first, w.a + first, config.dt_low,
                   config.dt_high, n, b.head_decay + t * l.heads + first);
      }
    }
  });

  const DualForm dual(step, layer);
  if (dual.blocks > 0) dual.prepare(step.state_ahead(layer, y_piece));

  // Phase 2: the scan and the gate. A piece may cross from one B/C group to the next; a run stays
  // inside one.
  const size_t heads_per_group = config.n_heads / config.n_groups;
  const bool whole_row = config.gated_norm == 2 || config.n_groups == 1;
  // The norm is a factor per row (and group), so it can be applied to the scales of quantised
  // activations, as long as no quantisation group crosses two norms.
  const bool scales_only = is_quantised(w.out_proj.shape.type) &&
                           (whole_row || l.segment_padded % w.out_proj.shape.group == 0);
  step.parallel(y_pieces, Step::ahead(w.out_proj, Step::kOutRows), [&](size_t piece) {
    const size_t first = piece * y_piece, end = std::min<size_t>(first + y_piece, l.inner);
    for (size_t c = first; c < end;) {
      const size_t group = c / l.segment_padded, start = group * l.segment_padded;
      size_t n = std::min({end - c, start + l.segment_padded - c, kScanChannels});
      // The dual form takes one head at a time.
      if (dual.blocks > 0) n = std::min(n, config.headdim - (c - start) % config.headdim);
      // Every channel gets its head's dt and decay. Padding channels take the last head's; their x
      // is zero.
      alignas(kBlockAlign) float dt[kScanTokens][kScanChannels];
      alignas(kBlockAlign) float decay[kScanTokens][kScanChannels];
      const auto expand = [&](size_t first_token, size_t count) {
        for (size_t j = 0; j < n;) {
          const size_t in_segment = c + j - start;
          const size_t in_group = std::min(in_segment / config.headdim, heads_per_group - 1);
          const size_t head = group * heads_per_group + in_group;
          const size_t next = in_group + 1 < heads_per_group
                                  ? std::min(n, j + (in_group + 1) * config.headdim - in_segment)
                                  : n;
          for (size_t i = 0; i < count; ++i) {
            const size_t t = first_token + i;
            fill(dt[i], j, next, b.proj[t * stride + l.in_dt + head]);
            fill(decay[i], j, next, b.head_decay[t * l.heads + head]);
          }
          j = next;
        }
      };
      Mamba2ScanArgs scan;
      scan.d = w.d + c;
      scan.dt = dt[0];
      scan.decay = decay[0];
      scan.dt_stride = kScanChannels;
      scan.bc_stride = stride;
      scan.x_stride = stride;
      scan.y_stride = b.y.stride;
      scan.d_state = l.d_state;
      scan.blocks = n / kTileRows;
      if (dual.blocks > 0) {
        dual.scan(c, n, group, group * heads_per_group + (c - start) / config.headdim);
      }
      step.for_each_text([&](const Session& text, size_t text_first, size_t text_tokens) {
        step.set_state(text, layer, c, &scan);
        for (size_t done = dual.tokens(); done < text_tokens; done += scan.tokens) {
          const size_t t = text_first + done;
          scan.tokens = std::min(kScanTokens, text_tokens - done);
          expand(t, scan.tokens);
          scan.b = b.proj + t * stride + l.in_b + group * l.d_state;
          scan.c = b.proj + t * stride + l.in_c + group * l.d_state;
          scan.x = b.proj + t * stride + l.in_x + c;
          scan.y = b.y.x + t * b.y.stride + c;
          k.mamba2_scan(scan);
          scan.position += scan.tokens;
        }
      });
      for (size_t t = 0; t < tokens; ++t) {
        for (size_t i = 0; i < n && t + kGateAhead < tokens; i += kTileRows) {
          __builtin_prefetch(b.proj + (t + kGateAhead) * stride + l.in_z + c + i);
        }
        float* y = b.y.x + t * b.y.stride + c;
        float* sum = b.gate_sums + t * (l.inner / kTileRows) + c / kTileRows;
        *sum = k.gate_norm(y, b.proj + t * stride + l.in_z + c,
                           w.gate_norm == nullptr ? nullptr : w.gate_norm + c,
                           config.norm_before_gate != 0, n, y);
      }
      c += n;
    }
    if (scales_only || config.gated_norm == 0) step.quantise(w.out_proj, b.y, first, end);
  });

  if (config.gated_norm != 0) {
    const size_t norms = whole_row ? 1 : config.n_groups;
    const size_t span = l.inner / norms;  // padded channels of one norm
    const size_t count = config.d_inner / norms;
    const auto rows = [&](size_t first, size_t last) {
      for (size_t i = first * norms; i < last * norms; ++i) {
        const size_t t = i / norms, g = i % norms;
        const float* sums = b.gate_sums + t * (l.inner / kTileRows) + g * span / kTileRows;
        float sum = 0;
        for (size_t c = 0; c < span / kTileRows; ++c) sum += sums[c];
        const float factor = 1.0f / std::sqrt(sum / static_cast<float>(count) + config.norm_eps);
        if (scales_only) {
          const size_t group = w.out_proj.shape.group;
          const size_t stop = whole_row ? w.out_proj.shape.groups() : (g + 1) * span / group;
          for (size_t q = g * span / group; q < stop; ++q)
            b.y.q.scale[t * b.y.q.group_stride + q] *= factor;
        } else {
          k.scale(b.y.x + t * b.y.stride + g * span, factor, span);
        }
      }
      if (!scales_only) step.quantise_tokens(w.out_proj, b.y, 0, l.inner, first, last);
    };
    step.parallel_tokens(Step::ahead(w.out_proj, Step::kOutRows), rows);
  }

  step.project_out(layer);
}

}  // namespace mamba_edge
