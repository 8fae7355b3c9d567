// Mamba-1's mixer, and Falcon-Mamba's, which adds norms on dt, B and C. Formulas: Gu & Dao 2023,
// section 3.
#include <algorithm>

#include "engine/step.h"

namespace mamba_edge {

void run_mamba1(const Step& step, uint32_t layer) {
  const LayerWeights& w = step.model.weights.layers[layer];
  const Mamba1Config& config = step.model.config.mamba1;
  const Layout& l = step.layout;
  const KernelTable& k = step.kernels;
  Buffers& b = step.b;
  const size_t tokens = step.tokens;
  const size_t proj_stride = b.proj_stride, dbc_stride = b.dbc_stride;

  // Phase 1: in_proj. Pieces of x go on to the convolution, SiLU and quantisation; pieces of z end
  // here.
  const size_t x_piece = Step::piece_channels(w.x_proj);
  const size_t x_pieces = (l.inner + x_piece - 1) / x_piece;
  step.parallel(2 * x_pieces, Step::ahead(w.x_proj, kTileRows), [&](size_t i) {
    const bool is_x = i < x_pieces;
    const size_t first = (is_x ? i : i - x_pieces) * x_piece;
    const size_t end = std::min<size_t>(first + x_piece, l.inner);
    const size_t row = (is_x ? l.in_x : l.in_z) + first;
    step.matmul(w.in_proj, b.normed, row / kTileRows, (row + end - first) / kTileRows, b.proj,
                proj_stride);
    if (w.in_proj_bias != nullptr) {
      for (size_t t = 0; t < tokens; ++t) {
        k.add_rows(b.proj + t * proj_stride + row, w.in_proj_bias + row, nullptr, end - first);
      }
    }
    if (!is_x) return;
    ConvArgs conv;
    conv.weight = w.conv + first * l.d_conv;
    conv.bias = w.conv_bias == nullptr ? nullptr : w.conv_bias + first;
    conv.in_stride = proj_stride;
    conv.out_stride = b.conv.stride;
    conv.d_conv = l.d_conv;
    conv.blocks = (end - first) / kTileRows;
    step.for_each_text([&](const Session& text, size_t t, size_t n) {
      conv.window = Step::conv_state(text, layer) + first * l.d_conv;
      conv.in = b.proj + t * proj_stride + row;
      conv.out = b.conv.x + t * b.conv.stride + first;
      conv.tokens = n;
      k.conv_silu(conv);
    });
    step.quantise(w.x_proj, b.conv, first, end);
  });

  // Phase 2: x_proj.
  const size_t y_piece = Step::piece_channels(w.out_proj);
  const size_t y_pieces = (l.inner + y_piece - 1) / y_piece;
  const Step::Ahead scan_ahead = {reinterpret_cast<const uint8_t*>(w.a),
                                  y_piece * l.d_state * sizeof(float), y_pieces};
  const size_t dbc_blocks = w.x_proj.shape.row_blocks();
  const size_t dbc_pieces = step.is_many() ? std::min(dbc_blocks, step.threads()) : dbc_blocks;
  step.parallel(dbc_pieces, scan_ahead, [&](size_t i) {
    step.matmul(w.x_proj, b.conv, dbc_blocks * i / dbc_pieces, dbc_blocks * (i + 1) / dbc_pieces,
                b.dbc, dbc_stride);
  });

  const size_t in_b = l.dt_rank, in_c = in_b + l.bc;
  step.parallel_tokens(scan_ahead, [&](size_t first, size_t last) {
    for (size_t t = first; t < last; ++t) {
      float* row = b.dbc + t * dbc_stride;
      float* dt = b.dt_low.x + t * b.dt_low.stride;
      if (config.dt_bc_norm) {
        k.rms_norm(row, nullptr, config.dt_rank, config.dt_bc_eps, dt);
        k.rms_norm(row + in_b, nullptr, config.d_state, config.dt_bc_eps, row + in_b);
        k.rms_norm(row + in_c, nullptr, config.d_state, config.dt_bc_eps, row + in_c);
      } else {
        std::copy_n(row, l.dt_rank, dt);
      }
    }
    step.quantise_tokens(w.dt_proj, b.dt_low, 0, l.dt_rank, first, last);
  });

  // Phase 3: dt_proj, the scan, the gate, quantisation for out_proj.
  const size_t scan_fetches = y_piece / kTileRows * l.d_state * kScanAhead;
  step.parallel(y_pieces, Step::ahead(w.out_proj, Step::kOutRows), [&](size_t i) {
    const size_t first = i * y_piece, end = std::min<size_t>(first + y_piece, l.inner);
    step.matmul(w.dt_proj, b.dt_low, first / kTileRows, end / kTileRows, b.dt, b.dt_stride);
    Mamba1ScanArgs scan;
    scan.a = w.a + first * l.d_state;
    scan.d = w.d + first;
    scan.dt_bias = w.dt_bias + first;
    scan.dt_stride = b.dt_stride;
    scan.bc_stride = dbc_stride;
    scan.x_stride = b.conv.stride;
    scan.z_stride = proj_stride;
    scan.y_stride = b.y.stride;
    scan.d_state = l.d_state;
    scan.blocks = (end - first) / kTileRows;
    if (tokens == 1)
      scan.ahead = step.next_weights(w.out_proj, Step::kOutRows, i, y_pieces, scan_fetches);
    step.for_each_text([&](const Session& text, size_t t, size_t n) {
      step.set_state(text, layer, first, &scan);
      scan.dt = b.dt + t * b.dt_stride + first;
      scan.b = b.dbc + t * dbc_stride + in_b;
      scan.c = b.dbc + t * dbc_stride + in_c;
      scan.x = b.conv.x + t * b.conv.stride + first;
      scan.z = b.proj + t * proj_stride + l.in_z + first;
      scan.y = b.y.x + t * b.y.stride + first;
      scan.tokens = n;
      k.mamba1_scan(scan);
    });
    step.quantise(w.out_proj, b.y, first, end);
  });

  step.project_out(layer);
}

}  // namespace mamba_edge
