/* The OpenAI API over a model: /v1/models, /v1/completions, /v1/chat/completions, /v1/responses. What differs:
 * pictures go before the text of their message (as LLaVA was trained), a draw without "seed" has a seed of its own,
 * "top_k" and the ways in which other servers name a schema or a grammar are known, responses are kept in memory
 * (shelf.h), and what is not done here (suffix, best_of, ...) is refused and not ignored. */
#pragma once
#include "serve/fetch.h"
#include "serve/gen.h"
#include "serve/server.h"

struct openai;
/* fetch: how pictures behind addresses are had. */
int openai_open(struct openai **ret, struct gen *g, const struct fetch_limits *fetch, struct err *e);
void openai_close(struct openai *o); /* after the server; accepts NULL */
extern const struct route openai_routes[]; /* context: a struct openai */
