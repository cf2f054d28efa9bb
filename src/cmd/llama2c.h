/* Checkpoints of karpathy/llama2.c (the "legacy" .bin that run.c reads) as Llama models.
 *
 * The file: seven I32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len), then F32
 * tensors, each kind for all layers in a row: see the table in llama2c.c. vocab_size > 0: lm_head is the
 * embedding; < 0: it stands at the end. Source: llama2.c's run.c (memory_map_weights) and export.py
 * (legacy_export).
 */
#pragma once
#include "base/map.h"
#include "model/llava.h"

struct llama2c {
    struct map map; /* what parameters view */
    struct llava_model model;
};
/* Rows of q_proj and k_proj are put from llama2.c's order, where RoPE turns neighbours (2i, 2i+1), into
 * Hugging Face's, where it turns (i, i + D/2); these are copies in memory, all else views the file. */
int llama2c_open(struct llama2c *l, const char *path, struct err *e);
void llama2c_close(struct llama2c *l); /* accepts a zeroed one */
