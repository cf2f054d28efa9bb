/* See batching.h. */
#include "cmd/batching.h"

enum { K_CONCURRENCY = CMD_BATCH_KEY, K_QUEUE, K_CACHE };

static const struct argp_option options[] = {
    { NULL, 0, NULL, 0, "Batching:", 0 },
    { "limit-model-concurrency", K_CONCURRENCY, "N", 0, "Answers computed side by side; others wait (default 16)", 0 },
    { "queue", K_QUEUE, "N", 0, "Requests that may wait; more are refused (default 256)", 0 },
    { "cache-positions", K_CACHE, "N", 0,
      "Positions of all answers and of what is kept for reuse (default: as many as fit, see llava_batch.h)", 0 },
    { 0 },
};

static error_t option(int key, char *arg, struct argp_state *state)
{
    struct llava_batch_options *o = state->input;
    switch (key) {
    case K_CONCURRENCY: o->sequences = (int)cmd_int(state, "limit-model-concurrency", arg, 1, 4096); break;
    case K_QUEUE: o->queue = (int)cmd_int(state, "queue", arg, 1, 1 << 20); break;
    case K_CACHE: o->cache_positions = cmd_int(state, "cache-positions", arg, 1, 1L << 40); break;
    default: return ARGP_ERR_UNKNOWN;
    }
    return 0;
}
const struct argp batching_argp = { options, option, NULL, NULL, NULL, NULL, NULL };
