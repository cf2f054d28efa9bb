/* See adapter.h. */
#include "run/adapter.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "file/hub.h"
#include "model/load.h"

struct adapter {
    char *name;
    struct lora_set set; /* its mapped file stays open: kernels of the host read from there */
    struct arena mem;    /* of a device: the copies */
};

/* A projector that was trained with the adapter would have to change with it. */
static int check_folder(const char *dir, struct err *e)
{
    static const char *const files[] = { "non_lora_trainables.bin", "non_lora_trainables.safetensors" };
    char path[4096];
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        if (access(path, F_OK) == 0)
            return err_set(e, ERR_UNSUPPORTED, "it has weights beside the adapter ('%s'): merge it", files[i]);
    }
    return 0;
}

static int open_one(struct engine *g, const char *entry, struct err *e)
{
    const char *equals = strchr(entry, '=');
    char *dir = NULL;
    int rc, number = g->model.n_adapters;
    struct adapter *a = &g->adapter[number];
    if (!equals || equals == entry || !equals[1]) return err_set(e, ERR_USAGE, "it is not NAME=FOLDER");
    const size_t n = (size_t)(equals - entry);
    for (int i = 0; i < number; i++)
        if (strlen(g->adapter[i].name) == n && !strncmp(g->adapter[i].name, entry, n))
            return err_set(e, ERR_USAGE, "the name was given before");
    a->name = strndup(entry, n);
    if (!a->name) return err_set(e, ERR_NOMEM, "no memory for a name");
    g->model.n_adapters++; /* adapters_close closes it from here on */
    TRY(hub_find(&dir, equals + 1, NULL, e));
    TRY(check_folder(dir, e));
    TRY(lora_open(&a->set, dir, e));
    TRY(lora_serve(&a->set, &g->model, number, &a->mem, dir, e));
out:
    free(dir);
    return rc;
}

int adapters_open(struct engine *g, const char *const *list, int n, struct err *e)
{
    if (n > OP_ADAPTERS) return err_set(e, ERR_LIMIT, "%d adapters are more than %d", n, OP_ADAPTERS);
    g->adapter = n ? calloc((size_t)n, sizeof *g->adapter) : NULL;
    if (n && !g->adapter) return err_set(e, ERR_NOMEM, "no memory for adapters");
    for (int i = 0; i < n; i++) {
        int rc = open_one(g, list[i], e);
        if (rc < 0) return err_prefix(e, "adapter '%s'", list[i]);
    }
    return 0;
}

void adapters_close(struct engine *g)
{
    for (int i = 0; i < g->model.n_adapters; i++) {
        free(g->adapter[i].name);
        lora_close(&g->adapter[i].set);
        arena_fini(&g->adapter[i].mem);
    }
    free(g->adapter);
    g->adapter = NULL;
}

const char *adapter_name(const struct engine *g, int i)
{
    return i >= 0 && i < g->model.n_adapters ? g->adapter[i].name : NULL;
}

int adapter_find(int *ret, const struct engine *g, const char *name, struct err *e)
{
    *ret = -1;
    if (!name) return 0;
    for (int i = 0; i < g->model.n_adapters; i++)
        if (!strcmp(g->adapter[i].name, name)) return *ret = i, 0;
    return err_set(e, ERR_USAGE, "no adapter '%s' is open", name);
}
