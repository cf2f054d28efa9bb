/* The data half of the train room as a program for order_torch.py, dataset_json.py and sample_equal.py: no test of
 * its own.
 *
 *   data_lines order     kind= seed= batch= accum= world= rank= drop= epochs=    lengths on stdin, one line
 *   data_lines index     file=
 *   data_lines samples   file= model= mode= version= max= folder= im= side= rows= pad= vision= pad_square=
 *   data_lines check     as samples, and threads= skip=
 *   data_lines batches   as samples and order, and threads= packing= window= skip= epoch= micro=
 * One line for each epoch, record or batch. Numbers in a group are separated by spaces, groups by " / ".
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/loader.h"

static int n_args;
static char **args;

static const char *text_of(const char *key, const char *none)
{
    size_t n = strlen(key);
    for (int i = 2; i < n_args; i++)
        if (strncmp(args[i], key, n) == 0 && args[i][n] == '=') return args[i] + n + 1;
    return none;
}

static long number(const char *key, long none)
{
    const char *s = text_of(key, NULL);
    return s ? strtol(s, NULL, 10) : none;
}

static void must(int rc, const struct err *e)
{
    if (rc >= 0) return;
    printf("error: %s: %s\n", err_name(e->code), e->msg);
    exit(0);
}

static struct order_options order_of(int64_t n, const int32_t *length)
{
    const char *kind = text_of("kind", "sequential");
    return (struct order_options){
        .kind = kind[0] == 's' ? ORDER_SEQUENTIAL : kind[0] == 'r' ? ORDER_RANDOM
              : kind[0] == 'l' ? ORDER_LENGTH : ORDER_GROUPED,
        .n = n, .length = length, .seed = (uint64_t)number("seed", 42), .batch = (int)number("batch", 1),
        .accum = (int)number("accum", 1), .world = (int)number("world", 1), .rank = (int)number("rank", 0),
        .drop_last = number("drop", 0) != 0,
    };
}

static void show_order(void)
{
    enum { MOST = 1 << 20 };
    int32_t *length = calloc(MOST, sizeof *length);
    struct order r;
    struct err e;
    int64_t n = 0;
    while (n < MOST && scanf("%d", &length[n]) == 1) n++;
    struct order_options o = order_of(n, length);
    must(order_init(&r, &o, &e), &e);
    long back = number("back", -1); /* an epoch to make first, to come back from */
    if (back >= 0) order_epoch(&r, (int)back);
    for (int epoch = 0; epoch < number("epochs", 1); epoch++) {
        order_epoch(&r, epoch);
        for (int64_t b = 0; b < r.n_micro; b++) {
            const int64_t *index;
            int k = order_micro(&r, b, &index);
            if (b) printf(" /");
            for (int i = 0; i < k; i++) printf(" %lld", (long long)index[i]);
        }
        putchar('\n');
    }
    order_fini(&r);
    free(length);
}

static void show_index(void)
{
    struct dataset d;
    struct err e;
    must(dataset_open(&d, text_of("file", ""), &e), &e);
    for (int64_t i = 0; i < d.n; i++)
        printf("%d %u %lld %d\n", d.entry[i].image, d.entry[i].words, (long long)d.entry[i].at, d.entry[i].bytes);
    printf("%llx\n", (unsigned long long)d.hash);
    dataset_close(&d);
}

static void recipe_make(struct recipe *c, struct tokenizer **t)
{
    static const char *const modes[] = { "legacy", "new", "431" };
    const char *mode = text_of("mode", "new");
    enum tokenizer_mode m = TOKENIZER_LEGACY;
    struct err e;
    for (int i = 0; i < 3; i++)
        if (strcmp(mode, modes[i]) == 0) m = (enum tokenizer_mode)i;
    must(tokenizer_open_model(t, text_of("model", "tests/data/tok512.model"), m, &e), &e);
    if (number("im", 0)) {
        tokenizer_add(*t, "<im_start>", true, &e);
        tokenizer_add(*t, "<im_end>", true, &e);
    }
    *c = (struct recipe){
        .text = { *t, conv_find(text_of("version", "v1")), number("im", 0) != 0, (size_t)number("max", 2048) },
        .pad = (int32_t)number("pad", 0), .vision = number("vision", 1) != 0, .image_folder = text_of("folder", NULL),
        .aspect = number("pad_square", 0) ? ASPECT_PAD : ASPECT_SQUARE, .side = (int)number("side", 28),
        .rows = (int)number("rows", 4),
    };
    clip_processor_default(&c->proc, c->side);
}

static void put(const int32_t *p, size_t n, const char *end)
{
    for (size_t i = 0; i < n; i++) printf(i ? " %d" : "%d", p[i]);
    fputs(end, stdout);
}

