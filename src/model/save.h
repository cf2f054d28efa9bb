/* Writing a model as a folder that LLaVA, transformers and this program open.
 *
 * Rows come from llava_each, names from name_in, so what can be opened can be written. Tensors go to the
 * files one at a time: those that stay as they are straight from the mapped files, others (converted, merged,
 * with more or fewer rows) through one buffer of the largest. The folder appears whole and synced under its
 * name, or not at all: until then all of it lies in DIR.writing, which a failure removes and a killed run
 * leaves to the next.
 */
#pragma once
#include <jansson.h>

#include "file/saver.h"
#include "model/llava.h"

enum save_what {
    SAVE_MODEL,
    SAVE_PROJECTOR, /* mm_projector.bin and config.json, as LLaVA's first stage leaves them (with embeddings and
                       lm_head, if they got rows) */
    SAVE_ADAPTER,   /* adapter_model.safetensors, adapter_config.json and config.json as PEFT and LLaVA write them, of
                       the adapters in linear.lora; whatever else is trained in non_lora_trainables.bin */
};
/* What adapter_config.json says beside what the adapters' shapes tell. */
struct save_lora {
    const char *base;       /* base_model_name_or_path */
    int rank;
    double alpha, dropout;
    const char *bias;       /* "none", "all", "lora_only" */
};
struct save_options {
    const char *dir;     /* must be absent or empty, unless `into` */
    bool into;           /* dir may hold other files: each of ours replaces its older self, weights last */
    enum naming naming;  /* HF, HF5: the tower is inside, the projector has two linears */
    enum save_what what; /* other than SAVE_MODEL: naming is LLAVA */
    const struct save_lora *lora; /* SAVE_ADAPTER */
    bool keep_dtype;     /* else every tensor in dtype: F32, F16 or BF16 */
    enum dtype dtype;
    int bits;            /* 8 or 4: what bind_quant names is quantised, and config.json says so; 0: not */
    bool tower_inside; /* LLAVA: the tower goes into the checkpoint */
    bool tower_beside; /* LLAVA: the tower goes into DIR/vision_tower, as a CLIP folder, which mm_vision_tower
                          names */
    bool tower_config; /* LLAVA: DIR/vision_tower gets the tower's configuration and no weights, so that a folder
                          whose tower is inside (or inside its base) opens when what mm_vision_tower names is gone */
    int vocab; /* rows of embed_tokens and lm_head; 0: as many as there are. More: rows that are the mean of
                  the old ones; fewer: the first ones */
    int image, pad;           /* HF, HF5: ids of <image> and <pad> */
    size_t shard_bytes;       /* 0: 5e9 */
    const char *config_dir;   /* folder of a config.json of LLaVA's layout whose keys are kept, or NULL */
    const json_t *config;     /* LLAVA: keys that win over all others, or NULL */
    const char *side_dirs[2]; /* folders whose tokenizer's and generation's files are copied; the later's win;
                                 or NULL */
    int (*more)(void *ctx, struct saver *s, struct err *e); /* writes further files, or NULL */
    void *ctx;
    int64_t more_bytes;       /* that `more` will write, about */
    bool quiet;               /* no progress bar */
    bool probe;               /* write nothing: would there be room on the disk? */
};
/* m: opened with keep_dtype; adapters may be unmerged, they are merged while writing. A disk without room for it is
 * found before anything is written. */
int llava_model_save(struct llava_model *m, const struct save_options *o, struct err *e);

/* Is dir absent, or an empty folder in which something may be made? ERR_USAGE with one line otherwise. */
int save_dir_check(const char *dir, struct err *e);
/* A JSON file with numbers in as many digits as people write: 1e-05, not 1.0000000000000001e-05. */
int save_json(struct saver *s, const char *file, const json_t *v, struct err *e);

/* config.json, new references; NULL without memory. old: a config.json of LLaVA's layout whose keys win but
 * for sizes, type and tower, or NULL. save_config.c */
json_t *save_config(const struct llava_config *c, const struct save_options *o, const char *tower,
                    const json_t *old);
json_t *save_clip_config(const struct clip_config *c, enum dtype dtype);
json_t *save_adapter_config(const struct llava_model *m, const struct save_lora *l); /* PEFT's adapter_config.json */
json_t *save_processor_config(const struct clip_config *c);
/* A special token as transformers describes one in tokenizer_config.json and tokenizer.json: a new reference. */
json_t *save_added_token(const char *text);
/* "mlp2x_gelu", "linear", "identity" */
void save_projector_type(char *out, size_t size, int n);
