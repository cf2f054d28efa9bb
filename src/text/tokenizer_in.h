/* Inside of a tokenizer, for the files of src/text that build and read it; other rooms see tokenizer.h only.
 * */
#pragma once
#include "text/spm.h"
#include "text/tokenizer.h"
#include "text/utf8.h"
#include "text/words.h"

enum {
    TOKENIZER_FILE_MAX = 64 << 20, /* bytes of any one file */
    TOKENIZER_ID_MAX = 1 << 22,    /* ids below this */
    TOKENIZER_ADDED_MAX = 1 << 16, /* added tokens */
    TOKENIZER_TOKEN_MAX = 4096,    /* bytes of one added token */
};

/* An added token. named: one of bos, eos, unk, sep, pad, cls, mask, which decode inside the text around them;
 * any other added token stands between spaces. */
struct added {
    char *text; /* owned */
    size_t n;
    int32_t id;
    bool special, named, lstrip, rstrip;
};

struct tokenizer {
    struct spm *spm;        /* encodes; in the new mode without SentencePiece's own space in front */
    struct spm *spm_prefix; /* encodes with it */
    bool dummy_prefix, squeeze; /* the model's add_dummy_prefix and remove_extra_whitespaces */
    struct added *added;
    size_t n_added, cap_added;
    int32_t *added_of; /* [info.size] id -> index in added, -1 none */
    unsigned char starts[256]; /* 1: some added token starts with this byte */
    size_t longest;            /* bytes of text that one piece or added token stands for, at most */
    bool whole;                /* some piece or added token has a space behind another character */
    bool strips;               /* some added token takes the spaces beside it away */
    bool apart;             /* the model is of the kind that words.h wants; pieces are another matter */
    struct words *words;    /* NULL: the model is of another kind */
    size_t unk_len; /* ids that the unk token's text encodes to (new mode) */
    struct tokenizer_info info;
};

/* tokenizer_bpe.c: turns a tokenizer.json into a serialized SentencePiece model. */
int tokenizer_bpe_model(struct buf *model, const char *path, struct err *e);

/* tokenizer_config.c: reads the JSON files of dir into t, which has its SentencePiece models. */
int tokenizer_read_config(struct tokenizer *t, const char *dir, struct err *e);

/* tokenizer.c. id < 0: the piece of that text, else the next free id. Flags of a token that is already there
 * are replaced. Returns the id or < 0. */
int32_t tokenizer_put(struct tokenizer *t, const struct added *a, struct err *e);
const struct added *tokenizer_added(const struct tokenizer *t, int32_t id); /* NULL: none */
