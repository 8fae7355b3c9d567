/* mamba-edge: runs Mamba language models without a GPU, in memory that is planned in advance.
 *
 * Conventions
 *  - Plain C. Every call that can fail returns a mamba_edge_status; where it takes a
 * mamba_edge_error*, that may be NULL, and on failure receives the status and a message that names
 * the file and the thing.
 *  - The library never prints, aborts, throws, or reads the environment. It has no global mutable
 * state.
 *  - A model is immutable and may be shared by threads. A session belongs to one thread at a time.
 *  - mamba_edge_step allocates nothing and opens nothing; with one thread it makes no system call.
 *  - Option structs: zero-initialise them and set what you need; zero always means the default.
 *  - Sizes are in bytes, tokens are ids in [0, n_vocab), logits are float32 in natural units.
 *
 * In short
 *    mamba_edge_model_open -> mamba_edge_session_create -> mamba_edge_tokenize ->
 * mamba_edge_prefill
 *    -> loop { mamba_edge_sample, mamba_edge_decode, mamba_edge_step } -> destroy, close
 */
#ifndef MAMBA_EDGE_H
#define MAMBA_EDGE_H

#include <stddef.h>
#include <stdint.h>

#if defined(MAMBA_EDGE_SHARED) && defined(__GNUC__)
#define MAMBA_EDGE_API __attribute__((visibility("default")))
#else
#define MAMBA_EDGE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status ---- */

typedef enum mamba_edge_status {
  MAMBA_EDGE_OK = 0,
  MAMBA_EDGE_INVALID_ARGUMENT =
      1, /* the caller's mistake: a NULL, a token outside the vocabulary, ... */
  MAMBA_EDGE_OUT_OF_MEMORY =
      2,                      /* memory refused, or the model is larger than the machine's memory */
  MAMBA_EDGE_IO = 3,          /* a file could not be opened, read or written */
  MAMBA_EDGE_BAD_FORMAT = 4,  /* the file is not a mamba-edge container, or is damaged */
  MAMBA_EDGE_UNSUPPORTED = 5, /* well-formed, but needs something that this build does not have */
  MAMBA_EDGE_TOO_SMALL =
      6, /* a buffer of the caller's is too small; the message says the size needed */
  MAMBA_EDGE_NO_TOKENIZER = 7 /* the model was converted without one; token ids still work */
} mamba_edge_status;

typedef struct mamba_edge_error {
  mamba_edge_status status;
  char message[480]; /* UTF-8, always terminated */
} mamba_edge_error;

/* The name of a status, for logs. Never NULL. */
MAMBA_EDGE_API const char* mamba_edge_status_name(mamba_edge_status status);

/* "MAJOR.MINOR.PATCH" of the library. */
MAMBA_EDGE_API const char* mamba_edge_version(void);

/* ---- model: the weights, read once, shared ---- */

typedef struct mamba_edge_model mamba_edge_model;
typedef struct mamba_edge_session mamba_edge_session;

/* Runs `task(context, i)` once for every i in [0, n), in any order, on any threads, and returns
 * when all are done. At most `n_threads` of the session's options may run at the same time; each
 * takes up to 128 KiB of stack. */
typedef void (*mamba_edge_task)(void* context, size_t i);
typedef void (*mamba_edge_parallel_for)(void* user, size_t n, mamba_edge_task task, void* context);

typedef struct mamba_edge_model_options {
  const char* isa; /* kernel table by name ("avx2", "generic", ...); NULL: the best this CPU runs */
  int n_threads;   /* threads that inflate the file while it is opened; 0: 1 */
  int verify; /* nonzero: also check the checksums of tensors that are stored raw and only mapped
                 (compressed tensors are always checked) */
} mamba_edge_model_options;

