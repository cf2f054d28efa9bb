/* See pickle.h. A stack machine over growing arrays: one function for each opcode, in a table. Every opcode
 * makes at most one value and moves each value off the stack once, so memory is bounded by the bytes read. */
#include "file/pickle.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/dtype.h"

enum call { CALL_DICT, CALL_TENSOR, CALL_PARAMETER, CALL_SIZE };

struct machine {
    struct pickle *t;
    const unsigned char *p;
    size_t n, at;
    const char *file;
    struct err *e;
    uint32_t *stack, *mark, *memo; /* value numbers; stack heights; value numbers, 0: none */
    size_t n_stack, cap_stack, n_mark, cap_mark, n_memo, cap_memo;
    int op;
    bool stopped;
};

typedef int opcode_fn(struct machine *m);

static int bad(struct machine *m, const char *what)
{
    return err_set(m->e, ERR_FORMAT, "'%s': damaged pickle at byte %zu: %s", m->file, m->at, what);
}

/* Room for `need` elements in an array; new ones are zero. p: address of the pointer to it, of any type. */
static int room(struct machine *m, void *p, size_t *cap, size_t need, size_t size)
{
    char *at;
    if (need <= *cap) return 0;
    if (need > PICKLE_VALUES_MAX)
        return err_set(m->e, ERR_LIMIT, "'%s': its pickle holds more than %d values", m->file,
                       PICKLE_VALUES_MAX);
    size_t want = *cap ? *cap * 2 : 256;
    while (want < need) want *= 2;
    memcpy(&at, p, sizeof at);
    at = realloc(at, want * size);
    if (!at) return err_set(m->e, ERR_NOMEM, "no memory to read '%s'", m->file);
    memset(at + *cap * size, 0, (want - *cap) * size);
    memcpy(p, &at, sizeof at);
    *cap = want;
    return 0;
}
#define ROOM(m, array, cap, need) room(m, &(array), &(cap), need, sizeof *(array))

/* The next k bytes of the pickle, or NULL with an error. */
static const unsigned char *eat(struct machine *m, size_t k)
{
    if (k > m->n - m->at) {
        bad(m, "it ends too early");
        return NULL;
    }
    m->at += k;
    return m->p + m->at - k;
}

/* A little-endian number of k bytes. */
static int eat_uint(struct machine *m, int k, uint64_t *ret)
{
    const unsigned char *p = eat(m, (size_t)k);
    if (!p) return ERR_FORMAT;
    for (*ret = 0; k-- > 0;) *ret = *ret << 8 | p[k];
    return 0;
}

static int push(struct machine *m, uint32_t value)
{
    int rc = ROOM(m, m->stack, m->cap_stack, m->n_stack + 1);
    if (rc >= 0) m->stack[m->n_stack++] = value;
    return rc;
}

static int push_new(struct machine *m, struct pickle_value v)
{
    struct pickle *t = m->t;
    int rc = ROOM(m, t->value, t->cap_value, t->n_value + 1);
    if (rc < 0) return rc;
    t->value[t->n_value] = v;
    return push(m, (uint32_t)t->n_value++);
}

/* Values above the last mark are the only ones that an opcode may take. */
static int pop(struct machine *m, uint32_t *ret)
{
    size_t floor = m->n_mark ? m->mark[m->n_mark - 1] : 0;
    if (m->n_stack <= floor) return bad(m, "its stack is empty");
    *ret = m->stack[--m->n_stack];
    return 0;
}

static int top(struct machine *m, enum pickle_kind kind, struct pickle_value **ret)
{
    size_t floor = m->n_mark ? m->mark[m->n_mark - 1] : 0;
    if (m->n_stack <= floor) return bad(m, "its stack is empty");
    *ret = &m->t->value[m->stack[m->n_stack - 1]];
    return (*ret)->kind == kind ? 0 : bad(m, "an opcode meets a value of another type");
}

/* Appends value number x to the links of value number v. */
static int link_add(struct machine *m, uint32_t v, uint32_t x)
{
    struct pickle *t = m->t;
    int rc = ROOM(m, t->link, t->cap_link, t->n_link + 1);
    if (rc < 0) return rc;
    struct pickle_value *to = &t->value[v];
    uint32_t l = (uint32_t)t->n_link++;
    t->link[l] = (struct pickle_link){ x, 0 };
    if (to->n++) t->link[to->last].next = l;
    else to->first = l;
    to->last = l;
    return 0;
}

/* Moves the stack from height `from` on into a new value of this kind, which is pushed. */
static int gather(struct machine *m, enum pickle_kind kind, size_t from)
{
    struct pickle *t = m->t;
    int rc = ROOM(m, t->value, t->cap_value, t->n_value + 1);
    if (rc < 0) return rc;
    uint32_t v = (uint32_t)t->n_value++;
    t->value[v] = (struct pickle_value){ .kind = kind };
    for (size_t i = from; i < m->n_stack && rc >= 0; i++) rc = link_add(m, v, m->stack[i]);
    m->n_stack = from;
    return rc < 0 ? rc : push(m, v);
}

