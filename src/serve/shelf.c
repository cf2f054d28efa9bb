/* See shelf.h. What is kept is text: it takes a tenth of the memory of values, and its size is known. */
#include "serve/shelf.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    struct entry *next; /* newer */
    char id[SHELF_ID];
    uint64_t realm;
    char *items, *response; /* NULL: not answered yet */
    size_t bytes;
};
struct shelf {
    pthread_mutex_t lock; /* all below */
    struct entry *oldest, **end;
    size_t bytes;
};

static void entry_free(struct entry *x)
{
    if (!x) return;
    free(x->items);
    free(x->response);
    free(x);
}

struct shelf *shelf_new(void)
{
    struct shelf *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    pthread_mutex_init(&s->lock, NULL);
    s->end = &s->oldest;
    return s;
}

/* Where an entry hangs; *NULL: there is none. Called with the lock held, as is take. */
static struct entry **find(struct shelf *s, uint64_t realm, const char *id)
{
    struct entry **at = &s->oldest;
    while (*at && ((*at)->realm != realm || strcmp((*at)->id, id) != 0)) at = &(*at)->next;
    return at;
}

static struct entry *take(struct shelf *s, struct entry **at)
{
    struct entry *x = *at;
    if (!x) return NULL;
    *at = x->next;
    if (!x->next) s->end = at;
    s->bytes -= x->bytes;
    return x;
}

void shelf_free(struct shelf *s)
{
    if (!s) return;
    while (s->oldest) entry_free(take(s, &s->oldest));
    pthread_mutex_destroy(&s->lock);
    free(s);
}

/* The oldest go until the rest fits; what is to be freed. Called with the lock held. */
static struct entry *make_room(struct shelf *s)
{
    struct entry *old = NULL;
    while (s->bytes > SHELF_BYTES) {
        struct entry *one = take(s, &s->oldest);
        one->next = old;
        old = one;
    }
    return old;
}

static void all_free(struct entry *x)
{
    for (struct entry *next; x; x = next) {
        next = x->next;
        entry_free(x);
    }
}

bool shelf_begin(struct shelf *s, uint64_t realm, const char *id, const json_t *items)
{
    struct entry *x = calloc(1, sizeof *x);
    if (x) x->items = json_dumps(items, JSON_COMPACT);
    if (x && x->items) x->bytes = sizeof *x + strlen(x->items);
    if (!x || !x->items || x->bytes > SHELF_BYTES / 4) {
        entry_free(x);
        return false;
    }
    snprintf(x->id, sizeof x->id, "%s", id);
    x->realm = realm;
    pthread_mutex_lock(&s->lock);
    *s->end = x;
    s->end = &x->next;
    s->bytes += x->bytes;
    struct entry *old = make_room(s);
    pthread_mutex_unlock(&s->lock);
    all_free(old);
    return true;
}

void shelf_end(struct shelf *s, uint64_t realm, const char *id, const json_t *response)
{
    char *text = json_dumps(response, JSON_COMPACT);
    char *output = json_dumps(json_object_get(response, "output"), JSON_COMPACT);
    struct entry *old = NULL;
    pthread_mutex_lock(&s->lock);
    struct entry *x = *find(s, realm, id);
    const size_t n = x ? strlen(x->items) : 0, more = output ? strlen(output) : 0;
    char *items = x && text && more ? realloc(x->items, n + more) : NULL;
    if (items) {
        x->items = items;
        items[n - 1] = ','; /* [...] and [...] become one: neither is empty */
        memcpy(items + n, output + 1, more);
        x->response = text;
        x->bytes += more + strlen(text);
        s->bytes += more + strlen(text);
        text = NULL;
        old = make_room(s);
    }
    pthread_mutex_unlock(&s->lock);
    all_free(old);
    free(text);
    free(output);
}

static json_t *look(struct shelf *s, uint64_t realm, const char *id, bool response)
{
    pthread_mutex_lock(&s->lock);
    const struct entry *x = *find(s, realm, id);
    char *text = x && x->response ? strdup(response ? x->response : x->items) : NULL;
    pthread_mutex_unlock(&s->lock);
    json_t *v = text ? json_loads(text, 0, NULL) : NULL;
    free(text);
    return v;
}

json_t *shelf_items(struct shelf *s, uint64_t realm, const char *id) { return look(s, realm, id, false); }
json_t *shelf_response(struct shelf *s, uint64_t realm, const char *id) { return look(s, realm, id, true); }

bool shelf_drop(struct shelf *s, uint64_t realm, const char *id)
{
    pthread_mutex_lock(&s->lock);
    struct entry *x = take(s, find(s, realm, id));
    pthread_mutex_unlock(&s->lock);
    entry_free(x);
    return x != NULL;
}
