/* Options of a batch, shared by the commands that open one; input is a struct llava_batch_options. */
#pragma once
#include "cmd/cmd.h"
#include "llava_batch.h"

extern const struct argp batching_argp;
