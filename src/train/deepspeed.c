/* See deepspeed.h. */
#include "train/deepspeed.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "file/json.h"
#include "train/args.h"

static bool is_auto(const json_t *v) { return json_is_string(v) && !strcmp(json_string_value(v), "auto"); }

/* bf16.enabled or fp16.enabled: absent is off, "auto" is as the argument says. */
static int precision(const json_t *o, const char *name, bool *flag, const char *path, struct err *e)
{
    const json_t *part = json_object_get(o, name), *v = json_object_get(part, "enabled");
    if (!v || is_auto(v)) return 0;
    if (!json_is_boolean(v))
        return err_set(e, ERR_FORMAT, "'%s': %s.enabled is neither true, false nor \"auto\"", path, name);
    if (json_is_true(v)) *flag = true;
    else if (*flag) return err_set(e, ERR_USAGE, "'%s' turns %s off, --%s turns it on", path, name, name);
    return 0;
}

/* Numbers that the file may repeat must be the arguments'. */
static int same_numbers(const json_t *o, const struct train_args *a, const char *path, struct err *e)
{
    const struct { const char *key, *arg; int64_t v; } rows[] = {
        { "train_micro_batch_size_per_gpu", "per_device_train_batch_size", a->per_device_train_batch_size },
        { "gradient_accumulation_steps", "gradient_accumulation_steps", a->gradient_accumulation_steps },
        { "train_batch_size", "per_device_train_batch_size",
          a->per_device_train_batch_size * a->gradient_accumulation_steps },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const json_t *v = json_object_get(o, rows[i].key);
        if (json_is_integer(v) && json_integer_value(v) != rows[i].v)
            return err_set(e, ERR_USAGE, "'%s': %s is %lld, the arguments make it %lld (--%s)", path, rows[i].key,
                           (long long)json_integer_value(v), (long long)rows[i].v, rows[i].arg);
    }
    return 0;
}

/* None in the file is none at all, as in DeepSpeed; a --max_grad_norm that was given counts all the same. */
static int clipping(const json_t *o, struct train_args *a, const char *path, struct err *e)
{
    const json_t *v = json_object_get(o, "gradient_clipping");
    const bool given = train_args_given(a, "max_grad_norm");
    if (v && !is_auto(v) && !(json_is_number(v) && json_number_value(v) >= 0))
        return err_set(e, ERR_FORMAT, "'%s': gradient_clipping is neither a number nor \"auto\"", path);
    if (json_is_number(v)) a->max_grad_norm = json_number_value(v);
    else if (!v && !given) a->max_grad_norm = 0;
    if (a->max_grad_norm > 0) log_info("gradients are clipped to norm %g", a->max_grad_norm);
    else log_info("gradients are not clipped: '%s' has no gradient_clipping, and DeepSpeed then does not "
                  "(--max_grad_norm 1 does)", path);
    return 0;
}

static void tell(const json_t *o, const char *path)
{
    const json_t *zero = json_object_get(o, "zero_optimization");
    const int stage = (int)json_integer_value(json_object_get(zero, "stage"));
    const bool offload = json_object_get(zero, "offload_optimizer") || json_object_get(zero, "offload_param");
    log_info("'%s': ZeRO stage %d%s; one process has nothing to share out", path, stage,
             offload ? " with offloading" : "");
    if (json_object_get(o, "optimizer") || json_object_get(o, "scheduler"))
        log_info("'%s' names an optimizer or scheduler, with which DeepSpeed drops --lr_scheduler_type, "
                 "--mm_projector_lr and the groups of weight decay; here they hold", path);
}

int deepspeed_apply(struct train_args *a, struct err *e)
{
    const char *path = a->deepspeed;
    json_t *o = NULL;
    int rc;
    if (!path) return 0;
    TRY(json_file_load(&o, path, e));
    if (!json_is_object(o)) TRY(err_set(e, ERR_FORMAT, "'%s' is not a JSON object", path));
    TRY(precision(o, "bf16", &a->bf16, path, e));
    TRY(precision(o, "fp16", &a->fp16, path, e));
    if (a->bf16 && a->fp16) TRY(err_set(e, ERR_USAGE, "bf16 and fp16 are both on ('%s' and the arguments)", path));
    TRY(same_numbers(o, a, path, e));
    tell(o, path);
    TRY(clipping(o, a, path, e));
out:
    json_decref(o);
    return rc;
}
