/* Any bytes as the resume.json ('r' first) or the trainer_state.json (otherwise) of a checkpoint whose other files are
 * in order. Whatever is refused must leave the run as it was. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "file/safetensors.h"
#include "help/fuzz.h"
#include "train/checkpoint.h"
#include "train/report.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

static const char good_resume[] =
    "{\"format\": 1, \"same\": {\"kind of training\": \"LoRA\", \"data\": \"x\"}, "
    "\"state\": {\"step\": 3, \"pass\": 0, \"batch\": 3, \"epoch\": 0.5, \"samples\": 6, \"tokens\": 60, "
    "\"skipped\": 0, \"flops\": 1.5, \"seconds\": 2.5, "
    "\"loss_sum\": 0.0, \"loss_total\": 7.5, \"loss_steps\": 0, \"best_metric\": 0.0, \"best_step\": 0}}";
static const char good_state[] = "{\"log_history\": [{\"step\": 1, \"loss\": 2.5}]}";

static void prepare(void)
{
    static float x[3] = { 1, 2, 3 };
    const struct weight w = { "w", tensor_1d(x, DT_F32, 3), NULL };
    struct err e;
    if (safetensors_write(fuzz_path("resume.safetensors"), &w, 1, NULL, NULL, NULL, &e) < 0) abort();
    log_set_level(LOG_QUIET);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    if (fuzz_begin()) prepare();
    bool first = n && *p == 'r';
    fuzz_put("resume.json", first ? (const char *)p + 1 : good_resume, first ? n - 1 : strlen(good_resume));
    fuzz_put("trainer_state.json", first ? good_state : (const char *)p, first ? strlen(good_state) : n);
    float x[3] = { 0 };
    struct weight w = { "w", tensor_1d(x, DT_F32, 3), NULL };
    json_t *same = json_pack("{s:s}", "data", "x");
    struct checkpoint c = { .kind = TRAIN_LORA, .same = same, .state = &w, .n_state = 1 };
    struct standing s;
    struct err e = { 0 };
    if (standing_init(&s, &e) < 0) abort();
    int rc = checkpoint_load(&c, fuzz_folder, &s, &e);
    if (rc < 0 && (x[0] != 0 || s.step || json_array_size(s.history) || !*e.msg || strchr(e.msg, '\n'))) abort();
    if (rc >= 0 && (x[2] != 3 || s.step < 0 || !json_is_array(s.history))) abort();
    if (rc >= 0) free(report_svg(s.history, "x")); /* which reads what others may have written */
    standing_fini(&s);
    json_decref(same);
    return 0;
}