static int op_none(struct machine *m) { return push_new(m, (struct pickle_value){ .kind = PICKLE_NONE }); }
static int op_true(struct machine *m)
{
    return push_new(m, (struct pickle_value){ .kind = PICKLE_BOOL, .i = 1 });
}
static int op_false(struct machine *m) { return push_new(m, (struct pickle_value){ .kind = PICKLE_BOOL }); }
static int op_list(struct machine *m) { return push_new(m, (struct pickle_value){ .kind = PICKLE_LIST }); }
static int op_dict(struct machine *m) { return push_new(m, (struct pickle_value){ .kind = PICKLE_DICT }); }
static int op_tuple0(struct machine *m) { return push_new(m, (struct pickle_value){ .kind = PICKLE_TUPLE }); }

static int op_int(struct machine *m)
{
    uint64_t v;
    int rc = eat_uint(m, m->op == 'K' ? 1 : m->op == 'M' ? 2 : 4, &v);
    int64_t i = m->op == 'J' ? (int32_t)(uint32_t)v : (int64_t)v;
    return rc < 0 ? rc : push_new(m, (struct pickle_value){ .kind = PICKLE_INT, .i = i });
}

/* Two's complement of as many bytes as the first one says. */
static int op_long(struct machine *m)
{
    uint64_t n, v;
    int rc = eat_uint(m, 1, &n);
    if (rc < 0) return rc;
    if (n > 8)
        return err_set(m->e, ERR_LIMIT, "'%s': its pickle holds an integer of more than 64 bits", m->file);
    if ((rc = eat_uint(m, (int)n, &v)) < 0) return rc;
    if (n && n < 8 && v >> (8 * n - 1)) v |= UINT64_MAX << (8 * n);
    return push_new(m, (struct pickle_value){ .kind = PICKLE_INT, .i = (int64_t)v });
}

static int op_real(struct machine *m)
{
    const unsigned char *p = eat(m, 8);
    union {
        uint64_t u;
        double f;
    } v = { 0 };
    for (int i = 0; p && i < 8; i++) v.u = v.u << 8 | p[i]; /* the one big-endian field of the format */
    return p ? push_new(m, (struct pickle_value){ .kind = PICKLE_REAL, .f = v.f }) : ERR_FORMAT;
}

/* Strings: a length of 1, 4 or 8 bytes, then the bytes. */
static int op_str(struct machine *m)
{
    uint64_t n;
    int rc = eat_uint(m, m->op == 'X' || m->op == 'T' ? 4 : m->op == 0x8d ? 8 : 1, &n);
    if (rc < 0) return rc;
    const unsigned char *p = eat(m, n > m->n ? m->n + 1 : (size_t)n);
    if (!p) return ERR_FORMAT;
    return push_new(m, (struct pickle_value){ .kind = PICKLE_STR, .n = (uint32_t)n, .s = (const char *)p });
}

static int op_mark(struct machine *m)
{
    int rc = ROOM(m, m->mark, m->cap_mark, m->n_mark + 1);
    if (rc >= 0) m->mark[m->n_mark++] = (uint32_t)m->n_stack;
    return rc;
}

/* Takes the last mark away; *from is the height of the stack there. */
static int unmark(struct machine *m, size_t *from)
{
    if (!m->n_mark) return bad(m, "no mark");
    *from = m->mark[--m->n_mark];
    return 0;
}

static int op_tuple(struct machine *m)
{
    size_t from = 0;
    int rc = unmark(m, &from);
    return rc < 0 ? rc : gather(m, PICKLE_TUPLE, from);
}

static int op_tuple_n(struct machine *m) /* 0x85, 0x86, 0x87: one, two, three members */
{
    size_t n = (size_t)m->op - 0x84, floor = m->n_mark ? m->mark[m->n_mark - 1] : 0;
    if (m->n_stack - floor < n) return bad(m, "its stack is empty");
    return gather(m, PICKLE_TUPLE, m->n_stack - n);
}

