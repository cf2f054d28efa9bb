/* Tokens that a training added, in the tokenizer's files of its result: as transformers' add_tokens and save_pretrained
 * leave them.
 */
#pragma once
#include <jansson.h>

#include "file/saver.h"

/* Writes added_tokens.json, and the base's tokenizer_config.json and tokenizer.json where they list added tokens, with
 * `tokens` ({"<im_start>": 32000, ...}) among them. from: the base's folder. */
int tokens_save(struct saver *s, const char *from, const json_t *tokens, struct err *e);