static void show_samples(void)
{
    struct tokenizer *t;
    struct recipe c;
    struct dataset d;
    struct record r = { 0 };
    struct sample s = { 0 };
    struct err e;
    recipe_make(&c, &t);
    must(dataset_open(&d, text_of("file", ""), &e), &e);
    for (int64_t i = 0; i < d.n; i++) {
        if (record_load(&r, &d, i, &e) < 0 || sample_make(&s, &c, &r, number("pictures", 0) != 0, &e) < 0) {
            printf("error: %s: %s\n", err_name(e.code), e.msg);
            continue;
        }
        put(s.ids.p, s.ids.n, " / ");
        put(s.labels.p, s.labels.n, " / ");
        printf("%d %d %d %d %d %d\n", s.positions, s.n_targets, s.n_images, s.cut, s.spare_images, s.literal);
    }
    sample_fini(&s);
    record_fini(&r);
    dataset_close(&d);
    tokenizer_close(t);
}

/* A sum that tells whether pixels are the same. */
static unsigned long long pixel_sum(const float *p, size_t n)
{
    unsigned long long h = 1;
    for (size_t i = 0; i < n; i++) {
        uint32_t v;
        memcpy(&v, &p[i], sizeof v);
        h = (h ^ v) * 0x100000001b3u;
    }
    return h;
}

static void show_batch(const struct batch *b, const struct recipe *c)
{
    size_t T = (size_t)b->T, pixels = (size_t)b->n_images * 3 * (size_t)c->side * (size_t)c->side;
    printf("%d %lld %d %d %d %d / ", b->epoch, (long long)b->micro, b->update, b->n_images, b->n_targets, b->n_skipped);
    for (int i = 0; i < b->n; i++) printf("%lld ", (long long)b->record[i]);
    printf("/ ");
    put(b->from, (size_t)b->n + 1, " / ");
    put(b->token, T, " / ");
    put(b->feature, T, " / ");
    put(b->target, T, " / ");
    put(b->pos, T, " / ");
    put(b->range, 2 * T, " / ");
    for (size_t i = 0; i < T; i++) printf("%.9g ", b->weight[i]);
    printf("/ %llx\n", pixel_sum(b->pixels, pixels));
}

static void show_batches(bool check_only)
{
    struct tokenizer *t;
    struct recipe c;
    struct dataset d;
    struct check_result r;
    struct order order;
    struct loader *l;
    struct err e;
    recipe_make(&c, &t);
    must(dataset_open(&d, text_of("file", ""), &e), &e);
    bool skip = number("skip", 0) != 0;
    int threads = (int)number("threads", 0);
    must(check_run(&r, &d, &c, threads ? threads : 1, skip ? CHECK_SKIP : CHECK_FAIL, &e), &e);
    printf("%lld %lld %lld / %lld %lld %lld /", (long long)r.n, (long long)r.n_bad, (long long)r.n_text,
           (long long)r.images, (long long)r.positions, (long long)r.targets);
    for (int i = 0; i < N_CHECK_NOTES; i++) printf(" %lld", (long long)r.note[i]);
    printf(" / %d %d %d\n", r.most.images, r.most.positions, r.most.targets);
    if (check_only) exit(0);
    struct order_options oo = order_of(r.n_row, r.length);
    must(order_init(&order, &oo, &e), &e);
    struct loader_options lo = {
        .data = &d, .recipe = &c, .order = &order, .row = r.row, .threads = threads,
        .epochs = (int)number("epochs", 1), .epoch = (int)number("epoch", 0), .micro = number("micro", 0),
        .window = (int)number("window", 0), .packing = (int)number("packing", 0), .skip_bad = skip,
    };
    struct batch_limits most;
    must(loader_limits(&most, &lo, &e), &e);
    printf("%d %d %d %d\n", most.n, most.T, most.n_images, most.n_targets);
    if (number("remove", 0)) remove(text_of("victim", ""));
    must(loader_open(&l, &lo, &e), &e);
    const struct batch *b;
    long skipped = 0;
    int rc;
    for (long left = number("stop", -1); left != 0 && (rc = loader_next(l, &b, &e)) > 0; left--) {
        show_batch(b, &c);
        skipped += b->n_skipped;
    }
    if (number("stop", -1) < 0) must(rc, &e);
    printf("%ld\n", skipped);
    loader_close(l);
    order_fini(&order);
    check_fini(&r);
    dataset_close(&d);
    tokenizer_close(t);
}

int main(int argc, char **argv)
{
    n_args = argc;
    args = argv;
    const char *what = argc > 1 ? argv[1] : "";
    if (strcmp(what, "order") == 0) show_order();
    else if (strcmp(what, "index") == 0) show_index();
    else if (strcmp(what, "samples") == 0) show_samples();
    else if (strcmp(what, "batches") == 0) show_batches(false);
    else if (strcmp(what, "check") == 0) show_batches(true);
    else puts("1..0 # SKIP driven by Python");
    return 0;
}