/* APPEND, APPENDS, SETITEM, SETITEMS: what lies above a container goes into it. */
static int op_fill(struct machine *m)
{
    bool dict = m->op == 's' || m->op == 'u';
    size_t from = 0, floor, n = m->op == 's' ? 2 : 1;
    int rc = 0;
    if (m->op == 'e' || m->op == 'u') {
        if ((rc = unmark(m, &from)) < 0) return rc;
    } else {
        from = m->n_stack < n ? 0 : m->n_stack - n;
    }
    floor = m->n_mark ? m->mark[m->n_mark - 1] : 0;
    if (from <= floor) return bad(m, "its stack is empty");
    uint32_t into = m->stack[from - 1];
    if (m->t->value[into].kind != (dict ? PICKLE_DICT : PICKLE_LIST))
        return bad(m, "an opcode meets a value of another type");
    if (dict && (m->n_stack - from) % 2) return bad(m, "a key without a value");
    for (size_t i = from; i < m->n_stack && rc >= 0; i++) rc = link_add(m, into, m->stack[i]);
    m->n_stack = from;
    return rc;
}

static int op_put(struct machine *m) /* BINPUT, LONG_BINPUT, MEMOIZE */
{
    uint64_t i = m->n_memo;
    int rc = m->op == 0x94 ? 0 : eat_uint(m, m->op == 'q' ? 1 : 4, &i);
    if (rc < 0) return rc;
    if (!m->n_stack) return bad(m, "its stack is empty");
    if ((rc = ROOM(m, m->memo, m->cap_memo, (size_t)i + 1)) < 0) return rc;
    m->memo[i] = m->stack[m->n_stack - 1];
    if (i >= m->n_memo) m->n_memo = (size_t)i + 1;
    return 0;
}

static int op_get(struct machine *m)
{
    uint64_t i;
    int rc = eat_uint(m, m->op == 'h' ? 1 : 4, &i);
    if (rc < 0) return rc;
    return i < m->n_memo && m->memo[i] ? push(m, m->memo[i]) : bad(m, "it reads a memo that was not written");
}

/* A function or type by its module and name: only those of the table, and torch's storages. */
static int push_global(struct machine *m, const char *module, size_t n_module, const char *name,
                       size_t n_name)
{
    static const struct {
        const char *module, *name;
        enum call call;
    } allowed[] = {
        { "collections", "OrderedDict", CALL_DICT },
        { "torch._utils", "_rebuild_tensor_v2", CALL_TENSOR },
        { "torch._utils", "_rebuild_parameter", CALL_PARAMETER },
        { "torch", "Size", CALL_SIZE },
    };
    char a[100], b[100];
    enum dtype type;
    snprintf(a, sizeof a, "%.*s", (int)(n_module < 99 ? n_module : 99), module);
    snprintf(b, sizeof b, "%.*s", (int)(n_name < 99 ? n_name : 99), name);
    for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++)
        if (!strcmp(a, allowed[i].module) && !strcmp(b, allowed[i].name))
            return push_new(m, (struct pickle_value){ .kind = PICKLE_CALL, .i = allowed[i].call });
    if (!strcmp(a, "torch") && !dtype_find_torch(b, &type))
        return push_new(m, (struct pickle_value){ .kind = PICKLE_TYPE, .i = type });
    if (!strcmp(a, "torch") && n_name > 7 && n_name < 99 && !strcmp(b + n_name - 7, "Storage"))
        return err_set(m->e, ERR_UNSUPPORTED, "'%s' holds tensors of type 'torch.%s', which is not handled",
                       m->file, b);
    return err_set(m->e, ERR_UNSUPPORTED, "'%s' is not only tensors: refuses to call '%s.%s'", m->file, a, b);
}

static int op_global(struct machine *m)
{
    const char *at[2];
    size_t n[2];
    for (int i = 0; i < 2; i++) {
        const unsigned char *end = memchr(m->p + m->at, '\n', m->n - m->at);
        if (!end) return bad(m, "it ends too early");
        at[i] = (const char *)m->p + m->at;
        n[i] = (size_t)(end - (m->p + m->at));
        m->at += n[i] + 1;
    }
    return push_global(m, at[0], n[0], at[1], n[1]);
}

static int op_stack_global(struct machine *m)
{
    uint32_t i = 0, k = 0;
    int rc;
    if ((rc = pop(m, &i)) < 0 || (rc = pop(m, &k)) < 0) return rc;
    const struct pickle_value *name = &m->t->value[i], *module = &m->t->value[k];
    if (name->kind != PICKLE_STR || module->kind != PICKLE_STR) return bad(m, "a function without a name");
    return push_global(m, module->s, module->n, name->s, name->n);
}

/* "Calls" what the table above allows. */
static int op_reduce(struct machine *m)
{
    uint32_t args, f;
    int rc;
    if ((rc = pop(m, &args)) < 0 || (rc = pop(m, &f)) < 0) return rc;
    struct pickle_value a = m->t->value[args];
    if (m->t->value[f].kind != PICKLE_CALL || a.kind != PICKLE_TUPLE)
        return bad(m, "a call of something uncallable");
    switch ((enum call)m->t->value[f].i) {
    case CALL_DICT: return a.n ? bad(m, "OrderedDict() with arguments") : op_dict(m);
    case CALL_TENSOR:
        a.kind = PICKLE_TENSOR;
        return a.n < 4 ? bad(m, "a tensor with too few arguments") : push_new(m, a);
    case CALL_PARAMETER: /* (tensor, requires_grad, hooks): the tensor itself */
    case CALL_SIZE:      /* (tuple): the tuple itself */
        return a.n ? push(m, m->t->link[a.first].value) : bad(m, "a call without arguments");
    }
    return bad(m, "a call of something uncallable");
}