typedef struct mamba_edge_model_info {
  const char* architecture; /* "mamba", "mamba2", "falcon_mamba" */
  const char* isa;          /* the kernel table in use */
  int64_t n_parameters;     /* stored, tied ones counted once */
  int32_t n_layer, d_model;
  int32_t n_vocab;      /* rows of the head: length of a logits row, padding included */
  int32_t n_vocab_used; /* tokens that text can contain; rows beyond are padding */
  int32_t bos_token;    /* starts a text; -1 if the model names none */
  int32_t eos_token;    /* ends a text; -1 if the model names none */
  int has_tokenizer;
  uint64_t weight_bytes; /* memory that holds weights */
  uint64_t mapped_bytes; /* of these, bytes mapped from the file instead of allocated */
  uint64_t fingerprint;  /* of config and tensors: tells two models apart */
} mamba_edge_model_info;

/* Opens a container written by mamba-quantize. `options` may be NULL.
 * Errors: IO, BAD_FORMAT, UNSUPPORTED, OUT_OF_MEMORY, INVALID_ARGUMENT (unknown or unavailable
 * isa). */
MAMBA_EDGE_API mamba_edge_status mamba_edge_model_open(const char* path,
                                                       const mamba_edge_model_options* options,
                                                       mamba_edge_model** model,
                                                       mamba_edge_error* error);
MAMBA_EDGE_API void mamba_edge_model_close(mamba_edge_model* model); /* NULL is allowed */
MAMBA_EDGE_API void mamba_edge_model_get_info(const mamba_edge_model* model,
                                              mamba_edge_model_info* info);

/* ---- session: one text in progress ---- */

/* How the recurrent state is kept between tokens. fp16 halves the bytes that a step moves for it (of
 * Mamba-2's, a quarter of all); every token's state is rounded to binary16. int8 halves them nearly
 * again: 64 states of a channel share a scale, and rounding is dithered by a token's position. */
typedef enum mamba_edge_state_type {
  MAMBA_EDGE_STATE_FP32 = 0,
  MAMBA_EDGE_STATE_FP16 = 1,
  MAMBA_EDGE_STATE_INT8 = 2
} mamba_edge_state_type;

typedef struct mamba_edge_session_options {
  int n_threads; /* threads that compute, the caller's included; 0: 1 */
  int chunk; /* tokens that prefill takes through the weights at a time; 0: 256. Affects memory and
                speed, and results only as `same_bits` says */
  mamba_edge_parallel_for parallel_for; /* the caller's pool; NULL: the session starts its own */
  void* parallel_for_user;
  int state_type; /* a mamba_edge_state_type */
  int batch; /* texts that mamba_edge_step_batch may take with this session in the lead; 0: none */
  int same_bits; /* 1: a text gives the same bits read at once, in any pieces, or token by token. 0: where
                    that is faster (CPUs with AMX, fp32 states, chunks from 64), prefill of quantised
                    Mamba-2 models takes blocks of 64 tokens in another form, whose results differ from
                    step's by more than the order of sums, but by less than what quantising the
                    weights and activations changed */
} mamba_edge_session_options;

/* Bytes of arena that a session needs; depends on the model's config and the options only. */
MAMBA_EDGE_API mamba_edge_status mamba_edge_session_required_bytes(
    const mamba_edge_model* model, const mamba_edge_session_options* options, size_t* bytes,
    mamba_edge_error* error);

/* Makes a session inside `arena` (64-byte aligned, `arena_bytes` long), which the caller keeps
 * alive and frees after mamba_edge_session_destroy. With arena NULL the session allocates its own.
 * The session starts fresh, as after mamba_edge_session_reset. */
MAMBA_EDGE_API mamba_edge_status mamba_edge_session_create(
    const mamba_edge_model* model, const mamba_edge_session_options* options, void* arena,
    size_t arena_bytes, mamba_edge_session** session, mamba_edge_error* error);
MAMBA_EDGE_API void mamba_edge_session_destroy(mamba_edge_session* session); /* NULL is allowed */

/* Back to the state before the first token. */
MAMBA_EDGE_API void mamba_edge_session_reset(mamba_edge_session* session);

/* Tokens taken since the session was fresh. */
MAMBA_EDGE_API uint64_t mamba_edge_session_position(const mamba_edge_session* session);

