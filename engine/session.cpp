#include "engine/session.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "engine/little_endian.h"
#include "quant/half.h"
#include "quant/int8_state.h"

namespace mamba_edge {
namespace {

constexpr uint32_t kMaxChunk = 4096;
constexpr int kMaxThreads = 256;

// Saved states: "MEST", version, fingerprint, position, then logits and state as floats.
constexpr char kStateMagic[4] = {'M', 'E', 'S', 'T'};
constexpr uint32_t kStateVersion = 1;
constexpr size_t kStateHeader = 24;

// Elements from one token's row to the next: whole lines, and an odd number of them, so that the rows
// of many tokens do not all fall into the same few sets of the first cache.
template <typename T>
size_t row_stride(size_t n) {
  constexpr size_t kLine = kBlockAlign / sizeof(T);
  return ((n + kLine - 1) / kLine | 1) * kLine;
}

void take_quantised(Arena& arena, size_t chunk, const InputLimits& limits, Activations* out) {
  if (limits.groups == 0) return;
  out->q.stride = row_stride<int8_t>(limits.cols);
  out->q.group_stride = row_stride<float>(limits.groups);
  out->q.q = arena.take<int8_t>(chunk * out->q.stride);
  out->q.scale = arena.take<float>(chunk * out->q.group_stride);
  out->q.sum = arena.take<int32_t>(chunk * out->q.group_stride);
}

void take_activations(Arena& arena, size_t chunk, size_t width, const InputLimits& limits,
                      Activations* out) {
  out->stride = row_stride<float>(std::max(width, limits.cols));
  out->x = arena.take<float>(chunk * out->stride);
  take_quantised(arena, chunk, limits, out);
}

// The same in the place of x in in_proj's output, unless a group of inputs reaches past its channels: the
// second cache holds less than a chunk's activations otherwise.
void take_in_place(Arena& arena, size_t chunk, const Layout& l, const Buffers& b,
                   const InputLimits& limits, Activations* out) {
  if (limits.cols > l.inner) {
    take_activations(arena, chunk, l.inner, limits, out);
    return;
  }
  out->stride = b.proj_stride;
  out->x = b.proj == nullptr ? nullptr : b.proj + l.in_x;
  take_quantised(arena, chunk, limits, out);
}

// Bytes of these states of a block of channels.
size_t ssm_bytes(StateType type, size_t states) {
  switch (type) {
    case StateType::f16:
      return states * kTileRows * sizeof(uint16_t);
    case StateType::int8:
      return int8_state_bytes(states);
    case StateType::f32:
      break;
  }
  return states * kTileRows * sizeof(float);
}

// Whether prompts may be read in the dual form. Does not depend on the kernels, so that the arena's size
// does not.
bool dual_form_fits(const Model& model, const SessionOptions& options) {
  const Mamba2Config& config = model.config.mamba2;
  return model.to_in_proj.groups > 0 && model.to_out_proj.groups > 0 && !options.same_bits &&
         options.state == StateType::f32 && options.chunk >= kDualTokens &&
         config.headdim % kTileRows == 0 && config.d_state % kDualStates == 0 &&
         config.d_state <= kMaxDualStates;
}

}  // namespace

Session::StateLayout::StateLayout(const Model& model, StateType type) {
  const Layout& l = model.layout;
  conv = size_t{l.conv_rows} * l.d_conv;
  ssm = size_t{l.inner} * l.d_state;
  ssm_block_bytes = ssm_bytes(type, l.d_state);
  layer_bytes =
      conv * sizeof(float) + round_up<size_t>(l.inner / kTileRows * ssm_block_bytes, kBlockAlign);
  total_bytes = layer_bytes * model.config.n_layer;
}

float* Session::conv_state(uint32_t layer) const {
  return reinterpret_cast<float*>(state_ + state_layout().layer_bytes * layer);
}
uint8_t* Session::ssm_state(uint32_t layer) const {
  return reinterpret_cast<uint8_t*>(conv_state(layer) + state_layout().conv);
}

size_t Session::ssm_parts() const {
  const Layout& l = model_->layout;
  return l.inner / kTileRows * ((l.d_state + kStateGroup - 1) / kStateGroup);
}

Session::StatePart Session::ssm_part(uint32_t layer, size_t i) const {
  const size_t d_state = model_->layout.d_state;
  const size_t of_block = (d_state + kStateGroup - 1) / kStateGroup;
  const size_t block = i / of_block, group = i % of_block, first = group * kStateGroup;
  return {block, first, std::min(kStateGroup, d_state - first),
          ssm_state(layer) + block * state_layout().ssm_block_bytes +
              group * ssm_bytes(options_.state, kStateGroup)};
}

void Session::read_part(const StatePart& part, uint8_t* out) const {
  const size_t n = part.states * kTileRows;
  switch (options_.state) {
    case StateType::f32:
      std::memcpy(out, part.at, n * sizeof(float));
      break;
    case StateType::f16:
      for (size_t i = 0; i < n; ++i) {
        const float value = half_to_float(reinterpret_cast<const uint16_t*>(part.at)[i]);
        std::memcpy(out + i * sizeof(float), &value, sizeof(float));
      }
      break;
    case StateType::int8:
      decode_int8_state(part.at, part.states, out);
      break;
  }
}

void Session::write_part(const StatePart& part, const uint8_t* in) {
  const size_t n = part.states * kTileRows;
  switch (options_.state) {
    case StateType::f32:
      std::memcpy(part.at, in, n * sizeof(float));
      break;
    case StateType::f16:
      for (size_t i = 0; i < n; ++i) {
        float value;
        std::memcpy(&value, in + i * sizeof(float), sizeof(float));
        reinterpret_cast<uint16_t*>(part.at)[i] = float_to_half(value);
      }
      break;
    case StateType::int8:
      encode_int8_state(in, part.states, part.at);
      break;
  }
}

void Session::read_ssm(uint32_t layer, uint8_t* out) const {
  for (size_t i = 0; i < ssm_parts(); ++i) {
    const StatePart part = ssm_part(layer, i);
    read_part(part, out);
    out += part.bytes();
  }
}

void Session::write_ssm(uint32_t layer, const uint8_t* in) {
  for (size_t i = 0; i < ssm_parts(); ++i) {
    const StatePart part = ssm_part(layer, i);
    write_part(part, in);
    in += part.bytes();
  }
}

Status Session::check_options(const SessionOptions& options) {
  if (options.n_threads < 1 || options.n_threads > kMaxThreads) {
    return Status::error(MAMBA_EDGE_INVALID_ARGUMENT, "n_threads is %d; expected 1 to %d",
                         options.n_threads, kMaxThreads);
  }
  if (options.chunk < 1 || options.chunk > kMaxChunk) {
    return Status::error(MAMBA_EDGE_INVALID_ARGUMENT, "chunk is %u; expected 1 to %u",
                         options.chunk, kMaxChunk);
  }
  if (options.batch > kMaxChunk) {
    return Status::error(MAMBA_EDGE_INVALID_ARGUMENT, "batch is %u; expected 0 to %u",
                         options.batch, kMaxChunk);
  }
  if (options.state > StateType::int8) {
    return Status::error(MAMBA_EDGE_INVALID_ARGUMENT,
                         "state_type is %u; known are 0 (fp32), 1 (fp16) and 2 (int8)",
                         static_cast<unsigned>(options.state));
  }
  return {};
}

// Lays the session out; with a counting arena it returns NULL and only counts.
Session* Session::place(const Model& model, const SessionOptions& options, Arena& arena) {
  const Layout& l = model.layout;
  const size_t chunk = std::max(options.chunk, options.batch);
  auto* memory = arena.take<uint8_t>(sizeof(Session));
  const bool own_threads = options.n_threads > 1 && options.parallel_for == nullptr;
  auto* pool =
      own_threads ? arena.take<uint8_t>(ThreadPool::required_bytes(options.n_threads)) : nullptr;
  Buffers b;
  auto* state = arena.take<uint8_t>(StateLayout(model, options.state).total_bytes);
  b.model_stride = row_stride<float>(model.config.d_model);
  b.residual = arena.take<float>(chunk * b.model_stride);
  b.product = arena.take<float>(chunk * b.model_stride);
  b.proj_stride = row_stride<float>(l.in_proj_rows);
  b.proj = arena.take<float>(chunk * b.proj_stride);
  take_activations(arena, chunk, model.config.d_model, model.to_in_proj, &b.normed);
  take_in_place(arena, chunk, l, b, model.to_out_proj, &b.y);
  if (model.config.is_mamba2()) {
    b.head_decay = arena.take<float>(chunk * l.heads);
    b.gate_sums = arena.take<float>(chunk * (l.inner / kTileRows));
    if (dual_form_fits(model, options)) {
      b.dual_groups = arena.take<float>(options.chunk / kDualTokens * model.config.mamba2.n_groups *
                                        dual_group_floats(l.d_state));
    }
  } else {
    b.dt_stride = row_stride<float>(l.inner);
    b.dt = arena.take<float>(chunk * b.dt_stride);
    take_in_place(arena, chunk, l, b, model.to_x_proj, &b.conv);
    take_activations(arena, chunk, l.dt_rank, model.to_dt_proj, &b.dt_low);
    b.dbc_stride = row_stride<float>(l.x_proj_rows);
    b.dbc = arena.take<float>(chunk * b.dbc_stride);
  }
  b.logit_rows = static_cast<uint32_t>(std::min<size_t>(chunk, kLogitRows));
  const size_t head_rows = b.logit_rows * (model.to_head.groups > 0 ? 2 : 1);
  take_activations(arena, head_rows, model.config.d_model, model.to_head, &b.final);
  b.logit_stride = round_up<size_t>(model.config.n_vocab, kTileRows);
  b.logits = arena.take<float>(b.logit_rows * b.logit_stride);
  if (options.batch > 0) b.batch_logits = arena.take<float>(b.logit_rows * b.logit_stride);
  if (memory == nullptr) return nullptr;
  auto* session = new (memory) Session;
  session->model_ = &model;
  session->options_ = options;
  session->state_ = state;
  session->buffers_ = b;
  session->pool_ = reinterpret_cast<ThreadPool*>(pool);
  return session;
}

size_t Session::required_bytes(const Model& model, const SessionOptions& options) {
  Arena arena;
  place(model, options, arena);
  return arena.used();
}

Status Session::create(const Model& model, const SessionOptions& options, void* memory,
                       Session** out) {
  std::memset(memory, 0,
              required_bytes(model, options));  // padding of activations is zero, once and for all
  Arena arena(memory);
  Session* session = place(model, options, arena);
  if (session->pool_ != nullptr) {
    ThreadPool* pool = nullptr;
    if (const int error = ThreadPool::create(session->pool_, options.n_threads, &pool)) {
      return Status::error(MAMBA_EDGE_OUT_OF_MEMORY, "cannot start %d threads: %s",
                           options.n_threads, std::strerror(error));
    }
    session->pool_ = pool;
  }
  session->reset();
  *out = session;
  return {};
}

void Session::destroy() {
  ThreadPool::destroy(pool_);
  this->~Session();
}

void Session::reset() {
  std::memset(state_, 0, state_layout().total_bytes);
  for (uint32_t layer = 0; layer < model_->config.n_layer; ++layer) {
    const float* init = model_->weights.layers[layer].init_states;
    if (init != nullptr) write_ssm(layer, reinterpret_cast<const uint8_t*>(init));
  }
  // A state that is saved before the first token must not carry the logits of an earlier text.
  std::fill_n(buffers_.logits, model_->config.n_vocab, 0.0f);
  position_ = 0;
}

size_t Session::state_bytes(const Model& model) {
  return kStateHeader +
         (StateLayout(model, StateType::f32).floats(model) + model.config.n_vocab) * 4;
}

void Session::save_state(uint8_t* out) const {
  const size_t vocab_bytes = size_t{model_->config.n_vocab} * 4;
  std::memcpy(out, kStateMagic, 4);
  store_le<uint32_t>(out + 4, kStateVersion);
  store_le<uint64_t>(out + 8, model_->container.fingerprint());
  store_le<uint64_t>(out + 16, position_);
  std::memcpy(out + kStateHeader, buffers_.logits, vocab_bytes);
  const StateLayout s = state_layout();
  uint8_t* at = out + kStateHeader + vocab_bytes;
  for (uint32_t layer = 0; layer < model_->config.n_layer; ++layer) {
    std::memcpy(at, conv_state(layer), s.conv * 4);
    read_ssm(layer, at + s.conv * 4);
    at += (s.conv + s.ssm) * 4;
  }
}

Status Session::load_state(const uint8_t* in) {
  const size_t vocab_bytes = size_t{model_->config.n_vocab} * 4;
  if (std::memcmp(in, kStateMagic, 4) != 0) {
    return Status::error(MAMBA_EDGE_BAD_FORMAT,
                         "the buffer does not hold a saved state (wrong magic)");
  }
  if (load_le<uint32_t>(in + 4) != kStateVersion) {
    return Status::error(MAMBA_EDGE_UNSUPPORTED,
                         "saved state of version %u; this library reads version %u",
                         load_le<uint32_t>(in + 4), kStateVersion);
  }
  if (load_le<uint64_t>(in + 8) != model_->container.fingerprint()) {
    return Status::error(MAMBA_EDGE_INVALID_ARGUMENT,
                         "the saved state belongs to another model than %s", model_->path());
  }
  const auto position = load_le<uint64_t>(in + 16);
  if (position > INT64_MAX) {
    return Status::error(MAMBA_EDGE_BAD_FORMAT, "the saved state has a position of %llu",
                         static_cast<unsigned long long>(position));
  }
  position_ = position;
  std::memcpy(buffers_.logits, in + kStateHeader, vocab_bytes);
  const StateLayout s = state_layout();
  const uint8_t* at = in + kStateHeader + vocab_bytes;
  for (uint32_t layer = 0; layer < model_->config.n_layer; ++layer) {
    std::memcpy(conv_state(layer), at, s.conv * 4);
    write_ssm(layer, at + s.conv * 4);
    at += (s.conv + s.ssm) * 4;
  }
  return {};
}

void Session::copy_state(const Session& from) {
  position_ = from.position_;
  std::copy_n(from.buffers_.logits, model_->config.n_vocab, buffers_.logits);
  const StateLayout s = state_layout();
  if (from.options_.state == options_.state) {
    std::memcpy(state_, from.state_, s.total_bytes);
    return;
  }
  for (uint32_t layer = 0; layer < model_->config.n_layer; ++layer) {
    std::memcpy(conv_state(layer), from.conv_state(layer), s.conv * 4);
    for (size_t i = 0; i < ssm_parts(); ++i) {
      uint8_t values[kPartFloats * sizeof(float)];
      from.read_part(from.ssm_part(layer, i), values);
      write_part(ssm_part(layer, i), values);
    }
  }
}

void Session::export_state(uint32_t layer, float* conv, size_t* n_conv, float* ssm,
                           size_t* n_ssm) const {
  const Layout& l = model_->layout;
  const bool mamba2 = model_->config.is_mamba2();
  const size_t inner = size_t{l.segments} * l.segment;
  const size_t bc = mamba2 ? size_t{model_->config.mamba2.n_groups} * l.d_state : 0;
  if (n_conv != nullptr) *n_conv = (inner + 2 * bc) * l.d_conv;
  if (n_ssm != nullptr) *n_ssm = inner * l.d_state;
  if (conv != nullptr) {
    // Channel c of the convolution's [blocks][d_conv][16].
    const auto copy_channel = [&](size_t c, float* to) {
      const float* from = conv_state(layer) + c / kTileRows * l.d_conv * kTileRows + c % kTileRows;
      for (size_t i = 0; i < l.d_conv; ++i) to[i] = from[i * kTileRows];
    };
    for (size_t c = 0; c < inner; ++c) {
      copy_channel(c / l.segment * l.segment_padded + c % l.segment, conv + c * l.d_conv);
    }
    for (size_t c = 0; c < 2 * bc; ++c) {
      copy_channel(l.inner + (c < bc ? c : l.bc + c - bc), conv + (inner + c) * l.d_conv);
    }
  }
  if (ssm == nullptr) return;
  for (size_t i = 0; i < ssm_parts(); ++i) {
    const StatePart part = ssm_part(layer, i);
    uint8_t values[kPartFloats * sizeof(float)];
    read_part(part, values);
    for (size_t lane = 0; lane < kTileRows; ++lane) {
      const size_t padded = part.block * kTileRows + lane;
      const size_t segment = padded / l.segment_padded, in_segment = padded % l.segment_padded;
      if (segment >= l.segments || in_segment >= l.segment) continue;  // padding
      float* to = ssm + (segment * l.segment + in_segment) * l.d_state + part.first;
      for (size_t n = 0; n < part.states; ++n) {
        std::memcpy(to + n, values + (n * kTileRows + lane) * sizeof(float), sizeof(float));
      }
    }
  }
}

}  // namespace mamba_edge
