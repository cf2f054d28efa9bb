/* What a training run leaves behind: checkpoints that LLaVA, transformers and peft open, and that this program goes on
 * from to the bit.
 *
 *   OUTPUT_DIR/checkpoint-N/     the model's files as the reference has them, and beside them
 *       resume.safetensors       every tensor that a step changes: weights or their f32 masters, moments
 *       resume.json              the numbers of standing.h, and what a resumed run must have in common with this one
 *       trainer_state.json       as transformers writes it; with log_history
 *       loss.svg                 the curve so far
 *   OUTPUT_DIR/                  at the end: the model's files, trainer_state.json, loss.svg
 *
 * Model's files: of TRAIN_PROJECTOR config.json and mm_projector.bin (at the end, of an OUTPUT_DIR named checkpoint-*,
 * the latter as PARENT/mm_projector/checkpoint-N.bin); of TRAIN_LORA config.json, adapter_model.safetensors,
 * adapter_config.json, non_lora_trainables.bin and the tokenizer; of TRAIN_FULL config.json, generation_config.json,
 * the tokenizer and shards of 5 GB with the vision tower inside. vision_tower/ says how one that is inside is
 * built.  Source: LLaVA's train.py and llava_trainer.py.
 *
 * A checkpoint is written to checkpoint-N.writing, synced and renamed, so it is there whole or not at all; older ones
 * go only after that. What a killed run left half done is removed by checkpoint_claim.
 */
#pragma once
#include "model/save.h"
#include "train/standing.h"

enum train_kind { TRAIN_PROJECTOR, TRAIN_LORA, TRAIN_FULL };

/* What stays the same during a run. All pointers are borrowed. */
struct checkpoint {
    struct llava_model *m;   /* parameters as they are trained; LoRA in linear.lora */
    enum train_kind kind;
    const char *output_dir;
    const char *title;       /* of loss.svg; NULL: the last part of output_dir */
    const char *model_dir;   /* the base's folder: its config.json, tokenizer and generation_config.json are kept */
    enum dtype dtype;        /* of the written weights: BF16 under --bf16 */
    const struct save_lora *lora; /* TRAIN_LORA: what adapter_config.json says (model/save.h) */
    const json_t *config;    /* keys of config.json that win over the base's: what LLaVA's train() puts there */
    const json_t *tokens;    /* {"<im_start>": 32000, ...} that the run added to the base's tokenizer, or NULL */
    const json_t *args;      /* the arguments of the run, kept in resume.json */
    const json_t *same;      /* what a resumed run must have equal, e.g. {"data": "sha256...", "world size": 1,
                                "gradient_accumulation_steps": 4}: the key is the message's noun */
    const json_t *unsaid;    /* what is so in a checkpoint that says nothing about it, or NULL: defaults */
    struct weight *state;    /* [n_state] every tensor that a step changes, in names of the trainer's own */
    size_t n_state;
    weight_fetch_fn *fetch;  /* how to read a tensor of `state`, NULL: w->t.p */
    int (*put)(void *ctx, const struct weight *w, const void *bytes, struct err *e); /* and write one; NULL: memcpy */
    void *ctx;
    int total_limit;         /* --save_total_limit; 0: keep all */
    bool keep_best;          /* standing.best_step is a checkpoint's, and that stays */
    /* numbers that only trainer_state.json wants */
    int64_t max_steps, epochs, logging_steps, save_steps, eval_steps, batch_size;
};

/* Makes output_dir, removes what a killed run left there half done, and keeps other runs out until *lock is closed:
 * ERR_USAGE when one is at work in it. */
int checkpoint_claim(int *lock, const char *output_dir, struct err *e);

/* Has the disk room for one checkpoint or, if last, for the result? ERR_IO says how much is missing. */
int checkpoint_room(const struct checkpoint *c, bool last, struct err *e);
/* Writes OUTPUT_DIR/checkpoint-STEP (one that is there already is replaced), then removes the oldest beyond the limit.
 * On an error nothing of an older checkpoint is lost. A disk that is too full is found before anything is written. */
int checkpoint_save(const struct checkpoint *c, const struct standing *s, struct err *e);
/* The model and the reports into OUTPUT_DIR itself. */
int checkpoint_finish(const struct checkpoint *c, const struct standing *s, struct err *e);

/* Which folder to go on from. `from` is --resume_from_checkpoint: a path; "True": the newest checkpoint in output_dir,
 * which must be there; NULL: the newest if there is one, as the reference does; "False": none. *ret: the caller's to
 * free, or NULL for a new run. A newest that is damaged is an error, never skipped. */
int checkpoint_find(char **ret, const char *output_dir, const char *from, struct err *e);
/* Fills c->state's tensors and *s (standing_init made it) from the folder. Before anything is changed, all of it is
 * checked: that it is whole, of this program, of the same kind and shapes, and that c->same is equal. Errors name the
 * folder. */
int checkpoint_load(const struct checkpoint *c, const char *dir, struct standing *s, struct err *e);