/* The state of an OrderedDict is its _metadata, versions of modules: of no use here. */
static int op_build(struct machine *m)
{
    uint32_t state;
    struct pickle_value *v;
    int rc = pop(m, &state);
    return rc < 0 ? rc : top(m, PICKLE_DICT, &v);
}

static int op_persistent(struct machine *m)
{
    uint32_t id = 0;
    int rc = pop(m, &id);
    if (rc < 0) return rc;
    struct pickle_value v = m->t->value[id];
    if (v.kind != PICKLE_TUPLE || v.n < 5) return bad(m, "a persistent id that is not a storage");
    v.kind = PICKLE_STORAGE;
    return push_new(m, v);
}

static int op_skip(struct machine *m) /* PROTO: one byte; FRAME: eight */
{
    const unsigned char *p = eat(m, m->op == 0x80 ? 1 : 8);
    if (!p) return ERR_FORMAT;
    if (m->op == 0x80 && (*p < 2 || *p > 5))
        return err_set(m->e, ERR_UNSUPPORTED, "'%s' is a pickle of protocol %d, 2 to 5 are handled", m->file,
                       *p);
    return 0;
}

static int op_stop(struct machine *m)
{
    m->stopped = true;
    return m->n_stack == 1 && !m->n_mark ? 0 : bad(m, "it does not end with one value");
}

static opcode_fn *const opcodes[256] = {
    [0x80] = op_skip,    [0x95] = op_skip,      ['.'] = op_stop,          ['('] = op_mark,
    ['N'] = op_none,     [0x88] = op_true,      [0x89] = op_false,        ['J'] = op_int,
    ['K'] = op_int,      ['M'] = op_int,        [0x8a] = op_long,         ['G'] = op_real,
    ['X'] = op_str,      [0x8c] = op_str,       [0x8d] = op_str,          ['U'] = op_str,
    ['T'] = op_str,      [')'] = op_tuple0,     ['t'] = op_tuple,         [0x85] = op_tuple_n,
    [0x86] = op_tuple_n, [0x87] = op_tuple_n,   [']'] = op_list,          ['a'] = op_fill,
    ['e'] = op_fill,     ['}'] = op_dict,       ['s'] = op_fill,          ['u'] = op_fill,
    ['q'] = op_put,      ['r'] = op_put,        [0x94] = op_put,          ['h'] = op_get,
    ['j'] = op_get,      ['c'] = op_global,     [0x93] = op_stack_global, ['R'] = op_reduce,
    ['b'] = op_build,    ['Q'] = op_persistent,
};

int pickle_open(struct pickle *t, const void *p, size_t n, const char *file, struct err *e)
{
    *t = (struct pickle){ 0 };
    if (n > PICKLE_MAX)
        return err_set(e, ERR_LIMIT, "'%s': its pickle has more than %d bytes", file, PICKLE_MAX);
    struct machine m = { .t = t, .p = p, .n = n, .file = file, .e = e };
    int rc = push_new(&m, (struct pickle_value){ 0 }); /* value 0, so that 0 can mean none */
    m.n_stack = 0;
    while (rc >= 0 && !m.stopped) {
        const unsigned char *op = eat(&m, 1);
        m.op = op ? *op : 0;
        if (!op) rc = ERR_FORMAT;
        else if (opcodes[m.op]) rc = opcodes[m.op](&m);
        else
            rc = err_set(e, ERR_UNSUPPORTED,
                         "'%s': pickle opcode 0x%02x at byte %zu is not one that tensors need", file,
                         (unsigned)m.op, m.at - 1);
    }
    if (rc >= 0) t->root = m.stack[0];
    else pickle_close(t);
    free(m.stack);
    free(m.mark);
    free(m.memo);
    return rc;
}

void pickle_close(struct pickle *t)
{
    free(t->value);
    free(t->link);
    *t = (struct pickle){ 0 };
}

const struct pickle_value *pickle_member(const struct pickle *t, const struct pickle_value *v, uint32_t k)
{
    if (v->kind < PICKLE_TUPLE || v->kind == PICKLE_CALL || v->kind == PICKLE_TYPE || k >= v->n) return NULL;
    uint32_t l = v->first;
    while (k--) l = t->link[l].next;
    return &t->value[t->link[l].value];
}
