/* What `llava inspect` finds out (inspect.c) and prints (inspect_print.c). */
#pragma once
#include <stdbool.h>

#include "base/buf.h"
#include "model/load.h"
#include "text/tokenizer.h"

enum item_kind { ITEM_BOUND, ITEM_ADAPTER, ITEM_IGNORED, ITEM_REPLACED, ITEM_UNBOUND };

/* A tensor of a file. */
struct item {
    const struct weight *w;
    enum item_kind kind;
    enum part part;          /* BOUND */
    struct tensor t;         /* as the parameter sees it, BOUND, or as the file has it */
    char to[NAME_MAX_BYTES]; /* BOUND: the parameter; ADAPTER: the one it changes */
};

struct part_sum {
    int64_t tensors, params, bytes;
    unsigned types; /* bits of enum dtype, quantised ones too */
};

/* Bytes that a session takes at one precision. */
struct memory {
    const char *name, *title; /* "BF16", "Q4"; as a column is called: "BF16", "4 bits" */
    enum dtype dtype;         /* of what is not quantised */
    int bits;                 /* 8, 4: as with --load-8bit, --load-4bit; 0 */
    int64_t mapped, copies, position, cache, act,
        total; /* position: cache of one; cache: of the whole context */
};

enum { PARTS = 3, MEMORY_KINDS = 5, DIRS = 3, NOTES_MAX = 200 };

struct inspect {
    const char *path, *base_name, *tower; /* options */
    bool tensors, json, check;

    char *dir, *base;
    struct llava_model m;
    struct index ix;
    struct lora_set lora;
    struct tokenizer *tok;
    bool has_config, has_layers, is_adapter, is_projector;
    char wants[512]; /* an adapter without its base: the base it names */
    struct item *item;
    size_t n_item;
    struct part_sum sum[PARTS], adapter;
    struct memory memory[MEMORY_KINDS];
    int n_memory; /* 0: the model is not whole */
    struct tensor_fault {
        const struct weight *w;
        int64_t at;
        bool nan;
    } fault[20];
    int n_fault, n_note; /* all there are; fault and note hold the first */
    int64_t n_absent;      /* parameters that no file has */
    char *note[NOTES_MAX]; /* what is missing or wrong, one line each */
};

const char *inspect_part_name(enum part p);
const char *inspect_naming(const struct inspect *s);
/* "not finite: 'NAME' of 'FILE' holds NaN at element N" */
int inspect_fault(const struct tensor_fault *f, struct err *e);
void inspect_print(const struct inspect *s);
/* One JSON object. < 0 without memory. */
int inspect_print_json(const struct inspect *s);
