/* See answering.h. */
#include "cmd/answering.h"

enum { K_CONCURRENCY = CMD_BATCH_KEY, K_QUEUE, K_PICTURES, K_CACHE, K_URLS, K_PRIVATE };

static const struct argp_option options[] = {
    { NULL, 0, NULL, 0, "Answers:", 0 },
    { "limit-model-concurrency", K_CONCURRENCY, "N", 0, "Answers computed side by side; others wait (default 16)", 0 },
    { "queue", K_QUEUE, "N", 0, "Requests that may wait; more are refused (default 256)", 0 },
    { "pictures", K_PICTURES, "N", 0,
      "Pictures that requests may hold, waiting or being answered; more are refused (default 512)", 0 },
    { "cache-positions", K_CACHE, "N", 0,
      "Positions of all answers and of what is kept for reuse (default: as many as fit; llava_batch.h)", 0 },
    { "allow-image-urls", K_URLS, NULL, 0,
      "Fetch pictures from the http(s) addresses that requests name (default: only data URIs), but not from private "
      "networks", 0 },
    { "allow-private-urls", K_PRIVATE, NULL, 0, "Fetch them from private networks, too, and from localhost", 0 },
    { 0 },
};

static error_t option(int key, char *arg, struct argp_state *state)
{
    struct answering *o = state->input;
    switch (key) {
    case K_CONCURRENCY: o->batch.sequences = (int)cmd_int(state, "limit-model-concurrency", arg, 1, 4096); break;
    case K_QUEUE: o->batch.queue = (int)cmd_int(state, "queue", arg, 1, 1 << 20); break;
    case K_PICTURES: o->pictures = (int)cmd_int(state, "pictures", arg, 1, 1 << 20); break;
    case K_CACHE: o->batch.cache_positions = cmd_int(state, "cache-positions", arg, 1, 1L << 40); break;
    case K_URLS: o->fetch.allowed = true; break;
    case K_PRIVATE: o->fetch.allowed = o->fetch.private_too = true; break;
    default: return ARGP_ERR_UNKNOWN;
    }
    return 0;
}
const struct argp answering_argp = { options, option, NULL, NULL, NULL, NULL, NULL };