/* Takes n tokens. `all_logits`: NULL, or float [n, n_vocab] that receives a row per token.
 * Afterwards mamba_edge_logits has the row of the last token. Splitting a prompt over several
 * calls, or stepping through it, gives the same bits, or nearly the same: see `same_bits`. A token
 * outside [0, n_vocab) is refused before anything is changed. */
MAMBA_EDGE_API mamba_edge_status mamba_edge_prefill(mamba_edge_session* session,
                                                    const int32_t* tokens, size_t n,
                                                    float* all_logits, mamba_edge_error* error);

/* Takes one token. */
MAMBA_EDGE_API mamba_edge_status mamba_edge_step(mamba_edge_session* session, int32_t token,
                                                 mamba_edge_error* error);

/* Takes one token for each of n different sessions of one model, and reads every weight once for all
 * of them. `lead` lends its buffers and threads: n is at most the `batch` of its options; it may be
 * one of the n itself. Sessions may join and leave from one call to the next, and each gets the same
 * bits as if it had stepped alone. What is refused is refused before anything is changed, and the
 * message names the session by its place: an empty or too large batch, a session of another model,
 * one that is named twice, a token outside the vocabulary. */
MAMBA_EDGE_API mamba_edge_status mamba_edge_step_batch(mamba_edge_session* lead,
                                                       mamba_edge_session* const* sessions,
                                                       const int32_t* tokens, size_t n,
                                                       mamba_edge_error* error);

/* float [n_vocab]: logits after the last token; lives in the arena and is overwritten by the next
 * call. NULL before the first token. */
MAMBA_EDGE_API float* mamba_edge_logits(mamba_edge_session* session);

/* The state of a session: everything that later tokens depend on. Saved bytes are little-endian,
 * carry the model's fingerprint and are the same for every ISA and number of threads. */
MAMBA_EDGE_API size_t mamba_edge_state_bytes(const mamba_edge_model* model);
MAMBA_EDGE_API mamba_edge_status mamba_edge_state_save(const mamba_edge_session* session,
                                                       void* buffer, size_t bytes,
                                                       mamba_edge_error* error);
MAMBA_EDGE_API mamba_edge_status mamba_edge_state_load(mamba_edge_session* session,
                                                       const void* buffer, size_t bytes,
                                                       mamba_edge_error* error);
/* Makes `to` continue where `from` is; both must be of the same model. A fork. */
MAMBA_EDGE_API mamba_edge_status mamba_edge_state_copy(mamba_edge_session* to,
                                                       const mamba_edge_session* from,
                                                       mamba_edge_error* error);

/* One layer's state in the order in which reference implementations print it, for inspection:
 *  conv  float [channels, d_conv], the last inputs of the convolution, newest last, zeros before
 * the first token; channels = d_inner (Mamba-1) or d_inner + 2 n_groups d_state, in the order x, B,
 * C (Mamba-2) ssm   float [d_inner, d_state] (Mamba-1) or [n_heads, headdim, d_state] (Mamba-2)
 * Either pointer may be NULL. The counts are in floats; call with both pointers NULL to learn them.
 */
MAMBA_EDGE_API mamba_edge_status mamba_edge_state_export(const mamba_edge_session* session,
                                                         int layer, float* conv, size_t* n_conv,
                                                         float* ssm, size_t* n_ssm,
                                                         mamba_edge_error* error);

/* ---- text ---- */

enum {                            /* flags of mamba_edge_tokenize */
       MAMBA_EDGE_PLAIN_TEXT = 1, /* special tokens written in the text are ordinary text */
       MAMBA_EDGE_NO_TEMPLATE =
           2 /* leave out what the tokenizer's post-processor adds (a start token, say) */
};

/* Turns `length` bytes of text into ids. Invalid UTF-8 is kept byte for byte where the tokenizer
 * can express bytes. Writes at most `capacity` ids and always sets *n to the number that the text
 * has; TOO_SMALL if that is larger. */
MAMBA_EDGE_API mamba_edge_status mamba_edge_tokenize(const mamba_edge_model* model,
                                                     const char* text, size_t length,
                                                     unsigned flags, int32_t* ids, size_t capacity,
                                                     size_t* n, mamba_edge_error* error);

