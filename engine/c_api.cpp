// The C boundary: checks arguments, converts options, copies messages. No other file knows
// mamba_edge_error.
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "engine/include/mamba_edge.h"
#include "engine/model.h"
#include "engine/session.h"
#include "engine/text/sampler.h"
#include "engine/text/tokenizer.h"
#include "platforms/os/memory.h"

using mamba_edge::Model;
using mamba_edge::Sampler;
using mamba_edge::Session;
using mamba_edge::SessionOptions;
using mamba_edge::Status;

struct mamba_edge_model {
  Model model;
};

namespace {

const Model& of(const mamba_edge_model* model) { return model->model; }
Session* of(mamba_edge_session* session) { return reinterpret_cast<Session*>(session); }
const Session* of(const mamba_edge_session* session) {
  return reinterpret_cast<const Session*>(session);
}

mamba_edge_status report(const Status& status, mamba_edge_error* error) {
  if (error != nullptr) {
    error->status = status.code();
    static_assert(sizeof error->message >= Status::kMessageBytes);
    std::memcpy(error->message, status.message(), Status::kMessageBytes);
  }
  return status.code();
}

mamba_edge_status null_argument(const char* name, mamba_edge_error* error) {
  return report(Status::error(MAMBA_EDGE_INVALID_ARGUMENT, "%s is NULL", name), error);
}

Status convert(const mamba_edge_session_options* from, SessionOptions* to) {
  if (from != nullptr) {
    const std::pair<const char*, int64_t> given[] = {
        {"chunk", from->chunk}, {"batch", from->batch}, {"state_type", from->state_type}};
    for (const auto& [name, value] : given) {
      if (value < 0) {
        return Status::error(MAMBA_EDGE_INVALID_ARGUMENT, "%s is %lld; expected 0 or more", name,
                             static_cast<long long>(value));
      }
    }
    if (from->n_threads != 0) to->n_threads = from->n_threads;
    if (from->chunk != 0) to->chunk = static_cast<uint32_t>(from->chunk);
    to->state = static_cast<mamba_edge::StateType>(from->state_type);
    to->batch = static_cast<uint32_t>(from->batch);
    if (from->same_bits != 0 && from->same_bits != 1) {
      return Status::error(MAMBA_EDGE_INVALID_ARGUMENT, "same_bits is %d; expected 0 or 1",
                           from->same_bits);
    }
    to->same_bits = from->same_bits == 1;
    to->parallel_for = from->parallel_for;
    to->parallel_for_user = from->parallel_for_user;
  }
  return Session::check_options(*to);
}

Status check_tokens(const Model& model, const int32_t* tokens, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    if (tokens[i] < 0 || static_cast<uint32_t>(tokens[i]) >= model.config.n_vocab) {
      return Status::error(MAMBA_EDGE_INVALID_ARGUMENT,
                           "token %d at position %zu is outside the vocabulary of %u", tokens[i], i,
                           model.config.n_vocab);
    }
  }
  return {};
}

Status check_batch(const Session& lead, mamba_edge_session* const* sessions, const int32_t* tokens,
                   size_t n) {
  constexpr auto kInvalid = MAMBA_EDGE_INVALID_ARGUMENT;
  if (n == 0) return Status::error(kInvalid, "the batch is empty");
  if (n > lead.max_batch()) {
    return Status::error(kInvalid, "a batch of %zu sessions; the leading session was made for %u",
                         n, lead.max_batch());
  }
  const Model& model = lead.model();
  for (size_t i = 0; i < n; ++i) {
    if (sessions[i] == nullptr) return Status::error(kInvalid, "session %zu is NULL", i);
    if (&of(sessions[i])->model() != &model) {
      return Status::error(kInvalid, "session %zu belongs to another model than the leading one",
                           i);
    }
    for (size_t j = 0; j < i; ++j) {
      if (sessions[j] == sessions[i]) {
        return Status::error(kInvalid, "sessions %zu and %zu of the batch are the same", j, i);
      }
    }
    if (tokens[i] < 0 || static_cast<uint32_t>(tokens[i]) >= model.config.n_vocab) {
      return Status::error(kInvalid, "token %d of session %zu is outside the vocabulary of %u",
                           tokens[i], i, model.config.n_vocab);
    }
  }
  return {};
}

Status need_tokenizer(const Model& model) {
  if (model.has_tokenizer) return {};
  return Status::error(
      MAMBA_EDGE_NO_TOKENIZER,
      "%s: has no tokenizer; convert again with tokenizer.json beside the checkpoint, or with "
      "--tokenizer PATH",
      model.path());
}

}  // namespace

