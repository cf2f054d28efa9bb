/* See feed.h. */
#include "train/feed.h"

#include "base/plat.h"

/* Ids of each record, a picture counting as one, as transformers counts them. What model_max_length cuts is as long as
 * it is then. */
static void count_ids(struct feed *f, int rows)
{
    for (int64_t i = 0; i < f->check.n_row; i++) {
        const struct check_row *row = &f->check.row[i];
        f->check.length[i] = row->positions - row->images * (rows - 1);
    }
}

int feed_open(struct feed *f, const struct recipe *r, const struct feed_options *o, struct err *e)
{
    int rc;
    *f = (struct feed){ .data = { .fd = -1 } };
    TRY(dataset_open(&f->data, o->path, e));
    TRY(check_run(&f->check, &f->data, r, plat_threads(), o->skip_bad ? CHECK_SKIP : CHECK_FAIL, e));
    if (o->kind == ORDER_LENGTH) count_ids(f, r->rows);
    const struct order_options oo = { .kind = o->kind, .n = f->check.n_row, .length = f->check.length, .seed = o->seed,
                                   .batch = o->batch, .accum = o->accum, .world = 1, .drop_last = o->drop_last };
    TRY(order_init(&f->order, &oo, e));
    if (!f->order.n_micro)
        TRY(err_set(e, ERR_USAGE, "'%s' has %lld records, fewer than one micro-batch of %d", o->path,
                    (long long)f->check.n_row, o->batch));
    f->options = (struct loader_options){ .data = &f->data, .recipe = r, .order = &f->order, .row = f->check.row,
                                    .threads = o->threads, .epochs = o->epochs, .window = o->window,
                                    .packing = o->packing, .augment = o->augment, .skip_bad = o->skip_bad };
    rc = 0;
out:
    if (rc < 0) feed_close(f);
    return rc;
}

void feed_close(struct feed *f)
{
    order_fini(&f->order);
    check_fini(&f->check);
    dataset_close(&f->data);
    *f = (struct feed){ .data = { .fd = -1 } };
}