enum {                              /* flags of mamba_edge_decoder_init */
       MAMBA_EDGE_SKIP_SPECIAL = 1, /* special tokens give no text */
       MAMBA_EDGE_CONTINUATION =
           2 /* the ids continue a text: keep a leading space that a decoder would strip */
};

/* Turns a stream of ids into UTF-8, whole characters only. Caller-owned, plain data; copy it to
 * fork it. */
typedef struct mamba_edge_decoder {
  const mamba_edge_model* model;
  uint32_t flags;
  uint32_t started;
  uint8_t pending[8]; /* bytes of a character that is not complete yet */
  uint32_t n_pending;
  uint32_t reserved;
} mamba_edge_decoder;

/* Longest text that one call of mamba_edge_decode can write for this model, terminator not
 * included. */
MAMBA_EDGE_API size_t mamba_edge_max_piece_bytes(const mamba_edge_model* model);

MAMBA_EDGE_API mamba_edge_status mamba_edge_decoder_init(mamba_edge_decoder* decoder,
                                                         const mamba_edge_model* model,
                                                         unsigned flags, mamba_edge_error* error);
/* Writes the text that `token` completes (possibly none) and sets *n to its length. Bytes that
 * cannot become valid UTF-8 are written as U+FFFD. The text is not terminated. */
MAMBA_EDGE_API mamba_edge_status mamba_edge_decode(mamba_edge_decoder* decoder, int32_t token,
                                                   char* text, size_t capacity, size_t* n,
                                                   mamba_edge_error* error);
/* Writes what is left at the end of a stream: U+FFFD for bytes of an incomplete character. */
MAMBA_EDGE_API mamba_edge_status mamba_edge_decode_finish(mamba_edge_decoder* decoder, char* text,
                                                          size_t capacity, size_t* n,
                                                          mamba_edge_error* error);

/* ---- sampling ---- */

/* Steps, in this order: repeat penalty, temperature, top-k, top-p, min-p, then a draw. */
typedef struct mamba_edge_sampler_options {
  uint64_t seed;
  float temperature;     /* 0: always the largest logit (the lowest id wins a tie) */
  int32_t top_k;         /* keep the k largest; 0: all */
  float top_p;           /* keep the smallest set whose probability reaches p; 0 or 1: all */
  float min_p;           /* drop what is less than p times as probable as the best; 0: none */
  float repeat_penalty;  /* divide positive logits of recent tokens by this, multiply negative ones;
                            0 or 1: off */
  int32_t repeat_last_n; /* how many recent tokens that concerns; 0: none, -1: 2048 */
} mamba_edge_sampler_options;

typedef struct mamba_edge_sampler mamba_edge_sampler;

/* Bytes that a sampler needs (0 for options that mamba_edge_sampler_init refuses), and a sampler
 * made inside `memory` (8-byte aligned). No destroy is needed. */
MAMBA_EDGE_API size_t mamba_edge_sampler_required_bytes(const mamba_edge_model* model,
                                                        const mamba_edge_sampler_options* options);
MAMBA_EDGE_API mamba_edge_status mamba_edge_sampler_init(const mamba_edge_model* model,
                                                         const mamba_edge_sampler_options* options,
                                                         void* memory, size_t bytes,
                                                         mamba_edge_sampler** sampler,
                                                         mamba_edge_error* error);
/* Tells the sampler about a token of the prompt, so that the repeat penalty knows it. */
MAMBA_EDGE_API void mamba_edge_sampler_accept(mamba_edge_sampler* sampler, int32_t token);
/* Draws a token from logits [n_vocab] (left unchanged; padding rows are never drawn) and accepts
 * it. Allocates nothing; the same seed and logits give the same tokens on every platform that
 * rounds float32 as IEEE 754 does. */
MAMBA_EDGE_API int32_t mamba_edge_sample(mamba_edge_sampler* sampler, const float* logits);

#ifdef __cplusplus
}
#endif
#endif /* MAMBA_EDGE_H */
