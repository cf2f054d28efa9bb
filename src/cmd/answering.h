/* Options of what answers, shared by the commands that serve a model; input is a struct answering. */
#pragma once
#include "cmd/cmd.h"
#include "llava_batch.h"
#include "serve/fetch.h"

struct answering {
    struct llava_batch_options batch;
    struct fetch_limits fetch;
    int pictures; /* gen_open's */
};
extern const struct argp answering_argp;
