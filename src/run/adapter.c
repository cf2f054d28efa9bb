/* See adapter.h. */
#include "run/adapter.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "file/hub.h"
#include "model/projector.h"

struct adapter {
    char *name, *dir;
    struct lora_set set; /* its mapped file stays open: kernels of the host read from there */
    struct arena mem;    /* of a device: the copies */
    struct own_projector own;
};

static int find_one(struct engine *g, const char *entry, struct err *e)
{
    const char *equals = strchr(entry, '=');
    struct adapter *a = &g->adapter[g->n_adapters];
    if (!equals || equals == entry || !equals[1]) return err_set(e, ERR_USAGE, "it is not NAME=FOLDER");
    const size_t n = (size_t)(equals - entry);
    for (const struct adapter *b = g->adapter; b < a; b++)
        if (strlen(b->name) == n && !strncmp(b->name, entry, n))
            return err_set(e, ERR_USAGE, "the name was given before");
    if (strlen(g->name) == n && !strncmp(g->name, entry, n)) return err_set(e, ERR_USAGE, "the model has that name");
    a->name = strndup(entry, n);
    if (!a->name) return err_set(e, ERR_NOMEM, "no memory for a name");
    g->n_adapters++; /* adapters_close closes it from here on */
    return hub_find(&a->dir, equals + 1, NULL, e);
}

int adapters_find(struct engine *g, const char *const *list, int n, struct err *e)
{
    if (n > OP_ADAPTERS) return err_set(e, ERR_LIMIT, "%d adapters are more than %d", n, OP_ADAPTERS);
    g->adapter = n ? calloc((size_t)n, sizeof *g->adapter) : NULL;
    if (n && !g->adapter) return err_set(e, ERR_NOMEM, "no memory for adapters");
    for (int i = 0; i < n; i++) {
        int rc = find_one(g, list[i], e);
        if (rc < 0) return err_prefix(e, "adapter '%s'", list[i]);
    }
    for (int i = 0; i < g->n_adapters; i++) {
        struct adapter *a = &g->adapter[i];
        if (lora_open(&a->set, a->dir, e) < 0) return err_prefix(e, "adapter '%s'", a->name);
    }
    return 0;
}

size_t adapters_bytes(const struct engine *g)
{
    size_t bytes = 0;
    for (int i = 0; i < g->n_adapters; i++) bytes += lora_bytes(&g->adapter[i].set);
    return bytes;
}

const char *adapters_sight(const struct engine *g)
{
    for (int i = 0; i < g->n_adapters; i++) {
        char path[4096];
        struct llava_config c;
        snprintf(path, sizeof path, "%s/config.json", g->adapter[i].dir);
        if (access(path, F_OK) == 0 && llava_config_load(&c, g->adapter[i].dir, NULL) >= 0 && c.has_vision)
            return g->adapter[i].dir;
    }
    return NULL;
}

int adapters_open(struct engine *g, struct err *e)
{
    for (int i = 0; i < g->n_adapters; i++) {
        struct adapter *a = &g->adapter[i];
        g->model.n_adapters++;
        int rc = lora_serve(&a->set, &g->model, i, &a->mem, a->dir, e);
        if (rc >= 0) rc = projector_open(&a->own, &g->model, &a->set, a->dir, e);
        if (rc < 0) return err_prefix(e, "adapter '%s'", a->name);
    }
    return 0;
}

void adapters_close(struct engine *g)
{
    for (int i = 0; i < g->n_adapters; i++) {
        free(g->adapter[i].name);
        free(g->adapter[i].dir);
        lora_close(&g->adapter[i].set);
        arena_fini(&g->adapter[i].mem);
        projector_close(&g->adapter[i].own);
    }
    free(g->adapter);
    g->adapter = NULL;
}

const char *adapter_name(const struct engine *g, int i)
{
    return i >= 0 && i < g->n_adapters ? g->adapter[i].name : NULL;
}

int adapter_find(int *ret, const struct engine *g, const char *name, struct err *e)
{
    *ret = -1;
    if (!name) return 0;
    for (int i = 0; i < g->n_adapters; i++)
        if (!strcmp(g->adapter[i].name, name)) return *ret = i, 0;
    return err_set(e, ERR_USAGE, "no adapter '%s' is open", name);
}

/* ---- pictures */

int adapter_sight(const struct engine *g, int adapter)
{
    return adapter >= 0 && g->adapter[adapter].own.there ? adapter : SIGHT_MODEL;
}

bool sight_there(const struct engine *g, int sight)
{
    return sight == SIGHT_MODEL ? g->model.cfg.has_vision && !g->model.no_projector : g->adapter[sight].own.there;
}

const struct projector *sight_projector(const struct engine *g, int sight)
{
    return sight == SIGHT_MODEL ? &g->model.projector : &g->adapter[sight].own.projector;
}

int adapter_sees(const struct engine *g, int adapter, int n_images, struct err *e)
{
    if (!n_images || sight_there(g, adapter_sight(g, adapter))) return 0;
    return err_set(e, ERR_UNSUPPORTED, "'%s' has no projector and reads no pictures",
                   adapter < 0 ? g->name : adapter_name(g, adapter));
}