extern "C" {

const char* mamba_edge_status_name(mamba_edge_status status) {
  switch (status) {
    case MAMBA_EDGE_OK:
      return "ok";
    case MAMBA_EDGE_INVALID_ARGUMENT:
      return "invalid argument";
    case MAMBA_EDGE_OUT_OF_MEMORY:
      return "out of memory";
    case MAMBA_EDGE_IO:
      return "input/output error";
    case MAMBA_EDGE_BAD_FORMAT:
      return "bad format";
    case MAMBA_EDGE_UNSUPPORTED:
      return "unsupported";
    case MAMBA_EDGE_TOO_SMALL:
      return "buffer too small";
    case MAMBA_EDGE_NO_TOKENIZER:
      return "no tokenizer";
  }
  return "unknown status";
}

const char* mamba_edge_version(void) { return MAMBA_EDGE_VERSION; }

mamba_edge_status mamba_edge_model_open(const char* path, const mamba_edge_model_options* options,
                                        mamba_edge_model** model, mamba_edge_error* error) {
  if (path == nullptr) return null_argument("path", error);
  if (model == nullptr) return null_argument("model", error);
  *model = nullptr;
  mamba_edge::ModelOptions o;
  if (options != nullptr) {
    o.isa = options->isa;
    o.n_threads = options->n_threads < 1 ? 1 : options->n_threads;
    o.verify = options->verify != 0;
  }
  auto* result = new (std::nothrow) mamba_edge_model;
  if (result == nullptr) {
    return report(Status::error(MAMBA_EDGE_OUT_OF_MEMORY, "%s: out of memory", path), error);
  }
  const Status status = mamba_edge::load_model(path, o, &result->model);
  if (status.ok()) {
    *model = result;
  } else {
    delete result;
  }
  return report(status, error);
}

void mamba_edge_model_close(mamba_edge_model* model) { delete model; }

void mamba_edge_model_get_info(const mamba_edge_model* model, mamba_edge_model_info* info) {
  const Model& m = of(model);
  *info = {};
  info->architecture = mamba_edge::architecture_name(m.config.architecture);
  info->isa = m.kernels->isa;
  info->n_parameters = m.n_parameters;
  info->n_layer = static_cast<int32_t>(m.config.n_layer);
  info->d_model = static_cast<int32_t>(m.config.d_model);
  info->n_vocab = static_cast<int32_t>(m.config.n_vocab);
  info->n_vocab_used = static_cast<int32_t>(m.config.n_vocab_used);
  info->bos_token = m.config.bos_token;
  info->eos_token = m.config.eos_token;
  info->has_tokenizer = m.has_tokenizer ? 1 : 0;
  info->weight_bytes = m.weight_bytes;
  info->mapped_bytes = m.mapped_bytes;
  info->fingerprint = m.container.fingerprint();
}

mamba_edge_status mamba_edge_session_required_bytes(const mamba_edge_model* model,
                                                    const mamba_edge_session_options* options,
                                                    size_t* bytes, mamba_edge_error* error) {
  if (model == nullptr) return null_argument("model", error);
  if (bytes == nullptr) return null_argument("bytes", error);
  SessionOptions o;
  const Status status = convert(options, &o);
  if (status.ok()) *bytes = Session::required_bytes(of(model), o);
  return report(status, error);
}

mamba_edge_status mamba_edge_session_create(const mamba_edge_model* model,
                                            const mamba_edge_session_options* options, void* arena,
                                            size_t arena_bytes, mamba_edge_session** session,
                                            mamba_edge_error* error) {
  if (model == nullptr) return null_argument("model", error);
  if (session == nullptr) return null_argument("session", error);
  *session = nullptr;
  SessionOptions o;
  Status status = convert(options, &o);
  if (!status.ok()) return report(status, error);
  const size_t needed = Session::required_bytes(of(model), o);
  void* own = nullptr;
  if (arena == nullptr) {
    arena = own = mamba_edge::memory_allocate(needed);
    if (own == nullptr) {
      return report(
          Status::error(MAMBA_EDGE_OUT_OF_MEMORY, "no memory for an arena of %zu bytes", needed),
          error);
    }
  } else if (reinterpret_cast<uintptr_t>(arena) % mamba_edge::kBlockAlign != 0) {
    return report(Status::error(MAMBA_EDGE_INVALID_ARGUMENT, "the arena is not aligned to %u bytes",
                                mamba_edge::kBlockAlign),
                  error);
  } else if (arena_bytes < needed) {
    return report(
        Status::error(MAMBA_EDGE_TOO_SMALL, "the arena has %zu bytes; the session needs %zu",
                      arena_bytes, needed),
        error);
  }
  Session* result = nullptr;
  status = Session::create(of(model), o, arena, &result);
  if (status.ok()) {
    result->owned_arena = own;
    result->owned_bytes = needed;
    *session = reinterpret_cast<mamba_edge_session*>(result);
  } else {
    mamba_edge::memory_free(own, needed);
  }
  return report(status, error);
}

void mamba_edge_session_destroy(mamba_edge_session* session) {
  if (session == nullptr) return;
  void* memory = of(session)->owned_arena;
  const size_t bytes = of(session)->owned_bytes;
  of(session)->destroy();
  mamba_edge::memory_free(memory, bytes);
}

void mamba_edge_session_reset(mamba_edge_session* session) { of(session)->reset(); }

uint64_t mamba_edge_session_position(const mamba_edge_session* session) {
  return of(session)->position();
}

mamba_edge_status mamba_edge_prefill(mamba_edge_session* session, const int32_t* tokens, size_t n,
                                     float* all_logits, mamba_edge_error* error) {
  if (session == nullptr) return null_argument("session", error);
  if (tokens == nullptr && n > 0) return null_argument("tokens", error);
  const Status status = check_tokens(of(session)->model(), tokens, n);
  if (status.ok()) of(session)->take_tokens(tokens, n, all_logits);
  return report(status, error);
}

mamba_edge_status mamba_edge_step(mamba_edge_session* session, int32_t token,
                                  mamba_edge_error* error) {
  return mamba_edge_prefill(session, &token, 1, nullptr, error);
}

mamba_edge_status mamba_edge_step_batch(mamba_edge_session* lead,
                                        mamba_edge_session* const* sessions, const int32_t* tokens,
                                        size_t n, mamba_edge_error* error) {
  if (lead == nullptr) return null_argument("lead", error);
  if (sessions == nullptr) return null_argument("sessions", error);
  if (tokens == nullptr) return null_argument("tokens", error);
  const Status status = check_batch(*of(lead), sessions, tokens, n);
  if (status.ok()) {
    of(lead)->step_batch(reinterpret_cast<Session* const*>(sessions), tokens, n);
  }
  return report(status, error);
}

float* mamba_edge_logits(mamba_edge_session* session) { return of(session)->logits(); }

size_t mamba_edge_state_bytes(const mamba_edge_model* model) {
  return Session::state_bytes(of(model));
}

mamba_edge_status mamba_edge_state_save(const mamba_edge_session* session, void* buffer,
                                        size_t bytes, mamba_edge_error* error) {
  if (session == nullptr) return null_argument("session", error);
  if (buffer == nullptr) return null_argument("buffer", error);
  const size_t needed = Session::state_bytes(of(session)->model());
  if (bytes < needed) {
    return report(Status::error(MAMBA_EDGE_TOO_SMALL,
                                "the buffer has %zu bytes; the state needs %zu", bytes, needed),
                  error);
  }
  of(session)->save_state(static_cast<uint8_t*>(buffer));
  return report({}, error);
}

mamba_edge_status mamba_edge_state_load(mamba_edge_session* session, const void* buffer,
                                        size_t bytes, mamba_edge_error* error) {
  if (session == nullptr) return null_argument("session", error);
  if (buffer == nullptr) return null_argument("buffer", error);
  const size_t needed = Session::state_bytes(of(session)->model());
  if (bytes != needed) {
    return report(Status::error(MAMBA_EDGE_BAD_FORMAT,
                                "a saved state of %zu bytes; this model's has %zu", bytes, needed),
                  error);
  }
  return report(of(session)->load_state(static_cast<const uint8_t*>(buffer)), error);
}

mamba_edge_status mamba_edge_state_copy(mamba_edge_session* to, const mamba_edge_session* from,
                                        mamba_edge_error* error) {
  if (to == nullptr) return null_argument("to", error);
  if (from == nullptr) return null_argument("from", error);
  if (of(to)->model().container.fingerprint() != of(from)->model().container.fingerprint()) {
    return report(Status::error(MAMBA_EDGE_INVALID_ARGUMENT,
                                "the sessions belong to different models: %s and %s",
                                of(to)->model().path(), of(from)->model().path()),
                  error);
  }
  if (to != from) of(to)->copy_state(*of(from));
  return report({}, error);
}

mamba_edge_status mamba_edge_state_export(const mamba_edge_session* session, int layer, float* conv,
                                          size_t* n_conv, float* ssm, size_t* n_ssm,
                                          mamba_edge_error* error) {
  if (session == nullptr) return null_argument("session", error);
  const uint32_t n_layer = of(session)->model().config.n_layer;
  if (layer < 0 || static_cast<uint32_t>(layer) >= n_layer) {
    return report(Status::error(MAMBA_EDGE_INVALID_ARGUMENT,
                                "layer %d; the model has layers 0 to %u", layer, n_layer - 1),
                  error);
  }
  of(session)->export_state(static_cast<uint32_t>(layer), conv, n_conv, ssm, n_ssm);
  return report({}, error);
}

mamba_edge_status mamba_edge_tokenize(const mamba_edge_model* model, const char* text,
                                      size_t length, unsigned flags, int32_t* ids, size_t capacity,
                                      size_t* n, mamba_edge_error* error) {
  if (model == nullptr) return null_argument("model", error);
  if (n == nullptr) return null_argument("n", error);
  if (text == nullptr && length > 0) return null_argument("text", error);
  if (ids == nullptr && capacity > 0) return null_argument("ids", error);
  const Model& m = of(model);
  Status status = need_tokenizer(m);
  if (!status.ok()) return report(status, error);
  const size_t scratch_bytes = m.tokenizer.scratch_bytes(length);
  void* scratch = std::malloc(scratch_bytes);
  if (scratch == nullptr) {
    return report(
        Status::error(MAMBA_EDGE_OUT_OF_MEMORY, "no memory to tokenize %zu bytes of text", length),
        error);
  }
  status = m.tokenizer.encode({text, length}, flags,
                              {static_cast<std::byte*>(scratch), scratch_bytes}, ids, capacity, n);
  std::free(scratch);
  return report(status, error);
}

size_t mamba_edge_max_piece_bytes(const mamba_edge_model* model) {
  return of(model).has_tokenizer ? of(model).tokenizer.max_piece_bytes() : 0;
}

mamba_edge_status mamba_edge_decoder_init(mamba_edge_decoder* decoder,
                                          const mamba_edge_model* model, unsigned flags,
                                          mamba_edge_error* error) {
  if (decoder == nullptr) return null_argument("decoder", error);
  if (model == nullptr) return null_argument("model", error);
  Status status = need_tokenizer(of(model));
  if (status.ok()) status = of(model).tokenizer.decoder_init(decoder, flags);
  decoder->model = status.ok() ? model : nullptr;
  return report(status, error);
}

mamba_edge_status mamba_edge_decode(mamba_edge_decoder* decoder, int32_t token, char* text,
                                    size_t capacity, size_t* n, mamba_edge_error* error) {
  if (decoder == nullptr || decoder->model == nullptr) return null_argument("decoder", error);
  if (n == nullptr) return null_argument("n", error);
  if (text == nullptr && capacity > 0) return null_argument("text", error);
  return report(of(decoder->model).tokenizer.decode(decoder, token, text, capacity, n), error);
}

mamba_edge_status mamba_edge_decode_finish(mamba_edge_decoder* decoder, char* text, size_t capacity,
                                           size_t* n, mamba_edge_error* error) {
  if (decoder == nullptr || decoder->model == nullptr) return null_argument("decoder", error);
  if (n == nullptr) return null_argument("n", error);
  if (text == nullptr && capacity > 0) return null_argument("text", error);
  return report(of(decoder->model).tokenizer.decode_finish(decoder, text, capacity, n), error);
}

size_t mamba_edge_sampler_required_bytes(const mamba_edge_model* model,
                                         const mamba_edge_sampler_options* options) {
  if (model == nullptr || options == nullptr || !Sampler::check(*options).ok()) return 0;
  return Sampler::required_bytes(static_cast<int32_t>(of(model).config.n_vocab_used), *options);
}

mamba_edge_status mamba_edge_sampler_init(const mamba_edge_model* model,
                                          const mamba_edge_sampler_options* options, void* memory,
                                          size_t bytes, mamba_edge_sampler** sampler,
                                          mamba_edge_error* error) {
  if (model == nullptr) return null_argument("model", error);
  if (options == nullptr) return null_argument("options", error);
  if (memory == nullptr) return null_argument("memory", error);
  if (sampler == nullptr) return null_argument("sampler", error);
  *sampler = nullptr;
  Status status = Sampler::check(*options);
  if (!status.ok()) return report(status, error);
  Sampler* result = nullptr;
  status = Sampler::init(*options, *of(model).kernels,
                         static_cast<int32_t>(of(model).config.n_vocab_used),
                         {static_cast<std::byte*>(memory), bytes}, &result);
  if (status.ok()) *sampler = reinterpret_cast<mamba_edge_sampler*>(result);
  return report(status, error);
}

void mamba_edge_sampler_accept(mamba_edge_sampler* sampler, int32_t token) {
  reinterpret_cast<Sampler*>(sampler)->accept(token);
}

int32_t mamba_edge_sample(mamba_edge_sampler* sampler, const float* logits) {
  return reinterpret_cast<Sampler*>(sampler)->sample(logits);
}

}  // extern "C"
