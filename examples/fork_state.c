/* One prompt, read once, and several continuations of it: the state of a Mamba model has a fixed
 * size, so a fork is a copy of a few kilobytes to a few megabytes, however long the prompt was. All
 * memory is the caller's.
 *
 *   fork_state MODEL.mamba "The wolf said" [COUNT]
 */
#include <mamba_edge.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kMaxPrompt = 1024, kNewTokens = 40, kAlignment = 64 };

static void check(mamba_edge_status status, const mamba_edge_error* error) {
  if (status != MAMBA_EDGE_OK) {
    fprintf(stderr, "fork_state: %s\n", error->message);
    exit(EXIT_FAILURE);
  }
}

/* Memory for a session, on the boundary that the arena asks for; *block is what free() wants. */
static void* make_arena(size_t bytes, void** block) {
  *block = malloc(bytes + kAlignment);
  if (!*block) {
    fprintf(stderr, "fork_state: no memory for an arena of %lu bytes\n", (unsigned long)bytes);
    exit(EXIT_FAILURE);
  }
  return (void*)(((uintptr_t)*block + kAlignment - 1) & ~(uintptr_t)(kAlignment - 1));
}

static void continue_text(const mamba_edge_model* model, mamba_edge_session* session,
                          const float* first_logits, uint64_t seed, int32_t eos_token) {
  mamba_edge_error error;
  mamba_edge_sampler_options sampling;
  mamba_edge_sampler* sampler = NULL;
  mamba_edge_decoder decoder;
  size_t bytes, capacity = mamba_edge_max_piece_bytes(model), length;
  void* memory;
  char* text;
  const float* logits = first_logits;
  int i;

  memset(&sampling, 0, sizeof sampling);
  sampling.seed = seed;
  sampling.temperature = 0.8f;
  sampling.top_k = 40;
  bytes = mamba_edge_sampler_required_bytes(model, &sampling);
  memory = malloc(bytes);
  text = malloc(capacity);
  if (!memory || !text) {
    fprintf(stderr, "fork_state: out of memory\n");
    exit(EXIT_FAILURE);
  }
  check(mamba_edge_sampler_init(model, &sampling, memory, bytes, &sampler, &error), &error);
  check(mamba_edge_decoder_init(&decoder, model, MAMBA_EDGE_SKIP_SPECIAL | MAMBA_EDGE_CONTINUATION,
                                &error),
        &error);
  for (i = 0; i < kNewTokens; ++i) {
    const int32_t token = mamba_edge_sample(sampler, logits);
    if (token == eos_token) break;
    check(mamba_edge_decode(&decoder, token, text, capacity, &length, &error), &error);
    fwrite(text, 1, length, stdout);
    check(mamba_edge_step(session, token, &error), &error);
    logits = mamba_edge_logits(session);
  }
  free(text);
  free(memory);
}

int main(int argc, char** argv) {
  mamba_edge_error error;
  mamba_edge_model* model = NULL;
  mamba_edge_model_info info;
  mamba_edge_session *trunk = NULL, *branch = NULL;
  int32_t prompt[kMaxPrompt + 1];
  size_t n = 0, first = 0, bytes = 0;
  void *trunk_block, *branch_block, *arena;
  int i, count;

  if (argc < 3 || argc > 4) {
    fprintf(stderr, "usage: fork_state MODEL.mamba PROMPT [COUNT]\n");
    return 2;
  }
  count = argc == 4 ? atoi(argv[3]) : 3;

  check(mamba_edge_model_open(argv[1], NULL, &model, &error), &error);
  mamba_edge_model_get_info(model, &info);
  check(mamba_edge_session_required_bytes(model, NULL, &bytes, &error), &error);
  arena = make_arena(bytes, &trunk_block);
  check(mamba_edge_session_create(model, NULL, arena, bytes, &trunk, &error), &error);
  arena = make_arena(bytes, &branch_block);
  check(mamba_edge_session_create(model, NULL, arena, bytes, &branch, &error), &error);

  if (info.bos_token >= 0) prompt[first++] = info.bos_token;
  check(mamba_edge_tokenize(model, argv[2], strlen(argv[2]), MAMBA_EDGE_NO_TEMPLATE, prompt + first,
                            kMaxPrompt, &n, &error),
        &error);
  n += first;
  if (n == 0) {
    fprintf(stderr, "fork_state: this model needs a prompt\n");
    return EXIT_FAILURE;
  }
  check(mamba_edge_prefill(trunk, prompt, n, NULL, &error), &error);
  fprintf(stderr, "%lu tokens read once; a fork copies %lu bytes\n", (unsigned long)n,
          (unsigned long)mamba_edge_state_bytes(model));

  for (i = 0; i < count; ++i) {
    check(mamba_edge_state_copy(branch, trunk, &error), &error);
    printf("%d: %s", i + 1, argv[2]);
    continue_text(model, branch, mamba_edge_logits(trunk), (uint64_t)i + 1, info.eos_token);
    printf("\n\n");
  }

  mamba_edge_session_destroy(branch);
  mamba_edge_session_destroy(trunk);
  free(branch_block);
  free(trunk_block);
  mamba_edge_model_close(model);
  return EXIT_SUCCESS;
}
