/* The shortest useful program: opens a model, reads a prompt, writes what comes next.
 *
 *   hello MODEL.mamba "Once upon a time"
 */
#include <mamba_edge.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kMaxPrompt = 1024, kNewTokens = 100 };

static void check(mamba_edge_status status, const mamba_edge_error* error) {
  if (status != MAMBA_EDGE_OK) {
    fprintf(stderr, "hello: %s\n", error->message);
    exit(EXIT_FAILURE);
  }
}

int main(int argc, char** argv) {
  mamba_edge_error error;
  mamba_edge_model* model = NULL;
  mamba_edge_model_info info;
  mamba_edge_session* session = NULL;
  mamba_edge_sampler_options sampling;
  mamba_edge_sampler* sampler = NULL;
  mamba_edge_decoder decoder;
  int32_t prompt[kMaxPrompt + 1];
  size_t n = 0, first = 0, length, sampler_bytes, capacity;
  void* sampler_memory;
  char* text;
  int i;

  if (argc != 3) {
    fprintf(stderr, "usage: hello MODEL.mamba PROMPT\n");
    return 2;
  }
  check(mamba_edge_model_open(argv[1], NULL, &model, &error), &error);
  mamba_edge_model_get_info(model, &info);
  check(mamba_edge_session_create(model, NULL, NULL, 0, &session, &error), &error);

  /* A text starts with the model's start token, where it has one. */
  if (info.bos_token >= 0) prompt[first++] = info.bos_token;
  check(mamba_edge_tokenize(model, argv[2], strlen(argv[2]), MAMBA_EDGE_NO_TEMPLATE, prompt + first,
                            kMaxPrompt, &n, &error),
        &error);
  n += first;
  if (n == 0) {
    fprintf(stderr, "hello: this model needs a prompt\n");
    return EXIT_FAILURE;
  }

  memset(&sampling, 0, sizeof sampling);
  sampling.seed = 7;
  sampling.temperature = 0.8f;
  sampling.top_k = 40;
  sampler_bytes = mamba_edge_sampler_required_bytes(model, &sampling);
  capacity = mamba_edge_max_piece_bytes(model);
  sampler_memory = malloc(sampler_bytes);
  text = malloc(capacity);
  if (!sampler_memory || !text) {
    fprintf(stderr, "hello: out of memory\n");
    return EXIT_FAILURE;
  }
  check(mamba_edge_sampler_init(model, &sampling, sampler_memory, sampler_bytes, &sampler, &error),
        &error);
  check(mamba_edge_decoder_init(&decoder, model, MAMBA_EDGE_SKIP_SPECIAL | MAMBA_EDGE_CONTINUATION,
                                &error),
        &error);

  fputs(argv[2], stdout);
  check(mamba_edge_prefill(session, prompt, n, NULL, &error), &error);
  for (i = 0; i < kNewTokens; ++i) {
    const int32_t token = mamba_edge_sample(sampler, mamba_edge_logits(session));
    if (token == info.eos_token) break;
    check(mamba_edge_decode(&decoder, token, text, capacity, &length, &error), &error);
    fwrite(text, 1, length, stdout);
    fflush(stdout);
    check(mamba_edge_step(session, token, &error), &error);
  }
  check(mamba_edge_decode_finish(&decoder, text, capacity, &length, &error), &error);
  fwrite(text, 1, length, stdout);
  putchar('\n');

  free(text);
  free(sampler_memory);
  mamba_edge_session_destroy(session);
  mamba_edge_model_close(model);
  return EXIT_SUCCESS;
}
