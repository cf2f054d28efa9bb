/* DeepSpeed's JSON file, as far as it says something about one process: precision and clipping. Semantics of DeepSpeed
 * 0.12.6 under transformers' integration, whose "auto" means: as the arguments say. */
#pragma once
#include <stdbool.h>

#include "base/err.h"

struct train_args;

/* Reads a->deepspeed, if given, into a: bf16, fp16, max_grad_norm. Logs what ZeRO would have done and what is done
 * here, and where that differs. ERR_USAGE where the file and the arguments contradict each other. */
int deepspeed_apply(struct train_args *a, struct err *e);
