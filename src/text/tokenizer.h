/* Text to token ids and back, equal to transformers 4.37.2's slow LlamaTokenizer
 * (models/llama/tokenization_llama.py, tokenization_utils.py) and LLaVA's tokenizer_image_token
 * (llava/mm_utils.py).
 *
 * A folder's files, all optional but one of the first two:
 *   tokenizer.model           SentencePiece
 *   tokenizer.json            used where there is no tokenizer.model: BPE with byte fallback, turned into the
 *   SentencePiece
 *                             model it came from; other kinds are ERR_UNSUPPORTED
 *   tokenizer_config.json     legacy, add_bos_token, add_eos_token, *_token, additional_special_tokens,
 *                             added_tokens_decoder, model_max_length
 *   special_tokens_map.json, added_tokens.json, and the added_tokens of tokenizer.json: used only where
 *                             tokenizer_config.json has no added_tokens_decoder
 *
 * Encoding: added tokens (the special ones <s>, </s>, <unk> included) are cut out of the text first, leftmost
 * and longest match; the text between goes to SentencePiece piece by piece. What happens at the start of such
 * a piece is the mode. Any number of threads may use a tokenizer but for tokenizer_add; what words encode
 * to is remembered in it (words.h).
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "text/ids.h"

/* Text after a special token: "USER:" after "</s>" becomes */
enum tokenizer_mode {
    TOKENIZER_LEGACY, /* _US ER :  legacy true, or not said: every part of the text gets a space in front */
    TOKENIZER_NEW,    /* USER :    legacy false: only the very start of the text does */
    TOKENIZER_431,    /* US ER :   legacy false in transformers 4.31: encoded with the space, then cut */
};

struct tokenizer_info {
    enum tokenizer_mode mode;
    int32_t bos, eos, unk, pad, image; /* ids; -1: none. image: an added token "<image>" of the files' own */
    bool add_bos, add_eos;
    int32_t n_pieces;                  /* ids of the SentencePiece model */
    int32_t size; /* highest id + 1, added tokens included: rows that the embedding needs */
    int64_t model_max_length;          /* tokens; 0: not given, or larger than any model */
};

struct tokenizer;
struct json_t;

int tokenizer_open(struct tokenizer **ret, const char *dir, struct err *e);
/* One SentencePiece file alone, with LlamaTokenizer's defaults: <unk>, <s>, </s>, BOS added, EOS not. */
int tokenizer_open_model(struct tokenizer **ret, const char *path, enum tokenizer_mode mode, struct err *e);
void tokenizer_close(struct tokenizer *t); /* accepts NULL */

const struct tokenizer_info *tokenizer_info(const struct tokenizer *t);
void tokenizer_set_mode(struct tokenizer *t, enum tokenizer_mode mode); /* for tests */

/* What a tokenizer.json says of t, as transformers 4 makes it of the same files (added tokens included): a new
 * reference. ERR_UNSUPPORTED where such a file cannot say it: another kind than BPE with byte fallback, or a model that
 * squeezes spaces or maps characters. */
int tokenizer_to_json(struct json_t **ret, const struct tokenizer *t, struct err *e);

/* Makes `text` one token: the id that it already has, or a new one at the end (as add_tokens does, for
 * <im_patch>, <im_start>, <im_end>, [PAD]). Special tokens are dropped by tokenizer_decode(skip_special).
 * Returns the id or < 0. */
int32_t tokenizer_add(struct tokenizer *t, const char *text, bool special, struct err *e);
/* The id of a token's exact text, -1: none. */
int32_t tokenizer_find(const struct tokenizer *t, const char *token);
bool tokenizer_is_special(const struct tokenizer *t, int32_t id);

/* The ids of text[0..n), added to `out`; `_text` without BOS and EOS, `_encode` with them as the files say.
 * ERR_FORMAT with the offset where the text is not UTF-8; ERR_LIMIT where `out` is too small; nothing else on
 * valid text but ERR_NOMEM. NULs are characters like others. */
int tokenizer_encode_text(const struct tokenizer *t, const char *text, size_t n, struct ids *out,
                          struct err *e);
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, struct ids *out, struct err *e);

/* A prompt with "<image>" in it; each becomes IDS_IMAGE.
 * Where the files have no token "<image>" (LLaVA's own checkpoints): as tokenizer_image_token: the text is
 * cut at "<image>", each part encoded on its own (so each gets the space in front), without BOS but for one
 * at the very start. Where they have one (llava-hf's checkpoints): the whole text is encoded with "<image>"
 * as that token, then its id is replaced: the ids of transformers' LlavaProcessor with each run of image
 * tokens folded into one. */
int tokenizer_encode_prompt(const struct tokenizer *t, const char *text, size_t n, struct ids *out,
                            struct err *e);

/* Adds the bytes that one token stands for, whatever is around it: a piece with its space in front, a byte (perhaps
 * half a character), an added or special token's text. Nothing for ids that no token has. */
void tokenizer_bytes(const struct tokenizer *t, int32_t id, struct buf *out);

/* The fewest ids that text[0..n) can encode to, by its bytes and the longest piece: what a limit can refuse without
 * encoding megabytes. 0 where nothing is known: a model that drops or maps characters, or has no bytes to fall back
 * to. */
size_t tokenizer_least(const struct tokenizer *t, const char *text, size_t n);

/* Where a text may be cut if only its first n_ids ids are wanted: a place at which it falls apart, so that what
 * stands before it encodes to the beginning of what the whole encodes to, and most likely to n_ids at least (count
 * them: a model may make one id of many unknown characters). n where there is no such place. For texts of megabytes. */
size_t tokenizer_enough(const struct tokenizer *t, const char *text, size_t n, size_t n_ids);

/* Adds the text of ids[0..n) to `out`, as tokenizer.decode(ids, skip_special_tokens=skip_special) with
 * clean_up_tokenization_spaces False (LlamaTokenizer's default): the first space goes, byte pieces are joined
 * to UTF-8, bytes that form none become U+FFFD, added tokens that are not special stand between spaces. Ids
 * that no token has (IDS_IMAGE, rows of a padded embedding) give nothing. Check `out` with buf_check. */
void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool skip_special,
                      struct buf *out);
