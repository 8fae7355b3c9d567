#include "engine/step.h"

#include <algorithm>
#include <cstring>

#include "platforms/select.h"
#include "quant/decode.h"

namespace mamba_edge {
namespace {

constexpr size_t kRowsPerPiece = 64;  // of a projection
constexpr size_t kHeadRowsPerPiece = 256;

}  // namespace

Step::Step(Session& s, size_t n) : Step(s, nullptr, n) {}

Step::Step(Session& s, Session* const* each, size_t n)
    : session(s),
      texts(each),
      model(*s.model_),
      kernels(*s.model_->kernels),
      layout(s.model_->layout),
      b(s.buffers_),
      tokens(n) {}

Step::Ahead Step::ahead(const Matrix& w, size_t rows_per_piece) {
  const size_t blocks = rows_per_piece / kTileRows;
  return {w.data, blocks * w.row_block_bytes, (w.shape.row_blocks() + blocks - 1) / blocks};
}

const uint8_t* Step::next_weights(const Matrix& w, size_t rows_per_piece, size_t i, size_t n,
                                  size_t bytes) const {
  // As ThreadPool shares pieces out.
  const size_t threads = this->threads();
  const size_t thread = ((i + 1) * threads - 1) / n;
  const size_t offset = (i - n * thread / threads) * bytes;
  const Ahead next = ahead(w, rows_per_piece);
  const size_t begin = next.pieces * thread / threads;
  const size_t end = next.pieces * (thread + 1) / threads;
  if (offset + bytes > (end - begin) * next.piece_bytes) return nullptr;
  return w.data + begin * next.piece_bytes + offset;
}

size_t Step::threads() const { return static_cast<size_t>(session.options_.n_threads); }

void Step::run(size_t n, const Ahead& next, mamba_edge_task task, void* context) const {
  const SessionOptions& options = session.options_;
  if (options.n_threads == 1 || n == 1) {
    for (size_t i = 0; i < n; ++i) task(context, i);
  } else if (options.parallel_for != nullptr) {
    options.parallel_for(options.parallel_for_user, n, task, context);
  } else {
    session.pool_->run(n, task, context, next);
  }
}

void Step::quantise(const Matrix& w, const Activations& in, size_t begin, size_t end) const {
  quantise_tokens(w, in, begin, end, 0, tokens);
}

void Step::quantise_tokens(const Matrix& w, const Activations& in, size_t begin, size_t end,
                           size_t first, size_t last) const {
  if (!is_quantised(w.shape.type)) return;
  const size_t group = w.shape.group;
  const size_t stop = std::min<size_t>(round_up(end, group), w.shape.cols);
  for (size_t t = first; t < last; ++t) {
    const size_t at = t * in.q.group_stride + begin / group;
    kernels.quantise_i8(in.x + t * in.stride + begin, stop - begin, group, w.shape.rotation,
                        in.q.q + t * in.q.stride + begin, in.q.scale + at, in.q.sum + at);
  }
}

void Step::quantise_rest(const Matrix& w, const Activations& in) const {
  Activations rest = in;
  rest.x += tokens * in.stride;
  rest.q.q += tokens * in.q.stride;
  rest.q.scale += tokens * in.q.group_stride;
  rest.q.sum += tokens * in.q.group_stride;
  const size_t group = w.shape.group;
  for (size_t t = 0; t < tokens; ++t) {
    const float* x = in.x + t * in.stride;
    const int8_t* q = in.q.q + t * in.q.stride;
    float* left = rest.x + t * in.stride;
    for (size_t g = 0; g < w.shape.groups(); ++g, x += group, q += group, left += group) {
      const float scale = in.q.scale[t * in.q.group_stride + g];
      for (size_t i = 0; i < group; ++i) left[i] = x[i] - scale * static_cast<float>(q[i]);
    }
  }
  quantise(w, rest, 0, w.shape.cols);
}

void Step::matmul(const Matrix& w, const Activations& in, size_t begin, size_t end, float* out,
                  size_t out_stride) const {
  switch (w.shape.type) {
    case WeightType::f32:
      kernels.matmul_f32_f32(w, begin, end, in.x, in.stride, tokens, out, out_stride);
      return;
    case WeightType::f16:
      kernels.matmul_f16_f32(w, begin, end, in.x, in.stride, tokens, out, out_stride);
      return;
    case WeightType::int16:
      kernels.matmul_i16_f32(w, begin, end, in.x, in.stride, tokens, out, out_stride);
      return;
    default:
      quantised_matmul(kernels, w.shape.type)(w, begin, end, in.q, tokens, out, out_stride);
      return;
  }
}

size_t Step::piece_channels(const Matrix& reader) {
  const size_t group = is_quantised(reader.shape.type) ? reader.shape.group : kTileRows;
  return group * ((kRowsPerPiece + group - 1) / group);
}

void Step::norm_rows(const float* weight, const float* bias, const Matrix& reader, const float* in,
                     const Activations& out) const {
  const size_t d_model = model.config.d_model;
  const auto rows = [&](size_t first, size_t last) {
    for (size_t t = first; t < last; ++t) {
      const float* from = in + t * b.model_stride;
      float* to = out.x + t * out.stride;
      if (model.config.norm == NormKind::layer) {
        kernels.layer_norm(from, weight, bias, d_model, model.config.norm_eps, to);
      } else {
        kernels.rms_norm(from, weight, d_model, model.config.norm_eps, to);
      }
    }
    quantise_tokens(reader, out, 0, round_up<size_t>(d_model, kTileRows), first, last);
  };
  parallel_tokens(ahead(reader, kRowsPerPiece), rows);
}

void Step::project_out(uint32_t layer) const {
  const LayerWeights& w = model.weights.layers[layer];
  const size_t blocks = w.out_proj.shape.row_blocks();
  // Four pieces and more for each thread, which then end together.
  const bool large = is_many() && blocks >= 4 * threads() * kRowsPerPiece / kTileRows;
  const size_t per_piece = (large ? kRowsPerPiece : kOutRows) / kTileRows;
  const Ahead next = layer + 1 < model.config.n_layer
                         ? ahead(model.weights.layers[layer + 1].in_proj, kRowsPerPiece)
                         : ahead(model.weights.head, kHeadRowsPerPiece);
  parallel((blocks + per_piece - 1) / per_piece, next, [&](size_t piece) {
    const size_t begin = piece * per_piece, end = std::min(begin + per_piece, blocks);
    matmul(w.out_proj, b.y, begin, end, b.product, b.model_stride);
    const size_t row = begin * kTileRows;
    for (size_t t = 0; t < tokens; ++t) {
      const size_t at = t * b.model_stride + row;
      kernels.add_rows(b.residual + at, b.product + at,
                       w.out_proj_bias == nullptr ? nullptr : w.out_proj_bias + row,
                       (end - begin) * kTileRows);
    }
  });
}

void Step::run_layers(const int32_t* ids) const {
  const ModelConfig& config = model.config;
  const Weights& w = model.weights;
  for (size_t t = 0; t < tokens; ++t) {
    decode_row(w.embedding.shape, w.embedding.scale, w.embedding.data,
               static_cast<uint32_t>(ids[t]), config.d_model, b.residual + t * b.model_stride);
  }
  for (uint32_t layer = 0; layer < config.n_layer; ++layer) {
    norm_rows(w.layers[layer].norm, w.layers[layer].norm_bias, w.layers[layer].in_proj, b.residual,
              b.normed);
    if (config.is_mamba2()) {
      run_mamba2(*this, layer);
    } else {
      run_mamba1(*this, layer);
    }
  }
}

void Step::project_head(size_t first, size_t n, float* logits, size_t stride) const {
  const Matrix& w = model.weights.head;
  const Step rows(session, n);
  rows.norm_rows(model.weights.final_norm, model.weights.final_norm_bias, w,
                 b.residual + first * b.model_stride, b.final);
  const bool quantised = is_quantised(w.shape.type);
  if (quantised) rows.quantise_rest(w, b.final);

  const Step both(session, 2 * n);
  const size_t blocks = w.shape.row_blocks();
  const size_t per_piece = kHeadRowsPerPiece / kTileRows;
  const Ahead next = ahead(model.weights.layers[0].in_proj, kRowsPerPiece);
  parallel((blocks + per_piece - 1) / per_piece, next, [&](size_t piece) {
    const size_t begin = piece * per_piece, end = std::min(begin + per_piece, blocks);
    if (!quantised) {
      rows.matmul(w, b.final, begin, end, logits, stride);
      return;
    }
    constexpr size_t kBlocks = 4;
    alignas(kBlockAlign) float product[2 * kLogitRows * kBlocks * kTileRows];
    for (size_t block = begin; block < end; block += kBlocks) {
      const size_t count = std::min(kBlocks, end - block), width = count * kTileRows;
      Matrix part = w;
      part.data += block * w.row_block_bytes;
      both.matmul(part, b.final, 0, count, product, width);
      for (size_t t = 0; t < n; ++t) {
        const float *high = product + t * width, *low = high + n * width;
        float* out = logits + t * stride + block * kTileRows;
        for (size_t i = 0; i < width; ++i) out[i] = high[i] + low[i];
      }
    }
  });
}

void Session::take_tokens(const int32_t* ids, size_t n, float* all_logits) {
  const size_t row_bytes = size_t{model_->config.n_vocab} * sizeof(float);
  for (size_t done = 0; done < n;) {
    const size_t tokens = std::min<size_t>(options_.chunk, n - done);
    const Step step(*this, tokens);
    step.run_layers(ids + done);
    done += tokens;
    position_ += tokens;
    if (all_logits == nullptr) {
      if (done == n) step.project_head(tokens - 1, 1, buffers_.logits, buffers_.logit_stride);
      continue;
    }
    for (size_t t = 0; t < tokens; t += buffers_.logit_rows) {
      const size_t rows = std::min<size_t>(buffers_.logit_rows, tokens - t);
      step.project_head(t, rows, buffers_.logits, buffers_.logit_stride);
      for (size_t r = 0; r < rows; ++r) {
        std::memcpy(all_logits + (done - tokens + t + r) * model_->config.n_vocab,
                    buffers_.logits + r * buffers_.logit_stride, row_bytes);
      }
      if (t + rows == tokens && rows > 1) {  // mamba_edge_logits shows the last row
        std::memmove(buffers_.logits, buffers_.logits + (rows - 1) * buffers_.logit_stride,
                     row_bytes);
      }
    }
  }
}

void Session::step_batch(Session* const* texts, const int32_t* ids, size_t n) {
  const Step step(*this, texts, n);
  step.run_layers(ids);
  const size_t row_bytes = size_t{model_->config.n_vocab} * sizeof(float);
  for (size_t t = 0; t < n; t += buffers_.logit_rows) {
    const size_t rows = std::min<size_t>(buffers_.logit_rows, n - t);
    step.project_head(t, rows, buffers_.batch_logits, buffers_.logit_stride);
    for (size_t r = 0; r < rows; ++r) {
      std::memcpy(texts[t + r]->buffers_.logits, buffers_.batch_logits + r * buffers_.logit_stride,
                  row_bytes);
      ++texts[t + r]->position_;
    }
  }
}

}  // namespace mamba_edge
