/* The OpenAI API over a model: /v1/models, /v1/completions, /v1/chat/completions, /v1/responses. What differs: pictures
 * go before the text of their message (as LLaVA was trained), a draw without "seed" has a seed of its own, "top_k" and
 * the ways in which other servers name a schema or a grammar are known, responses are not kept, and what is not done
 * here (tools, suffix, best_of, ...) is refused and not ignored. */
#pragma once
#include "serve/fetch.h"
#include "serve/gen.h"
#include "serve/server.h"

struct openai {
    struct gen *g;
    struct fetcher *fetcher;
    int64_t created; /* seconds since 1970: when the model was opened */
};
extern const struct route openai_routes[]; /* context: a struct openai */
